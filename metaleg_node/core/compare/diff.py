"""From what the kernel holds to what it should hold: ordered steps, each with the changes that people are shown.

The order that keeps packets from leaving with a wrong source lives here alone. A packet is marked only while the
rule and the table for its mark stand: routes, then rules, then the firewall when adding; the firewall, then rules,
then routes when removing. What others put among ours goes before ours is put: the kernel may delete one for the other.
Connections are looked through last, since that takes longer than all the rest: meanwhile the packet filter drops those
that are bound to a former source.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from metaleg_node.core.changes import Action, Change, change
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.firewall.external_ip import ExternalIp, VirtualServer
from metaleg_node.core.firewall.part import Firewall, Numbers, Why
from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.model import Address, ForeignItem, Route, RouteKey, RouteType, Rule
from metaleg_node.core.node_state import NodeState


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
    """Makes the packet filter hold this, such that what packets meet changes at once; None: nothing of ours."""

    firewall: Firewall | None


Routers = frozenset[tuple[int, int]]
"""Marks of routers that connections remember, with their masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropFormerFirewall:
    """Takes away what a packet filter of another kind holds of ours: the one in use holds the same by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFlows:
    """Deletes the conntrack entries that contradict the firewall; `addresses` None: looks at all of them. What goes to
    one of `servers` is decided anew in any case. `routers` are marks with their masks that connections shall not
    remember any more, unless the firewall has them for others. `awaited`: the steps behind it rest on it."""

    firewall: Firewall
    addresses: frozenset[Address] | None
    servers: frozenset[VirtualServer] = frozenset()
    awaited: bool = False
    routers: Routers = frozenset()

    def with_(self, later: SweepFlows) -> SweepFlows:
        """Both at once: what the later one holds to be right counts."""
        return SweepFlows(
            firewall=later.firewall,
            addresses=None if self.addresses is None or later.addresses is None else self.addresses | later.addresses,
            servers=self.servers | later.servers,
            awaited=self.awaited or later.awaited,
            routers=self.routers | later.routers,
        )


RoutingOperation = PutRoute | DeleteRoute | AddRule | DeleteRule | DeleteForeignRoute | DeleteForeignRule
Operation = SetSysctl | RestoreSysctl | RoutingOperation | PutFirewall | DropFormerFirewall | SweepFlows


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do, and what it changes; steps without changes serve the order only."""

    operation: Operation
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A part of the packet filter that is not as it was put there, and how that came."""

    what: str
    reason: str = "somebody changed it"


def steps(
    before: NodeState,
    after: NodeState,
    *,
    why: Why,
    damage: Collection[Damage] = (),
    place: str = "packet filter",
    former: str = "",
) -> tuple[Step, ...]:
    """The ordered steps from one state to the other; none when nothing differs.

    `before.sysctls` are the present values of all variables that are wanted now or were set by us once. `damage` names
    parts of the packet filter that are not as they were put there, `place` what holds them all; `former` what another
    packet filter holds of ours, if any.
    """
    rules = before.routing.rules, after.routing.rules
    routes = _compare(before.routing.routes, after.routing.routes)
    lines = [*_firewall_changes(before.firewall, after.firewall, why, place)]
    if after.firewall:
        lines += [change(Action.CHANGE, "firewall", f"{one.what} repaired", one.reason) for one in damage]
    # What others altered says nothing reliable about before: nothing is built upon it, and any connection may have
    # begun in a wrong way meanwhile.
    known = None if damage else before.firewall
    gone = routers(before.firewall) - routers(after.firewall)
    return (
        *_set_sysctls(before.sysctls, after.sysctls),
        *_delete_foreign(before),
        *_delete_crowds(routes),
        *_put_routes(routes),
        *(
            Step(operation=AddRule(rule=rule), changes=(change(Action.ADD, "rule", rule),))
            for rule in sorted(rules[1] - rules[0], key=str)
        ),
        *_put_firewall(known, after.firewall, tuple(lines), gone),
        *_drop_former(former),
        *(
            Step(operation=DeleteRule(rule=rule), changes=(change(Action.REMOVE, "rule", rule),))
            for rule in sorted(rules[0] - rules[1], key=str)
        ),
        *_delete_routes(routes),
        *_restore_sysctls(before.sysctls, after.sysctls),
        *(_sweep_last(known, after.firewall, gone) if lines else ()),
    )


def changes(planned: Iterable[Step]) -> tuple[Change, ...]:
    """All changes of some steps, in their order."""
    return tuple(change for step in planned for change in step.changes)


# --- sysctls ---------------------------------------------------------------------------------------------------------


def _set_sysctls(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Step]:
    # What is turned off comes last: `all` only when every interface has a value of its own.
    for name, value in sorted(after.items(), key=lambda item: (item[1] == "0", item[0])):
        if before.get(name) != value:
            # Absent: the interface went away since it was looked at; the kernel's answer will say so.
            was = f"was {before[name]}; " if name in before else ""
            why = "packets do not come the way that they would go back" if name.endswith("rp_filter") else "strict ARP"
            line = change(Action.CHANGE, "sysctl", f"{name} = {value}", was + why)
            yield Step(operation=SetSysctl(name=name, value=value), changes=(line,))


def _restore_sysctls(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Step]:
    for name in sorted(before.keys() - after.keys(), key=lambda name: ("/all/" not in name, name)):
        line = change(Action.CHANGE, "sysctl", name, "no longer needed: put back to what it was")
        yield Step(operation=RestoreSysctl(name=name), changes=(line,))


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
        line = change(Action.REMOVE, "route", route, "a second one in the place of ours")
        yield Step(operation=DeleteRoute(route=route), changes=(line,) if route in routes.stale else ())


def _put_routes(routes: _Routes) -> Iterator[Step]:
    """Unreachable routes first: where a table is new, nothing can fall through it from the beginning."""
    replaced = {route.key: route for route in routes.stale if route.key not in routes.crowds}
    again = {route for crowd in routes.crowds.values() for route in crowd} - routes.stale
    for route in sorted(routes.fresh | again, key=lambda r: (r.type is not RouteType.UNREACHABLE, str(r))):
        old = replaced.get(route.key)
        action = Action.CHANGE if old else Action.ADD
        line = change(action, "route", route, f"was: {old}" if old else "")
        yield Step(operation=PutRoute(route=route), changes=() if route in again else (line,))


def _delete_routes(routes: _Routes) -> Iterator[Step]:
    gone = (route for route in routes.stale if route.key not in routes.wanted)
    for route in sorted(gone, key=lambda r: (r.type is RouteType.UNREACHABLE, str(r))):
        yield Step(operation=DeleteRoute(route=route), changes=(change(Action.REMOVE, "route", route),))


def _delete_foreign(before: NodeState) -> Iterator[Step]:
    """A foreign route may stand in the place of ours, and be told from it by less than the kernel looks at when it
    deletes: an IPv6 route by its source or MTU, a rule by its "not". Deleted after ours was put, it would take ours
    along. Until ours is put, the unreachable route or the guard stops what was marked."""
    reason = "not ours, but in a table that is ours alone"
    for item in sorted(before.routing.foreign_routes, key=lambda i: i.text):
        line = change(Action.REMOVE, "route", item.text, reason)
        yield Step(operation=DeleteForeignRoute(item=item), changes=(line,))
    reason = "not ours, but leads into a table that is ours alone"
    for item in sorted(before.routing.foreign_rules, key=lambda i: i.text):
        line = change(Action.REMOVE, "rule", item.text, reason)
        yield Step(operation=DeleteForeignRule(item=item), changes=(line,))


# --- firewall --------------------------------------------------------------------------------------------------------


def _put_firewall(
    known: Firewall | None, after: Firewall | None, lines: tuple[Change, ...], gone: Routers
) -> Iterator[Step]:
    """`known` is what the packet filter surely held before, None if nothing is sure; `gone` are the routers that
    connections shall not remember."""
    if not lines:
        return
    if known and after is None:
        # Nothing is egress any more, but what began as such is dropped until it is forgotten; only then the table goes.
        idle = known.having(
            replace(known.part(Egress), pods={}), replace(known.part(ReturnPaths), routers={}), ExternalIp()
        )
        yield Step(operation=PutFirewall(firewall=idle))
        yield Step(operation=replace(sweep(known, after), awaited=True, routers=gone))
    yield Step(operation=PutFirewall(firewall=after), changes=lines)


def _sweep_last(known: Firewall | None, after: Firewall | None, gone: Routers) -> Iterator[Step]:
    if known and after is None:
        return
    wanted = replace(sweep(known, after), routers=gone)
    if wanted.addresses != frozenset() or wanted.servers or gone:
        yield Step(operation=wanted)


def _drop_former(place: str) -> Iterator[Step]:
    if place:
        line = change(Action.REMOVE, "firewall", f"{place}, with all that is ours", "another packet filter is in use")
        yield Step(operation=DropFormerFirewall(), changes=(line,))


def sweep(before: Firewall | None, after: Firewall | None) -> SweepFlows:
    """Forgets connections after a change; `before` None: it is not known what the packet filter held."""
    have, want = (firewall.part(ExternalIp) if firewall else ExternalIp() for firewall in (before, after))
    servers = want.moved(have)
    if after is None:
        return SweepFlows(firewall=Firewall(mark_mask=0), addresses=None, servers=servers)
    return SweepFlows(firewall=after, addresses=_moved(before, after), servers=servers)


def routers(firewall: Firewall | None) -> Routers:
    """Those that are told apart."""
    if firewall is None:
        return frozenset()
    return frozenset((firewall.mark(slot), firewall.mark_mask) for slot in firewall.part(ReturnPaths).routers)


def _moved(before: Firewall | None, after: Firewall) -> frozenset[Address] | None:
    """The addresses whose connections may no longer fit; None: all may."""
    if before is None:
        return None
    known, wanted = before.part(Egress), after.part(Egress)
    altered = any(known.filters[key] != wanted.filters[key] for key in known.filters.keys() & wanted.filters.keys())
    if altered or known.inside != wanted.inside:
        return None
    return frozenset(wanted.moved(known) | (wanted.sources - known.sources))


_RANKS = {"pod": 0, "gateway": 2, "exit": 2, "destinations": 3, "path": 4}


def _firewall_changes(before: Firewall | None, after: Firewall | None, why: Why, place: str) -> Iterator[Change]:
    """What is most asked for comes first: pods, then settings, gateways, destinations, paths, and the rest."""
    if before == after:
        return
    if after is None:
        yield change(Action.REMOVE, "firewall", f"{place}, with all that it holds")
        return
    if before is None:
        yield change(Action.ADD, "firewall", place)
    have = before or Firewall(mark_mask=after.mark_mask)
    numbers = Numbers(mask_before=have.mark_mask, mask=after.mark_mask, why=why)
    lines: list[Change] = []
    if have.mark_mask != after.mark_mask:
        text = f"mark mask: {after.mark_mask:#x}"
        lines.append(change(Action.CHANGE, "firewall", text, f"was {have.mark_mask:#x}"))
    for kind in {type(part): None for part in (*have.parts, *after.parts)}:
        lines += after.part(kind).changes(have.part(kind), numbers)
    yield from sorted(lines, key=lambda line: _RANKS.get(line.kind, 1 if line.action is Action.CHANGE else 5))
