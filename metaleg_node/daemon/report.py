"""What the service tells about itself: the status document, and the numbers behind the metrics."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address

from metaleg_node.configuration.config import Config
from metaleg_node.core.changes import Change
from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.egress.survey import Gateway, Obstacle
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Rejection, Slot
from metaleg_node.core.return_path.node import PathDecision
from metaleg_node.core.slots import mark_of
from metaleg_node.daemon.metrics import GatewayInfo, Overview, PathInfo
from metaleg_node.daemon.status import GatewayStatus, NextHopStatus, PathStatus, ServiceStatus, SourceStatus
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink import neighbours
from metaleg_node.reconcile import hooks
from metaleg_node.reconcile.reconciler import Plan, node_name
from metaleg_node.text import counted

log = logging.getLogger(__name__)

_SHOWN_REJECTIONS = 20


def plan_json(changes: Iterable[Change], found: Iterable[PathStatus] = ()) -> str:
    """A plan as JSON: what `plan --json` prints, with the return paths, and what hooks read."""
    items = [{"action": c.action.name.lower(), "kind": c.kind, "object": c.text, "reason": c.reason} for c in changes]
    listed = list(found)
    document: dict[str, object] = {"changes": items} | ({"paths": listed} if listed else {})
    return json.dumps(document, indent=2) + "\n"


def run_hooks(
    config: Config, plan: Plan, kind: hooks.Kind, *, reason: str, beat: Callable[[], float], result: str = ""
) -> list[str]:
    """Tells the hooks of a plan, with a `beat` as in `hooks.run`; returns what is wrong with those that failed."""
    settings = config.hooks
    results = hooks.run(
        settings.pre if kind == "pre" else settings.post,
        kind=kind,
        node=node_name(config),
        reason=reason,
        changes=len(plan.changes),
        plan_json=plan_json(plan.changes).encode(),
        timeout=settings.timeout,
        beat=beat,
        result=result,
    )
    return [f"hooks.{kind}: {hook.message}" for hook in results if not hook.ok]


def services(plan: Plan) -> list[ServiceStatus]:
    """One entry for each opted-in Service and family."""
    return [
        ServiceStatus(
            service=_service_name(report),
            family=report.service.family,
            source=str(report.service.source) if report.service.source else None,
            gateway=report.service.gateway.node.name if report.service.gateway else None,
            pods=report.pods,
            state="unavailable" if report.obstacle else "active",
            reason=_reason(report.obstacle) if report.obstacle else _ambiguity(report.service.gateway),
        )
        for report in plan.desired.services
    ]


def gateways(plan: Plan, config: Config) -> list[GatewayStatus]:
    """One entry for each gateway that has a slot here; the node itself has one, without a next hop."""
    firewall = plan.desired.state.firewall
    if firewall is None:
        return []
    base = config.firewall.route_table_base
    return [_gateway(plan, firewall, slot, base) for slot in sorted(firewall.part(Egress).gateways)]


def paths(plan: Plan, config: Config) -> list[PathStatus]:
    """One entry for each return path that is configured, with what the neighbour tables say now."""
    found = [_path(report, config) for report in plan.desired.paths]
    refresh(found)
    return found


def refresh(found: Iterable[PathStatus]) -> None:
    """Puts in what the neighbour tables say of the next hops now."""
    hops = [hop for path in found for hop in path["next_hops"]]
    try:
        states = neighbours.states((ip_address(hop["address"]), hop["interface"]) for hop in hops)
    except KernelError as error:
        log.warning("return paths without the state of their next hops: %s", error)
        return
    for hop in hops:
        hop["neighbour"] = states[ip_address(hop["address"]), hop["interface"]]


def _path(report: PathDecision, config: Config) -> PathStatus:
    path = report.path
    mark = mark_of(report.slot, config.firewall.mark_mask) if report.slot else None
    ordered = sorted(path.wanted.networks, key=lambda n: (n.version, int(n.network_address)))
    return PathStatus(
        name=path.wanted.name,
        kind=path.wanted.kind.value,
        state="inactive" if path.obstacle else "active",
        reason="; ".join(filter(None, (path.obstacle, *path.notes, *path.remarks))),
        slot=report.slot,
        mark=None if mark is None else f"{mark:#010x}",
        table=report.table,
        interface=path.interface,
        networks=[str(network) for network in ordered],
        next_hops=[
            NextHopStatus(
                address=str(hop.gateway),
                interface=hop.interface,
                weight=hop.weight,
                neighbour=neighbours.UNKNOWN,
            )
            for _, hops in sorted(path.hops.items())
            for hop in hops
            if hop.gateway
        ],
    )


def problems(plan: Plan) -> Iterator[str]:
    """All that the operator should know: what does not work, and which objects are not used."""
    yield from map(str, (*plan.problems, *plan.desired.problems))
    yield from rejections(plan.desired.rejections)


def rejections(found: Sequence[Rejection]) -> Iterator[str]:
    """What is not used of the cluster's objects, and why; of many only the first."""
    yield from (f"{rejection.ref}: {rejection.reason}" for rejection in found[:_SHOWN_REJECTIONS])
    if len(found) > _SHOWN_REJECTIONS:
        yield f"… and {len(found) - _SHOWN_REJECTIONS} more that are not used; `metaleg-node check` shows them all"


