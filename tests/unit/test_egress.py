"""What a node does about the egress of a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from metaleg_node.core.assembly import Desired
from metaleg_node.core.egress import node as egress
from metaleg_node.core.egress.survey import take
from metaleg_node.core.firewall.egress import EgressPod, Treatment
from metaleg_node.core.model import (
    FAMILIES,
    AnnouncedBy,
    ClusterState,
    Host,
    Link,
    NextHop,
    NodeName,
    Route,
    RouteType,
    Rule,
    Slot,
)
from metaleg_node.core.objects.annotations import EXCLUDE as EXCLUDE_ANNOTATION
from metaleg_node.core.problems import Code
from metaleg_node.core.return_path import wanted
from tests.firewalls import flat, wall
from tests.unit.builders import (
    DUAL,
    LB4,
    LB6,
    A,
    B,
    C,
    addresses,
    announced,
    assembled,
    cluster,
    config,
    decide,
    endpoint,
    endpoint_slice,
    host,
    networks,
    node,
    service,
)


def firewall_of(desired: Desired) -> Any:
    return flat(desired.state.firewall)


def treatments(desired: Desired) -> dict[str, str]:
    return {str(a): pod.treatment.value for a, pod in firewall_of(desired).pods.items()}


def obstacles(desired: Desired) -> list[Code | None]:
    return [report.obstacle.code if report.obstacle else None for report in desired.services]


# --- each node's part ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("me", "expected"),
    [
        (A, {"10.244.1.5": "steer", "10.244.2.5": "elsewhere"}),
        (B, {"10.244.1.5": "elsewhere", "10.244.2.5": "steer"}),
        (C, {"10.244.1.5": "snat", "10.244.2.5": "snat"}),
        (NodeName("d"), {"10.244.1.5": "elsewhere", "10.244.2.5": "elsewhere"}),
    ],
)
def test_pods_are_steered_at_home_translated_at_the_gateway_and_dropped_elsewhere(
    me: NodeName, expected: dict[str, str]
) -> None:
    state = cluster(nodes=[node(n) for n in "abcd"])
    assert treatments(decide(state, me)) == expected


def test_F21_a_pod_on_the_gateway_itself_is_translated_there() -> None:
    assert treatments(decide(cluster(announcements=[announced("a")]), A)) == {
        "10.244.1.5": "snat",
        "10.244.2.5": "snat",
    }


def test_with_local_endpoints_only_off_any_nodes_pod_is_steered_on() -> None:
    text = "[egress]\nlocal_endpoints_only = false"
    assert treatments(decide(cluster(), A, text)) == {"10.244.1.5": "steer", "10.244.2.5": "steer"}
    assert decide(cluster(), A, text).services[0].local_pods == 1


def test_where_a_slice_does_not_name_the_node_its_pod_networks_do() -> None:
    state = cluster(slices=[endpoint_slice(endpoint("10.244.1.5"), endpoint("10.244.2.5"))])
    assert treatments(decide(state, A)) == {"10.244.1.5": "steer", "10.244.2.5": "elsewhere"}


def test_steering_has_a_rule_a_route_and_an_unreachable_default_in_each_family() -> None:
    routing = decide(DUAL, A).state.routing
    table = 1000001
    assert routing.rules == {
        Rule(family=f, priority=4700, table=table, mark=0x01000000, mask=0x3F000000) for f in FAMILIES
    }
    expected = set()
    for default, metric, gateway in (("0.0.0.0/0", 0, "10.0.0.3"), ("::/0", 1024, "fd00::3")):
        hop = NextHop(gateway=ip_address(gateway), interface="eth0")
        expected.add(Route(table=table, destination=ip_network(default), metric=metric, next_hops=(hop,)))
        expected.add(
            Route(table=table, destination=ip_network(default), metric=0xFF000000 + 8192, type=RouteType.UNREACHABLE)
        )
    assert {route for route in routing.routes if route.type is not RouteType.THROW} == expected
    thrown = {str(route.destination) for route in routing.routes if route.type is RouteType.THROW}
    assert thrown == set(map(str, take(DUAL, config()).networks.pods))
    assert firewall_of(decide(DUAL, A)).next_hops == set(addresses(["10.0.0.3", "fd00::3"]))


def test_the_gateway_translates_each_family_to_its_address_and_routes_nothing() -> None:
    desired = decide(DUAL, C)
    slot = Slot(1)
    expected = {4: ip_address(LB4), 6: ip_address(LB6)}
    for address, pod in firewall_of(desired).pods.items():
        assert pod == EgressPod(treatment=Treatment.SNAT, slot=slot, source=expected[address.version])
    assert firewall_of(desired).sources == set(expected.values())
    assert firewall_of(desired).gateways == {slot: C}
    assert not desired.state.routing.routes
    assert not desired.state.routing.rules


def test_a_node_without_pods_and_duty_keeps_no_marks_and_no_routes() -> None:
    desired = decide(cluster(nodes=[node(n) for n in "abcd"]), NodeName("d"))
    assert not firewall_of(desired).gateways
    assert not desired.state.routing.rules


def test_answers_that_come_too_early_are_known_on_every_node() -> None:
    """Also while nobody is the gateway: the next one's first answers may come before it knows."""
    for me, state in ((A, DUAL), (C, DUAL), (A, cluster(announcements=[]))):
        found = firewall_of(decide(state, me))
        assert found.addresses == {ip_address(a) for a in ((LB4, LB6) if state is DUAL else (LB4,))}
        assert found.entrances == {80}


