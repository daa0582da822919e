"""A check of the reverse path in the packet filter, in place of the kernel's own."""

from __future__ import annotations

from dataclasses import dataclass

from metaleg_node.core.firewall.part import Part, collection
from metaleg_node.core.model import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class ReversePathCheck(Part):
    """On the interfaces `checked` an IPv4 packet is dropped when its source is not reached through the interface,
    unless it goes to one of the networks `spared`."""

    checked: frozenset[str] = collection("reverse path checked on")
    spared: frozenset[Network] = collection("reverse path not checked to")
