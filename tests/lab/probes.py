"""One new connection from a machine of the lab, and what its other end saw.

Answers are short words that read well in a table: an address, or why there is none.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from metaleg_node.core.model import Address, Family
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.outside import ADDRESS_FAMILY

_ECHO: dict[Family, tuple[int, int]] = {4: (socket.IPPROTO_ICMP, 8), 6: (socket.IPPROTO_ICMPV6, 128)}
_WORDS = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EACCES: "prohibited",
    errno.EPERM: "prohibited",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the other end saw: `source` is the address it answered to (its text), `by` the machine that answered.

    Without an answer `source` is empty and `error` one of timeout, refused, unreachable, prohibited, reset.
    """

    source: str = ""
    port: int = 0
    by: str = ""
    error: str = ""

    def __str__(self) -> str:
        return self.source or self.error


def tcp(client: Namespace, destination: Address, port: int, timeout: float) -> Answer:
    """A TCP connection, closed after one line; `timeout` in seconds."""
    return _ask(client, socket.SOCK_STREAM, destination, port, timeout)


def udp(client: Namespace, destination: Address, port: int, timeout: float) -> Answer:
    """One datagram from a new port."""
    return _ask(client, socket.SOCK_DGRAM, destination, port, timeout)


def icmp(
    client: Namespace, destination: Address, timeout: float, source_of: Callable[[bytes, float], Address | None]
) -> Answer:
    """One echo request with a content of its own; `source_of` tells by that content where it arrived from."""
    family: Family = 4 if destination.version == 4 else 6
    protocol, request = _ECHO[family]
    payload = os.urandom(16)
    with client.socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((str(destination), 0))
            sock.send(bytes([request, 0, 0, 0, 0, 0, 0, 1]) + payload)
            sock.recv(2048)
        except OSError as error:
            return Answer(error=_word(error))
    source = source_of(payload, timeout)
    return Answer(source=str(source), by="outside") if source else Answer(error="timeout")


def open_tcp(client: Namespace, destination: Address, port: int, timeout: float) -> socket.socket:
    """A connected TCP socket. Raises OSError."""
    sock = client.socket(ADDRESS_FAMILY[4 if destination.version == 4 else 6], socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect((str(destination), port))
    except OSError:
        sock.close()
        raise
    return sock


def _ask(client: Namespace, kind: int, destination: Address, port: int, timeout: float) -> Answer:
    with client.socket(ADDRESS_FAMILY[4 if destination.version == 4 else 6], kind) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((str(destination), port))
            sock.sendall(b"hello\n")
            words = sock.recv(2048).decode().split()
        except OSError as error:
            return Answer(error=_word(error))
    return Answer(source=words[0], port=int(words[1]), by=words[2]) if words else Answer(error="reset")


def _word(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionResetError):
        return "reset"
    return _WORDS.get(error.errno or 0, str(error))
