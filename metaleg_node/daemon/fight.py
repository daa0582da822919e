"""Somebody who undoes the same of ours again and again: repairs are slowed down, so that the two do not keep a
processor busy, and it is told."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from metaleg_node.core.changes import Change
from metaleg_node.core.problems import Code, Problem

_ROUNDS = 10
"""So many repairs of one thing in a row are a fight."""
_PAUSE_SECONDS = 1.0
_OVER_SECONDS = 2.0
"""Repairs of one thing that are further apart are not in a row."""
_SEEN = 50
"""Of a repair's changes: a flush undoes everything, and the first ones are always among it."""


class Fight:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._rounds: dict[str, int] = {}
        self._last: dict[str, float] = {}

    def repaired(self, changes: Iterable[Change], now: float) -> None:
        """These were put back."""
        over = [text for text, last in self._last.items() if now - last > _OVER_SECONDS]
        for text in over:
            del self._rounds[text], self._last[text]
        for change in islice(changes, _SEEN):
            self._rounds[change.text] = self._rounds.get(change.text, 0) + 1
            self._last[change.text] = now

    def pause(self, now: float) -> float:
        """For how many seconds what others do is left as it is."""
        return max((last + _PAUSE_SECONDS - now for last in self._fought(now).values()), default=0.0)

    def problems(self, now: float) -> tuple[Problem, ...]:
        """What there is to tell."""
        fought = sorted(self._fought(now))
        if not fought:
            return ()
        more = f" and {len(fought) - 1} more" if len(fought) > 1 else ""
        text = (
            f"somebody undoes what is ours again and again: {fought[0]}{more}; find out which program it is, "
            "until then it is put back once a second"
        )
        return (Problem(code=Code.UNDONE, subject="host", text=text),)

    def _fought(self, now: float) -> dict[str, float]:
        """What somebody fights about, with the times of the last repair."""
        return {
            text: last
            for text, last in self._last.items()
            if self._rounds[text] >= _ROUNDS and now - last <= _OVER_SECONDS
        }
