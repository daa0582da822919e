"""Packets at the kernel's own speed, so that the forwarding node is all that is measured.

BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES (bpf(2); Linux 5.18) hands packets that an XDP program has written to
the network stack, as if they had been received on an interface: no sender, no socket, no second core. The forwarding of
the packets happens within the system call, in batches as a network card's driver delivers them, so the processor time
of the calling thread is what the packets cost.

The program is a few dozen instructions, put together here: every packet is UDP, with one of `count` pod addresses
chosen at random, and a port and a server that go with it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_TEST_RUN, _LINK_CREATE = 5, 10, 28
_PROG_TYPE_XDP, _ATTACH_XDP = 6, 37
_LIVE_FRAMES = 1 << 1
_XDP_PASS = 2
_PRANDOM = 7
_FRAME = 60
_CONTEXT = 24
"""Bytes of struct xdp_md."""
_BATCH = 64
"""As many packets as a network card's driver takes at a time (NAPI_POLL_WEIGHT)."""
_FIRST_PORT = 10000
SERVER_PORT = 9000
SERVERS = 64
"""Packets of one batch that all go to one address would be routed once (ip_extract_route_hint), unlike real traffic."""
RECEIVER_MAC = "02:00:00:00:00:01"
"""What every interface that packets are sent to must have."""
SENDER_MAC = "02:00:00:00:00:02"
_LIBC = ctypes.CDLL(None, use_errno=True)


class Vary(Enum):
    """Which address of a packet is the pod's."""

    SOURCE = 26
    DESTINATION = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """UDP packets from pods to a server, or from the server back.

    Packet number n (0 <= n < count, at random) has the address `base + n // share` and the port 10000 + n on the side
    that `vary` names; on the other side are the address `other + n % 64` and port 9000.
    """

    vary: Vary
    base: IPv4Address
    other: IPv4Address
    count: int
    share: int = 1


class Sender:
    """Delivers one stream's packets as received on an interface. Made, entered and used in the interface's namespace;
    of one interface only one sender can be entered at a time. All methods raise OSError."""

    def __init__(self, stream: Stream, interface: str) -> None:
        self._stream = stream
        self._interface = interface
        self._open = ExitStack()
        self._program = self._index = 0

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._program = opened.enter_context(_loaded(_program(self._stream)))
            self._index = opened.enter_context(_receiving(self._program, self._interface))
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def send(self, packets: int) -> float:
        """Returns nanoseconds of processor time for each packet."""
        frame = ctypes.create_string_buffer(_FRAME)
        context = ctypes.create_string_buffer(struct.pack("=6I", 0, _FRAME, 0, self._index, 0, 0), _CONTEXT)
        request = struct.pack(
            "=4I2Q4I2Q4I",
            *(self._program, 0, _FRAME, 0),
            *(ctypes.addressof(frame), 0),
            *(packets, 0, _CONTEXT, 0),
            *(ctypes.addressof(context), 0),
            *(_LIVE_FRAMES, 0, _BATCH, 0),
        )
        started = time.thread_time_ns()
        _bpf(_PROG_TEST_RUN, request)
        return (time.thread_time_ns() - started) / packets


@contextmanager
def _loaded(instructions: bytes) -> Iterator[int]:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    request = struct.pack(
        "=2I2Q", _PROG_TYPE_XDP, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence)
    )
    program = _bpf(_PROG_LOAD, request.ljust(72, b"\0"))
    try:
        yield program
    finally:
        os.close(program)


@contextmanager
def _receiving(program: int, interface: str) -> Iterator[int]:
    """A veth interface can receive frames only while an XDP program is attached to it."""
    index = socket.if_nametoindex(interface)
    link = _bpf(_LINK_CREATE, struct.pack("=4I", program, index, _ATTACH_XDP, 0).ljust(48, b"\0"))
    try:
        yield index
    finally:
        os.close(link)


