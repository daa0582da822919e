"""Replies leave by the BGP peers of the node."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from metaleg_node.core.model import FAMILIES
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import LabService
from tests.e2e import second_way
from tests.e2e.path_scene import ALL, NONE, Scene, scene, status_of
from tests.e2e.scenario import NODE1, SETTLED, ours
from tests.e2e.second_way import BOTH_POOLS, OTHER_ROUTER2, ROUTER2
from tests.lab.plan import Flavour, LabOptions
from tests.patience import patient

BGP: dict[str, Any] = {"return_path": {"bgp": {"enabled": True}, "match": ["conntrack"]}}


def peers(*numbers: int) -> list[dict[str, Any]]:
    """BGPPeers: the second network's router by its first (1) or second (2) address, in both families."""
    found = {1: ROUTER2, 2: OTHER_ROUTER2}
    return [second_way.peer(f"p{n}-{f}", found[n][f]) for n in numbers for f in FAMILIES]


BGP_POOLS = [*BOTH_POOLS, second_way.advertisement("all")]


@pytest.fixture
def peering() -> Iterator[Scene]:
    """The nodes have addresses on the second network, as they need for BGP sessions; no daemon runs yet."""
    with ExitStack() as stack:
        here = scene(stack, LabOptions(flavour=Flavour.IPTABLES_LEGACY), addresses=True)
        here.write([*BGP_POOLS, *peers(1, 2)])
        yield here


@pytest.fixture
def bgp(peering: Scene) -> Scene:
    peering.lab.start_daemons(BGP)
    return peering


def table_20(here: Scene) -> list[str]:
    node = here.lab.namespace(NODE1)
    return [
        line for f in FAMILIES for line in _shown(node.run("ip", f"-{f}", "route", "show", "table", "all"), "table 20")
    ]


def rules_to_20(here: Scene) -> list[str]:
    node = here.lab.namespace(NODE1)
    return [line for f in FAMILIES for line in _shown(node.run("ip", f"-{f}", "rule"), "lookup 20")]


def held(here: Scene) -> dict[str, str]:
    """What the node holds of ours, once it tells its four next hops apart by their link-layer addresses, which it
    learns with the first packets."""

    def known() -> bool:
        return len(re.findall(r'eth1 [0-9a-f:]{17}"', ours(here.lab, NODE1)["nftables"])) == 4

    assert wait_until(known, SETTLED), ours(here.lab, NODE1)
    return ours(here.lab, NODE1)


def _shown(listing: str, word: str) -> list[str]:
    return [line for line in listing.splitlines() if f"{word} " in f"{line} "]


def test_BGP_replies_leave_by_the_peers(bgp: Scene) -> None:
    bgp.settle(ALL)
    assert [line.split()[0] for line in table_20(bgp) if "throw" not in line] == ["default", "default"]
    hops = status_of(bgp, NODE1, "bgp")["next_hops"]
    assert [hop["weight"] for hop in hops] == [100] * 4
    answer = bgp.lab.daemons[NODE1].command("plan", "--json").stdout
    (path,) = json.loads(answer)["paths"]
    assert (path["name"], path["table"], path["state"]) == ("bgp", 20, "active")
    assert {hop["neighbour"] for hop in path["next_hops"]} & {"reachable", "stale", "delay", "probe"}


def test_BGP_by_rules_alone_serves_packets_that_netfilter_does_not_see(peering: Scene) -> None:
    peering.serve_from_a_pod()
    peering.write([*BGP_POOLS, *peers(1, 2)])
    assert peering.answers_from_a_pod() == [False, False]
    peering.lab.start_daemons({"return_path": {"bgp": {"enabled": True}, "match": ["rules"]}})
    assert peering.answers_from_a_pod() == [True, True]
    assert {line.split()[2] for line in rules_to_20(peering)} == {str(n) for n in second_way.POOL_NETWORK.values()}
    assert "mark" not in "".join(rules_to_20(peering))


def test_R28_no_answer_is_lost_while_peers_come_and_go(bgp: Scene) -> None:
    """One peer stays; the other one flaps, as it would while a watch restarts."""
    bgp.settle(ALL)
    cluster = bgp.services[0]
    for numbers in ((1,), (1, 2), (1,), (1, 2), (1,)):
        bgp.write([*BGP_POOLS, *peers(*numbers)])
        # Also while the change is made, and after it.
        assert wait_until(partial(_is_answered_and_has_hops, bgp, cluster, 2 * len(numbers)), SETTLED)
        assert bgp.second.answers(cluster) == ALL


