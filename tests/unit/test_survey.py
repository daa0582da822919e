"""What the cluster asks for: gateways, sources, claims on pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from metaleg_node.core.egress.survey import (
    EgressService,
    Gateway,
    Obstacle,
    choose_gateway,
    take,
)
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.model import (
    AnnouncedBy,
    Announcement,
    ClusterState,
    Endpoint,
    EndpointSlice,
    NodeName,
    ObjectRef,
    Pod,
    Service,
    ServicePort,
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
    host_pod,
    networks,
    node,
    pod,
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
    assert {name: number for name, number in more.items() if number} == {"pods4": 40}
    assert set(table.sets) == set(render(alone).sets)
    assert all(str(pod.treatment) == "elsewhere" for a, pod in wall.part(Egress).pods.items() if str(a) > "10.244.2")


# --- claims on pods --------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Endpoint, bool, str]] = {
    "another namespace's pod": (endpoint("10.244.1.9", namespace="victim"), True, "no pod of this namespace"),
    "S9 a node behind the endpoint": (endpoint("10.244.1.9", kind="Node"), True, "no pod of this namespace"),
    "S9 a slice without selector": (endpoint("10.244.1.9", kind=None), False, "not managed by Kubernetes"),
    "F16 a node's address": (endpoint("10.0.0.1"), True, "a node's address"),
    "F16 another address of a node": (endpoint("10.244.1.1"), True, "a node's address"),
    "F16 a pod of the host network": (endpoint("10.244.1.2"), True, "a node's address"),
    "S9 an address outside": (endpoint("198.51.100.7"), True, "in no pod network"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_claim_is_refused_with_its_reason(name: str) -> None:
    bad, controlled, reason = REFUSED[name]
    nodes = [node("a", others=["10.244.1.1"]), node("b"), node("c")]
    slices = [endpoint_slice(bad, endpoint("10.244.1.5"), controlled=controlled)]
    found = take(cluster(slices=slices, nodes=nodes, pods=[host_pod("10.244.1.2")]), config())
    assert [str(pod.address) for s in found.services for pod in s.pods] == ["10.244.1.5"]
    (rejection,) = found.rejections
    assert reason in rejection.reason
    assert str(bad.addresses[0]) in rejection.reason


TAKEN = {
    "by another pod": (endpoint("10.244.1.5", name="web-0"), [pod("web-1", "10.244.1.5")], "Pod shop/web-1"),
    "by another namespace's pod": (
        endpoint("10.244.1.5", name="made-up"),
        [pod("p", "10.244.1.5", namespace="victim")],
        "Pod victim/p",
    ),
    "by another namespace's pod, without a name": (
        endpoint("10.244.1.5", kind=None),
        [pod("p", "10.244.1.5", namespace="victim")],
        "Pod victim/p",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_where_pods_are_known_nobody_elses_address_can_be_claimed(name: str) -> None:
    claim, pods, owner = TAKEN[name]
    found = take(cluster(slices=[endpoint_slice(claim)], pods=pods), config())
    assert [s.pods for s in found.services] == [()]
    (rejection,) = found.rejections
    assert rejection.reason == f"10.244.1.5 is the address of {owner}"


@pytest.mark.parametrize(("pods", "taken"), [([], True), ([pod("other", "10.244.1.6")], False)])
def test_S9_the_label_managed_by_is_no_proof_where_pods_are_known(pods: list[Pod], taken: bool) -> None:
    """Whoever writes a slice sets the label, too."""
    found = take(cluster(slices=[endpoint_slice(endpoint("10.244.1.5", kind=None))], pods=pods), config())
    assert any(s.pods for s in found.services) is taken
    assert [r.reason for r in found.rejections] == (
        [] if taken else ["10.244.1.5 is the address of no Pod, and the slice names none"]
    )


def test_an_endpoint_without_a_name_is_the_known_pods_that_has_its_address() -> None:
    slices = [endpoint_slice(endpoint("10.244.1.5", kind=None))]
    assert claimed(cluster(slices=slices, pods=[pod("web-0", "10.244.1.5")])) == {"web": ["10.244.1.5"]}


def test_a_pod_that_has_ended_does_not_keep_its_address_from_the_next() -> None:
    ended, running = pod("job", "10.244.1.5", namespace="batch"), pod("web-0", "10.244.1.5")
    for pods in ([ended, running], [running, ended]):
        assert claimed(cluster(slices=[endpoint_slice(endpoint("10.244.1.5"))], pods=pods)) == {"web": ["10.244.1.5"]}


def test_a_slice_by_hand_counts_when_it_names_pods_of_its_namespace() -> None:
    assert claimed(cluster(slices=[endpoint_slice(endpoint("10.244.1.5"), controlled=False)])) == {
        "web": ["10.244.1.5"]
    }


def test_a_mirrored_slice_is_called_one() -> None:
    mirrored = replace(endpoint_slice(endpoint("10.244.1.5", kind=None), controlled=False), mirrored=True)
    (told,) = take(cluster(slices=[mirrored]), config()).rejections
    assert "10.244.1.5 has no targetRef to a pod, and the slice mirrors an Endpoints object" in told.reason


def test_a_slice_of_another_namespace_does_not_count() -> None:
    state = cluster(slices=[endpoint_slice(endpoint("10.244.1.5", namespace="evil"), namespace="evil")])
    assert claimed(state) == {"web": []}


@pytest.mark.parametrize(
    ("state", "me", "gap"),
    [
        (cluster(), "a", ""),
        (cluster(), "z", "no Node is called z, there are a, b, c; set node.name"),
        (cluster(nodes=[]), "a", "no Node objects"),
        (cluster(nodes=[node("a", pods=()), node("b", pods=())]), "a", "set cluster.pod_cidrs"),
        (cluster(nodes=[], services=[]), "z", ""),
    ],
)
def test_what_a_state_lacks_is_said_before_anything_is_decided(state: ClusterState, me: str, gap: str) -> None:
    found = take(state, config()).gap(NodeName(me))
    assert gap in found if gap else not found


@pytest.mark.parametrize(("value", "told"), [("true", False), ("false", False), ("True", True), ("", True)])
def test_a_label_that_is_neither_true_nor_false_is_told(value: str, told: bool) -> None:
    found = take(cluster(services=[service("web", labels={config().egress.label: value})]), config())
    assert bool([r for r in found.rejections if 'only "true" counts' in r.reason]) is told


def test_pod_networks_may_come_from_the_configuration() -> None:
    state = cluster(nodes=[node("a", pods=()), node("b", pods=()), node("c", pods=())])
    assert claimed(state, '[cluster]\npod_cidrs = ["10.244.0.0/16"]') == {"web": ["10.244.1.5", "10.244.2.5"]}


CREATED = {
    "the older Service": (("web", EARLY), ("api", LATE)),
    "at the same time the name": (("api", EARLY), ("web", EARLY)),
}


@pytest.mark.parametrize("name", CREATED)
def test_F28_a_pod_claimed_twice_goes_with(name: str) -> None:
    (first, t1), (second, t2) = CREATED[name]
    state = cluster(
        services=[service(second, created=t2, ingress=("192.0.2.201",)), service(first, created=t1)],
        slices=[endpoint_slice(endpoint("10.244.1.5"), service=s) for s in (second, first)],
        announcements=[announced("c", service=s) for s in (first, second)],
    )
    assert claimed(state) == {first: ["10.244.1.5"], second: []}
    (rejection,) = take(state, config()).rejections
    assert rejection.reason == f"10.244.1.5 belongs to Service shop/{first}, which is older"


SAME: dict[str, tuple[Service, Announcement, bool]] = {
    "the TCP and the UDP half of one thing": (service("udp"), announced("c", service="udp"), True),
    "other destinations": (
        service("udp", annotations={ONLY_ANNOTATION: "10.0.0.0/7"}),
        announced("c", service="udp"),
        False,
    ),
    "another source": (service("udp", ingress=("192.0.2.201",)), announced("c", service="udp"), False),
    "another gateway": (service("udp"), announced("b", service="udp"), False),
}


@pytest.mark.parametrize("name", SAME)
def test_an_overlap_that_changes_nothing_is_no_problem(name: str) -> None:
    other, said, same = SAME[name]
    slices = [endpoint_slice(endpoint("10.244.1.5"), service=s) for s in ("web", "udp")]
    found = take(cluster(services=[service(), other], slices=slices, announcements=[announced("c"), said]), config())
    assert not any(one.obstacle for one in found.services)
    assert bool(found.rejections) is not same


CANNOT: dict[str, tuple[Service, list[Announcement], Code]] = {
    "headless": (service("old", type="ClusterIP", ingress=()), [], Code.NOT_LOAD_BALANCER),
    "without an address": (service("old", ingress=()), [announced("b", service="old")], Code.NO_ADDRESS),
    "with a node's address": (
        service("old", ingress=("10.0.0.1",)),
        [announced("b", service="old")],
        Code.BAD_ADDRESS,
    ),
    "with a bad annotation": (
        service("old", annotations={ONLY_ANNOTATION: "x"}),
        [announced("b", service="old")],
        Code.BAD_ANNOTATION,
    ),
    "without a gateway": (service("old"), [], Code.NO_GATEWAY),
    "with a gateway that is no node": (service("old"), [announced("z", service="old")], Code.UNKNOWN_NODE),
    "with two gateways by BGP": (
        service("old"),
        [announced(n, service="old", source=BGP) for n in "ab"],
        Code.SEVERAL_GATEWAYS,
    ),
}


@pytest.mark.parametrize("name", CANNOT)
def test_a_claim_that_cannot_be_served_takes_nothing_from_one_that_can(name: str) -> None:
    old, said, code = CANNOT[name]
    young = service("web", created=LATE)
    slices = [endpoint_slice(endpoint("10.244.1.5"), service=s) for s in ("old", "web")]
    for services in ([old, young], [young, old]):
        state = cluster(services=services, slices=slices, announcements=[announced("c"), *said])
        assert claimed(state) == {"old": [], "web": ["10.244.1.5"]}
        found = take(state, config())
        assert [one.obstacle and one.obstacle.code for one in found.services] == [code, None]
        assert not found.rejections, "the older Service's own problem is told, and nothing else is wrong"
    alone = cluster(services=[old], slices=slices, announcements=said)
    assert claimed(alone) == {"old": ["10.244.1.5"]}, "its pods are held while nobody else claims them"


def test_a_gateway_that_no_pods_node_can_reach_is_none() -> None:
    nodes = [node("a"), node("b", ips=["fd00::2"]), node("c")]
    state = cluster(
        services=[service("old"), service("web", created=LATE)],
        slices=[endpoint_slice(endpoint("10.244.1.5"), service=s) for s in ("old", "web")],
        announcements=[announced("b", service="old"), announced("c")],
        nodes=nodes,
    )
    assert claimed(state) == {"old": [], "web": ["10.244.1.5"]}


def test_each_family_has_its_own_owner() -> None:
    old, young = service("old"), service("web", created=LATE, ingress=("192.0.2.201", LB6))
    both = [endpoint("10.244.1.5"), endpoint("fd00:10:244:1::5")]
    state = cluster(
        services=[old, young],
        slices=[endpoint_slice(*both, service=s) for s in ("old", "web")],
        announcements=[announced("c", service="old"), announced("c")],
    )
    assert claimed(state) == {"old": ["10.244.1.5"], "web": ["fd00:10:244:1::5"]}


def test_while_a_gateway_is_awaited_claims_stay_as_they_were() -> None:
    old, young = service("old"), service("web", created=LATE, ingress=("192.0.2.201",))
    slices = [endpoint_slice(endpoint("10.244.1.5"), service=s) for s in ("old", "web")]
    away = cluster(services=[old, young], slices=slices)
    owners = [
        [one.service.ref.name for one in take(away, config(), awaited).services if one.pods]
        for awaited in (frozenset[ObjectRef](), frozenset({old.ref}))
    ]
    assert owners == [["web"], ["old"]]
    headless = cluster(services=[replace(old, type="ClusterIP"), young], slices=slices)
    found = take(headless, config(), frozenset({old.ref})).services
    assert [one.service.ref.name for one in found if one.pods] == ["web"], "a real change is no gateway that is away"


DYING = {"ready": False, "serving": False, "terminating": True}
DRAINING = {"ready": False, "serving": True, "terminating": True}
STARTING = {"ready": False, "serving": False}
LIVELIER: dict[str, tuple[dict[str, bool], dict[str, bool]]] = {
    "ready, not dying": ({}, DYING),
    "ready, not draining": ({}, DRAINING),
    "starting, not draining": (STARTING, DRAINING),
    "ready, not starting": ({}, STARTING),
    "draining, not dying": (DRAINING, DYING),
}


@pytest.mark.parametrize("name", LIVELIER)
@pytest.mark.parametrize("pods", [("new", "old"), ("web-0", "web-0")], ids=["another pod", "the same pod"])
def test_a_live_endpoint_beats_a_dying_one_whatever_the_order(name: str, pods: tuple[str, str]) -> None:
    live, dying = (
        endpoint("10.244.1.5", node=node, name=pod, conditions=conditions)
        for node, pod, conditions in zip("ab", pods, LIVELIER[name], strict=True)
    )
    for slices in ([endpoint_slice(live), endpoint_slice(dying)], [endpoint_slice(dying), endpoint_slice(live)]):
        found = take(cluster(slices=slices), config())
        assert [(pod.node, pod.pod) for one in found.services for pod in one.pods] == [("a", pods[0])]
        assert not found.rejections


def two_owners(old: Endpoint, young: Endpoint, said: Sequence[str] = ("old", "web")) -> ClusterState:
    return cluster(
        services=[service("old"), service("web", created=LATE, ingress=("192.0.2.201",))],
        slices=[endpoint_slice(old, service="old"), endpoint_slice(young)],
        announcements=[announced("c", service=name) for name in said],
    )


def test_an_address_that_is_a_new_pods_belongs_to_the_new_pods_service() -> None:
    old, young = endpoint("10.244.1.5", name="old-0", conditions=DYING), endpoint("10.244.1.5", name="web-0")
    state = two_owners(old, young)
    assert claimed(state) == {"old": [], "web": ["10.244.1.5"]}
    assert not take(state, config()).rejections, "pods end every day"
    nameless = two_owners(endpoint("10.244.1.5", kind=None, conditions=DYING), endpoint("10.244.1.5", kind=None))
    assert claimed(nameless) == {"old": [], "web": ["10.244.1.5"]}
    held = two_owners(old, young, ["old"])
    assert claimed(held) == {"old": [], "web": ["10.244.1.5"]}, "held, rather than out with the other's address"


def test_a_pod_that_ends_stays_with_its_service_while_no_other_can_serve_it() -> None:
    """The slices of its Services do not change in the same moment."""
    old, young = endpoint("10.244.1.5", conditions=DYING), endpoint("10.244.1.5")
    assert claimed(two_owners(old, young, ["old"])) == {"old": ["10.244.1.5"], "web": []}
    assert claimed(two_owners(old, endpoint("10.244.1.6"))) == {"old": ["10.244.1.5"], "web": ["10.244.1.6"]}
    both = two_owners(old, endpoint("10.244.1.5", conditions=DYING))
    assert claimed(both) == {"old": ["10.244.1.5"], "web": []}
    assert len(take(both, config()).rejections) == 1


def test_one_address_in_two_slices_of_a_service_is_one_pod() -> None:
    state = cluster(slices=[endpoint_slice(endpoint("10.244.1.5"))] * 2)
    assert claimed(state) == {"web": ["10.244.1.5"]}
    assert not take(state, config()).rejections


def test_F27_F30_pods_are_those_of_the_slices_and_no_others() -> None:
    before, after = (cluster(slices=[endpoint_slice(endpoint(ip))]) for ip in ("10.244.1.5", "10.244.1.6"))
    assert (claimed(before), claimed(after)) == ({"web": ["10.244.1.5"]}, {"web": ["10.244.1.6"]})


def test_ports_that_take_datagrams_are_those_of_the_opted_in_services_slices() -> None:
    def slices(service: str, first: int) -> EndpointSlice:
        ports = [ServicePort(protocol=p, port=first + i) for i, p in enumerate(("TCP", "UDP", "SCTP"))]
        return endpoint_slice(service=service, ports=ports)

    state = cluster(services=[service("web"), service("dns", labels={})], slices=[slices("web", 80), slices("dns", 53)])
    assert take(state, config()).served == {81, 82}


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
