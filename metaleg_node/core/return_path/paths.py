"""What this node does so that replies leave by the way the request came.

`paths` turns what is asked for (`pools`) into what this host can do now; the other functions tell what of it stands in
the routing tables, the packet filter and the sysctls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from metaleg_node.configuration.config import Config
from metaleg_node.core.egress.node import DEFAULT, DEFAULT_METRIC, UNREACHABLE_METRIC, Exit
from metaleg_node.core.model import (
    FAMILIES,
    MAIN_TABLE,
    Address,
    Family,
    Firewall,
    Host,
    Network,
    NextHop,
    NodeName,
    ReturnPath,
    Route,
    RouteType,
    Rule,
    Slot,
)
from metaleg_node.core.networks import Membership, merged
from metaleg_node.core.return_path.wanted import PathGateway, PathKind, WantedPath

MAIN_METRIC = 4700
"""Of our routes in the main table. The kernel's own for an address (IPv4 0, IPv6 256) are better, and nobody's route
with another metric is replaced by ours."""
L2_PRIORITY = 10
"""Added to firewall.rule_priority."""

_PLAIN_INTERFACE = re.compile(r"[-A-Za-z0-9_.@+]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A return path as this node has it now. `hops` are its next hops by family, empty for one that only has a
    connected route; `unrouted` are networks that can have no connected route in the main table; `obstacle` says why it
    does nothing at all, `notes` what part of it does not work, `remarks` what it was
    not made for."""

    wanted: WantedPath
    hops: Mapping[Family, tuple[NextHop, ...]] = field(default_factory=dict)
    unrouted: frozenset[Network] = frozenset()
    obstacle: str = ""
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def interface(self) -> str:
        return self.wanted.settings.interface if self.wanted.settings else ""

    @property
    def exit_holder(self) -> NodeName:
        """What has the slot of egress traffic that leaves by this path."""
        return NodeName(f"egress:{self.wanted.name}")

    def marked(self) -> frozenset[Network]:
        """The networks whose replies are marked."""
        if self.hops.keys() >= self.wanted.families:
            # The very same value each time: comparing it with itself costs nothing.
            return self.wanted.owned
        return frozenset(network for network in self.wanted.owned if network.version in self.hops)


# --- what the host must be asked -------------------------------------------------------------------------------------


def lookups(wanted: Iterable[WantedPath]) -> frozenset[Address]:
    """The addresses whose way through the main table `paths` needs to know."""
    return frozenset(g.address for path in wanted if path.kind is PathKind.BGP for g in path.gateways)


def interfaces(wanted: Iterable[WantedPath]) -> frozenset[str]:
    """The interfaces whose state `paths` needs to know."""
    return frozenset(path.settings.interface for path in wanted if path.settings)


def turns_rp_filter_off(wanted: Iterable[WantedPath]) -> bool:
    """Whether `sysctls` needs to know the value of every interface."""
    return any(path.settings and path.settings.rp_filter in ("off", "filter") for path in wanted)


# --- what this host can do -------------------------------------------------------------------------------------------


def paths(wanted: Iterable[WantedPath], config: Config, host: Host, cluster: frozenset[Network]) -> tuple[Path, ...]:
    """The paths, as the host is now. `cluster` are the networks inside the cluster."""
    taken: dict[Network, Path] = {}
    found = (_l2(path, host) if path.kind is PathKind.L2 else _bgp(path, config, host, cluster) for path in wanted)
    return tuple(_yielding(path, taken) for path in found)


def _yielding(path: Path, taken: dict[Network, Path]) -> Path:
    """The main table leads a network to one interface only, that of the first path that it is routed for."""
    yielded = [n for n in _in_main(path) if taken.setdefault(n, path).interface != path.interface]
    if not yielded:
        return path
    first = taken[yielded[0]]
    some = f"{yielded[0]} (and {len(yielded) - 1} more)" if len(yielded) > 1 else str(yielded[0])
    note = f"{some} is already routed to {first.interface} for path {first.wanted.name}; that stays so"
    return replace(path, unrouted=path.unrouted.union(yielded), notes=(*path.notes, note))


def without_slot(path: Path) -> Path:
    """A path for which no mark was left."""
    detail = "no mark is left for it: all values under firewall.mark_mask are taken"
    return Path(wanted=path.wanted, obstacle=detail, notes=path.notes)


