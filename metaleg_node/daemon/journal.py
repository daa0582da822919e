"""Lines of the log with fields, for the journal: which kind of thing is told, and of which Service and pod. They go to
journald's own socket (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/), since standard error carries text alone."""

from __future__ import annotations

import logging
import socket
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TextIO

from metaleg_node.core.changes import KINDS
from metaleg_node.core.problems import Code

SOCKET: Final = Path("/run/systemd/journal/socket")
PRIORITIES: Final = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
"""syslog(3) priorities: err, warning, info, debug."""
_NAMESPACE: Final = uuid.UUID("6d65b1a3-8f5f-4b57-9a5e-2c9a4d1f7e60")
_SOLVED: Final = "solved"


def problem_kind(code: Code) -> str:
    """The kind of a line that tells of a problem."""
    return f"problem {code}"


def solved_kind() -> str:
    """The kind of a line that tells that a problem is over."""
    return _SOLVED


def message_id(kind: str) -> str:
    """The MESSAGE_ID of a kind, the same in every version (systemd.journal-fields(7))."""
    return uuid.uuid5(_NAMESPACE, kind).hex


class JournalHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error, but a record with a `kind` to the journal itself, with `about`, a mapping of fields.
    While journald does not take that, it is written like any other."""

    def __init__(self, stream: TextIO, plain: logging.Formatter, path: Path = SOCKET) -> None:
        """`plain` makes the text of a message, without what standard error has in front of it."""
        super().__init__(stream)
        self._plain = plain
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        kind: str = getattr(record, "kind", "")
        if not kind or not self._sent(record, kind):
            super().emit(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _sent(self, record: logging.LogRecord, kind: str) -> bool:
        fields: Mapping[str, str] = {
            "MESSAGE": self._plain.format(record),
            "MESSAGE_ID": message_id(kind),
            "PRIORITY": str(PRIORITIES.get(record.levelno, PRIORITIES[logging.ERROR])),
            "SYSLOG_IDENTIFIER": "metaleg-node",
            **getattr(record, "about", {}),
        }
        try:
            self._socket.sendto(b"".join(_field(name, value) for name, value in fields.items()), self._path)
        except OSError:
            return False
        return True


def _field(name: str, value: str) -> bytes:
    text = value.encode(errors="replace")
    if b"\n" not in text:
        return b"%s=%s\n" % (name.encode(), text)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(text)), text)


def catalogue() -> str:
    """What `journalctl --catalog` shows beside such lines (https://systemd.io/CATALOG/)."""
    entries = [
        *((problem_kind(code), code, f"{code.meaning}\n\n{_WRONG}") for code in Code),
        (_SOLVED, "a problem is over", "What the line names is as it should be again."),
        *((kind, f"{kind} changed", _CHANGED) for kind in KINDS),
    ]
    return "\n".join(
        f"-- {message_id(kind)}\nSubject: metaleg-node: {subject}\nDefined-By: metaleg-node\n"
        f"Documentation: file:///usr/share/doc/metaleg-node/docs/operation.md\n\n{text}\n"
        for kind, subject, text in entries
    )


_WRONG: Final = "`metaleg-node status` shows what is wrong now."
_CHANGED: Final = """\
This is put into the kernel (+), changed (~) or taken out of it (-), for the reason behind the #.
`metaleg-node plan` shows what is still to come."""
