"""Whether next hops are there, as the kernel's neighbour tables tell (ip-neighbour(8))."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from metaleg_node.core.model import Address
from metaleg_node.kernel.netlink.rtnetlink import GETNEIGH, family_of
from metaleg_node.kernel.netlink.socket import NETLINK_ROUTE, NetlinkSocket, attribute

_NDA_DST = 1
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
    found = dict.fromkeys(hops, UNKNOWN)
    bodies = {hop: body for hop in found if (body := _get_body(*hop))}
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        answers = netlink.ask(GETNEIGH, bodies.values(), "look for neighbours")
    for hop, answer in zip(bodies, answers, strict=True):
        if not answer.code:
            found[hop] = _WORDS.get(_MESSAGE.unpack_from(answer.body)[2], UNKNOWN)
        elif answer.code not in (errno.ENOENT, errno.ENODEV):
            raise answer.refusal(f"look for neighbour {hop[0]} on {hop[1]}")
    return found


def _get_body(address: Address, interface: str) -> bytes:
    """The RTM_GETNEIGH message, without its header, that asks for one neighbour; b"" when there is no interface."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return b""
    return _MESSAGE.pack(family_of(address), index, 0, 0, 0) + attribute(_NDA_DST, address.packed)
