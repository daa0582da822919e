"""Answers to egress pods that come to a node which knows nothing of the connection.

They are dropped on every node from the beginning, since the first of them may come before the new gateway knows that it
is one: an entry made of such an answer would take the port that the connection needs, and only a look through all
connections would find it. Where the node has the address itself, as kube-proxy's IPVS mode gives every node all Service
addresses, the kernel would answer a packet in the middle of a TCP connection with a reset, and the server give up.
"""

from __future__ import annotations

from dataclasses import dataclass

from metaleg_node.core.firewall.part import Part, collection
from metaleg_node.core.model import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAnswers(Part):
    """What comes to `addresses` and belongs to no connection is dropped, unless it begins one by TCP or somebody
    translated its destination. At an address of this host only TCP is, and not for one of the ports `entrances`: those
    are the Services' own, and its client is better told at once."""

    addresses: frozenset[Address] = collection("addresses that answers come to")
    entrances: frozenset[int] = collection("ports of the Services at their addresses")
