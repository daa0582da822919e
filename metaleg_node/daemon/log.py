"""Where log lines go and what they look like.

Into the journal each line goes with its priority in front (sd-daemon(3)), which the journal takes away again, so that
`journalctl -p` works; what tells of a kind of thing goes there with fields, see `journal`. Cluster objects cannot forge
lines: what is not printable is escaped.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TextIO

from metaleg_node.daemon.journal import PRIORITIES, JournalHandler
from metaleg_node.text import printable, rfc3339

_OWN = "metaleg_node"


def setup(*, level: str, form: str, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Sends this program's log to `stream` (standard error when None); calling it again replaces the former set-up.

    `level` is error, warning, info or debug; libraries are heard from warning on only, because urllib3 and the
    Kubernetes client put whole answers, secrets included, into their debug log. `form` is "json" (one object a
    line), "text" (with time and level) or "auto": text, but bare messages when `stream` is the journal, which has time
    and level of its own.
    """
    stream = sys.stderr if stream is None else stream
    journal = is_journal(stream, environ)
    plain = JsonFormatter() if form == "json" else BareFormatter() if form == "auto" and journal else TextFormatter()
    handler = JournalHandler(stream, plain) if journal else logging.StreamHandler(stream)
    handler.setFormatter(JournalFormatter(plain) if journal else plain)
    wanted = getattr(logging, level.upper())
    logging.basicConfig(level=max(wanted, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger(_OWN).setLevel(wanted)
    logging.captureWarnings(True)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` is connected to the journal: JOURNAL_STREAM holds its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def complain(lines: Iterable[str], stream: TextIO | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Writes why a command failed: to standard error when `stream` is None, as errors when that is the journal."""
    stream = sys.stderr if stream is None else stream
    start = _priority(logging.ERROR) if is_journal(stream, environ) else ""
    print(*(f"{start}{line}" for text in lines for line in text.split("\n")), sep="\n", file=stream)


def _priority(level: int) -> str:
    return f"<{PRIORITIES.get(level, PRIORITIES[logging.ERROR])}>"


class JournalFormatter(logging.Formatter):
    """`<N>` before each line of another form."""

    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        start = _priority(record.levelno)
        return "\n".join(f"{start}{line}" for line in self._form.format(record).split("\n"))


class BareFormatter(logging.Formatter):
    """The message; a traceback's lines follow, each indented, so that none can pass for a message."""

    def format(self, record: logging.LogRecord) -> str:
        start = self.start(record)
        return "\n".join([start + printable(record.getMessage()), *(f"{start}    {line}" for line in _trace(record))])

    def start(self, _record: logging.LogRecord) -> str:
        """What each line begins with."""
        return ""


class TextFormatter(BareFormatter):
    """`2026-01-31T12:00:00.123Z warning: message`, the time in UTC."""

    def start(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname.lower()}: "


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message and, of an exception, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace := _trace(record):
            document["traceback"] = "\n".join(trace)
        return json.dumps(document)


def _time(record: logging.LogRecord) -> str:
    return rfc3339(datetime.fromtimestamp(record.created, UTC))


def _trace(record: logging.LogRecord) -> list[str]:
    if not record.exc_info:
        return []
    return [printable(line) for line in logging.Formatter().formatException(record.exc_info).split("\n")]
