"""What CNI's results say, from the unit that may read them: one line of JSON for each state, over a Unix socket.

The files are root's alone, and the service is not root. `metaleg-node cni-results` reads them and listens; this side
believes nobody but root.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from io import BufferedIOBase
from typing import Final

from metaleg_node.core.model import Attachment, CniResults
from metaleg_node.core.objects.cni import made, written
from metaleg_node.core.objects.manifests import Parsed
from metaleg_node.sources.store import Store
from metaleg_node.text import printable

log = logging.getLogger(__name__)

SOURCE: Final = "CNI results"
BEAT_SECONDS: Final = 5.0
"""So often everything is told again at least."""
_SILENCE: Final = 3 * BEAT_SECONDS
_PAUSE: Final = 0.5
_STOP_SECONDS: Final = 2.0
_MAX_LINE: Final = 4 * 1024 * 1024
"""A node has some hundred pods, each of some hundred bytes."""
_CREDENTIALS: Final = struct.Struct("iII")
"""struct ucred (unix(7), SO_PEERCRED): process, user and group."""


class ResultsError(Exception):
    """Nobody tells, or what is told cannot be understood; the text says why."""


def line(attachments: Iterable[Attachment]) -> bytes:
    """All attachments as they are told."""
    return json.dumps([written(one) for one in attachments], separators=(",", ":")).encode() + b"\n"


def understood(text: bytes) -> tuple[Attachment, ...]:
    """The attachments of a line, oldest first. Raises ResultsError."""
    try:
        found = json.loads(text)
        if not isinstance(found, list):
            raise ValueError("is no list")
        return tuple(sorted(map(made, found), key=lambda one: one.since))
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"what is told is not understood: {printable(str(error)[:200])}") from error


def read(path: str, timeout: float = 1.0) -> CniResults:
    """What is told now; none, and not live, where nobody tells within `timeout` seconds."""
    with suppress(ResultsError, OSError), _connected(path, timeout) as connection, connection.makefile("rb") as lines:
        return CniResults(attachments=understood(_next(lines)), live=True)
    return CniResults()


class CniResultsSource:
    """Keeps the store up to date with what is told, from a thread of its own. What was told last stays when nobody
    tells any more."""

    def __init__(self, path: str, store: Store) -> None:
        self._path = path
        self._store = store
        self._last = CniResults()
        self._stopped = threading.Event()
        self._connection: socket.socket | None = None
        self._told = ""
        self._thread = threading.Thread(target=self._run, name="cni-results", daemon=True)

    def start(self) -> None:
        """Begins to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        connection = self._connection
        if connection:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._follow()
            except (ResultsError, OSError) as error:
                self._lost(str(error))
            except Exception as error:
                log.exception("CNI's results: unexpected error")
                self._lost(f"unexpected error {error!r}")
            self._stopped.wait(_PAUSE)

    def _follow(self) -> None:
        with _connected(self._path, _SILENCE) as connection, connection.makefile("rb") as lines:
            self._connection = connection
            while not self._stopped.is_set():
                self._put(CniResults(attachments=understood(_next(lines)), live=True))
                if self._told:
                    log.info("CNI's results are told again by %s", self._path)
                self._told = ""

    def _lost(self, why: str) -> None:
        self._connection = None
        if self._stopped.is_set():
            return
        if why != self._told:
            log.warning("CNI's results are not told by %s: %s", self._path, why)
        self._told = why
        self._put(CniResults(attachments=self._last.attachments))

    def _put(self, results: CniResults) -> None:
        self._last = results
        self._store.replace(SOURCE, {None: Parsed(objects=(results,))})


def _connected(path: str, timeout: float) -> socket.socket:
    """A connection to who tells. Raises OSError, and ResultsError if that is not root."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(told)
        if user not in (0, os.geteuid()):
            raise ResultsError(f"user {user} listens there, not root")
    except BaseException:
        connection.close()
        raise
    return connection


def _next(lines: BufferedIOBase) -> bytes:
    """Raises ResultsError at the end."""
    text = lines.readline(_MAX_LINE)
    if not text.endswith(b"\n"):
        raise ResultsError("it ended" if len(text) < _MAX_LINE else "a line is too long")
    return text
