"""Files of our own are replaced whole or not at all; a change of others' files is noticed however it was made."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metaleg_node import files


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files may grow to so many bytes, as on a disk that is nearly full: the kernel writes a part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path, mode: int, durable: bool) -> None:
    file = tmp_path / "lib" / "file"
    for content in (b"x" * 100_000, b"y", b""):
        files.replace(file, content, mode=mode, durable=durable)
        assert file.read_bytes() == content
        assert stat.S_IMODE(file.stat().st_mode) == mode
    assert os.listdir(file.parent) == ["file"]
    assert bool(stat.S_IMODE(file.parent.stat().st_mode) & 0o055) == (mode == 0o644)


def test_a_write_that_stops_half_way_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    files.replace(file, b"old", mode=0o600)
    with room_for(4096), pytest.raises(OSError, match="File too large"):
        files.replace(file, b"n" * 10_000, mode=0o600)
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_replaced_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.replace(tmp_path / "file", b"x", mode=0o600)
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".file.tmp").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        files.replace(tmp_path / "file", b"x", mode=0o600)
    assert precious.read_text() == "mine"


def same_size_and_times(file: Path) -> None:
    status = file.stat()
    file.write_text("b")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def renamed_over(file: Path) -> None:
    status = file.stat()
    other = file.with_name("other")
    other.write_text("b")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(file)


def pass_a_tick(file: Path) -> None:
    """Until the file system's clock, which is a coarse one, has gone on."""
    probe = file.with_name("probe")
    probe.touch()
    while probe.stat().st_ctime_ns <= file.stat().st_ctime_ns:
        probe.touch()


CHANGES: dict[str, Callable[[Path], object]] = {
    "a write that keeps size and times": same_size_and_times,
    "a rename that keeps size and times": renamed_over,
    "its end": Path.unlink,
    "other rights": lambda file: file.chmod(0o640),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_stamp_differs_after(tmp_path: Path, name: str) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("a")
    link.symlink_to(file)
    before = files.stamp(link)
    pass_a_tick(file)
    assert files.stamp(link) == before
    CHANGES[name](file)
    assert files.stamp(link) != before


def test_a_stamp_tells_why_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    assert files.stamp(tmp_path / "none") != files.stamp(tmp_path / "file" / "none")
