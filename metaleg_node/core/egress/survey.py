"""What the cluster asks for, the same on every node: which pod addresses leave with which address through which node.

`take` reads the Services that opted in, decides each one's gateway and sources, and checks every claim on a pod's
address. What this node has to do about it is decided in `egress`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import TypeVar

from metaleg_node.configuration.config import Config
from metaleg_node.core.cluster_networks import ClusterNetworks, cluster_networks
from metaleg_node.core.egress.claims import PodAddress, Sources
from metaleg_node.core.egress.owners import Owners, Requests, owners
from metaleg_node.core.egress.requests import (
    Gateway,
    Key,
    Obstacle,
    Recent,
    Request,
    gateway_of,
    key_of,
    request_of,
    some,
    within_quota,
)
from metaleg_node.core.increments import Evolving, exchanged
from metaleg_node.core.model import (
    FAMILIES,
    Address,
    Announcement,
    ClusterState,
    DestinationFilter,
    Family,
    Node,
    NodeName,
    ObjectRef,
    Rejection,
    Service,
)
from metaleg_node.core.objects import metallb
from metaleg_node.core.objects.annotations import EXCLUDE, NEW_PODS, ONLY
from metaleg_node.core.problems import Code, Problem

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressService:
    """One opted-in Service in one family. Either `gateway` and `source` are set, or `obstacle` is. `split`: another
    node announces its address, too, for another Service. `quiet` as in `Recent`."""

    service: Service
    family: Family
    pods: tuple[PodAddress, ...]
    filter: DestinationFilter
    source: Address | None = None
    gateway: Gateway | None = None
    obstacle: Obstacle | None = None
    split: str = ""
    quiet: bool = False

    @property
    def key(self) -> tuple[ObjectRef, Family]:
        return self.service.ref, self.family

    def problems(self, obstacle: Obstacle | None) -> Iterator[Problem]:
        """What keeps it from having egress, or may keep answers from it."""
        subject = f"{self.service.ref} (IPv{self.family})"
        if obstacle:
            yield Problem(code=obstacle.code, subject=subject, text=obstacle.detail)
        elif self.split:
            yield Problem(code=Code.SPLIT_ADDRESS, subject=subject, text=self.split)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The result of `take`; `services` are in order of age. `served` are the ports on which their pods take datagrams
    (UDP, SCTP); `peers` the nodes that are gateways or have pods; `announcers` the node that announces each Service
    now, None: nobody does. `work` is what the next survey can build upon."""

    services: tuple[EgressService, ...]
    served: frozenset[int]
    networks: ClusterNetworks
    nodes: Mapping[NodeName, Node]
    rejections: tuple[Rejection, ...]
    peers: frozenset[NodeName]
    announcers: Evolving[ObjectRef, NodeName | None]
    work: _Work = field(compare=False, repr=False)

    @property
    def away(self) -> list[Node]:
        """The gateways that were announced until a moment ago."""
        unsteady = (self.work.requests[key].gateway for key in self.work.unsteady)
        return [gateway.node for gateway in unsteady if isinstance(gateway, Gateway) and gateway.away]

    def gap(self, me: NodeName) -> str:
        """What the state lacks, so that nothing can be decided for node `me`; empty if it is complete."""
        if not self.services:
            return ""
        if not self.nodes:
            return "there are no Node objects in the cluster's state; a state file needs them, too"
        if me not in self.nodes:
            names = some(sorted(self.nodes))
            return (
                f"no Node is called {me}, there are {names}; set node.name to this node's name in `kubectl get nodes`"
            )
        if not self.networks.pods:
            return "no pod network is known: no Node has spec.podCIDRs; set cluster.pod_cidrs"
        return ""


def take(
    cluster: ClusterState,
    config: Config,
    awaited: Set[ObjectRef] = frozenset(),
    *,
    recent: Recent | None = None,
    before: Survey | None = None,
) -> Survey:
    """Works out what the opted-in Services ask for. What was so a moment ago is told by `recent`, or by `awaited` where
    there is no more to tell. What `before` found for objects that are still the very same is taken from there: the
    result is equal in any case."""
    return _Taking(cluster, config, recent or Recent(awaited=awaited), before).take()


