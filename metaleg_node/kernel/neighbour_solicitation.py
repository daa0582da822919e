"""Who answers for an IPv6 address on a link, asked by neighbour solicitations (RFC 4861, 4.3). They come from this
host's link-local address and tell its true hardware address: without one, as duplicate address detection asks (RFC
4862), MetalLB's speakers do not answer."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from ipaddress import IPv6Address
from typing import Final

from metaleg_node.kernel.errors import refusal

_SOLICITATION, _ADVERTISEMENT = 135, 136
_FILTER: Final = 1
"""ICMP6_FILTER (RFC 3542, 3.2): a bit for each type, those that are set are kept away."""
_ONLY_ADVERTISEMENTS: Final = b"".join(
    struct.pack("=I", 0xFFFFFFFF & ~(1 << _ADVERTISEMENT % 32 if word == _ADVERTISEMENT // 32 else 0))
    for word in range(8)
)
_HEAD: Final = struct.Struct("!BBHI16s")
"""Type, code, checksum, flags, target; then options of a type, a length in eight bytes, and a hardware address."""
_SOURCE_ADDRESS, _TARGET_ADDRESS = 1, 2
_HOPS: Final = 255


def answers(interface: str, addresses: Collection[IPv6Address], seconds: float) -> Mapping[IPv6Address, set[str]]:
    """The hardware addresses that answer for each address within this time. Of the calling thread's network namespace.
    Raises KernelError."""
    found: dict[IPv6Address, set[str]] = defaultdict(set)
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as link:
            link.setsockopt(socket.IPPROTO_ICMPV6, _FILTER, _ONLY_ADVERTISEMENTS)
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            index, own = socket.if_nametoindex(interface), _hardware_address(interface)
            option = bytes((_SOURCE_ADDRESS, 1)) + own if len(own) == 6 else b""
            for address in addresses:
                asked = _HEAD.pack(_SOLICITATION, 0, 0, 0, address.packed) + option
                link.sendto(asked, (_solicited_node(address), 0, 0, index))
            end = time.monotonic() + seconds
            while select.select([link], [], [], max(0.0, end - time.monotonic()))[0]:
                _read(link.recv(256), found)
    except OSError as error:
        raise refusal(f"ask by neighbour solicitation on {interface}", error.errno or 0) from error
    return {address: found[address] for address in addresses}


def _hardware_address(interface: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind((interface, 0))
        own: bytes = link.getsockname()[4]
        return own


def _solicited_node(address: IPv6Address) -> str:
    """The multicast group of all that may have the address (RFC 4291, 2.7.1)."""
    return str(IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(address) & 0xFFFFFF))


def _read(message: bytes, found: dict[IPv6Address, set[str]]) -> None:
    """An advertisement without its hardware address tells nothing; to a solicitation of many it must have one."""
    if len(message) < _HEAD.size or message[0] != _ADVERTISEMENT:
        return
    *_, target = _HEAD.unpack_from(message)
    option = message[_HEAD.size : _HEAD.size + 8]
    if len(option) == 8 and option[:2] == bytes((_TARGET_ADDRESS, 1)):
        found[IPv6Address(target)].add(option[2:].hex(":"))
