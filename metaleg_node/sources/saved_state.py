"""The last complete state of the cluster on disk, for a start while the API is out of reach.

The file is a valid state file: the objects as the API gave them, less what nobody here reads. It is JSON, which is YAML
too and loads many times faster, with one object on each line.
A thread of its own writes it some seconds after a change, so that neither the disk nor the loop has much to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from metaleg_node import files
from metaleg_node.core.model import ClusterState
from metaleg_node.sources import state_file
from metaleg_node.sources.store import Store
from metaleg_node.text import rfc3339

log = logging.getLogger(__name__)

FILE: Final = "cluster-state.yaml"
SETTLE_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 10.0
"""After what could not be written."""
_REST, _AT_MOST = 50.0, 60.0
"""A large state that changes all the time is not written all the time: what comes after a write waits so many times as
long as that took, in seconds at most."""
STOP_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A state that was saved, and when (RFC 3339)."""

    state: ClusterState
    time: str


class SavedState:
    """The file in a directory. `configmap` is the namespace and name of the ConfigMap with MetalLB's old configuration.
    `changed` is called from the thread that writes when `problem` is another one. `offer` and `load` may be called from
    any thread."""

    def __init__(
        self,
        directory: Path,
        configmap: tuple[str, str] = state_file.DEFAULT_CONFIGMAP,
        settle: float = SETTLE_SECONDS,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._path = directory / FILE
        self._configmap = configmap
        self._settle = settle
        self._changed = changed
        self.problem = ""
        """Why the state that was offered last cannot be saved; it is tried again."""
        self._wake = threading.Condition()
        self._offered: ClusterState | None = None
        self._written: ClusterState | None = None
        self._objects: Callable[[], Iterable[bytes]] = tuple
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="saved-state", daemon=True)

    def exists(self) -> bool:
        return self._path.is_file()

    def load(self) -> Saved | None:
        """What was saved last; None, and a line in the log, if there is nothing that can be used."""
        if not self.exists():
            return None
        try:
            state = state_file.read(self._path, self._configmap)
            seconds = self._path.stat().st_mtime
        except (state_file.StateFileError, OSError) as error:
            log.warning("the last known state cannot be used: %s", error)
            return None
        return Saved(state=state, time=rfc3339(datetime.fromtimestamp(seconds, UTC)))

    def start(self) -> None:
        """Begins to write what is offered."""
        self._thread.start()

    def offer(self, store: Store) -> None:
        """What the store holds is a complete state, and is to be on disk soon."""
        with self._wake:
            self._offered, self._objects = store.snapshot(), store.raw
            self._wake.notify()

    def stop(self) -> None:
        """Writes what is still to be written, unless the disk takes too long for that."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        took = 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._offered is not self._written)
                pause = RETRY_SECONDS if self.problem else max(self._settle, min(_REST * took, _AT_MOST))
                self._wake.wait_for(lambda: self._stopping, pause)
                state, stopping = self._offered, self._stopping
            began = time.monotonic()
            if state is not None and state is not self._written and self._write(self._objects()):
                self._written = state
            took = time.monotonic() - began
            if stopping:
                if self.problem:
                    # Nobody asks for it any more.
                    log.warning("%s", self.problem)
                return

    def _write(self, objects: Iterable[bytes]) -> bool:
        """Whether all of it is on the disk now."""
        # In one go, which holds nobody up: the file is as large as all that is kept.
        content = b'{"apiVersion":"v1","kind":"List","items":[\n' + b",\n".join(objects) + b"\n]}\n"
        problem = ""
        try:
            if not self.exists() or self._path.read_bytes() != content:
                files.replace(self._path, content, mode=0o600)
        except OSError as error:
            problem = f"{self._path}: the last known state cannot be saved: {error.strerror or error}"
        before, self.problem = self.problem, problem
        if problem != before:
            self._changed()
        return not problem
