"""Turns the model back into Kubernetes objects: what `manifests` reads, and no more than that.

For the last known state, which is a state file like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from metaleg_node.core.model import (
    Address,
    AddressPool,
    Advertisement,
    AnnouncedBy,
    Announcement,
    BGPPeer,
    ClusterState,
    Endpoint,
    EndpointSlice,
    LabelRequirement,
    LabelSelector,
    Node,
    ObjectRef,
    Pod,
    Service,
    ServiceCIDR,
    ServicePort,
)

Raw = dict[str, Any]


def objects(state: ClusterState, configmap: tuple[str, str]) -> Iterator[Raw]:
    """The objects of a state, each as a mapping that JSON can hold; rejections are no objects.

    What was in MetalLB's old configuration becomes a ConfigMap of this namespace and name. Its peers have no names:
    they are counted again, and what was left out between them leaves no gap.
    """
    for one in (*state.services, *state.endpoint_slices, *state.nodes, *state.pods, *state.service_cidrs):
        yield _WRITERS[type(one)](one)
    for announcement in state.announcements:
        yield _event(announcement) if announcement.source is AnnouncedBy.EVENTS else _status(announcement)
    old_pools = [pool for pool in state.pools if pool.protocol]
    old_peers = [peer for peer in state.peers if not peer.ref.namespace]
    yield from (_pool(pool) for pool in state.pools if not pool.protocol)
    yield from map(_advertisement, state.advertisements)
    yield from (_peer(peer) for peer in state.peers if peer.ref.namespace)
    if old_pools or old_peers:
        yield _old_configuration(configmap, old_pools, old_peers)


def _service(one: Service) -> Raw:
    made = _object("v1", one.ref, labels=one.labels, annotations=one.annotations, created=one.created)
    made["spec"] = {
        "type": one.type,
        "clusterIPs": _texts(one.cluster_ips),
        "externalIPs": _texts(one.external_ips),
        "ports": _ports(one.ports),
    }
    made["status"] = {"loadBalancer": {"ingress": [{"ip": str(address)} for address in one.ingress]}}
    return made


def _endpoint_slice(one: EndpointSlice) -> Raw:
    labels = {"kubernetes.io/service-name": one.service}
    if one.controlled:
        labels["endpointslice.kubernetes.io/managed-by"] = "endpointslice-controller.k8s.io"
    family = next((address.version for endpoint in one.endpoints for address in endpoint.addresses), 4)
    made = _object("discovery.k8s.io/v1", one.ref, labels=labels)
    endpoints = [_endpoint(endpoint) for endpoint in one.endpoints]
    return made | {"addressType": f"IPv{family}", "endpoints": endpoints, "ports": _ports(one.ports)}


def _ports(ports: Iterable[ServicePort]) -> list[Raw]:
    return [{"protocol": port.protocol, "port": port.port} for port in ports]


def _endpoint(one: Endpoint) -> Raw:
    made: Raw = {"addresses": _texts(one.addresses)}
    if one.node:
        made["nodeName"] = one.node
    if one.target:
        made["targetRef"] = {"kind": one.target.kind, "namespace": one.target.namespace, "name": one.target.name}
    return made


def _node(one: Node) -> Raw:
    addresses = [{"type": "InternalIP", "address": str(address)} for address in one.internal_ips]
    others = (address for address in one.addresses if address not in one.internal_ips)
    addresses += [{"type": "ExternalIP", "address": str(address)} for address in others]
    made = _object("v1", one.ref, labels=one.labels)
    made["spec"] = {"podCIDRs": _texts(one.pod_cidrs)}
    made["status"] = {"addresses": addresses, "conditions": [{"type": "Ready", "status": str(one.ready)}]}
    return made


def _pod(one: Pod) -> Raw:
    made = _object("v1", one.ref)
    made["spec"] = {"hostNetwork": one.host_network, **({"nodeName": one.node} if one.node else {})}
    return made | {"status": {"podIPs": [{"ip": str(address)} for address in one.addresses]}}


def _service_cidr(one: ServiceCIDR) -> Raw:
    return _object("networking.k8s.io/v1", one.ref) | {"spec": {"cidrs": _texts(one.networks)}}


def _status(one: Announcement) -> Raw:
    namespace, name = one.service
    labels = {"metallb.io/service-namespace": namespace, "metallb.io/service-name": name}
    return _object("metallb.io/v1beta1", one.ref, labels=labels, created=one.since) | {"status": {"node": one.node}}


def _event(one: Announcement) -> Raw:
    namespace, name = one.service
    return _object("v1", one.ref) | {
        "involvedObject": {"kind": "Service", "namespace": namespace, "name": name},
        "reason": "nodeAssigned",
        "message": f'announcing from node "{one.node}"',
        **({"lastTimestamp": one.since} if one.since else {}),
    }


# --- MetalLB's pools and peers ---------------------------------------------------------------------------------------


def _pool(one: AddressPool) -> Raw:
    made = _object("metallb.io/v1beta1", one.ref, labels=one.labels)
    return made | {"spec": {"addresses": _ranges(one)}}


def _advertisement(one: Advertisement) -> Raw:
    spec = {
        "ipAddressPools": list(one.pools),
        "ipAddressPoolSelectors": [_selector(selector) for selector in one.pool_selectors],
        "nodeSelectors": [_selector(selector) for selector in one.node_selectors],
    }
    return _object("metallb.io/v1beta1", one.ref) | {"spec": {key: value for key, value in spec.items() if value}}


def _peer(one: BGPPeer) -> Raw:
    made = _object("metallb.io/v1beta2", one.ref, labels=one.labels)
    selectors = [_selector(selector) for selector in one.node_selectors]
    return made | {"spec": {**_peer_address("peerAddress", one.address), "nodeSelectors": selectors}}


def _old_configuration(configmap: tuple[str, str], pools: Iterable[AddressPool], peers: Iterable[BGPPeer]) -> Raw:
    """A ConfigMap as MetalLB before 0.13 has it; its text is JSON, which is YAML too."""
    text = {
        "peers": [_old_peer(peer) for peer in peers],
        "address-pools": [
            {"name": pool.ref.name, "protocol": pool.protocol, "addresses": _ranges(pool)} for pool in pools
        ],
    }
    namespace, name = configmap
    made = _object("v1", ObjectRef(kind="ConfigMap", namespace=namespace, name=name))
    return made | {"data": {"config": json.dumps(text)}}


def _old_peer(one: BGPPeer) -> Raw:
    selectors = [_selector(selector, "match-expressions") for selector in one.node_selectors]
    return {**_peer_address("peer-address", one.address), "node-selectors": selectors}


def _peer_address(key: str, address: Address | None) -> Raw:
    return {key: str(address)} if address else {}


def _selector(one: LabelSelector, key: str = "matchExpressions") -> Raw:
    return {key: [_requirement(requirement) for requirement in one]}


def _requirement(one: LabelRequirement) -> Raw:
    return {"key": one.key, "operator": one.operator, **({"values": list(one.values)} if one.values else {})}


def _ranges(one: AddressPool) -> list[str]:
    return [f"{first}-{last}" for first, last in one.ranges]


# --- what all have in common -----------------------------------------------------------------------------------------


_WRITERS: Final[Mapping[type, Callable[[Any], Raw]]] = {
    Service: _service,
    EndpointSlice: _endpoint_slice,
    Node: _node,
    Pod: _pod,
    ServiceCIDR: _service_cidr,
}


def _object(
    version: str,
    ref: ObjectRef,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    created: str = "",
) -> Raw:
    metadata: Raw = {"name": ref.name}
    optional = {"namespace": ref.namespace, "labels": labels, "annotations": annotations, "creationTimestamp": created}
    metadata.update({key: value for key, value in optional.items() if value})
    return {"apiVersion": version, "kind": ref.kind, "metadata": metadata}


def _texts(values: tuple[object, ...]) -> list[str]:
    return [str(value) for value in values]
