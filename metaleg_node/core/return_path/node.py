"""What this node does so that replies leave by the way the request came.

`find` (in `paths`) tells which return paths this host can have; here it is decided what of them stands in the routing
tables, the packet filter and the sysctls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from metaleg_node.configuration.config import Config
from metaleg_node.core import reverse_path
from metaleg_node.core.cluster_networks import ClusterNetworks
from metaleg_node.core.contribution import Contribution
from metaleg_node.core.exits import Exit, ExitOf
from metaleg_node.core.firewall.return_paths import PathRouter, ReturnPath, ReturnPaths
from metaleg_node.core.firewall.reverse_path import ReversePathCheck
from metaleg_node.core.model import MAIN_TABLE, MARKING, Address, Host, Match, Network, NextHop, Route, Rule, Slot
from metaleg_node.core.networks import Membership, merged
from metaleg_node.core.problems import Code, Problem
from metaleg_node.core.return_path import symmetric
from metaleg_node.core.return_path.paths import Path, direct, in_main, networks_on_link, rp_filter
from metaleg_node.core.return_path.wanted import PathKind, WantedPaths
from metaleg_node.core.routes import DEFAULT_METRIC, closing, leading, mark_rule, thrown
from metaleg_node.core.slots import Claim, Granted

MAIN_METRIC = 4700
"""Of our routes in the main table. The kernel's own for an address (IPv4 0, IPv6 256) are better, and nobody's route
with another metric is replaced by ours."""
L2_PRIORITY = 10
"""Added to firewall.rule_priority."""
WHOLE_MARK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class PathDecision:
    """How one return path stands on this node. `slot` None: it needs none, or got none. `routers` are its next hops
    that answers leave by alone, with their slots."""

    path: Path
    slot: Slot | None
    table: int | None
    routers: symmetric.Routers = field(default_factory=dict)

    @property
    def problems(self) -> Iterator[Problem]:
        """What an operator can do something about. That no pool is announced by BGP, or that no peer selects this node,
        is a state and no problem."""
        path = self.path
        subject = f"return path {path.wanted.name}"
        if path.obstacle and (path.wanted.kind is PathKind.L2 or path.wanted.routers):
            yield Problem(code=Code.PATH_INACTIVE, subject=subject, text=path.obstacle)
        yield from (Problem(code=Code.PATH_PARTIAL, subject=subject, text=note) for note in path.notes)
        yield from (one for one in path.wanted.problems if one.code is Code.PATH_OVERLAP)
        yield from symmetric.problems(path, self.routers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """This node's part of the return paths. `tables` are ours alone even while they hold nothing of ours."""

    contribution: Contribution = field(default_factory=Contribution)
    paths: tuple[PathDecision, ...] = ()
    tables: frozenset[int] = frozenset()


# --- claims ----------------------------------------------------------------------------------------------------------


def claims(found: Iterable[Path], config: Config) -> tuple[Claim, ...]:
    """A slot for each path that marks packets."""
    return tuple(
        Claim(
            holder=path.wanted.holder,
            gateways=_gateways(path),
            closed=False,
            table=config.return_path.bgp.table if path.wanted.kind is PathKind.BGP else None,
        )
        for path in found
        if path.marked()
    )


def exits(found: Iterable[Path]) -> ExitOf:
    """Tells the exit of a LoadBalancer address: the layer 2 path that owns it, which has a router for its family."""
    owners = [(path, Membership(path.wanted.owned)) for path in found if path.wanted.kind is PathKind.L2]

    def exit_of(address: Address) -> Exit | None:
        for path, owned in owners:
            if address in owned:
                obstacle = "" if address.version in path.hops else path.obstacle or "it has no gateway that works"
                reason = f"return path {path.wanted.name}, by which it must leave: {obstacle}" if obstacle else ""
                return Exit(claim=Claim(holder=path.exit_holder, gateways=_gateways(path)), obstacle=reason)
        return None

    return exit_of


def _gateways(path: Path) -> frozenset[Address]:
    return frozenset(hop.gateway for hop in path.next_hops if hop.gateway)


# --- this node's part ------------------------------------------------------------------------------------------------


