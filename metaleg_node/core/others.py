"""What other programs on this host do that collides with ours, as far as it can be seen.

Nothing of theirs is touched; what they put into our own tables is removed elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from metaleg_node.configuration.config import Config
from metaleg_node.core.model import Family, ForeignItem
from metaleg_node.core.problems import Code, Problem

_OWN_PRIORITIES = 100
"""From firewall.rule_priority on."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PolicyRule:
    """Somebody else's policy rule, as in ip-rule(8); `mask` None: it asks for no mark; `table` 0: it looks none up.
    `selective`: it asks for more than a mark, or leaves routes of its table out."""

    text: str
    family: Family
    priority: int
    mark: int = 0
    mask: int | None = None
    inverted: bool = False
    table: int = 0
    selective: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class MarkUse:
    """What a chain does with packet marks: the bits that it may change, and those that it asks to be set."""

    place: str
    changed: int = 0
    asked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """What was found of them. `items` are rules and routes in tables that are ours alone, `closed` the chains that drop
    forwarded packets by their policy and accept none that a pod may send, as far as one can tell, `untracked` those
    that keep packets from conntrack."""

    rules: frozenset[PolicyRule] = frozenset()
    items: frozenset[ForeignItem] = frozenset()
    marks: frozenset[MarkUse] = frozenset()
    closed: frozenset[str] = frozenset()
    untracked: frozenset[str] = frozenset()


def judge(others: Others, config: Config) -> tuple[Problem, ...]:
    """The collisions, each of its own kind."""
    return (
        *_rules(others.rules, config),
        *_marks(others.marks, config.firewall.mark_mask),
        *(_problem(Code.FOREIGN_NUMBERS, f"{item.text}: that table is ours alone") for item in _sorted(others.items)),
        *(_problem(Code.FORWARD_DROP, _closed(place)) for place in sorted(others.closed)),
    )


def _rules(found: Iterable[PolicyRule], config: Config) -> Iterator[Problem]:
    first, mask = config.firewall.rule_priority, config.firewall.mark_mask
    own = range(first, first + _OWN_PRIORITIES)
    for rule in sorted(found):
        if rule.priority < first and _takes(rule, mask):
            text = f"the rule {rule.text} comes before ours and takes packets with our marks (firewall.mark_mask)"
            yield _problem(Code.FOREIGN_MARKS, text)
        elif rule.priority in own:
            text = f"the rule {rule.text} has a priority of ours ({own[0]}-{own[-1]}, firewall.rule_priority)"
            yield _problem(Code.FOREIGN_NUMBERS, text)


def _takes(rule: PolicyRule, mask: int) -> bool:
    """Whether it asks for marks and is met by one of ours: a value under our mask that is not 0."""
    if rule.mask is None:
        return False
    common = rule.mask & mask
    # One that names a mark of ours with "not" takes all of our others.
    return bool(common or rule.mark) if rule.inverted else bool(common & rule.mark)


def _marks(found: Iterable[MarkUse], mask: int) -> Iterator[Problem]:
    for use in sorted(found):
        if use.changed & mask:
            doing = f"changes bits {use.changed & mask:#x} of the packet mark"
        elif use.asked & mask:
            doing = f"asks for bits {use.asked & mask:#x} of the packet mark"
        else:
            continue
        text = f"{use.place} {doing}, which are ours (firewall.mark_mask = {mask:#x}): choose another mask"
        yield _problem(Code.FOREIGN_MARKS, text)


def _closed(place: str) -> str:
    return f"{place} drops what it does not accept, and accepts nothing that pods send: accept the pod networks there"


def _problem(code: Code, text: str) -> Problem:
    return Problem(code=code, subject="host", text=text)


def _sorted(items: Iterable[ForeignItem]) -> list[ForeignItem]:
    return sorted(items, key=lambda item: item.text)
