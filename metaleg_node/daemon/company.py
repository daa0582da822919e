"""What other programs on this host do that concerns us: what collides, and who fights with us."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon.fight import Fight
from metaleg_node.kernel.errors import KernelError

log = logging.getLogger(__name__)


class Company:
    """Keeps what was found last. `due`: a look at the others is wanted."""

    def __init__(self) -> None:
        self.fight = Fight()
        self.due = True
        self._collisions: tuple[Problem, ...] = ()
        self._fought: tuple[Problem, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What there is to tell."""
        return (*self._collisions, *self._fought)

    def look(self, collisions: Callable[[], tuple[Problem, ...]], *, allowed: bool) -> bool:
        """Looks if that is due and `allowed`; a fight may be over at any time. Returns whether anything changed."""
        before = self.problems
        self._fought = self.fight.problems(time.monotonic())
        if self.due and allowed:
            self.due = False
            try:
                self._collisions = collisions()
            except KernelError as error:
                self._collisions = (Problem(code=Code.KERNEL, text=str(error)),)
            except Exception:
                # Others may write anything; nothing of ours depends on it.
                log.exception("what other programs do could not be understood")
        return self.problems != before