def decide(
    found: Iterable[Path],
    granted: Granted,
    *,
    asked: WantedPaths,
    config: Config,
    host: Host,
    networks: ClusterNetworks,
) -> Decided:
    """This node's part of the return paths, with the slots that they and the exits of egress got. `asked` is where
    they come from."""
    decisions = tuple(_decide(path, granted, config) for path in found)
    leaving = [(path, granted[path.exit_holder]) for path in found if path.exit_holder in granted]
    contribution = Contribution(
        rules=frozenset([*_rules(decisions, config), *_exit_rules(leaving, config)]),
        routes=_all_routes(decisions, leaving, config, host, networks),
        parts=_parts(decisions, config, host, networks),
        sysctls=_sysctls([decision.path for decision in decisions], config, host),
        rejections=asked.rejections,
        problems=tuple(problem for decision in decisions for problem in decision.problems),
    )
    bgp = {config.return_path.bgp.table for path in asked.paths if path.kind is PathKind.BGP}
    return Decided(contribution=contribution, paths=decisions, tables=frozenset(bgp))


def _decide(path: Path, granted: Granted, config: Config) -> PathDecision:
    if not path.marked():
        return PathDecision(path=path, slot=None, table=None)
    slot = granted.get(path.wanted.holder)
    if slot is None:
        detail = "no mark is left for it: all values under firewall.mark_mask are taken"
        without = Path(wanted=path.wanted, obstacle=detail, notes=path.notes)
        return PathDecision(path=without, slot=None, table=None)
    base = config.firewall.route_table_base + slot
    return PathDecision(
        path=path,
        slot=slot,
        table=config.return_path.bgp.table if path.wanted.kind is PathKind.BGP else base,
        routers=symmetric.granted_to(path, granted),
    )


# --- routes and rules ------------------------------------------------------------------------------------------------

Leaving = Sequence[tuple[Path, Slot]]
"""Paths by which egress traffic leaves here, with the slots for that."""


def _all_routes(
    decisions: Iterable[PathDecision], leaving: Leaving, config: Config, host: Host, networks: ClusterNetworks
) -> frozenset[Route]:
    """Those of the paths, of the exits, and what is thrown out of their tables. A network that is a path's own and,
    say, an interface's at once is the path's: two routes cannot have one key.

    A return path's mark is also on what nodes and neighbours of this host send, such as the answer of a Service's
    backend in another node's host network."""
    near = merged([*networks.hosts, *host.connected])
    if Match.RULES in config.return_path.match:
        # No packet filter spares these before the rules ask for the table.
        near = merged([*near, *direct(networks.cluster, config, host)])
    leading_there = {(rule.family, rule.table): rule for rule in _rules(decisions, config)}
    thrown_out = [
        *thrown(leading_there.values(), near),
        *thrown(_exit_rules(leaving, config), networks.pods),
    ]
    own = [route for decision in decisions for route in routes(decision, config)]
    own += [route for path, slot in leaving for route in _exit_routes(path, slot, config)]
    return frozenset({route.key: route for route in (*thrown_out, *own)}.values())


def routes(decision: PathDecision, config: Config) -> Iterator[Route]:
    """The routes of a path. Where it has no next hop its connected routes stand in the main table, as an address in
    the network would put them there."""
    path = decision.path
    for network in in_main(path):
        yield _on_link(path, MAIN_TABLE, network, MAIN_METRIC)
    if decision.table is not None:
        yield from _connected(path, decision.table)
        where = config.return_path.bgp.destination if path.wanted.kind is PathKind.BGP else None
        for family, hops in path.hops.items():
            yield leading(family, decision.table, hops, where)
        yield from symmetric.routes(path, decision.routers, config, where)


def _rules(decisions: Iterable[PathDecision], config: Config) -> Iterator[Rule]:
    """The rules that lead to a path's table: for each family that of its mark, for each network that of its source; and
    those of its next hops' marks."""
    for one in decisions:
        bgp = one.path.wanted.kind is PathKind.BGP
        priority = config.return_path.bgp.rule_priority if bgp else config.firewall.rule_priority + L2_PRIORITY
        if one.slot is None or one.table is None:
            continue
        if _marks(config):
            for family in one.path.hops:
                yield mark_rule(family, one.slot, config.firewall, table=one.table, priority=priority)
            for hop, slot in one.routers.items():
                assert hop.gateway
                table = config.firewall.route_table_base + slot
                yield mark_rule(hop.gateway.version, slot, config.firewall, table=table, priority=priority)
        if Match.RULES in config.return_path.match:
            mark = _condition(one.path, config)
            mask = None if mark is None else WHOLE_MARK
            if one.routers and mark is None:
                # What has a mark of ours goes by that, whichever rule stands first.
                mark, mask = 0, config.firewall.mark_mask
            for network in one.path.marked():
                yield Rule(
                    family=network.version, priority=priority, table=one.table, source=network, mark=mark, mask=mask
                )


