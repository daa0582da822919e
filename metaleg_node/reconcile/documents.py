"""A plan as programs read it: hooks on their standard input, and users of `plan --json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypedDict

from metaleg_node.core.changes import Action, Change, Kind


class ChangeDocument(TypedDict):
    """What happens to one object; `reason` may be empty."""

    action: Literal["add", "remove", "change"]
    kind: Kind
    object: str
    reason: str


class HookDocument(TypedDict):
    """What a hook reads: the changes that are about to be made, or were."""

    version: Literal[1]
    changes: list[ChangeDocument]


def hook_document(changes: Iterable[Change]) -> HookDocument:
    """In the order in which they are made."""
    return HookDocument(version=1, changes=[_change(one) for one in changes])


def _change(one: Change) -> ChangeDocument:
    return ChangeDocument(action=_ACTIONS[one.action], kind=one.kind, object=one.text, reason=one.reason)


_ACTIONS: dict[Action, Literal["add", "remove", "change"]] = {
    Action.ADD: "add",
    Action.REMOVE: "remove",
    Action.CHANGE: "change",
}
