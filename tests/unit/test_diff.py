"""The order of steps, and how changes read."""

from __future__ import annotations

import dataclasses
import time
from ipaddress import IPv4Address, ip_address, ip_network

from metaleg_node.core.compare import diff
from metaleg_node.core.firewall.egress import EgressPod, Treatment
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import (
    Address,
    DestinationFilter,
    ForeignItem,
    NextHop,
    NodeName,
    Route,
    Routing,
    Rule,
    Slot,
)
from metaleg_node.core.node_state import NodeState
from tests.firewalls import ELSEWHERE, EXCEPT, FULL, HOLD, RESTRICTED, SNAT4, STEER, but, flat, pods
from tests.unit.builders import A, announced, cluster, decide

NOTHING = NodeState()


def plan(before: NodeState, after: NodeState, *damage: str) -> tuple[diff.Step, ...]:
    found = tuple(diff.Damage(what=what) for what in damage)
    return diff.steps(before, after, why=lambda address: f"because of {address}", damage=found)


def kinds(steps: tuple[diff.Step, ...]) -> list[str]:
    """Operations in their order, each kind once for as long as it lasts; routes with their type."""
    names: list[str] = []
    for step in steps:
        name = type(step.operation).__name__
        if isinstance(step.operation, diff.PutRoute | diff.DeleteRoute):
            name += f" {step.operation.route.type}"
        if name not in names[-1:]:
            names.append(name)
    return names


def lines(steps: tuple[diff.Step, ...]) -> list[str]:
    return [str(change) for change in diff.changes(steps)]


def filters(steps: tuple[diff.Step, ...]) -> list[Firewall | None]:
    return [step.operation.firewall for step in steps if isinstance(step.operation, diff.PutFirewall)]


def sweeps(steps: tuple[diff.Step, ...]) -> list[frozenset[Address] | None]:
    return [step.operation.addresses for step in steps if isinstance(step.operation, diff.SweepFlows)]


def firewall(**parts: object) -> NodeState:
    return NodeState(firewall=but(FULL, **parts))


STEERING = dataclasses.replace(decide(cluster(), A).state, sysctls={"net/ipv4/conf/eth0/rp_filter": "2"})
ADDING = [
    "SetSysctl",
    "PutRoute unreachable",
    "PutRoute unicast",
    "PutRoute throw",
    "AddRule",
    "PutFirewall",
    "SweepFlows",
]
REMOVING = [
    "PutFirewall",
    "SweepFlows",
    "PutFirewall",
    "DeleteRule",
    "DeleteRoute unicast",
    "DeleteRoute throw",
    "DeleteRoute unreachable",
    "RestoreSysctl",
]


# --- order -----------------------------------------------------------------------------------------------------------


def test_adding_builds_the_way_before_it_marks_and_closes_tables_before_it_opens_them() -> None:
    assert kinds(plan(NOTHING, STEERING)) == ADDING


def test_S3_removing_marks_nothing_before_it_takes_the_way_away() -> None:
    assert kinds(plan(STEERING, NOTHING)) == REMOVING


def test_F33_a_gateway_moves_by_adding_the_new_way_first_and_removing_the_old_one_last() -> None:
    assert STEERING.firewall
    held = flat(STEERING.firewall).gateways
    moved = decide(cluster(announcements=[announced("b")]), A, held=held).state
    got = kinds(plan(STEERING, dataclasses.replace(moved, sysctls=STEERING.sysctls)))
    assert got == [
        "PutRoute unreachable",
        "PutRoute unicast",
        "PutRoute throw",
        "AddRule",
        "PutFirewall",
        "DeleteRule",
        "DeleteRoute unicast",
        "DeleteRoute throw",
        "DeleteRoute unreachable",
        "SweepFlows",
    ]


def test_foreign_items_go_before_ours_are_put_which_the_kernel_might_delete_for_them() -> None:
    item = ForeignItem(text="default via 10.9.9.9", raw=())
    routing = Routing(foreign_routes=frozenset({item}), foreign_rules=frozenset({item}))
    steps = plan(NodeState(routing=routing), STEERING)
    assert kinds(steps) == [ADDING[0], "DeleteForeignRoute", "DeleteForeignRule", *ADDING[1:]]
    assert "- rule default via 10.9.9.9  # not ours, but leads into a table that is ours alone" in lines(steps)


def test_S4_two_equal_states_need_no_step() -> None:
    assert plan(STEERING, STEERING) == ()
    assert plan(NOTHING, NOTHING) == ()
    assert plan(NodeState(firewall=FULL), NodeState(firewall=but(FULL))) == ()


