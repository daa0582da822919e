"""Address ranges as the fewest networks that cover exactly them, and who owns an address that several claim.

Works on integers: a thousand pools must cost milliseconds, and the operations of `ipaddress` on whole networks are a
hundred times slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import summarize_address_range

from metaleg_node.core.model import Address, Network

Range = tuple[Address, Address]
"""The first and the last address, of one family."""


def covering(ranges: Iterable[Range]) -> frozenset[Network]:
    """The fewest networks that hold these ranges' addresses and no others."""
    spans = merged(ranges)
    return frozenset(network for first, last in spans for network in summarize_address_range(first, last))


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
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
    holes = merged(taken)
    return tuple(left for one in merged(ranges) for left in _cut(one, holes))


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
