"""Notices changes of a file or directory by inotify, through symbolic links and replaced directories.

inotify watches inodes, not names: a watch on the file itself goes deaf when the file is replaced, and one on a
directory when that is replaced. So the directories on the way are watched, and compared with what is there now at each
look.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

MAX_LINKS: Final = 40
"""How many symbolic links the kernel follows in one path (path_resolution(7))."""

_TELLING: Final = ("created", "modified", "moved", "deleted", "closed")
"""The others (opened, closed_no_write) come from reading; to answer them by reading would never end."""

Notice = Callable[[str, str], None]
"""Gets the type of an event and a path; called in the watcher's thread."""


def directories_of(path: Path) -> frozenset[Path]:
    """The directories whose entries decide what a path leads to: those of each symbolic link on the way, that of the
    end, and the end itself if it is a directory. Of a path that breaks off, the last directory there is."""
    found: set[Path] = set()
    here = Path("/")
    rest = list(reversed(path.absolute().parts[1:]))
    links = 0
    while rest:
        part = rest.pop()
        step = here / part
        if part == "..":
            here = here.parent
        elif os.path.islink(step) and links < MAX_LINKS:
            links += 1
            found.add(here)
            target = Path(os.readlink(step))
            here = Path("/") if target.is_absolute() else here
            rest += [one for one in reversed(target.parts) if one != "/"]
        elif rest and not os.path.isdir(step):
            return frozenset({*found, here})
        elif rest:
            here = step
        else:
            found.add(here)
            here = step
    return frozenset({*found, here} if os.path.isdir(here) else found)


class FileWatch:
    """Watches the directories that it is told to, until the next telling. Not safe for use by several threads."""

    def __init__(self, notice: Notice) -> None:
        self._handler = _Handler(notice, self._lost)
        self._observer: BaseObserver | None = None
        self._watched: dict[Path, tuple[int, int]] = {}

    def watch(self, directories: Iterable[Path]) -> None:
        """Watches exactly these directories. Raises OSError if the kernel refuses (limits: inotify(7))."""
        wanted = _identities(directories)
        if self._observer is not None and wanted == self._watched:
            return
        self.stop()
        observer = Observer()
        for directory in wanted:
            observer.schedule(self._handler, str(directory), recursive=False)
        try:
            observer.start()
        except OSError:
            observer.stop()
            raise
        self._observer, self._watched = observer, wanted

    def stop(self) -> None:
        """Ends the watching and its threads."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()

    def _lost(self, path: str) -> None:
        """A directory that was removed may come back with the same inode number; it needs a new watch all the same."""
        self._watched.pop(Path(path), None)


class _Handler(FileSystemEventHandler):
    """Passes on what may mean new content."""

    def __init__(self, notice: Notice, lost: Callable[[str], None]) -> None:
        self._notice = notice
        self._lost = lost

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in _TELLING or (event.is_directory and event.event_type == "modified"):
            return
        source = os.fsdecode(event.src_path)
        if event.event_type == "deleted":
            self._lost(source)
        self._notice(event.event_type, source)
        if event.event_type == "moved" and event.dest_path:
            self._notice(event.event_type, os.fsdecode(event.dest_path))


def _identities(directories: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    found = {}
    for directory in sorted(directories):
        try:
            stat = directory.stat()
        except OSError:
            continue
        found[directory] = (stat.st_dev, stat.st_ino)
    return found
