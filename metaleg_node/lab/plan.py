"""Which machines, addresses and names a lab has. Pure values: nothing here touches the kernel.

Outside networks are the ones set aside for documentation (RFC 5737, RFC 3849), inside ones are private.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from metaleg_node.core.model import FAMILIES, Address, Family, Network

NODE_NETWORK: dict[Family, Network] = {4: ip_network("192.168.10.0/24"), 6: ip_network("fd00:10::/64")}
POD_NETWORK: dict[Family, Network] = {4: ip_network("10.244.0.0/16"), 6: ip_network("fd00:244::/48")}
SERVICE_NETWORK: dict[Family, Network] = {4: ip_network("10.96.0.0/16"), 6: ip_network("fd00:96::/112")}
OUTSIDE_NETWORK: dict[Family, Network] = {4: ip_network("198.51.100.0/24"), 6: ip_network("2001:db8:51::/64")}
POOL: dict[Family, Address] = {4: ip_address("192.0.2.200"), 6: ip_address("2001:db8:2::200")}
"""The first LoadBalancer address."""
ROUTER_LAN: dict[Family, Address] = {f: NODE_NETWORK[f][1] for f in FAMILIES}
ROUTER_OUTSIDE: dict[Family, Address] = {f: OUTSIDE_NETWORK[f][1] for f in FAMILIES}
SERVER: dict[Family, Address] = {4: ip_address("198.51.100.10"), 6: ip_address("2001:db8:51::10")}
SERVER_PORT = 8080
"""Where the server outside and every pod answer, TCP and UDP."""
SERVICE_PORT = 80
PODS_PER_NODE = 2


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LabNode:
    """A node: `number` 1-3."""

    number: int

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def addresses(self) -> dict[Family, Address]:
        return {4: NODE_NETWORK[4][10 + self.number], 6: ip_address(f"fd00:10::{10 + self.number}")}

    @property
    def pod_networks(self) -> dict[Family, Network]:
        return {4: ip_network(f"10.244.{self.number}.0/24"), 6: ip_network(f"fd00:244:0:{self.number}::/64")}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LabPod:
    """A pod: the `number`th (from 1) of its node."""

    node: LabNode
    number: int

    @property
    def name(self) -> str:
        return f"pod{self.node.number}-{self.number}"

    @property
    def addresses(self) -> dict[Family, Address]:
        return {f: self.node.pod_networks[f][1 + self.number] for f in FAMILIES}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabService:
    """A Service of type LoadBalancer; `number` (from 0) chooses its addresses. `local` is externalTrafficPolicy: Local.

    `labelled` tells whether it asks for egress, `gateway` names the node that announces it (None: nobody does).
    Clients outside `source_ranges` (loadBalancerSourceRanges) are turned away; empty: nobody is.
    """

    name: str
    number: int
    pods: tuple[LabPod, ...]
    gateway: LabNode | None
    labelled: bool = True
    local: bool = False
    families: tuple[Family, ...] = FAMILIES
    annotations: dict[str, str] = field(default_factory=dict)
    source_ranges: dict[Family, Network] = field(default_factory=dict)

    @property
    def addresses(self) -> dict[Family, Address]:
        return {f: POOL[f] + self.number for f in self.families}

    @property
    def cluster_ips(self) -> dict[Family, Address]:
        return {f: SERVICE_NETWORK[f][100 + self.number] for f in self.families}

    @property
    def node_port(self) -> int:
        return 30080 + self.number


NODES = tuple(LabNode(number=number) for number in (1, 2, 3))