def test_settings_reach_the_packet_filter() -> None:
    text = "[firewall]\nmark_mask = 0xf0\nroute_table_base = 5000\nrule_priority = 100\n"
    text += '[egress]\nsource_ports = "random"\nwhen_unavailable = "drop"\n[host]\ndrop_invalid_input = true'
    desired = decide(cluster(), A, text)
    found = firewall_of(desired)
    assert (found.mark_mask, found.source_ports, found.hold, found.dropped) == (0xF0, "random", "drop", True)
    (rule,) = desired.state.routing.rules
    assert (rule.mark, rule.mask, rule.table, rule.priority) == (0x10, 0xF0, 5001, 100)


def test_turned_off_nothing_is_left_but_what_the_host_settings_ask_for() -> None:
    assert decide(cluster(), A, "[egress]\nenabled = false").state.firewall is None
    left = decide(cluster(), A, "[egress]\nenabled = false\n[host]\ndrop_invalid_input = true").state
    assert left.firewall == wall(dropped=True)


def test_annotations_become_filters_that_pods_name() -> None:
    state = cluster(services=[service(annotations={EXCLUDE_ANNOTATION: "10.0.0.0/8"})])
    found = firewall_of(decide(state, A))
    (key,) = found.filters
    assert key == found.filters[key].key
    assert {pod.filter for pod in found.pods.values()} == {key}
    assert not firewall_of(decide(cluster(), A)).filters


def test_the_inside_of_the_cluster_is_known_on_every_node() -> None:
    for me in (A, B, C):
        found = firewall_of(decide(cluster(), me))
        assert set(networks(["10.244.2.0/23", "10.0.0.1/32", "127.0.0.0/8"])) <= found.inside
        assert found.pod_networks == take(cluster(), config()).networks.pods
    assert firewall_of(decide(cluster(), A)).node_addresses == set(addresses(["10.0.0.1", "fd00::1"]))


# --- obstacles -------------------------------------------------------------------------------------------------------


def no_slot() -> Desired:
    names = [f"g{i}" for i in range(2)]
    state = cluster(
        services=[service(f"s{i}") for i in range(2)],
        slices=[endpoint_slice(endpoint(f"10.244.1.{i + 1}", node="a"), service=f"s{i}") for i in range(2)],
        announcements=[announced(name, service=f"s{i}") for i, name in enumerate(names)],
        nodes=[node("a"), *(node(name, ips=[f"10.0.0.{i + 9}"], pods=()) for i, name in enumerate(names))],
    )
    return decide(state, A, "[firewall]\nmark_mask = 0x1")


