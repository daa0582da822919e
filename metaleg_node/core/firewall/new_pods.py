"""The hold for pods that are not known yet."""

from __future__ import annotations

from dataclasses import dataclass

from metaleg_node.core.firewall.part import Part, collection, option
from metaleg_node.core.model import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPods(Part):
    """What leaves the cluster from a pod's address that is neither `plain` nor `claimed` is dropped, as far as it
    belongs to no connection yet: that of other nodes' pods where there is a hold at all (`held`), and that of this
    node's own where it is `here`. `plain` are this node's pods without egress, `claimed` all egress pods, which the
    part for the egress tells of."""

    held: bool = option(False, "hold of unknown pods")
    here: bool = option(False, "hold of this node's unknown pods")
    plain: frozenset[Address] = collection("known pods without egress")
    claimed: frozenset[Address] = frozenset()
