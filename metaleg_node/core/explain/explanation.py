"""All answers to one question."""

from __future__ import annotations

from collections.abc import Iterator

from metaleg_node.core.explain import addresses, pods, services
from metaleg_node.core.explain.answer import Answer
from metaleg_node.core.explain.situation import Situation
from metaleg_node.core.explain.targets import (
    Destination,
    NodeTarget,
    PodTarget,
    PoolTarget,
    ServiceTarget,
    Target,
    TargetError,
    find,
)
from metaleg_node.core.networks import Membership


def explain(text: str, to: Destination | None, situation: Situation) -> tuple[Answer, ...]:
    """The answers about what `text` names, one for each address or family. Raises TargetError."""
    networks = Membership(n for one in situation.desired.paths for n in one.path.wanted.networks)
    targets = find(text, situation.cluster, situation.survey, networks)
    if to:
        targets = tuple(one for one in targets if _family(one) in (None, to.address.version))
        if not targets:
            raise TargetError(f"{text} has no address of the family of {to.address}")
    return tuple(answer for target in targets for answer in _answers(target, to, situation))


def _family(target: Target) -> int | None:
    return target.address.version if target.address else None


def _answers(target: Target, to: Destination | None, situation: Situation) -> Iterator[Answer]:
    match target:
        case PodTarget():
            yield pods.explain(target, to, situation)
        case ServiceTarget():
            yield from services.explain(target, to, situation)
        case NodeTarget():
            yield addresses.node(target, situation)
        case PoolTarget():
            yield addresses.pool(target, to, situation)
