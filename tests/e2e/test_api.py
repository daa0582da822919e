"""Daemons that learn the cluster from an API server, and stay right while it fails."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import NODES, LabNode
from tests.e2e.api_lab import ApiLab, api_lab
from tests.e2e.scenario import NODE1, NODE2, NODE3, SETTLED, egress_service, expect, ours, sources, texts
from tests.lab.lab import Lab

DEBIAN = "/usr/bin/python3"


@pytest.fixture
def api(lab: Lab, tmp_path: Path) -> Iterator[ApiLab]:
    """One egress Service (pods on node1 and node2, gateway node2), known to the API; no daemon yet."""
    with api_lab(lab, tmp_path) as api:
        api.set_services(egress_service(lab))
        yield api


def address(api: ApiLab) -> set[str]:
    return texts(api.lab.services["web"].addresses)


def status(api: ApiLab, node: LabNode) -> dict[str, object]:
    return api.lab.daemons[node].status()


def metric(api: ApiLab, node: LabNode, name: str) -> float:
    with api.lab.namespace(node).inside(), urllib.request.urlopen("http://127.0.0.1:21793/metrics") as page:
        (line,) = (line for line in page.read().decode().splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


@pytest.mark.parametrize("python", [sys.executable, DEBIAN], ids=["newest", "debian"])
def test_egress_failover_and_return_work_with_the_api(api: ApiLab, python: str) -> None:
    lab = api.lab
    api.start_daemons(python=python)
    assert sources(lab, lab.pod(NODE1)) == address(api)
    assert sources(lab, lab.pod(NODE2)) == address(api)
    assert sources(lab, lab.pod(NODE3)) == texts(NODE3.addresses)
    lab.reset_seen()
    api.failover("web", NODE3)
    expect(lab, lab.pod(NODE1), address(api))
    api.set_services()
    expect(lab, lab.pod(NODE1), texts(NODE1.addresses))
    assert [status(api, node)["problems"] for node in NODES] == [[], [], []]


def test_F34_while_the_api_is_gone_everything_stays_and_is_told(api: ApiLab) -> None:
    lab = api.lab
    api.start_daemons()
    before = {node: ours(lab, node) for node in NODES}
    api.server.down()
    assert wait_until(lambda: any("refused" in str(p) for p in status(api, NODE1)["problems"]), SETTLED)  # type: ignore[attr-defined]
    assert sources(lab, lab.pod(NODE1)) == address(api)
    lab.namespace(NODE1).run("nft", "flush", "ruleset")
    expect(lab, lab.pod(NODE1), address(api))
    assert all(lab.daemons[node].ready() for node in NODES)
    api.failover("web", NODE3)
    api.server.up()
    expect(lab, lab.pod(NODE1), address(api), 30)
    assert wait_until(lambda: not status(api, NODE1)["problems"], 30)
    assert ours(lab, NODE3) != before[NODE3]


def test_F32_a_node_that_boots_without_the_api_works_with_what_it_knew(api: ApiLab) -> None:
    lab = api.lab
    api.start_daemons()
    for node in NODES:
        lab.daemons[node].stop()
        assert lab.daemons[node].command("cleanup").returncode == 0
    api.server.down()
    lab.reset_seen()
    lab.start_daemons(api.overrides)
    assert sources(lab, lab.pod(NODE1)) == address(api)
    source = status(api, NODE1)["source"]
    assert isinstance(source, dict)
    assert (source["state"], source["kind"]) == ("stale", "Kubernetes API")
    assert metric(api, NODE1, "metaleg_node_state_stale") == 1
    api.failover("web", NODE3)
    api.server.up()
    expect(lab, lab.pod(NODE1), address(api), 30)
    assert wait_until(lambda: metric(api, NODE1, "metaleg_node_state_stale") == 0, 30)
    assert lab.seen() <= set(lab.services["web"].addresses.values())


def test_the_saved_state_gives_the_same_plan(api: ApiLab) -> None:
    lab = api.lab
    api.start_daemons([NODE1])
    daemon = lab.daemons[NODE1]
    daemon.stop()
    assert daemon.command("cleanup").returncode == 0
    live = daemon.command("plan", "--json")
    assert live.returncode == 2, live.stderr
    daemon.configure({"cluster": {"state_file": str(daemon.config_file.parent / "lib" / "cluster-state.yaml")}})
    saved = daemon.command("plan", "--json")
    assert json.loads(saved.stdout) == json.loads(live.stdout)
    assert len(json.loads(live.stdout)["changes"]) > 3


def test_a_node_without_credentials_and_past_waits_for_nobody(api: ApiLab) -> None:
    daemon = api.lab.daemons[NODE1]
    daemon.configure({"cluster": {"state_file": "", "kubeconfig": "/nowhere/kubeconfig"}})
    done = daemon.command("run")
    assert done.returncode == 78
    assert "/nowhere/kubeconfig: does not exist" in done.stderr


def test_owners_of_services_are_told_each_change_once(api: ApiLab) -> None:
    api.overrides["cluster"]["events"] = True
    api.start_daemons()

    def told() -> list[tuple[str, str]]:
        """Who told what."""
        events = [one for path, one in api.server.made.items() if "/events/" in path]
        return sorted((one["source"]["host"], one["reason"]) for one in events if "IPv4" in one["message"])

    api.failover("web", NODE3)
    assert wait_until(lambda: told() == [("node3", "EgressMoved")], SETTLED), told()
    api.failover("web", None)
    expected = [("node1", "EgressNoGateway"), ("node3", "EgressMoved")]
    assert wait_until(lambda: told() == expected, SETTLED), told()
    api.failover("web", NODE3)
    expected.append(("node3", "EgressResumed"))
    assert wait_until(lambda: told() == expected, SETTLED), told()
    assert wait_until(lambda: not any(status(api, node)["problems"] for node in NODES), SETTLED)
