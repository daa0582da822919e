"""What conntrack calls invalid does not reach this host."""

from __future__ import annotations

from dataclasses import dataclass

from metaleg_node.core.firewall.part import Part, option


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidInput(Part):
    """Whether packets for this host that belong to no connection are dropped."""

    dropped: bool = option(default=False, title="drop invalid input")
