"""Netlink sockets and messages: the one way in which this program lists and changes what the kernel keeps.

Many requests go in one datagram, and answers are read on bytes, no further than whoever asks needs: a node may have
thousands of addresses, routes and connections, and taking each apart costs more than all the rest of a reconcile.
Formats: netlink(7); attributes are type-length-value, aligned to four bytes.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from metaleg_node.kernel.errors import KernelError, refusal

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
_LAST = {NLMSG_ERROR, NLMSG_DONE}
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence number, port id."""

_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_DUMP_INTERRUPTED = 0x10
_DUMP_ATTEMPTS = 10
_EMPTY = {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EAFNOSUPPORT}
"""A dump's refusal that means "nothing there": no such table or interface, or a kernel without IPv6."""
_ACK_TLVS, _EXPLANATION = 0x200, 1
"""NLM_F_ACK_TLVS: attributes follow, NLMSGERR_ATTR_MSG among them."""
_TLVS_AT = {NLMSG_ERROR: 4 + HEADER.size, NLMSG_DONE: 4}
"""After the errno, and the header of the refused request."""
_SOL_NETLINK, _ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _STRICT_CHECK = 270, 1, 10, 11, 12
_SO_RCVBUFFORCE = 33
_BUFFER = 8 << 20
"""Bytes of notifications that may wait."""
_RECEIVE_SIZE = 1 << 17
_TIMEOUT = 30.0
_BATCH, _BATCH_BYTES = 32, 1 << 15
"""How much goes in one datagram: the answers must fit the system's default buffer, and one to an interface takes 4 KiB
of it."""


class Request(NamedTuple):
    """One request without its header: message type, body, and flags beside those that every request has."""

    kind: int
    body: bytes
    flags: int = 0


class Message(NamedTuple):
    """One netlink message without its header's length; `port` is the port id of the socket that caused it."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes

    @property
    def code(self) -> int:
        """The errno that it tells, 0 for success and for a message that tells none."""
        if self.kind not in _LAST:
            return 0
        return -int.from_bytes(self.body[:4], sys.byteorder, signed=True)

    def refusal(self, what: str) -> KernelError:
        """The error for `what` that it refuses, in the kernel's own words where it has some."""
        found = attributes(self.body, _TLVS_AT[self.kind]) if self.flags & _ACK_TLVS else {}
        return refusal(what, self.code, string(found.get(_EXPLANATION, b"")))


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, port = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            return
        yield Message(kind, flags, sequence, port, data[at + HEADER.size : at + length])
        at += (length + 3) & ~3


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes from offset `at` on, by type, without the flag bits of the type."""
    found = {}
    end = len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def attribute_of(data: bytes, at: int, wanted: int) -> bytes:
    """The value of the first attribute of a type from offset `at` on, b"" when there is none; reads no further."""
    end = len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind & _TYPE_MASK == wanted:
            return data[at + 4 : at + length]
        if length < 4:
            break
        at += (length + 3) & ~3
    return b""


def number(value: bytes) -> int:
    """The value of an attribute that is a number of the machine's byte order; 0 when there is none."""
    return int.from_bytes(value, sys.byteorder)


def string(value: bytes) -> str:
    """The value of an attribute that is a zero-terminated text."""
    return value.rstrip(b"\0").decode(errors="replace")


def attribute(kind: int, value: bytes) -> bytes:
    """One encoded attribute."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def numeric(kind: int, value: int) -> bytes:
    """One encoded attribute that is a number of four bytes in the machine's byte order."""
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def nested(kind: int, *inner: bytes) -> bytes:
    """One encoded attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(inner))


def subscribed(protocol: int, groups: Iterable[int], what: str) -> socket.socket:
    """A socket that hears what the kernel tells these multicast groups, called `what` by people. Raises KernelError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        # Without the capability the buffer keeps the system's size.
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError as error:
        sock.close()
        raise refusal(f"listen to {what}", error.errno or 0) from error
    return sock


