"""The links, addresses and routes of the lab, as commands of ip(8). Pure text.

All nodes and the router hang on one switch, a bridge in a namespace of its own:

    outside -- router -- switch -- node1, node2, node3 -- pods
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from metaleg_node.core.model import FAMILIES, Address, Family, Network
from metaleg_node.lab.plan import (
    HOST_MTU,
    NODE_NETWORK,
    NODES,
    OUTSIDE_NETWORK,
    ROUTER_LAN,
    ROUTER_OUTSIDE,
    SERVER,
    VXLAN_DEVICE,
    VXLAN_MTU,
    Attachment,
    LabNode,
    LabOptions,
    LabPod,
    PodTransport,
)

Naming = Callable[[str], str]
"""From the short name of a machine to the name of its namespace."""

DEFAULT_ROUTE: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}
ROUTED_GATEWAY: dict[Family, str] = {4: "169.254.1.1", 6: "fe80::1"}
"""What pods attached by a routed veth pair have as their gateway; every node's end has the same."""


def machine_sysctls(rp_filter: int, *, forwarding: bool) -> Mapping[str, int | str]:
    """What every machine needs before its interfaces exist; they inherit `default`.

    No duplicate address detection and no router solicitation: addresses work at once.
    """
    return {
        "ipv4/conf/all/rp_filter": rp_filter,
        "ipv4/conf/default/rp_filter": rp_filter,
        "ipv6/conf/all/accept_dad": 0,
        "ipv6/conf/default/accept_dad": 0,
        "ipv6/conf/default/router_solicitations": 0,
        "ipv6/conf/default/accept_ra": 0,
        "ipv4/conf/all/forwarding": int(forwarding),
        "ipv6/conf/all/forwarding": int(forwarding),
        "ipv4/ping_group_range": "0 2147483647",
    }


def switch_port(machine: str) -> str:
    """The interface of the switch that a machine is plugged into."""
    return f"to-{machine}"


def switch(naming: Naming) -> Iterator[str]:
    yield "link add br0 up type bridge mcast_snooping 0 forward_delay 0"
    for machine in ("router", *(node.name for node in NODES)):
        port = switch_port(machine)
        yield f"link add {port} up master br0 type veth peer name eth0 netns {naming(machine)}"


def router(naming: Naming) -> Iterator[str]:
    yield f"link add wan type veth peer name eth0 netns {naming('outside')}"
    yield "link set wan up"
    yield "link set eth0 up"
    for f in FAMILIES:
        yield _add_address(ROUTER_LAN[f], NODE_NETWORK[f], "eth0")
        yield _add_address(ROUTER_OUTSIDE[f], OUTSIDE_NETWORK[f], "wan")


def outside() -> Iterator[str]:
    yield "link set eth0 up"
    for f in FAMILIES:
        yield _add_address(SERVER[f], OUTSIDE_NETWORK[f], "eth0")
        yield f"route add {DEFAULT_ROUTE[f]} via {ROUTER_OUTSIDE[f]}"


def node(me: LabNode, pods: tuple[LabPod, ...], options: LabOptions, naming: Naming) -> Iterator[str]:
    """A node with its end of its pods' links; the pods' own ends come from `pod`."""
    yield "link set eth0 up"
    for f in FAMILIES:
        yield _add_address(me.addresses[f], NODE_NETWORK[f], "eth0")
        yield f"route add {DEFAULT_ROUTE[f]} via {ROUTER_LAN[f]}"
    if options.attachment is Attachment.BRIDGE:
        yield f"link add cni0 mtu {pod_mtu(options)} up type bridge mcast_snooping 0 forward_delay 0"
        for f in FAMILIES:
            yield _add_address(me.pod_networks[f][1], me.pod_networks[f], "cni0")
    for pod in pods:
        yield from attach(pod, options, naming)
    yield from _host_gateways(me) if options.transport is PodTransport.HOST_GW else _overlay(me)


def attach(pod: LabPod, options: LabOptions, naming: Naming) -> Iterator[str]:
    """The node's end of a pod's link."""
    end, master = f"veth{pod.number}", " master cni0" if options.attachment is Attachment.BRIDGE else ""
    peer = f"peer name eth0 mtu {pod_mtu(options)} netns {naming(pod.name)}"
    yield f"link add {end} mtu {pod_mtu(options)} up{master} type veth {peer}"
    if master:
        # A pod may be the backend of a Service it calls: then its packets return by the port they came from.
        yield f"link set {end} type bridge_slave hairpin on"
    if options.attachment is Attachment.ROUTED:
        yield f"address add {ROUTED_GATEWAY[4]}/32 dev {end} scope link"
        yield f"address add {ROUTED_GATEWAY[6]}/64 dev {end} nodad"
        yield from (f"route add {pod.addresses[f]} dev {end}" for f in FAMILIES)


def pod(me: LabPod, options: LabOptions) -> Iterator[str]:
    yield "link set eth0 up"
    for f in FAMILIES:
        network = me.node.pod_networks[f]
        if options.attachment is Attachment.BRIDGE:
            yield _add_address(me.addresses[f], network, "eth0")
            yield f"route add {DEFAULT_ROUTE[f]} via {network[1]}"
        else:
            yield f"address add {me.addresses[f]} dev eth0{' nodad' if f == 6 else ''}"
            yield f"route add {DEFAULT_ROUTE[f]} via {ROUTED_GATEWAY[f]} dev eth0 onlink"


def forwarding_entries(me: LabNode) -> Iterator[str]:
    """Commands of bridge(8): behind which node each VXLAN address is (the overlay learns nothing by itself)."""
    for peer in _peers(me):
        yield f"fdb append {peer.vxlan_mac} dev {VXLAN_DEVICE} dst {peer.addresses[4]}"


def pod_mtu(options: LabOptions) -> int:
    return VXLAN_MTU if options.transport is PodTransport.VXLAN else HOST_MTU


def _add_address(address: Address, network: Network, device: str) -> str:
    return f"address add {address}/{network.prefixlen} dev {device}{' nodad' if address.version == 6 else ''}"


def _peers(me: LabNode) -> tuple[LabNode, ...]:
    return tuple(node for node in NODES if node != me)


def _host_gateways(me: LabNode) -> Iterator[str]:
    for peer in _peers(me):
        yield from (f"route add {peer.pod_networks[f]} via {peer.addresses[f]}" for f in FAMILIES)


def _overlay(me: LabNode) -> Iterator[str]:
    """As flannel lays it out: each node's VXLAN end has its pod network's first address, neighbours are permanent."""
    device = f"{VXLAN_DEVICE} address {me.vxlan_mac} mtu {VXLAN_MTU}"
    yield f"link add {device} up type vxlan id 1 dstport 8472 nolearning local {me.addresses[4]} dev eth0"
    yield f"address add {me.pod_networks[4].network_address}/32 dev {VXLAN_DEVICE}"
    for peer in _peers(me):
        for f in FAMILIES:
            first = peer.pod_networks[f].network_address
            yield f"neighbour add {first} lladdr {peer.vxlan_mac} dev {VXLAN_DEVICE} nud permanent"
            yield f"route add {peer.pod_networks[f]} via {first} dev {VXLAN_DEVICE} onlink"