_Announcers = Mapping[Address, Mapping[NodeName, ObjectRef]]
"""Which nodes announce an address, each with the first Service for which it does."""


def _announcers(
    services: Iterable[EgressService], others: Iterable[tuple[Address, NodeName, ObjectRef]]
) -> _Announcers:
    """Of the addresses of these Services, `others` without the label too."""
    nodes: dict[Address, dict[NodeName, ObjectRef]] = defaultdict(dict)
    for one in services:
        if one.source and one.gateway:
            nodes[one.source].setdefault(one.gateway.node.name, one.service.ref)
    for address, node, ref in others:
        nodes[address].setdefault(node, ref)
    return nodes


def _told_apart(one: EgressService, announcers: _Announcers) -> EgressService:
    """The same Service. Those that share a LoadBalancer address should be announced by one node, since answers reach
    only one (F9); where they are not, that is told."""
    if not (one.source and one.gateway):
        return one
    nodes = announcers[one.source]
    if len(nodes) == 1:
        return one
    also = [f"{n} for {ref}" for n, ref in nodes.items() if n != one.gateway.node.name]
    split = f"{one.source} is announced by {some(also)}, too: only one gets the answers"
    why = f"{one.gateway.why}; but {split}"
    return replace(one, gateway=replace(one.gateway, why=why, ambiguous=True), split=split)


def _second_addresses(request: Request) -> Iterator[Rejection]:
    for family, source in request.sources.items():
        others = [str(a) for a in request.service.ingress if a.version == family and a != source]
        if others and not isinstance(source, Obstacle):
            reason = f"its pods leave as {source}, the first of its IPv{family} addresses, not as {some(others)}"
            yield Rejection(ref=request.service.ref, reason=reason, harmless=True)


def _unclear(services: Iterable[Service], label: str) -> Iterator[Rejection]:
    """What was probably meant for us, but is not understood: a tenant's restriction, for example, with a typo."""
    for service in services:
        value = service.labels.get(label, "true")
        if value not in ("true", "false"):
            yield Rejection(ref=service.ref, reason=f'label {label} is "{value}"; only "true" counts')
        for key in service.labels:
            if key != label and key.lower() == label.lower():
                yield Rejection(ref=service.ref, reason=f"label {key} does not count; egress.label is {label}")
        for name in service.annotations.keys() - {EXCLUDE, ONLY, NEW_PODS}:
            known = f"{EXCLUDE} and {ONLY}, and {NEW_PODS}"
            yield Rejection(ref=service.ref, reason=f"annotation {name} has no meaning; there are {known}")
        if (asked := service.annotations.get(NEW_PODS, "allow")) != "allow":
            yield Rejection(ref=service.ref, reason=f'annotation {NEW_PODS} is "{asked[:60]}"; only "allow" counts')


def _entries(request: Request, pods: Iterable[PodAddress]) -> Iterator[EgressService]:
    """The Service once for each family that it has pods or an address in, or once if there is nothing at all."""
    by_family = {f: tuple(p for p in pods if p.address.version == f) for f in FAMILIES}
    present = [f for f in FAMILIES if by_family[f] or f in request.sources] or FAMILIES[:1]
    gateway = request.gateway
    for family in present:
        source = request.source(family)
        problem = source if isinstance(source, Obstacle) else gateway if isinstance(gateway, Obstacle) else None
        yield EgressService(
            service=request.service,
            family=family,
            pods=by_family[family],
            filter=request.filter,
            source=None if isinstance(source, Obstacle) else source,
            gateway=None if isinstance(gateway, Obstacle) else gateway,
            obstacle=problem,
            quiet=request.quiet,
        )


# --- from one survey to the next -------------------------------------------------------------------------------------

