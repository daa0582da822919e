"""A kernel that carries out steps as strictly as the real one: what is there cannot be added, what is not there cannot
be deleted, and a mark must always find its way.

A foreign item may be `in_place_of` a route or rule of ours, which then cannot be there, as the real one has it: the
route put there replaces it, and its deletion after that takes ours away; a rule with "not" counts as the rule itself.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network

from metaleg_node.core.compare import diff
from metaleg_node.core.explain.locator import Locator
from metaleg_node.core.firewall.egress import Egress, Treatment
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import ForeignItem, Route, RouteType, Routing, Rule
from metaleg_node.core.node_state import NodeState
from metaleg_node.kernel.nftables.locator import TableLocator
from metaleg_node.kernel.packet_filter import Counter, View


def in_place_of(ours: Route | Rule) -> ForeignItem:
    """What others put where a route or rule of ours belongs."""
    return ForeignItem(text=f"not {ours}", raw=(("place", ours.key if isinstance(ours, Route) else ours),))


def _taken(items: Iterable[ForeignItem], place: object) -> list[ForeignItem]:
    return [item for item in items if ("place", place) in item.raw]


class FakePacketFilter:
    """A PacketFilter that holds whatever it is given."""

    place = "a table of nowhere"
    limits = ""

    def __init__(self, firewall: Firewall | None = None) -> None:
        self.firewall = firewall
        self._damage: tuple[diff.Damage, ...] = ()
        self._changed = True

    def observe(self) -> View:
        self._changed = False
        return View(firewall=self.firewall, damage=self._damage)

    def put(self, firewall: Firewall | None) -> None:
        self.firewall, self._damage, self._changed = firewall, (), False

    def present(self) -> bool:
        return self.firewall is not None

    def changed(self) -> bool:
        return self._changed

    def forget(self) -> None:
        self._changed = True

    @contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        told = False

        def disturbed() -> bool:
            nonlocal told
            fresh, told = self._changed and not told, self._changed
            return fresh

        yield disturbed

    def counters(self) -> dict[str, Counter]:
        names = ("steered", "translated", "held", "dropped", "unknown") if self.firewall else ()
        return dict.fromkeys(names, Counter(0, 0))

    def versions(self) -> dict[str, str]:
        return {}

    def locator(self, firewall: Firewall) -> Locator:
        return TableLocator(firewall)

    def lacking(self) -> dict[str, str]:
        return {}

    def listing(self) -> str:
        return str(self.firewall)

    def unnameable(self, interfaces: Iterable[str]) -> frozenset[str]:
        return frozenset(name for name in interfaces if not name.replace(".", "").isalnum())

    def be_damaged(self) -> None:
        """Somebody alters a part of what it holds."""
        self._damage, self._changed = (diff.Damage(what="a part"),), True

    def be_removed(self) -> None:
        """Somebody takes away what it holds."""
        self.firewall, self._damage, self._changed = None, (), True


class FakeKernel:
    """Begins in any state. `safe` tells whether steering can leak; foreign items may live in it, ours or not."""

    def __init__(self, state: NodeState, *, sysctls: dict[str, str] | None = None) -> None:
        self.rules: set[Rule] = set(state.routing.rules)
        self.routes: set[Route] = set(state.routing.routes)
        self.foreign_rules: set[ForeignItem] = set(state.routing.foreign_rules)
        self.foreign_routes: set[ForeignItem] = set(state.routing.foreign_routes)
        self.packet_filter = FakePacketFilter(state.firewall)
        self.originals: dict[str, str] = {}
        self.variables: dict[str, str] = dict(sysctls or {})

    @property
    def firewall(self) -> Firewall | None:
        return self.packet_filter.firewall

    def observe(self, desired: NodeState) -> NodeState:
        """As the daemon sees it before it plans towards `desired`."""
        return NodeState(
            routing=Routing(
                rules=frozenset(self.rules),
                routes=frozenset(self.routes),
                foreign_rules=frozenset(self.foreign_rules),
                foreign_routes=frozenset(self.foreign_routes),
            ),
            firewall=self.packet_filter.observe().firewall,
            sysctls={n: v for n, v in self.variables.items() if n in desired.sysctls or n in self.originals},
        )

    def run(self, steps: Iterable[diff.Step]) -> None:
        for step in steps:
            self._do(step.operation)

    def _do(self, operation: diff.Operation) -> None:
        match operation:
            case diff.PutFirewall(firewall=firewall):
                self.packet_filter.put(firewall)
            case diff.SetSysctl(name=name, value=value):
                self.originals.setdefault(name, self.variables[name])
                self.variables[name] = value
            case diff.RestoreSysctl(name=name):
                self.variables[name] = self.originals.pop(name)
            case diff.SweepFlows(firewall=swept):
                assert swept is not None
            case diff.DropFormerFirewall():
                raise AssertionError("there is one packet filter")
            case diff.PutRoute() | diff.DeleteRoute() | diff.DeleteForeignRoute():
                self._do_route(operation)
            case _:
                self._do_rule(operation)

    def _do_route(self, operation: diff.PutRoute | diff.DeleteRoute | diff.DeleteForeignRoute) -> None:
        match operation:
            case diff.PutRoute(route=route):
                assert route not in self.routes, f"written although it is there: {route}"
                there = self._routes_at(route.key)
                assert len(there) <= 1, f"replaces only the first of {there}"
                self.routes = (self.routes - there) | {route}
                self.foreign_routes.difference_update(_taken(self.foreign_routes, route.key))
            case diff.DeleteRoute(route=route):
                self.routes.remove(route)
            case diff.DeleteForeignRoute(item=item):
                if item in self.foreign_routes:
                    self.foreign_routes.remove(item)
                else:
                    self.routes -= self._routes_at(dict(item.raw)["place"])

    def _routes_at(self, key: object) -> set[Route]:
        return {route for route in self.routes if route.key == key}

    def _do_rule(self, operation: diff.AddRule | diff.DeleteRule | diff.DeleteForeignRule) -> None:
        match operation:
            case diff.AddRule(rule=rule):
                assert rule not in self.rules, f"File exists: {rule}"
                assert any(r.table == rule.table for r in self.routes), f"rule into an empty table: {rule}"
                if not _taken(self.foreign_rules, rule):
                    self.rules.add(rule)
            case diff.DeleteRule(rule=rule):
                self.rules.remove(rule)
            case diff.DeleteForeignRule(item=item):
                self.foreign_rules.remove(item)

    def leaks(self) -> list[str]:
        """Pods that are steered by a mark that does not lead into a closed table, and tables read by a rule that are
        open at the end."""
        found = [
            f"{rule} reads a table that is open" for rule in self.rules if not self._closed(rule.table, rule.family)
        ]
        if self.firewall is None:
            return found
        for address, pod in self.firewall.part(Egress).pods.items():
            if pod.treatment is Treatment.STEER:
                assert pod.slot
                mark, mask = self.firewall.mark(pod.slot), self.firewall.mark_mask
                rules = [r for r in self.rules if (r.family, r.mark, r.mask) == (address.version, mark, mask)]
                if not rules:
                    found.append(f"{address} is steered without a rule for {mark:#x}/{mask:#x}")
        return found

    def _closed(self, table: int, family: int) -> bool:
        everywhere = ip_network("0.0.0.0/0" if family == 4 else "::/0")
        return any(
            r.table == table and r.type is RouteType.UNREACHABLE and r.destination == everywhere for r in self.routes
        )

    def copy(self) -> FakeKernel:
        return copy.deepcopy(self)


def holds(kernel: FakeKernel, desired: NodeState) -> bool:
    """Whether the kernel holds just this of ours."""
    seen = kernel.observe(desired)
    return dataclasses.replace(seen, sysctls={}) == dataclasses.replace(desired, sysctls={}) and all(
        kernel.variables[name] == value for name, value in desired.sysctls.items()
    )
