"""The few netlink messages for which no library works in all the versions that we run with.

Conntrack entries with their labels (conntrack(8) prints labels only through a system-wide file, pyroute2 needs 0.2 ms
for each entry), the nf_tables generation, and rules or routes of others, which are deleted by the very message that
described them. Formats: netlink(7); attributes are type-length-value, aligned to four bytes.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from metaleg_node.kernel.errors import KernelError, refusal

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence number, port id."""

_LENGTH_AND_KIND = struct.Struct("=IH")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_DUMP_INTERRUPTED = 0x10
_SOL_NETLINK, _CAP_ACK, _STRICT_CHECK = 270, 10, 12
_RECEIVE_SIZE = 1 << 17
_TIMEOUT = 30.0


class Message(NamedTuple):
    """One netlink message without its header's length; `port` is the port id of the socket that caused it."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


class InterruptedDumpError(KernelError):
    """What was listed changed meanwhile: the answer may lack entries."""


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, port = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            return
        yield Message(kind, flags, sequence, port, data[at + HEADER.size : at + length])
        at += _aligned(length)


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes from offset `at` on, by type, without the flag bits of the type."""
    found = {}
    end = len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += _aligned(length)
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One encoded attribute."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """One encoded attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(inner))


class NetlinkSocket:
    """Requests and their answers on one netlink family. Not for use by several threads at a time."""

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._socket: socket.socket | None = None
        self._sequence = 0

    def open(self) -> None:
        """Opens the socket in the calling thread's network namespace. Raises KernelError."""
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._protocol)
        except OSError as error:
            raise refusal("open a netlink socket", error.errno or 0) from error
        try:
            sock.bind((0, 0))
        except OSError as error:
            sock.close()
            raise refusal("open a netlink socket", error.errno or 0) from error
        sock.settimeout(_TIMEOUT)
        sock.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        # Without it the kernel ignores what a dump of routes asks for, and gives all.
        sock.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        self._socket = sock

    def close(self) -> None:
        """Closes the socket; closing twice is fine."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port id that notifications carry in their header when this socket caused them."""
        return int(self._opened().getsockname()[0])

    def dump(
        self, kind: int, body: bytes, what: str, *, holding: Collection[bytes] = (), whole: bool = False
    ) -> Iterator[Message]:
        """The messages that answer a dump request. `what` names the request in errors. Raises KernelError.

        `holding`: datagrams in which none of these stands may be passed over, which costs a tenth of reading them.
        `whole`: an answer during which something changed ends in an InterruptedDumpError. It is read to its end, since
        the kernel takes no other request for a dump before that (EBUSY).
        """
        sequence = self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, [body])
        interrupted = 0
        while True:
            data = self._receive(what)
            if holding and not any(part in data for part in holding) and not _has_end(data):
                continue
            for message in messages(data):
                if message.sequence != sequence:
                    continue
                interrupted |= message.flags & _DUMP_INTERRUPTED
                if message.kind in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_for(message, what)
                    if whole and interrupted:
                        raise InterruptedDumpError(f"cannot {what}: it changed meanwhile", code=errno.EINTR)
                    return
                yield message

    def change(self, kind: int, bodies: Sequence[bytes], what: str) -> list[int]:
        """Sends one acknowledged request for each body, all in one datagram, and tells the errno of each, 0 for done.

        Raises KernelError when the kernel does not answer.
        """
        last = self._send(kind, NLM_F_REQUEST | NLM_F_ACK, bodies)
        first = last - len(bodies) + 1
        codes: dict[int, int] = {}
        while len(codes) < len(bodies):
            for message in messages(self._receive(what)):
                if message.kind == NLMSG_ERROR and first <= message.sequence <= last:
                    codes[message.sequence] = error_code(message)
        return [codes[number] for number in range(first, last + 1)]

    def ask(self, kind: int, body: bytes, what: str) -> bytes:
        """The body of the one message that answers a request. Raises KernelError."""
        (answer,) = self.ask_all(kind, [body], what)
        if answer.kind == NLMSG_ERROR:
            _raise_for(answer, what)
        return answer.body

    def ask_all(self, kind: int, bodies: Sequence[bytes], what: str) -> list[Message]:
        """The one message that answers each request, all sent in one datagram; NLMSG_ERROR for one that is refused.

        Raises KernelError when the kernel does not answer.
        """
        last = self._send(kind, NLM_F_REQUEST, bodies)
        first = last - len(bodies) + 1
        answers: dict[int, Message] = {}
        while len(answers) < len(bodies):
            for message in messages(self._receive(what)):
                if first <= message.sequence <= last:
                    answers[message.sequence] = message
        return [answers[number] for number in range(first, last + 1)]

    def _send(self, kind: int, flags: int, bodies: Sequence[bytes]) -> int:
        parts = []
        for body in bodies:
            self._sequence += 1
            padded = body + bytes(-len(body) % 4)
            parts.append(HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0) + padded)
        try:
            self._opened().send(b"".join(parts))
        except OSError as error:
            raise refusal("send a netlink request", error.errno or 0, str(error)) from error
        return self._sequence

    def _receive(self, what: str) -> bytes:
        try:
            return self._opened().recv(_RECEIVE_SIZE)
        except OSError as error:
            raise refusal(what, error.errno or 0, str(error)) from error

    def _opened(self) -> socket.socket:
        if self._socket is None:
            raise RuntimeError("the netlink socket is not open")
        return self._socket


def _has_end(data: bytes) -> bool:
    """Whether a datagram of a dump holds its last message, or an error."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind = _LENGTH_AND_KIND.unpack_from(data, at)
        if kind in (NLMSG_ERROR, NLMSG_DONE) or length < HEADER.size:
            return True
        at += (length + 3) & ~3
    return False


def error_code(message: Message) -> int:
    """The errno of an NLMSG_ERROR or NLMSG_DONE message, 0 for success."""
    return -int(struct.unpack_from("=i", message.body)[0]) if len(message.body) >= 4 else 0


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _raise_for(message: Message, what: str) -> None:
    code = error_code(message)
    if code:
        raise refusal(what, code)
