"""Return paths, as the packet filter has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from metaleg_node.core.changes import Change, between, change, members
from metaleg_node.core.firewall.part import Numbers, Part, collection
from metaleg_node.core.model import Holder, Match, Network, Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnPath:
    """Networks whose replies leave by one way. `holder` is what has the slot; `mark` is a mark that packets known by
    their source must carry already, None for any."""

    holder: Holder
    networks: frozenset[Network]
    mark: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnPaths(Part):
    """`paths` never overlap; `match` tells how their packets are known; `direct` are the destinations to which none
    applies."""

    paths: Mapping[Slot, ReturnPath] = field(default_factory=dict)
    match: frozenset[Match] = collection("return paths match")
    direct: frozenset[Network] = collection("no return path to")

    @property
    def holders(self) -> Mapping[Slot, Holder]:
        return {slot: path.holder for slot, path in self.paths.items()}

    def told(self, before: ReturnPaths, numbers: Numbers) -> Iterator[Change]:
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
