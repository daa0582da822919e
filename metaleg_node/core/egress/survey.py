"""What the cluster asks for, the same on every node: which pod addresses leave with which address through which node.

`take` reads the Services that opted in, decides each one's gateway and sources, and checks every claim on a pod's
address. What this node has to do about it is decided in `egress`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from metaleg_node.configuration.config import Config
from metaleg_node.core.cluster_networks import NEVER_EGRESS, ClusterNetworks, cluster_networks
from metaleg_node.core.model import (
    FAMILIES,
    Address,
    AnnouncedBy,
    Announcement,
    ClusterState,
    DestinationFilter,
    Endpoint,
    EndpointSlice,
    Family,
    Node,
    NodeName,
    ObjectRef,
    Rejection,
    Service,
)
from metaleg_node.core.networks import Membership
from metaleg_node.core.objects import metallb
from metaleg_node.core.objects.annotations import EXCLUDE, NEW_PODS, ONLY
from metaleg_node.core.problems import Code, Problem

_SECOND = len("2024-05-01T08:00:00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why not: a word for machines and a sentence for people."""

    code: Code
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The node that announces a Service's address, why it was chosen, and whether others claim it too. `away`: it did
    so until a moment ago, and nobody does now."""

    node: Node
    why: str
    ambiguous: bool = False
    away: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """What was so a moment ago, by Service. Those that are `awaited` had a gateway: while they have none, their claims
    count as if they had. `kept` is the node that announced each of them until now, or until so short a time ago that
    it stays the gateway. `quiet` are those that had one just now: if they have none, attempts to connect should be
    repeated, not fail."""

    awaited: Set[ObjectRef] = frozenset()
    kept: Mapping[ObjectRef, NodeName] = field(default_factory=dict)
    quiet: Set[ObjectRef] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAddress:
    """One address that a Service's EndpointSlices name, and the node of its pod where the slice tells it."""

    address: Address
    node: NodeName | None
    pod: str


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
    (UDP, SCTP)."""

    services: tuple[EgressService, ...]
    served: frozenset[int]
    networks: ClusterNetworks
    nodes: Mapping[NodeName, Node]
    rejections: tuple[Rejection, ...]

    def gap(self, me: NodeName) -> str:
        """What the state lacks, so that nothing can be decided for node `me`; empty if it is complete."""
        if not self.services:
            return ""
        if not self.nodes:
            return "there are no Node objects in the cluster's state; a state file needs them, too"
        if me not in self.nodes:
            names = _some(sorted(self.nodes))
            return (
                f"no Node is called {me}, there are {names}; set node.name to this node's name in `kubectl get nodes`"
            )
        if not self.networks.pods:
            return "no pod network is known: no Node has spec.podCIDRs; set cluster.pod_cidrs"
        return ""


def take(
    cluster: ClusterState, config: Config, awaited: Set[ObjectRef] = frozenset(), *, recent: Recent | None = None
) -> Survey:
    """Works out what the opted-in Services ask for. What was so a moment ago is told by `recent`, or by `awaited` where
    there is no more to tell."""
    before = recent or Recent(awaited=awaited)
    nodes = {node.name: node for node in cluster.nodes}
    networks = cluster_networks(cluster, config)
    opted_in = sorted(
        (s for s in cluster.services if s.labels.get(config.egress.label) == "true"),
        key=lambda s: (s.created, s.ref),
    )
    announcements: dict[tuple[str, str], list[Announcement]] = defaultdict(list)
    told, rejections = metallb.announcements(cluster, config)
    for announcement in told:
        announcements[announcement.service].append(announcement)
    checks = _Checks(networks, cluster)
    requests = []
    for service in opted_in:
        gateway = _gateway(service, announcements[_key(service)], nodes, config, before.kept.get(service.ref))
        requests.append(_request(service, gateway, checks, before))
    requests = _within_quota(requests, config.egress.max_networks)
    pods, refused = _claims(requests, cluster, checks)
    rejections += refused
    rejections += _unclear(cluster.services, config.egress.label)
    rejections += [rejection for request in requests for rejection in _second_addresses(request)]
    services = [one for request in requests for one in _families(request, pods[request.service.ref].values())]
    sources = {one.source for one in services if one.source}
    siblings = [
        (address, gateway.node.name, service.ref)
        for service in cluster.services
        if service.ref not in pods
        for address in sources.intersection(service.ingress)
        if isinstance(gateway := _gateway(service, announcements[_key(service)], nodes, config), Gateway)
    ]
    services = [*_told_apart(services, siblings)]
    return Survey(
        services=tuple(services),
        served=_served(opted_in, cluster.endpoint_slices),
        networks=networks,
        nodes=nodes,
        rejections=tuple(rejections),
    )


def _told_apart(
    services: Sequence[EgressService], others: Iterable[tuple[Address, NodeName, ObjectRef]]
) -> Iterator[EgressService]:
    """The same Services. Those that share a LoadBalancer address, `others` without the label too, should be announced
    by one node, since answers reach only one (F9); where they are not, that is told."""
    nodes: dict[Address, dict[NodeName, ObjectRef]] = defaultdict(dict)
    for one in services:
        if one.source and one.gateway:
            nodes[one.source].setdefault(one.gateway.node.name, one.service.ref)
    for address, node, ref in others:
        nodes[address].setdefault(node, ref)
    for one in services:
        if one.source and one.gateway and nodes[one.source].keys() - {one.gateway.node.name}:
            also = [f"{n} for {ref}" for n, ref in nodes[one.source].items() if n != one.gateway.node.name]
            split = f"{one.source} is announced by {_some(also)}, too: only one gets the answers"
            why = f"{one.gateway.why}; but {split}"
            yield replace(one, gateway=replace(one.gateway, why=why, ambiguous=True), split=split)
        else:
            yield one


def _second_addresses(request: _Request) -> Iterator[Rejection]:
    for family, source in request.sources.items():
        others = [str(a) for a in request.service.ingress if a.version == family and a != source]
        if others and not isinstance(source, Obstacle):
            reason = f"its pods leave as {source}, the first of its IPv{family} addresses, not as {_some(others)}"
            yield Rejection(ref=request.service.ref, reason=reason, harmless=True)


def _served(services: Iterable[Service], slices: Iterable[EndpointSlice]) -> frozenset[int]:
    keys = {_key(service) for service in services}
    ours = (s for s in slices if (s.ref.namespace, s.service) in keys)
    return frozenset(p.port for s in ours for p in s.ports if p.protocol in ("UDP", "SCTP"))


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


def _about(service: Service, announcements: Iterable[Announcement]) -> list[Announcement]:
    """Those that are about this Service: Events outlive an earlier one of the same name. To the second, which is as
    exact as Kubernetes tells when an object was made."""
    return [
        one
        for one in announcements
        if one.source is not AnnouncedBy.EVENTS or not one.since or one.since[:_SECOND] >= service.created[:_SECOND]
    ]


def _gateway(
    service: Service,
    announcements: Iterable[Announcement],
    nodes: Mapping[NodeName, Node],
    config: Config,
    kept: NodeName | None = None,
) -> Gateway | Obstacle:
    """The gateway; the one that is `kept` while nobody announces the Service, unless that node is lost."""
    found = choose_gateway(_about(service, announcements), nodes, config.egress.gateway_source)
    if isinstance(found, Obstacle) and found.code is Code.NO_GATEWAY:
        if kept and kept in nodes and nodes[kept].ready:
            return Gateway(node=nodes[kept], why=f"{kept} announced it until a moment ago", away=True)
        where = f"status objects count in namespace {config.cluster.metallb_namespace} (cluster.metallb_namespace)"
        return replace(found, detail=f"{found.detail}; {where}")
    return found


def choose_gateway(
    announcements: Sequence[Announcement], nodes: Mapping[NodeName, Node], sources: Iterable[AnnouncedBy]
) -> Gateway | Obstacle:
    """The node that announces a Service's address, by the first of `sources` that says anything.

    Several ServiceL2Status objects may exist after a failover (F2): a Ready node beats one that is not, then the newest
    wins, then the name. Several BGP announcers mean that answers may come in anywhere (F11): no gateway.
    """
    for source in sources:
        said = [a for a in announcements if a.source is source]
        names = sorted({a.node for a in said})
        if not said:
            continue
        if source is AnnouncedBy.BGP_STATUS and len(names) > 1:
            detail = f"announced by BGP from {len(names)} nodes ({_some(names)}); egress needs exactly one"
            return Obstacle(code=Code.SEVERAL_GATEWAYS, detail=detail)
        ready = {name: name in nodes and nodes[name].ready for name in names}
        if source is AnnouncedBy.EVENTS:
            best = max(said, key=lambda a: (a.since, a.node))
        else:
            best = max(said, key=lambda a: (ready[a.node], a.since, a.node))
        if best.node not in nodes:
            detail = f"{best.ref} names node {best.node}, which is not among the Node objects"
            return Obstacle(code=Code.UNKNOWN_NODE, detail=detail)
        ambiguous = len(names) > 1 and source is not AnnouncedBy.EVENTS
        why = f"{best.node} announces it ({best.ref})" + (
            f", preferred to {_some([n for n in names if n != best.node])}" if ambiguous else ""
        )
        return Gateway(node=nodes[best.node], why=why, ambiguous=ambiguous)
    objects = "ServiceL2Status, ServiceBGPStatus or event"
    detail = f"no node announces it: there is no {objects} about it that is not older than the Service"
    return Obstacle(code=Code.NO_GATEWAY, detail=detail)


def _key(service: Service) -> tuple[str, str]:
    return service.ref.namespace, service.ref.name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


# --- whose claim counts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What one Service can have, before it is known which pods are its own. `obstacle` is one of the whole Service;
    `sources` has each family that it has an address of."""

    service: Service
    filter: DestinationFilter
    obstacle: Obstacle | None
    sources: Mapping[Family, Address | Obstacle]
    gateway: Gateway | Obstacle
    awaited: bool
    quiet: bool

    def source(self, family: Family) -> Address | Obstacle:
        """The LoadBalancer address, or why there is none to leave with."""
        if self.obstacle:
            return self.obstacle
        detail = f"the Service has no IPv{family} address in status.loadBalancer.ingress"
        return self.sources.get(family, Obstacle(code=Code.NO_ADDRESS, detail=detail))

    def serves(self, family: Family) -> bool:
        """Whether its pods can have egress, as far as that is the same on every node."""
        if isinstance(self.source(family), Obstacle):
            return False
        if isinstance(self.gateway, Obstacle):
            return self.awaited
        return any(address.version == family for address in self.gateway.node.internal_ips)

    def is_same(self, other: _Request, family: Family) -> bool:
        """Whether it makes no difference which of the two has a pod."""
        return (
            self.source(family) == other.source(family)
            and self.filter == other.filter
            and isinstance(self.gateway, Gateway)
            and isinstance(other.gateway, Gateway)
            and self.gateway.node.name == other.gateway.node.name
        )