def test_a_route_with_another_next_hop_is_replaced_not_deleted() -> None:
    def state(gateway: str) -> NodeState:
        hop = NextHop(gateway=ip_address(gateway), interface="eth0")
        route = Route(table=1000001, destination=ip_network("0.0.0.0/0"), metric=0, next_hops=(hop,))
        return NodeState(routing=Routing(routes=frozenset({route})))

    steps = plan(state("10.0.0.2"), state("10.0.0.3"))
    assert kinds(steps) == ["PutRoute unicast"]
    assert lines(steps) == [
        "~ route default (IPv4) via 10.0.0.3 dev eth0 table 1000001"
        "  # was: default (IPv4) via 10.0.0.2 dev eth0 table 1000001"
    ]


def test_several_routes_in_the_place_of_one_all_go_before_that_one_is_put() -> None:
    def via(*gateways: str) -> NodeState:
        hops = [NextHop(gateway=ip_address(gateway), interface="eth0") for gateway in gateways]
        everywhere = ip_network("0.0.0.0/0")
        routes = (Route(table=1000001, destination=everywhere, metric=0, next_hops=(hop,)) for hop in hops)
        return NodeState(routing=Routing(routes=frozenset(routes)))

    beside = plan(via("10.0.0.2", "10.0.0.70"), via("10.0.0.2"))
    assert kinds(beside) == ["DeleteRoute unicast", "PutRoute unicast"]
    assert lines(beside) == [
        "- route default (IPv4) via 10.0.0.70 dev eth0 table 1000001  # a second one in the place of ours"
    ]
    instead = plan(via("10.0.0.70", "10.0.0.71"), via("10.0.0.2"))
    assert kinds(instead) == ["DeleteRoute unicast", "PutRoute unicast"]
    assert lines(instead)[2:] == ["+ route default (IPv4) via 10.0.0.2 dev eth0 table 1000001"]
    assert kinds(plan(via("10.0.0.70", "10.0.0.71"), NOTHING)) == ["DeleteRoute unicast"]


def test_a_changed_rule_is_added_in_its_new_form_before_the_old_one_goes() -> None:
    def state(table: int) -> NodeState:
        rule = Rule(family=4, priority=4700, table=table, mark=1, mask=1)
        return NodeState(routing=Routing(rules=frozenset({rule})))

    assert kinds(plan(state(1000001), state(1000002))) == ["AddRule", "DeleteRule"]


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_new_gateway_translates_before_it_looks_through_connections() -> None:
    """Every node refuses early answers from the beginning, so that there is nothing to forget first."""
    before, after = firewall(sources=frozenset(), pods=pods([5], ELSEWHERE)), firewall(pods=pods([5], SNAT4))
    steps = plan(before, after)
    assert kinds(steps) == ["PutFirewall", "SweepFlows"]
    assert filters(steps) == [after.firewall]
    assert sweeps(steps) == [flat(FULL).sources | {ip_address("10.244.1.5")}]


def test_what_concerns_no_connection_looks_for_none() -> None:
    assert kinds(plan(firewall(), firewall(served=frozenset({99})))) == ["PutFirewall"]
    assert kinds(plan(firewall(filters={}), firewall())) == ["PutFirewall"], "no pod asks these destinations"


def test_two_sweeps_at_once_look_for_what_each_looks_for_and_judge_by_the_later_firewall() -> None:
    (first,), (second,) = (
        [step.operation for step in plan(firewall(pods=pods([n], STEER)), firewall(pods=pods([n], SNAT4)))][1:]
        for n in (5, 6)
    )
    assert isinstance(first, diff.SweepFlows)
    assert isinstance(second, diff.SweepFlows)
    both = first.with_(second)
    assert (both.firewall, both.addresses) == (second.firewall, frozenset(pods([5, 6], STEER)))
    everything = diff.sweep(None, FULL)
    assert first.with_(everything).addresses is everything.with_(first).addresses is None


def test_connections_of_pods_that_leave_are_forgotten() -> None:
    for old in (STEER, SNAT4, HOLD, ELSEWHERE):
        steps = plan(firewall(pods=pods([5, 6], old)), firewall(pods=pods([6], old)))
        assert kinds(steps) == ["PutFirewall", "SweepFlows"]
        assert sweeps(steps) == [frozenset({ip_address("10.244.1.5")})]


def test_removing_everything_forgets_all_connections_before_the_table_goes() -> None:
    steps = plan(NodeState(firewall=FULL), NOTHING)
    assert kinds(steps)[-3:] == ["PutFirewall", "SweepFlows", "PutFirewall"]
    first, last = filters(steps)
    assert first
    assert not flat(first).pods
    assert last is None
    assert sweeps(steps) == [None]


def test_only_connections_of_pods_that_changed_are_looked_at() -> None:
    steps = plan(firewall(pods=pods([5, 6], SNAT4)), firewall(pods={**pods([5], STEER), **pods([6], SNAT4)}))
    assert sweeps(steps) == [frozenset({ip_address("10.244.1.5")})]
    assert sweeps(plan(firewall(inside=frozenset()), firewall())) == [None], "destinations changed"
    assert sweeps(plan(NOTHING, firewall())) == [None], "nothing is known of before"


