"""What the configuration and MetalLB's objects ask for as return paths: which networks, and by which next hops.

`read` depends on the cluster, the configuration and this node's name alone; what this host can do of it is decided in
`return_path`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from metaleg_node.configuration.config import Config, L2Settings
from metaleg_node.core import networks
from metaleg_node.core.model import (
    Address,
    AddressPool,
    Advertisement,
    BGPPeer,
    ClusterState,
    Family,
    Holder,
    HolderKind,
    Match,
    Network,
    NodeName,
    Rejection,
)
from metaleg_node.core.networks import Range
from metaleg_node.core.objects import metallb
from metaleg_node.core.objects.fields import address_of
from metaleg_node.core.objects.selectors import any_selects
from metaleg_node.core.problems import Code, Problem

ENABLED, ADDRESS, WEIGHT = "metallb-nra/enabled", "metallb-nra/address", "metallb-nra/weight"
"""Labels on a BGPPeer, as metallb-node-route-agent has them."""
MAX_WEIGHT = 256
"""A next hop's weight less one is kept in a byte (linux/rtnetlink.h, rtnh_hops)."""
_CILIUM = frozenset({"cilium_host", "cilium_net", "cilium_vxlan", "cilium_geneve"})
_OFF = frozenset({"0", "false", "no"})
_SHOWN = 10
"""Addresses of the cluster in a path's networks that are named."""


class PathKind(enum.StrEnum):
    """Where a path's next hops come from: the configuration, or MetalLB's BGP peers."""

    L2 = "l2"
    BGP = "bgp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A router, as an address; `weight` 1-256; `origin` says where it was named."""

    address: Address
    weight: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPath:
    """One return path as it was asked for.

    `networks` hold exactly the addresses that it is for, `on_link` those that are on its interface's link. `owned` are
    those whose replies it takes: those that no path before it takes, of the families that it has a gateway for, and
    none that is inside the cluster. `interface` and `settings` are set for L2. `symmetric`: answers are to go back
    through the router that brought the request. `notes` say what was asked for and
    cannot be had, `spared` which addresses inside the cluster are left out of it.
    """

    kind: PathKind
    name: str
    networks: frozenset[Network]
    routers: tuple[Router, ...]
    on_link: frozenset[Network] = frozenset()
    owned: frozenset[Network] = frozenset()
    settings: L2Settings | None = None
    symmetric: bool = False
    notes: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()

    @property
    def holder(self) -> Holder:
        """What has the slot of this path; no configured path's name has a colon."""
        return Holder(kind=HolderKind.PATH, name=self.name if self.kind is PathKind.L2 else ":bgp")

    @property
    def families(self) -> frozenset[Family]:
        """The families that the path has a gateway for."""
        return frozenset(router.address.version for router in self.routers)

    @property
    def problems(self) -> Iterator[Problem]:
        """What is wrong with it, whatever the host is like."""
        subject = f"return path {self.name}"
        yield from (Problem(code=Code.PATH_PARTIAL, subject=subject, text=note) for note in self.notes)
        yield from (Problem(code=Code.PATH_OVERLAP, subject=subject, text=text) for text in self.spared)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPaths:
    """All paths, those of the configuration first, in its order; and the objects that are not used."""

    paths: tuple[WantedPath, ...] = ()
    rejections: tuple[Rejection, ...] = ()


def read(cluster: ClusterState, config: Config, me: NodeName) -> WantedPaths:
    """The return paths that this node is asked to have."""
    wanted: list[tuple[WantedPath, list[_Asked]]] = []
    if not (config.return_path.l2 or config.return_path.bgp.enabled):
        return WantedPaths()
    cluster, rejections = metallb.configuration(cluster, config)
    # Nothing else remembers what a reply is the answer to.
    by_conntrack = Match.CONNTRACK in config.return_path.match
    for settings in config.return_path.l2:
        path, some = _l2(settings, cluster.pools)
        wanted.append((replace(path, symmetric=settings.symmetric and by_conntrack), some))
    if config.return_path.bgp.enabled:
        routers, refused = _peers(cluster, config, me)
        rejections += refused
        rejections += _to_some_peers(cluster.advertisements)
        symmetric = config.return_path.bgp.symmetric and by_conntrack
        path = WantedPath(kind=PathKind.BGP, name="bgp", networks=frozenset(), routers=routers, symmetric=symmetric)
        wanted.append((path, [*_announced(cluster)]))
    inside = _inside(cluster, config, [asked for _, some in wanted for asked in some])
    return WantedPaths(paths=tuple(_owning(wanted, inside)), rejections=tuple(rejections))


