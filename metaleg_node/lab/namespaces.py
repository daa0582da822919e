"""Named network namespaces: made, entered, and removed together with whatever still runs in them.

A thread can enter a namespace for a moment (setns(2) moves the calling thread only); a socket or process that it
opens there stays there. That is how the lab works in twenty namespaces without twenty processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metaleg_node.kernel import process
from metaleg_node.kernel.errors import KernelError

PREFIX = "mlab"
_DIRECTORY = Path("/run/netns")
_OWNER = re.compile(rf"{PREFIX}-(\d+)-")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A named network namespace, as in ip-netns(8)."""

    name: str

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Puts the calling thread, and the processes it starts meanwhile, into the namespace. Raises OSError."""
        with open("/proc/thread-self/ns/net") as home, (_DIRECTORY / self.name).open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace; any thread may use it afterwards."""
        with self.inside():
            return socket.socket(family, kind, protocol)

    def run(self, *argv: str, stdin: str = "") -> str:
        """Runs a program here and returns what it printed. Raises KernelError with its complaint when it fails."""
        with self.inside():
            done = process.run(argv, stdin=stdin)
        if done.returncode:
            where = f"in namespace {self.name}: `{' '.join(argv)}` ended with {done.returncode}"
            raise KernelError(f"{where}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, commands: Iterable[str]) -> None:
        """Runs commands of ip(8), without the leading `ip`, in one process; stops at the first that fails."""
        self.run("ip", "-batch", "-", stdin="\n".join(commands))

    def sysctl(self, values: Mapping[str, str | int]) -> None:
        """Sets sysctls, named by their path below /proc/sys/net. Raises OSError."""
        with self.inside():
            for name, value in values.items():
                (Path("/proc/sys/net") / name).write_text(str(value))


def create(names: Iterable[str]) -> None:
    """Makes namespaces, each with nothing but a loopback interface that is up. Raises KernelError."""
    _DIRECTORY.parent.mkdir(exist_ok=True)
    names = tuple(names)
    with _signals_wait():
        _ip_batch(f"netns add {name}" for name in names)
    for name in names:
        Namespace(name=name).ip(["link set lo up"])


def remove(names: Iterable[str]) -> None:
    """Kills what still runs in the namespaces and removes them; those that are not there are passed over."""
    present = [name for name in names if (_DIRECTORY / name).exists()]
    for process_id in _processes({(_DIRECTORY / name).stat().st_ino for name in present}):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    _ip_batch(f"netns delete {name}" for name in present)


def remove_stale() -> None:
    """Removes the namespaces of labs whose process is gone."""
    names = sorted(path.name for path in _DIRECTORY.glob(f"{PREFIX}-*")) if _DIRECTORY.exists() else []
    remove(name for name in names if (owner := _OWNER.match(name)) and not Path(f"/proc/{owner[1]}").exists())


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Who asks the process to end is heard after the block: a program that was just started would go on without us, and
    make anew what is being removed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _processes(inodes: set[int]) -> Iterator[int]:
    """The other processes whose network namespace is one of these."""
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        process_id = int(path.parent.parent.name)
        with contextlib.suppress(OSError):
            if path.stat().st_ino in inodes and process_id != os.getpid():
                yield process_id


def _ip_batch(commands: Iterable[str]) -> None:
    done = process.run(["ip", "-batch", "-"], stdin="\n".join(commands))
    if done.returncode:
        raise KernelError(f"ip netns failed: {done.stderr.strip()}; is this process root in its container?")


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")
