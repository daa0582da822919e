"""What all messages of rtnetlink(7) share: addresses, networks and names, and what is kept of others' items."""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from metaleg_node.core.model import Address, Family, ForeignItem, Network

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34
NEWNETCONF = 80
"""Message types, RTM_* in linux/rtnetlink.h."""
CREATE, ADD, REPLACE = 0x400, 0x600, 0x500
"""Flags of a request: NLM_F_CREATE, alone, with NLM_F_EXCL or NLM_F_REPLACE."""

ROUTING = struct.Struct("=8BI")
"""struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags. struct
fib_rule_hdr is the same, with nothing in place of protocol and scope and with the action in place of the type."""
SOCKET_FAMILY: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
FAMILY: dict[int, Family] = {number: family for family, number in SOCKET_FAMILY.items()}
PROTOCOLS = {1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 16: "dhcp", 186: "bgp"}
"""The names that ip(8) has for numbers of `proto`."""
KEPT = 1 << 14
"""Addresses and networks that are kept: to make one takes longer than all the rest of reading its message."""


def family_of(value: Address | Network) -> int:
    """The AF_* of an address or network."""
    return SOCKET_FAMILY[4 if value.version == 4 else 6]


@lru_cache(maxsize=KEPT)
def address(packed: bytes) -> Address:
    """The address of four or sixteen bytes."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


@lru_cache(maxsize=KEPT)
def network(family: int, packed: bytes, length: int) -> Network:
    """The network of an AF_*, an address, b"" for the unspecified one, and a prefix length."""
    if family == socket.AF_INET:
        return IPv4Network((packed or bytes(4), length))
    return IPv6Network((packed or bytes(16), length))


def interface_name(index: int) -> str:
    """An interface's name; one that has gone in the meantime keeps its number, as ip(8) prints it."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


def foreign(words: list[str], body: bytes) -> ForeignItem:
    """A rule or route of others in words; `raw` is the body of the kernel's own message, which the kernel takes back as
    a delete request; iproute2 flushes in the same way."""
    return ForeignItem(text=" ".join(words), raw=(("message", body),))


def message_in(item: ForeignItem) -> bytes:
    """The body of the kernel's message that described a foreign rule or route."""
    body = dict(item.raw)["message"]
    if not isinstance(body, bytes):
        raise TypeError(f"not an item of this module: {item}")
    return body
