"""The links, addresses and routes of the lab, as commands of ip(8). Pure text.

All nodes and the router hang on one switch, a bridge in a namespace of its own:

    outside -- router -- switch -- node1, node2, node3 -- pods
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from metaleg_node.core.model import FAMILIES, Address, Family, Network
from metaleg_node.lab.plan import (
    NODE_NETWORK,
    NODES,
    OUTSIDE_NETWORK,
    ROUTER_LAN,
    ROUTER_OUTSIDE,
    SERVER,
    LabNode,
    LabPod,
)

Naming = Callable[[str], str]
"""From the short name of a machine to the name of its namespace."""

DEFAULT_ROUTE: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}


def machine_sysctls(*, forwarding: bool) -> Mapping[str, int | str]:
    """What every machine needs before its interfaces exist; they inherit `default`.

    No duplicate address detection and no router solicitation: addresses work at once.
    """
    return {
        "ipv4/conf/all/rp_filter": 0,
        "ipv4/conf/default/rp_filter": 0,
        "ipv6/conf/all/accept_dad": 0,
        "ipv6/conf/default/accept_dad": 0,
        "ipv6/conf/default/router_solicitations": 0,
        "ipv6/conf/default/accept_ra": 0,
        "ipv4/conf/all/forwarding": int(forwarding),
        "ipv6/conf/all/forwarding": int(forwarding),
    }


def switch(naming: Naming) -> Iterator[str]:
    yield "link add br0 up type bridge mcast_snooping 0 forward_delay 0"
    for machine in ("router", *(node.name for node in NODES)):
        yield f"link add to-{machine} up master br0 type veth peer name eth0 netns {naming(machine)}"


def router(naming: Naming) -> Iterator[str]:
    yield f"link add wan type veth peer name eth0 netns {naming('outside')}"
    yield "link set wan up"
    yield "link set eth0 up"
    for f in FAMILIES:
        yield add_address(ROUTER_LAN[f], NODE_NETWORK[f], "eth0")
        yield add_address(ROUTER_OUTSIDE[f], OUTSIDE_NETWORK[f], "wan")


def outside() -> Iterator[str]:
    yield "link set eth0 up"
    for f in FAMILIES:
        yield add_address(SERVER[f], OUTSIDE_NETWORK[f], "eth0")
        yield f"route add {DEFAULT_ROUTE[f]} via {ROUTER_OUTSIDE[f]}"


def uplink(me: LabNode) -> Iterator[str]:
    """A node's way to the router."""
    yield "link set eth0 up"
    for f in FAMILIES:
        yield add_address(me.addresses[f], NODE_NETWORK[f], "eth0")
        yield f"route add {DEFAULT_ROUTE[f]} via {ROUTER_LAN[f]}"


def pod_bridge(me: LabNode, pods: Iterable[LabPod], naming: Naming) -> Iterator[str]:
    """A node's bridge and its ends of its pods' links; the pods' own ends come from `pod`."""
    yield "link add cni0 up type bridge mcast_snooping 0 forward_delay 0"
    for f in FAMILIES:
        yield add_address(me.pod_networks[f][1], me.pod_networks[f], "cni0")
    for pod in pods:
        end = f"veth{pod.number}"
        yield f"link add {end} up master cni0 type veth peer name eth0 netns {naming(pod.name)}"
        # A pod may be the backend of a Service it calls: then its packets return by the port they came from.
        yield f"link set {end} type bridge_slave hairpin on"


def pod_routes(me: LabNode) -> Iterator[str]:
    """A node's ways to the pods of the other nodes."""
    for peer in NODES:
        if peer != me:
            yield from (f"route add {peer.pod_networks[f]} via {peer.addresses[f]}" for f in FAMILIES)


def pod(me: LabPod) -> Iterator[str]:
    yield "link set eth0 up"
    for f in FAMILIES:
        network = me.node.pod_networks[f]
        yield add_address(me.addresses[f], network, "eth0")
        yield f"route add {DEFAULT_ROUTE[f]} via {network[1]}"


def add_address(address: Address, network: Network, device: str) -> str:
    return f"address add {address}/{network.prefixlen} dev {device}{' nodad' if address.version == 6 else ''}"
