"""CNI's results as libcni keeps them, one file for each network of a pod, and who tells of them over a Unix socket.

This runs as root, since the files are root's alone, and does nothing else: it reads one directory.
"""

from __future__ import annotations

import json
import logging
import os
import select
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from metaleg_node.core.model import Attachment
from metaleg_node.core.objects import cni
from metaleg_node.sources.cni_results import BEAT_SECONDS, line
from metaleg_node.sources.file_watch import FileWatch, directories_of
from metaleg_node.text import printable

log = logging.getLogger(__name__)

DIRECTORY: Final = Path("/var/lib/cni/results")
_MAX_BYTES: Final = 1024 * 1024
_POLL_SECONDS: Final = 1.0
"""So often the directory is looked at anyway."""
_SEND_SECONDS: Final = 1.0


class Results:
    """The files of one directory. What was read is kept while the file stays the same."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, tuple[tuple[int, int, int], Attachment | None]] = {}
        self._complained: set[str] = set()

    def read(self) -> tuple[Attachment, ...]:
        """All attachments, oldest first. What is older than the machine's last start is of pods that are gone, and a
        file that is being written counts once it is whole."""
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        found = dict(self._files())
        self._known = {name: known for name, known in self._known.items() if name in found}
        self._complained &= found.keys()
        for name, signature in found.items():
            if name not in self._known or self._known[name][0] != signature:
                self._look(name, signature)
        some = [one for _, one in self._known.values() if one and one.since >= booted]
        return tuple(sorted(some, key=lambda one: (one.since, one.namespace, one.name)))

    def _files(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        with suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(OSError):
                    stat = entry.stat(follow_symlinks=False)
                    if entry.is_file(follow_symlinks=False) and 0 < stat.st_size <= _MAX_BYTES:
                        yield entry.name, (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _look(self, name: str, signature: tuple[int, int, int]) -> None:
        self._known.pop(name, None)
        try:
            raw = json.loads((self._directory / name).read_bytes())
            self._known[name] = signature, cni.read(raw, since=signature[1] / 1e9)
        except (OSError, ValueError, RecursionError) as error:
            if name not in self._complained:
                log.debug("%s: %s", printable(name), printable(str(error)[:200]))
            self._complained.add(name)


def serve(directory: Path, path: Path) -> None:
    """Tells everybody who connects to the socket all attachments, and again whenever they change, until the process
    ends. Raises OSError."""
    bell_out, bell_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(_event: str, _path: str) -> None:
        with suppress(BlockingIOError):
            os.write(bell_in, b"x")

    watch, results = FileWatch(ring), Results(directory)
    with _listening(path) as listener, selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        waiting.register(bell_out, selectors.EVENT_READ)
        listeners: list[socket.socket] = []
        told, last = b"", 0.0
        while True:
            _arm(watch, directory)
            now = line(results.read())
            if now != told or time.monotonic() - last >= BEAT_SECONDS:
                listeners = [one for one in listeners if _tell(one, now)]
                told, last = now, time.monotonic()
            for key, _ in waiting.select(_POLL_SECONDS):
                if key.fileobj is not listener:
                    with suppress(BlockingIOError):
                        os.read(bell_out, select.PIPE_BUF)
                elif _tell(one := listener.accept()[0], told):
                    listeners.append(one)


def _arm(watch: FileWatch, directory: Path) -> None:
    try:
        watch.watch(directories_of(directory))
    except OSError as error:
        log.warning("no change notices (%s); %s is looked at each second", error.strerror or error, directory)


def _listening(path: Path) -> socket.socket:
    """A socket in place of one that a process before left; its group may connect, which is the service's."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o660)
    listener.listen()
    return listener


def _tell(listener: socket.socket, text: bytes) -> bool:
    """Whether it listens still; one that does not read is let go, and comes back."""
    try:
        listener.settimeout(_SEND_SECONDS)
        listener.sendall(text)
    except OSError:
        listener.close()
        return False
    return True
