"""All that this node's kernel should hold: egress and return paths together.

They share marks and tables, so one place hands these out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from metaleg_node.configuration.config import Config
from metaleg_node.core.egress import node as egress
from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.model import (
    MAIN_TABLE,
    Firewall,
    Host,
    Match,
    Network,
    NodeName,
    NodeState,
    Questions,
    Rejection,
    Route,
    RouteType,
    Routing,
    Rule,
    Slot,
)
from metaleg_node.core.networks import merged
from metaleg_node.core.return_path import paths as return_path
from metaleg_node.core.return_path.paths import Path
from metaleg_node.core.return_path.wanted import PathKind, WantedPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReport:
    """How one return path stands on this node. `slot` None: it needs none, or got none."""

    path: Path
    slot: Slot | None
    table: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What this node's kernel should hold, and what there is to say about it. `tables` are ours alone."""

    state: NodeState
    services: tuple[egress.ServiceReport, ...] = ()
    paths: tuple[PathReport, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    problems: tuple[str, ...] = ()
    tables: frozenset[int] = frozenset()


def questions(survey: Survey, wanted: WantedPaths, config: Config, me: NodeName) -> Questions:
    """What `desired` needs to know of the host."""
    return Questions(
        addresses=egress.lookups(survey, me) | return_path.lookups(wanted.paths),
        links=return_path.interfaces(wanted.paths),
        all_rp_filters=return_path.turns_rp_filter_off(wanted.paths),
        arp=config.host.strict_arp,
        connected=bool(wanted.paths),
    )


def desired(
    survey: Survey, wanted: WantedPaths, config: Config, me: NodeName, host: Host, *, held: Mapping[Slot, NodeName]
) -> Desired:
    """This node's part of everything. `held` are the slots that the kernel holds now, with their holders."""
    found = return_path.paths(wanted.paths, config, host, survey.networks.cluster)
    others = egress.Others(
        holders=tuple(path.wanted.holder for path in found if path.marked()), exit_of=return_path.exits(found)
    )
    out = egress.desired(survey, config, me, host, held, others=others)
    reports = tuple(_report(path, out.granted, config) for path in found)
    leaving = [(path, out.granted[path.exit_holder]) for path in found if path.exit_holder in out.granted]
    rules = frozenset([*out.state.routing.rules, *_rules(reports, leaving, config)])
    own = {route.key: route for route in (*out.state.routing.routes, *_routes(reports, leaving, config))}
    back = {route.key: route for route in _ways_back(rules, reports, survey, host)}
    # A network that is a path's own and, say, an interface's at once is the path's: two routes cannot have one key.
    routes = frozenset((back | own).values())
    present = [report.path for report in reports]
    tables = {route.table for route in routes} | return_path.managed_tables(wanted.paths, config)
    return Desired(
        state=NodeState(
            routing=Routing(routes=routes, rules=rules),
            firewall=_firewall(out.state.firewall, reports, survey, config, host),
            sysctls=_sysctls(out.state.sysctls, return_path.sysctls(present, config, host)),
        ),
        services=out.services,
        paths=reports,
        rejections=(*out.rejections, *wanted.rejections),
        problems=(*out.problems, *_problems(reports), *_gaps(reports, survey, me)),
        tables=frozenset(tables - {MAIN_TABLE}),
    )


def _report(path: Path, granted: Mapping[NodeName, Slot], config: Config) -> PathReport:
    if not path.marked():
        return PathReport(path=path, slot=None, table=None)
    slot = granted.get(path.wanted.holder)
    if slot is None:
        return PathReport(path=return_path.without_slot(path), slot=None, table=None)
    return PathReport(path=path, slot=slot, table=return_path.table(path, slot, config))


Leaving = Sequence[tuple[Path, Slot]]
"""Paths by which egress traffic leaves here, with the slots for that."""


def _routes(reports: Iterable[PathReport], leaving: Leaving, config: Config) -> Iterator[Route]:
    for report in reports:
        yield from return_path.routes(report.path, report.slot, config)
    for path, slot in leaving:
        yield from return_path.exit_routes(path, slot, config)


def _rules(reports: Iterable[PathReport], leaving: Leaving, config: Config) -> Iterator[Rule]:
    for report in reports:
        if report.slot is not None:
            yield from return_path.rules(report.path, report.slot, config)
    for path, slot in leaving:
        yield from return_path.exit_rules(path, slot, config)


def _ways_back(rules: Iterable[Rule], reports: Iterable[PathReport], survey: Survey, host: Host) -> Iterator[Route]:
    """In each table of a mark: pods are where the main table says. No packet to a pod has a mark, but a reverse-path
    filter may look for the way back to a pod by the mark of its packet (ip-sysctl, src_valid_mark), and would find
    another interface than the pod's. A return path's mark is also on what nodes and neighbours of this host send, such
    as the answer of a Service's backend in another node's host network."""
    paths = {report.table for report in reports if report.slot is not None}
    near = merged([*survey.networks.hosts, *host.connected]) if paths else frozenset[Network]()
    for rule in rules:
        metric = egress.DEFAULT_METRIC[rule.family]
        for network in near if rule.table in paths else survey.networks.pods:
            if network.version == rule.family:
                yield Route(table=rule.table, destination=network, type=RouteType.THROW, metric=metric)


def _firewall(
    base: Firewall | None, reports: tuple[PathReport, ...], survey: Survey, config: Config, host: Host
) -> Firewall | None:
    marked = {r.slot: return_path.marking(r.path, config) for r in reports if r.slot is not None}
    checked, spared = return_path.checks((report.path for report in reports), host)
    if not marked and not checked:
        return base
    return replace(
        base or Firewall(mark_mask=config.firewall.mark_mask),
        return_paths=marked,
        match=frozenset(config.return_path.match) if marked else frozenset[Match](),
        direct=return_path.direct(survey.networks.cluster, config, host) if marked else frozenset(),
        checked=checked,
        spared=spared,
    )


def _sysctls(egress_: Mapping[str, str], paths: Mapping[str, str]) -> dict[str, str]:
    """Both together: what a path turns off is off, else the looser of two values of rp_filter counts, the larger."""
    both = {
        name: max(egress_[name], value) if value != "0" else value for name, value in paths.items() if name in egress_
    }
    return {**egress_, **paths, **both}


def _gaps(reports: tuple[PathReport, ...], survey: Survey, me: NodeName) -> Iterator[str]:
    """What the cluster's state does not tell, though return paths need it."""
    if any(report.slot is not None for report in reports) and not survey.networks.pods:
        yield "return paths: no pod network is known, so pods get no answers from these pools; set cluster.pod_cidrs"
    if any(report.path.wanted.kind is PathKind.BGP for report in reports) and survey.nodes and me not in survey.nodes:
        yield f"return path bgp: no Node is called {me}, so no peer's nodeSelectors select it; set node.name"


def _problems(reports: tuple[PathReport, ...]) -> Iterator[str]:
    """What an operator can do something about. That no pool is announced by BGP, or that no peer selects this node, is
    a state and no problem."""
    for report in reports:
        path = report.path
        title = f"return path {path.wanted.name}"
        if path.obstacle and (path.wanted.kind is PathKind.L2 or path.wanted.gateways):
            yield f"{title}: {path.obstacle}"
        yield from (f"{title}: {note}" for note in path.notes)
