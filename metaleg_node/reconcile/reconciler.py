"""One reconcile: observe, decide, act. The same code serves `run`, `apply`, `plan` and `cleanup`."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from metaleg_node.configuration.config import Config
from metaleg_node.configuration.options import node_name
from metaleg_node.configuration.settings import SLOTS
from metaleg_node.core import assembly, others, slots
from metaleg_node.core.assembly import Desired
from metaleg_node.core.changes import Change
from metaleg_node.core.compare import diff
from metaleg_node.core.explain.situation import Kernel, Situation
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import ClusterState, Host, NextHop, Questions
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.problems import Code, Problem
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink import neighbours
from metaleg_node.kernel.packet_filter import Counter as Count
from metaleg_node.reconcile.knowledge import Facts, Knowledge, Known
from metaleg_node.reconcile.machine import Machine

log = logging.getLogger(__name__)

_SHOWN = 50
"""Changes that the log shows one by one; a first apply may have thousands."""


def own_tables(config: Config) -> set[int]:
    """The routing tables that are ours alone."""
    base = config.firewall.route_table_base
    bgp = {config.return_path.bgp.table} if config.return_path.bgp.enabled else set()
    return {*range(base + 1, base + SLOTS + 1)} | bgp


_COUNTED = 5
"""Of so many looks at the neighbour tables one asks for the packet filter's counters, which takes a process."""
_AT_ONCE = 100
"""Routes and rules from one beat to the next."""


class IncompleteError(Exception):
    """The state lacks something without which every decision would be wrong; the kernel stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be done now, and what it rests on. `problems` are the machine's own; `neighbours` is what the
    neighbour tables say of the return paths' next hops, `passed` what the packet filter counted when that was last
    asked for."""

    desired: Desired
    steps: tuple[diff.Step, ...]
    problems: tuple[Problem, ...] = ()
    neighbours: Mapping[NextHop, str] = field(default_factory=dict)
    passed: Mapping[str, Count] = field(default_factory=dict)

    @property
    def routers(self) -> list[NextHop]:
        """The next hops that answers leave by alone."""
        return [hop for one in self.desired.paths for hop in one.routers]

    @property
    def changes(self) -> tuple[Change, ...]:
        return diff.changes(self.steps)


