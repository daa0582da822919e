"""Whether next hops are there, as the kernel's neighbour tables tell (ip-neighbour(8))."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from metaleg_node.core.model import Address
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink.rules import SOCKET_FAMILY
from metaleg_node.kernel.netlink.socket import NETLINK_ROUTE, NetlinkSocket, attribute

_RTM_GETNEIGH, _NDA_DST = 30, 1
_MESSAGE = struct.Struct("=BxxxiHBB")
"""struct ndmsg (linux/neighbour.h): family, interface, state, flags, type."""
_WORDS = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}
UNKNOWN = "unknown"
"""Nobody has asked for the neighbour yet, or not for a long time."""


def states(hops: Iterable[tuple[Address, str]]) -> dict[tuple[Address, str], str]:
    """The state of each (address, interface): reachable, stale, delay, probe, incomplete, failed, permanent, noarp or
    unknown. Of the calling thread's network namespace. Raises KernelError."""
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        return {hop: _state(netlink, *hop) for hop in hops}


def _state(netlink: NetlinkSocket, address: Address, interface: str) -> str:
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return UNKNOWN
    family = SOCKET_FAMILY[4 if address.version == 4 else 6]
    body = _MESSAGE.pack(family, index, 0, 0, 0) + attribute(_NDA_DST, address.packed)
    try:
        answer = netlink.ask(_RTM_GETNEIGH, body, f"look for neighbour {address} on {interface}")
    except KernelError as error:
        if error.code in (errno.ENOENT, errno.ENODEV):
            return UNKNOWN
        raise
    return _WORDS.get(_MESSAGE.unpack_from(answer)[2], UNKNOWN)