def unseen(interfaces: Iterable[str], config: Config) -> str:
    """What to think of when interfaces with these names say that pods' packets may never pass the packet filter; empty
    if nothing. The names are Cilium's, in each of its routing modes."""
    known = sorted(_CILIUM.intersection(interfaces))
    asked = config.return_path.l2 or config.return_path.bgp.enabled
    if not known or not asked or Match.RULES in config.return_path.match:
        return ""
    return (
        f"interface {known[0]} says that Cilium is here: with its BPF host routing (`cilium status` tells) netfilter "
        'sees no packet of a pod; then return_path.match needs "rules"'
    )


class _Asked(NamedTuple):
    """Addresses that a path was asked to be for, and by whom."""

    range: Range
    by: str


class _Inside(NamedTuple):
    """Addresses of the cluster itself among those."""

    range: Range
    what: str
    of_node: bool


def _inside(cluster: ClusterState, config: Config, asked: Iterable[_Asked]) -> list[_Inside]:
    """The nodes' addresses, the pod and the Service networks among those that were asked for, which is seldom any: as
    sources they are the nodes' own and the pods' traffic, which no path must take."""
    ranges = networks.Ranges(one.range for one in asked)
    found: list[_Inside] = []

    def look(inside: Iterable[Range], what: str, of: object, *, of_node: bool = False) -> None:
        for one in inside:
            if ranges.meet(one):
                name = one[0] if one[0] == one[1] else next(iter(networks.covering([one])))
                found.append(_Inside(one, f"{name} is {what} {of}", of_node))

    for node in cluster.nodes:
        own = ((address, address) for address in dict.fromkeys((*node.addresses, *node.internal_ips)))
        look(own, "the address of", node.ref, of_node=True)
        look(map(networks.range_of, node.pod_cidrs), "a pod network of", node.ref)
    look(map(networks.range_of, config.cluster.pod_cidrs), "a pod network of", "cluster.pod_cidrs")
    look(map(networks.range_of, config.cluster.service_cidrs), "a Service network of", "cluster.service_cidrs")
    for cidr in cluster.service_cidrs:
        look(map(networks.range_of, cidr.networks), "a Service network of", cidr.ref)
    for service in cluster.services:
        look(((address, address) for address in service.cluster_ips), "the cluster IP of", service.ref)
    return found


def _owning(wanted: Iterable[tuple[WantedPath, list[_Asked]]], inside: Sequence[_Inside]) -> Iterator[WantedPath]:
    """An address belongs to the first path that is for it; a path without a gateway takes none. What is inside the
    cluster belongs to none."""
    taken: tuple[Range, ...] = ()
    for path, asked in wanted:
        ranges = networks.merged_ranges(one.range for one in asked)
        claimed = tuple(one for one in ranges if one[0].version in path.families)
        own = networks.without(claimed, (one.range for one in inside)) if inside else claimed
        free = networks.without(own, taken) if taken else own
        notes = path.notes
        if free != own:
            notes += ("some of its addresses belong to a path before it, which takes their replies",)
        taken = networks.merged_ranges([*taken, *free])
        whole = networks.covering(ranges)
        yield replace(
            path,
            networks=whole,
            on_link=_on_link(whole, inside),
            owned=whole if free == ranges else networks.covering(free),
            notes=notes,
            spared=tuple(_spared(path, whole, asked, inside)) if inside else (),
        )


def _on_link(whole: frozenset[Network], inside: Iterable[_Inside]) -> frozenset[Network]:
    """Pods are not on a path's link, though nodes may be. All addresses that there are cannot be on one link: their
    route is the default route."""
    within = [one.range for one in inside if not one.of_node]
    if not within and all(network.prefixlen for network in whole):
        return whole
    some = (networks.range_of(network) for network in whole if network.prefixlen)
    return networks.covering(networks.without(some, within))


def _spared(
    path: WantedPath, whole: Iterable[Network], asked: Sequence[_Asked], inside: Iterable[_Inside]
) -> Iterator[str]:
    """What is left out of a path, and who asked for it. A path for all addresses that there are asks for none of them
    in particular."""
    everything = {network.version for network in whole if not network.prefixlen}
    ranges = networks.Ranges(one.range for one in asked if one.range[0].version not in everything)
    met = [
        one for one in inside if ranges.meet(one.range) and (not one.of_node or one.range[0].version in path.families)
    ]
    for one in met[:_SHOWN]:
        alone = networks.Ranges([one.range])
        by = next(each.by for each in asked if alone.meet(each.range))
        yield f"{one.what}, but {by} holds it; it is left out"
    if len(met) > _SHOWN:
        yield f"and {len(met) - _SHOWN} more addresses and networks of the cluster"


