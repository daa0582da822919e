"""The way from this node to a gateway: straight to it where it is a neighbour, else the one that already leads to the
pods of that node (egress.transport).

What the CNI set up for pods is used as it is: the next hop and the device of the route to the gateway node's pod
network become those of the gateway's table. That is right where whatever is handed to that next hop, or to that device,
arrives at the gateway, whatever destination it has. A tunnel that ends there does so; a router that stands between
would send it on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from metaleg_node.configuration.config import Transport
from metaleg_node.core.egress.requests import Obstacle
from metaleg_node.core.model import Address, Family, Host, NextHop, Node
from metaleg_node.core.problems import Code

_TUNNELS = frozenset({"vxlan", "geneve"})
"""Tunnels whose next hops are addresses in them (ip-link(8), as all kinds)."""
_IP_TUNNELS: Mapping[str, frozenset[Family]] = {
    "ipip": frozenset({4}),
    "sit": frozenset({6}),
    "ip6tnl": frozenset({6}),
    "gre": frozenset({4, 6}),
    "ip6gre": frozenset(),
}
"""Tunnels of IP, and of which family they are sure to carry packets; GRE over IPv6 was never tried."""
_MANY_ENDED = frozenset({"ipip", "ip6tnl"})
"""Those that send to the next hop where they have no other end of their own. With some destinations SIT does not
(2002::/16, RFC 3056), and GRE asks the neighbour table."""
_WIREGUARD = "wireguard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A next hop that leads to the gateway. `device` says what tunnel that is for people, empty for none; `why` why it
    is this one."""

    hop: NextHop
    transport: Transport
    device: str = ""
    why: str

    def __str__(self) -> str:
        if self.transport == "direct":
            return f"directly, as it is {self.why}"
        return f"by the way to its pods ({self.device or self.hop.interface}), as {self.why}"


def pod_addresses(node: Node) -> Iterator[Address]:
    """One address in each of a node's pod networks: the way to it is the way to the node's pods. The first is the
    network's own, which tunnels may have for themselves."""
    return (net[min(1, net.num_addresses - 1)] for net in node.pod_cidrs)


def find(node: Node, family: Family, host: Host, transport: Transport) -> Way | Obstacle:
    """The way to a gateway that is another node."""
    near = _neighbour(node, family, host)
    if transport == "direct" or (transport == "auto" and isinstance(near, Way)):
        return near
    carried = _pod_network(node, family, host)
    if isinstance(carried, str):
        if isinstance(near, Obstacle) and transport == "auto":
            return Obstacle(code=near.code, detail=f"{near.detail}, and the pod network does not lead to it: {carried}")
        detail = f"the pod network does not lead to gateway {node.name}: {carried}"
        return Obstacle(code=Code.NO_POD_NETWORK, detail=detail)
    hop, device = carried
    why = near.detail if isinstance(near, Obstacle) and transport == "auto" else "egress.transport asks for it"
    return Way(hop=hop, transport="pod-network", device=device, why=why)


def _neighbour(node: Node, family: Family, host: Host) -> Way | Obstacle:
    candidates = [a for a in node.internal_ips if a.version == family]
    if not candidates:
        return Obstacle(code=Code.NO_INTERNAL_IP, detail=f"gateway {node.name} has no IPv{family} InternalIP")
    for address in candidates:
        if address in host.on_link:
            hop = NextHop(gateway=address, interface=host.interfaces[address])
            return Way(hop=hop, transport="direct", why="a neighbour")
    address = candidates[0]
    if address in host.interfaces:
        return Obstacle(code=Code.OFF_LINK, detail=f"gateway {node.name} ({address}) is behind a router")
    return Obstacle(code=Code.NO_ROUTE, detail=f"this node has no route to gateway {node.name} ({address})")


def _pod_network(node: Node, family: Family, host: Host) -> tuple[NextHop, str] | str:
    """The next hop and the device in words, or why the way to the node's pods is none for other destinations."""
    refusals = []
    for address in pod_addresses(node):
        if address.version == family:
            found = _carrying(address, node, host)
            if not isinstance(found, str):
                return found
            refusals.append(found)
    return refusals[0] if refusals else f"its Node object has no IPv{family} podCIDRs"


def _carrying(address: Address, node: Node, host: Host) -> tuple[NextHop, str] | str:
    device, gateway = host.interfaces.get(address, ""), host.gateways.get(address)
    if not device:
        return f"this node has no route to its pods ({address})"
    kind = host.kinds.get(device, "")
    if refusal := _for_pods_alone(address, host):
        return refusal
    if kind in _IP_TUNNELS:
        return _tunnelled(address, node, host, kind)
    if gateway is None:
        return f"the route to its pods ({address} dev {device}) has no next hop of IPv{address.version}"
    if kind not in _TUNNELS and gateway not in {*node.addresses, *node.internal_ips}:
        return (
            f"the next hop to its pods, {gateway} dev {device}, is neither in a VXLAN or Geneve device nor on that node"
        )
    return NextHop(gateway=gateway, interface=device, onlink=True), f"{device}, {kind}" if kind else ""


def _for_pods_alone(address: Address, host: Host) -> str:
    """Why this way takes packets to pods and to nothing else; empty where it does not."""
    device = host.interfaces[address]
    if address in host.encapsulated:
        return f"the route to its pods ({address} dev {device}) has its own encapsulation (encap), for these alone"
    if host.kinds.get(device) == _WIREGUARD:
        return f"{device} is a WireGuard device, whose peers take nothing from outside (allowed-ips)"
    return ""


def _tunnelled(address: Address, node: Node, host: Host, kind: str) -> tuple[NextHop, str] | str:
    """By a tunnel of IP: to its other end, or where it has several to the next hop. Either must be that node."""
    device, family = host.interfaces[address], address.version
    own = {*node.addresses, *node.internal_ips}
    remote, gateway = host.remotes.get(device), host.gateways.get(address)
    if family not in _IP_TUNNELS[kind]:
        return f"{device} ({kind}) is not sure to carry IPv{family}"
    if remote is None and kind not in _MANY_ENDED:
        return f"{device} ({kind}) has no other end of its own"
    if remote is None and gateway not in own:
        return f"the next hop to its pods in {device} ({kind}), {gateway or 'none'}, is no address of that node"
    if remote and remote not in own:
        return f"the other end of {device} ({kind}) is {remote}, which is no address of that node"
    if remote and device in host.unnameable:
        return f"the packet filter cannot name {device}"
    hop = NextHop(gateway=None if remote else gateway, interface=device, onlink=not remote)
    return hop, f"{device}, {kind}"
