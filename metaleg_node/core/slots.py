"""Which claim has which mark and routing table on this node.

A slot is one value under the mark mask and one routing table. Each feature tells what it claims slots for; they are
handed out here and nowhere else. A slot stays with its holder for as long as that one is wanted, across restarts too:
who has which is read back from the packet filter, and where that is lost from rules and routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from metaleg_node.core.model import Address, Holder, Route, RouteType, Routing, Slot

MAX_SLOTS = 63
SPARE_METRIC = 4700
"""Of the route by which packets leave a table whose first route is gone."""

Granted = Mapping[Holder, Slot]
"""Who got which slot; who got none is not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A slot is wanted for `holder`. The rest tells its routes from others': `gateways` are its next hops, `tunnels`
    the interfaces that lead to it without one, `closed` says whether its table ends in an unreachable route, `spare`
    whether it has a second way (SPARE_METRIC), `table` is one that does not follow from the slot."""

    holder: Holder
    gateways: frozenset[Address] = frozenset()
    tunnels: frozenset[str] = frozenset()
    closed: bool = True
    spare: bool = False
    table: int | None = None


def mark_of(slot: Slot, mark_mask: int) -> int:
    """The mark of a slot: its number, shifted to the lowest bit of the mask."""
    return slot * (mark_mask & -mark_mask)


def count(mark_mask: int) -> int:
    """How many slots a mask has room for: all its values but 0, and never more than 63 tables."""
    return min((1 << mark_mask.bit_count()) - 1, MAX_SLOTS)


def assign(
    held: Mapping[Slot, Holder], wanted: Sequence[Holder], *, slots: int, yielding: Sequence[Holder] = ()
) -> dict[Holder, Slot]:
    """Gives each wanted holder a slot, in the order of `wanted` while there are any; who gets none is left out. What is
    left goes to `yielding`, who give even those that they hold to others that find none.

    Holders keep theirs. A slot that nobody held is preferred to one that was held, so that packets already marked
    for a former gateway do not meet the next one's table.
    """
    result: dict[Holder, Slot] = {}
    for holders in (wanted, yielding):
        left = [Slot(n) for n in range(1, slots + 1) if n not in result.values()]
        # Those that somebody may have to yield come last of all.
        left.sort(key=lambda slot: (held.get(slot) in yielding, slot in held))
        result |= _assign(held, list(dict.fromkeys(holders)), left)
    return result


def _assign(held: Mapping[Slot, Holder], holders: Sequence[Holder], left: Iterable[Slot]) -> dict[Holder, Slot]:
    result: dict[Holder, Slot] = {}
    free = []
    for slot in left:
        holder = held.get(slot)
        if holder is None or holder not in holders or holder in result:
            free.append(slot)
        else:
            result[holder] = slot
    result.update(zip((holder for holder in holders if holder not in result), free, strict=False))
    return result


def read_back(routing: Routing, claims: Iterable[Claim], mark_mask: int, table_base: int) -> dict[Slot, Holder]:
    """The holders as rules and routes tell them: a claim is known by the next hops of its table, or where its table is
    always the same by the mark of the rule that leads there."""
    tables: dict[int, list[Route]] = {}
    for route in routing.routes:
        tables.setdefault(route.table, []).append(route)
    found: dict[Slot, Holder] = {}
    waiting = list(claims)
    for slot, table in _numbered(routing, tables, mark_mask, table_base, {claim.table for claim in waiting}):
        claim = next((one for one in waiting if _fits(one, table, tables[table])), None)
        if claim and slot not in found:
            found[slot] = claim.holder
            waiting.remove(claim)
    return found


def _numbered(
    routing: Routing, tables: Iterable[int], mark_mask: int, table_base: int, fixed: set[int | None]
) -> Iterator[tuple[Slot, int]]:
    of_slots = (rule for rule in routing.rules if not rule.source)
    marked = {rule.table: rule.mark // (mark_mask & -mark_mask) for rule in of_slots if rule.mark}
    for table in sorted(tables):
        if table in fixed and table in marked:
            yield Slot(marked[table]), table
        elif table_base < table <= table_base + MAX_SLOTS:
            yield Slot(table - table_base), table


def _fits(claim: Claim, table: int, routes: Iterable[Route]) -> bool:
    if claim.table is not None:
        return claim.table == table
    found = tuple(routes)
    first = (route for route in found if route.metric != SPARE_METRIC)
    hops = [hop for route in first for hop in route.next_hops]
    known = any(hop.gateway in claim.gateways if hop.gateway else hop.interface in claim.tunnels for hop in hops)
    ends = any(route.type is RouteType.UNREACHABLE for route in found), any(r.metric == SPARE_METRIC for r in found)
    return ends == (claim.closed, claim.spare) and known
