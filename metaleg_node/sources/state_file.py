"""The cluster's state from a file, or a directory of files, that somebody else writes.

`StateFile` reads it; what was translated once is kept by document, so that one changed object costs little.
`StateFileSource` keeps a store up to date with it. A state counts only as a whole: while any part of it cannot be read,
all of the state before stays.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from metaleg_node import files
from metaleg_node.configuration.config import Config
from metaleg_node.core.model import ClusterState, ObjectRef
from metaleg_node.core.objects.manifests import Parsed, merge
from metaleg_node.files import Flaw, FlawError
from metaleg_node.sources.documents import (
    DocumentError,
    item_lists,
    looks_like_json,
    read_json,
    read_yaml,
    yaml_warning,
)
from metaleg_node.sources.file_watch import FileWatch, directories_of
from metaleg_node.sources.store import Store

MAX_BYTES: Final = 256 * 1024 * 1024
"""The size of the largest file that is read."""
SUFFIXES: Final = (".yaml", ".yml", ".json")
STOP_TIMEOUT: Final = 2.0
"""How long a stop waits, in seconds; a very large file may be read right now."""
SOURCE: Final = "state file"
DEFAULT_CONFIGMAP: Final = ("metallb-system", "config")

_FLAWS: Final = {
    Flaw.IRREGULAR: "is no regular file (a pipe, device or socket); write the state to a plain file",
    Flaw.TOO_LARGE: f"is larger than {MAX_BYTES >> 20} MiB; keep only the objects that are needed",
    Flaw.CHANGED: "changed while it was read; it is read again when it stays as it is",
}

_log = logging.getLogger(__name__)

_Cache = dict[bytes, tuple[Parsed, ...]]


class StateFileError(Exception):
    """The state file cannot be read; the text names file, place and what to do."""


def configmap_of(config: Config) -> tuple[str, str]:
    """Namespace and name of the ConfigMap with MetalLB's old configuration."""
    return config.cluster.metallb_namespace, config.cluster.metallb_configmap


def load(path: Path, configmap: tuple[str, str] = DEFAULT_CONFIGMAP) -> Parsed:
    """Reads a state file, or a directory of them, once. Raises StateFileError.

    `configmap` is the namespace and name of the ConfigMap with MetalLB's old configuration.
    """
    return StateFile(path, configmap).read()


def places(path: Path, configmap: tuple[str, str] = DEFAULT_CONFIGMAP) -> dict[ObjectRef, str]:
    """Where each object of a state file stands. Raises StateFileError."""
    return StateFile(path, configmap).places()


def read(path: Path, configmap: tuple[str, str] = DEFAULT_CONFIGMAP) -> ClusterState:
    """What `load` gives, as one state. Raises StateFileError."""
    loaded = load(path, configmap)
    store = Store(lambda: None)
    store.replace_all(SOURCE, loaded.objects, loaded.rejections)
    return store.snapshot()


_FIRST: Final = re.compile(rb"^(?!---|[ \t]*(#|\r?$)).", re.MULTILINE)
"""Where an object begins in a document."""