def test_after_damage_any_connection_may_be_wrong_and_nothing_is_built_upon_what_was_found() -> None:
    steps = plan(NodeState(firewall=FULL), NodeState(firewall=FULL), "chain guard")
    assert kinds(steps) == ["PutFirewall", "SweepFlows"]
    assert sweeps(steps) == [None]
    assert lines(steps) == ["~ firewall chain guard repaired  # somebody changed it"]
    lost = Firewall(mark_mask=0)
    assert filters(plan(NodeState(firewall=lost), NodeState(firewall=FULL), "chain prerouting")) == [FULL]


# --- words -----------------------------------------------------------------------------------------------------------


def test_pods_read_like_sentences() -> None:
    before = firewall(pods={**pods([2], STEER), **pods([5], SNAT4), **pods([9], ELSEWHERE)})
    after = firewall(pods={**pods([2], HOLD), **pods([5], dataclasses.replace(SNAT4, filter="x")), **pods([7], STEER)})
    assert lines(plan(before, after)) == [
        "~ pod 10.244.1.2 is held: reject  # because of 10.244.1.2; until now it leaves through node-b, slot 1",
        "~ pod 10.244.1.5 leaves here as 192.0.2.200 (its destinations are restricted)"
        "  # because of 10.244.1.5; until now it leaves here as 192.0.2.200",
        "+ pod 10.244.1.7 leaves through node-b, slot 1  # because of 10.244.1.7",
        "- pod 10.244.1.9 is another node's: dropped if it comes here  # no longer an egress pod",
    ]


def test_settings_gateways_and_members_read_like_sentences() -> None:
    after = firewall(
        mark_mask=0xF0,
        hold="drop",
        source_ports="random",
        dropped=True,
        gateways={Slot(1): NodeName("node-c"), Slot(3): NodeName("node-d")},
        next_hops=flat(FULL).next_hops - {ip_address("fd00::2")},
        inside=flat(FULL).inside | frozenset(ip_network(f"203.0.113.{n * 2}/32") for n in range(8)),
    )
    assert lines(plan(NodeState(firewall=FULL), after)) == [
        "~ firewall mark mask: 0xf0  # was 0x3f000000",
        "~ firewall held packets: drop  # was reject",
        "~ firewall source ports: random  # was preserve",
        "~ firewall drop invalid input: True  # was False",
        "~ gateway node-c has slot 1, mark 0x10",
        "- gateway node-a has slot 2, mark 0x2000000",
        "+ gateway node-d has slot 3, mark 0x30",
        "+ firewall inside the cluster: 203.0.113.0/32, 203.0.113.10/32, 203.0.113.12/32, 203.0.113.14/32, "
        "203.0.113.2/32, 203.0.113.4/32 and 2 more",
        "- firewall next hops: fd00::2",
    ]


def test_destinations_that_come_go_or_were_altered_read_so() -> None:
    def change(before: dict[str, DestinationFilter], after: dict[str, DestinationFilter]) -> list[str]:
        return lines(plan(firewall(filters=before), firewall(filters=after)))

    assert change({}, {"k": EXCEPT}) == ["+ destinations except 192.168.0.0/24, 192.168.2.7/32"]
    assert change({"k": EXCEPT}, {}) == ["- destinations except 192.168.0.0/24, 192.168.2.7/32"]
    assert change({"k": EXCEPT}, {"k": RESTRICTED}) == [
        "~ destinations except 10.0.0.0/8, 2001:db8:f::/48 only 2000::/3, 8.0.0.0/7"
    ]


def test_a_plan_for_ten_thousand_pods_takes_a_moment() -> None:
    many = {IPv4Address(0x0AF40000 + n): EgressPod(treatment=Treatment.STEER, slot=Slot(1)) for n in range(10_000)}
    one = {**many, IPv4Address(0x0AF40000): HOLD}
    start = time.process_time()
    steps = plan(firewall(pods=many), firewall(pods=one))
    assert len(diff.changes(steps)) == 1
    assert time.process_time() - start < 0.5


def test_sysctls_tell_what_they_were() -> None:
    name = "net/ipv4/conf/eth0/rp_filter"
    wanted = NodeState(sysctls={name: "2"})
    (change,) = lines(plan(NodeState(sysctls={name: "1"}), wanted))
    assert change.startswith(f"~ sysctl {name} = 2  # was 1; ")
    assert plan(wanted, wanted) == ()
    assert lines(plan(wanted, NOTHING)) == [f"~ sysctl {name}  # no longer needed: put back to what it was"]


def test_changes_come_with_the_step_that_makes_them_and_only_once() -> None:
    steps = plan(firewall(sources=frozenset(), pods=pods([9], STEER)), firewall(pods=pods([5], SNAT4)))
    assert [len(step.changes) > 0 for step in steps] == [True, False]
    assert len(set(lines(steps))) == len(lines(steps))
