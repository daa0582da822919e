"""One instance per network namespace.

The lock is a listening Unix socket in the abstract namespace (unix(7)): the kernel keeps those names per network
namespace, which is just the scope of the rules and routes that two instances would fight over, and drops them when the
holder dies, however it dies.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "metaleg-node"
_CREDENTIALS = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid, gid."""


class AlreadyRunning(Exception):  # noqa: N818 - it is a state of affairs
    """Another instance holds the lock; `pid` is its process, 0 when the kernel does not tell."""

    def __init__(self, pid: int) -> None:
        process = f"process {pid}" if pid else "another process"
        super().__init__(
            f"metaleg-node already runs in this network namespace ({process}): "
            "stop it first, for example with `systemctl stop metaleg-node`"
        )
        self.pid = pid


@contextmanager
def single_instance(name: str = NAME) -> Iterator[None]:
    """Holds the lock while the block runs. Raises AlreadyRunning; OSError when the kernel gives no socket at all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        try:
            holder.bind(f"\0{name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise AlreadyRunning(_holder(name)) from None
        # SO_PEERCRED tells who called listen(); nothing is ever accepted.
        holder.listen()
        yield


def is_held(name: str = NAME) -> bool:
    """Whether an instance runs in this network namespace, told without connecting: a connection would stay in the
    holder's queue. Raises OSError without /proc."""
    # proc(5): the last column is the name, with @ for the NUL byte of the abstract namespace.
    sockets = Path("/proc/self/net/unix").read_text(encoding="utf-8", errors="replace")
    return any(line.endswith(f" @{name}") for line in sockets.splitlines())


def _holder(name: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(f"\0{name}")
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return 0
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid
