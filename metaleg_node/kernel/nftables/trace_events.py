"""What the kernel tells of a packet that is traced: linux/netfilter/nf_tables.h, enum nft_trace_attributes.

`nft monitor trace` would listen to the changes of the ruleset, too, which nobody here may; see `watch`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from metaleg_node.kernel.netlink.socket import attributes, string

GROUP = 9
"""NFNLGRP_NFTRACE."""
KIND = 0x0A11
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE."""

_TABLE, _CHAIN, _TYPE, _VERDICT, _ID, _NETWORK, _TRANSPORT = 1, 2, 4, 5, 6, 8, 9
_IIF, _OIF, _POLICY = 10, 12, 16
_CODE = 1
_OF_POLICY, _OF_RULE = 1, 3
_VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto"}
_PORTS = {6: "tcp", 17: "udp", 132: "sctp"}
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_NAMES = {1: "icmp", 58: "icmpv6", **_PORTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One verdict. `id` is the same for one packet in one hook; `number` is what IPv4 numbers packets by, else 0.
    `table` has its family before its name; `verdict` is nft's word; `policy` tells that no rule decided.
    `iif` and `oif` are indexes, 0 for none; `packet` and `source` are empty where the message tells no header."""

    id: int
    table: str
    chain: str
    verdict: str
    policy: bool = False
    packet: str = ""
    number: int = 0
    source: str = ""
    iif: int = 0
    oif: int = 0


def read(body: bytes) -> Event:
    """The event of a message without its header."""
    found = attributes(body, 4)
    kind = _big(found.get(_TYPE, b""))
    verdict = attributes(found.get(_VERDICT, b""))
    code = int.from_bytes(verdict.get(_CODE, found.get(_POLICY, b"")), "big", signed=True)
    network = found.get(_NETWORK, b"")
    packet, source = _packet(network, found.get(_TRANSPORT, b""))
    return Event(
        id=_big(found.get(_ID, b"")),
        table=f"{_FAMILIES.get(body[0], body[0])} {string(found.get(_TABLE, b''))}",
        chain=string(found.get(_CHAIN, b"")),
        verdict=_VERDICTS.get(code, "return") if kind in (_OF_POLICY, _OF_RULE) else "return",
        policy=kind == _OF_POLICY,
        packet=packet,
        number=_big(network[4:6]) if network[:1] and network[0] >> 4 == 4 else 0,
        source=source,
        iif=_big(found.get(_IIF, b"")),
        oif=_big(found.get(_OIF, b"")),
    )


def _big(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _packet(network: bytes, transport: bytes) -> tuple[str, str]:
    """The packet in words, and its source; both empty where the header is not told."""
    if network[:1] and network[0] >> 4 == 4 and len(network) >= 20:
        protocol, source, to = network[9], ip_address(network[12:16]), ip_address(network[16:20])
    elif network[:1] and network[0] >> 4 == 6 and len(network) >= 40:
        protocol, source, to = network[6], ip_address(network[8:24]), ip_address(network[24:40])
    else:
        return "", ""
    name = _NAMES.get(protocol, f"protocol {protocol}")
    if protocol in _PORTS and len(transport) >= 4:
        sport, dport = struct.unpack_from("!HH", transport)
        return f"{name} {source} port {sport} to {to} port {dport}", str(source)
    return f"{name} {source} to {to}", str(source)
