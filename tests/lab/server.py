"""The programs that answer in the lab: one thread serves the server outside and every pod.

Each line (TCP) or datagram (UDP) is answered with the source address and port it came from, the name of the machine
that answers, and the line itself; echo requests (ICMP) that reach the server outside are remembered by their content.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address

from metaleg_node.core.model import Address, Family
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.outside import ADDRESS_FAMILY

_ICMP: dict[Family, int] = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_ECHO_REQUEST: dict[Family, int] = {4: 8, 6: 128}


class Server:
    """Answers on the sockets that `listen` opens; `start` and `stop` its thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, name="lab-server", daemon=True)
        self._echoes: dict[bytes, Address] = {}
        self._echo_seen = threading.Condition()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and closes every socket."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def listen(self, namespace: Namespace, name: str, port: int) -> None:
        """Answers as `name` on a TCP and UDP port of a namespace, both families. Raises OSError.

        To be called before `start`, like `watch_echoes`.
        """
        for family in ADDRESS_FAMILY.values():
            tcp = _bound(namespace, family, socket.SOCK_STREAM, port)
            tcp.listen(512)
            self._register(tcp, lambda s: self._accept(s, name))
            self._register(_bound(namespace, family, socket.SOCK_DGRAM, port), lambda s: self._datagram(s, name))

    def watch_echoes(self, namespace: Namespace) -> None:
        """Remembers the source of every echo request that a namespace receives. Raises OSError."""
        for version, family in ADDRESS_FAMILY.items():
            raw = namespace.socket(family, socket.SOCK_RAW, _ICMP[version])
            self._register(raw, self._echo4 if version == 4 else self._echo6)

    def echo_source(self, payload: bytes, timeout: float) -> Address | None:
        """From which address the echo request with this content arrived; None when none came within `timeout` s."""
        with self._echo_seen:
            self._echo_seen.wait_for(lambda: payload in self._echoes, timeout)
            return self._echoes.get(payload)

    def _register(self, sock: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, handler)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)

    def _accept(self, listener: socket.socket, name: str) -> None:
        connection, peer = listener.accept()
        buffer = bytearray()
        self._register(connection, lambda s: self._lines(s, buffer, f"{peer[0]} {peer[1]} {name}".encode()))

    def _lines(self, connection: socket.socket, buffer: bytearray, about: bytes) -> None:
        try:
            data = connection.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()
            return
        buffer += data
        *lines, rest = buffer.split(b"\n")
        buffer[:] = rest
        connection.sendall(b"".join(b"%s %s\n" % (about, line) for line in lines))

    def _datagram(self, sock: socket.socket, name: str) -> None:
        data, peer = sock.recvfrom(65536)
        sock.sendto(f"{peer[0]} {peer[1]} {name} ".encode() + data, peer)

    def _echo4(self, sock: socket.socket) -> None:
        packet, peer = sock.recvfrom(65536)
        self._note_echo(4, packet[(packet[0] & 15) * 4 :], peer[0])

    def _echo6(self, sock: socket.socket) -> None:
        message, peer = sock.recvfrom(65536)
        self._note_echo(6, message, peer[0])

    def _note_echo(self, family: Family, message: bytes, source: str) -> None:
        if message and message[0] == _ECHO_REQUEST[family]:
            with self._echo_seen:
                self._echoes[message[8:]] = ip_address(source)
                self._echo_seen.notify_all()


def _bound(namespace: Namespace, family: int, kind: int, port: int) -> socket.socket:
    sock = namespace.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", port))
    return sock