def _marks(config: Config) -> bool:
    """Whether anything is matched in the packet filter."""
    return not MARKING.isdisjoint(config.return_path.match)


def _condition(path: Path, config: Config) -> int | None:
    """A mark that packets known by their source must carry already."""
    return (config.return_path.bgp.rule_fwmark if path.wanted.kind is PathKind.BGP else 0) or None


def _exit_routes(path: Path, slot: Slot, config: Config) -> Iterator[Route]:
    """The table of egress traffic that leaves by a path: the path's own routes, and a stop, since a packet with the
    LoadBalancer's address must not leave by another way."""
    number = config.firewall.route_table_base + slot
    yield from _connected(path, number)
    for family, hops in path.hops.items():
        yield from (leading(family, number, hops), closing(family, number))


def _exit_rules(leaving: Leaving, config: Config) -> Iterator[Rule]:
    for path, slot in leaving:
        number, priority = config.firewall.route_table_base + slot, config.firewall.rule_priority
        for family in path.hops:
            yield mark_rule(family, slot, config.firewall, table=number, priority=priority)


def _connected(path: Path, number: int) -> Iterator[Route]:
    """The connected routes of the families that have next hops."""
    for network in networks_on_link(path, frozenset(path.hops)):
        yield _on_link(path, number, network, DEFAULT_METRIC[network.version])


def _on_link(path: Path, number: int, network: Network, metric: int) -> Route:
    hop = NextHop(gateway=None, interface=path.interface)
    return Route(table=number, destination=network, metric=metric, next_hops=(hop,))


# --- packet filter and sysctls ---------------------------------------------------------------------------------------


def _parts(
    decisions: Iterable[PathDecision], config: Config, host: Host, networks: ClusterNetworks
) -> tuple[ReturnPaths, ReversePathCheck]:
    marked = {one.slot: _marking(one.path, config) for one in decisions if one.slot is not None}
    routers: dict[Slot, PathRouter] = {}
    for one in decisions:
        if one.slot is not None:
            routers |= symmetric.in_firewall(one.path, one.slot, one.routers, host)
    paths = ReturnPaths(
        paths=marked,
        routers=routers,
        match=MARKING.intersection(config.return_path.match),
        direct=direct(networks.cluster, config, host),
    )
    return paths if marked and _marks(config) else ReturnPaths(), _check([one.path for one in decisions], host)


def _marking(path: Path, config: Config) -> ReturnPath:
    return ReturnPath(holder=path.wanted.holder, networks=path.marked(), mark=_condition(path, config))


def _check(found: Iterable[Path], host: Host) -> ReversePathCheck:
    """The interfaces where the packet filter checks the reverse path, and the networks that it spares."""
    checked = [
        path
        for path in found
        if rp_filter(path.wanted, host) == "filter"
        and path.interface in host.links
        and path.interface not in host.unnameable
    ]
    spared = (network for path in checked for network in path.wanted.networks if network.version == 4)
    return ReversePathCheck(checked=frozenset(path.interface for path in checked), spared=merged(spared))


def _sysctls(present: Sequence[Path], config: Config, host: Host) -> dict[str, str]:
    """Reverse-path filtering as the paths need it, where it is otherwise."""
    modes = {(path.interface, rp_filter(path.wanted, host)) for path in present}
    off = {interface for interface, mode in modes if mode in ("off", "filter")} & host.rp_filter.keys()
    loose = {interface for interface, mode in modes if mode == "loose"}
    if config.host.rp_filter == "loose":
        loose |= {hop.interface for path in present if not path.interface for hop in path.next_hops}
    return reverse_path.settings(host, loose=loose, off=off)
