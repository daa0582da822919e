"""Files that somebody else writes: reading them, whatever stands at their path and whatever happens to them meanwhile,
and telling whether they changed. Files of our own: replacing them in one step."""

from __future__ import annotations

import contextlib
import enum
import os
import stat
from pathlib import Path

Stamp = tuple[int, ...]
"""What a file is like, to be compared and nothing else."""


class Flaw(enum.Enum):
    """Why the content of a file does not count."""

    IRREGULAR = enum.auto()
    TOO_LARGE = enum.auto()
    CHANGED = enum.auto()


class FlawError(Exception):
    """There is something to read, but not a file that counts; the reader says what to do."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.name)
        self.flaw = flaw


def read(path: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes that stayed as it was; never waits for a pipe or device.
    Raises FlawError and OSError."""
    # Before it is opened, too: opening a device may do something.
    _check_regular(path.stat())
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        before = os.fstat(descriptor)
        _check_regular(before)
        content = opened.read(limit + 1)
        after = os.fstat(descriptor)
    if len(content) > limit:
        raise FlawError(Flaw.TOO_LARGE)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FlawError(Flaw.CHANGED)
    return content


def stamp(path: Path) -> Stamp:
    """Differs when the file was written to or replaced, through symbolic links too, or when others may read it now.

    All that stat(2) tells of that counts: a rename changes the inode and may keep times and size, a write within the
    clock's grain may keep the times but not the size, and `cp -p` and `touch -d` set back all times but that of the
    last change of status. Rights count too, and why there is no file to be seen: what was refused may be readable now.
    """
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def replace(path: Path, content: bytes | bytearray, *, mode: int, durable: bool = True) -> None:
    """Puts a whole new file in the place of another in one step; makes its directory when that is missing, for the same
    eyes. `durable`: it survives a loss of power. Raises OSError; then the old file is as it was.

    The temporary file beside it always has the same name, so that a killed process leaves at most one. In its place no
    symbolic link is followed, and a file of another user's, who could read or change what is written, is not used.
    """
    path.parent.mkdir(mode=0o755 if mode & 0o044 else 0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Python's buffer goes on after a short write, until all is written or the kernel says why not.
        with os.fdopen(_opened(temporary, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_directory(path.parent)


def _opened(path: Path, mode: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    if os.fstat(descriptor).st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    path.unlink()
    return os.open(path, flags | os.O_EXCL, mode)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FlawError(Flaw.IRREGULAR)