def no_exit() -> Desired:
    """The Service is announced from here, and its address has a way out of its own that does not work."""
    state = cluster(announcements=[announced("a")])
    text = '[[return_path.l2]]\nname = "public"\ninterface = "eth1"\ngateways = ["192.0.2.1"]\ncidrs = ["192.0.2.0/24"]'
    settings = config(text)
    surveyed = take(state, settings)
    here = dataclasses.replace(host(surveyed, A), links={"eth1": Link(up=False, has_ipv4=True)})
    return assembled(surveyed, settings, A, here, paths=wanted.read(state, settings, A))


def too_many_networks() -> Desired:
    services = [service(annotations={EXCLUDE_ANNOTATION: "192.0.2.0/28,198.51.100.0/28"})]
    return decide(cluster(services=services), A, "egress.max_networks = 1")


def from_a(**parts: object) -> Callable[[], Desired]:
    return lambda: decide(cluster(**parts), A)  # type: ignore[arg-type]


def with_host(make: Callable[[Host], Host]) -> Callable[[], Desired]:
    def run() -> Desired:
        surveyed = take(cluster(), config())
        return assembled(surveyed, config(), A, make(host(surveyed, A)))

    return run


BGP = [announced(n, source=AnnouncedBy.BGP_STATUS) for n in "bc"]
CASES: dict[Code, tuple[Callable[[], Desired], str]] = {
    Code.NOT_LOAD_BALANCER: (from_a(services=[service(type="ClusterIP")]), "spec.type is ClusterIP, must be"),
    Code.BAD_ANNOTATION: (
        from_a(services=[service(annotations={EXCLUDE_ANNOTATION: "x"})]),
        "annotation metaleg.de/exclude-cidrs: 'x' is no network",
    ),
    Code.TOO_MANY_NETWORKS: (too_many_networks, "older Services' annotations name all of the 1 networks"),
    Code.NO_ADDRESS: (from_a(services=[service(ingress=())]), "no IPv4 address in status.loadBalancer.ingress"),
    Code.BAD_ADDRESS: (from_a(services=[service(ingress=["10.0.0.1"])]), "10.0.0.1 is a node's own"),
    Code.NO_GATEWAY: (from_a(announcements=[]), "no node announces it"),
    Code.SEVERAL_GATEWAYS: (from_a(announcements=BGP), "announced by BGP from 2 nodes (b, c)"),
    Code.UNKNOWN_NODE: (from_a(announcements=[announced("z")]), "names node z, which is not among"),
    Code.NO_INTERNAL_IP: (from_a(nodes=[node("a"), node("c", ips=["fd00::3"])]), "gateway c has no IPv4 InternalIP"),
    Code.OFF_LINK: (
        with_host(lambda h: dataclasses.replace(h, on_link=frozenset())),
        "gateway c (10.0.0.3) is behind a router",
    ),
    Code.NO_ROUTE: (with_host(lambda _: Host()), "no route to gateway c (10.0.0.3)"),
    Code.NO_POD_NETWORK: (
        lambda: decide(cluster(), A, 'egress.transport = "pod-network"'),
        "the pod network does not lead to gateway c: ",
    ),
    Code.NO_SLOT: (no_slot, "no mark is left for gateway g1: all 1 values under firewall.mark_mask are taken"),
    Code.NO_EXIT: (no_exit, "return path public, by which it must leave: interface eth1 is down"),
}


def test_every_reason_has_a_case() -> None:
    codes = list(Code)
    assert set(CASES) == set(codes[codes.index(Code.NOT_LOAD_BALANCER) : codes.index(Code.NO_EXIT) + 1])