_NOT_THE_HOST = diff.PutFirewall | diff.SweepFlows
"""What changes nothing that is asked of the host."""
_NEEDED_BY_MARKS = diff.DeleteRule | diff.DeleteRoute | diff.PutFirewall | diff.DropFormerFirewall


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a plan: what failed, which changes were not made, whether connections may still be bound to a former
    source, how many conntrack entries went, and changes done by kind."""

    problems: tuple[Problem, ...] = ()
    undone: tuple[Change, ...] = ()
    unswept: bool = False
    flushed: int = 0
    done: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems


class Reconciler:
    """Plans and applies for one configuration."""

    def __init__(self, machine: Machine, config: Config) -> None:
        self._machine = machine
        self._config = config
        self.node = node_name(config)
        self._knowledge = Knowledge(config, self.node, self._not_answering)
        self._passed: Mapping[str, Count] = {}
        self._looks = 0
        self._seen: tuple[Questions, Host] | None = None

    @property
    def wait(self) -> float | None:
        """Seconds until the same facts may lead to another plan, since a gateway is no longer awaited; None: never."""
        return self._knowledge.wait

    def plan(self, cluster: ClusterState, *, same_host: bool = False) -> Plan:
        """Compares the kernel with what this state of the cluster asks for. `same_host`: nothing was told of the host's
        interfaces, addresses and routes since the last plan, so that the same questions have the same answers. Raises
        KernelError, and IncompleteError when the state does not tell enough to change anything."""
        if not same_host:
            self._seen = None
        known = self._knowledge.of(cluster)
        if self._config.egress.enabled and (gap := known.survey.gap(self.node)):
            raise IncompleteError(f"{gap}; nothing is changed until then")
        view = self._machine.packet_filter.observe()
        held = view.firewall.holders if view.firewall else {}
        lost = view.firewall is None or bool(view.damage)
        result = self._decide(known, self._host(known.questions), held, lost=lost)
        before = NodeState(
            routing=self._machine.routing(result.tables),
            firewall=view.firewall,
            sysctls=self._machine.sysctls(result.state.sysctls),
        )
        steps = diff.steps(
            before,
            result.state,
            why=lambda address: result.owners[address].reason,
            damage=view.damage,
            place=self._machine.packet_filter.place,
            former=self._machine.former,
        )
        near = self._machine.neighbours(hop for one in result.paths for hop in one.path.next_hops)
        return Plan(
            desired=result,
            steps=steps,
            problems=(*self._machine.problems, *_limits(self._machine)),
            neighbours=near,
            passed=self._passed,
        )

    def situation(self, cluster: ClusterState) -> Situation:
        """What explanations follow from. Nothing is changed, and what this user may not see is left open. Raises
        KernelError."""
        known, machine = self._knowledge.of(cluster), self._machine
        gap = known.survey.gap(self.node) if self._config.egress.enabled else ""
        unread, view = "", None
        try:
            view = machine.packet_filter.observe()
        except KernelError as error:
            unread = str(error)
        held = view.firewall.holders if view and view.firewall else {}
        lost = not view or view.firewall is None or bool(view.damage)
        desired = Desired() if gap else self._decide(known, machine.host(known.questions), held, lost=lost)
        kernel = Kernel(
            routing=machine.routing(desired.tables),
            firewall=view.firewall if view else None,
            unread=unread,
            damage=tuple(f"{one.what}: {one.reason}" for one in view.damage) if view else (),
            locator=machine.packet_filter.locator(desired.state.firewall or Firewall(mark_mask=0)),
            way=machine.way,
            flows=machine.flows,
            neighbours=machine.neighbours({hop for one in desired.state.routing.routes for hop in one.next_hops}),
        )
        return Situation(
            cluster=known.early,
            config=self._config,
            me=self.node,
            survey=known.survey,
            desired=desired,
            kernel=kernel,
            gap=gap,
        )

    def second_opinion(self) -> Callable[[], str] | None:
        """See `Knowledge.second_opinion`."""
        return self._knowledge.second_opinion()

    def start_over(self) -> None:
        """Rests nothing on what was seen or worked out before."""
        self._knowledge.forget()
        self._machine.packet_filter.forget()

    def collisions(self) -> tuple[Problem, ...]:
        """What other programs do that collides with ours. Raises KernelError."""
        return others.judge(self._machine.others(own_tables(self._config)), self._config)

    def look_again(self, plan: Plan) -> Plan:
        """The plan with what the neighbour tables say now, and each fifth time the packet filter's counters. What came
        by a router is known by its link-layer address: one that has none, or fails, is looked for."""
        again = replace(plan, neighbours=self._machine.neighbours(plan.neighbours))
        self._seek(again)
        if plan.routers and self._looks % _COUNTED == 0:
            self._passed = self._machine.passed()
        self._looks += 1
        return replace(again, passed=self._passed)

    def _seek(self, plan: Plan) -> None:
        if lost := [hop for hop in plan.routers if plan.neighbours[hop] in neighbours.NOT_THERE]:
            self._machine.seek(lost)

    def plan_again(self, plan: Plan, cluster: ClusterState) -> Plan:
        """The plan after a pre hook, which others or the hook itself may have made another one. Raises as `plan`."""
        self._machine.packet_filter.changed()
        again = self.plan(cluster)
        if again.changes != plan.changes:
            log.info("the plan is another one after hooks.pre")
            log_changes(again.changes)
        return again

    def apply(self, plan: Plan, beat: Callable[[], object] = lambda: None, *, sweep: bool = False) -> Outcome:
        """Carries the steps out, in order. A step that fails does not keep the next from being tried, with one
        exception: while the packet filter still marks packets, no route or rule that they need is taken away. `beat` is
        called before each, or a hundred routes and rules: one may take a minute on an overloaded machine.

        `sweep`: then, if all went well, all conntrack entries are deleted that contradict the packet filter, as an
        earlier run may have left them.
        """
        outcome = carry_out(self._machine, plan.steps, beat)
        if not all(isinstance(step.operation, _NOT_THE_HOST) for step in plan.steps):
            self._seen = None
        self._seek(plan)
        firewall = plan.desired.state.firewall
        if not (sweep and outcome.ok and firewall):
            return outcome
        swept = carry_out(self._machine, (diff.Step(operation=diff.sweep(None, firewall)),), beat)
        return replace(swept, flushed=swept.flushed + outcome.flushed, done=outcome.done)

    def _host(self, questions: Questions) -> Host:
        if self._seen is None or self._seen[0] != questions:
            self._seen = questions, self._machine.host(questions)
        return self._seen[1]

    def _not_answering(self, hops: Iterable[NextHop]) -> set[NextHop]:
        return {hop for hop, state in self._machine.neighbours(hops).items() if state == "failed"}

    def _decide(self, known: Known, host: Host, held: assembly.Held, *, lost: bool) -> Desired:
        settings = self._config.firewall

        def told(claims: Iterable[slots.Claim]) -> assembly.Held:
            if not lost:
                return held
            routing = self._machine.routing(())
            return {**slots.read_back(routing, claims, settings.mark_mask, settings.route_table_base), **held}

        return self._knowledge.decide(known, Facts(host=host, held=held, lost=lost), told)


def carry_out(machine: Machine, steps: tuple[diff.Step, ...], beat: Callable[[], object] = lambda: None) -> Outcome:
    """Carries out ordered steps; see `Reconciler.apply`."""
    problems: list[Problem] = []
    undone: list[Change] = []
    done: Counter[str] = Counter()
    flushed = 0
    failed: set[type] = set()
    for together in _batches(steps):
        beat()
        held_back = _NEEDED_BY_MARKS if diff.PutFirewall in failed else ()
        some = [step for step in together if not isinstance(step.operation, held_back)]
        undone.extend(change for step in together if isinstance(step.operation, held_back) for change in step.changes)
        for step, result in zip(some, machine.carry_out([step.operation for step in some]), strict=True):
            if isinstance(result, KernelError):
                failed.add(type(step.operation))
                problems.append(_failed(result))
                undone.extend(step.changes)
            else:
                flushed += result
                done.update(change.kind for change in step.changes)
    try:
        machine.prune()
    except KernelError as error:
        problems.append(_failed(error))
    return Outcome(
        problems=tuple(problems),
        undone=tuple(undone),
        unswept=diff.SweepFlows in failed,
        flushed=flushed,
        done=done,
    )


def _batches(steps: tuple[diff.Step, ...]) -> Iterator[list[diff.Step]]:
    """What goes together is done together, where it follows each other; anything else alone."""
    for size, run in groupby(steps, key=lambda step: _together(step.operation)):
        together = [*run]
        yield from (together[start : start + size[1]] for start in range(0, len(together), size[1]))


def _together(operation: diff.Operation) -> tuple[type, int]:
    """The kind of an operation, and how many of a kind are done in one go."""
    if isinstance(operation, diff.RoutingOperation):
        return diff.Step, _AT_ONCE
    alone = not isinstance(operation, diff.SetSysctl | diff.RestoreSysctl)
    return type(operation), 1 if alone else sys.maxsize


def _limits(machine: Machine) -> Iterator[Problem]:
    if text := machine.packet_filter.limits:
        yield Problem(code=Code.LIMITED, subject="host", text=text)


def cleanup_plan(machine: Machine) -> Plan:
    """All that removes everything of ours: what packet filters hold, what carries our protocol number, sysctls that we
    remember changing. Raises KernelError."""
    view = machine.packet_filter.observe()
    before = NodeState(routing=machine.routing(()), firewall=view.firewall, sysctls=machine.sysctls(()))
    place, former = machine.packet_filter.place, machine.former
    steps = diff.steps(before, NodeState(), why=lambda _: "", damage=view.damage, place=place, former=former)
    return Plan(desired=Desired(), steps=steps, problems=machine.problems)


def _failed(error: KernelError) -> Problem:
    """Logged each time that it is tried, whether it is known already or not."""
    problem = Problem(code=Code.KERNEL, text=str(error))
    log.error("%s", problem.line)
    return problem


def log_changes(changes: tuple[Change, ...]) -> None:
    """Tells the log what is about to be done."""
    for change in changes[:_SHOWN]:
        log.info("%s", change, extra={"kind": change.kind, "about": change.about})
    if len(changes) > _SHOWN:
        log.info("… and %d more changes", len(changes) - _SHOWN)
