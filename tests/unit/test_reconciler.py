"""How steps are carried out when some of them fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from ipaddress import ip_network
from typing import cast

import pytest

from metaleg_node.core.assembly import Desired
from metaleg_node.core.compare import diff
from metaleg_node.core.egress import survey
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import ClusterState, Host, NextHop, Questions, Route, RouteType, Routing, Rule, Slot
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.packet_filter import View
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Plan, Reconciler, carry_out
from tests.firewalls import FULL, wall
from tests.unit.builders import A, cluster, config, host, node

HERE = '[node]\nname = "a"\n'
ROUTE = Route(table=1000001, destination=ip_network("0.0.0.0/0"), type=RouteType.UNREACHABLE, metric=9)
RULE = Rule(family=4, priority=4700, table=1000001, mark=1 << 24, mask=FULL.mark_mask)


class Refusing:
    """Stands where the machine does, and refuses some kinds of operations."""

    def __init__(self, refused: Collection[type]) -> None:
        self._refused = tuple(refused)
        self.done: list[str] = []
        self.together: list[int] = []

    def carry_out(self, operations: Sequence[diff.Operation]) -> list[int | KernelError]:
        self.together.append(len(operations))
        return [*map(self._do, operations)]

    def _do(self, operation: diff.Operation) -> int | KernelError:
        if isinstance(operation, self._refused):
            return KernelError(f"no {type(operation).__name__}")
        self.done.append(type(operation).__name__)
        return 1

    def prune(self) -> None:
        """Nothing is remembered."""


STEPS = tuple(
    diff.Step(operation=operation)
    for operation in (
        diff.PutRoute(route=ROUTE),
        diff.AddRule(rule=RULE),
        diff.PutFirewall(firewall=FULL),
        diff.SweepFlows(firewall=Firewall(mark_mask=1), addresses=None),
        diff.DeleteRule(rule=RULE),
        diff.DeleteRoute(route=ROUTE),
    )
)


@pytest.mark.parametrize(
    ("refused", "done", "unswept"),
    [
        ((), ["PutRoute", "AddRule", "PutFirewall", "SweepFlows", "DeleteRule", "DeleteRoute"], False),
        ((diff.PutRoute,), ["AddRule", "PutFirewall", "SweepFlows", "DeleteRule", "DeleteRoute"], False),
        ((diff.PutFirewall,), ["PutRoute", "AddRule", "SweepFlows"], False),
        ((diff.SweepFlows,), ["PutRoute", "AddRule", "PutFirewall", "DeleteRule", "DeleteRoute"], True),
    ],
)
def test_a_step_that_fails_holds_back_only_what_would_open_a_leak(
    refused: Collection[type], done: list[str], unswept: bool
) -> None:
    machine = Refusing(refused)
    outcome = carry_out(cast(Machine, machine), STEPS)
    assert machine.done == done
    assert outcome.ok is not bool(refused)
    assert outcome.unswept is unswept
    assert outcome.flushed == len(done)


def test_routes_and_rules_that_follow_each_other_go_to_the_kernel_together() -> None:
    machine = Refusing(())
    beats: list[None] = []
    many = (diff.Step(operation=diff.PutRoute(route=ROUTE)),) * 249
    carry_out(cast(Machine, machine), many + STEPS, lambda: beats.append(None))
    assert machine.together == [100, 100, 51, 1, 1, 2]
    assert len(beats) == len(machine.together)


# --- deciding anew ---------------------------------------------------------------------------------------------------


class Empty:
    """A kernel that holds nothing but what the test says."""

    place = "packet filter"
    limits = former = ""

    def __init__(self, facts: Host) -> None:
        self.facts = facts
        self.problems = ()
        self.answering = "reachable"
        self.wall: Firewall | None = wall()
        self.packet_filter = self
        self.looks = 0

    def observe(self) -> View:
        return View(firewall=self.wall)

    def host(self, _questions: Questions) -> Host:
        self.looks += 1
        return dataclasses.replace(self.facts)

    def routing(self, _tables: Collection[int]) -> Routing:
        return Routing()

    def sysctls(self, _wanted: Collection[str]) -> dict[str, str]:
        return {}

    def neighbours(self, hops: Iterable[NextHop]) -> dict[NextHop, str]:
        return dict.fromkeys(hops, self.answering)

    def carry_out(self, operations: Sequence[diff.Operation]) -> list[int | KernelError]:
        return [0] * len(operations)

    def prune(self) -> None:
        """Nothing is remembered."""


def test_a_decision_is_made_anew_only_when_something_changed_that_it_rests_on() -> None:
    state = cluster()
    facts = host(survey.take(state, config(HERE)), A)
    machine = Empty(facts)
    reconciler = Reconciler(cast(Machine, machine), config(HERE))
    made: list[Desired] = []

    def plan(state: ClusterState) -> tuple[int, Plan]:
        planned = reconciler.plan(state)
        if not made or planned.desired is not made[-1]:
            made.append(planned.desired)
        return len(made), planned

    count, first = plan(state)
    assert plan(state) == (count, first), "nothing changed"
    machine.facts = dataclasses.replace(facts, on_link=frozenset())
    count, held_up = plan(state)
    assert (count, held_up.desired.state == first.desired.state) == (2, False), "the host changed"
    machine.facts = facts
    assert plan(state) == (3, first), "and back"
    machine.wall = wall(gateways={Slot(7): "c"})
    assert plan(state)[0] == 4, "another slot is held"
    assert plan(dataclasses.replace(state, pods=()))[0] == 5, "the cluster changed"


def test_the_host_is_asked_again_when_it_changed_we_changed_it_or_something_else_is_asked() -> None:
    state = cluster()
    machine = Empty(host(survey.take(state, config(HERE)), A))
    reconciler = Reconciler(cast(Machine, machine), config(HERE))

    def looks(state: ClusterState = state, *, same_host: bool = True) -> int:
        before = machine.looks
        reconciler.plan(state, same_host=same_host)
        return machine.looks - before

    assert [looks(), looks(), looks(same_host=False), looks()] == [1, 0, 1, 0]
    other = cluster(nodes=[node("a"), node("b")])
    assert [looks(other), looks(other), looks(state)] == [1, 0, 1]
    for steps, asked in ((STEPS[2:4], 0), (STEPS[:1], 1), (STEPS[1:2], 1)):
        reconciler.apply(dataclasses.replace(reconciler.plan(state, same_host=True), steps=steps))
        assert looks() == asked


@pytest.mark.parametrize("state", ["stale", "failed"])
def test_a_gateway_that_is_away_is_not_waited_for_when_it_does_not_answer(state: str) -> None:
    facts = host(survey.take(cluster(), config(HERE)), A)
    machine = Empty(facts)
    reconciler = Reconciler(cast(Machine, machine), config(HERE))
    first = reconciler.plan(cluster())
    machine.answering = state
    away = reconciler.plan(cluster(announcements=[]))
    assert (away.desired.state == first.desired.state) is (state == "stale")
    assert reconciler.wait