class NetlinkSocket:
    """Requests and their answers on one netlink family. Not for use by several threads at a time."""

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._socket: socket.socket | None = None
        self._sequence = 0

    def open(self) -> None:
        """Opens the socket in the calling thread's network namespace, unless it is open. Raises KernelError."""
        if self._socket is not None:
            return
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
        # Without the strict check the kernel ignores what a dump asks for, and gives all.
        for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHECK):
            sock.setsockopt(_SOL_NETLINK, option, 1)
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

    def listing(self, kind: int, body: bytes, what: str) -> list[bytes]:
        """The bodies of the messages that answer a dump request, asked again while that which is listed changes: such
        an answer may lack entries. `what` names the request in errors. Raises KernelError."""
        for _ in range(_DUMP_ATTEMPTS):
            try:
                parts = [*self._parts(kind, body, what)]
            except KernelError as error:
                if error.code in _EMPTY:
                    return []
                raise
            if not any(part.flags & _DUMP_INTERRUPTED for part in parts):
                return [body for part in parts for body in part.bodies]
        raise KernelError(f"cannot {what}: they kept changing during {_DUMP_ATTEMPTS} attempts", code=errno.EINTR)

    def dump(self, kind: int, body: bytes, what: str) -> Iterator[bytes]:
        """The bodies of the messages that answer a dump request, as they come. What changes meanwhile may be missing.
        To be read to the end: the kernel takes no other request for a dump before that (EBUSY). Raises KernelError."""
        for part in self._parts(kind, body, what):
            yield from part.bodies

    def _parts(self, kind: int, body: bytes, what: str) -> Iterator[_Part]:
        sequence = self._send([Request(kind, body)], NLM_F_REQUEST | NLM_F_DUMP)
        last = None
        while last is None:
            part = _part(self._receive(what), sequence)
            last = part.last
            if last and last.code:
                raise last.refusal(what)
            yield part

    def change(self, requests: Iterable[Request], what: str) -> list[Message]:
        """Sends acknowledged requests, many in one datagram; `code` and `refusal` of the answers tell what came of
        each. Raises KernelError when the kernel does not answer."""
        return [*self._answers(requests, NLM_F_REQUEST | NLM_F_ACK, what)]

    def ask(self, kind: int, bodies: Iterable[bytes], what: str) -> list[Message]:
        """The one message that answers each request, many sent in one datagram; NLMSG_ERROR for one that is refused.
        Raises KernelError when the kernel does not answer."""
        return [*self._answers((Request(kind, body) for body in bodies), NLM_F_REQUEST, what)]

    def _answers(self, requests: Iterable[Request], flags: int, what: str) -> Iterator[Message]:
        for batch in _batches(requests):
            last = self._send(batch, flags)
            numbers = range(last - len(batch) + 1, last + 1)
            answers: dict[int, Message] = {}
            while len(answers) < len(batch):
                for message in messages(self._receive(what)):
                    if message.sequence in numbers:
                        answers[message.sequence] = message
            yield from (answers[sequence] for sequence in numbers)

    def _send(self, requests: Iterable[Request], flags: int) -> int:
        """Returns the last request's sequence number."""
        parts = []
        for kind, body, more in requests:
            self._sequence += 1
            header = HEADER.pack(HEADER.size + len(body), kind, flags | more, self._sequence, 0)
            parts.append(header + body + bytes(-len(body) % 4))
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


class _Part(NamedTuple):
    """One datagram of a dump: the bodies of its messages, all their flags, and the message that ends the dump."""

    bodies: list[bytes]
    flags: int
    last: Message | None


def _part(data: bytes, wanted: int) -> _Part:
    """Makes no Message of each: that would take three times as long."""
    bodies: list[bytes] = []
    all_flags = at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, port = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            break
        if sequence == wanted:
            body = data[at + HEADER.size : at + length]
            all_flags |= flags
            if kind in _LAST:
                return _Part(bodies, all_flags, Message(kind, flags, sequence, port, body))
            bodies.append(body)
        at += (length + 3) & ~3
    return _Part(bodies, all_flags, None)


def _batches(requests: Iterable[Request]) -> Iterator[list[Request]]:
    batch: list[Request] = []
    size = 0
    for request in requests:
        if batch and (len(batch) == _BATCH or size + len(request.body) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += HEADER.size + len(request.body)
    if batch:
        yield batch