def _l2(path: WantedPath, host: Host) -> Path:
    assert path.settings
    if obstacle := _l2_obstacle(path, host):
        return Path(wanted=path, obstacle=obstacle, notes=path.notes)
    name, own = path.settings.interface, _own_gateways(path, host)
    taken = {network.version for network in path.networks} - _refused(path, host)
    found = [g.address for g in path.gateways if g not in own and g.address.version in taken]
    hops = _by_family(NextHop(gateway=address, interface=name, onlink=True) for address in found)
    unrouted = frozenset(network for network in path.networks if network.version not in taken)
    return Path(wanted=path, hops=hops, unrouted=unrouted, notes=(*path.notes, *_l2_notes(path, hops, host)))


def _l2_obstacle(path: WantedPath, host: Host) -> str:
    assert path.settings
    name, families = path.settings.interface, {network.version for network in path.networks}
    if not families:
        return "it has no network yet"
    if name not in host.links:
        return f"there is no interface {name}; it begins when there is"
    if not host.links[name].up:
        return f"interface {name} is down"
    if families <= _refused(path, host):
        return f"IPv6 is turned off on interface {name} (disable_ipv6)"
    if path.gateways and len(_own_gateways(path, host)) == len(path.gateways):
        return "it has no gateway but this host itself"
    return ""


def _l2_notes(path: WantedPath, hops: Collection[Family], host: Host) -> Iterator[str]:
    assert path.settings
    name, families = path.settings.interface, {network.version for network in path.networks}
    yield from (f"gateway {gateway.address} is this host itself" for gateway in _own_gateways(path, host))
    if families & _refused(path, host):
        yield f"IPv6 is turned off on interface {name} (disable_ipv6), so its IPv6 networks have no route there"
    if path.gateways and not path.families & families:
        yield "no gateway is of its networks' family, so replies go by the main table"
    if 4 in hops:
        yield from _dropped_without_address(name, path, host)
    if path.settings.rp_filter == "filter" and not _PLAIN_INTERFACE.fullmatch(name):
        yield f'the packet filter cannot name interface {name}: rp_filter = "filter" checks nothing there'
    if path.settings.connected_route and any(not network.prefixlen for network in path.networks):
        yield "its networks are all addresses there are, which get no connected route"


def _own_gateways(path: WantedPath, host: Host) -> list[PathGateway]:
    """Of link-local addresses each link has its own: fe80::1 on another interface is somebody else."""
    return [g for g in path.gateways if g.address in host.addresses and not g.address.is_link_local]


def _refused(path: WantedPath, host: Host) -> frozenset[Family]:
    """The families of which the path's interface takes no routes."""
    assert path.settings
    refused: frozenset[Family] = frozenset() if host.links[path.settings.interface].takes_ipv6 else frozenset({6})
    return refused


def _dropped_without_address(name: str, path: WantedPath, host: Host) -> tuple[str, ...]:
    """On an interface without an IPv4 address loose filtering is as strict as strict (fib_frontend.c,
    __fib_validate_source: "last_resort")."""
    assert path.settings
    strictness = max(host.rp_filter.get(key, 0) for key in ("all", name))
    if host.links[name].has_ipv4 or not strictness or path.settings.rp_filter in ("off", "filter"):
        return ()
    reason = f"interface {name} has no IPv4 address, so the kernel drops requests there even with a loose rp_filter"
    return (f'{reason}; give it an address, or set rp_filter = "off" or "filter" for this path',)


def _bgp(path: WantedPath, config: Config, host: Host, cluster: frozenset[Network]) -> Path:
    destination = config.return_path.bgp.destination
    if not path.networks:
        return Path(wanted=path, obstacle="no pool is announced by BGP")
    if not path.gateways:
        return Path(wanted=path, obstacle="no usable BGP peer selects this node")
    if destination and _within(destination, direct(cluster, config, host)):
        reason = f"its destination {destination} always stays on the main table: see return_path.exclude_cidrs"
        return Path(wanted=path, obstacle=reason)
    notes = []
    found = []
    for gateway in path.gateways:
        if destination and gateway.address.version != destination.version:
            continue
        if gateway.address in host.on_link:
            interface = host.interfaces[gateway.address]
            found.append(NextHop(gateway=gateway.address, interface=interface, weight=gateway.weight))
        else:
            notes.append(_off_link(gateway, host))
    hops = _by_family(found)
    announced = {network.version for network in path.networks}
    lacking = sorted(announced - hops.keys())
    if not announced & hops.keys():
        obstacle = f"no BGP peer for its {_families(lacking)} networks" if found else "no BGP peer of this node"
        return Path(wanted=path, obstacle=f"{obstacle} is a neighbour", notes=(*path.notes, *notes))
    # Usual, and nothing to mend, where a family's networks are announced over the other family's sessions.
    remark = f"no next hop is for its {_families(lacking)} networks, so they have no path"
    remarks = (remark,) if lacking and not destination else ()
    return Path(wanted=path, hops=hops, notes=(*path.notes, *notes), remarks=remarks)


