"""Turns raw Kubernetes objects into the model, whatever they hold.

The state file and the API feed this one parser. It never raises: a bad field costs that field, a field that cannot be
missed costs the object, and each loss comes back as a rejection that names object, field, value and what was expected.
Field names are those of the Kubernetes API reference (https://kubernetes.io/docs/reference/kubernetes-api/) and of
MetalLB's (https://metallb.io/apis/).
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from metaleg_node.core.model import (
    Address,
    AnnouncedBy,
    Announcement,
    ClusterObject,
    Endpoint,
    EndpointSlice,
    Family,
    Network,
    Node,
    NodeName,
    ObjectRef,
    Pod,
    Rejection,
    ServiceCIDR,
)
from metaleg_node.core.objects import pools
from metaleg_node.core.objects.fields import (
    NAME_SYNTAX,
    NAMESPACE_SYNTAX,
    Reader,
    UnusableError,
    is_name,
    is_namespace,
    network_of,
    show,
    timestamp_of,
)
from metaleg_node.core.objects.services import ANNOTATION_PREFIX, ports, service

_ADDRESS_TYPES: Final[Mapping[str, Family]] = {"IPv4": 4, "IPv6": 6}
_OLD_NAME: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,252}")
# What MetalLB's speaker writes; the protocol came with version 0.13, before it an address had only one.
_NODE_ASSIGNED: Final = re.compile(
    r'announcing from node "(?P<node>[^"]{1,253})"(?: with protocol "(?P<protocol>[^"]{1,20})")?'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What one raw object, or one list of them, gave. `raw`: what was read of it (`pruned`) as JSON, where that is
    kept; two results are equal without it."""

    objects: tuple[ClusterObject, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    raw: bytes = dataclasses.field(default=b"", compare=False, repr=False)


NOTHING: Final = Parsed()

ConfigMapReader = Callable[[Mapping[str, object]], Parsed]


OLD_KEYS: Final = frozenset({"peers", "address-pools", "bfd-profiles", "bgp-communities"})
_USED_KEYS: Final = frozenset({"peers", "address-pools"})


def _no_config_map(_raw: Mapping[str, object]) -> Parsed:
    return NOTHING


def parse(raw: object, read_config_map: ConfigMapReader = _no_config_map) -> Parsed:
    """Reads one document: an object, a `kind: List` (or SomethingList), or MetalLB's old configuration.

    Objects of kinds that nothing here needs give nothing, without a rejection, and so does an empty document. What a
    ConfigMap holds is text, which `read_config_map` reads.
    """
    if raw is None:
        return NOTHING
    if not isinstance(raw, dict):
        return _unusable(ObjectRef(kind="document", name="?"), f"{show(raw)} is not a Kubernetes object")
    kind = raw.get("kind")
    if kind is None and is_old_configuration(raw):
        return _old_configuration(raw)
    if is_list(kind, raw.get("apiVersion")):
        assert isinstance(kind, str)
        return _list(raw, kind, read_config_map)
    return _object(raw, kind, raw.get("apiVersion"), read_config_map)


def merge(parts: Iterable[Parsed]) -> Parsed:
    """Several results as one, in their order."""
    kept = [part for part in parts if part.objects or part.rejections]
    if len(kept) == 1:
        return kept[0]
    return Parsed(
        objects=tuple(one for part in kept for one in part.objects),
        rejections=tuple(one for part in kept for one in part.rejections),
    )


def pruned(raw: object) -> object:
    """The same object with nothing but what `parse` may look at: it gives the same result."""
    if isinstance(raw, dict):
        return {key: _pruned_value(key, value) for key, value in raw.items() if key in _READ_KEYS}
    return [pruned(item) for item in raw] if isinstance(raw, list) else raw


def _pruned_value(key: str, value: object) -> object:
    if key == "annotations" and isinstance(value, dict):
        return {name: text for name, text in value.items() if name.startswith(ANNOTATION_PREFIX)}
    return value if key in ("labels", "matchLabels", "selector") else pruned(value)


def _list(raw: Mapping[str, object], kind: str, read_config_map: ConfigMapReader) -> Parsed:
    """A list; the items of a typed one, such as a PodList from the API, carry neither kind nor apiVersion."""
    items = raw.get("items")
    if items is None:
        return NOTHING
    if not isinstance(items, list):
        return _unusable(ObjectRef(kind=show(kind)[1:-1], name="?"), f"items: {show(items)} is not a list")
    parts = []
    for item in items:
        if isinstance(item, dict):
            version = raw.get("apiVersion") if "kind" not in item else None
            parts.append(_object(item, item.get("kind", kind[:-4]), item.get("apiVersion", version), read_config_map))
        else:
            parts.append(_unusable(ObjectRef(kind="List", name="items"), f"{show(item)} is not a Kubernetes object"))
    return merge(parts)


def _object(raw: Mapping[str, object], kind: object, version: object, read_config_map: ConfigMapReader) -> Parsed:
    if not isinstance(kind, str) or not kind:
        return _unusable(ref_for_message(raw, "object"), f"kind: {show(kind)} is not the kind of a Kubernetes object")
    if kind == "List":
        return _unusable(
            ref_for_message(raw, kind), "a List inside a List is not read; put its items into the outer one"
        )
    if kind == "ConfigMap":
        return read_config_map(raw)
    if not is_known(kind, version):
        return _not_read(raw, kind, version)
    known = _KINDS[kind]
    try:
        reader = Reader(raw, _ref(raw, kind, known.namespaced))
    except UnusableError as error:
        return _unusable(ref_for_message(raw, kind), f"{error}; the object is left out")
    return _read(known.read, reader)


def _read(read: Callable[[Reader], ClusterObject | None], reader: Reader) -> Parsed:
    try:
        found = read(reader)
    except UnusableError as error:
        reason = Rejection(ref=reader.ref, reason=f"{error}; the object is left out")
        return Parsed(rejections=(*reader.rejections, reason))
    if found is None:
        return NOTHING if not reader.rejections else Parsed(rejections=reader.rejections)
    return Parsed(objects=(found,), rejections=reader.rejections)


def _not_read(raw: Mapping[str, object], kind: str, version: object) -> Parsed:
    reason = _INSTEAD.get((kind, _group(version)))
    return _unusable(ref_for_message(raw, kind), reason, harmless=kind == "Endpoints") if reason else NOTHING


def _unusable(ref: ObjectRef, reason: str, *, harmless: bool = False) -> Parsed:
    return Parsed(rejections=(Rejection(ref=ref, reason=reason, harmless=harmless),))


def _group(version: object) -> str:
    return version.rpartition("/")[0] if isinstance(version, str) else "?"


def _metadata(raw: Mapping[str, object]) -> Mapping[str, object]:
    metadata = raw.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _ref(raw: Mapping[str, object], kind: str, namespaced: bool) -> ObjectRef:
    metadata = _metadata(raw)
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not isinstance(name, str) or not is_name(name):
        raise UnusableError(f"metadata.name: {show(name)} is not {NAME_SYNTAX}")
    if not namespaced:
        return ObjectRef(kind=kind, name=name)
    if not isinstance(namespace, str) or not is_namespace(namespace):
        raise UnusableError(f"metadata.namespace: {show(namespace)} is not {NAMESPACE_SYNTAX}")
    return ObjectRef(kind=kind, namespace=sys.intern(namespace), name=name)


def is_known(kind: str, version: object) -> bool:
    """Whether objects of this kind and API version are read; without a version those of any."""
    return kind in _KINDS and (version is None or _group(version) in _KINDS[kind].groups)


def is_list(kind: object, version: object) -> bool:
    """Whether it is a list of objects that are read; another project's kind may end in List too."""
    return (
        isinstance(kind, str)
        and kind.endswith("List")
        and (kind in ("List", "ConfigMapList") or is_known(kind[:-4], version))
    )


def is_old_configuration(raw: Mapping[str, object]) -> bool:
    """Whether it is MetalLB's configuration before 0.13, whatever of that it has."""
    return not raw.keys().isdisjoint(OLD_KEYS)


def ref_for_message(raw: Mapping[str, object], kind: str) -> ObjectRef:
    """Names an object whose own names may be anything."""
    metadata = _metadata(raw)
    name, namespace = metadata.get("name"), metadata.get("namespace")
    return ObjectRef(
        kind=kind,
        namespace=str(namespace) if is_namespace(namespace) else "",
        name=str(name) if is_name(name) else f"({show(name)})",
    )


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def _endpoint_slice(reader: Reader) -> EndpointSlice | None:
    address_type = reader.text("addressType")
    if address_type == "FQDN":
        return None
    family = _ADDRESS_TYPES.get(address_type)
    if family is None:
        raise UnusableError(f"addressType: {show(address_type)} is not IPv4, IPv6 or FQDN")
    labels = reader.mapping("metadata.labels")
    service = labels.get("kubernetes.io/service-name")
    if not isinstance(service, str) or not is_name(service):
        raise UnusableError(f"metadata.labels[kubernetes.io/service-name]: {show(service)} is not {NAME_SYNTAX}")
    manager = labels.get("endpointslice.kubernetes.io/managed-by")
    return EndpointSlice(
        ref=reader.ref,
        service=service,
        controlled=manager == "endpointslice-controller.k8s.io",
        mirrored=manager == "endpointslicemirroring-controller.k8s.io",
        endpoints=tuple(_endpoints(reader, family)),
        # A port may be missing: then only whoever made the slice knows it.
        ports=tuple(ports(reader, ((f, e) for f, e in reader.entries("ports") if e.get("port") is not None))),
    )


def _endpoints(reader: Reader, family: Family) -> Iterable[Endpoint]:
    """Ready or not: a pod that is starting or ending already, or still, sends. What conditions leave open counts as
    Kubernetes' API reference says (EndpointConditions): ready, serving if ready, and not terminating."""
    for field, entry in reader.entries("endpoints"):
        values = entry.get("addresses")
        if not isinstance(values, list):
            reader.reject(f"{field}.addresses", values, "a list")
            continue
        addresses = reader.addresses(values, f"{field}.addresses", family)
        if addresses:
            node = reader.name_in(entry.get("nodeName"), f"{field}.nodeName")
            conditions = _conditions(reader, entry.get("conditions"), f"{field}.conditions")
            ready = conditions.get("ready", True)
            yield Endpoint(
                addresses=addresses,
                node=NodeName(node) if node else None,
                target=_target(reader, entry.get("targetRef"), f"{field}.targetRef"),
                ready=ready,
                serving=conditions.get("serving", ready),
                terminating=conditions.get("terminating", False),
            )


def _conditions(reader: Reader, value: object, field: str) -> Mapping[str, bool]:
    if value is None:
        return {}
    found = {}
    for name, flag in reader.entry(value, field).items():
        if isinstance(flag, bool):
            found[name] = flag
        elif flag is not None and name in ("ready", "serving", "terminating"):
            reader.reject(f"{field}.{name}", flag, "true or false")
    return found


def _target(reader: Reader, value: object, field: str) -> ObjectRef | None:
    if value is None:
        return None
    raw = reader.entry(value, field)
    if raw.get("kind") != "Pod":
        return None
    namespace, name = raw.get("namespace", ""), raw.get("name")
    if not isinstance(name, str) or not is_name(name):
        reader.reject(f"{field}.name", name, NAME_SYNTAX)
        return None
    if not isinstance(namespace, str) or (namespace and not is_namespace(namespace)):
        reader.reject(f"{field}.namespace", namespace, NAMESPACE_SYNTAX)
        return None
    return ObjectRef(kind="Pod", namespace=sys.intern(namespace), name=name)


def _node(reader: Reader) -> Node:
    internal: dict[Address, None] = {}
    addresses: dict[Address, None] = {}
    for field, entry in reader.entries("status.addresses"):
        kind = entry.get("type")
        if kind not in ("InternalIP", "ExternalIP"):
            continue
        address = reader.address(entry.get("address"), f"{field}.address")
        if address is not None:
            addresses[address] = None
            if kind == "InternalIP":
                internal[address] = None
    return Node(
        ref=reader.ref,
        labels=reader.labels(),
        internal_ips=tuple(internal),
        addresses=tuple(addresses),
        pod_cidrs=_pod_cidrs(reader),
        ready=_condition(reader, "Ready"),
        network_unavailable=_condition(reader, "NetworkUnavailable"),
    )


def _pod_cidrs(reader: Reader) -> tuple[Network, ...]:
    if reader.value("spec.podCIDRs") is not None:
        return reader.networks("spec.podCIDRs")
    value = reader.text("spec.podCIDR")
    if not value:
        return ()
    network = network_of(value)
    if isinstance(network, str):
        reader.reject("spec.podCIDR", value, network)
        return ()
    return (network,)


def _condition(reader: Reader, kind: str) -> bool:
    """Whether a condition is there and true."""
    for field, entry in reader.entries("status.conditions"):
        if entry.get("type") == kind:
            status = entry.get("status")
            if status not in ("True", "False", "Unknown"):
                reader.reject(f"{field}.status", status, 'one of "True", "False", "Unknown" (in quotes)')
            return status == "True"
    return False


def _pod(reader: Reader) -> Pod:
    node = reader.name("spec.nodeName")
    # The address of a Pod that has ended is free for the next one.
    ended = reader.value("status.phase") in ("Succeeded", "Failed")
    return Pod(
        ref=reader.ref,
        node=NodeName(node) if node else None,
        host_network=reader.flag("spec.hostNetwork"),
        addresses=() if ended else _pod_addresses(reader),
        labels=reader.labels(),
        uid=_uid(reader),
        ending=reader.value("metadata.deletionTimestamp") is not None,
        ended=ended,
    )


def _uid(reader: Reader) -> str:
    uid = reader.value("metadata.uid")
    return uid if isinstance(uid, str) else ""


def _pod_addresses(reader: Reader) -> tuple[Address, ...]:
    if reader.value("status.podIPs") is None:
        value = reader.value("status.podIP")
        return () if value in (None, "") else reader.addresses([value], "status.podIP")
    values = [(f"{field}.ip", entry.get("ip")) for field, entry in reader.entries("status.podIPs")]
    found = [reader.address(value, field) for field, value in values]
    return tuple(address for address in found if address is not None)


def _service_cidr(reader: Reader) -> ServiceCIDR:
    return ServiceCIDR(ref=reader.ref, networks=reader.networks("spec.cidrs"))


# --- who announces ---------------------------------------------------------------------------------------------------


def _l2_status(reader: Reader) -> Announcement | None:
    return _status(reader, AnnouncedBy.L2_STATUS)


def _bgp_status(reader: Reader) -> Announcement | None:
    return _status(reader, AnnouncedBy.BGP_STATUS)


def _status(reader: Reader, source: AnnouncedBy) -> Announcement | None:
    """MetalLB makes the object first, and writes the node into it then."""
    if reader.value("status.node") in (None, ""):
        return None
    labels = reader.mapping("metadata.labels")
    service = _service_key(
        labels.get("metallb.io/service-namespace"),
        labels.get("metallb.io/service-name"),
        "metadata.labels[metallb.io/service-namespace], [metallb.io/service-name]",
    )
    node = _announcing_node(reader.value("status.node"), "status.node")
    since = reader.timestamp("metadata.creationTimestamp")
    return Announcement(ref=reader.ref, source=source, service=service, node=node, since=since)


def _service_key(namespace: object, name: object, field: str) -> tuple[str, str]:
    if isinstance(namespace, str) and is_namespace(namespace) and isinstance(name, str) and is_name(name):
        return namespace, name
    raise UnusableError(f"{field}: {show(namespace)}, {show(name)} are not the namespace and the name of a Service")


def _announcing_node(value: object, field: str) -> NodeName:
    if isinstance(value, str) and is_name(value):
        return NodeName(value)
    raise UnusableError(f"{field}: {show(value)} is not {NAME_SYNTAX}")


def _event(reader: Reader) -> Announcement | None:
    """A `nodeAssigned` event about a Service, of the v1 or the events.k8s.io/v1 form; other events give nothing."""
    if reader.value("reason") != "nodeAssigned":
        return None
    new_form = reader.value("regarding") is not None
    about, message = ("regarding", "note") if new_form else ("involvedObject", "message")
    if reader.value(f"{about}.kind") != "Service":
        return None
    text = reader.value(message)
    match = _NODE_ASSIGNED.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise UnusableError(f"{message}: {show(text)} does not tell a node as MetalLB does")
    if match["protocol"] not in (None, "layer2"):
        return None
    return Announcement(
        ref=reader.ref,
        source=AnnouncedBy.EVENTS,
        service=_service_key(reader.value(f"{about}.namespace"), reader.value(f"{about}.name"), about),
        node=_announcing_node(match["node"], message),
        since=_last_seen(reader),
    )


def _last_seen(reader: Reader) -> str:
    paths = (
        "series.lastObservedTime",
        "lastTimestamp",
        "deprecatedLastTimestamp",
        "eventTime",
        "metadata.creationTimestamp",
    )
    return max(timestamp_of(reader.value(path), "microseconds") or "" for path in paths)


# --- MetalLB's pools and peers ---------------------------------------------------------------------------------------


def _old_configuration(raw: Mapping[str, object]) -> Parsed:
    """The text of MetalLB's ConfigMap before 0.13; its entries are not objects, so pools get the kind AddressPool and
    peers, which have no name, are counted."""
    top = Reader(raw, ObjectRef(kind="MetalLB", name="configuration"))
    if raw.keys().isdisjoint(_USED_KEYS):
        reason = "has neither peers nor address-pools; nothing else in it is used"
        return Parsed(rejections=(Rejection(ref=top.ref, reason=reason, harmless=True),))
    parts = []
    for index, (_, entry) in enumerate(top.entries("peers")):
        reader = Reader(entry, ObjectRef(kind="BGPPeer", name=f"peers[{index}]"))
        parts.append(_read(pools.old_peer, reader))
    for field, entry in top.entries("address-pools"):
        name = entry.get("name")
        if isinstance(name, str) and _OLD_NAME.fullmatch(name):
            parts.append(_read(pools.old_pool, Reader(entry, ObjectRef(kind="AddressPool", name=name))))
        else:
            top.reject(f"{field}.name", name, "the name of an address pool")
    return merge([*parts, Parsed(rejections=top.rejections)])


# --- the kinds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Of which API groups a kind is ours, and how it is read; other projects have a Service and a Node too."""

    groups: tuple[str, ...]
    read: Callable[[Reader], ClusterObject | None]
    namespaced: bool = True


_KINDS: Final[Mapping[str, _Kind]] = {
    "Service": _Kind(groups=("",), read=service),
    "EndpointSlice": _Kind(groups=("discovery.k8s.io",), read=_endpoint_slice),
    "Node": _Kind(groups=("",), read=_node, namespaced=False),
    "Pod": _Kind(groups=("",), read=_pod),
    "ServiceCIDR": _Kind(groups=("networking.k8s.io",), read=_service_cidr, namespaced=False),
    "Event": _Kind(groups=("", "events.k8s.io"), read=_event),
    "ServiceL2Status": _Kind(groups=("metallb.io",), read=_l2_status),
    "ServiceBGPStatus": _Kind(groups=("metallb.io",), read=_bgp_status),
    "IPAddressPool": _Kind(groups=("metallb.io",), read=pools.pool),
    "BGPAdvertisement": _Kind(groups=("metallb.io",), read=pools.advertisement),
    "L2Advertisement": _Kind(groups=("metallb.io",), read=pools.advertisement),
    "BGPPeer": _Kind(groups=("metallb.io",), read=pools.peer),
}

# What people still have, by kind and API group, and what is read in its place.
_INSTEAD: Final[Mapping[tuple[str, str], str]] = {
    ("AddressPool", "metallb.io"): "is MetalLB's form before 0.13.2 and not read; make it an IPAddressPool, with an "
    "L2Advertisement or BGPAdvertisement (https://metallb.io/configuration/migration_to_crds/)",
    ("Endpoints", ""): "is not read; the Service's EndpointSlices are (kubectl get endpointslices)",
}

# Whatever is read of any of these kinds, wherever it stands; keys of labels and annotations are no fields.
_READ_WORDS: Final = """
apiVersion kind metadata name namespace uid labels annotations creationTimestamp deletionTimestamp spec status
type selector clusterIPs clusterIP externalIPs ports port protocol loadBalancer ingress ip ipMode hostname
externalTrafficPolicy loadBalancerSourceRanges
addressType endpoints addresses nodeName targetRef ready serving terminating
address podCIDRs podCIDR conditions hostNetwork phase podIPs podIP cidrs
node reason regarding involvedObject note message
series lastObservedTime lastTimestamp deprecatedLastTimestamp eventTime
ipAddressPools ipAddressPoolSelectors peers nodeSelectors matchLabels matchExpressions key operator values
peerAddress vrf
data config
"""
_READ_KEYS: Final = frozenset(_READ_WORDS.split())
