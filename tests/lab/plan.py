"""What kinds of cluster the tests' lab imitates. Pure values: nothing here touches the kernel."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.plan import LabNode

TUNNEL_MTU = 1450
VXLAN_DEVICE = "flannel.1"
IPIP_DEVICES: dict[Family, str] = {4: "ipip-all", 6: "ip6-all"}
PER_NODE: dict[int, dict[Family, str]] = {
    3: {4: "ipip", 6: "ip6tnl"},
    4: dict.fromkeys(FAMILIES, "gre"),
    5: {4: "ipip", 6: "sit"},
}
"""The kinds of tunnels between two nodes, by the sum of their numbers."""


class PodTransport(enum.StrEnum):
    """How packets between pods of different nodes travel."""

    HOST_GW = "host-gw"
    VXLAN = "vxlan"
    IPIP = "ipip"
    """One device for all nodes; IPv6 by ip6tnl."""
    PER_NODE = "per-node"
    """A device for each other node."""


class Attachment(enum.StrEnum):
    """How a pod is connected to its node."""

    BRIDGE = "bridge"
    ROUTED = "routed"


class Flavour(enum.StrEnum):
    """What the stand-ins for the CNI's masquerade and for kube-proxy write their rules with."""

    IPTABLES_NFT = "iptables-nft"
    IPTABLES_LEGACY = "iptables-legacy"
    NFT = "nft"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabOptions:
    """What kind of cluster the lab imitates; `rp_filter` is set on all interfaces of the nodes. The nodes in `apart`
    each have a network of their own: all that they send to other nodes goes by the router. `wide`: pods believe in the
    MTU of a plain link, whatever the way between the nodes takes."""

    transport: PodTransport = PodTransport.HOST_GW
    attachment: Attachment = Attachment.BRIDGE
    flavour: Flavour = Flavour.IPTABLES_NFT
    masquerade: bool = True
    rp_filter: int = 0
    forward_drop: bool = False
    apart: tuple[LabNode, ...] = ()
    wide: bool = False


def vxlan_mac(node: LabNode) -> str:
    return f"02:00:0a:f4:{node.number:02x}:00"
