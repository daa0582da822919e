"""Which gateway has which mark and table on this node.

A slot is one value under the mark mask and one routing table. It stays with its gateway for as long as the gateway is
wanted, across restarts too: the caller reads the present holders back from the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from metaleg_node.core.model import Address, Node, NodeName, Route, Slot


def count(mark_mask: int) -> int:
    """How many slots a mask has room for: all its values but 0, and never more than 63 tables."""
    return min((1 << mark_mask.bit_count()) - 1, 63)


def assign(held: Mapping[Slot, NodeName], wanted: Sequence[NodeName], *, slots: int) -> dict[NodeName, Slot]:
    """Gives each wanted gateway a slot, in the order of `wanted` while there are any; who gets none is left out.

    Holders keep theirs. A slot that nobody held is preferred to one that was held, so that packets already marked
    for a former gateway do not meet the next one's table.
    """
    names = list(dict.fromkeys(wanted))
    result: dict[NodeName, Slot] = {}
    for slot, name in sorted(held.items()):
        if name in names and name not in result and 1 <= slot <= slots:
            result[name] = slot
    taken = set(result.values())
    free = sorted((Slot(n) for n in range(1, slots + 1) if n not in taken), key=lambda slot: (slot in held, slot))
    result.update(zip((name for name in names if name not in result), free, strict=False))
    return result


def held_by_routes(routes: Iterable[Route], nodes: Iterable[Node], table_base: int) -> dict[Slot, NodeName]:
    """The holders as the routing tables tell them: a table's next hop is its gateway's InternalIP."""
    owners: Mapping[Address, NodeName] = {address: node.name for node in nodes for address in node.internal_ips}
    return {
        Slot(route.table - table_base): owners[hop.gateway]
        for route in routes
        for hop in route.next_hops
        if hop.gateway and hop.gateway in owners and route.table > table_base
    }