class _Named(NamedTuple):
    """An address that a Service's EndpointSlice names."""

    request: _Request
    named_by: ObjectRef
    endpoint: Endpoint
    pod: PodAddress

    @property
    def precedence(self) -> tuple[object, ...]:
        """The smallest gets the address, whatever the order in which the slices come."""
        service, endpoint = self.request.service, self.endpoint
        serves = self.request.serves(self.pod.address.version)
        who = (not serves, endpoint.terminating, service.created, service.ref)
        return (*who, not endpoint.ready, not endpoint.serving, self.named_by, self.pod.node or "", self.pod.pod)


def _request(service: Service, gateway: Gateway | Obstacle, checks: _Checks, recent: Recent) -> _Request:
    destinations, obstacle = DestinationFilter(), None
    if isinstance(service.destinations, str):
        obstacle = Obstacle(code=Code.BAD_ANNOTATION, detail=service.destinations)
    else:
        destinations = service.destinations
    if service.type != "LoadBalancer":
        detail = f"spec.type is {service.type or 'missing'}, must be LoadBalancer"
        obstacle = Obstacle(code=Code.NOT_LOAD_BALANCER, detail=detail)
    sources: dict[Family, Address | Obstacle] = {}
    for address in service.ingress:
        sources.setdefault(address.version, checks.source(address))
    return _Request(
        service=service,
        filter=destinations,
        obstacle=obstacle,
        sources=sources,
        gateway=gateway,
        awaited=service.ref in recent.awaited,
        quiet=service.ref in recent.quiet and isinstance(gateway, Obstacle),
    )


