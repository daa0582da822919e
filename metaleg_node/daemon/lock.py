"""One instance per network namespace.

The lock is a listening Unix socket in the abstract namespace (unix(7)): the kernel keeps those names per network
namespace, which is just the scope of the rules and routes that two instances would fight over, and drops them when the
holder dies, however it dies. Any user may take such a name, so who holds it is told with its user.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NAME = "metaleg-node"
SERVICE_USER = "metaleg-node"
"""Whom the package's service runs as (systemd/metaleg-node.service)."""
_CREDENTIALS = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid, gid."""
_PATIENCE = struct.pack("ll", 1, 0)
"""struct timeval of socket(7), for SO_SNDTIMEO: how long to wait for room in the holder's queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that holds the lock; `pid` is 0 when it is one of a PID namespace that cannot be seen from here."""

    pid: int
    uid: int

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else "a process of another PID namespace"
        try:
            return f"{process} of user {pwd.getpwuid(self.uid).pw_name} (uid {self.uid})"
        except KeyError:
            return f"{process} of uid {self.uid}"

    @property
    def is_stranger(self) -> bool:
        """Whether it is of none of the users that may be expected to run metaleg-node here."""
        return self.uid not in {0, os.geteuid(), *_service_user()}


class AlreadyRunning(Exception):  # noqa: N818 - it is a state of affairs
    """Another process holds the lock; None when it does not tell who it is."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(
            f"the lock of metaleg-node is taken: {complaint(holder)}"
            if holder and holder.is_stranger
            else f"metaleg-node already runs in this network namespace ({holder or 'another process'}): "
            "stop it first, for example with `systemctl stop metaleg-node`"
        )
        self.holder = holder


def complaint(holder: Holder) -> str:
    """What is wrong with a stranger that holds the lock, and what to do."""
    find = f"`ps -fp {holder.pid}`" if holder.pid else "`ss -xap`"
    return (
        f"{holder} holds the abstract socket @{NAME}, and is no metaleg-node of root's, of the user {SERVICE_USER} or "
        f"of this one: look at it with {find}, and end it"
    )


@contextmanager
def single_instance(name: str = NAME) -> Iterator[None]:
    """Holds the lock while the block runs. Raises AlreadyRunning; OSError when the kernel gives no socket at all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(f"\0{name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise AlreadyRunning(holder_of(name)) from None
        # SO_PEERCRED tells who called listen().
        listener.listen()
        thread = threading.Thread(target=_turn_away, args=(listener,), name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            # Unlike a close, it ends the wait for a connection.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def is_held(name: str = NAME) -> bool:
    """Whether somebody holds the lock in this network namespace. Raises OSError without /proc."""
    # proc(5): the last column is the name, with @ for the NUL byte of the abstract namespace.
    sockets = Path("/proc/self/net/unix").read_text(encoding="utf-8", errors="replace")
    return any(line.endswith(f" @{name}") for line in sockets.splitlines())


def holder_of(name: str = NAME) -> Holder | None:
    """Who holds the lock in this network namespace; None when nobody does, or when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        try:
            probe.connect(f"\0{name}")
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return Holder(pid=pid, uid=uid)


def _turn_away(listener: socket.socket) -> None:
    """Makes room in the queue for the next who asks."""
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def _service_user() -> Iterator[int]:
    with suppress(KeyError):
        yield pwd.getpwnam(SERVICE_USER).pw_uid
