"""What the service tells about itself: its plan's own values, in words for people and programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypedDict

from metaleg_node.configuration.config import Config
from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.egress.transport import Way
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.firewall.new_pods import NewPods
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.increments import remade
from metaleg_node.core.model import HolderKind, NextHop, Rejection, Slot
from metaleg_node.core.problems import Code, Problem, Severity
from metaleg_node.core.return_path.node import PathDecision
from metaleg_node.core.slots import mark_of
from metaleg_node.daemon.status import (
    ExitStatus,
    ExternalIpStatus,
    GatewayStatus,
    NewPodsStatus,
    NextHopStatus,
    PathStatus,
    ProblemStatus,
    ServiceStatus,
    SourceStatus,
)
from metaleg_node.kernel.packet_filter import Counter as Count
from metaleg_node.kernel.packet_filter import answers_counter, requests_counter
from metaleg_node.reconcile.reconciler import Plan
from metaleg_node.text import counted

_SHOWN = 20
"""Problems of one kind that are told one by one; tenants may have made thousands."""
_IN_SHORT = 5
"""Problems in one line."""


class ServiceEntries:
    """What the status file says of each opted-in Service and family. An entry is made once, and put into JSON once, for
    a decision that stays the very same: with thousands of Services a status costs what changed."""

    def __init__(self) -> None:
        self._decisions: tuple[ServiceDecision, ...] = ()
        self._entries: tuple[_Entry, ...] = ()

    def of(self, plan: Plan) -> Listed:
        """Of the Services that are unavailable for one reason only the first are listed, the rest is counted."""
        decisions = plan.desired.services
        self._entries = remade(self._decisions, self._entries, decisions, _entry)
        self._decisions = decisions
        reasons = Counter(entry.obstacle for entry in self._entries if entry.obstacle)
        many = {code.value: number - _SHOWN for code, number in sorted(reasons.items()) if number > _SHOWN}
        if not many:
            return Listed([entry.text for entry in self._entries], {})
        left = Counter(dict.fromkeys(reasons, _SHOWN))
        listed = []
        for entry in self._entries:
            if entry.obstacle:
                left[entry.obstacle] -= 1
            if not entry.obstacle or left[entry.obstacle] >= 0:
                listed.append(entry.text)
        return Listed(listed, many)


class Listed(NamedTuple):
    """The entries of the status file in JSON, and how many more Services are unavailable, by reason."""

    entries: list[str]
    unlisted: dict[str, int]


class _Entry(NamedTuple):
    text: str
    obstacle: Code | None


def _entry(decision: ServiceDecision) -> _Entry:
    obstacle = decision.obstacle
    return _Entry(json.dumps(_service(decision)), obstacle.code if obstacle else None)


def _service(report: ServiceDecision) -> ServiceStatus:
    return ServiceStatus(
        service=service_name(report),
        family=report.service.family,
        source=str(report.service.source) if report.service.source else None,
        gateway=report.service.gateway.node.name if report.service.gateway else None,
        pods=report.pods,
        state="unavailable" if report.obstacle else "active",
        reason=_reason(report),
    )


def gateways(plan: Plan, config: Config) -> list[GatewayStatus]:
    """One entry for each gateway that has a slot here; the node itself has one, without a next hop."""
    ways = _ways(plan)
    return [
        GatewayStatus(node=name, transport=ways.get(name, {}), **slot)
        for name, slot in _slots(plan, config, HolderKind.NODE)
    ]


def _ways(plan: Plan) -> dict[str, dict[str, str]]:
    """How each gateway is reached, by family."""
    ways: dict[str, dict[str, str]] = {}
    for one in plan.desired.services:
        if isinstance(one.way, Way) and one.service.gateway:
            ways.setdefault(one.service.gateway.node.name, {})[str(one.service.family)] = one.way.transport
    return ways


def exits(plan: Plan, config: Config) -> list[ExitStatus]:
    """One entry for each return path by which egress leaves here."""
    return [ExitStatus(path=name, **slot) for name, slot in _slots(plan, config, HolderKind.EXIT)]


class _SlotStatus(TypedDict):
    slot: int
    mark: str
    table: int
    next_hops: dict[str, str]


def _slots(plan: Plan, config: Config, kind: HolderKind) -> Iterator[tuple[str, _SlotStatus]]:
    """The holders of this kind that egress has slots for, by name."""
    firewall = plan.desired.state.firewall
    if firewall is None:
        return
    for slot, holder in sorted(firewall.part(Egress).gateways.items()):
        if holder.kind is kind:
            yield holder.name, _slot(plan, firewall, slot, config.firewall.route_table_base)


def paths(plan: Plan, config: Config) -> list[PathStatus]:
    """One entry for each return path that is configured."""
    return [_path(report, plan, config) for report in plan.desired.paths]


def _path(report: PathDecision, plan: Plan, config: Config) -> PathStatus:
    path = report.path
    mark = mark_of(report.slot, config.firewall.mark_mask) if report.slot else None
    ordered = sorted(path.wanted.networks, key=lambda n: (n.version, int(n.network_address)))
    return PathStatus(
        name=path.wanted.name,
        kind=path.wanted.kind.value,
        state="inactive" if path.obstacle else "active",
        reason=in_short([*filter(None, (path.obstacle, *path.notes, *path.remarks))]),
        slot=report.slot,
        mark=None if mark is None else f"{mark:#010x}",
        table=report.table,
        interface=path.interface,
        networks=[str(network) for network in ordered],
        next_hops=[_next_hop(hop, report, plan) for hop in path.next_hops],
    )


def _next_hop(hop: NextHop, report: PathDecision, plan: Plan) -> NextHopStatus:
    came = passed(plan, report, hop)
    return NextHopStatus(
        address=str(hop.gateway),
        interface=hop.interface,
        weight=hop.weight,
        neighbour=plan.neighbours[hop],
        slot=report.routers.get(hop),
        requests=came.requests.packets if came else None,
        answers=came.answers.packets if came else None,
    )


class Passed(NamedTuple):
    """What came by a next hop, and what of it was answered by it."""

    requests: Count
    answers: Count


def passed(plan: Plan, path: PathDecision, hop: NextHop) -> Passed | None:
    """None where it is not counted, or not yet. What came by a machine that is several next hops counts for each."""
    firewall, slot = plan.desired.state.firewall, path.routers.get(hop)
    if not (firewall and slot and plan.passed):
        return None
    remembered, nothing = firewall.part(ReturnPaths).remembered_as(slot), Count(0, 0)
    requests = plan.passed.get(requests_counter(remembered), nothing)
    return Passed(requests, plan.passed.get(answers_counter(slot), nothing))


def external_ips(plan: Plan) -> list[ExternalIpStatus]:
    """One entry for each address of the Services that count."""
    return [
        ExternalIpStatus(
            service=f"{one.service.namespace}/{one.service.name}",
            address=str(one.address),
            cluster_ip=str(one.cluster_ip) if one.cluster_ip else None,
            state="inactive" if one.obstacle else "active",
            reason=one.obstacle,
        )
        for one in plan.desired.external
    ]


def new_pods(plan: Plan) -> NewPodsStatus | None:
    """The hold of new pods, None where there is none; of many pods some."""
    starting = plan.desired.starting
    if not starting.held:
        return None
    plain = (part.plain for part in starting.contribution.parts if isinstance(part, NewPods))
    return NewPodsStatus(
        source="CNI results" if starting.by_cni else "API",
        holding=starting.here,
        known=sum(map(len, plain)),
        waiting=[f"{ref.namespace}/{ref.name}" for ref in starting.waiting[:_SHOWN]],
        unknown=sorted(map(str, starting.unknown))[:_SHOWN],
    )


# --- what is wrong ---------------------------------------------------------------------------------------------------


def problems(plan: Plan) -> Iterator[Problem]:
    """All that the operator should know: what does not work, and which objects are not used."""
    yield from (*plan.problems, *plan.desired.problems)
    yield from rejections(plan.desired.rejections)


def rejections(found: Iterable[Rejection]) -> Iterator[Problem]:
    """What is not used of the cluster's objects, and why."""
    for rejection in found:
        code = Code.NO_EFFECT if rejection.harmless else Code.OBJECT_NOT_USED
        yield Problem(code=code, subject=str(rejection.ref), text=rejection.reason)


