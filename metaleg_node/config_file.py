"""The configuration's file: how it is read, and what is wrong when it cannot be."""

from __future__ import annotations

from pathlib import Path

from metaleg_node import regular_file
from metaleg_node.config import Config, ConfigError, Problem, parse
from metaleg_node.regular_file import Flaw, FlawError

MAX_BYTES = 1 << 20
"""The size of the largest file that is read, far above what any configuration needs."""

_FLAWS = {
    Flaw.IRREGULAR: "is no regular file (a directory, pipe, device or socket); put a file there, or name one with "
    "--config",
    Flaw.TOO_LARGE: f"is larger than {MAX_BYTES >> 20} MiB; is it the configuration? else name that with --config",
    Flaw.CHANGED: "changed while it was read; let its writer finish",
}


def load(path: Path | str) -> Config:
    """Reads a configuration file. Raises ConfigError, also when the file cannot be read."""
    file = str(path)
    return parse(_text(Path(path), file), file=file)


def _text(path: Path, file: str) -> str:
    try:
        return regular_file.read(path, MAX_BYTES).decode()
    except FlawError as error:
        raise _error(file, _FLAWS[error.flaw]) from None
    except OSError as error:
        advice = "run as root, or let this user read it" if isinstance(error, PermissionError) else "create it"
        raise _error(file, f"cannot be read: {error.strerror}; {advice}, or name another with --config") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"line {line}: not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8"
        raise _error(file, message) from error


def _error(file: str, message: str) -> ConfigError:
    return ConfigError((Problem(file=file, message=message),))