def _within_quota(requests: Sequence[_Request], most: int) -> list[_Request]:
    """The same requests in their order; those whose networks are more than the packet filter may hold get none. Whoever
    can have egress comes first, then the older. Filters that are the same are held once."""
    held: set[str] = set()
    beyond: set[ObjectRef] = set()
    room = most
    for request in sorted(requests, key=lambda one: not any(one.serves(family) for family in FAMILIES)):
        key, size = request.filter.key, request.filter.size
        if not key or key in held:
            continue
        if size > room:
            beyond.add(request.service.ref)
        else:
            held.add(key)
            room -= size
    return [_beyond(one, most) if one.service.ref in beyond else one for one in requests]


def _beyond(request: _Request, most: int) -> _Request:
    detail = f"older Services' annotations name all of the {most} networks that there is room for (egress.max_networks)"
    obstacle = Obstacle(code=Code.TOO_MANY_NETWORKS, detail=detail)
    return replace(request, filter=DestinationFilter(), obstacle=obstacle)


def _claims(
    requests: Iterable[_Request], cluster: ClusterState, checks: _Checks
) -> tuple[dict[ObjectRef, dict[Address, PodAddress]], list[Rejection]]:
    """The pods of each Service. An address belongs to one. One that was a pod's that is ending and is now a live one's
    belongs to the live. Else a Service that can have egress comes before one that cannot, so that a claim that cannot
    be served takes nothing from one that can; then a live endpoint, the older Service, the name."""
    slices: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for endpoint_slice in cluster.endpoint_slices:
        slices[endpoint_slice.ref.namespace, endpoint_slice.service].append(endpoint_slice)
    first: dict[Address, _Named] = {}
    several: dict[Address, list[_Named]] = {}
    pods: dict[ObjectRef, dict[Address, PodAddress]] = {}
    rejections: list[Rejection] = []
    for request in requests:
        own = pods[request.service.ref] = {}
        for endpoint_slice in slices[_key(request.service)]:
            for endpoint, pod, problem in checks.claims(endpoint_slice):
                if problem:
                    rejections.append(Rejection(ref=endpoint_slice.ref, reason=problem))
                    continue
                named = _Named(request, endpoint_slice.ref, endpoint, pod)
                other = first.setdefault(pod.address, named)
                if other is named:
                    own[pod.address] = pod
                else:
                    several.setdefault(pod.address, [other]).append(named)
    for address, claimed in several.items():
        owner = _first(claimed)
        del pods[claimed[0].request.service.ref][address]
        pods[owner.request.service.ref][address] = owner.pod
        rejections += _lost(owner, claimed)
    return pods, rejections