def shown(found: Iterable[Problem]) -> list[Problem]:
    """Of many problems of one kind only the first, and how many more there are."""
    kinds: Counter[Code] = Counter()
    kept = []
    for problem in found:
        kinds[problem.code] += 1
        if kinds[problem.code] <= _SHOWN:
            kept.append(problem)
    for code, number in kinds.items():
        if number > _SHOWN:
            text = f"… and {number - _SHOWN} more of this kind; `metaleg-node check` shows them all"
            kept.append(Problem(code=code, text=text))
    return kept


def problem_list(found: Iterable[Problem]) -> list[ProblemStatus]:
    """For the status document."""
    return [ProblemStatus(code=p.code, severity=str(p.severity), subject=p.subject, text=p.text) for p in found]


# --- in short --------------------------------------------------------------------------------------------------------


def status_line(plan: Plan | None, source: SourceStatus, found: Sequence[Problem]) -> str:
    """One line for `systemctl status`: what there is, or is waited for, and what is wrong."""
    if source["state"] == "waiting":
        text = f"waiting for the {source['kind']} ({source['place']})"
    elif plan:
        reports, ways = plan.desired.services, plan.desired.paths
        parts = [counted(count_services(reports), "service"), counted(count_pods(reports), "pod address")]
        parts += [counted(len(ways), "return path")] if ways else []
        inward = sum(not one.obstacle for one in plan.desired.external)
        parts += [counted(inward, "External-IP")] if inward else []
        text = ", ".join(parts)
    else:
        text = "nothing is applied yet"
    wrong = [problem for problem in found if problem.severity > Severity.NOTE]
    if not wrong:
        return text
    worst_first = sorted(wrong, key=lambda problem: -problem.severity)
    return f"{text}; {counted(len(wrong), 'problem')}: {in_short([*map(str, worst_first)])}"


