"""The packet filter as a value: a mark mask and parts, each of which is one concept.

A part is a frozen dataclass in a file of its own, whose defaults mean "nothing". The file says what the part's values
are and how a difference is told; for each packet filter one file of `kernel` renders it and reads it back. Nothing else
lists the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

from metaleg_node.core.changes import Action, Change, change, members
from metaleg_node.core.model import Holder, Slot
from metaleg_node.core.slots import mark_of

P = TypeVar("P", bound="Part")

Why = Callable[[Any], str]
"""Tells the reason for a pod's treatment."""


def option(default: str | bool, title: str) -> Any:
    """A field of a part that has one value; `title` is what the plan calls it."""
    return field(default=default, metadata={"title": title})


def collection(title: str) -> Any:
    """A field of a part that is a frozenset; `title` is what the plan calls it."""
    return field(default=frozenset(), metadata={"title": title})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One concept of the packet filter."""

    @property
    def holders(self) -> Mapping[Slot, Holder]:
        """Who has which slot, as far as this part uses any."""
        return {}

    def changes(self, before: Self, numbers: Numbers) -> Iterator[Change]:
        """The difference to what the part was, for people: options first, then what came to and left collections."""
        all_fields = (
            (f.metadata["title"], getattr(before, f.name), getattr(self, f.name)) for f in fields(self) if f.metadata
        )
        titled = [(title, old, new) for title, old, new in all_fields if old is not new]
        for title, old, new in titled:
            if old != new and not isinstance(new, frozenset):
                yield change(Action.CHANGE, "firewall", f"{title}: {new}", f"was {old}")
        yield from self.told(before, numbers)
        for title, old, new in titled:
            if isinstance(new, frozenset):
                yield from members(title, old, new)

    def told(self, before: Self, numbers: Numbers) -> Iterator[Change]:
        """What of the difference has words of its own."""
        del before, numbers
        return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a difference is told with: the mark masks before and after, and the reasons of decisions."""

    mask_before: int
    mask: int
    why: Why

    def mark(self, slot: Slot, *, before: bool = False) -> str:
        """A slot's mark as it was or is, in hexadecimal."""
        return f"{mark_of(slot, self.mask_before if before else self.mask):#x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """What the packet filter holds: at most one part of each kind. A part that says nothing is the same as none."""

    mark_mask: int
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        kept = sorted((part for part in self.parts if part != type(part)()), key=lambda part: type(part).__name__)
        object.__setattr__(self, "parts", tuple(kept))

    def part(self, kind: type[P]) -> P:
        """The part of this kind; one that says nothing where there is none."""
        return next((part for part in self.parts if isinstance(part, kind)), None) or kind()

    def having(self, *parts: Part) -> Firewall:
        """The same with these parts in place of those of their kinds."""
        kinds = tuple(map(type, parts))
        return Firewall(mark_mask=self.mark_mask, parts=(*(p for p in self.parts if not isinstance(p, kinds)), *parts))

    @property
    def holders(self) -> dict[Slot, Holder]:
        """Who has which slot."""
        return {slot: holder for part in self.parts for slot, holder in part.holders.items()}

    def mark(self, slot: Slot) -> int:
        """The mark of a slot."""
        return mark_of(slot, self.mark_mask)