# --- layer 2 ---------------------------------------------------------------------------------------------------------


def _l2(settings: L2Settings, pools: Iterable[AddressPool]) -> tuple[WantedPath, list[_Asked]]:
    by_name: dict[str, list[AddressPool]] = {name: [] for name in settings.pools}
    for pool in pools:
        if pool.ref.name in by_name:
            by_name[pool.ref.name].append(pool)
    asked = [_Asked(one, str(pool.ref)) for found in by_name.values() for pool in found for one in pool.ranges]
    asked += [_Asked(networks.range_of(network), f"cidrs ({network})") for network in settings.cidrs]
    path = WantedPath(
        kind=PathKind.L2,
        name=settings.name,
        networks=frozenset(),
        routers=tuple(
            Router(address=address, weight=1, origin=f"gateways of {settings.name}")
            for address in dict.fromkeys(settings.gateways)
        ),
        settings=settings,
        notes=tuple(f"there is no IPAddressPool {name}" for name, found in by_name.items() if not found),
    )
    return path, asked


# --- BGP -------------------------------------------------------------------------------------------------------------


def _announced(cluster: ClusterState) -> Iterator[_Asked]:
    """The ranges of all pools that are announced by BGP. An advertisement that names no pools and selects none by
    label announces all of them (MetalLB's API reference, BGPAdvertisementSpec); MetalLB's old configuration has the
    protocol with each pool."""
    advertisements = [a for a in cluster.advertisements if a.ref.kind == "BGPAdvertisement"]
    for pool in cluster.pools:
        if pool.protocol == "bgp" or (not pool.protocol and any(_announces(a, pool) for a in advertisements)):
            yield from (_Asked(one, str(pool.ref)) for one in pool.ranges)


def _to_some_peers(advertisements: Iterable[Advertisement]) -> Iterator[Rejection]:
    for one in advertisements:
        if one.peers and one.ref.kind == "BGPAdvertisement":
            reason = "spec.peers is not looked at: all BGP peers of a node are next hops for all BGP pools"
            yield Rejection(ref=one.ref, reason=reason, harmless=True)


def _announces(advertisement: Advertisement, pool: AddressPool) -> bool:
    if not advertisement.pools and not advertisement.pool_selectors:
        return True
    return pool.ref.name in advertisement.pools or any_selects(advertisement.pool_selectors, pool.labels)


def _peers(cluster: ClusterState, config: Config, me: NodeName) -> tuple[tuple[Router, ...], list[Rejection]]:
    """The peers of this node, by address; of several with one address the first by name counts."""
    labels = next((node.labels for node in cluster.nodes if node.name == me), {})
    found: dict[Address, Router] = {}
    rejections: list[Rejection] = []
    for peer in sorted(cluster.peers, key=lambda p: p.ref):
        if peer.node_selectors and not any_selects(peer.node_selectors, labels):
            continue
        if peer.labels.get(ENABLED, "").lower() in _OFF:
            continue
        gateway, reason = _peer(peer, config.return_path.bgp.peer_weight)
        if reason:
            rejections.append(Rejection(ref=peer.ref, reason=reason))
        if gateway:
            found.setdefault(gateway.address, gateway)
    return tuple(sorted(found.values(), key=lambda g: (g.address.version, int(g.address)))), rejections


def _peer(peer: BGPPeer, weight: int) -> tuple[Router | None, str]:
    """The next hop that a peer is, and what is wrong with it."""
    address: Address | str | None = peer.address
    if ADDRESS in peer.labels:
        address = address_of(peer.labels[ADDRESS])
    if address is None:
        lack = "its spec.peerAddress cannot be used" if peer.has_address else "has no address (unnumbered)"
        return None, f"{lack}, so it is no next hop; the label {ADDRESS} can give it one"
    if peer.vrf and ADDRESS not in peer.labels:
        return None, (
            f"is a peer in VRF {peer.vrf} (spec.vrf), whose routing table this program does not change, so it is no "
            f"next hop; the label {ADDRESS} can name one outside of the VRF, {ENABLED}=false says that none is wanted"
        )
    if isinstance(address, str):
        return None, f"label {ADDRESS}: {peer.labels[ADDRESS]!r} is not {address}; the peer is no next hop"
    text, reason = peer.labels.get(WEIGHT, str(weight)), ""
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_WEIGHT:
        weight = int(text)
    else:
        reason = f"label {WEIGHT}: {text!r} is not a number from 1 to {MAX_WEIGHT}; the peer has the weight {weight}"
    return Router(address=address, weight=weight, origin=str(peer.ref)), reason
