"""What to tell a Service's owner when its egress starts, moves, stops or starts again: once, by one node.

Each node follows how all Services stand; of a change tells the gateway's node or, where there is none, the first Ready
node by name. So nobody has to agree with anybody.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.increments import exchanged
from metaleg_node.core.model import Address, Family, Node, NodeName, ObjectRef
from metaleg_node.core.problems import Code

Key = tuple[ObjectRef, Family]


class Kind(enum.StrEnum):
    """https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/"""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one Service stands in one family: its gateway, or why its pods are held. `former` is the last gateway that it
    had; `text` says more of `held`."""

    gateway: NodeName | None
    source: Address | None
    held: Code | None
    text: str
    former: NodeName | None

    @property
    def essence(self) -> tuple[object, ...]:
        """What makes news when it changes; details such as names in a text do not."""
        return self.gateway, self.source, self.held


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Something to tell about a Service; `reason` is one word for machines."""

    service: ObjectRef
    kind: Kind
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """How all Services stand, by what was decided about them; `standings` None: after a start, nothing was seen yet."""

    decisions: Sequence[ServiceDecision] = ()
    standings: Mapping[Key, Standing] | None = None

    def then(
        self, decisions: Sequence[ServiceDecision], me: NodeName, nodes: Iterable[Node]
    ) -> tuple[Followed, list[News]]:
        """How they stand now, and what node `me` has to tell of that: of what was decided the same again nothing. After
        a start only what is held: all else was told."""
        gone, new = exchanged(self.decisions, decisions)
        before = self.standings or {}
        fresh = {one.service.key: _standing(one, before.get(one.service.key), me) for one in new}
        first = min((node.name for node in nodes if node.ready), default=None)
        told = []
        for (service, family), now in fresh.items():
            old = before.get((service, family))
            changed = old is None or old.essence != now.essence
            if changed and (now.gateway or first) == me and (now.held or self.standings is not None):
                told.append(_told(service, family, old, now))
        left = {one.service.key for one in gone}
        stayed = {key: standing for key, standing in before.items() if key not in left}
        return Followed(decisions=decisions, standings=stayed | fresh), told


def _standing(decision: ServiceDecision, old: Standing | None, me: NodeName) -> Standing:
    """What only hinders this node counts where it is the gateway."""
    service = decision.service
    gateway = service.gateway.node.name if service.gateway else None
    obstacle = service.obstacle or (decision.obstacle if gateway == me else None)
    return Standing(
        gateway=gateway,
        source=service.source,
        held=obstacle.code if obstacle else None,
        text=obstacle.detail if obstacle else "",
        former=(old.gateway or old.former) if old else None,
    )


def _told(service: ObjectRef, family: Family, old: Standing | None, now: Standing) -> News:
    if now.held:
        reason = "".join(word.capitalize() for word in now.held.split("-"))
        text = f"IPv{family} egress is held: {now.text} [{now.held}]"
        return News(service=service, kind=Kind.WARNING, reason=f"Egress{reason}", text=text)
    if now.former and now.former != now.gateway:
        text = f"IPv{family} egress as {now.source} moved from node {now.former} to {now.gateway}"
        return News(service=service, kind=Kind.NORMAL, reason="EgressMoved", text=text)
    reason = "EgressResumed" if old and old.held else "EgressStarted"
    text = f"IPv{family} egress as {now.source} goes through node {now.gateway}"
    return News(service=service, kind=Kind.NORMAL, reason=reason, text=text)
