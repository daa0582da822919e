"""How a difference is told to people: one line for what happens to an object, with the reason."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

T = TypeVar("T")

Kind = Literal["rule", "route", "sysctl", "firewall", "gateway", "exit", "destinations", "pod", "path", "external-ip"]
"""What changes are of; plans, status and metrics use these words."""
KINDS: tuple[Kind, ...] = get_args(Kind)

_SHOWN = 6
_OBJECT = re.compile(r"(Service|Pod) ([-a-z0-9.]+/[-a-z0-9.]+)(?=[ :]|\Z)")


class Action(enum.StrEnum):
    """What happens to an object."""

    ADD = "+"
    REMOVE = "-"
    CHANGE = "~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of a plan: what happens to which object, and why."""

    action: Action
    kind: Kind
    text: str
    reason: str

    @property
    def about(self) -> dict[str, str]:
        """The pod's address and the Service, by the names that the journal has for them."""
        if self.kind != "pod":
            return {}
        return {"POD": self.text.partition(" ")[0], **about(self.reason)}

    def __str__(self) -> str:
        return f"{self.action} {self.kind} {self.text}" + (f"  # {self.reason}" if self.reason else "")


def about(text: str) -> dict[str, str]:
    """The object that a text begins with, by the names that the journal has for Services and pods."""
    found = _OBJECT.match(text)
    return {found[1].upper(): found[2]} if found else {}


def change(action: Action, kind: Kind, what: object, reason: str = "") -> Change:
    """A change of something that has a text of its own."""
    return Change(action=action, kind=kind, text=str(what), reason=reason)


def between(old: object, new: object) -> Action:
    """What happened to an object that was (None: was not) and is (None: is not)."""
    return Action.REMOVE if new is None else Action.ADD if old is None else Action.CHANGE


def members(title: str, old: frozenset[T], new: frozenset[T]) -> Iterator[Change]:
    """What came to a set of the packet filter, and what left it."""
    if new - old:
        yield change(Action.ADD, "firewall", f"{title}: {listed(new - old)}")
    if old - new:
        yield change(Action.REMOVE, "firewall", f"{title}: {listed(old - new)}")


def listed(items: Iterable[object]) -> str:
    """The first of some things, in order, and how many more there are."""
    texts = sorted(map(str, items))
    rest = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + rest
