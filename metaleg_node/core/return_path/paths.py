"""Which of the return paths that are asked for this host can have now, and by which next hops.

What follows from that for the routing tables, the packet filter and the sysctls is in `node`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from metaleg_node.configuration.config import Config
from metaleg_node.core.model import (
    FAMILIES,
    Family,
    Holder,
    HolderKind,
    Host,
    Network,
    NextHop,
    Questions,
)
from metaleg_node.core.networks import merged
from metaleg_node.core.return_path.wanted import PathKind, Router, WantedPath

MAIN_METRIC = 4700
"""Of our routes in the main table. The kernel's own for an address (IPv4 0, IPv6 256) are better, and nobody's route
with another metric is replaced by ours."""
L2_PRIORITY = 10
"""Added to firewall.rule_priority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A return path as this node has it now. `hops` are its next hops by family, empty for one that only has a
    connected route; `told_apart` are those of them that remember what came by them, since answers are to leave by the
    same one; `unrouted` are networks that can have no connected route in the main table; `obstacle` says why it
    does nothing at all, `notes` what part of it does not work, `remarks` what it was
    not made for."""

    wanted: WantedPath
    hops: Mapping[Family, tuple[NextHop, ...]] = field(default_factory=dict)
    told_apart: tuple[NextHop, ...] = ()
    unrouted: frozenset[Network] = frozenset()
    obstacle: str = ""
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def interface(self) -> str:
        return self.wanted.settings.interface if self.wanted.settings else ""

    @property
    def next_hops(self) -> tuple[NextHop, ...]:
        """Those of both families, IPv4 first."""
        return tuple(hop for _, hops in sorted(self.hops.items()) for hop in hops)

    @property
    def exit_holder(self) -> Holder:
        """What has the slot of egress traffic that leaves by this path."""
        return Holder(kind=HolderKind.EXIT, name=self.wanted.name)

    def marked(self) -> frozenset[Network]:
        """The networks whose replies are marked."""
        if self.hops.keys() >= self.wanted.families:
            # The very same value each time: comparing it with itself costs nothing.
            return self.wanted.owned
        return frozenset(network for network in self.wanted.owned if network.version in self.hops)


# --- what the host must be asked -------------------------------------------------------------------------------------


def questions(wanted: Collection[WantedPath]) -> Questions:
    """What `find` and `contribute` need to know of the host."""
    return Questions(
        addresses=frozenset(r.address for path in wanted if path.kind is PathKind.BGP for r in path.routers),
        links=frozenset(path.settings.interface for path in wanted if path.settings),
        all_rp_filters=any(path.settings and path.settings.rp_filter in ("auto", "off", "filter") for path in wanted),
        connected=bool(wanted),
        next_hops=frozenset(
            (router.address, path.settings.interface if path.settings else "")
            for path in wanted
            if path.symmetric
            for router in path.routers
            if sum(router.address.version == other.address.version for other in path.routers) > 1
        ),
    )


# --- what this host can do -------------------------------------------------------------------------------------------


def find(wanted: Iterable[WantedPath], config: Config, host: Host, cluster: frozenset[Network]) -> tuple[Path, ...]:
    """The paths, as the host is now. `cluster` are the networks inside the cluster."""
    taken: dict[Network, Path] = {}
    found = (_l2(path, host) if path.kind is PathKind.L2 else _bgp(path, config, host, cluster) for path in wanted)
    return tuple(_telling_apart(_yielding(path, taken), host) for path in found)


def _telling_apart(path: Path, host: Host) -> Path:
    """The next hops of a family that has several. The packet filter must be able to name the interface that packets
    come in by."""
    if not path.wanted.symmetric or path.obstacle:
        return path
    found = [hop for _, hops in sorted(path.hops.items()) if len(hops) > 1 for hop in hops]
    strange = sorted({hop.interface for hop in found if hop.interface in host.unnameable})
    notes = tuple(f"the packet filter cannot name interface {name}: answers leave by any next hop" for name in strange)
    known = tuple(hop for hop in found if hop.interface not in strange)
    return replace(path, told_apart=known, notes=(*path.notes, *notes))


def _yielding(path: Path, taken: dict[Network, Path]) -> Path:
    """The main table leads a network to one interface only, that of the first path that it is routed for."""
    yielded = [n for n in in_main(path) if taken.setdefault(n, path).interface != path.interface]
    if not yielded:
        return path
    first = taken[yielded[0]]
    some = f"{yielded[0]} (and {len(yielded) - 1} more)" if len(yielded) > 1 else str(yielded[0])
    note = f"{some} is already routed to {first.interface} for path {first.wanted.name}; that stays so"
    return replace(path, unrouted=path.unrouted.union(yielded), notes=(*path.notes, note))


def _l2(path: WantedPath, host: Host) -> Path:
    assert path.settings
    if obstacle := _l2_obstacle(path, host):
        return Path(wanted=path, obstacle=obstacle, notes=path.notes)
    name, own = path.settings.interface, _own_addresses(path, host)
    taken = {network.version for network in path.networks} - _refused(path, host)
    found = [r.address for r in path.routers if r not in own and r.address.version in taken]
    hops = _by_family(NextHop(gateway=address, interface=name, onlink=True) for address in found)
    unrouted = frozenset(network for network in path.networks if network.version not in taken)
    return Path(wanted=path, hops=hops, unrouted=unrouted, notes=(*path.notes, *_l2_notes(path, hops, host)))


def _l2_obstacle(path: WantedPath, host: Host) -> str:
    assert path.settings
    name, families = path.settings.interface, {network.version for network in path.networks}
    if not families:
        return "it has no network yet"
    if obstacle := _link_obstacle(name, host):
        return obstacle
    if families <= _refused(path, host):
        return f"IPv6 is turned off on interface {name} (disable_ipv6)"
    if path.routers and len(_own_addresses(path, host)) == len(path.routers):
        return "it has no gateway but this host itself"
    return ""


def _link_obstacle(name: str, host: Host) -> str:
    if name not in host.links:
        return f"there is no interface {name}; it begins when there is"
    if vrf := host.links[name].vrf:
        return (
            f"interface {name} is in VRF {vrf}: requests that enter there are routed by the VRF's own table, which "
            f"this program does not change; take it out of the VRF (ip link set {name} nomaster)"
        )
    return "" if host.links[name].up else f"interface {name} is down"


def _l2_notes(path: WantedPath, hops: Collection[Family], host: Host) -> Iterator[str]:
    assert path.settings
    name, families = path.settings.interface, {network.version for network in path.networks}
    yield from (f"gateway {router.address} is this host itself" for router in _own_addresses(path, host))
    if families & _refused(path, host):
        yield f"IPv6 is turned off on interface {name} (disable_ipv6), so its IPv6 networks have no route there"
    if path.routers and not path.families & families:
        yield "no gateway is of its networks' family, so replies go by the main table"
    if 4 in hops:
        yield from _dropped_without_address(name, path, host)
    if rp_filter(path, host) == "filter" and name in host.unnameable:
        yield f'the packet filter cannot name interface {name}: rp_filter = "filter" checks nothing there'
    if path.settings.connected_route and any(not network.prefixlen for network in path.networks):
        yield "its networks are all addresses there are, which get no connected route"


def _own_addresses(path: WantedPath, host: Host) -> list[Router]:
    """Of link-local addresses each link has its own: fe80::1 on another interface is somebody else."""
    return [r for r in path.routers if r.address in host.addresses and not r.address.is_link_local]


def _refused(path: WantedPath, host: Host) -> frozenset[Family]:
    """The families of which the path's interface takes no routes."""
    assert path.settings
    refused: frozenset[Family] = frozenset() if host.links[path.settings.interface].takes_ipv6 else frozenset({6})
    return refused


