"""Throw-away network namespaces, so that tests meet the real kernel and never the machine's own network."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.patience import patient

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Netns:
    """A named network namespace, as in ip-netns(8)."""

    name: str

    def run(self, *argv: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a program in the namespace; a failure raises AssertionError with its output, unless `check` is off."""
        return execute("ip", "netns", "exec", self.name, *argv, stdin=stdin, check=check)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Puts the calling thread, and the threads and processes it starts meanwhile, into the namespace."""
        with open("/proc/thread-self/ns/net") as home, (Path("/run/netns") / self.name).open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())


def execute(*argv: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a program; a failure raises AssertionError with its output, unless `check` is off."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=patient(30), check=False)
    assert done.returncode == 0 or not check, f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")