@pytest.mark.parametrize("reason", CASES)
def test_an_obstacle_holds_the_pods_and_is_told(reason: Code) -> None:
    make, detail = CASES[reason]
    desired = make()
    report = desired.services[-1]
    assert report.obstacle
    assert report.obstacle.code is reason
    assert detail in report.obstacle.detail
    pods = firewall_of(desired).pods
    local = report.service.pods[0].address
    assert pods[local].treatment is Treatment.HOLD
    assert pods[local].slot is None
    others = [pods[p.address] for p in report.service.pods if p.node == B]
    assert all(pod.treatment is Treatment.ELSEWHERE for pod in others)


@pytest.mark.parametrize(
    ("value", "treatment", "hold"),
    [("reject", Treatment.HOLD, "reject"), ("drop", Treatment.HOLD, "drop"), ("allow", None, None)],
)
def test_when_unavailable(value: str, treatment: Treatment | None, hold: str | None) -> None:
    desired = decide(cluster(announcements=[]), A, f'[egress]\nwhen_unavailable = "{value}"')
    found = firewall_of(desired)
    pod = found.pods.get(ip_address("10.244.1.5"))
    assert (pod.treatment if pod else None) == treatment
    assert not hold or found.hold == hold
    assert obstacles(desired) == [Code.NO_GATEWAY], "reported all the same"


def test_F9_one_family_fails_and_the_other_works() -> None:
    nodes = [node("a"), node("b"), node("c", ips=["10.0.0.3"])]
    desired = decide(dataclasses.replace(DUAL, nodes=tuple(nodes)), A)
    assert obstacles(desired) == [None, Code.NO_INTERNAL_IP]
    assert treatments(desired)["10.244.1.5"] == "steer"
    assert treatments(desired)["fd00:10:244:1::5"] == "hold"
    assert {rule.family for rule in desired.state.routing.rules} == {4}


def test_an_obstacle_on_the_way_is_none_for_nodes_that_do_not_go_it() -> None:
    surveyed = take(cluster(), config())
    for me in (NodeName("d"), C):
        assert obstacles(assembled(surveyed, config(), me, Host())) == [None]


def test_a_gateway_with_several_addresses_is_reached_by_the_one_that_is_near() -> None:
    state = cluster(nodes=[node("a"), node("b"), node("c", ips=["172.16.0.3", "10.0.0.3"])])
    surveyed = take(state, config())
    found = assembled(surveyed, config(), A, host(surveyed, A, off_link=["172.16.0.3"]))
    assert firewall_of(found).next_hops == {ip_address("10.0.0.3")}


# --- slots -----------------------------------------------------------------------------------------------------------


def many_gateways(count: int) -> ClusterState:
    """As many Services, each with one pod on node a and its own gateway."""
    nodes = [node("a", pods=["10.244.0.0/16"])]
    nodes += [node(f"g{i}", ips=[f"10.0.1.{i + 1}"], pods=()) for i in range(count)]
    return cluster(
        services=[service(f"s{i:02}", ingress=[f"192.0.2.{i + 1}"]) for i in range(count)],
        slices=[endpoint_slice(endpoint(f"10.244.1.{i + 1}", node="a"), service=f"s{i:02}") for i in range(count)],
        announcements=[announced(f"g{i}", service=f"s{i:02}") for i in range(count)],
        nodes=nodes,
    )


def test_64_gateways_for_63_slots_hold_the_youngest_service_only() -> None:
    desired = decide(many_gateways(64), A)
    assert obstacles(desired) == [None] * 63 + [Code.NO_SLOT]
    assert treatments(desired)["10.244.1.64"] == "hold"
    assert sorted(firewall_of(desired).gateways) == list(range(1, 64))
    assert len(desired.state.routing.rules) == 63


def test_slots_stay_when_services_come_and_go() -> None:
    held = firewall_of(decide(many_gateways(5), A)).gateways
    state = many_gateways(9)
    fewer = dataclasses.replace(state, services=state.services[3:])
    again = firewall_of(decide(fewer, A, held=held)).gateways
    assert {slot: name for slot, name in again.items() if name in held.values()} == {4: "g3", 5: "g4"}
    assert sorted(again) == [4, 5, 6, 7, 8, 9], "those of former gateways are spared"