def _is_answered_and_has_hops(bgp: Scene, service: LabService, count: int) -> bool:
    """Whether the path has so many next hops, by node1's daemon; the client gets all its answers in any case."""
    assert bgp.second.answers(service) == ALL
    return len(status_of(bgp, NODE1, "bgp")["next_hops"]) == count


def test_F37_a_state_that_is_broken_or_cannot_be_read_changes_nothing(bgp: Scene) -> None:
    bgp.settle(ALL)
    before = held(bgp)
    state = bgp.lab.daemons[NODE1].state_file
    state.write_text("kind: [")
    assert wait_until(lambda: bool(bgp.lab.daemons[NODE1].status()["problems"]), SETTLED)
    assert ours(bgp.lab, NODE1) == before
    state.unlink()
    bgp.lab.daemons[NODE1].stop()
    bgp.lab.daemons[NODE1].start()
    assert wait_until(lambda: bool(bgp.lab.daemons[NODE1].status().get("problems")), SETTLED)
    assert len(rules_to_20(bgp)) == 2


def test_no_peers_no_rules_no_routes(bgp: Scene) -> None:
    bgp.settle(ALL)
    bgp.write(BGP_POOLS)
    assert wait_until(lambda: not table_20(bgp) and not rules_to_20(bgp), SETTLED)
    assert not any("unreachable" in text for text in ours(bgp.lab, NODE1).values())
    bgp.settle(NONE, patient(1))


def test_what_others_put_into_the_table_or_point_at_it_goes_and_is_logged(bgp: Scene) -> None:
    bgp.settle(ALL)
    node = bgp.lab.namespace(NODE1)
    before = table_20(bgp), rules_to_20(bgp)
    node.ip(["route add 198.18.0.0/15 via 192.0.2.1 table 20", "rule add from 198.18.0.0/15 lookup 20 priority 99"])
    node.ip(["route add 198.18.0.0/15 via 192.0.2.1", "rule add from 198.18.0.0/15 lookup 21 priority 99"])
    assert wait_until(lambda: (table_20(bgp), rules_to_20(bgp)) == before, SETTLED)
    assert "198.18.0.0/15" in node.run("ip", "route", "show", "table", "main")
    assert "lookup 21" in node.run("ip", "rule")
    for line in ("- route 198.18.0.0/15 via 192.0.2.1", "leads into a table that is ours alone"):
        assert wait_until(partial(_is_told, bgp, line), SETTLED), line


def _is_told(here: Scene, text: str) -> bool:
    return text in here.lab.daemons[NODE1].log()


def test_what_others_take_away_comes_back(bgp: Scene) -> None:
    bgp.settle(ALL)
    node, before = bgp.lab.namespace(NODE1), held(bgp)
    for words in ("route flush table 20", "rule del priority 20"):
        for f in FAMILIES:
            node.run("ip", f"-{f}", *words.split())
    node.run("nft", "flush", "ruleset")
    assert wait_until(lambda: ours(bgp.lab, NODE1) == before, SETTLED)
    bgp.settle(ALL)


def test_metrics_tell_paths_and_the_state_of_their_next_hops(bgp: Scene) -> None:
    bgp.settle(ALL)
    with bgp.lab.namespace(NODE1).socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect(("127.0.0.1", 21793))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with sock.makefile() as answer:
            page = answer.read()
    assert 'metaleg_node_return_path{path="bgp"} 1.0' in page
    assert 'metaleg_node_return_path_networks{path="bgp"} 2.0' in page
    assert page.count("metaleg_node_return_path_next_hop{") == 4


def test_status_follows_the_neighbour_tables_without_another_reconcile(peering: Scene) -> None:
    """Where nothing is known by link-layer addresses."""
    bgp = peering
    bgp.lab.start_daemons({"return_path": {"bgp": {"enabled": True, "symmetric": False}, "match": ["conntrack"]}})
    bgp.settle(ALL)
    daemon = bgp.lab.daemons[NODE1]
    before = daemon.status()["last_reconcile"]
    hop = status_of(bgp, NODE1, "bgp")["next_hops"][0]
    place = f"{hop['address']} dev {hop['interface']}"
    bgp.lab.namespace(NODE1).ip([f"neighbour replace {place} lladdr 02:00:00:00:00:01 nud permanent"])
    assert wait_until(
        lambda: status_of(bgp, NODE1, "bgp")["next_hops"][0] == {**hop, "neighbour": "permanent"}, SETTLED
    )
    assert daemon.status()["last_reconcile"] == before
