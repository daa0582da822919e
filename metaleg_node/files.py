"""Reading a file that somebody else writes, whatever stands at its path and whatever happens to it meanwhile."""

from __future__ import annotations

import enum
import os
import stat
from pathlib import Path


class Flaw(enum.Enum):
    """Why the content of a file does not count."""

    IRREGULAR = enum.auto()
    TOO_LARGE = enum.auto()
    CHANGED = enum.auto()


class FlawError(Exception):
    """There is something to read, but not a file that counts; the reader says what to do."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.name)
        self.flaw = flaw


def read(path: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes that stayed as it was; never waits for a pipe or device.
    Raises FlawError and OSError."""
    # Before it is opened, too: opening a device may do something.
    _check_regular(path.stat())
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        before = os.fstat(descriptor)
        _check_regular(before)
        content = opened.read(limit + 1)
        after = os.fstat(descriptor)
    if len(content) > limit:
        raise FlawError(Flaw.TOO_LARGE)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FlawError(Flaw.CHANGED)
    return content


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FlawError(Flaw.IRREGULAR)