def _bpf(command: int, request: bytes) -> int:
    buffer = ctypes.create_string_buffer(request, len(request))
    result = int(_LIBC.syscall(_SYS_BPF[platform.machine()], command, buffer, len(request)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf command {command}: {os.strerror(error)}; Linux 5.18 or newer and root are needed")
    return result


# --- the program -----------------------------------------------------------------------------------------------------
# Registers: r0 result, r2 start of the frame, r3 number of the packet, r4 and r5 scratch, r6 context.


def _program(stream: Stream) -> bytes:
    """Writes the whole header of each packet anew: the frame comes back with what forwarding has made of it."""
    code = [_op(0xBF, 6, 1), _op(0x85, immediate=_PRANDOM)]  # r6 = context; r0 = random
    code += [_op(0xBC, 3, 0), _op(0x94, 3, immediate=stream.count)]  # r3 = r0 % count
    code += [_op(0x61, 2, 6), _op(0x61, 5, 6, 4)]  # r2 = data, r5 = data_end
    code += [_op(0xBF, 4, 2), _op(0x07, 4, immediate=_FRAME), _op(0x2D, 4, 5, _distance(stream))]
    header = _header(stream)
    code += [_op(0x62, 2, offset=i, immediate=_native(header[i : i + 4])) for i in range(0, 44, 4)]
    code += _variable(stream)
    code += [_op(0xB7, 0, immediate=_XDP_PASS), _op(0x95)]
    return b"".join(code)


def _distance(stream: Stream) -> int:
    """How far the last two instructions are from the check of the frame's length."""
    return 11 + len(_variable(stream))


def _variable(stream: Stream) -> list[bytes]:
    """The addresses and the pod's port. The identification is the complement of the sum of both addresses' lower
    halves, so that the header's checksum is the same for all."""
    port = 34 if stream.vary is Vary.SOURCE else 36
    other = Vary.DESTINATION if stream.vary is Vary.SOURCE else Vary.SOURCE
    return [
        *(_op(0xBC, 4, 3), _op(0x34, 4, immediate=stream.share)),  # r4 = r3 / share
        _op(0x04, 4, immediate=int(stream.base) & 0xFFFF),  # r4 += base
        *(_op(0xBC, 5, 3), _op(0x94, 5, immediate=SERVERS)),  # r5 = r3 % SERVERS
        _op(0x04, 5, immediate=int(stream.other) & 0xFFFF),  # r5 += other
        *(_op(0xBC, 0, 4), _op(0x0C, 0, 5)),  # r0 = r4 + r5
        *(_op(0xDC, 4, immediate=16), _op(0x6B, 2, 4, stream.vary.value + 2)),
        *(_op(0xDC, 5, immediate=16), _op(0x6B, 2, 5, other.value + 2)),
        *(_op(0xBC, 4, 0), _op(0x74, 4, immediate=16), _op(0x0C, 0, 4)),  # r0 += r0 >> 16
        *(_op(0xA4, 0, immediate=-1), _op(0xDC, 0, immediate=16), _op(0x6B, 2, 0, 18)),  # identification = ~r0
        *(_op(0xBC, 5, 3), _op(0x04, 5, immediate=_FIRST_PORT), _op(0xDC, 5, immediate=16)),
        _op(0x6B, 2, 5, port),
    ]


def _header(stream: Stream) -> bytes:
    size = _FRAME - 14
    source, destination = stream.base, stream.other
    if stream.vary is Vary.DESTINATION:
        source, destination = destination, source
    ip = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0x4000, 64, 17, 0, source.packed, destination.packed))
    ip[4:6] = struct.pack("!H", _checksum(source.packed[2:] + destination.packed[2:]))
    ip[10:12] = struct.pack("!H", _checksum(ip))
    udp = struct.pack("!4H", SERVER_PORT, SERVER_PORT, size - 20, 0)
    return bytes.fromhex((RECEIVER_MAC + SENDER_MAC).replace(":", "")) + b"\x08\0" + bytes(ip) + udp + bytes(2)


def _checksum(data: bytes | bytearray) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _native(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _op(code: int, target: int = 0, source: int = 0, offset: int = 0, *, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, immediate)
