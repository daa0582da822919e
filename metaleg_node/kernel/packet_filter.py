"""What a packet filter is to the rest of the program, whichever program of the kernel does the work.

The decisions are in `core.firewall`: a packet filter renders them, reads them back, and tells when others interfered.
Everything that is peculiar to one, such as when an earlier look may still be believed, stays behind this interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from metaleg_node.core.compare.diff import Damage
from metaleg_node.core.explain.locator import Locator
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Slot

LABELS = "connection labels"
"""What a packet filter may lack that some kernels are made without (CONFIG_NF_CONNTRACK_LABELS)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The packet filter as understood (None: it holds nothing of ours), and what is not as it was put there."""

    firewall: Firewall | None
    damage: tuple[Damage, ...] = ()


class Counter(NamedTuple):
    """What passed a place, since the packet filter was set up."""

    packets: int
    size: int


def requests_counter(slot: Slot) -> str:
    """The counter of requests that came by the router with this slot."""
    return f"requests_{slot}"


def answers_counter(slot: Slot) -> str:
    """The counter of answers that left by it."""
    return f"answers_{slot}"


class PacketFilter(Protocol):
    """Used by one thread. Methods raise KernelError when the kernel, or a program that speaks to it, refuses."""

    place: str
    """What people know it by, such as the name of a table."""

    limits: str
    """What it cannot do that another one can, in a sentence; empty where there is nothing to tell."""

    def observe(self) -> View:
        """What it holds of ours; of an earlier look, where nothing can have changed since."""

    def put(self, firewall: Firewall | None) -> None:
        """Makes it hold just this, as far as it can in one step; None: nothing of ours."""

    def present(self) -> bool:
        """Whether it holds anything of ours, without raising: no, where it cannot be asked."""

    def changed(self) -> bool:
        """Whether anything may have changed since it was looked at or written to; the next look is then a real one."""

    def forget(self) -> None:
        """Makes the next look a real one."""

    def watched(self) -> AbstractContextManager[Callable[[], bool]]:
        """A function for one other thread, of use in the block: whether others may have changed it since it was looked
        at or written to; of each such change it tells once. It costs microseconds."""

    def counters(self) -> Mapping[str, Counter]:
        """By name: steered, translated, held, dropped, and those of each router of return paths; empty while it holds
        nothing of ours. For any thread."""

    def versions(self) -> Mapping[str, str]:
        """Of the programs that speak to the kernel, by their names."""

    def locator(self, firewall: Firewall) -> Locator:
        """Finds in it what holds the decisions of a firewall."""

    def lacking(self) -> Mapping[str, str]:
        """What its rules are made of that this kernel, or a program that speaks to it, refuses, and with which words.
        Tries it without changing anything."""

    def listing(self) -> str:
        """All of ours in it, as its own program prints it."""

    def unnameable(self, interfaces: Iterable[str]) -> frozenset[str]:
        """Those of the interfaces that it cannot name."""
