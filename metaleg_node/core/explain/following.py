"""What a packet met on its way through this node, in words."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from metaleg_node.core.explain.targets import Destination
from metaleg_node.core.model import Address


class Outcome(enum.StrEnum):
    """How a packet's way through this node ended."""

    LEFT = "left"
    DELIVERED = "delivered"
    """To this host itself."""
    DROPPED = "dropped"
    LOST = "lost"
    """Somewhere between two hooks of nf_tables: in routing, a reverse-path filter, or xtables-legacy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """What a chain did with the packet; `place` is the chain's table and name, or what is ours in words."""

    place: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """One packet's way. `packet` is what it was at first, `text` how it ended."""

    packet: str
    meetings: tuple[Meeting, ...]
    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """Which packets are followed: those of these addresses, to one end or to any."""

    addresses: Collection[Address]
    to: Destination | None = None
