"""The guard for pods of other nodes that this node does not know (yet)."""

from __future__ import annotations

from dataclasses import dataclass

from metaleg_node.core.firewall.part import Part, collection
from metaleg_node.core.model import Address, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Transit(Part):
    """What comes in by `node_interfaces` out of `pod_networks` is another node's pod: it must not leave with one of
    this node's own `node_addresses`, nor as it came."""

    pod_networks: frozenset[Network] = collection("pod networks")
    node_interfaces: frozenset[str] = collection("node interfaces")
    node_addresses: frozenset[Address] = collection("own addresses")
