"""Which next hops of a return path answers go back through alone, and what that needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from metaleg_node.core import assembly as desired
from metaleg_node.core.compare import diff
from metaleg_node.core.model import Slot
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.return_path import paths
from metaleg_node.core.return_path import wanted as pools
from tests.unit.builders import A, config
from tests.unit.test_pools import BGP
from tests.unit.test_return_path import BY_ANY, HERE, L2, PEERING, THROWN, UP, decide, firewall, routes, rules, told

SEEN = dataclasses.replace(
    HERE,
    link_addresses={
        (ip_address("10.0.0.8"), "eth0"): "02:00:00:00:00:08",
        (ip_address("10.0.0.9"), "eth0"): "02:00:00:00:00:09",
    },
)


def routers(found: desired.Desired) -> list[tuple[int, str]]:
    return [(slot, str(one)) for slot, one in sorted(firewall(found).routers.items())]


def test_each_of_several_next_hops_has_a_slot_a_table_and_a_spare_way() -> None:
    found = decide(BGP, PEERING, SEEN)
    throws = [text for text in THROWN if "::" not in text]
    assert routes(found) == sorted(
        [
            "default (IPv4) via 10.0.0.8 dev eth0 weight 100 via 10.0.0.9 dev eth0 weight 3 table 20",
            "default (IPv6) via fd00::8 dev eth0 metric 1024 table 20",
            *(f"{text} table 20" for text in THROWN),
            "default (IPv4) via 10.0.0.8 dev eth0 table 1000002",
            "default (IPv4) via 10.0.0.9 dev eth0 table 1000003",
            *(
                "default (IPv4) via 10.0.0.8 dev eth0 weight 100 via 10.0.0.9 dev eth0 weight 3 metric 4700 "
                f"table {table}"
                for table in (1000002, 1000003)
            ),
            *(f"{text} table {table}" for text in throws for table in (1000002, 1000003)),
        ]
    )
    assert rules(found) == [
        "IPv4 priority 20 fwmark 0x1000000/0x3f000000 lookup 20",
        "IPv4 priority 20 fwmark 0x2000000/0x3f000000 lookup 1000002",
        "IPv4 priority 20 fwmark 0x3000000/0x3f000000 lookup 1000003",
        "IPv6 priority 20 fwmark 0x1000000/0x3f000000 lookup 20",
    ]
    assert routers(found) == [
        (2, "router::bgp:10.0.0.8 on eth0 is 02:00:00:00:00:08"),
        (3, "router::bgp:10.0.0.9 on eth0 is 02:00:00:00:00:09"),
    ]
    assert found.tables == {20, 1000002, 1000003}
    assert told(found) == ()


def test_a_next_hop_that_is_not_there_keeps_its_slot_and_is_known_by_nothing() -> None:
    failed = dataclasses.replace(SEEN, link_addresses={})
    assert routers(decide(BGP, PEERING, failed)) == [
        (2, "router::bgp:10.0.0.8 on eth0 is not there, answers leave as the path's others"),
        (3, "router::bgp:10.0.0.9 on eth0 is not there, answers leave as the path's others"),
    ]


TWO = L2.replace('"fd01::1"', '"fd01::1", "10.1.0.2"')
TOLD_APART: dict[str, tuple[str, set[str]]] = {
    "one gateway of a family": (L2, set()),
    "gateways of layer 2": (TWO, {"router:one:10.1.0.1", "router:one:10.1.0.2"}),
    "by any": (f"{TWO}symmetric = false\n", set()),
    "known by their source alone": (f'return_path.match = ["source", "rules"]\n{TWO}', set()),
    "peers by any, gateways not": (TWO + BY_ANY, {"router:one:10.1.0.1", "router:one:10.1.0.2"}),
    "a destination of another family": (f'{BGP}destination = "2000::/3"\n', set()),
}


@pytest.mark.parametrize("name", TOLD_APART)
def test_next_hops_are_told_apart_where_there_are_several(name: str) -> None:
    text, expected = TOLD_APART[name]
    assert {str(one.holder) for one in firewall(decide(text, PEERING)).routers.values()} == expected


def test_a_drained_peer_is_no_next_hop_that_is_told_apart() -> None:
    (cluster,) = [dataclasses.replace(PEERING, peers=PEERING.peers[:2])]
    drained = dataclasses.replace(cluster.peers[0], labels={pools.ENABLED: "false"})
    assert firewall(decide(BGP, dataclasses.replace(cluster, peers=(drained, *cluster.peers[1:])))).routers == {}


def test_the_host_is_asked_for_several_next_hops_alone() -> None:
    wanted = pools.read(PEERING, config(BGP + TWO), A)
    assert paths.questions(wanted.paths).next_hops == {
        (ip_address("10.0.0.8"), ""),
        (ip_address("10.0.0.9"), ""),
        (ip_address("10.1.0.1"), "eth1"),
        (ip_address("10.1.0.2"), "eth1"),
    }


def test_next_hops_yield_their_slots_and_are_told_then() -> None:
    few = f"firewall.mark_mask = 0x3\n{BGP}"
    found = decide(few, PEERING, SEEN, {Slot(1): "router::bgp:10.0.0.9", Slot(2): "router::bgp:10.0.0.8"})
    assert firewall(found).paths.keys() == {3}
    assert [slot for slot, _ in routers(found)] == [1, 2]
    found = decide(few + L2, PEERING, SEEN, {Slot(1): "router::bgp:10.0.0.9", Slot(2): "router::bgp:10.0.0.8"})
    assert firewall(found).paths.keys() == {1, 3}
    assert [slot for slot, _ in routers(found)] == [2]
    assert told(found) == (
        "return path bgp: no mark is left for 10.0.0.9: all values under firewall.mark_mask are taken; answers to "
        "what comes by there leave by any next hop",
    )


def test_an_interface_that_cannot_be_named_brings_nothing_that_is_told_apart() -> None:
    strange = dataclasses.replace(HERE, links={'x"y': UP})
    found = decide(TWO.replace('"eth1"', "'x\"y'"), host=strange)
    assert firewall(found).routers == {}
    assert "the packet filter cannot name interface" in told(found)[0]


def test_marks_go_before_rules_for_the_source() -> None:
    found = decide(f'return_path.match = ["rules", "conntrack"]\n{BGP}', PEERING)
    by_source = [rule for rule in found.state.routing.rules if rule.source]
    assert {(rule.mark, rule.mask) for rule in by_source} == {(0, 0x3F000000)}


def test_what_happens_to_a_next_hop_is_told_and_forgotten() -> None:
    before, after = decide(BGP, PEERING, SEEN), decide(BGP, PEERING)
    steps = diff.steps(before.state, after.state, why=lambda _: "")
    assert [str(one) for one in diff.changes(steps)] == [
        f"~ firewall router::bgp:10.0.0.{n} on eth0 is not there, answers leave as the path's others" for n in (8, 9)
    ]
    assert forgotten(steps) == set()
    steps = diff.steps(before.state, decide(BY_ANY, PEERING).state, why=lambda _: "")
    lines = [str(one) for one in diff.changes(steps)]
    assert "- path router::bgp:10.0.0.8 has slot 2, mark 0x2000000" in lines
    gone = {(0x2000000, 0x3F000000), (0x3000000, 0x3F000000)}
    assert forgotten(steps) == gone
    cleaned = diff.steps(before.state, NodeState(), why=lambda _: "")
    assert forgotten(cleaned) == gone
    first = next(step.operation for step in cleaned if isinstance(step.operation, diff.PutFirewall))
    assert first.firewall
    assert diff.routers(first.firewall) == set(), "no request is remembered any more while they are forgotten"
    damaged = diff.steps(before.state, NodeState(), why=lambda _: "", damage=[diff.Damage(what="chain x")])
    assert forgotten(damaged) == gone


def forgotten(steps: Iterable[diff.Step]) -> set[tuple[int, int]]:
    """The marks and masks that connections shall not remember after that."""
    sweeps = (step.operation for step in steps if isinstance(step.operation, diff.SweepFlows))
    return {one for sweep in sweeps for one in sweep.routers}
