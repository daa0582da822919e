"""Return paths, as the packet filter has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from metaleg_node.core.changes import Change, between, change, members
from metaleg_node.core.firewall.part import Numbers, Part, collection
from metaleg_node.core.model import Family, Holder, Match, Network, Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnPath:
    """Networks whose replies leave by one way. `holder` is what has the slot; `mark` is a mark that packets known by
    their source must carry already, None for any."""

    holder: Holder
    networks: frozenset[Network]
    mark: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRouter:
    """A next hop of the path with the slot `path`. A request that comes in by `interface` from `link_address` (as in
    `Host`) came by it, and its answers leave by it alone. `link_address` empty: it is not there now, and answers to
    what came by it leave as the path's others. Several may have one link-layer address: one machine."""

    holder: Holder
    path: Slot
    family: Family
    interface: str
    link_address: str = ""

    def is_the_machine_of(self, other: PathRouter) -> bool:
        """Whether what comes by the two cannot be told apart."""
        mine, others = ((one.family, one.interface, one.link_address) for one in (self, other))
        return bool(self.link_address) and mine == others

    def __str__(self) -> str:
        seen = f"is {self.link_address}" if self.link_address else "is not there, answers leave as the path's others"
        return f"{self.holder} on {self.interface} {seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnPaths(Part):
    """`paths` never overlap, `routers` are some of their next hops; `match` tells how their packets are known; `direct`
    are the destinations to which none applies."""

    paths: Mapping[Slot, ReturnPath] = field(default_factory=dict)
    routers: Mapping[Slot, PathRouter] = field(default_factory=dict)
    match: frozenset[Match] = collection("return paths match")
    direct: frozenset[Network] = collection("no return path to")

    @property
    def holders(self) -> Mapping[Slot, Holder]:
        return {slot: one.holder for some in (self.paths, self.routers) for slot, one in some.items()}

    def remembered_as(self, router: Slot) -> Slot:
        """The slot that connections remember which came by a router. Several paths, or a path twice, may have one
        machine as a router: then the first slot stands for all."""
        mine = self.routers[router]
        return min((slot for slot, one in self.routers.items() if one.is_the_machine_of(mine)), default=router)

    def sorted_out(self) -> dict[Slot, dict[Slot, Slot]]:
        """For each path that has routers: the slot that connections remember, and the router's own. These are two where
        several paths, or a path twice, have one machine as a router."""
        found: dict[Slot, dict[Slot, Slot]] = {router.path: {} for router in self.routers.values()}
        for slot, router in sorted(self.routers.items()):
            if router.link_address:
                found[router.path].setdefault(self.remembered_as(slot), slot)
        return found

    def first_seen(self) -> dict[Slot, PathRouter]:
        """The routers whose slots connections remember."""
        firsts = {first for own in self.sorted_out().values() for first in own}
        return {slot: self.routers[slot] for slot in sorted(firsts)}

    def remembering(self, family: int) -> list[Network]:
        """The networks that requests come to whose routers are remembered."""
        paths = {router.path for router in self.routers.values() if router.family == family}
        return [n for slot in paths if slot in self.paths for n in self.paths[slot].networks if n.version == family]

    def told(self, before: ReturnPaths, numbers: Numbers) -> Iterator[Change]:
        yield from self._told_paths(before, numbers)
        yield from self._told_routers(before, numbers)

    def _told_routers(self, before: ReturnPaths, numbers: Numbers) -> Iterator[Change]:
        old_slots = {router.holder: slot for slot, router in before.routers.items()}
        new_slots = {router.holder: slot for slot, router in self.routers.items()}
        for holder in sorted({*old_slots, *new_slots}):
            old, new = old_slots.get(holder), new_slots.get(holder)
            was = before.routers[old] if old else None
            will = self.routers[new] if new else None
            if old != new:
                slot = new or old
                assert slot
                mark = numbers.mark(slot, before=new is None)
                yield change(between(old, new), "path", f"{holder} has slot {slot}, mark {mark}")
            if will and will != was:
                yield change(between(was, will), "firewall", will)

    def _told_paths(self, before: ReturnPaths, numbers: Numbers) -> Iterator[Change]:
        old_slots = {path.holder: slot for slot, path in before.paths.items()}
        new_slots = {path.holder: slot for slot, path in self.paths.items()}
        for holder in sorted({*old_slots, *new_slots}):
            old, new = old_slots.get(holder), new_slots.get(holder)
            was = before.paths[old] if old else None
            will = self.paths[new] if new else None
            if old != new or (was and will and was.mark != will.mark):
                slot = new or old
                assert slot
                mark = numbers.mark(slot, before=new is None)
                yield change(between(old, new), "path", f"{holder} has slot {slot}, mark {mark}")
            nothing = frozenset[Network]()
            yield from members(f"return {holder}", was.networks if was else nothing, will.networks if will else nothing)
