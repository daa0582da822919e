"""Return paths of daemons that learn MetalLB's pools and peers from an API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaleg_node.core.model import Family
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import LabService
from tests.e2e.api_lab import ApiLab, api_lab
from tests.e2e.path_scene import ALL, NONE
from tests.e2e.scenario import NODE1, NODE2, SETTLED, ours
from tests.e2e.second_way import SecondWay
from tests.e2e.test_bgp_return_path import BGP, BGP_POOLS, peers
from tests.lab.daemons import Daemon
from tests.lab.lab import Lab


@pytest.fixture
def second(lab: Lab) -> Iterator[SecondWay]:
    """A Service without egress that node1 announces to the second way's client."""
    with SecondWay(lab, addresses=True) as second:
        lab.set_services(LabService(name="web", number=0, pods=(lab.pod(NODE2),), gateway=None, labelled=False))
        second.announce(lab.services["web"], NODE1)
        yield second


@pytest.fixture
def api(lab: Lab, second: SecondWay, tmp_path: Path) -> Iterator[ApiLab]:
    """Daemons with the API as their source; the client gets its answers by BGP."""
    del second
    with api_lab(lab, tmp_path) as api:
        api.publish([*BGP_POOLS, *peers(1, 2)])
        api.overrides.update(BGP, egress={"enabled": False})
        api.start_daemons()
        yield api


def settle(api: ApiLab, second: SecondWay, wanted: dict[tuple[str, Family], bool]) -> None:
    """Waits until the client gets all answers, or none."""
    assert wait_until(lambda: second.answers(api.lab.services["web"], 0.3) == wanted, SETTLED)


def all_known(daemon: Daemon) -> bool:
    """Whether the link-layer addresses of all next hops are known, and in force."""
    hops = [hop["neighbour"] for path in daemon.status()["paths"] for hop in path["next_hops"]]
    known = {"reachable", "stale", "delay", "probe"}
    return bool(hops) and {*hops} <= known and daemon.command("plan").returncode == 0


def test_F37_R28_replies_by_bgp_peers_that_the_api_tells_outlive_its_failures(api: ApiLab, second: SecondWay) -> None:
    settle(api, second, ALL)
    web, lab = api.lab.services["web"], api.lab
    assert wait_until(lambda: all_known(lab.daemons[NODE1]), SETTLED)
    before = ours(lab, NODE1)
    for _ in range(5):
        api.server.break_connections()
        assert second.answers(web) == ALL
    api.server.down()
    status = lab.daemons[NODE1].status
    assert wait_until(lambda: any("refused" in str(problem) for problem in status()["problems"]), SETTLED)
    assert second.answers(web) == ALL
    assert ours(lab, NODE1) == before
    api.publish([*BGP_POOLS, *peers(2)])
    api.server.up()
    assert wait_until(lambda: ours(lab, NODE1) != before, 30)
    settle(api, second, ALL)
    api.publish(BGP_POOLS)
    assert wait_until(lambda: not any(ours(lab, NODE1).values()), SETTLED)
    settle(api, second, NONE)


def test_the_saved_state_gives_the_same_return_path(api: ApiLab) -> None:
    daemon = api.lab.daemons[NODE1]
    daemon.stop()
    assert daemon.command("cleanup").returncode == 0
    live = daemon.command("plan", "--json")
    assert live.returncode == 2, live.stderr
    saved_state = daemon.config_file.parent / "lib" / "cluster-state.yaml"
    daemon.configure({**api.overrides, "cluster": {"state_file": str(saved_state)}})
    saved = daemon.command("plan", "--json")
    assert json.loads(saved.stdout) == json.loads(live.stdout)
    assert [path["name"] for path in json.loads(live.stdout)["paths"]] == ["bgp"]
    assert len(json.loads(live.stdout)["changes"]) > 3