def _families(versions: Iterable[Family]) -> str:
    return " and ".join(f"IPv{version}" for version in versions)


def _within(network: Network, others: Iterable[Network]) -> bool:
    first, last = network.network_address, network.broadcast_address
    return any(first in other and last in other for other in others if other.version == network.version)


def _off_link(gateway: PathGateway, host: Host) -> str:
    if gateway.address in host.interfaces:
        known = "a route reflector has the label metallb-nra/enabled=false"
        return f"{gateway.origin} ({gateway.address}) is behind a router, so it is no next hop; {known}"
    return f"this node has no route to {gateway.origin} ({gateway.address}), so it is no next hop"


def _by_family(hops: Iterable[NextHop]) -> dict[Family, tuple[NextHop, ...]]:
    """In the order in which the kernel's are told; a single one has no weight."""
    result: dict[Family, tuple[NextHop, ...]] = {}
    found = list(hops)
    for family in FAMILIES:
        own = sorted(hop for hop in found if hop.gateway and hop.gateway.version == family)
        if len(own) == 1:
            own = [NextHop(gateway=own[0].gateway, interface=own[0].interface, onlink=own[0].onlink)]
        if own:
            result[family] = tuple(own)
    return result


# --- routes and rules ------------------------------------------------------------------------------------------------


def table(path: Path, slot: Slot, config: Config) -> int:
    """The routing table of a path."""
    if path.wanted.kind is PathKind.BGP:
        return config.return_path.bgp.table
    return config.firewall.route_table_base + slot


def managed_tables(wanted: Iterable[WantedPath], config: Config) -> frozenset[int]:
    """Tables that are ours alone even while they hold nothing of ours."""
    return frozenset(config.return_path.bgp.table for path in wanted if path.kind is PathKind.BGP)


def routes(path: Path, slot: Slot | None, config: Config) -> Iterator[Route]:
    """The routes of a path. Where it has no next hop its connected routes stand in the main table, as an address in
    the network would put them there."""
    for network in _in_main(path):
        yield _on_link(path, MAIN_TABLE, network, MAIN_METRIC)
    if slot is not None:
        number = table(path, slot, config)
        yield from _connected(path, number)
        for family, hops in path.hops.items():
            where = config.return_path.bgp.destination if path.wanted.kind is PathKind.BGP else None
            destination = where or ip_network(DEFAULT[family])
            yield Route(table=number, destination=destination, metric=DEFAULT_METRIC[family], next_hops=hops)


def rules(path: Path, slot: Slot, config: Config) -> Iterator[Rule]:
    """The rule that leads a path's mark to its table, for each family."""
    bgp = path.wanted.kind is PathKind.BGP
    priority = config.return_path.bgp.rule_priority if bgp else config.firewall.rule_priority + L2_PRIORITY
    for family in path.hops:
        yield _rule(family, priority, table(path, slot, config), slot, config)


def exit_routes(path: Path, slot: Slot, config: Config) -> Iterator[Route]:
    """The table of egress traffic that leaves by a path: the path's own routes, and a stop, since a packet with the
    LoadBalancer's address must not leave by another way."""
    number = config.firewall.route_table_base + slot
    yield from _connected(path, number)
    for family, hops in path.hops.items():
        everywhere = ip_network(DEFAULT[family])
        yield Route(table=number, destination=everywhere, metric=DEFAULT_METRIC[family], next_hops=hops)
        yield Route(table=number, destination=everywhere, type=RouteType.UNREACHABLE, metric=UNREACHABLE_METRIC)


def exit_rules(path: Path, slot: Slot, config: Config) -> Iterator[Rule]:
    """The rule that leads to `exit_routes`, for each family."""
    for family in path.hops:
        yield _rule(family, config.firewall.rule_priority, config.firewall.route_table_base + slot, slot, config)


def _rule(family: Family, priority: int, number: int, slot: Slot, config: Config) -> Rule:
    mask = config.firewall.mark_mask
    mark = Firewall(mark_mask=mask).mark(slot)
    return Rule(family=family, priority=priority, table=number, mark=mark, mask=mask)


def _connected(path: Path, number: int) -> Iterator[Route]:
    """The connected routes of the families that have next hops."""
    for network in _networks_on_link(path, frozenset(path.hops)):
        yield _on_link(path, number, network, DEFAULT_METRIC[network.version])


