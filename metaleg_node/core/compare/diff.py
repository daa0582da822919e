"""From what the kernel holds to what it should hold: ordered steps, each with the changes that people are shown.

The order that keeps packets from leaving with a wrong source lives here alone. A packet is marked only while the
rule and the table for its mark stand: routes, then rules, then the firewall when adding; the firewall, then rules,
then routes when removing. What others put among ours goes before ours is put: the kernel may delete one for the other.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from metaleg_node.core.model import (
    Address,
    EgressPod,
    Firewall,
    ForeignItem,
    Network,
    NodeState,
    Route,
    RouteKey,
    RouteType,
    Rule,
    Treatment,
)

T = TypeVar("T")


class Action(enum.StrEnum):
    """What happens to an object."""

    ADD = "+"
    REMOVE = "-"
    CHANGE = "~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of a plan: what happens to which object, and why."""

    action: Action
    kind: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.action} {self.kind} {self.text}" + (f"  # {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSysctl:
    """Sets a kernel variable, remembering what it was."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSysctl:
    """Puts back what a kernel variable was before."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutRoute:
    """Adds a route or replaces the one with the same key, at once."""

    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRoute:
    """Deletes a route of ours."""

    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRule:
    """Adds a policy rule."""

    rule: Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRule:
    """Deletes a policy rule of ours."""

    rule: Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteForeignRoute:
    """Deletes somebody else's route from one of our tables."""

    item: ForeignItem


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteForeignRule:
    """Deletes somebody else's rule that leads into one of our tables."""

    item: ForeignItem


@dataclass(frozen=True, slots=True, kw_only=True)
class PutFirewall:
    """Makes the packet filter hold this, in one transaction; None: nothing of ours."""

    firewall: Firewall | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFlows:
    """Deletes the conntrack entries that contradict the firewall; `addresses` None: looks at all of them."""

    firewall: Firewall
    addresses: frozenset[Address] | None


