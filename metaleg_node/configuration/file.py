"""The configuration's files: how they are read, what is wrong when they cannot be, and when they are read again."""

from __future__ import annotations

import math
import os
from pathlib import Path

from metaleg_node import files
from metaleg_node.configuration.config import Config, ConfigError, parse
from metaleg_node.files import Flaw, FlawError, Stamp

FRAGMENTS = "conf.d"
"""The directory beside the configuration file whose *.toml files are merged over it, in the order of their names."""
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


def load(path: Path | str) -> Config:
    """Reads a configuration file, and its fragments. Raises ConfigError, also when one of them cannot be read, or is
    empty: somebody may just be writing it, or a crash has cut it off."""
    main = Path(path)
    texts, problems = {}, []
    try:
        files = [main, *fragments(main)]
    except ConfigError as error:
        files, problems = [main], [*error.problems]
    for file in files:
        try:
            texts[str(file)] = _text(file)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(tuple(problems))
    return parse(texts.pop(str(main)), file=str(main), fragments=texts)


def fragments(path: Path) -> list[Path]:
    """The files that are merged over a configuration file, in their order; hidden ones are somebody's who writes.
    Raises ConfigError."""
    directory = path.parent / FRAGMENTS
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError.of(str(directory), f"cannot be read: {error.strerror}; let this user read it") from error
    return [directory / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def readable(path: Path) -> list[Path]:
    """Those of the files that are there and may be read, whatever is wrong with what they say."""
    try:
        found = [path, *fragments(path)]
    except ConfigError:
        found = [path]
    return [file for file in found if file.is_file() and os.access(file, os.R_OK)]


class Watch:
    """Tells a program that runs when to read its files again. Times are seconds of a clock that never jumps."""

    def __init__(self, path: Path, settle: float = SETTLE_SECONDS) -> None:
        """To be made before the file is read for the first time, so that no change is missed."""
        self._path = path
        self._settle = settle
        self._read = self._seen = _stamps(path)
        self._seen_since = -math.inf

    def wait(self, now: float) -> float:
        """Looks at the files. Returns the seconds until they are to be read if they stay as they are: 0 is now,
        infinity never, since they were read as they are."""
        found = _stamps(self._path)
        if found != self._seen:
            self._seen, self._seen_since = found, now
        return math.inf if found == self._read else max(0.0, self._seen_since + self._settle - now)

    def reading(self) -> None:
        """The files as they are now are about to be read."""
        self._read = _stamps(self._path)


def _stamps(path: Path) -> dict[Path, Stamp]:
    try:
        beside = fragments(path)
    except ConfigError:
        beside = [path.parent / FRAGMENTS]
    return {file: files.stamp(file) for file in (path, *beside)}


def _text(path: Path) -> str:
    """What one file says. Raises ConfigError."""
    file = str(path)
    text = _decoded(path, file)
    if not text.strip():
        raise ConfigError.of(
            file, "is empty, as while somebody writes it; if it shall say nothing, write a comment into it"
        )
    return text


def _decoded(path: Path, file: str) -> str:
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
