"""Which Services had a gateway a moment ago: what was decided for them holds on while it is away for a moment, and
their claims on pods while it is away for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Set

from metaleg_node.core.egress.survey import Recent, Survey
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

    @property
    def awaited(self) -> Set[ObjectRef]:
        """The Services whose gateway may come back."""
        return self._had.keys() | self._for(GATEWAY_AWAY).keys()

    @property
    def recent(self) -> Recent:
        """All that counts for the next survey."""
        return Recent(
            awaited=self.awaited,
            kept={**self._had, **self._for(self._grace)} if self._grace else {},
            quiet=self._had.keys() | self._for(self._grace + self._quiet).keys() if self._quiet else frozenset(),
        )

    @property
    def wait(self) -> float | None:
        """Seconds until `recent` changes by itself; None: never."""
        now = self._clock()
        spans = (GATEWAY_AWAY, self._grace, self._grace + self._quiet)
        waits = [since + span - now for _, since in self._lost.values() for span in spans]
        return min((wait for wait in waits if wait > 0), default=None)

    def look(self, survey: Survey) -> None:
        """Learns from a survey which Services have a gateway now."""
        now = self._clock()
        served = [(one.service.ref, one.gateway) for one in survey.services]
        has = {ref: gateway.node.name for ref, gateway in served if gateway and not gateway.away}
        lacks = {ref for ref, _ in served} - has.keys()
        before = {**{ref: (node, now) for ref, node in self._had.items()}, **self._lost}
        self._lost = {ref: before[ref] for ref in lacks if ref in before}
        self._had = has

    def _for(self, seconds: float) -> dict[ObjectRef, NodeName]:
        """Those that have been lost for less."""
        now = self._clock()
        return {ref: node for ref, (node, since) in self._lost.items() if now < since + seconds}