def rp_filter(path: WantedPath, host: Host) -> str:
    """What is done about reverse-path filtering on the interface of a path: loose, off, filter or keep. Empty for a
    path that names none."""
    if not path.settings:
        return ""
    if path.settings.rp_filter != "auto":
        return path.settings.rp_filter
    loose = 4 not in path.families or not _useless_when_loose(path.settings.interface, host)
    return "loose" if loose else "filter"


def _useless_when_loose(name: str, host: Host) -> bool:
    """On an interface without an IPv4 address loose filtering is as strict as strict (fib_frontend.c,
    __fib_validate_source: "last_resort"). Where nothing is filtered nothing is useless."""
    strictness = max(host.rp_filter.get(key, 0) for key in ("all", name))
    return name in host.links and not host.links[name].has_ipv4 and bool(strictness)


def _dropped_without_address(name: str, path: WantedPath, host: Host) -> tuple[str, ...]:
    if not _useless_when_loose(name, host) or rp_filter(path, host) in ("off", "filter"):
        return ()
    reason = f"interface {name} has no IPv4 address, so the kernel drops requests there even with a loose rp_filter"
    return (f'{reason}; give it an address, or set rp_filter = "off" or "filter" for this path',)


def _bgp(path: WantedPath, config: Config, host: Host, cluster: frozenset[Network]) -> Path:
    destination = config.return_path.bgp.destination
    if not path.networks:
        return Path(wanted=path, obstacle="no pool is announced by BGP")
    if not path.routers:
        return Path(wanted=path, obstacle="no usable BGP peer selects this node")
    if destination and _within(destination, direct(cluster, config, host)):
        reason = f"its destination {destination} always stays on the main table: see return_path.exclude_cidrs"
        return Path(wanted=path, obstacle=reason)
    notes = []
    found = []
    for router in path.routers:
        if destination and router.address.version != destination.version:
            continue
        if router.address in host.on_link:
            interface = host.interfaces[router.address]
            found.append(NextHop(gateway=router.address, interface=interface, weight=router.weight))
        else:
            notes.append(_off_link(router, host))
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


def _off_link(router: Router, host: Host) -> str:
    if router.address in host.interfaces:
        known = "a route reflector has the label metallb-nra/enabled=false"
        return f"{router.origin} ({router.address}) is behind a router, so it is no next hop; {known}"
    return f"this node has no route to {router.origin} ({router.address}), so it is no next hop"


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


def in_main(path: Path) -> list[Network]:
    """The networks that have their connected route in the main table."""
    without = frozenset(f for f in FAMILIES if f not in path.hops)
    return [network for network in networks_on_link(path, without) if network not in path.unrouted]


def networks_on_link(path: Path, families: frozenset[Family]) -> list[Network]:
    """In order."""
    if not families or path.obstacle or not path.wanted.settings or not path.wanted.settings.connected_route:
        return []
    found = [network for network in path.wanted.on_link if network.version in families]
    return sorted(found, key=lambda n: (n.version, int(n.network_address)))


def direct(cluster: Iterable[Network], config: Config, host: Host) -> frozenset[Network]:
    """The destinations to which no return path applies: the cluster's own, and the neighbours of this host."""
    return merged([*cluster, *config.return_path.exclude_cidrs, *host.connected])