def _in_main(path: Path) -> list[Network]:
    """The networks that have their connected route in the main table."""
    without = frozenset(f for f in FAMILIES if f not in path.hops)
    return [network for network in _networks_on_link(path, without) if network not in path.unrouted]


def _networks_on_link(path: Path, families: frozenset[Family]) -> list[Network]:
    """In order. All addresses that there are cannot be on one link: their route is the default route."""
    if not families or path.obstacle or not path.wanted.settings or not path.wanted.settings.connected_route:
        return []
    found = [network for network in path.wanted.networks if network.version in families and network.prefixlen]
    return sorted(found, key=lambda n: (n.version, int(n.network_address)))


def _on_link(path: Path, number: int, network: Network, metric: int) -> Route:
    hop = NextHop(gateway=None, interface=path.interface)
    return Route(table=number, destination=network, metric=metric, next_hops=(hop,))


# --- egress ----------------------------------------------------------------------------------------------------------


def exits(found: Iterable[Path]) -> Callable[[Address], Exit | None]:
    """Tells the exit of a LoadBalancer address: the layer 2 path that owns it, which has a router for its family."""
    owners = [(path, Membership(path.wanted.owned)) for path in found if path.wanted.kind is PathKind.L2]

    def exit_of(address: Address) -> Exit | None:
        for path, owned in owners:
            if address in owned:
                obstacle = "" if address.version in path.hops else path.obstacle or "it has no gateway that works"
                reason = f"return path {path.wanted.name}, by which it must leave: {obstacle}" if obstacle else ""
                return Exit(holder=path.exit_holder, obstacle=reason)
        return None

    return exit_of


# --- packet filter and sysctls ---------------------------------------------------------------------------------------


def marking(path: Path, config: Config) -> ReturnPath:
    """A path in the packet filter."""
    mark = config.return_path.bgp.rule_fwmark if path.wanted.kind is PathKind.BGP else 0
    return ReturnPath(holder=path.wanted.holder, networks=path.marked(), mark=mark or None)


def direct(cluster: Iterable[Network], config: Config, host: Host) -> frozenset[Network]:
    """The destinations to which no return path applies: the cluster's own, and the neighbours of this host."""
    return merged([*cluster, *config.return_path.exclude_cidrs, *host.connected])


def checks(found: Iterable[Path], host: Host) -> tuple[frozenset[str], frozenset[Network]]:
    """The interfaces where the packet filter checks the reverse path, and the networks that it spares."""
    checked = [path for path in found if _mode(path) == "filter" and path.interface in host.links]
    checked = [path for path in checked if _PLAIN_INTERFACE.fullmatch(path.interface)]
    spared = (network for path in checked for network in path.wanted.networks if network.version == 4)
    return frozenset(path.interface for path in checked), merged(spared)


def sysctls(found: Iterable[Path], config: Config, host: Host) -> dict[str, str]:
    """Reverse-path filtering as the paths need it, where it is otherwise, and strict ARP.

    The larger of `all` and the interface's own value counts (ip-sysctl, rp_filter). So to turn it off on one
    interface `all` must be 0 too; every other interface, also a future one, then gets what `all` gave it.
    """
    present = list(found)
    off = {path.interface for path in present if _mode(path) in ("off", "filter")} & host.rp_filter.keys()
    loose = {path.interface for path in present if _mode(path) == "loose"}
    if config.host.rp_filter == "loose":
        loose |= {
            hop.interface for path in present if not path.interface for hops in path.hops.values() for hop in hops
        }
    everywhere = host.rp_filter.get("all", 0)
    values: dict[str, int] = {}
    for name, own in host.rp_filter.items():
        strictness = max(own, everywhere)
        if name in off or (off and name == "all"):
            values[name] = 0
        elif name in loose and strictness == 1:
            values[name] = 2
        elif off:
            values[name] = strictness
    wanted = {f"net/ipv4/conf/{n}/rp_filter": str(v) for n, v in values.items() if v != host.rp_filter[n]}
    return wanted | (_strict_arp(host) if config.host.strict_arp else {})


def _strict_arp(host: Host) -> dict[str, str]:
    """What kube-proxy's strictARP sets; an operator's stricter value stays."""
    wanted = {"arp_ignore": 1, "arp_announce": 2}
    return {f"net/ipv4/conf/all/{n}": str(v) for n, v in wanted.items() if host.arp.get(n, 0) < v}


def _mode(path: Path) -> str:
    return path.wanted.settings.rp_filter if path.wanted.settings else ""
