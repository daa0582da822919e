"""What to tell a Service's owner when its egress starts, moves, stops or starts again: once, by one node.

Each node follows how all Services stand; of a change tells the gateway's node or, where there is none, the first Ready
node by name. So nobody has to agree with anybody.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from metaleg_node.core.egress.node import ServiceDecision
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


def standings(
    services: Iterable[ServiceDecision], before: Mapping[Key, Standing] | None, me: NodeName
) -> dict[Key, Standing]:
    """How all Services stand. What only hinders this node counts where it is the gateway."""
    found = {}
    for one in services:
        gateway = one.service.gateway.node.name if one.service.gateway else None
        obstacle = one.service.obstacle or (one.obstacle if gateway == me else None)
        old = (before or {}).get(one.service.key)
        found[one.service.key] = Standing(
            gateway=gateway,
            source=one.service.source,
            held=obstacle.code if obstacle else None,
            text=obstacle.detail if obstacle else "",
            former=(old.gateway or old.former) if old else None,
        )
    return found


def news(
    before: Mapping[Key, Standing] | None, now: Mapping[Key, Standing], me: NodeName, nodes: Iterable[Node]
) -> Iterator[News]:
    """What node `me` has to tell. Without a `before`, after a start, only what is held: all else was told."""
    first = min((node.name for node in nodes if node.ready), default=None)
    for (service, family), standing in now.items():
        old = before.get((service, family)) if before is not None else None
        changed = old is None or old.essence != standing.essence
        if changed and (standing.gateway or first) == me and (standing.held or before is not None):
            yield _told(service, family, old, standing)


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
