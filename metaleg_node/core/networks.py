"""Addresses and networks: how their texts are read, the fewest networks that cover the same addresses, what is left of
them, and whether an address lies in any.

The arithmetic works on integers: a thousand pools must cost milliseconds, and the operations of `ipaddress` on whole
networks are a hundred times slower.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, collapse_addresses, ip_address, ip_network, summarize_address_range
from typing import Final

from metaleg_node.core.model import FAMILIES, Address, Family, Network

Range = tuple[Address, Address]
"""The first and the last address, of one family."""

_NETWORK: Final = re.compile(r"[0-9A-Fa-f:.]{1,45}(/[0-9]{1,3})?")
_MAPPED: Final = "it is IPv4 inside IPv6; write it as IPv4"


def parse_address(text: str) -> Address:
    """An address, wherever its text comes from. Raises ValueError: what is wrong with it, or nothing if it is none.

    A zone (RFC 4007) is refused since its text may be anything, and means something on one host only; IPv4 inside IPv6
    (RFC 4291, 2.5.5.2) since such packets are IPv4 in the kernel: a rule for the IPv6 form would never match.
    """
    if "%" in text:
        raise ValueError("it has a zone; leave that away")
    if "/" in text:
        raise ValueError("it has a prefix length; leave that away")
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError("") from None
    if _is_mapped(address):
        raise ValueError(_MAPPED)
    return address


def parse_network(text: str, *, of_object: bool = False) -> Network:
    """A network in CIDR form, wherever its text comes from. Raises ValueError as `parse_address` does.

    Set host bits are a slip of whoever wrote the text: he is asked, since we cannot know which network he means, and a
    single address may stand for itself. In a Kubernetes object (`of_object`) another program's rule counts, as both
    would otherwise mean different networks: Kubernetes and MetalLB cut host bits off and want a prefix length (Go's
    net.ParseCIDR).
    """
    if not _NETWORK.fullmatch(text) or (of_object and "/" not in text):
        raise ValueError("")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("") from None
    if _is_mapped(network.network_address):
        raise ValueError(_MAPPED)
    if not of_object and network.network_address != ip_address(text.partition("/")[0]):
        raise ValueError(f"its host bits are set; did you mean {network}?")
    return network


def _is_mapped(address: Address) -> bool:
    return isinstance(address, IPv6Address) and int(address) >> 32 == 0xFFFF


def merged(networks: Iterable[Network]) -> frozenset[Network]:
    """The same addresses in the fewest networks, none inside another."""
    both = list(networks)
    v4 = collapse_addresses([n for n in both if n.version == 4])
    v6 = collapse_addresses([n for n in both if n.version == 6])
    return frozenset([*v4, *v6])


class Membership:
    """Tells quickly whether an address lies in any of some networks: one look-up per prefix length."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._by_length: dict[Family, dict[int, set[int]]] = {family: defaultdict(set) for family in FAMILIES}
        for net in networks:
            shift = net.max_prefixlen - net.prefixlen
            self._by_length[net.version][shift].add(int(net.network_address) >> shift)

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return any(number >> shift in known for shift, known in self._by_length[address.version].items())


def covering(ranges: Iterable[Range]) -> frozenset[Network]:
    """The fewest networks that hold these ranges' addresses and no others."""
    spans = merged_ranges(ranges)
    return frozenset(network for first, last in spans for network in summarize_address_range(first, last))


def merged_ranges(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same addresses in the fewest ranges, in order; IPv4 before IPv6."""
    result: list[Range] = []
    for first, last in sorted(ranges, key=_order):
        if result and result[-1][0].version == first.version and int(first) <= int(result[-1][1]) + 1:
            begin, end = result[-1]
            result[-1] = begin, max(end, last, key=int)
        else:
            result.append((first, last))
    return tuple(result)


def without(ranges: Iterable[Range], taken: Iterable[Range]) -> tuple[Range, ...]:
    """The ranges less the addresses that are taken."""
    holes = Ranges(taken)
    return tuple(left for one in merged_ranges(ranges) for left in _cut(one, holes.meeting(one)))


class Ranges:
    """Some ranges, among which those that meet another are found quickly."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._ranges = merged_ranges(ranges)
        self._ends = [(last.version, int(last)) for _, last in self._ranges]

    def meet(self, one: Range) -> bool:
        """Whether any shares an address with this one."""
        family = one[0].version
        index = bisect_left(self._ends, (family, int(one[0])))
        if index == len(self._ranges):
            return False
        begin = self._ranges[index][0]
        return begin.version == family and int(begin) <= int(one[1])

    def meeting(self, one: Range) -> Iterator[Range]:
        """Those that share addresses with this one, in order."""
        first, last = one
        family, end = first.version, int(last)
        for index in range(bisect_left(self._ends, (family, int(first))), len(self._ranges)):
            begin = self._ranges[index][0]
            if begin.version != family or int(begin) > end:
                return
            yield self._ranges[index]


def range_of(network: Network) -> Range:
    """A network as a range."""
    return network.network_address, network.broadcast_address


def _cut(one: Range, holes: Iterable[Range]) -> Iterator[Range]:
    first, last = one
    for begin, end in holes:
        if int(begin) > int(first):
            yield first, begin - 1
        if int(end) >= int(last):
            return
        first = end + 1
    yield first, last


def _order(one: Range) -> tuple[int, int, int]:
    return one[0].version, int(one[0]), int(one[1])