Operation = (
    SetSysctl
    | RestoreSysctl
    | PutRoute
    | DeleteRoute
    | AddRule
    | DeleteRule
    | DeleteForeignRoute
    | DeleteForeignRule
    | PutFirewall
    | SweepFlows
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do, and what it changes; steps without changes serve the order only."""

    operation: Operation
    changes: tuple[Change, ...] = ()


Why = Callable[[Address], str]
"""Tells the reason for a pod's treatment."""


def steps(before: NodeState, after: NodeState, *, why: Why, damage: Iterable[str] = ()) -> tuple[Step, ...]:
    """The ordered steps from one state to the other; none when nothing differs.

    `before.sysctls` are the present values of all variables that are wanted now or were set by us once. `damage` names
    parts of the packet filter that others altered.
    """
    rules = before.routing.rules, after.routing.rules
    routes = _compare(before.routing.routes, after.routing.routes)
    return (
        *_set_sysctls(before.sysctls, after.sysctls),
        *_delete_foreign(before),
        *_delete_crowds(routes),
        *_put_routes(routes),
        *(
            Step(operation=AddRule(rule=rule), changes=(_change(Action.ADD, "rule", rule),))
            for rule in sorted(rules[1] - rules[0], key=str)
        ),
        *_put_firewall(before.firewall, after.firewall, why, tuple(damage)),
        *(
            Step(operation=DeleteRule(rule=rule), changes=(_change(Action.REMOVE, "rule", rule),))
            for rule in sorted(rules[0] - rules[1], key=str)
        ),
        *_delete_routes(routes),
        *_restore_sysctls(before.sysctls, after.sysctls),
    )


def changes(planned: Iterable[Step]) -> tuple[Change, ...]:
    """All changes of some steps, in their order."""
    return tuple(change for step in planned for change in step.changes)


def _change(action: Action, kind: str, what: object, reason: str = "") -> Change:
    return Change(action=action, kind=kind, text=str(what), reason=reason)


# --- sysctls ---------------------------------------------------------------------------------------------------------


def _set_sysctls(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Step]:
    # What is turned off comes last: `all` only when every interface has a value of its own.
    for name, value in sorted(after.items(), key=lambda item: (item[1] == "0", item[0])):
        if before.get(name) != value:
            # Absent: the interface went away since it was looked at; the kernel's answer will say so.
            was = f"was {before[name]}; " if name in before else ""
            why = "packets do not come the way that they would go back" if name.endswith("rp_filter") else "strict ARP"
            change = _change(Action.CHANGE, "sysctl", f"{name} = {value}", was + why)
            yield Step(operation=SetSysctl(name=name, value=value), changes=(change,))


def _restore_sysctls(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Step]:
    for name in sorted(before.keys() - after.keys(), key=lambda name: ("/all/" not in name, name)):
        change = _change(Action.CHANGE, "sysctl", name, "no longer needed: put back to what it was")
        yield Step(operation=RestoreSysctl(name=name), changes=(change,))


# --- routes and rules ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Routes:
    """How the routes of two states differ: those that only one of them has, and in `crowds`, by their key, several of
    the first state where one is wanted. Of these the kernel goes by one, and refuses to replace it by another that is
    there already. `wanted` are the keys of the second state, where something of the first is stale."""

    fresh: frozenset[Route]
    stale: frozenset[Route]
    crowds: Mapping[RouteKey, Collection[Route]]
    wanted: frozenset[RouteKey]


def _compare(before: frozenset[Route], after: frozenset[Route]) -> _Routes:
    """There may be thousands of routes, and mostly nothing differs: then only the sets are compared."""
    fresh, stale = after - before, before - after
    wanted = frozenset(route.key for route in after) if stale else frozenset()
    there: dict[RouteKey, list[Route]] = {route.key: [] for route in stale if route.key in wanted}
    for route in before if there else ():
        if route.key in there:
            there[route.key].append(route)
    crowds = {key: routes for key, routes in there.items() if len(routes) > 1}
    return _Routes(fresh=fresh, stale=stale, crowds=crowds, wanted=wanted)


def _delete_crowds(routes: _Routes) -> Iterator[Step]:
    """All of a crowd go, since to delete one may hit another; then the wanted one is put. Meanwhile the unreachable
    route stops what was marked."""
    for route in sorted((route for crowd in routes.crowds.values() for route in crowd), key=str):
        change = _change(Action.REMOVE, "route", route, "a second one in the place of ours")
        yield Step(operation=DeleteRoute(route=route), changes=(change,) if route in routes.stale else ())


def _put_routes(routes: _Routes) -> Iterator[Step]:
    """Unreachable routes first: where a table is new, nothing can fall through it from the beginning."""
    replaced = {route.key: route for route in routes.stale if route.key not in routes.crowds}
    again = {route for crowd in routes.crowds.values() for route in crowd} - routes.stale
    for route in sorted(routes.fresh | again, key=lambda r: (r.type is not RouteType.UNREACHABLE, str(r))):
        old = replaced.get(route.key)
        action = Action.CHANGE if old else Action.ADD
        change = _change(action, "route", route, f"was: {old}" if old else "")
        yield Step(operation=PutRoute(route=route), changes=() if route in again else (change,))


def _delete_routes(routes: _Routes) -> Iterator[Step]:
    gone = (route for route in routes.stale if route.key not in routes.wanted)
    for route in sorted(gone, key=lambda r: (r.type is RouteType.UNREACHABLE, str(r))):
        yield Step(operation=DeleteRoute(route=route), changes=(_change(Action.REMOVE, "route", route),))


def _delete_foreign(before: NodeState) -> Iterator[Step]:
    """A foreign route may stand in the place of ours, and be told from it by less than the kernel looks at when it
    deletes: an IPv6 route by its source or MTU, a rule by its "not". Deleted after ours was put, it would take ours
    along. Until ours is put, the unreachable route or the guard stops what was marked."""
    reason = "not ours, but in a table that is ours alone"
    for item in sorted(before.routing.foreign_routes, key=lambda i: i.text):
        change = _change(Action.REMOVE, "route", item.text, reason)
        yield Step(operation=DeleteForeignRoute(item=item), changes=(change,))
    reason = "not ours, but leads into a table that is ours alone"
    for item in sorted(before.routing.foreign_rules, key=lambda i: i.text):
        change = _change(Action.REMOVE, "rule", item.text, reason)
        yield Step(operation=DeleteForeignRule(item=item), changes=(change,))


# --- firewall --------------------------------------------------------------------------------------------------------


def _put_firewall(before: Firewall | None, after: Firewall | None, why: Why, damage: tuple[str, ...]) -> Iterator[Step]:
    lines = [*_firewall_changes(before, after, why)]
    if after:
        lines += [_change(Action.CHANGE, "firewall", f"{part} repaired", "somebody changed it") for part in damage]
    if not lines:
        return
    # What others altered says nothing reliable about before: nothing is built upon it, and any connection may have
    # begun in a wrong way meanwhile.
    known = None if damage else before
    if known and after and after.sources - known.sources:
        yield from _receive_first(known, after)
    if known and after is None:
        # Nothing is egress any more, but what began as such is dropped until it is forgotten; only then the table goes.
        yield Step(operation=PutFirewall(firewall=replace(known, pods={})))
        yield _sweep(known, after)
        yield Step(operation=PutFirewall(firewall=after), changes=tuple(lines))
    else:
        yield Step(operation=PutFirewall(firewall=after), changes=tuple(lines))
        yield _sweep(known, after)


def _sweep(before: Firewall | None, after: Firewall | None) -> Step:
    if after is None:
        return Step(operation=SweepFlows(firewall=Firewall(mark_mask=0), addresses=None))
    return Step(operation=SweepFlows(firewall=after, addresses=_moved(before, after)))


def _receive_first(before: Firewall, after: Firewall) -> Iterator[Step]:
    """A node that becomes a gateway may already get answers to connections of the former one. It must refuse them, and
    forget those that passed, before the first packet of a pod is translated: else that one finds its port taken."""
    arriving = replace(before, sources=before.sources | after.sources)
    yield Step(operation=PutFirewall(firewall=arriving))
    yield Step(operation=SweepFlows(firewall=arriving, addresses=after.sources - before.sources))


def _moved(before: Firewall | None, after: Firewall) -> frozenset[Address] | None:
    """The addresses whose connections may no longer fit; None: all may."""
    if before is None or (before.inside, before.filters) != (after.inside, after.filters):
        return None
    return frozenset(_changed_pods(before, after) | (after.sources - before.sources))


def _changed_pods(before: Firewall, after: Firewall) -> set[Address]:
    return {address for address, _ in before.pods.items() ^ after.pods.items()}


def _firewall_changes(before: Firewall | None, after: Firewall | None, why: Why) -> Iterator[Change]:
    if before == after:
        return
    if after is None:
        yield _change(Action.REMOVE, "firewall", "table inet metaleg_node, with all that it holds")
        return
    if before is None:
        yield _change(Action.ADD, "firewall", "table inet metaleg_node")
    have = before or Firewall(mark_mask=after.mark_mask)
    yield from _pod_changes(have, after, why)
    yield from _settings_changes(have, after)
    yield from _path_changes(have, after)
    for title, old, new in (
        ("inside the cluster", have.inside, after.inside),
        ("ports that take datagrams", have.served, after.served),
        ("pod networks", have.pod_networks, after.pod_networks),
        ("next hops", have.next_hops, after.next_hops),
        ("node interfaces", have.node_interfaces, after.node_interfaces),
        ("own addresses", have.node_addresses, after.node_addresses),
        ("return paths match", have.match, after.match),
        ("no return path to", have.direct, after.direct),
        ("reverse path checked on", have.checked, after.checked),
        ("reverse path not checked to", have.spared, after.spared),
    ):
        yield from _member_changes(title, old, new)


def _pod_changes(before: Firewall, after: Firewall, why: Why) -> Iterator[Change]:
    for address in sorted(_changed_pods(before, after), key=lambda a: (a.version, int(a))):
        old, new = before.pods.get(address), after.pods.get(address)
        if new is None:
            assert old
            yield _change(Action.REMOVE, "pod", f"{address} {describe(old, before)}", "no longer an egress pod")
        elif old is None:
            yield _change(Action.ADD, "pod", f"{address} {describe(new, after)}", why(address))
        else:
            was = f"{why(address)}; until now it {describe(old, before)}"
            yield _change(Action.CHANGE, "pod", f"{address} {describe(new, after)}", was)


def describe(pod: EgressPod, firewall: Firewall) -> str:
    """What happens to a pod's outward traffic on this node, in words."""
    some = " (its destinations are restricted)" if pod.filter else ""
    match pod.treatment:
        case Treatment.STEER:
            name = firewall.gateways.get(pod.slot, "?") if pod.slot else "?"
            return f"leaves through {name}, slot {pod.slot}{some}"
        case Treatment.SNAT:
            return f"leaves here as {pod.source}{some}"
        case Treatment.HOLD:
            return f"is held: {firewall.hold}{some}"
        case Treatment.ELSEWHERE:
            return f"is another node's: dropped if it comes here{some}"


def _path_changes(before: Firewall, after: Firewall) -> Iterator[Change]:
    old_slots = {path.holder: slot for slot, path in before.return_paths.items()}
    new_slots = {path.holder: slot for slot, path in after.return_paths.items()}
    for holder in sorted({*old_slots, *new_slots}):
        title = f"return {holder}"
        old, new = old_slots.get(holder), new_slots.get(holder)
        was = before.return_paths[old].networks if old else frozenset[Network]()
        will = after.return_paths[new].networks if new else frozenset[Network]()
        if old != new or (new and old and before.return_paths[old].mark != after.return_paths[new].mark):
            action = Action.REMOVE if new is None else Action.CHANGE if old else Action.ADD
            slot, firewall = (new, after) if new else (old, before)
            assert slot
            yield _change(action, "path", f"{holder} has slot {slot}, mark {firewall.mark(slot):#x}")
        yield from _member_changes(title, was, will)


def _settings_changes(before: Firewall, after: Firewall) -> Iterator[Change]:
    for title, old, new in (
        ("mark mask", f"{before.mark_mask:#x}", f"{after.mark_mask:#x}"),
        ("held packets", before.hold, after.hold),
        ("source ports", before.source_ports, after.source_ports),
        ("drop invalid input", before.drop_invalid_input, after.drop_invalid_input),
    ):
        if old != new:
            yield _change(Action.CHANGE, "firewall", f"{title}: {new}", f"was {old}")
    for slot in sorted({*before.gateways, *after.gateways}):
        old_name, new_name = before.gateways.get(slot), after.gateways.get(slot)
        if old_name != new_name:
            action = Action.REMOVE if new_name is None else Action.CHANGE if old_name else Action.ADD
            mark = f"{(before if new_name is None else after).mark(slot):#x}"
            yield _change(action, "gateway", f"{new_name or old_name} has slot {slot}, mark {mark}")
    for key in sorted({*before.filters, *after.filters}):
        if before.filters.get(key) != after.filters.get(key):
            kept = (after.filters if key in after.filters else before.filters)[key]
            gone, new = key not in after.filters, key not in before.filters
            action = Action.REMOVE if gone else Action.ADD if new else Action.CHANGE
            texts = f"except {_listed(kept.exclude)}" if kept.exclude else ""
            texts += f"{' ' if texts else ''}only {_listed(kept.only)}" if kept.only else ""
            yield _change(action, "destinations", texts)


def _member_changes(title: str, old: frozenset[T], new: frozenset[T]) -> Iterator[Change]:
    if new - old:
        yield _change(Action.ADD, "firewall", f"{title}: {_listed(new - old)}")
    if old - new:
        yield _change(Action.REMOVE, "firewall", f"{title}: {_listed(old - new)}")


def _listed(items: Iterable[object]) -> str:
    texts = sorted(map(str, items))
    rest = f" and {len(texts) - 6} more" if len(texts) > 6 else ""
    return ", ".join(texts[:6]) + rest
