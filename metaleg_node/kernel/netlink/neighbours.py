"""Whether next hops are there, and with which link-layer address, as the kernel's neighbour tables tell
(ip-neighbour(8))."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from metaleg_node.core.model import Address
from metaleg_node.kernel.netlink.rtnetlink import CREATE, DELNEIGH, GETNEIGH, NEWNEIGH, family_of
from metaleg_node.kernel.netlink.socket import NETLINK_ROUTE, Message, NetlinkSocket, Request, attribute, attribute_of

_NDA_DST, _NDA_LLADDR = 1, 2
_USE = 1
"""NTF_USE: as if a packet were to be sent there."""
_IS_THERE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""NUD_VALID: the states in which packets are sent to the link-layer address that is known."""
_ETHERNET = 6
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
NOT_THERE = frozenset({"failed", UNKNOWN})
"""The states in which nobody looks for the neighbour."""


Hop = tuple[Address, str]
"""A next hop: its address and interface."""


def states(hops: Iterable[Hop]) -> dict[Hop, str]:
    """The state of each: reachable, stale, delay, probe, incomplete, failed, permanent, noarp or unknown. Of the
    calling thread's network namespace. Raises KernelError."""
    found = dict.fromkeys(hops, UNKNOWN)
    return found | {hop: _WORDS.get(_state(body), UNKNOWN) for hop, body in _look(found).items()}


def link_addresses(hops: Iterable[Hop]) -> dict[Hop, str]:
    """The Ethernet address (aa:bb:cc:dd:ee:ff) of each that is there, as far as is known. Raises KernelError."""
    return {hop: found.hex(":") for hop, body in _look(hops).items() if (found := _link_address(body))}


def seek(hops: Iterable[Hop]) -> None:
    """Has the kernel look for these, as it does when it has something to send to them. Raises KernelError."""
    bodies = (_body(*hop, flags=_USE) for hop in hops)
    requests = [Request(NEWNEIGH, body, CREATE) for body in bodies if body]
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        for answer in netlink.change(requests, "look for next hops"):
            if answer.code:
                raise answer.refusal("look for next hops")


class News(NamedTuple):
    """What a notification tells: a neighbour (its interface's index and packed address), and its link-layer address,
    b"" when it is gone or fails."""

    interface: int
    address: bytes
    link_address: bytes


def read_news(message: Message) -> News:
    """Of RTM_NEWNEIGH or RTM_DELNEIGH."""
    body = message.body
    found = b"" if message.kind == DELNEIGH else _link_address(body)
    return News(_MESSAGE.unpack_from(body)[1], attribute_of(body, _MESSAGE.size, _NDA_DST), found)


def _look(hops: Iterable[Hop]) -> dict[Hop, bytes]:
    """The kernel's message about each that has an entry."""
    bodies = {hop: body for hop in hops if (body := _body(*hop))}
    if not bodies:
        return {}
    found = {}
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        answers = netlink.ask(GETNEIGH, bodies.values(), "look for neighbours")
    for hop, answer in zip(bodies, answers, strict=True):
        if not answer.code:
            found[hop] = answer.body
        elif answer.code not in (errno.ENOENT, errno.ENODEV):
            raise answer.refusal(f"look for neighbour {hop[0]} on {hop[1]}")
    return found


def _state(body: bytes) -> int:
    state: int = _MESSAGE.unpack_from(body)[2]
    return state


def _link_address(body: bytes) -> bytes:
    found = attribute_of(body, _MESSAGE.size, _NDA_LLADDR)
    return found if _state(body) & _IS_THERE and len(found) == _ETHERNET else b""


def _body(address: Address, interface: str, *, flags: int = 0) -> bytes:
    """The message about one neighbour, without its header; b"" when there is no interface."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return b""
    return _MESSAGE.pack(family_of(address), index, 0, flags, 0) + attribute(_NDA_DST, address.packed)