def in_short(texts: Sequence[str]) -> str:
    """The first of some texts in one line, and how many more there are."""
    rest = [f"and {len(texts) - _IN_SHORT} more"] if len(texts) > _IN_SHORT else []
    return "; ".join([*texts[:_IN_SHORT], *rest])


def count_services(reports: Iterable[ServiceDecision]) -> int:
    """A Service has a report for each family, with the very same object."""
    return len({id(report.service.service) for report in reports})


def count_pods(reports: Iterable[ServiceDecision]) -> int:
    """The addresses of egress pods."""
    return sum(report.pods for report in reports)


def service_name(report: ServiceDecision) -> str:
    """namespace/name."""
    ref = report.service.service.ref
    return f"{ref.namespace}/{ref.name}"


def _reason(report: ServiceDecision) -> str:
    """Why it does not work, or why this gateway was chosen where there were several."""
    if report.obstacle:
        return f"{report.obstacle.code}: {report.obstacle.detail}"
    gateway = report.service.gateway
    return gateway.why if gateway and gateway.ambiguous else ""


def _slot(plan: Plan, firewall: Firewall, slot: Slot, base: int) -> _SlotStatus:
    hops = {
        str(route.destination.version): f"{hop.gateway} dev {hop.interface}" if hop.gateway else f"dev {hop.interface}"
        for route in plan.desired.state.routing.routes
        if route.table == base + slot
        for hop in route.next_hops
        if hop.gateway or not route.destination.prefixlen
    }
    return _SlotStatus(slot=slot, mark=f"{firewall.mark(slot):#010x}", table=base + slot, next_hops=hops)
