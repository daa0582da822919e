"""Arithmetic of networks and address ranges: the fewest that cover the same addresses, what is left of them, and
whether an address lies in any.

Works on integers: a thousand pools must cost milliseconds, and the operations of `ipaddress` on whole networks are a
hundred times slower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import collapse_addresses, summarize_address_range

from metaleg_node.core.model import FAMILIES, Address, Family, Network

Range = tuple[Address, Address]
"""The first and the last address, of one family."""


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
    holes = merged_ranges(taken)
    return tuple(left for one in merged_ranges(ranges) for left in _cut(one, holes))


def range_of(network: Network) -> Range:
    """A network as a range."""
    return network.network_address, network.broadcast_address


def _cut(one: Range, holes: Iterable[Range]) -> Iterator[Range]:
    first, last = one
    for begin, end in holes:
        if begin.version != first.version or int(end) < int(first) or int(begin) > int(last):
            continue
        if int(begin) > int(first):
            yield first, begin - 1
        if int(end) >= int(last):
            return
        first = end + 1
    yield first, last


def _order(one: Range) -> tuple[int, int, int]:
    return one[0].version, int(one[0]), int(one[1])
