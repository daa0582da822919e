"""Compares what followed from changes with what comes out from scratch: beside the loop, since that takes as long as a
first decision."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class SecondOpinion:
    """One comparison at a time, when it is `due`, each in a thread of its own. `differs` is called there after one that
    found a difference."""

    def __init__(self, differs: Callable[[], object]) -> None:
        self._differs = differs
        self._thread: threading.Thread | None = None
        self._found = ""
        self.due = False

    def ask(self, comparison: Callable[[], Callable[[], str] | None]) -> None:
        """Begins one that is due, unless there is nothing to compare or one is under way. What `comparison` gives takes
        its time, and returns what differs; empty: nothing."""
        if not self.due:
            return
        self.due = False
        compared = comparison()
        if compared and not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, args=(compared,), name="second-opinion", daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Waits for the one that is under way."""
        if self._thread:
            self._thread.join()

    def found(self) -> str:
        """What differed, told once; empty: nothing, as far as is known."""
        found, self._found = self._found, ""
        return found

    def _run(self, compared: Callable[[], str]) -> None:
        try:
            found = compared()
        except Exception as error:
            log.exception("working everything out from scratch met something unexpected")
            found = f"an unexpected {type(error).__name__}: {error}"
        if found:
            self._found = found
            self._differs()
