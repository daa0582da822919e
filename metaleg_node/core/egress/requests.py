"""What each opted-in Service asks for by itself: its gateway and the addresses to leave with; and who comes first where
several ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from metaleg_node.configuration.config import Config
from metaleg_node.core.egress.claims import PodAddress
from metaleg_node.core.model import (
    FAMILIES,
    Address,
    AnnouncedBy,
    Announcement,
    DestinationFilter,
    Endpoint,
    Family,
    Node,
    NodeName,
    ObjectRef,
    Rejection,
    Service,
)
from metaleg_node.core.problems import Code

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


def _about(service: Service, announcements: Iterable[Announcement]) -> list[Announcement]:
    """Those that are about this Service: Events outlive an earlier one of the same name. To the second, which is as
    exact as Kubernetes tells when an object was made."""
    return [
        one
        for one in announcements
        if one.source is not AnnouncedBy.EVENTS or not one.since or one.since[:_SECOND] >= service.created[:_SECOND]
    ]


def gateway_of(
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
            detail = f"announced by BGP from {len(names)} nodes ({some(names)}); egress needs exactly one"
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
            f", preferred to {some([n for n in names if n != best.node])}" if ambiguous else ""
        )
        return Gateway(node=nodes[best.node], why=why, ambiguous=ambiguous)
    objects = "ServiceL2Status, ServiceBGPStatus or event"
    detail = f"no node announces it: there is no {objects} about it that is not older than the Service"
    return Obstacle(code=Code.NO_GATEWAY, detail=detail)


Key = tuple[str, str]
"""Namespace and name of a Service."""


def key_of(service: Service) -> Key:
    return service.ref.namespace, service.ref.name


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


# --- whose claim counts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one Service can have, before it is known which pods are its own. `obstacle` is one of the whole Service;
    `sources` has each family that it has an address of. Without a gateway it may be `awaited`, and `quiet`, as in
    `Recent`."""

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

    def is_same(self, other: Request, family: Family) -> bool:
        """Whether it makes no difference which of the two has a pod."""
        return (
            self.source(family) == other.source(family)
            and self.filter == other.filter
            and isinstance(self.gateway, Gateway)
            and isinstance(other.gateway, Gateway)
            and self.gateway.node.name == other.gateway.node.name
        )


class Named(NamedTuple):
    """An address that a Service's EndpointSlice names."""

    request: Request
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


def request_of(
    service: Service, gateway: Gateway | Obstacle, wrong: Callable[[Address], str], recent: Recent
) -> Request:
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
        if address.version not in sources:
            bad = wrong(address)
            detail = f"LoadBalancer address {address} {bad}"
            sources[address.version] = Obstacle(code=Code.BAD_ADDRESS, detail=detail) if bad else address
    return Request(
        service=service,
        filter=destinations,
        obstacle=obstacle,
        sources=sources,
        gateway=gateway,
        awaited=service.ref in recent.awaited and isinstance(gateway, Obstacle),
        quiet=service.ref in recent.quiet and isinstance(gateway, Obstacle),
    )


def within_quota(requests: Sequence[Request], most: int) -> list[Request]:
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


def _beyond(request: Request, most: int) -> Request:
    detail = f"older Services' annotations name all of the {most} networks that there is room for (egress.max_networks)"
    obstacle = Obstacle(code=Code.TOO_MANY_NETWORKS, detail=detail)
    return replace(request, filter=DestinationFilter(), obstacle=obstacle)


class Settled(NamedTuple):
    """Who has an address that is claimed more than once, and what others miss by it."""

    owner: Key
    pod: PodAddress
    lost: tuple[Rejection, ...]


def settled(claimed: Sequence[Named]) -> Settled:
    """An address belongs to one Service. One that was a pod's that is ending and is now a live one's belongs to the
    live. Else a Service that can have egress comes before one that cannot, so that a claim that cannot be served takes
    nothing from one that can; then a live endpoint, the older Service, the name."""
    owner = _first(claimed)
    return Settled(key_of(owner.request.service), owner.pod, tuple(_lost(owner, claimed)))


def _first(claimed: Sequence[Named]) -> Named:
    """Linear, since anybody can name one address as often as he likes."""
    live = {one.endpoint.target for one in claimed if not one.endpoint.terminating}

    def outlived(one: Named) -> bool:
        return one.endpoint.terminating and (None in live or bool(live - {one.endpoint.target}))

    return min((one for one in claimed if not outlived(one)), key=lambda one: one.precedence)


def _lost(owner: Named, claimed: Iterable[Named]) -> Iterator[Rejection]:
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