class StateFile:
    """A state file, or a directory of them; reading it again translates only documents, and items of YAML lists, that
    changed."""

    def __init__(self, path: Path, configmap: tuple[str, str] = DEFAULT_CONFIGMAP) -> None:
        self.path = Path(os.path.abspath(path))
        self._configmap = configmap
        self._good: _Cache = {}
        self._attempt: _Cache = {}

    def read(self) -> Parsed:
        """Reads all of it. Raises StateFileError."""
        attempt: _Cache = {}
        try:
            parts = [part for file in self._existing_files() for part in self._read_file(file, attempt)]
        except StateFileError:
            self._attempt = attempt
            raise
        self._good, self._attempt = attempt, {}
        return merge(parts)

    def places(self) -> dict[ObjectRef, str]:
        """Where each object stands: the file and, but for JSON, the line. Raises StateFileError."""
        found: dict[ObjectRef, str] = {}
        for file in self._existing_files():
            content = _content(file).removeprefix(b"\xef\xbb\xbf")
            for line, text in _objects(content):
                with suppress(DocumentError):
                    for part in self._remembered(text, {}):
                        place = f"{file}: line {line}" if line else f"{file}"
                        found |= dict.fromkeys((one.ref for one in (*part.objects, *part.rejections)), place)
        return found

    def files(self) -> list[Path]:
        """The files to read, in their order: the path itself, or what a directory holds."""
        try:
            entries = sorted(os.listdir(self.path))
        except (NotADirectoryError, FileNotFoundError):
            return [self.path]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return [
            self.path / name for name in entries if is_state_file_name(name) and not os.path.isdir(self.path / name)
        ]

    def signature(self) -> tuple[object, ...]:
        """What changes when the content may have; costs a few stat(2) calls."""
        try:
            return tuple((file, files.stamp(file)) for file in self.files())
        except StateFileError as error:
            return (str(error),)

    def directories(self) -> frozenset[Path]:
        """The directories to watch for changes."""
        found = directories_of(self.path)
        try:
            files = self.files()
        except StateFileError:
            return found
        return found.union(*(directories_of(file) for file in files if file != self.path))

    def _existing_files(self) -> list[Path]:
        files = self.files()
        if not files:
            raise StateFileError(f"{self.path}: holds no state file; put one whose name ends in {', '.join(SUFFIXES)}")
        return files

    def _read_file(self, file: Path, attempt: _Cache) -> Iterator[Parsed]:
        content = _content(file)
        if not content or content.isspace():
            raise StateFileError(
                f"{file}: is empty, as a file that is just being written; for a cluster without objects write a comment"
            )
        content = content.removeprefix(b"\xef\xbb\xbf")
        documents, line = 0, 0
        for chunk in [content] if looks_like_json(content) else _chunks(content):
            try:
                parts = self._read_list(chunk, attempt) or self._remembered(chunk, attempt)
            except DocumentError as error:
                raise _broken(file, error, line, documents) from error
            yield from parts
            documents += len(parts)
            line += chunk.count(b"\n")

    def _remembered(self, text: bytes, attempt: _Cache) -> tuple[Parsed, ...]:
        """What a text holds, or held before."""
        digest = hashlib.blake2b(text, digest_size=16).digest()
        parts = attempt.get(digest) or self._attempt.get(digest) or self._good.get(digest)
        if parts is None:
            read = read_json if looks_like_json(text) else read_yaml
            parts = tuple(read(_decoded(text), self._configmap))
        attempt[digest] = parts
        return parts

    def _read_list(self, document: bytes, attempt: _Cache) -> tuple[Parsed, ...]:
        """Nothing for what is no list as kubectl prints it, or is broken: then the whole text tells more."""
        with suppress(DocumentError):
            found = [self._remembered(one, attempt) for _, one in item_lists(document)]
            if found and all(len(parts) == 1 for parts in found):
                return (merge(part for (part,) in found),)
        return ()


def _decoded(content: bytes) -> str:
    """Raises DocumentError."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {content[error.start]:#04x}); save it as UTF-8"
        raise DocumentError(problem, line=content.count(b"\n", 0, error.start) + 1, document=1) from error


def is_state_file_name(name: str) -> bool:
    """Whether a file of this name in a directory of state files is one of them."""
    return not name.startswith(".") and name.endswith(SUFFIXES)


def _chunks(content: bytes) -> Iterator[bytes]:
    """The text cut before each document marker, which cannot stand inside a document (YAML 1.2.2, 9.1.2)."""
    if content[:1] == b"%" or b"\n%" in content or b"\n..." in content:
        yield content  # Directives belong to more than one document's text.
        return
    start = 0
    found = content.find(b"\n---")
    while found >= 0:
        if content[found + 4 : found + 5] in (b"", b" ", b"\t", b"\r", b"\n"):
            yield content[start : found + 1]
            start = found + 1
        found = content.find(b"\n---", found + 4)
    yield content[start:]


def _objects(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The texts with one object or some, each with the line that it begins in; 0 where that cannot be told."""
    if looks_like_json(content):
        yield 0, content
        return
    before = 0
    for chunk in _chunks(content):
        items = [*item_lists(chunk)] or [(begin.start() if (begin := _FIRST.search(chunk)) else 0, chunk)]
        for begin_at, text in items:
            yield before + chunk.count(b"\n", 0, begin_at) + 1, text
        before += chunk.count(b"\n")


def _content(file: Path) -> bytes:
    """All bytes of a regular file. Raises StateFileError."""
    try:
        return files.read(file, MAX_BYTES)
    except FlawError as error:
        raise StateFileError(f"{file}: {_FLAWS[error.flaw]}") from None
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> StateFileError:
    if isinstance(error, FileNotFoundError):
        return StateFileError(f"{file}: does not exist; write the state there, or set cluster.state_file")
    if isinstance(error, PermissionError):
        return StateFileError(f"{file}: permission denied; let the service's user read it and enter its directory")
    return StateFileError(f"{file}: cannot be read: {error.strerror or error}")


def _broken(file: Path, error: DocumentError, lines_before: int, documents_before: int) -> StateFileError:
    line = f"line {lines_before + error.line}, " if error.line is not None else ""
    return StateFileError(f"{file}: {line}document {documents_before + error.document}: {error.problem}")


