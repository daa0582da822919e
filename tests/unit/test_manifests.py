"""What each kind of object becomes, and what becomes of bad ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from metaleg_node.core.model import (
    AddressPool,
    Advertisement,
    AnnouncedBy,
    Announcement,
    BGPPeer,
    EndpointSlice,
    LabelRequirement,
    Node,
    NodeName,
    ObjectRef,
    Pod,
    Service,
    ServiceCIDR,
    ServicePort,
)
from metaleg_node.core.objects.fields import MAX_REJECTIONS, address_of, network_of, range_of, show, timestamp_of
from metaleg_node.core.objects.manifests import Parsed, parse, pruned

Raw = dict[str, Any]


def service() -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "relay",
            "namespace": "mail",
            "creationTimestamp": "2026-02-02T09:00:00Z",
            "labels": {"metaleg.de/rewriteSrcIP": "true"},
            "annotations": {"metaleg.de/only-cidrs": "203.0.113.0/24", "other.example/x": "y"},
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.25",
            "clusterIPs": ["10.96.0.25", "2001:db8:96::25"],
            "externalIPs": ["198.51.100.99"],
            "ports": [{"port": 25}, {"port": 53, "protocol": "UDP"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.25"}, {"ip": "2001:db8:25::25"}]}},
    }


def endpoint_slice() -> Raw:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": "relay-8xk2p",
            "namespace": "mail",
            "labels": {
                "kubernetes.io/service-name": "relay",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "ports": [{"name": "smtp", "port": 2525}, {"name": "dns", "protocol": "UDP", "port": 5353}],
        "endpoints": [
            {
                "addresses": ["10.244.1.25"],
                "nodeName": "worker-1",
                "conditions": {"ready": False},
                "targetRef": {"kind": "Pod", "namespace": "mail", "name": "relay-0"},
            }
        ],
    }


def node() -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "worker-1", "labels": {"zone": "a"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "2001:db8:244:1::/64"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "198.51.100.11"},
                {"type": "ExternalIP", "address": "203.0.113.11"},
                {"type": "Hostname", "address": "worker-1"},
            ],
            "conditions": [{"type": "MemoryPressure", "status": "True"}, {"type": "Ready", "status": "True"}],
        },
    }


def pod() -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "relay-0", "namespace": "mail"},
        "spec": {"nodeName": "worker-1", "hostNetwork": True},
        "status": {"phase": "Running", "podIP": "10.244.1.25", "podIPs": [{"ip": "10.244.1.25"}]},
    }


def l2_status() -> Raw:
    return {
        "apiVersion": "metallb.io/v1beta1",
        "kind": "ServiceL2Status",
        "metadata": {
            "name": "l2-4kbz9",
            "namespace": "metallb-system",
            "creationTimestamp": "2026-02-02T09:00:05Z",
            "labels": {"metallb.io/service-name": "relay", "metallb.io/service-namespace": "mail"},
        },
        "status": {"node": "worker-1"},
    }


def event() -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "relay.18903f6f", "namespace": "mail"},
        "involvedObject": {"kind": "Service", "namespace": "mail", "name": "relay"},
        "reason": "nodeAssigned",
        "message": 'announcing from node "worker-1" with protocol "layer2"',
        "firstTimestamp": "2026-02-02T09:00:05Z",
        "lastTimestamp": "2026-02-02T11:30:00Z",
    }


def new_event() -> Raw:
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "relay.18903f6f", "namespace": "mail"},
        "regarding": {"kind": "Service", "namespace": "mail", "name": "relay"},
        "reason": "nodeAssigned",
        "note": 'announcing from node "worker-1" with protocol "layer2"',
        "eventTime": "2026-02-02T09:00:05.250000Z",
        "deprecatedLastTimestamp": None,
        "series": {"count": 3, "lastObservedTime": "2026-02-02T11:30:00.500000Z"},
    }


def pool() -> Raw:
    return {
        "apiVersion": "metallb.io/v1beta1",
        "kind": "IPAddressPool",
        "metadata": {"name": "public", "namespace": "metallb-system", "labels": {"zone": "a"}},
        "spec": {"addresses": ["192.0.2.0/28", "192.0.2.100 - 192.0.2.110", "2001:db8:25::1-2001:db8:25::9"]},
    }


def advertisement(kind: str = "BGPAdvertisement") -> Raw:
    return {
        "apiVersion": "metallb.io/v1beta1",
        "kind": kind,
        "metadata": {"name": "all", "namespace": "metallb-system"},
        "spec": {
            "ipAddressPools": ["public"],
            "ipAddressPoolSelectors": [{"matchLabels": {"zone": "a"}}],
            "nodeSelectors": [{"matchExpressions": [{"key": "rack", "operator": "NotIn", "values": ["r1", "r2"]}]}],
        },
    }


def peer(version: str = "v1beta2") -> Raw:
    return {
        "apiVersion": f"metallb.io/{version}",
        "kind": "BGPPeer",
        "metadata": {"name": "router", "namespace": "metallb-system", "labels": {"metallb-nra/weight": "50"}},
        "spec": {
            "peerAddress": "198.51.100.1",
            "nodeSelectors": [
                {"matchLabels": {"rack": "r1"}},
                {"matchExpressions": [{"key": "x", "operator": "Exists"}]},
            ],
        },
    }


EVERY_KIND: dict[str, Callable[[], Raw]] = {
    "Service": service,
    "EndpointSlice": endpoint_slice,
    "Node": node,
    "Pod": pod,
    "ServiceL2Status": l2_status,
    "Event v1": event,
    "Event events.k8s.io": new_event,
    "IPAddressPool": pool,
    "BGPAdvertisement": advertisement,
    "BGPPeer": peer,
}


def only(raw: object) -> Any:
    """The one object that a raw object gives, of which no part is rejected."""
    parsed = parse(raw)
    assert parsed.rejections == ()
    (found,) = parsed.objects
    return found


def the_reason(raw: object) -> str:
    (rejection,) = parse(raw).rejections
    return rejection.reason


def changed(raw: Raw, path: str, value: object) -> Raw:
    """A copy with another value at a path; numbers in it are indexes; `DELETE` removes."""
    raw = copy.deepcopy(raw)
    here: Any = raw
    *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in way:
        here = here[key]
    if value is DELETE:
        del here[last]
    else:
        here[last] = value
    return raw


DELETE = object()


class Asked(dict[str, Any]):
    """A mapping that notes which keys were asked for, here and below."""

    def __init__(self, raw: Raw, keys: set[str]) -> None:
        super().__init__({key: self._wrapped(value, keys) for key, value in raw.items()})
        self._keys = keys

    def _wrapped(self, value: object, keys: set[str]) -> object:
        if isinstance(value, list):
            return [self._wrapped(item, keys) for item in value]
        return Asked(value, keys) if isinstance(value, dict) else value

    def get(self, key: str, default: object = None) -> Any:
        self._keys.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_is_asked_of_an_object_is_never_pruned(kind: str) -> None:
    asked: set[str] = set()
    parse(Asked(EVERY_KIND[kind](), asked))
    fields = {key for key in asked if "/" not in key}
    assert {"kind", "metadata", "name"} <= fields
    assert pruned(dict.fromkeys(fields, 1)) == dict.fromkeys(fields, 1)


def test_a_service_keeps_what_egress_and_external_ips_need() -> None:
    assert only(service()) == Service(
        ref=ObjectRef(kind="Service", namespace="mail", name="relay"),
        created="2026-02-02T09:00:00Z",
        type="LoadBalancer",
        labels={"metaleg.de/rewriteSrcIP": "true"},
        annotations={"metaleg.de/only-cidrs": "203.0.113.0/24"},
        cluster_ips=(ip_address("10.96.0.25"), ip_address("2001:db8:96::25")),
        external_ips=(ip_address("198.51.100.99"),),
        ingress=(ip_address("192.0.2.25"), ip_address("2001:db8:25::25")),
        ports=(ServicePort(protocol="TCP", port=25), ServicePort(protocol="UDP", port=53)),
    )


def test_a_service_keeps_how_its_addresses_are_served() -> None:
    ingress = [{"ip": "192.0.2.25", "ipMode": "Proxy"}, {"ip": "2001:db8:25::25", "ipMode": "VIP"}]
    raw = changed(service(), "status.loadBalancer.ingress", ingress)
    raw = changed(raw, "spec.externalTrafficPolicy", "Local")
    found = only(changed(raw, "spec.loadBalancerSourceRanges", ["203.0.113.0/24", " 2001:db8::/32 ", "0.0.0.0/0"]))
    assert isinstance(found, Service)
    assert (found.traffic_policy, found.proxied) == ("Local", frozenset({ip_address("192.0.2.25")}))
    assert list(map(str, found.source_ranges or ())) == ["203.0.113.0/24", "2001:db8::/32", "0.0.0.0/0"]
    plain = only(service())
    assert isinstance(plain, Service)
    assert (plain.traffic_policy, plain.proxied, plain.source_ranges) == ("Cluster", frozenset(), ())


@pytest.mark.parametrize("ranges", [["203.0.113.0/24", "everybody"], [7], "203.0.113.0/24", {}])
def test_source_ranges_that_cannot_be_understood_let_nobody_in(ranges: object) -> None:
    """The Service stays, for all that it is for beside."""
    found = parse(changed(service(), "spec.loadBalancerSourceRanges", ranges))
    (one,) = found.objects
    assert isinstance(one, Service)
    assert one.source_ranges is None
    assert one.ingress
    assert "spec.loadBalancerSourceRanges" in found.rejections[0].reason


def test_an_endpoint_slice_keeps_endpoints_that_are_not_ready() -> None:
    found = only(endpoint_slice())
    assert isinstance(found, EndpointSlice)
    assert (found.service, found.controlled) == ("relay", True)
    (endpoint,) = found.endpoints
    assert endpoint.addresses == (ip_address("10.244.1.25"),)
    assert endpoint.node == "worker-1"
    assert endpoint.target == ObjectRef(kind="Pod", namespace="mail", name="relay-0")
    assert found.ports == (ServicePort(protocol="TCP", port=2525), ServicePort(protocol="UDP", port=5353))


@pytest.mark.parametrize("ports", [None, [], [{"name": "any", "port": None}]])
def test_a_slice_may_name_no_port(ports: object) -> None:
    found = only(changed(endpoint_slice(), "ports", ports))
    assert isinstance(found, EndpointSlice)
    assert not found.ports


@pytest.mark.parametrize("manager", [None, "me", "endpointslicemirroring-controller.k8s.io"])
def test_S9_only_the_controllers_own_slices_are_controlled(manager: str | None) -> None:
    raw = endpoint_slice()
    raw["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = manager
    assert not only(raw).controlled


def test_a_slice_of_names_gives_nothing() -> None:
    assert parse(changed(endpoint_slice(), "addressType", "FQDN")) == parse(None)


def test_a_node_tells_addresses_pod_networks_and_readiness() -> None:
    assert only(node()) == Node(
        ref=ObjectRef(kind="Node", name="worker-1"),
        labels={"zone": "a"},
        internal_ips=(ip_address("198.51.100.11"),),
        addresses=(ip_address("198.51.100.11"), ip_address("203.0.113.11")),
        pod_cidrs=(ip_network("10.244.1.0/24"), ip_network("2001:db8:244:1::/64")),
        ready=True,
    )


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_without_ready_condition_is_not_ready(status: str) -> None:
    assert not only(changed(node(), "status.conditions.1.status", status)).ready
    assert not only(changed(node(), "status.conditions", DELETE)).ready


def test_a_node_with_the_older_pod_cidr_only() -> None:
    assert only(changed(node(), "spec.podCIDRs", DELETE)).pod_cidrs == (ip_network("10.244.1.0/24"),)


def test_a_pod() -> None:
    found = only(pod())
    assert isinstance(found, Pod)
    assert (found.node, found.host_network, found.addresses) == ("worker-1", True, (ip_address("10.244.1.25"),))
    assert only(changed(pod(), "status.podIPs", DELETE)).addresses == (ip_address("10.244.1.25"),)
    assert only(changed(pod(), "status", DELETE)).addresses == ()


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_F28_a_pod_that_has_ended_no_longer_has_its_address(phase: str) -> None:
    assert only(changed(pod(), "status.phase", phase)).addresses == ()


def test_a_service_cidr() -> None:
    raw = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "2001:db8:96::/112"]},
    }
    expected = (ip_network("10.96.0.0/16"), ip_network("2001:db8:96::/112"))
    assert only(raw) == ServiceCIDR(ref=ObjectRef(kind="ServiceCIDR", name="kubernetes"), networks=expected)


@pytest.mark.parametrize(
    ("kind", "source"), [("ServiceL2Status", AnnouncedBy.L2_STATUS), ("ServiceBGPStatus", AnnouncedBy.BGP_STATUS)]
)
def test_a_status_tells_the_announcing_node(kind: str, source: AnnouncedBy) -> None:
    assert only(changed(l2_status(), "kind", kind)) == Announcement(
        ref=ObjectRef(kind=kind, namespace="metallb-system", name="l2-4kbz9"),
        source=source,
        service=("mail", "relay"),
        node=NodeName("worker-1"),
        since="2026-02-02T09:00:05Z",
    )


@pytest.mark.parametrize(
    ("raw", "since"),
    [(event(), "2026-02-02T11:30:00.000000Z"), (new_event(), "2026-02-02T11:30:00.500000Z")],
    ids=["v1", "events.k8s.io"],
)
def test_an_event_tells_the_announcing_node_and_when_it_was_last_seen(raw: Raw, since: str) -> None:
    found = only(raw)
    assert isinstance(found, Announcement)
    assert (found.source, found.service, found.node, found.since) == (
        AnnouncedBy.EVENTS,
        ("mail", "relay"),
        "worker-1",
        since,
    )


def test_an_event_of_metallb_before_0_13_tells_no_protocol() -> None:
    assert only(changed(event(), "message", 'announcing from node "worker-1"')).node == "worker-1"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("reason", "IPAllocated"),
        ("reason", None),
        ("involvedObject.kind", "Pod"),
        ("message", 'announcing from node "worker-1" with protocol "bgp"'),
    ],
)
def test_other_events_give_nothing(path: str, value: object) -> None:
    assert parse(changed(event(), path, value)) == parse(None)


def test_a_pool_of_cidrs_and_ranges() -> None:
    assert only(pool()) == AddressPool(
        ref=ObjectRef(kind="IPAddressPool", namespace="metallb-system", name="public"),
        labels={"zone": "a"},
        ranges=(
            (ip_address("192.0.2.0"), ip_address("192.0.2.15")),
            (ip_address("192.0.2.100"), ip_address("192.0.2.110")),
            (ip_address("2001:db8:25::1"), ip_address("2001:db8:25::9")),
        ),
    )


@pytest.mark.parametrize("kind", ["BGPAdvertisement", "L2Advertisement"])
def test_an_advertisement(kind: str) -> None:
    assert only(advertisement(kind)) == Advertisement(
        ref=ObjectRef(kind=kind, namespace="metallb-system", name="all"),
        pools=("public",),
        pool_selectors=((LabelRequirement(key="zone", operator="In", values=("a",)),),),
    )


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])
def test_a_bgp_peer(version: str) -> None:
    assert only(peer(version)) == BGPPeer(
        ref=ObjectRef(kind="BGPPeer", namespace="metallb-system", name="router"),
        labels={"metallb-nra/weight": "50"},
        address=ip_address("198.51.100.1"),
        node_selectors=(
            (LabelRequirement(key="rack", operator="In", values=("r1",)),),
            (LabelRequirement(key="x", operator="Exists"),),
        ),
    )


def test_N3_a_bgp_peer_without_address_is_no_error() -> None:
    assert only(changed(peer(), "spec.peerAddress", DELETE)).address is None


def test_metallbs_old_configuration() -> None:
    parsed = parse(
        {
            "peers": [{"peer-address": "198.51.100.1", "node-selectors": [{"match-labels": {"rack": "r1"}}]}],
            "address-pools": [
                {"name": "public", "protocol": "layer2", "addresses": ["192.0.2.0/28"]},
                {"name": "bad", "protocol": "ospf", "addresses": []},
                {"name": "a b", "protocol": "bgp"},
            ],
        }
    )
    assert parsed.objects == (
        BGPPeer(
            ref=ObjectRef(kind="BGPPeer", name="peers[0]"),
            labels={},
            address=ip_address("198.51.100.1"),
            node_selectors=((LabelRequirement(key="rack", operator="In", values=("r1",)),),),
        ),
        AddressPool(
            ref=ObjectRef(kind="AddressPool", name="public"),
            labels={},
            ranges=((ip_address("192.0.2.0"), ip_address("192.0.2.15")),),
            protocol="layer2",
        ),
    )
    assert [rejection.reason for rejection in parsed.rejections] == [
        "protocol: 'ospf' is not layer2 or bgp; the object is left out",
        "address-pools[2].name: 'a b' is not the name of an address pool; it is left out",
    ]


def test_lists_are_read_and_typed_lists_lend_their_kind() -> None:
    items = [service(), node()]
    assert parse({"apiVersion": "v1", "kind": "List", "items": items}).objects == (only(service()), only(node()))
    bare = {key: value for key, value in pod().items() if key not in ("kind", "apiVersion")}
    assert parse({"apiVersion": "v1", "kind": "PodList", "items": [bare]}).objects == (only(pod()),)
    assert parse({"apiVersion": "metrics.k8s.io/v1", "kind": "PodList", "items": [bare]}).objects == ()


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (5, "items: 5 is not a list"),
        ([5], "5 is not a Kubernetes object"),
        ([{"kind": "List", "items": []}], "a List inside a List"),
    ],
)
def test_a_bad_list_is_told(items: object, words: str) -> None:
    assert words in the_reason({"kind": "List", "items": items})


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {"apiVersion": "v1", "kind": "Secret", "metadata": 5},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "x", "namespace": "y"}},
        {"apiVersion": "metrics.k8s.io/v1beta1", "kind": "Node", "metadata": {"name": "x"}},
        {"apiVersion": "v1", "kind": "List", "items": None},
    ],
)
def test_what_is_of_no_use_is_skipped_silently(raw: object) -> None:
    parsed = parse(raw)
    assert (parsed.objects, parsed.rejections) == ((), ())


@pytest.mark.parametrize(
    ("raw", "path", "value", "words"),
    [
        (service(), "kind", 5, "kind: 5 is not"),
        (service(), "metadata", 5, "metadata.name: nothing is not a Kubernetes name"),
        (service(), "metadata.name", DELETE, "metadata.name: nothing is not"),
        (service(), "metadata.name", "a;reboot", "metadata.name: 'a;reboot' is not"),
        (service(), "metadata.name", "a\nb", r"metadata.name: 'a\nb' is not"),
        (service(), "metadata.name", "x\n", r"metadata.name: 'x\n' is not"),
        (service(), "metadata.name", "a" * 254, "metadata.name: "),
        (service(), "metadata.namespace", "a.b", "metadata.namespace: 'a.b' is not"),
        (service(), "metadata.namespace", DELETE, "metadata.namespace: nothing is not"),
        (service(), "metadata.namespace", "$(id)", "metadata.namespace: '$(id)' is not"),
        (service(), "spec.type", "Loadbalancer", "spec.type: 'Loadbalancer' is not one of"),
        (node(), "metadata.name", "worker 1", "metadata.name: 'worker 1' is not"),
        (endpoint_slice(), "addressType", "IPv5", "addressType: 'IPv5' is not"),
        (endpoint_slice(), "metadata.labels", {}, "metadata.labels[kubernetes.io/service-name]: nothing"),
        (l2_status(), "status", {"node": "a b"}, "status.node: 'a b' is not"),
        (l2_status(), "status.node", "}; flush ruleset", "status.node: '}; flush ruleset' is not"),
        (l2_status(), "metadata.labels", {}, "[metallb.io/service-name]: nothing, nothing are not"),
        (event(), "message", "hello", "message: 'hello' does not tell a node"),
        (event(), "message", 'announcing from node "a;b" with protocol "layer2"', "message: 'a;b' is not"),
        (event(), "message", 7, "message: 7 does not"),
        (event(), "involvedObject.name", "", "involvedObject: 'mail', '' are not"),
        (advertisement(), "spec.ipAddressPools", [5], "spec.ipAddressPools[0]: 5 is not"),
        (advertisement(), "spec.ipAddressPools", "public", "spec.ipAddressPools: 'public' is not a list"),
        (peer(), "spec.nodeSelectors", [5], "spec.nodeSelectors[0]: 5 is not a mapping"),
        (
            peer(),
            "spec.nodeSelectors.0.matchLabels",
            {"rack": 5},
            "nodeSelectors[0].matchLabels: 5 is not a label value",
        ),
        (peer(), "spec.nodeSelectors.0.matchLabels", {"a b": "c"}, "matchLabels: 'a b' is not a label key"),
        (peer(), "spec.nodeSelectors.1.matchExpressions.0.operator", "Is", "operator: 'Is' is not In, NotIn"),
        (peer(), "spec.nodeSelectors.1.matchExpressions.0.operator", "In", "values: is empty, but In needs values"),
    ],
)
def test_what_cannot_be_missed_costs_the_object(raw: Raw, path: str, value: object, words: str) -> None:
    parsed = parse(changed(raw, path, value))
    assert parsed.objects == ()
    assert words in parsed.rejections[-1].reason
    assert str(parsed.rejections[-1].ref).isprintable()


@pytest.mark.parametrize(
    ("raw", "path", "value", "field", "kept", "words"),
    [
        (service(), "status.loadBalancer.ingress.0.ip", "192.0.2.256", "ingress", 1, "ingress[0].ip: '192.0.2.256'"),
        (service(), "status.loadBalancer.ingress.0", 5, "ingress", 1, "ingress[0]: 5 is not a mapping"),
        (service(), "status.loadBalancer.ingress.0", {}, "ingress", 1, "ingress[0].ip: nothing is not"),
        (service(), "status.loadBalancer.ingress", "x", "ingress", 0, "status.loadBalancer.ingress: 'x' is not a list"),
        (service(), "status.loadBalancer", "x", "ingress", 0, "status.loadBalancer: 'x' is not a mapping"),
        (service(), "status", "x", "ingress", 0, "status: 'x' is not a mapping"),
        (service(), "spec.clusterIPs", ["x", "10.96.0.25"], "cluster_ips", 1, "spec.clusterIPs[0]: 'x' is not"),
        (service(), "spec.externalIPs", [3232235777], "external_ips", 0, "spec.externalIPs[0]: 3232235777 is not"),
        (service(), "spec.ports.0.port", 0, "ports", 1, "spec.ports[0].port: 0 is not"),
        (service(), "spec.ports.0.port", True, "ports", 1, "spec.ports[0].port: true is not"),
        (service(), "spec.ports.0.port", "25", "ports", 1, "spec.ports[0].port: '25' is not"),
        (
            service(),
            "spec.ports.0.protocol",
            "tcp",
            "ports",
            1,
            "spec.ports[0].protocol: 'tcp' is not TCP, UDP or SCTP",
        ),
        (service(), "metadata.labels", {"metaleg.de/rewriteSrcIP": True}, "labels", 0, "true is not a label value"),
        (service(), "metadata.labels", {"a": "b\n", "c": "d"}, "labels", 1, r"metadata.labels[a]: 'b\n' is not"),
        (service(), "metadata.labels", {"a b": "c"}, "labels", 0, "metadata.labels: 'a b' is not a label key"),
        (
            service(),
            "metadata.annotations",
            {"metaleg.de/x": 5},
            "annotations",
            0,
            "annotations[metaleg.de/x]: 5 is not",
        ),
        (service(), "metadata.creationTimestamp", "yesterday", "created", 0, "creationTimestamp: 'yesterday' is not"),
        (endpoint_slice(), "ports.1.port", 65536, "ports", 1, "ports[1].port: 65536 is not a port number"),
        (endpoint_slice(), "endpoints.0", None, "endpoints", 0, "endpoints[0]: nothing is not a mapping"),
        (endpoint_slice(), "endpoints.0.addresses", "10.1.1.1", "endpoints", 0, "addresses: '10.1.1.1' is not a list"),
        (endpoint_slice(), "endpoints.0.addresses", ["2001:db8::1"], "endpoints", 0, "'2001:db8::1' is not an IPv4"),
        (endpoint_slice(), "endpoints.0.nodeName", "a b", "endpoints", 1, "endpoints[0].nodeName: 'a b' is not"),
        (endpoint_slice(), "endpoints.0.targetRef.name", ";", "endpoints", 1, "targetRef.name: ';' is not"),
        (node(), "status.addresses.0.address", "fe80::1%eth0", "internal_ips", 0, "'fe80::1%eth0' is not"),
        (node(), "spec.podCIDRs", ["0.0.0.0/0", "10.244.1.0/24"], "pod_cidrs", 1, "spec.podCIDRs[0]: '0.0.0.0/0'"),
        (node(), "status.conditions.1.status", True, "pod_cidrs", 2, "conditions[1].status: true is not"),
        (pod(), "status.podIPs", [{"ip": "x"}, {"ip": "10.244.1.9"}], "addresses", 1, "status.podIPs[0].ip: 'x'"),
        (pool(), "spec.addresses.1", "192.0.2.9-192.0.2.1", "ranges", 2, "spec.addresses[1]: '192.0.2.9-192.0.2.1'"),
        (pool(), "spec.addresses.1", "192.0.2.9-2001:db8::1", "ranges", 2, "is not a range of addresses"),
    ],
)
def test_a_bad_part_costs_that_part_only(raw: Raw, path: str, value: object, field: str, kept: int, words: str) -> None:
    parsed = parse(changed(raw, path, value))
    (found,) = parsed.objects
    assert len(getattr(found, field)) == kept
    (rejection,) = parsed.rejections
    assert words in rejection.reason
    assert rejection.ref == found.ref


@pytest.mark.parametrize("ingress", [{"hostname": "lb.example"}, {"hostname": "lb.example", "ip": ""}])
def test_K5_an_ingress_with_a_host_name_only_is_no_error(ingress: Raw) -> None:
    raw = service()
    raw["status"]["loadBalancer"]["ingress"].append(ingress)
    assert len(only(raw).ingress) == 2


@pytest.mark.parametrize("value", ["None", "", None])
def test_a_service_without_cluster_ip(value: str | None) -> None:
    raw = changed(service(), "spec.clusterIP", value)
    assert only(changed(raw, "spec.clusterIPs", DELETE)).cluster_ips == ()
    assert only(changed(raw, "spec.clusterIPs", [value])).cluster_ips == ()


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.01",
        "192.0.2.1 ",
        "192.0.2.1\n",
        "192.0.2.1/32",
        "0xc0000201",
        "3221225985",
        "\u0661.1.1.1",
        "::",
        "::1",
        "::ffff:192.0.2.1",
        "::192.0.2.1",
        "fe80::1",
        "fe80::1%eth0",
        "2001:db8::1%1;",
        "ff02::1",
        "2001:db8::1::2",
        "localhost",
        "1" * 10_000,
        "",
        5,
        True,
        None,
        b"\xc0\x00\x02\x01",
        ["192.0.2.1"],
    ],
)
def test_what_is_no_address_of_a_host(text: object) -> None:
    assert isinstance(address_of(text), str)


@pytest.mark.parametrize(
    "text", ["192.0.2.1", "10.0.0.0", "100.64.0.1", "223.255.255.255", "240.0.0.1", "2001:db8::1", "fd00::1"]
)
def test_addresses_of_hosts(text: str) -> None:
    assert address_of(text) == ip_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.0",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/0.255.255.255",
        "10.0.0.0/33",
        "10.0.0.0/ 8",
        "10.0.0.0/-1",
        "10.0.0.0/8/8",
        "/8",
        "0.0.0.0/0",
        "::/0",
        "::ffff:10.0.0.0/104",
        "fe80::%eth0/64",
        "",
        5,
        None,
    ],
)
def test_what_is_no_network(text: object) -> None:
    assert isinstance(network_of(text), str)


def test_host_bits_of_a_network_are_cut_off_as_kubernetes_does() -> None:
    assert network_of("192.0.2.77/24") == ip_network("192.0.2.0/24")
    assert range_of("192.0.2.77/24") == (ip_address("192.0.2.0"), ip_address("192.0.2.255"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-02-02T09:00:00Z", "2026-02-02T09:00:00Z"),
        ("2026-02-02T10:00:00+01:00", "2026-02-02T09:00:00Z"),
        ("2026-02-02T09:00:00.999Z", "2026-02-02T09:00:00Z"),
        ("2026-02-30T09:00:00Z", None),
        ("0001-01-01T00:00:00+01:00", None),
        ("2026-02-02 09:00:00Z", None),
        ("2026-02-02T09:00:00", None),
        ("\u0662026-02-02T09:00:00Z", None),
        (5, None),
    ],
)
def test_times_become_one_form_that_sorts(text: object, expected: str | None) -> None:
    assert timestamp_of(text) == expected


def test_huge_and_hostile_values_are_short_and_printable_in_messages() -> None:
    for value in ("x" * 10**6, "a\x1b[31m\n\u202e\ud800", 10**5000, ["a"] * 10**5, {"a": 1}, 1.5, None, True):
        text = show(value)
        assert len(text) < 400
        assert text.isprintable()


def test_an_object_with_very_many_problems_tells_the_first_ones() -> None:
    reasons = [one.reason for one in parse(changed(service(), "spec.externalIPs", list(range(1000)))).rejections]
    assert len(reasons) == MAX_REJECTIONS + 1
    assert reasons[-1] == f"and {1000 - MAX_REJECTIONS} more problems"


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
    ],
)
def test_what_conditions_of_an_endpoint_leave_open(
    conditions: dict[str, object] | None, expected: tuple[bool, bool, bool]
) -> None:
    found = only(changed(endpoint_slice(), "endpoints", [{"addresses": ["10.244.1.5"], "conditions": conditions}]))
    (endpoint,) = found.endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected


def test_a_condition_that_is_neither_true_nor_false_is_told_and_left_open() -> None:
    raw = changed(
        endpoint_slice(), "endpoints", [{"addresses": ["10.244.1.5"], "conditions": {"terminating": "true", "x": 1}}]
    )
    found = parse(raw)
    assert [one.reason for one in found.rejections] == [
        "endpoints[0].conditions.terminating: 'true' is not true or false; it is left out"
    ]


@pytest.mark.parametrize("node", [DELETE, "", None])
def test_a_status_that_is_just_being_made_is_nothing(node: object) -> None:
    assert parse(changed(l2_status(), "status.node", node)) == Parsed()


@pytest.mark.parametrize(
    ("manager", "mirrored"),
    [("endpointslicemirroring-controller.k8s.io", True), ("endpointslice-controller.k8s.io", False), ("me", False)],
)
def test_a_slice_tells_that_it_is_mirrored(manager: str, mirrored: bool) -> None:
    raw = endpoint_slice()
    raw["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = manager
    assert only(raw).mirrored is mirrored


@pytest.mark.parametrize(
    ("kind", "version", "words", "harmless"),
    [
        ("AddressPool", "metallb.io/v1beta1", "make it an IPAddressPool", False),
        ("AddressPool", "metallb.io/v1alpha1", "make it an IPAddressPool", False),
        ("Endpoints", "v1", "the Service's EndpointSlices are", True),
    ],
)
def test_old_kinds_are_told_with_what_to_do(kind: str, version: str, words: str, harmless: bool) -> None:
    raw = {"apiVersion": version, "kind": kind, "metadata": {"name": "x", "namespace": "y"}}
    for one in (raw, {"apiVersion": "v1", "kind": "List", "items": [raw]}):
        (told,) = parse(one).rejections
        assert str(told.ref) == f"{kind} y/x"
        assert words in told.reason
        assert told.harmless is harmless
    assert parse(raw | {"apiVersion": "example.org/v1"}) == Parsed()
