"""The configuration's file: how it is read, what is wrong when it cannot be, and when a changed one is to be read."""

from __future__ import annotations

import math
from pathlib import Path

from metaleg_node import files
from metaleg_node.configuration.config import Config, ConfigError, parse
from metaleg_node.files import Flaw, FlawError

MAX_BYTES = 1 << 20
"""The size of the largest file that is read, far above what any configuration needs."""
SETTLE_SECONDS = 2.0
"""How long a changed file must have been left alone: half of it may be valid too."""

_FLAWS = {
    Flaw.IRREGULAR: "is no regular file (a directory, pipe, device or socket); put a file there, or name one with "
    "--config",
    Flaw.TOO_LARGE: f"is larger than {MAX_BYTES >> 20} MiB; is it the configuration? else name that with --config",
    Flaw.CHANGED: "changed while it was read; let its writer finish",
}


def load(path: Path | str, *, may_be_empty: bool = True) -> Config:
    """Reads a configuration file. Raises ConfigError, also when the file cannot be read.

    `may_be_empty` is for the start alone: later, somebody may have emptied the file in order to rewrite it.
    """
    file = str(path)
    text = _text(Path(path), file)
    if not may_be_empty and not text.strip():
        raise ConfigError.of(
            file, "is empty, as while somebody writes it; if all defaults are wanted, write a comment into it"
        )
    return parse(text, file=file)


class Watch:
    """Tells a program that runs when to read its file again. Times are seconds of a clock that never jumps."""

    def __init__(self, path: Path, settle: float = SETTLE_SECONDS) -> None:
        """To be made before the file is read for the first time, so that no change is missed."""
        self._path = path
        self._settle = settle
        self._read = self._seen = files.stamp(path)
        self._seen_since = -math.inf

    def wait(self, now: float) -> float:
        """Looks at the file. Returns the seconds until it is to be read if it stays as it is: 0 is now, infinity never,
        since it was read as it is."""
        found = files.stamp(self._path)
        if found != self._seen:
            self._seen, self._seen_since = found, now
        return math.inf if found == self._read else max(0.0, self._seen_since + self._settle - now)

    def reading(self) -> None:
        """The file as it is now is about to be read."""
        self._read = files.stamp(self._path)


def _text(path: Path, file: str) -> str:
    try:
        return files.read(path, MAX_BYTES).decode("utf-8-sig")
    except FlawError as error:
        raise ConfigError.of(file, _FLAWS[error.flaw]) from None
    except OSError as error:
        advice = "run as root, or let this user read it" if isinstance(error, PermissionError) else "create it"
        raise ConfigError.of(
            file, f"cannot be read: {error.strerror}; {advice}, or name another with --config"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"line {line}: not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8"
        raise ConfigError.of(file, message) from error
