"""What an explanation is made of."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from metaleg_node.core.model import Address
from metaleg_node.core.problems import Problem


class Verdict(enum.StrEnum):
    """What is decided, in one word."""

    LEAVES = "leaves"
    """With the LoadBalancer address."""
    RETURNS = "returns"
    """Replies from the address leave by a return path."""
    UNTOUCHED = "untouched"
    """Nothing is asked for, so nothing is done about it."""
    UNAVAILABLE = "unavailable"
    """What is asked for cannot be had."""
    UNDECIDED = "undecided"
    """Too little is known to decide anything."""


GOOD = frozenset({Verdict.LEAVES, Verdict.RETURNS, Verdict.UNTOUCHED})


class Held(enum.StrEnum):
    """Whether the kernel of this node holds what is decided."""

    SAME = "same"
    UNKNOWN = "?"
    """It could not be looked at."""
    DIFFERS = "differs"


_WORST_LAST = tuple(Held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that decides. `rule` says where it stands; `kernel` is None for what follows from the cluster's
    objects, and on another node."""

    name: str
    text: str
    rule: str = ""
    kernel: Held | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What happens on one node; `role` says which node it is. What a node does that is not `asked` is worked out."""

    node: str
    role: str
    steps: tuple[Step, ...]
    asked: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer about one subject. `text` is the decision as a sentence; `source` and `gateway` are set where it has
    them; `why_not` is what keeps it from being had, `look_at` what to look at then; `problems` are this host's that
    stand in its way; `connections` are what the kernel tracks between both ends."""

    subject: str
    verdict: Verdict
    text: str
    source: Address | None = None
    gateway: str = ""
    places: tuple[Place, ...] = ()
    why_not: Problem | None = None
    look_at: str = ""
    problems: tuple[Problem, ...] = ()
    connections: tuple[str, ...] = ()

    @property
    def kernel(self) -> Held | None:
        """Whether the kernel holds all of it; None where it is asked for nothing."""
        return worst(step.kernel for place in self.places for step in place.steps)

    @property
    def ok(self) -> bool:
        """Whether it goes as wanted, and the kernel could be seen to hold that."""
        return self.verdict in GOOD and self.kernel in (Held.SAME, None) and not self.problems

    @property
    def sentence(self) -> str:
        """The whole answer."""
        if self.verdict is not Verdict.UNDECIDED and self.kernel is Held.DIFFERS:
            return f"{self.text}; but this is not what the kernel of this node holds"
        if self.verdict is not Verdict.UNDECIDED and self.kernel is Held.UNKNOWN:
            return f"{self.text}; what the kernel of this node holds could not be seen"
        return self.text


def worst(found: Iterable[Held | None]) -> Held | None:
    """The worst of them, None when there are none."""
    return max((one for one in found if one), key=_WORST_LAST.index, default=None)
