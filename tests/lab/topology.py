"""Other ways between the pods of the lab than the demo's, as commands of ip(8). Pure text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab import topology
from metaleg_node.lab.plan import NODES, ROUTER_LAN, LabNode, LabPod
from metaleg_node.lab.topology import DEFAULT_ROUTE, Naming
from tests.lab.plan import (
    IPIP_DEVICES,
    PER_NODE,
    TUNNEL_MTU,
    VXLAN_DEVICE,
    Attachment,
    LabOptions,
    PodTransport,
    vxlan_mac,
)

ROUTED_GATEWAY: dict[Family, str] = {4: "169.254.1.1", 6: "fe80::1"}
"""What pods attached by a routed veth pair have as their gateway; every node's end has the same."""


def machine_sysctls(rp_filter: int, *, forwarding: bool) -> Mapping[str, int | str]:
    """Of the demo's machines, but with this rp_filter, and everybody may ping."""
    return {
        **topology.machine_sysctls(forwarding=forwarding),
        "ipv4/conf/all/rp_filter": rp_filter,
        "ipv4/conf/default/rp_filter": rp_filter,
        "ipv4/ping_group_range": "0 2147483647",
    }


def node(me: LabNode, pods: tuple[LabPod, ...], options: LabOptions, naming: Naming) -> Iterator[str]:
    """A node with its end of its pods' links; the pods' own ends come from `pod`."""
    yield from _apart(me, options) if options.apart else topology.uplink(me)
    if options.attachment is Attachment.BRIDGE:
        yield from topology.pod_bridge(me, pods, naming)
    else:
        for pod in pods:
            yield from _routed_pair(pod, naming)
    if options.transport is PodTransport.HOST_GW:
        yield from topology.pod_routes(me)
        return
    if not options.wide:
        bridge = ["cni0"] if options.attachment is Attachment.BRIDGE else []
        yield from (f"link set {device} mtu {TUNNEL_MTU}" for device in [*(f"veth{p.number}" for p in pods), *bridge])
    yield from _BETWEEN[options.transport](me)


def pod(me: LabPod, options: LabOptions) -> Iterator[str]:
    if options.transport is not PodTransport.HOST_GW and not options.wide:
        yield f"link set eth0 mtu {TUNNEL_MTU}"
    if options.attachment is Attachment.BRIDGE:
        yield from topology.pod(me)
        return
    yield "link set eth0 up"
    for f in FAMILIES:
        yield f"address add {me.addresses[f]} dev eth0{' nodad' if f == 6 else ''}"
        yield f"route add {DEFAULT_ROUTE[f]} via {ROUTED_GATEWAY[f]} dev eth0 onlink"


def forwarding_entries(me: LabNode) -> Iterator[str]:
    """Commands of bridge(8): behind which node each VXLAN address is (the overlay learns nothing by itself)."""
    for peer in _peers(me):
        yield f"fdb append {vxlan_mac(peer)} dev {VXLAN_DEVICE} dst {peer.addresses[4]}"


def _peers(me: LabNode) -> tuple[LabNode, ...]:
    return tuple(node for node in NODES if node != me)


def _routed_pair(pod: LabPod, naming: Naming) -> Iterator[str]:
    end = f"veth{pod.number}"
    yield f"link add {end} up type veth peer name eth0 netns {naming(pod.name)}"
    yield f"address add {ROUTED_GATEWAY[4]}/32 dev {end} scope link"
    yield f"address add {ROUTED_GATEWAY[6]}/64 dev {end} nodad"
    yield from (f"route add {pod.addresses[f]} dev {end}" for f in FAMILIES)


def _overlay(me: LabNode) -> Iterator[str]:
    """As flannel lays it out: each node's VXLAN end has its pod network's first address, neighbours are permanent."""
    device = f"{VXLAN_DEVICE} address {vxlan_mac(me)} mtu {TUNNEL_MTU}"
    yield f"link add {device} up type vxlan id 1 dstport 8472 nolearning local {me.addresses[4]} dev eth0"
    yield f"address add {me.pod_networks[4].network_address}/32 dev {VXLAN_DEVICE}"
    for peer in _peers(me):
        for f in FAMILIES:
            first = peer.pod_networks[f].network_address
            yield f"neighbour add {first} lladdr {vxlan_mac(peer)} dev {VXLAN_DEVICE} nud permanent"
            yield f"route add {peer.pod_networks[f]} via {first} dev {VXLAN_DEVICE} onlink"


def _ipip(me: LabNode) -> Iterator[str]:
    """As Calico and flannel do with IPIP: one device without another end, whose next hops are the nodes' addresses."""
    for f, name in IPIP_DEVICES.items():
        mode = "ipip" if f == 4 else "ip6tnl mode ip6ip6 encaplimit none"
        yield f"link add {name} mtu {TUNNEL_MTU} up type {mode} local {me.addresses[f]} ttl 64"
        for peer in _peers(me):
            yield f"route add {peer.pod_networks[f]} via {peer.addresses[f]} dev {name} onlink"


def _per_node(me: LabNode) -> Iterator[str]:
    """As kube-router lays it out: a device for each other node, and no next hop."""
    for peer in _peers(me):
        for f, kind in PER_NODE[me.number + peer.number].items():
            name = f"{kind}-{peer.name}"
            if f == 4 or kind != PER_NODE[me.number + peer.number][4]:
                yield f"link add {name} mtu {TUNNEL_MTU} up type {tunnel(kind, me, peer)}"
            yield f"route add {peer.pod_networks[f]} dev {name}"


def tunnel(kind: str, me: LabNode, peer: LabNode) -> str:
    """A tunnel of IP to another node, as ip-link(8) wants it."""
    outer: Family = 6 if kind == "ip6tnl" else 4
    mode = "mode ip6ip6 encaplimit none " if kind == "ip6tnl" else ""
    return f"{kind} {mode}local {me.addresses[outer]} remote {peer.addresses[outer]} ttl 64"


_BETWEEN = {PodTransport.VXLAN: _overlay, PodTransport.IPIP: _ipip, PodTransport.PER_NODE: _per_node}


def _apart(me: LabNode, options: LabOptions) -> Iterator[str]:
    """The node's own network holds nobody but the router; or, where others live in it, all but those that are apart."""
    yield "link set eth0 up"
    near = [peer for peer in _peers(me) if me not in options.apart and peer not in options.apart]
    for f in FAMILIES:
        yield f"address add {me.addresses[f]} dev eth0{' nodad' if f == 6 else ''}"
        for neighbour in (ROUTER_LAN[f], *(peer.addresses[f] for peer in near)):
            yield f"route add {neighbour} dev eth0"
        yield f"route add {DEFAULT_ROUTE[f]} via {ROUTER_LAN[f]}"
