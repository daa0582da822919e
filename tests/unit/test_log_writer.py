"""What is written to standard error never waits for its reader."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress

import pytest

from metaleg_node.daemon import log as logs
from metaleg_node.daemon import log_writer
from metaleg_node.daemon.log_writer import LogWriter
from metaleg_node.lab.daemons import wait_until
from tests.patience import patient
from tests.unit.test_log import restored_logging

__all__ = ["restored_logging"]
OURS = logging.getLogger("metaleg_node.test")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe, to read from and to write to."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def fill(end: int) -> int:
    """Writes until a pipe is full; how many bytes that were."""
    os.set_blocking(end, False)
    size = 0
    with suppress(BlockingIOError):
        while True:
            size += os.write(end, b"." * 4096)
    os.set_blocking(end, True)
    return size


def read(end: int, size: int) -> str:
    found = b""
    while len(found) < size:
        found += os.read(end, size - len(found))
    return found.decode()


def test_all_is_written_in_order(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    lines = [f"line {number}\n" for number in range(1000)]
    for line in lines:
        writer.write(line)
    writer.end()
    assert read(pipe[0], len("".join(lines))) == "".join(lines)
    assert writer.dropped == 0


def test_nobody_waits_for_a_reader_that_is_stopped_and_what_is_lost_is_counted_and_told(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "_ROOM", 1000)
    filled = fill(pipe[1])
    writer = LogWriter(pipe[1])
    with redirect_stderr(writer):
        logs.setup(level="info", form="text", environ={})
    for number in range(100):
        OURS.info("%s", f"{number:03}" * 30)
    lost = writer.dropped
    assert 80 <= lost < 100
    read(pipe[0], filled)
    os.set_blocking(pipe[0], False)
    heard = ""

    def told() -> bool:
        nonlocal heard
        with suppress(BlockingIOError):
            heard += os.read(pipe[0], 65536).decode()
        return "dropped" in heard

    assert wait_until(told, patient(5))
    assert f"warning: {lost} lines of the log dropped" in heard
    assert heard.count("info: ") == 100 - lost
    writer.end()


def test_an_end_does_not_wait_long_either(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "_PATIENCE_SECONDS", 0.05)
    fill(pipe[1])
    writer = LogWriter(pipe[1])
    writer.write("x")
    writer.end()


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    writer = LogWriter(pipe[1])
    writer.write("x\n")
    writer.write("y\n")
    writer.end()
    assert writer.dropped == 2


PROGRAM = """
import sys, warnings
from metaleg_node.daemon import log
from metaleg_node.daemon.log_writer import unblocked_stderr
with unblocked_stderr():
    log.setup(level="info", form="text")
    print("by print", file=sys.stderr)
    warnings.warn("by Python")
print("afterwards", file=sys.stderr)
"""


def run(stderr: int) -> int:
    return subprocess.run([sys.executable, "-c", PROGRAM], stderr=stderr, timeout=patient(20), check=False).returncode


def test_whatever_writes_to_standard_error_comes_by_here(pipe: tuple[int, int]) -> None:
    assert run(pipe[1]) == 0
    os.close(pipe[1])
    text = os.read(pipe[0], 65536).decode()
    assert text.startswith("by print\n")
    assert "by Python" in text
    assert text.endswith("afterwards\n")