def _first(claimed: Sequence[_Named]) -> _Named:
    """Linear, since anybody can name one address as often as he likes."""
    live = {one.endpoint.target for one in claimed if not one.endpoint.terminating}

    def outlived(one: _Named) -> bool:
        return one.endpoint.terminating and (None in live or bool(live - {one.endpoint.target}))

    return min((one for one in claimed if not outlived(one)), key=lambda one: one.precedence)


def _lost(owner: _Named, claimed: Iterable[_Named]) -> Iterator[Rejection]:
    """What others miss by it: nothing where they could have had no egress, or the very same, or with a pod that is
    ending."""
    address, ours = owner.pod.address, owner.request
    for claim in claimed:
        theirs = claim.request
        if theirs is ours or not theirs.serves(address.version) or theirs.is_same(ours, address.version):
            continue
        if owner.endpoint.terminating or not claim.endpoint.terminating:
            reason = f"{address} belongs to {ours.service.ref}, which is older"
            yield Rejection(ref=claim.named_by, reason=reason)


class _Checks:
    """What a Service may claim: a real pod's own addresses, so that no tenant can redirect another's traffic, and a
    LoadBalancer address that is nobody else's."""

    def __init__(self, networks: ClusterNetworks, cluster: ClusterState) -> None:
        self._pod_networks = Membership(networks.pods)
        self._node_addresses = networks.node_addresses
        host_network = {a for pod in cluster.pods if pod.host_network for a in pod.addresses}
        self._host_addresses = networks.node_addresses | host_network
        self._never_egress = Membership(NEVER_EGRESS)
        # A slice may tell the address of a starting pod before the Pod does.
        self._addresses_of = {
            pod.ref: pod.addresses for pod in cluster.pods if pod.addresses or pod.ended or pod.ending
        }
        # The API tells this node's Pods alone.
        self._nodes_with_pods = {pod.node for pod in cluster.pods}
        # Several: a pod that has ended keeps its address in the Pod object, while another pod has it.
        self._pods_with: dict[Address, set[ObjectRef]] = defaultdict(set)
        for pod in cluster.pods:
            for address in pod.addresses:
                self._pods_with[address].add(pod.ref)
        self._cluster_ips = frozenset(a for service in cluster.services for a in service.cluster_ips)

    def claims(self, endpoint_slice: EndpointSlice) -> Iterator[tuple[Endpoint, PodAddress, str]]:
        """Each address of the slice with the reason why it is not taken, empty for one that is."""
        namespace = endpoint_slice.ref.namespace
        for endpoint in endpoint_slice.endpoints:
            target = endpoint.target
            of_pod = target is not None and target.kind == "Pod" and target.namespace == namespace
            for address in endpoint.addresses:
                pod = PodAddress(address=address, node=endpoint.node, pod=target.name if target and of_pod else "")
                problem = self._problem(address, target, endpoint_slice, of_pod=of_pod)
                yield endpoint, pod, problem or self._taken(address, endpoint, namespace)

    def _taken(self, address: Address, endpoint: Endpoint, namespace: str) -> str:
        """Why an address is not the endpoint's, where the Pods are known: whoever may write an EndpointSlice can claim
        in it what he likes, and that Kubernetes manages it, too. Kubernetes' own names the Pod of each endpoint."""
        pods, target = self._pods_with.get(address, set()), endpoint.target
        if not pods:
            elsewhere = endpoint.node is not None and endpoint.node not in self._nodes_with_pods
            unclaimed = self._nodes_with_pods and not target and not elsewhere
            return f"{address} is the address of no Pod, and the slice names none" if unclaimed else ""
        rightly = target in pods if target else any(pod.namespace == namespace for pod in pods)
        return "" if rightly else f"{address} is the address of {min(pods)}"

    def _problem(
        self, address: Address, target: ObjectRef | None, endpoint_slice: EndpointSlice, *, of_pod: bool
    ) -> str:
        if target and not of_pod:
            return f"{address} is said to be of {target}, which is no pod of this namespace"
        if not (of_pod or endpoint_slice.controlled):
            made = "mirrors an Endpoints object that somebody wrote" if endpoint_slice.mirrored else ""
            return f"{address} has no targetRef to a pod, and the slice {made or 'is not managed by Kubernetes'}"
        if target and address not in self._addresses_of.get(target, (address,)):
            return f"{address} is not an address of {target}"
        if address in self._host_addresses:
            return f"{address} is a node's address; pods of the host network have no egress of their own"
        if address not in self._pod_networks:
            return f"{address} is in no pod network (Node spec.podCIDRs, cluster.pod_cidrs)"
        return ""

    def source(self, address: Address) -> Address | Obstacle:
        """The LoadBalancer address, or what is wrong with it."""
        wrong = ""
        if address in self._node_addresses:
            wrong = "is a node's own"
        elif address in self._pod_networks:
            wrong = "is in a pod network"
        elif address in self._cluster_ips:
            wrong = "is a Service's cluster IP"
        elif address in self._never_egress:
            wrong = "is no host's address"
        if wrong:
            return Obstacle(code=Code.BAD_ADDRESS, detail=f"LoadBalancer address {address} {wrong}")
        return address


def _families(request: _Request, pods: Iterable[PodAddress]) -> Iterator[EgressService]:
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
