"""Answers to egress pods that come to a node which knows nothing of the connection, and has the address itself.

kube-proxy's IPVS mode gives every node all Service addresses. Where a packet in the middle of a TCP connection finds
no connection, the kernel answers it with a reset, and the server gives up: after a failover the new gateway would end
connections that its pod keeps alive with the next packet.
"""

from __future__ import annotations

from dataclasses import dataclass

from metaleg_node.core.firewall.part import Part, collection
from metaleg_node.core.model import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAnswers(Part):
    """TCP to `addresses` that begins no connection and belongs to none is dropped, unless it is for one of the ports
    `entrances`: those are the Services' own, and its client is better told at once."""

    addresses: frozenset[Address] = collection("addresses that answers come to")
    entrances: frozenset[int] = collection("ports of the Services at their addresses")
