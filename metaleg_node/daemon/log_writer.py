"""Standard error for a program that must not wait for who reads it.

The reader may be stopped, or the journal be stuck on a full disk, while the pipe between is full. So what is written is
put into a queue, from which a thread of its own writes it. What the queue has no room for is dropped, and counted.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import TextIOBase

from metaleg_node.text import counted

log = logging.getLogger(__name__)

_ROOM = 1_000_000
"""Characters that wait to be written."""
_PATIENCE_SECONDS = 1.0
"""How long the end waits for the reader to take what is left."""


class LogWriter(TextIOBase):
    """Text for a file descriptor. All methods may be called from any thread, and none waits for the descriptor."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._wake = threading.Condition()
        self._waiting: deque[str] = deque()
        self._size = 0
        self._untold = 0
        self._ended = False
        self.dropped = 0
        """Texts that were dropped so far."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """What is written to in the end."""
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Puts the text into the queue, or drops it."""
        with self._wake:
            if self._size + len(text) > _ROOM:
                self.dropped += 1
                self._untold += 1
            else:
                self._waiting.append(text)
                self._size += len(text)
                self._wake.notify()
        return len(text)

    def end(self) -> None:
        """Waits a moment for what is left to be written; nothing is written afterwards."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join(_PATIENCE_SECONDS)

    def _run(self) -> None:
        while text := self._next():
            # Not by way of Python's own file: the lock of that would hold up who else uses it, the end included.
            left = memoryview(text.encode(errors="replace"))
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                # There is nowhere to tell it.
                with self._wake:
                    self.dropped += 1
            self._tell()

    def _next(self) -> str:
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._ended)
            text = self._waiting.popleft() if self._waiting else ""
            self._size -= len(text)
            return text

    def _tell(self) -> None:
        with self._wake:
            # Else it might be dropped itself.
            if self._waiting or not self._untold:
                return
            untold, self._untold = self._untold, 0
        log.warning("%s of the log dropped, since nobody took them in time", counted(untold, "line"))


@contextmanager
def unblocked_stderr() -> Iterator[LogWriter]:
    """While the block runs, nothing that writes to `sys.stderr` waits; set the log up within it."""
    writer = LogWriter(sys.stderr.fileno())
    try:
        with redirect_stderr(writer):
            yield writer
    finally:
        writer.end()
