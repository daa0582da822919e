"""A small disk of its own for a directory: full, read-only, or with room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SIZE = 256 * 1024


class Disk:
    """A file system in memory, mounted at `path` (mount(8))."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / ".filler"

    def fill(self, free: int = 0) -> None:
        """Leaves so many bytes; to the kernel, whole pages."""
        self._filler.write_bytes(b"")
        with suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while file.write(b"." * 4096):
                pass
        os.truncate(self._filler, self._filler.stat().st_size - free)

    def empty(self) -> None:
        """There is room again."""
        self._filler.unlink()

    def lock(self) -> None:
        """Makes it read-only, as the kernel does after an error."""
        _run("mount", "-o", "remount,ro", str(self.path))

    def unlock(self) -> None:
        _run("mount", "-o", "remount,rw", str(self.path))

    @property
    def names(self) -> list[str]:
        """What is there, but for what fills it."""
        return sorted({*os.listdir(self.path)} - {self._filler.name})


@contextmanager
def small_disk(path: Path) -> Iterator[Disk]:
    """While the block runs, `path`, which is made when it is missing, is one."""
    path.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=755", "metaleg-test", str(path))
    try:
        yield Disk(path)
    finally:
        # Also while a process still has a file there.
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
