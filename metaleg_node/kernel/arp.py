"""Who answers for an IPv4 address on a link, asked by ARP probes (RFC 5227, 1.1): they name no sender's address, so no
neighbour learns or changes anything by them."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from ipaddress import IPv4Address
from typing import Final

from metaleg_node.kernel.errors import refusal

_PROTOCOL: Final = 0x0806
_PACKET: Final = struct.Struct("!HHBBH6s4s6s4s")
"""RFC 826: hardware, protocol, their lengths, operation, sender's addresses, target's."""
_REQUEST, _REPLY = 1, 2
_BROADCAST: Final = b"\xff" * 6


def answers(interface: str, addresses: Collection[IPv4Address], seconds: float) -> Mapping[IPv4Address, set[str]]:
    """The hardware addresses that answer for each address within this time. Of the calling thread's network namespace.
    Raises KernelError."""
    found: dict[IPv4Address, set[str]] = defaultdict(set)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
            link.bind((interface, _PROTOCOL))
            own: bytes = link.getsockname()[4]
            for address in addresses:
                asked = _PACKET.pack(1, 0x0800, 6, 4, _REQUEST, own, bytes(4), bytes(6), address.packed)
                link.send(_BROADCAST + own + struct.pack("!H", _PROTOCOL) + asked)
            end = time.monotonic() + seconds
            while select.select([link], [], [], max(0.0, end - time.monotonic()))[0]:
                _read(link.recv(256)[14:], found)
    except OSError as error:
        raise refusal(f"ask by ARP on {interface}", error.errno or 0) from error
    return {address: found[address] for address in addresses}


def _read(packet: bytes, found: dict[IPv4Address, set[str]]) -> None:
    if len(packet) >= _PACKET.size:
        _, _, _, _, operation, hardware, sender, _, _ = _PACKET.unpack_from(packet)
        if operation == _REPLY:
            found[IPv4Address(sender)].add(hardware.hex(":"))
