"""The one thing that egress asks of return paths: by which way an address must leave that has a router of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metaleg_node.core.model import Address
from metaleg_node.core.slots import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The way out for LoadBalancer addresses that have a router of their own, on the node that announces them:
    `claim` is for its slot, `obstacle` says why it does not work now."""

    claim: Claim
    obstacle: str = ""


ExitOf = Callable[[Address], Exit | None]
"""Tells the exit of an address that has one."""
