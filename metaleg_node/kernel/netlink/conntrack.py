"""Connections that the kernel tracks: which there are, and forgetting some of them.

The kernel decides about address translation once for each connection; to decide anew its entry must go. Entries are
named by their original tuple, so a delete never hits another connection: a delete by filter, which newer kernels know,
cannot tell the ones that are to stay. Messages: linux/netfilter/nfnetlink_conntrack.h; the first attributes of an entry
(original tuple, addresses, source) always come in that order (ctnetlink_fill_info), which is what the cheap first look
relies on.

The table is walked whole for each request, those of other namespaces' included. Where few addresses are asked for, the
kernel itself picks their entries (CTA_FILTER, since 5.8; older kernels tell all, which is as right), one walk for each;
else one walk tells the entries of both families.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from functools import cache
from ipaddress import IPv4Address, IPv6Address

from metaleg_node.core.model import CONNTRACK_LABEL, FAMILIES, Address, Family, Flow
from metaleg_node.kernel.netlink.socket import (
    NETLINK_NETFILTER,
    NetlinkSocket,
    Request,
    attribute,
    attribute_of,
    attributes,
    nested,
    numeric,
)

_CHANGE, _GET, _DELETE, _GET_STATISTICS = 0x0100, 0x0101, 0x0102, 0x0105
_ORIGINAL, _REPLY, _MARK, _ZONE, _MARK_MASK, _LABELS, _FILTER = 1, 2, 8, 18, 21, 22, 25
_ORIGINAL_FLAGS = 1
_BY_SOURCE, _BY_DESTINATION = 1, 2
"""CTA_FILTER_F_CTA_IP_SRC, CTA_FILTER_F_CTA_IP_DST."""
_PER_WALK, _MOST_WALKS = 10_000, 20
"""So many entries told cost as much as a walk that tells none; and how many such walks there may be."""
_ENTRIES = 1
_IP, _PROTOCOL = 1, 2
_V4_SOURCE, _V4_DESTINATION, _V6_SOURCE, _V6_DESTINATION = 1, 2, 3, 4
_IP_KINDS = {4: (_V4_SOURCE, _V4_DESTINATION), 6: (_V6_SOURCE, _V6_DESTINATION)}
_NUMBER = 1
_NFPROTO: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_GONE = 2
"""ENOENT: the entry does not exist."""
_LABELS_BEGIN = struct.pack("=HH", 4 + 16, _LABELS)
"""How the attribute with the labels begins; an entry without any label has none. The same bytes may stand elsewhere."""

_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_NUMBERS = {name: number for number, name in _NAMES.items()}
_PORTS = (("sport", 2, "!H"), ("dport", 3, "!H"))
_WORDS: dict[str, tuple[tuple[str, int, str], ...]] = {
    "icmp": (("type", 5, "B"), ("code", 6, "B"), ("id", 4, "!H")),
    "icmpv6": (("type", 8, "B"), ("code", 9, "B"), ("id", 7, "!H")),
    "gre": (("srckey", 2, "!H"), ("dstkey", 3, "!H")),
    **dict.fromkeys(("tcp", "udp", "dccp", "sctp", "udplite"), _PORTS),
}
"""What names a connection beside its addresses: conntrack(8)'s word, attribute type, encoding."""


def flows(
    addresses: Collection[Address], destinations: Collection[Address] | None = None, *, labelled: bool = False
) -> list[Flow]:
    """The entries whose original source is in `addresses` or whose original destination is in `destinations`, which by
    default are the same, and with `labelled` those with our label.

    Of the calling thread's network namespace, both families. A protocol that conntrack(8) has no name for is told by
    its number. Raises KernelError.
    """
    to = addresses if destinations is None else destinations
    ends = ({one.packed for one in addresses}, {one.packed for one in to})
    found: list[Flow] = []
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        few = not labelled and len(addresses) + len(to) <= _walks(netlink)
        for request in _filters(addresses, to) if few else [_EVERYTHING]:
            found += _concerned(netlink.dump(_GET, request, "list the connections"), *ends, labelled=labelled)
    return sorted(dict.fromkeys(found), key=lambda flow: flow.family)


_EVERYTHING = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)


