"""All that this program keeps in the kernel of this node, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Routing


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """`firewall` None: the packet filter holds nothing of ours. `sysctls` maps names such as
    net/ipv4/conf/eth0/rp_filter to values; as desired, only those that must be so."""

    routing: Routing = field(default_factory=Routing)
    firewall: Firewall | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
