"""The service's source: the API when it answers, what is known from before when it does not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from metaleg_node.configuration.config import Config, parse
from metaleg_node.daemon.cluster_source import ClusterSource, needs
from metaleg_node.sources import kubernetes_api
from tests.api import faults
from tests.api.harness import config_for, eventually, node, service, write_kubeconfig
from tests.api.server import ApiServer


class Running:
    """A source in a `with` block."""

    def __init__(self, config: Config, state_dir: Path, *, patience: float = 60.0) -> None:
        self.changed = threading.Event()
        self.source = ClusterSource(config, state_dir, self.changed.set)
        self._patience = patience

    def __enter__(self) -> ClusterSource:
        self.source.start(patience=self._patience)
        return self.source

    def __exit__(self, *_: object) -> None:
        self.source.stop()


def names(source: ClusterSource) -> list[str] | None:
    state = source.state()
    return None if state is None else [one.ref.name for one in state.services]


@pytest.fixture
def config(server: ApiServer, tmp_path: Path) -> Config:
    return config_for(write_kubeconfig(tmp_path / "kubeconfig", server.url))


@pytest.fixture
def lib(tmp_path: Path) -> Path:
    return tmp_path / "lib"


@pytest.fixture
def known(server: ApiServer, config: Config, lib: Path) -> None:
    """A state that an earlier run has saved."""
    server.put(service("a"), node("worker-1"))
    with Running(config, lib) as source:
        assert eventually(lambda: names(source) == ["a"])


def test_without_an_api_and_without_a_past_nothing_is_known(server: ApiServer, config: Config, lib: Path) -> None:
    server.down()
    with Running(config, lib, patience=0) as source:
        assert eventually(lambda: bool(source.problems))
        assert names(source) is None
        assert source.status()["state"] == "waiting"
        assert "Service" in source.status()["missing"]


@pytest.mark.usefixtures("known")
def test_the_last_known_state_is_taken_at_once_while_the_api_is_out_of_reach(
    server: ApiServer, config: Config, lib: Path
) -> None:
    server.down()
    with Running(config, lib, patience=0) as source:
        assert names(source) == ["a"]
        assert source.stale
        assert not source.confirmed
        assert any("last known state, of 20" in problem.text for problem in source.problems)
        status = source.status()
        assert (status["state"], status["kind"]) == ("stale", "Kubernetes API")
        assert status["since"]
        server.put(service("b"))
        server.up()
        assert eventually(lambda: names(source) == ["a", "b"])
        assert not source.stale
        assert eventually(lambda: source.confirmed)
        assert source.status()["since"] is None


@pytest.mark.usefixtures("known")
def test_an_api_that_answers_is_preferred_to_the_past(server: ApiServer, config: Config, lib: Path) -> None:
    server.put(service("b"))
    with Running(config, lib) as source:
        seen: set[str] = set()
        assert eventually(lambda: seen.add(str(names(source))) is None and source.confirmed)
        assert seen <= {"None", "['a', 'b']"}


@pytest.mark.usefixtures("known")
def test_an_api_that_says_nothing_is_not_waited_for_longer_than_told(
    server: ApiServer, config: Config, lib: Path
) -> None:
    server.inject(faults.says_nothing, when=lambda _: True, times=1000)
    with Running(config, lib, patience=0.2) as source:
        assert names(source) is None
        assert eventually(lambda: names(source) == ["a"], 1.0)


@pytest.mark.usefixtures("known")
def test_an_incomplete_state_never_replaces_what_is_saved(server: ApiServer, config: Config, lib: Path) -> None:
    saved = (lib / "cluster-state.yaml").read_bytes()
    server.put(service("b"))
    server.forbidden.add("nodes")
    with Running(config, lib, patience=0) as source:
        assert eventually(lambda: source.status()["missing"] == ["Node"] and names(source) == ["a"])
    assert (lib / "cluster-state.yaml").read_bytes() == saved


def test_commands_list_once(server: ApiServer, config: Config) -> None:
    server.serve_resource("metallb.io/v1beta1/servicel2statuses", served=False)
    server.put(service("a"), node("worker-1"))
    state, problems = kubernetes_api.read(config)
    assert not problems
    assert [one.ref.name for one in state.services] == ["a"]
    assert [one.ref.name for one in state.nodes] == ["worker-1"]
    assert not any(one.is_watch for one in server.asked)
    server.forbidden.update({"nodes", "services"})
    told = kubernetes_api.read(config)[1]
    assert len(told) == 2
    assert all("lacks a right" in text for text in told)
    server.down()
    (told_once,) = kubernetes_api.read(config)[1]
    assert "refused" in told_once


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("[egress]\nexclude_cidrs = ['10.0.0.0/8']\nwhen_unavailable = 'drop'\n[external_ip]\nenabled = false", True),
        ("[cluster]\npod_cidrs = ['10.0.0.0/8']", True),
        ("[egress]\nlabel = 'other/label'", False),
        ("[egress]\ngateway_source = ['events']", False),
        ("[return_path.bgp]\nenabled = true", False),
        ("[cluster]\ncontext = 'other'", False),
        ("[cluster]\nmetallb_namespace = 'other'", False),
        ("[cluster]\nstate_file = '/state.yaml'", False),
    ],
)
def test_a_configuration_that_asks_the_source_for_nothing_else_needs_no_other_source(text: str, same: bool) -> None:
    assert (needs(parse(text, file="")) == needs(parse("", file=""))) is same