def _walks(netlink: NetlinkSocket) -> int:
    """How many filtered walks cost less than one that tells all."""
    what = "count the connections"
    (answer,) = netlink.ask(_GET_STATISTICS, [_EVERYTHING], what)
    if answer.code:
        raise answer.refusal(what)
    entries = int.from_bytes(attribute_of(answer.body, 4, _ENTRIES), "big")
    return min(1 + entries // _PER_WALK, _MOST_WALKS)


def _filters(addresses: Iterable[Address], destinations: Iterable[Address]) -> Iterator[bytes]:
    """The requests for the entries of each source, and of each destination."""
    for flag, place, some in ((_BY_SOURCE, 0, addresses), (_BY_DESTINATION, 1, destinations)):
        for address in some:
            kind = _IP_KINDS[address.version][place]
            original = nested(_ORIGINAL, nested(_IP, attribute(kind, address.packed)))
            header = struct.pack("=BBH", _NFPROTO[address.version], 0, 0)
            yield header + original + nested(_FILTER, numeric(_ORIGINAL_FLAGS, flag))


def _concerned(
    bodies: Iterable[bytes], sources: Set[bytes], destinations: Set[bytes], *, labelled: bool
) -> Iterator[Flow]:
    """A cheap look at the addresses in their fixed place, before an entry is taken apart: there may be a million."""
    decoders = {_NFPROTO[family]: _decoder(family) for family in FAMILIES}
    ipv4 = _NFPROTO[4]
    for body in bodies:
        family = body[0]
        source, destination = (body[16:20], body[24:28]) if family == ipv4 else (body[16:32], body[36:52])
        if source in sources or destination in destinations:
            yield decoders[family](body)
        elif labelled and _LABELS_BEGIN in body and (flow := decoders[family](body)).ours:
            yield flow


def delete(entries: Iterable[Flow]) -> int:
    """Forgets exactly these entries and tells how many were still there. Raises KernelError."""
    waiting = list(entries)
    requests = (Request(_DELETE, _encode(flow)) for flow in waiting)
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        answers = netlink.change(requests, "delete connections")
    for flow, answer in zip(waiting, answers, strict=True):
        if answer.code not in (0, _GONE):
            raise answer.refusal(f"delete the {flow.protocol} connection {flow.source} to {flow.destination}")
    return sum(answer.code == 0 for answer in answers)


def unmark(mark: int, mask: int) -> int:
    """Clears the bits under the mask in the connection marks that have this value there, and tells how many there were.
    Raises KernelError."""
    changed = 0
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        for family in FAMILIES:
            wanted = struct.pack("=BBH", _NFPROTO[family], 0, 0) + _marked(mark, mask)
            found = map(_decoder(family), [*netlink.dump(_GET, wanted, "list the connections of a router")])
            requests = (Request(_CHANGE, _encode(flow) + _marked(0, mask)) for flow in found)
            for answer in netlink.change(requests, "change connection marks"):
                if answer.code not in (0, _GONE):
                    raise answer.refusal("change a connection's mark")
                changed += not answer.code
    return changed


def _marked(mark: int, mask: int) -> bytes:
    return attribute(_MARK, struct.pack("!I", mark)) + attribute(_MARK_MASK, struct.pack("!I", mask))


def _is_ours(entry: dict[int, bytes]) -> bool:
    labels = entry.get(_LABELS, b"")
    word, bit = divmod(CONNTRACK_LABEL, 64)
    return len(labels) >= 8 * (word + 1) and bool(struct.unpack_from("=Q", labels, 8 * word)[0] >> bit & 1)


def _decoder(family: Family) -> Callable[[bytes], Flow]:
    """A function from an entry's message to a Flow, which makes each address object once."""

    @cache
    def make(packed: bytes) -> Address:
        return IPv4Address(packed) if family == 4 else IPv6Address(packed)

    source, destination = _IP_KINDS[family]

    def decode(body: bytes) -> Flow:
        entry = attributes(body, 4)
        original, reply = attributes(entry[_ORIGINAL]), attributes(entry[_REPLY])
        forth, back = attributes(original[_IP]), attributes(reply[_IP])
        protocol = attributes(original[_PROTOCOL])
        number = protocol[_NUMBER][0]
        name = _NAMES.get(number, str(number))
        return Flow(
            family=family,
            protocol=name,
            source=make(forth[source]),
            destination=make(forth[destination]),
            ports=_ports(name, protocol),
            reply_source=make(back[source]),
            reply_destination=make(back[destination]),
            ours=_is_ours(entry),
            zone=int.from_bytes(entry.get(_ZONE, b""), "big"),
        )

    return decode


def _ports(name: str, protocol: dict[int, bytes]) -> tuple[tuple[str, str], ...]:
    print_number = hex if name == "gre" else str
    return tuple(
        (word, print_number(int.from_bytes(protocol[kind], "big")))
        for word, kind, _ in _WORDS.get(name, ())
        if kind in protocol
    )


def _encode(flow: Flow) -> bytes:
    """The request that names one entry: its original tuple and its zone."""
    kinds = _IP_KINDS[flow.family]
    addresses = [attribute(kinds[0], flow.source.packed), attribute(kinds[1], flow.destination.packed)]
    number = _NUMBERS.get(flow.protocol) or int(flow.protocol)
    values = dict(flow.ports)
    protocol = [attribute(_NUMBER, bytes([number]))]
    for word, kind, encoding in _WORDS.get(flow.protocol, ()):
        if word in values:
            protocol.append(attribute(kind, struct.pack(encoding, int(values[word], 0))))
    original = nested(_ORIGINAL, nested(_IP, *addresses), nested(_PROTOCOL, *protocol))
    zone = attribute(_ZONE, struct.pack("!H", flow.zone)) if flow.zone else b""
    return struct.pack("=BBH", _NFPROTO[flow.family], 0, 0) + original + zone