def overview(plan: Plan, rejected: int) -> Overview:
    """The numbers for the metrics; `rejected` are the objects that the source itself did not take."""
    reports = plan.desired.services
    return Overview(
        services=_count_services(reports),
        pods=_count_pods(reports),
        gateways=frozenset(
            GatewayInfo(
                service=_service_name(report),
                address=str(report.service.source),
                node=report.service.gateway.node.name if report.service.gateway else "",
            )
            for report in reports
            if report.service.source
        ),
        unavailable=Counter(report.obstacle.code.value for report in reports if report.obstacle),
        ambiguous=len({r.service.service.ref for r in reports if r.service.gateway and r.service.gateway.ambiguous}),
        rejected=rejected + len(plan.desired.rejections),
        paths=tuple(
            PathInfo(
                name=report.path.wanted.name,
                active=not report.path.obstacle,
                networks=len(report.path.wanted.networks),
                next_hops=tuple(
                    (hop.gateway, hop.interface) for hops in report.path.hops.values() for hop in hops if hop.gateway
                ),
            )
            for report in plan.desired.paths
        ),
    )


def status_line(plan: Plan | None, source: SourceStatus, found: Sequence[str]) -> str:
    """One line for `systemctl status`: what there is, or is waited for, and what is wrong."""
    if source["state"] == "waiting":
        text = f"waiting for the {source['kind']} ({source['place']})"
    elif plan:
        reports, ways = plan.desired.services, plan.desired.paths
        parts = [counted(_count_services(reports), "service"), counted(_count_pods(reports), "pod address")]
        parts += [counted(len(ways), "return path")] if ways else []
        text = ", ".join(parts)
    else:
        text = "nothing is applied yet"
    return f"{text}; {counted(len(found), 'problem')}: {'; '.join(found)}" if found else text


def _count_services(reports: Iterable[ServiceDecision]) -> int:
    """A Service has a report for each family."""
    return len({(report.service.service.ref.namespace, report.service.service.ref.name) for report in reports})


def _count_pods(reports: Iterable[ServiceDecision]) -> int:
    return sum(report.pods for report in reports)


def _ambiguity(gateway: Gateway | None) -> str:
    return gateway.why if gateway and gateway.ambiguous else ""


def _reason(obstacle: Obstacle) -> str:
    return f"{obstacle.code}: {obstacle.detail}"


def _service_name(report: ServiceDecision) -> str:
    ref = report.service.service.ref
    return f"{ref.namespace}/{ref.name}"


def _gateway(plan: Plan, firewall: Firewall, slot: Slot, base: int) -> GatewayStatus:
    hops = {
        str(route.destination.version): f"{hop.gateway} dev {hop.interface}"
        for route in plan.desired.state.routing.routes
        if route.table == base + slot
        for hop in route.next_hops
    }
    mark = f"{firewall.mark(slot):#010x}"
    return GatewayStatus(
        node=str(firewall.part(Egress).gateways[slot]), slot=slot, mark=mark, table=base + slot, next_hops=hops
    )
