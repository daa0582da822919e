"""What the cluster asks for: gateways, sources, claims on pods."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from metaleg_node.core.egress.requests import Gateway, Obstacle, choose_gateway
from metaleg_node.core.egress.survey import EgressService, take
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.model import (
    AnnouncedBy,
    Announcement,
    ClusterState,
)
from metaleg_node.core.networks import Membership, merged
from metaleg_node.core.objects.annotations import EXCLUDE as EXCLUDE_ANNOTATION
from metaleg_node.core.objects.annotations import ONLY as ONLY_ANNOTATION
from metaleg_node.core.problems import Code
from metaleg_node.kernel.nftables.layout import render
from tests.unit.builders import (
    DUAL,
    LB4,
    LB6,
    A,
    B,
    C,
    addresses,
    announced,
    cluster,
    config,
    decide,
    endpoint,
    endpoint_slice,
    networks,
    node,
    service,
)

L2, BGP, EVENT = AnnouncedBy
NODES = {n.name: n for n in (node("a"), node("b"), node("c"), node("d", ready=False), node("e", ready=False))}
EARLY, LATE = "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"


def only(state: ClusterState, text: str = "") -> EgressService:
    (found,) = take(state, config(text)).services
    return found


def claimed(state: ClusterState, text: str = "") -> dict[str, list[str]]:
    """The pod addresses of each Service."""
    found: dict[str, list[str]] = {}
    for s in take(state, config(text)).services:
        found.setdefault(s.service.ref.name, []).extend(str(pod.address) for pod in s.pods)
    return found


# --- the gateway -----------------------------------------------------------------------------------------------------

CHOICES: dict[str, tuple[list[Announcement], str]] = {
    "the only one": ([announced("a")], A),
    "F2 a Ready node beats a newer one that is not": ([announced("d", since=LATE), announced("a", since=EARLY)], A),
    "F2 among Ready nodes the newest": ([announced("a", since=LATE), announced("b", since=EARLY)], A),
    "F2 never simply the first or the last": (
        [announced("a", since=EARLY), announced("b", since=LATE), announced("c", since=EARLY)],
        B,
    ),
    "F2 at the same time the name": ([announced("a"), announced("b")], B),
    "F2 none Ready: the newest": ([announced("d", since=LATE), announced("e", since=EARLY)], "d"),
    "a node that is not Ready, alone": ([announced("d")], "d"),
    "an unknown node does not beat a Ready one": ([announced("x", since=LATE), announced("a", since=EARLY)], A),
    "layer 2 before BGP and events": (
        [announced("b", source=BGP), announced("c", source=EVENT), announced("a")],
        A,
    ),
    "BGP from one node": ([announced("b", source=BGP), announced("c", source=EVENT)], B),
    "BGP twice from one node": ([announced("b", source=BGP), announced("b", source=BGP, since=LATE)], B),
    "the newest event": ([announced("b", source=EVENT, since=LATE), announced("c", source=EVENT, since=EARLY)], B),
    "the newest event even of a node that is not Ready": (
        [announced("d", source=EVENT, since=LATE), announced("c", source=EVENT, since=EARLY)],
        "d",
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_gateway_is(name: str) -> None:
    announcements, expected = CHOICES[name]
    for order in (announcements, announcements[::-1]):
        found = choose_gateway(order, NODES, AnnouncedBy)
        assert isinstance(found, Gateway)
        assert found.node.name == expected


def test_sources_are_asked_in_the_configured_order_and_no_others() -> None:
    said = [announced("a"), announced("b", source=BGP), announced("c", source=EVENT)]
    for order, expected in (((BGP, L2), B), ((EVENT,), C)):
        found = choose_gateway(said, NODES, order)
        assert isinstance(found, Gateway)
        assert found.node.name == expected
    assert isinstance(choose_gateway([announced("a")], NODES, (EVENT,)), Obstacle)


def test_F3_two_announcers_are_told_as_ambiguous_and_named() -> None:
    found = choose_gateway([announced("a"), announced("b", since=LATE)], NODES, AnnouncedBy)
    assert isinstance(found, Gateway)
    assert found.ambiguous
    assert found.why == "b announces it (ServiceL2Status metallb-system/l2-status-b), preferred to a"
    alone = choose_gateway([announced("a"), announced("a", since=LATE)], NODES, AnnouncedBy)
    assert isinstance(alone, Gateway)
    assert not alone.ambiguous


def test_F11_several_BGP_announcers_are_no_gateway_even_with_an_event() -> None:
    said = [announced("a", source=BGP), announced("b", source=BGP), announced("c", source=EVENT)]
    found = choose_gateway(said, NODES, AnnouncedBy)
    assert isinstance(found, Obstacle)
    assert found.code is Code.SEVERAL_GATEWAYS
    assert "2 nodes (a, b)" in found.detail


def test_an_announcement_counts_only_for_its_own_service() -> None:
    said = [announced("a", namespace="other"), announced("a", service="other")]
    found = only(cluster(announcements=said))
    assert found.obstacle
    assert found.obstacle.code is Code.NO_GATEWAY


@pytest.mark.parametrize(
    ("since", "counts"),
    [
        ("2024-05-01T08:00:00.999999Z", False),
        ("2024-05-01T08:00:01.000000Z", True),
        ("2024-05-01T08:00:01Z", True),
        ("2024-05-02T08:00:00.000000Z", True),
        ("", True),
    ],
)
def test_an_event_about_an_earlier_service_of_the_name_names_no_gateway(since: str, counts: bool) -> None:
    made = service(created="2024-05-01T08:00:01Z")
    found = only(cluster(services=[made], announcements=[announced("a", source=EVENT, since=since)]))
    assert (found.gateway is not None) is counts
    status = only(cluster(services=[made], announcements=[announced("a", since=since)]))
    assert status.gateway  # A status is no memory: MetalLB takes it away itself.


@pytest.mark.parametrize("source", AnnouncedBy)
def test_what_metallb_cannot_have_written_where_it_is_names_no_gateway_and_is_told(source: AnnouncedBy) -> None:
    good = announced("a", source=source)
    strange = replace(announced("b", source=source, since=LATE), ref=replace(good.ref, namespace="tenant"))
    found = take(cluster(announcements=[good, strange]), config())
    assert {one.gateway.node.name for one in found.services if one.gateway} == {A}
    (rejection,) = found.rejections
    assert rejection.ref.namespace == "tenant"
    assert "namespace" in rejection.reason
    elsewhere = take(cluster(announcements=[strange]), config('cluster.metallb_namespace = "tenant"'))
    assert all(bool(one.gateway) is (source is not EVENT) for one in elsewhere.services)


# --- Services --------------------------------------------------------------------------------------------------------


def test_only_labelled_services_count() -> None:
    labels: list[dict[str, str]] = [{}, {"metaleg.de/rewriteSrcIP": "false"}, {"metaleg.de/rewriteSrcIP": "True"}]
    assert not take(cluster(services=[service(labels=one) for one in labels]), config()).services
    other = cluster(services=[service(labels={"example.org/egress": "true"})])
    assert take(other, config('[egress]\nlabel = "example.org/egress"')).services


def test_both_families_stand_by_themselves() -> None:
    four, six = take(DUAL, config()).services
    assert (four.family, four.source, six.family, six.source) == (4, ip_address(LB4), 6, ip_address(LB6))
    assert [len(four.pods), len(six.pods)] == [2, 2]
    assert four.obstacle is six.obstacle is None


def test_S6_a_service_with_one_address_works_in_its_family_and_is_held_in_the_other() -> None:
    both = [endpoint("10.244.1.5"), endpoint("fd00:10:244:1::5")]
    four, six = take(cluster(slices=[endpoint_slice(*both)]), config()).services
    assert four.source == ip_address(LB4)
    assert six.obstacle
    assert six.obstacle.code is Code.NO_ADDRESS


def test_S6_a_service_of_one_family_says_nothing_about_the_other() -> None:
    assert only(cluster()).family == 4


def test_a_service_without_pods_and_addresses_is_still_reported() -> None:
    assert only(cluster(services=[service(ingress=())], slices=[])).obstacle


def test_the_first_address_of_a_family_is_the_source() -> None:
    assert only(cluster(services=[service(ingress=("192.0.2.9", "192.0.2.8"))])).source == ip_address("192.0.2.9")


BAD_ADDRESSES = ["10.0.0.2", "10.244.3.9", "127.0.0.1", "224.0.0.5", "169.254.1.1", "0.0.0.0"]


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_F9_a_load_balancer_address_that_is_somebody_elses_is_refused(text: str) -> None:
    obstacle = only(cluster(services=[service(ingress=(text,))])).obstacle
    assert obstacle
    assert obstacle.code is Code.BAD_ADDRESS
    assert text in obstacle.detail


def test_F9_a_cluster_ip_is_no_load_balancer_address() -> None:
    services = [service(ingress=("10.96.7.7",)), service("other", labels={}, cluster_ips=["10.96.7.7"])]
    obstacle = only(cluster(services=services)).obstacle
    assert obstacle
    assert obstacle.code is Code.BAD_ADDRESS
    assert "10.96.7.7 is a Service's cluster IP" in obstacle.detail


def test_F9_one_address_of_two_services_that_two_nodes_announce_is_told() -> None:
    services = [service(), service("old"), service("alone", ingress=("192.0.2.77",))]
    said = [announced("a"), announced("b", service="old"), announced("a", service="alone")]
    gateways = {
        one.service.ref.name: one.gateway
        for one in take(cluster(services=services, announcements=said), config()).services
    }
    web, old, alone = gateways["web"], gateways["old"], gateways["alone"]
    assert web
    assert old
    assert alone
    assert (web.node.name, web.ambiguous, old.node.name, old.ambiguous) == (A, True, B, True)
    assert f"but {LB4} is announced by b for Service shop/old, too" in web.why
    assert f"but {LB4} is announced by a for Service shop/web, too" in old.why
    assert not alone.ambiguous
    together = [announced("a"), announced("a", service="old"), announced("a", service="alone")]
    agreed = take(cluster(services=services, announcements=together), config()).services
    assert not any(one.gateway and one.gateway.ambiguous for one in agreed)


def test_F9_a_sibling_without_the_label_that_another_node_announces_is_told_too() -> None:
    state = cluster(
        services=[service(), service("sibling", labels={}), service("elsewhere", labels={}, ingress=("192.0.2.9",))],
        announcements=[announced("a"), announced("b", service="sibling"), announced("c", service="elsewhere")],
    )
    one = only(state)
    assert one.gateway
    assert (one.gateway.node.name, one.gateway.ambiguous) == (A, True)
    (problem,) = one.problems(None)
    assert problem.code is Code.SPLIT_ADDRESS
    assert problem.text == f"{LB4} is announced by b for Service shop/sibling, too: only one gets the answers"
    together = replace(state, announcements=(announced("a"), announced("a", service="sibling")))
    assert not [*only(together).problems(None)]


def test_of_two_addresses_of_a_family_it_is_said_which_is_used() -> None:
    found = take(cluster(services=[service(ingress=("192.0.2.9", LB6, "192.0.2.8"))]), config())
    (told,) = found.rejections
    assert told.harmless
    assert told.reason == "its pods leave as 192.0.2.9, the first of its IPv4 addresses, not as 192.0.2.8"


@pytest.mark.parametrize("namespace", ["metallb-system", "lb"])
def test_no_gateway_names_the_namespace_that_was_searched(namespace: str) -> None:
    obstacle = only(cluster(announcements=[]), f'cluster.metallb_namespace = "{namespace}"').obstacle
    assert obstacle
    assert obstacle.code is Code.NO_GATEWAY
    assert f"in namespace {namespace} (cluster.metallb_namespace)" in obstacle.detail


# --- annotations -----------------------------------------------------------------------------------------------------


def test_annotations_become_a_filter_in_the_fewest_networks() -> None:
    found = only(
        cluster(
            services=[
                service(
                    annotations={
                        EXCLUDE_ANNOTATION: "10.0.0.0/9, 10.128.0.0/9,2001:db8::/32",
                        ONLY_ANNOTATION: "0.0.0.0/0,192.0.2.1",
                    }
                )
            ]
        )
    )
    assert not found.obstacle
    assert found.filter.exclude == frozenset(networks(["10.0.0.0/8", "2001:db8::/32"]))
    assert found.filter.only == frozenset(networks(["0.0.0.0/0"]))


BAD_ANNOTATIONS = [
    "",
    " , ",
    "10.0.0.1/8",
    "10.0.0.0/33",
    "everything",
    "10.0.0.0/8;",
    "10.0.0.0/8, x",
    "2001:db8::%x }\nflush ruleset\n#/64",
    "2001:db8::%eth0",
    "::ffff:10.0.0.0/104",
    "10.0.0.0/255.0.0.0",
    "\u0661.2.3.4",
    "x" * 10_000,
]


@pytest.mark.parametrize("name", [EXCLUDE_ANNOTATION, ONLY_ANNOTATION])
@pytest.mark.parametrize("text", BAD_ANNOTATIONS, ids=[repr(t[:20]) for t in BAD_ANNOTATIONS])
def test_a_bad_annotation_costs_the_service_and_says_which(name: str, text: str) -> None:
    found = only(cluster(services=[service(annotations={name: text})]))
    assert found.obstacle
    assert found.obstacle.code is Code.BAD_ANNOTATION
    assert name in found.obstacle.detail
    assert len(found.obstacle.detail) < 400
    assert len(found.pods) == 2, "its pods are held, not let out"


def test_filters_have_one_key_for_the_same_networks_and_none_for_nothing() -> None:
    def key(**annotations: str) -> str:
        names = {"exclude": EXCLUDE_ANNOTATION, "only": ONLY_ANNOTATION}
        annotated = service(annotations={names[k]: v for k, v in annotations.items()})
        return only(cluster(services=[annotated])).filter.key

    assert key() == ""
    assert key(exclude="10.0.0.0/8,11.0.0.0/8") == key(exclude="11.0.0.0/8,10.0.0.0/8") == key(exclude="10.0.0.0/7")
    assert len({key(exclude="10.0.0.0/8"), key(only="10.0.0.0/8"), key(exclude="10.0.0.0/9")}) == 3


def many(number: int, first: int = 0) -> str:
    """That many networks that cannot be merged."""
    start = int(ip_address("100.64.0.0"))
    return ",".join(f"{ip_address(start + 2 * n)}" for n in range(first, first + number))


@pytest.mark.parametrize(
    ("annotations", "flaw"),
    [
        ({ONLY_ANNOTATION: many(256)}, ""),
        ({ONLY_ANNOTATION: many(128), EXCLUDE_ANNOTATION: many(128, 128)}, ""),
        ({ONLY_ANNOTATION: many(257)}, "metaleg.de/only-cidrs has 257 networks, at most 256"),
        (
            {ONLY_ANNOTATION: many(129), EXCLUDE_ANNOTATION: many(128)},
            "metaleg.de/exclude-cidrs and metaleg.de/only-cidrs have together 257 networks, at most 256",
        ),
        ({ONLY_ANNOTATION: "10.0.0.0/8" + " " * 4086}, ""),
        ({ONLY_ANNOTATION: "10.0.0.0/8" + " " * 4087}, "has 4097 bytes, at most 4096"),
        ({ONLY_ANNOTATION: "10.0.0.0/8", EXCLUDE_ANNOTATION: "x" * 4096}, "have together 4106 bytes, at most 4096"),
        ({ONLY_ANNOTATION: "10.0.0.0/8,,,,"}, ""),
    ],
)
def test_what_one_service_may_name_is_bounded(annotations: dict[str, str], flaw: str) -> None:
    found = only(cluster(services=[service(annotations=annotations)]))
    if flaw:
        assert found.obstacle
        assert found.obstacle.code is Code.BAD_ANNOTATION
        assert flaw in found.obstacle.detail
        assert not found.filter.size
    else:
        assert not found.obstacle


def held_back(state: ClusterState, text: str) -> dict[str, int]:
    """How many networks the packet filter gets of each Service; -1: it is told that there is no room for it."""
    found = take(state, config(text)).services
    return {
        one.service.ref.name: -1 if one.obstacle and one.obstacle.code is Code.TOO_MANY_NETWORKS else one.filter.size
        for one in found
    }


def test_what_all_services_may_name_together_is_bounded_and_the_newest_are_held() -> None:
    services = [
        service(name, created=f"2024-01-0{day}T00:00:00Z", annotations={ONLY_ANNOTATION: text})
        for day, (name, text) in enumerate(
            {"new": many(3, 7), "one": many(3), "two": many(3, 3), "same": many(3), "big": many(200)}.items(), 1
        )
    ]
    services[0] = replace(services[0], created="2024-02-01T00:00:00Z")
    said = [announced("c", service=one.ref.name) for one in services]
    state = cluster(services=services, announcements=said)
    room = "[egress]\nmax_networks = {}\n".format
    assert held_back(state, room(9)) == {"one": 3, "two": 3, "same": 3, "big": -1, "new": 3}
    assert held_back(state, room(8)) == {"one": 3, "two": 3, "same": 3, "big": -1, "new": -1}
    assert held_back(state, room(5)) == {"one": 3, "two": -1, "same": 3, "big": -1, "new": -1}
    assert held_back(state, room(0)) == {"one": -1, "two": -1, "same": -1, "big": -1, "new": -1}
    sick = cluster(services=services, announcements=[one for one in said if one.service[1] != "one"])
    assert held_back(sick, room(5)) == {"one": -1, "two": 3, "same": -1, "big": -1, "new": -1}


def test_a_service_beyond_the_bound_is_held_for_all_destinations() -> None:
    one = only(cluster(services=[service(annotations={ONLY_ANNOTATION: many(3)})]), "egress.max_networks = 2")
    assert one.obstacle
    assert "egress.max_networks" in one.obstacle.detail
    assert (one.filter.key, len(one.pods)) == ("", 2)


def test_40_tenants_with_17000_networks_each_bring_nothing_to_the_packet_filter() -> None:
    """What one of them costs another is what its reconcile has to handle."""
    greedy = [service(f"greedy{n}", annotations={EXCLUDE_ANNOTATION: many(17_000, 17_000 * n)}) for n in range(40)]
    slices = [endpoint_slice(endpoint("10.244.1.5", node="a"))]
    slices += [endpoint_slice(endpoint(f"10.244.2.{n + 5}", node="b"), service=f"greedy{n}") for n in range(40)]
    said = [announced("c"), *(announced("c", service=f"greedy{n}") for n in range(40))]
    state = cluster(services=[service(), *greedy], slices=slices, announcements=said)
    wall = decide(state, A).state.firewall
    assert wall
    table = render(wall)
    alone = decide(cluster(slices=slices[:1]), A).state.firewall
    assert alone
    more = {name: len(found.elements) - len(render(alone).elements(name)) for name, found in table.sets.items()}
    assert {name: number for name, number in more.items() if number} == {"pods4": 40, "chains": 1}
    assert set(table.sets) == set(render(alone).sets)
    assert all(str(pod.treatment) == "elsewhere" for a, pod in wall.part(Egress).pods.items() if str(a) > "10.244.2")


# --- networks --------------------------------------------------------------------------------------------------------


def test_S8_private_networks_are_outside_unless_they_are_the_clusters() -> None:
    state = cluster(services=[service(cluster_ips=["10.96.0.10"])], nodes=[node("a", others=["203.0.113.1"])])
    text = '[cluster]\nservice_cidrs = ["172.16.0.0/16"]\n[egress]\nexclude_cidrs = ["192.168.7.0/24"]'
    inside = Membership(take(state, config(text)).networks.inside)
    for text in (
        "10.244.1.9",
        "10.0.0.1",
        "203.0.113.1",
        "10.96.0.10",
        "172.16.3.4",
        "192.168.7.1",
        "127.0.0.1",
        "ff02::1",
    ):
        assert ip_address(text) in inside, text
    for text in ("10.0.0.99", "10.96.0.11", "192.168.1.1", "172.17.0.1", "8.8.8.8", "2001:db8::1", "fd00::99"):
        assert ip_address(text) not in inside, text


def test_merging_joins_neighbours_and_drops_what_is_contained() -> None:
    some = networks(["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "fd00::/16", "fd00::/64"])
    assert merged(some) == frozenset(networks(["10.0.0.0/8", "fd00::/16"]))


def test_membership_separates_families_and_knows_both_ends() -> None:
    inside = Membership(networks(["0.0.0.0/32", "255.255.255.0/24", "::/96"]))
    assert [a in inside for a in addresses(["0.0.0.0", "255.255.255.255", "::1.2.3.4"])] == [True] * 3
    assert [a in inside for a in addresses(["0.0.0.1", "255.255.254.255", "::1:0:0"])] == [False] * 3
    assert ip_address("10.0.0.1") in Membership([ip_network("0.0.0.0/0")])
    assert ip_address("::1") not in Membership([ip_network("0.0.0.0/0")])
