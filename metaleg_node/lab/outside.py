"""The server outside the lab's cluster, which tells everybody who connects the address that it saw, and its clients."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from metaleg_node.core.model import Family
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import SERVER, SERVER_PORT

ADDRESS_FAMILY: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}


@contextlib.contextmanager
def serving(namespace: Namespace) -> Iterator[None]:
    """Serves both families from a thread of its own. Raises OSError."""
    with namespace.inside():
        listener = socket.create_server(("", SERVER_PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    thread = threading.Thread(target=_serve, args=(listener,), name="lab-server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Only this wakes a thread that waits in accept(2).
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, peer = listener.accept()
        except ConnectionError:
            continue
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            connection.sendall(peer[0].removeprefix("::ffff:").encode())


def source_seen(client: Namespace, family: Family, timeout: float) -> str:
    """The source address of a new connection from a namespace, as the server saw it, or why there is none."""
    try:
        with client.socket(ADDRESS_FAMILY[family], socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect((str(SERVER[family]), SERVER_PORT))
            return sock.recv(2048).decode()
    except OSError as error:
        return error.strerror or str(error)
