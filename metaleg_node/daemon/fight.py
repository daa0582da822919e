"""Somebody who undoes what is ours again and again: repairs are slowed down, so that the two do not keep a processor
busy, and it is told."""

from __future__ import annotations

from metaleg_node.core.changes import Change
from metaleg_node.core.problems import Code, Problem

_ROUNDS = 10
"""So many repairs in a row are a fight."""
_PAUSE_SECONDS = 1.0
_OVER_SECONDS = 2.0
"""Repairs further apart are not in a row."""


class Fight:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._rounds = 0
        self._last = 0.0
        self._about = ""

    def repaired(self, change: Change, now: float) -> None:
        """Something was put back."""
        self._rounds = 1 if now - self._last > _OVER_SECONDS else self._rounds + 1
        self._last, self._about = now, change.text

    def pause(self, now: float) -> float:
        """For how many seconds what others do is left as it is."""
        return max(0.0, self._last + _PAUSE_SECONDS - now) if self._rounds >= _ROUNDS else 0.0

    def problems(self, now: float) -> tuple[Problem, ...]:
        """What there is to tell."""
        if self._rounds < _ROUNDS or now - self._last > _OVER_SECONDS:
            return ()
        text = (
            f"somebody undoes what is ours again and again, the last time {self._about}: find out which program it is; "
            "until then it is put back once a second"
        )
        return (Problem(code=Code.UNDONE, subject="host", text=text),)
