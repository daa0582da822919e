"""When work that failed is tried again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Collection

from metaleg_node.core.changes import Change
from metaleg_node.core.model import ClusterState

_FIRST, _LAST = 1.0, 60.0


class Backoff:
    """Work that failed is left alone for a second, then for twice as long, up to a minute, whatever wakes the loop
    meanwhile. What is new waits for a second after a failure only; not less, since it may fail as well, and there may
    be no end to it."""

    def __init__(self) -> None:
        self.over()

    def over(self) -> None:
        """Nothing fails any more, or somebody who may know better asks for another attempt."""
        self._pause = _FIRST
        self._failed_at = self._until = -math.inf
        self._state: ClusterState | None = None
        self._undone: frozenset[Change] | None = None

    def failed(self, *, state: ClusterState | None = None, undone: Collection[Change] = ()) -> float:
        """An attempt failed: the whole of it, for this state of the cluster, or these changes could not be made.
        Returns after how many seconds the next one is due."""
        self._state, self._undone = state, None if state else frozenset(undone)
        self._failed_at = time.monotonic()
        self._until = self._failed_at + self._pause * random.uniform(0.8, 1.2)
        self._pause = min(self._pause * 2, _LAST)
        return self._wait(new=False)

    def before_plan(self, state: ClusterState) -> float:
        """For how many seconds not even to look what there is to do."""
        return self._wait(new=state is not self._state) if self._state else 0.0

    def before_apply(self, changes: Collection[Change]) -> float:
        """For how many seconds to leave these changes alone."""
        return self._wait(new=not self._undone.issuperset(changes)) if self._undone is not None else 0.0

    def _wait(self, *, new: bool) -> float:
        until = min(self._until, self._failed_at + _FIRST) if new else self._until
        return max(0.0, until - time.monotonic())