Families = tuple[EgressService, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opted:
    """The Services that opted in, in order of age, and what all Services say beside that. `unclear` are those that
    probably meant to."""

    services: Mapping[Key, Service]
    cluster_ips: frozenset[Address]
    unclear: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """Who announces what. `by_service` has the same as `all`."""

    all: tuple[Announcement, ...]
    rejections: Sequence[Rejection]
    by_service: Mapping[Key, Sequence[Announcement]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a survey was worked out from, most of it by Service. `requests` count before the networks were shared out,
    `granted` after that; those of `unsteady` rest on what was so a moment ago. `alone` and `families` are a Service's
    entries before and after they were compared with those that share its address; `places` tells where they begin among
    all. `refused` and `second` are told as
    rejections; `pods_on` counts the Services that have a node as their gateway or pods there."""

    cluster: ClusterState
    config: Config
    recent: Recent
    sources: Sources
    opted: _Opted
    told: _Told
    requests: Mapping[Key, Request]
    granted: Mapping[Key, Request]
    unsteady: Set[Key]
    owners: Owners
    alone: Mapping[Key, Families]
    families: Mapping[Key, Families]
    places: Mapping[Key, int]
    announcers: _Announcers
    refused: Mapping[Key, tuple[Rejection, ...]]
    second: Mapping[Key, tuple[Rejection, ...]]
    peers: Counter[NodeName]


class _Taking:
    """One survey. Of what is the very same as in the last one, nothing is looked at again."""

    def __init__(self, cluster: ClusterState, config: Config, recent: Recent, before: Survey | None) -> None:
        self._cluster = cluster
        self._config = config
        self._recent = recent
        # Other networks, or another configuration, concern everything.
        before = before if before and before.work.config is config else None
        self._networks = _networks(cluster, config, before)
        same = before is not None and _same_places(before.networks, self._networks)
        self._before = before if same else None
        self._was = before.work if before and same else None
        self._sources = self._was.sources if self._was else Sources(self._networks)
        self._nodes_stay = self._was is not None and cluster.nodes is self._was.cluster.nodes
        stay = self._before if self._nodes_stay else None
        self._nodes = stay.nodes if stay else {node.name: node for node in cluster.nodes}

    def take(self) -> Survey:
        was, before = self._was, self._before
        opted, told = self._opted(), self._told()
        gone = was.opted.services.keys() - opted.services.keys() if was and opted is not was.opted else set[Key]()
        requests, granted, altered = self._requests(opted, told, gone)
        found, moved = owners(
            self._cluster, self._networks, Requests(granted, altered, gone), was.owners if was else None
        )
        alone, concerned = self._alone(granted, found, moved | altered, gone)
        announcers = was.announcers if was else {}
        if was is None or altered or opted is not was.opted or told is not was.told or not self._nodes_stay:
            announcers, concerned = self._announcers(opted, told, alone), set(alone)
        families, changed = self._families(alone, announcers, concerned, gone)
        services, places = self._services(opted, families, changed)
        refused = _kept(
            was.refused if was else None, gone, {key: found.claimed[key].refused for key in moved | altered}
        )
        second = _kept(
            was.second if was else None, gone, {key: tuple(_second_addresses(granted[key])) for key in altered}
        )
        peers = self._peers(families, changed, gone)
        same_peers = before is not None and was is not None and peers.keys() == was.peers.keys()
        return Survey(
            services=services,
            served=self._served(found, moved, gone),
            networks=self._networks,
            nodes=self._nodes,
            rejections=(
                *told.rejections,
                *_in_order(refused, opted),
                *_lost(found),
                *opted.unclear,
                *_in_order(second, opted),
            ),
            peers=before.peers if before and same_peers else frozenset(peers),
            announcers=self._announced(requests, altered, gone),
            work=_Work(
                cluster=self._cluster,
                config=self._config,
                recent=self._recent,
                sources=self._sources,
                opted=opted,
                told=told,
                requests=requests,
                granted=granted,
                unsteady=self._unsteady(requests, altered, gone),
                owners=found,
                alone=alone,
                families=families,
                places=places,
                announcers=announcers,
                refused=refused,
                second=second,
                peers=peers,
            ),
        )

    def _opted(self) -> _Opted:
        was, services = self._was, self._cluster.services
        if was and services is was.cluster.services:
            return was.opted
        label = self._config.egress.label
        opted = sorted(
            (s for s in services if s.labels.get(label) == "true"),
            key=lambda s: (s.created, s.ref.namespace, s.ref.name),
        )
        return _Opted(
            services={key_of(one): one for one in opted},
            cluster_ips=frozenset(a for service in services for a in service.cluster_ips),
            unclear=tuple(_unclear(services, label)),
        )

    def _told(self) -> _Told:
        was = self._was
        if was and self._cluster.announcements is was.cluster.announcements:
            return was.told
        told, rejections = metallb.announcements(self._cluster, self._config)
        by_service: dict[Key, list[Announcement]] = defaultdict(list)
        for one in told:
            by_service[one.service].append(one)
        return _Told(all=told, rejections=rejections, by_service=dict(by_service))

    def _requests(
        self, opted: _Opted, told: _Told, gone: Set[Key]
    ) -> tuple[Mapping[Key, Request], Mapping[Key, Request], set[Key]]:
        """What the Services ask for and, once the networks are shared out, get; and who gets something else."""
        was, recent = self._was, self._recent
        had = was.requests if was else {}
        fresh: dict[Key, Request] = {}
        for key in self._stale(opted, told):
            service = opted.services[key]
            said = told.by_service.get(key, ())
            gateway = gateway_of(service, said, self._nodes, self._config, recent.kept.get(service.ref))
            one = request_of(service, gateway, lambda a: self._sources.wrong(a, opted.cluster_ips), recent)
            if had.get(key) != one:
                fresh[key] = one
        requests, altered = _kept(had, gone, fresh), set(fresh)
        if was and opted is was.opted and not altered:
            return was.requests, was.granted, altered
        restricted = [one for key in opted.services if (one := requests[key]).filter.key]
        if not restricted:
            return requests, requests, altered
        granted = dict(requests)
        for one in within_quota(restricted, self._config.egress.max_networks):
            key = key_of(one.service)
            before = was.granted.get(key) if was else None
            granted[key] = before if before is not None and before == one else one
            if granted[key] is not before:
                altered.add(key)
        return requests, granted, altered

    def _stale(self, opted: _Opted, told: _Told) -> Collection[Key]:
        """The Services that may ask for something else now."""
        was = self._was
        if was is None or not self._nodes_stay:
            return opted.services
        stale: set[Key] = set()
        if opted is not was.opted:
            ips = opted.cluster_ips ^ was.opted.cluster_ips
            for key, service in opted.services.items():
                if was.opted.services.get(key) is not service or not ips.isdisjoint(service.ingress):
                    stale.add(key)
        if told is not was.told:
            stale |= {one.service for changes in exchanged(was.told.all, told.all) for one in changes}
        if self._recent is not was.recent:
            stale |= was.unsteady
        return {key for key in stale if key in opted.services}

    def _alone(
        self, granted: Mapping[Key, Request], found: Owners, moved: Set[Key], gone: Set[Key]
    ) -> tuple[Mapping[Key, Families], Set[Key]]:
        had = self._was.alone if self._was else {}
        entries = ((key, tuple(_entries(granted[key], found.pods(key)))) for key in moved)
        now = {key: some for key, some in entries if had.get(key) != some}
        return _kept(had, gone, now), now.keys()

    def _announcers(self, opted: _Opted, told: _Told, alone: Mapping[Key, Families]) -> _Announcers:
        services = [one for key in opted.services for one in alone[key]]
        sources = {one.source for one in services if one.source}
        others = (
            (address, gateway.node.name, service.ref)
            for service in self._cluster.services
            if (key := key_of(service)) not in opted.services
            for address in sources.intersection(service.ingress)
            if isinstance(
                gateway := gateway_of(service, told.by_service.get(key, ()), self._nodes, self._config), Gateway
            )
        )
        return _announcers(services, others)

    def _families(
        self, alone: Mapping[Key, Families], announcers: _Announcers, concerned: Set[Key], gone: Set[Key]
    ) -> tuple[Mapping[Key, Families], Set[Key]]:
        had = self._was.families if self._was else {}
        entries = ((key, tuple(_told_apart(one, announcers) for one in alone[key])) for key in concerned)
        now = {key: some for key, some in entries if had.get(key) != some}
        return _kept(had, gone, now), now.keys()

    def _services(
        self, opted: _Opted, families: Mapping[Key, Families], changed: Set[Key]
    ) -> tuple[Families, Mapping[Key, int]]:
        """All of them in a row, and where those of each Service begin."""
        was, before = self._was, self._before
        if was and before and opted is was.opted and all(len(families[k]) == len(was.families[k]) for k in changed):
            if not changed:
                return before.services, was.places
            services = [*before.services]
            for key in changed:
                start = was.places[key]
                services[start : start + len(families[key])] = families[key]
            return tuple(services), was.places
        ordered = [families[key] for key in opted.services]
        starts = accumulate(map(len, ordered), initial=0)
        return tuple(chain.from_iterable(ordered)), dict(zip(opted.services, starts, strict=False))

    def _served(self, found: Owners, moved: Set[Key], gone: Set[Key]) -> frozenset[int]:
        if self._before and self._was and not gone:
            had = self._was.owners.claimed
            if all(key in had and had[key].served == found.claimed[key].served for key in moved):
                return self._before.served
        return frozenset().union(*{one.served for one in found.claimed.values()})

    def _peers(self, families: Mapping[Key, Families], changed: Set[Key], gone: Set[Key]) -> Counter[NodeName]:
        was = self._was
        if was and not (changed or gone):
            return was.peers
        peers = Counter(was.peers) if was else Counter[NodeName]()
        if was:
            for key in (*changed, *gone):
                peers.subtract(_nodes_of(was.families.get(key, ())))
        for key in changed:
            peers.update(_nodes_of(families[key]))
        return +peers

    def _announced(
        self, requests: Mapping[Key, Request], altered: Set[Key], gone: Set[Key]
    ) -> Evolving[ObjectRef, NodeName | None]:
        now = {
            request.service.ref: request.gateway.node.name
            if isinstance(request.gateway, Gateway) and not request.gateway.away
            else None
            for request in map(requests.__getitem__, altered)
        }
        before: Evolving[ObjectRef, NodeName | None] = self._before.announcers if self._before else Evolving()
        left = [self._was.opted.services[key].ref for key in gone] if self._was else []
        return before.changed(now, left)

    def _unsteady(self, requests: Mapping[Key, Request], altered: Set[Key], gone: Set[Key]) -> Set[Key]:
        now = {key for key in altered if isinstance(gateway := requests[key].gateway, Obstacle) or gateway.away}
        return (self._was.unsteady - altered - gone) | now if self._was else now


def _networks(cluster: ClusterState, config: Config, before: Survey | None) -> ClusterNetworks:
    if before:
        was = before.work.cluster
        same = cluster.nodes is was.nodes and cluster.services is was.services
        if same and cluster.service_cidrs is was.service_cidrs:
            return before.networks
    return cluster_networks(cluster, config)


def _same_places(one: ClusterNetworks, other: ClusterNetworks) -> bool:
    return one is other or (one.pods, one.node_addresses) == (other.pods, other.node_addresses)


def _kept(before: Mapping[Key, V] | None, gone: Iterable[Key], now: Mapping[Key, V]) -> Mapping[Key, V]:
    """What was so before and is not gone, with what is so now; of what is empty now there is nothing."""
    if before is not None and not (now or gone):
        return before
    found = {**(before or {}), **now}
    for key in (*gone, *(key for key, value in now.items() if not value)):
        found.pop(key, None)
    return found


def _nodes_of(families: Families) -> set[NodeName]:
    """The nodes that a Service's traffic passes between."""
    nodes = {pod.node for one in families for pod in one.pods if pod.node}
    return nodes | {one.gateway.node.name for one in families if one.gateway}


def _in_order(rejections: Mapping[Key, tuple[Rejection, ...]], opted: _Opted) -> Iterator[Rejection]:
    """Those of the older Services first."""
    for key in sorted(rejections, key=lambda key: (opted.services[key].created, key)):
        yield from rejections[key]


def _lost(found: Owners) -> Iterator[Rejection]:
    """What was claimed in vain, by address."""
    for address in sorted(found.settled, key=lambda a: (a.version, int(a))):
        yield from found.settled[address].lost