def test_F5_S1_a_new_gateway_gets_another_table_and_the_old_one_goes() -> None:
    held = firewall_of(decide(cluster(), A)).gateways
    moved = decide(cluster(announcements=[announced("b")]), A, held=held)
    assert firewall_of(moved).gateways == {Slot(2): B}
    (route,) = (r for r in moved.state.routing.routes if r.next_hops)
    assert route.table == 1000002
    assert route.next_hops[0].gateway == ip_address("10.0.0.2")


# --- the host --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"all": 1, "eth0": 0}, {"eth0"}),
        ({"all": 0, "eth0": 1}, {"eth0"}),
        ({"all": 1, "eth0": 1}, {"eth0"}),
        ({"all": 0, "eth0": 0}, set()),
        ({"all": 2, "eth0": 1}, set()),
        ({"all": 1, "eth0": 2}, set()),
        ({}, set()),
    ],
)
def test_F17_strict_reverse_path_filters_are_loosened_where_steered_traffic_enters(
    values: dict[str, int], expected: set[str]
) -> None:
    surveyed = take(cluster(), config())
    here = dataclasses.replace(host(surveyed, A), rp_filter=values)
    found = assembled(surveyed, config(), A, here).state.sysctls
    assert found == {f"net/ipv4/conf/{name}/rp_filter": "2" for name in expected}
    keep = config('[host]\nrp_filter = "keep"')
    assert not assembled(surveyed, keep, A, here).state.sysctls


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"all": 0, "eth0": 0}, {}),
        ({"all": 0, "eth0": 2, "eth9": 1}, {"eth0": "0", "eth9": None}),
        ({"all": 0, "eth0": 1}, {"eth0": "0"}),
        ({"all": 1, "eth0": 0, "eth9": 0, "default": 2}, {"all": "0", "eth9": "1", "eth0": None, "default": None}),
    ],
)
def test_the_filter_is_off_where_nodes_are_reached_by_an_interface_without_an_IPv4_address(
    values: dict[str, int], expected: dict[str, str | None]
) -> None:
    surveyed = take(cluster(), config())
    here = dataclasses.replace(host(surveyed, A), rp_filter=values, unnumbered=frozenset({"eth0"}))
    found = assembled(surveyed, config(), A, here).state.sysctls
    assert found == {f"net/ipv4/conf/{name}/rp_filter": value for name, value in expected.items() if value}


def test_lookups_are_the_other_nodes_that_take_part_and_their_pod_networks() -> None:
    nodes = [node("a"), node("b", pods=["10.244.2.5/32", "255.255.255.255/32"]), node("c", pods=())]
    found = egress.questions(take(cluster(nodes=nodes), config()), A).addresses
    assert found == set(addresses(["10.0.0.2", "fd00::2", "10.244.2.5", "255.255.255.255", "10.0.0.3", "fd00::3"]))


def test_an_interface_that_cannot_be_named_is_left_out_and_told() -> None:
    surveyed = take(cluster(), config())
    for name in ('a"b', "eth*", "a;b", "a b"):
        found = assembled(surveyed, config(), A, host(surveyed, A, interface=name))
        assert not firewall_of(found).node_interfaces
        assert any(repr(name) in str(problem) for problem in found.problems)
    assert firewall_of(decide(cluster(), A)).node_interfaces == {"eth0"}
    assert not decide(cluster(), A).problems


def test_a_few_nodes_are_looked_up_even_where_no_service_is() -> None:
    nodes = [node(name) for name in "abcdef"]
    found = egress.questions(take(cluster(nodes=nodes, services=[], announcements=[]), config()), A).addresses
    assert {str(a) for a in found if a.version == 4} >= {"10.0.0.2", "10.0.0.3", "10.0.0.4"}
    assert not {str(a) for a in found} & {"10.0.0.1", "10.0.0.6"}