class StateFileSource:
    """Keeps a store up to date with a state file, from a thread of its own.

    A replaced file is read at once, and so is one that its writer closes. While a file is written it is left alone,
    since half of it may be valid too: a writer that keeps it open is waited for until it has been quiet for `settle`
    seconds. Every `poll` seconds the file is looked at in any case, for file systems that give no notice.
    """

    def __init__(
        self,
        path: Path,
        store: Store,
        *,
        configmap: tuple[str, str] = DEFAULT_CONFIGMAP,
        poll: float = 5.0,
        settle: float = 1.0,
    ) -> None:
        self._file = StateFile(path, configmap)
        self._store = store
        self._poll = poll
        self._settle = settle
        self._watch = FileWatch(self._notice)
        self._thread = threading.Thread(target=self._run, name="state-file", daemon=True)
        self._wake = threading.Condition()
        self._stopped = False
        self._noticed = True
        self._must_read = True
        self._writing: dict[str, float] = {}
        self._seen: tuple[object, ...] | None = None
        self._glimpsed: tuple[object, ...] | None = None
        self._deadline = 0.0
        self._told = ""

    def start(self) -> None:
        """Begins to read and to watch; the first state comes later, by the store's `changed`."""
        warning = yaml_warning()
        if warning:
            _log.warning("%s", warning)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and the watching; a load that is under way no longer changes the store."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_TIMEOUT)

    def ages(self) -> dict[str, float]:
        """A file has no watches."""
        return {}

    def run_once(self) -> float:
        """One look at the file, and a load if it is due. Returns after how many seconds to look again at the latest."""
        with self._wake:
            wait = self._write_wait()
            noticed, must_read = self._noticed, self._must_read
            self._noticed = False
        if wait:
            return wait
        self._arm()
        signature = self._file.signature()
        if not must_read and signature == self._seen:
            self._glimpsed = None
            return self._poll
        if not noticed and signature != self._glimpsed:
            self._glimpsed = signature
            return self._settle
        with self._wake:
            self._must_read = False
        return self._load(signature)

    def _load(self, signature: tuple[object, ...]) -> float:
        self._seen, self._glimpsed = signature, None
        loaded: Parsed | None = None
        problem = ""
        try:
            loaded = self._file.read()
        except StateFileError as error:
            problem = str(error)
        with self._wake:
            if self._stopped:
                return self._poll
            if self._writing:  # A writer came in between: what was read may be half of it.
                self._must_read = True
                return self._settle
        if loaded is None:
            self._report(problem)
        else:
            self._told = ""
            self._store.replace_all(SOURCE, loaded.objects, loaded.rejections)
        return self._poll

    def _report(self, problem: str) -> None:
        remains = "the state before stays in force" if self._store.loaded else "no state is in force yet"
        text = f"state file: {problem}; {remains}"
        if text != self._told:
            _log.error("%s", text)
        self._told = text
        self._store.set_problem(SOURCE, text)

    def _arm(self) -> None:
        try:
            self._watch.watch(self._file.directories())
        except OSError as error:
            _log.warning(
                "state file: no change notices (%s); it is looked at every %g s; see fs.inotify in inotify(7)",
                error.strerror or error,
                self._poll,
            )

    def _write_wait(self) -> float:
        """How long to wait for writers that keep a file open; forgets those that have been quiet."""
        now = time.monotonic()
        for path in [path for path, last in self._writing.items() if now - last >= self._settle]:
            del self._writing[path]
            self._noticed = self._must_read = True
        return max((self._settle - (now - last) for last in self._writing.values()), default=0.0)

    def _notice(self, event: str, path: str) -> None:
        """Called in the watcher's thread."""
        ours = self._concerns(path)
        begins = event in ("created", "modified") and not os.path.islink(path) and not os.path.isdir(path)
        if begins and not ours:
            return
        with self._wake:
            if begins:
                now = time.monotonic()
                self._writing[path] = now
                self._deadline = min(self._deadline, now + self._settle)
            else:
                self._writing.pop(path, None)
                self._noticed = True
                self._must_read = self._must_read or ours
            self._wake.notify()

    def _concerns(self, path: str) -> bool:
        """Whether a path in a watched directory is a file of ours; by name, since links lead there from elsewhere."""
        name = os.path.basename(path)
        if os.path.isdir(self._file.path):
            return is_state_file_name(name)
        return name in (self._file.path.name, os.path.basename(os.path.realpath(self._file.path)))

    def _run(self) -> None:
        while not self._stopped:
            self._sleep(self._guarded_run_once())
        self._watch.stop()

    def _sleep(self, seconds: float) -> None:
        with self._wake:
            if self._writing:
                seconds = min(seconds, self._settle)
            self._deadline = time.monotonic() + seconds
            while not self._stopped and not self._noticed:
                remaining = self._deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._wake.wait(remaining)

    def _guarded_run_once(self) -> float:
        """A defect must not silently end the thread that the whole service listens to."""
        try:
            return self.run_once()
        except Exception as error:
            _log.exception("state file: unexpected error")
            self._report(f"{self._file.path}: unexpected error {error!r}")
            return self._poll
