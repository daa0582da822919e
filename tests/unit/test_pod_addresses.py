"""Whose a pod's address is that several Services' slices name, and whose claim on it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from metaleg_node.core.egress.survey import (
    take,
)
from metaleg_node.core.model import (
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
from metaleg_node.core.objects.annotations import ONLY as ONLY_ANNOTATION
from metaleg_node.core.problems import Code
from tests.unit.builders import (
    LB6,
    announced,
    cluster,
    config,
    endpoint,
    endpoint_slice,
    host_pod,
    node,
    pod,
    service,
)
from tests.unit.test_survey import BGP, EARLY, LATE, claimed

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


def test_a_label_or_annotation_with_a_typo_is_told() -> None:
    label = config().egress.label
    mistaken = service("web", labels={label.lower(): "true"}, annotations={"metaleg.de/only-cidr": "10.0.0.0/8"})
    reasons = [rejection.reason for rejection in take(cluster(services=[mistaken]), config()).rejections]
    assert f"label {label.lower()} does not count; egress.label is {label}" in reasons
    assert "annotation metaleg.de/only-cidr has no meaning; there are metaleg.de/exclude-cidrs and" in "\n".join(
        reasons
    )


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
