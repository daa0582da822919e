"""Which Services had a gateway a moment ago: what was decided for them holds on while it is away for a moment, and
their claims on pods while it is away for seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set

from metaleg_node.core.egress.requests import Recent
from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.increments import Evolving
from metaleg_node.core.model import NodeName, ObjectRef

GATEWAY_AWAY = 10.0
"""Seconds; MetalLB takes less for a failover, unless nodes are only thought to be alive."""
QUIET = 3.0
"""Seconds in which an attempt to connect is repeated at least once (RFC 6298, 2.1), and in which the next gateway is
mostly there."""


class Patience:
    """Remembers from one survey to the next. `clock` gives seconds. A gateway stays one for `grace` seconds after it
    was announced for the last time; for `quiet` seconds after that its Service is told to be so."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, grace: float = 0.0, quiet: float = 0.0) -> None:
        self._clock = clock
        self._grace = grace
        self._quiet = quiet
        self._had: dict[ObjectRef, NodeName] = {}
        self._lost: dict[ObjectRef, tuple[NodeName, float]] = {}
        self._seen: Evolving[ObjectRef, NodeName | None] = Evolving()
        self._recent: Recent | None = None
        self._recent_until = math.inf

    @property
    def awaited(self) -> Set[ObjectRef]:
        """The Services whose gateway may come back."""
        return self._had.keys() | self._for(GATEWAY_AWAY).keys()

    @property
    def recent(self) -> Recent:
        """All that counts for the next survey; the very same object while nothing is lost or found."""
        if self._recent is None or self._clock() >= self._recent_until:
            self._recent_until = self._clock() + (math.inf if (wait := self.wait) is None else wait)
            self._recent = Recent(
                awaited=self.awaited,
                kept={**self._had, **self._for(self._grace)} if self._grace else {},
                quiet=self._had.keys() | self._for(self._grace + self._quiet).keys() if self._quiet else frozenset(),
            )
        return self._recent

    @property
    def wait(self) -> float | None:
        """Seconds until `recent` changes by itself; None: never."""
        now = self._clock()
        spans = (GATEWAY_AWAY, self._grace, self._grace + self._quiet)
        waits = [since + span - now for _, since in self._lost.values() for span in spans]
        return min((wait for wait in waits if wait > 0), default=None)

    def look(self, survey: Survey) -> None:
        """Learns from a survey which Services have a gateway now."""
        if not (changed := survey.announcers.difference(self._seen)):
            return
        now = self._clock()
        for ref in changed:
            node = survey.announcers.get(ref)
            if node:
                self._had[ref] = node
                self._lost.pop(ref, None)
            elif ref not in survey.announcers:
                self._had.pop(ref, None)
                self._lost.pop(ref, None)
            elif ref in self._had:
                self._lost[ref] = self._had.pop(ref), now
        self._seen, self._recent = survey.announcers, None

    def _for(self, seconds: float) -> dict[ObjectRef, NodeName]:
        """Those that have been lost for less."""
        now = self._clock()
        return {ref: node for ref, (node, since) in self._lost.items() if now < since + seconds}
