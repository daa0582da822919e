"""Which Services had a gateway a moment ago: their claims on pods hold while it is away for seconds only."""

from __future__ import annotations

import time
from collections.abc import Callable, Set

from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.model import ObjectRef

GATEWAY_AWAY = 10.0
"""Seconds; MetalLB takes less for a failover, unless nodes are only thought to be alive."""


class Patience:
    """Remembers from one survey to the next. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._had: frozenset[ObjectRef] = frozenset()
        self._until: dict[ObjectRef, float] = {}

    @property
    def awaited(self) -> Set[ObjectRef]:
        """The Services whose gateway may come back."""
        now = self._clock()
        return self._had | {ref for ref, until in self._until.items() if until > now}

    @property
    def wait(self) -> float | None:
        """Seconds until the first is no longer awaited; None: nobody is."""
        now = self._clock()
        waits = [until - now for until in self._until.values() if until > now]
        return min(waits, default=None)

    def look(self, survey: Survey) -> None:
        """Learns from a survey which Services have a gateway now."""
        now = self._clock()
        has = frozenset(one.service.ref for one in survey.services if one.gateway)
        lacks = {one.service.ref for one in survey.services} - has
        self._until = {
            ref: self._until.get(ref, now + GATEWAY_AWAY) for ref in lacks if ref in self._had or ref in self._until
        }
        self._had = has
