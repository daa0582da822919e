"""What this node does so that egress pods leave with their Service's address.

The survey is the same on every node; this is one node's part: steer its own pods to their gateway, translate where it
is the gateway itself, hold what has no way out, drop what came to the wrong node. What is decided about a Service
follows from that Service and from `Surroundings`, the few facts that all of them share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from metaleg_node.configuration.config import Config
from metaleg_node.core import reverse_path
from metaleg_node.core.contribution import Contribution
from metaleg_node.core.egress import transport
from metaleg_node.core.egress.claims import PodAddress
from metaleg_node.core.egress.requests import Obstacle
from metaleg_node.core.egress.survey import EgressService, Survey
from metaleg_node.core.exits import Exit, ExitOf
from metaleg_node.core.firewall.egress import Egress, EgressPod, Treatment
from metaleg_node.core.firewall.local_answers import LocalAnswers
from metaleg_node.core.firewall.transit import Transit
from metaleg_node.core.increments import Evolving, exchanged, remade
from metaleg_node.core.model import (
    Address,
    Family,
    Holder,
    HolderKind,
    Host,
    NextHop,
    NodeName,
    Questions,
    Route,
    Rule,
    Slot,
)
from metaleg_node.core.networks import Membership
from metaleg_node.core.problems import Code, Problem
from metaleg_node.core.routes import closing, leading, mark_rule, thrown
from metaleg_node.core.slots import Claim, Granted, count

_SAMPLE = 3
"""How many nodes tell by which interfaces nodes are reached, where no Service does."""


Way = transport.Way | Obstacle | None
"""How a Service's traffic gets to its gateway from here, or why not, or None: this node is the gateway, or steers none
of its pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDecision:
    """What was decided about one Service in one family: `way`, `claim` where it needs a slot, and how its pods are
    treated that run here (`local`) or elsewhere; None: their traffic is left alone. `pods` and `local_pods` count
    addresses."""

    service: EgressService
    way: Way
    claim: Claim | None
    here: frozenset[Address]
    local: EgressPod | None = None
    elsewhere: EgressPod | None = None

    @property
    def obstacle(self) -> Obstacle | None:
        return self.way if isinstance(self.way, Obstacle) else None

    @property
    def pods(self) -> int:
        return len(self.service.pods)

    @property
    def local_pods(self) -> int:
        return len(self.here)

    @property
    def reason(self) -> str:
        """Why its pods are treated so."""
        service = self.service
        if self.obstacle:
            return f"{service.service.ref}: {self.obstacle.detail}"
        carried = isinstance(self.way, transport.Way) and self.way.transport == "pod-network"
        words = [service.gateway.why] if service.gateway else []
        words += [f"reached {self.way}"] if carried else []
        return ": ".join([f"{service.service.ref} as {service.source}", *filter(None, ["; ".join(words)])])

    @property
    def problems(self) -> Iterator[Problem]:
        """What keeps it from having egress here, or may keep answers from it."""
        return self.service.problems(self.obstacle)

    def treated(self) -> Iterator[tuple[Iterable[Address], EgressPod]]:
        """Its pods' addresses by their treatment."""
        if self.local and self.here:
            yield self.here, self.local
        if self.elsewhere:
            yield {pod.address for pod in self.service.pods} - self.here, self.elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The facts that decisions about all Services share."""

    config: Config
    me: NodeName
    host: Host
    own_pods: Membership
    exit_of: ExitOf

    def is_local(self, pod: PodAddress) -> bool:
        """Whether the pod runs here; where its slice does not tell, this node's pod networks do."""
        return pod.node == self.me if pod.node else pod.address in self.own_pods

    def steers(self, *, local: bool) -> bool:
        """Whether this node steers the traffic of such pods."""
        return local or not self.config.egress.local_endpoints_only


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """Egress before slots are handed out: what is claimed follows from the Services' ways."""

    survey: Survey
    around: Surroundings
    services: tuple[ServiceDecision, ...] = ()
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What follows from all Services together, but not from their pods; `egress` has none."""

    rules: frozenset[Rule]
    routes: frozenset[Route]
    egress: Egress
    local_answers: LocalAnswers
    transit: Transit
    sysctls: Mapping[str, str]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """This node's part of the egress. `owners` tells for each pod address the Service that it was decided with."""

    undecided: Undecided
    granted: Granted = field(default_factory=dict)
    contribution: Contribution = field(default_factory=Contribution)
    services: tuple[ServiceDecision, ...] = ()
    pods: Evolving[Address, EgressPod] = field(default_factory=Evolving)
    owners: Evolving[Address, ServiceDecision] = field(default_factory=Evolving)
    shared: _Shared | None = None


# --- what the host must be asked -------------------------------------------------------------------------------------


def questions(survey: Survey, me: NodeName) -> Questions:
    """The addresses whose way through the main table decisions need to know: those of the nodes that egress traffic
    passes between, and for each of their pod networks its first address. A few other nodes are among them in any case:
    the first traffic of a Service that this node does not know yet comes in by the same interfaces."""
    peers = survey.peers | set(sorted(survey.nodes.keys() - {me})[:_SAMPLE])
    return Questions(
        addresses=frozenset(
            address
            for name in peers - {me}
            if (node := survey.nodes.get(name))
            for address in (*node.internal_ips, *transport.pod_addresses(node))
        )
    )


# --- claims ----------------------------------------------------------------------------------------------------------


def look(
    survey: Survey, config: Config, me: NodeName, host: Host, exit_of: ExitOf, *, before: Undecided | None = None
) -> Undecided:
    """Each Service's way from here, and what it claims a slot for. What `before` found for the very same Service under
    the same circumstances is taken from there."""
    node = survey.nodes.get(me)
    around = before.around if before else None
    same = before is not None and before.survey.nodes.get(me) is node
    if not (
        same
        and around
        and (around.config, around.exit_of) == (config, exit_of)
        and (around.me, around.host) == (me, host)
    ):
        around, before = (
            Surroundings(
                config=config, me=me, host=host, own_pods=Membership(node.pod_cidrs if node else ()), exit_of=exit_of
            ),
            None,
        )
    if not config.egress.enabled:
        return Undecided(survey=survey, around=around)
    if before is None:
        services = tuple(_look(one, around) for one in survey.services)
        return Undecided(survey=survey, around=around, services=services, claims=_claims(services))
    services = remade(before.survey.services, before.services, survey.services, lambda one: _look(one, around))
    gone, came = exchanged(before.services, services)
    same_claims = {one.service.key: one.claim for one in gone} == {one.service.key: one.claim for one in came}
    claims = before.claims if same_claims else _claims(services)
    return Undecided(survey=survey, around=around, services=services, claims=claims)


def _claims(services: Iterable[ServiceDecision]) -> tuple[Claim, ...]:
    return tuple(one.claim for one in services if one.claim)


def _look(service: EgressService, around: Surroundings) -> ServiceDecision:
    here = frozenset(pod.address for pod in service.pods if around.is_local(pod))
    steered = bool(here) if not around.steers(local=False) else bool(service.pods)
    exit_ = _exit(service, around)
    way = _way(service, around, exit_, steered=steered)
    claim = None
    if not isinstance(way, Obstacle) and service.pods and (steered or _gateway(service) == around.me):
        claim = exit_.claim if exit_ else _claim(service, way)
    return ServiceDecision(service=service, way=way, claim=claim, here=here)


def _exit(service: EgressService, around: Surroundings) -> Exit | None:
    """Here on the gateway: the address' own way out."""
    if service.obstacle or _gateway(service) != around.me or not service.source:
        return None
    return around.exit_of(service.source)


def _claim(service: EgressService, way: transport.Way | None) -> Claim:
    assert service.gateway
    node, hops = service.gateway.node, [way.hop] if way else []
    return Claim(
        holder=Holder(kind=HolderKind.NODE, name=node.name),
        gateways=frozenset((*node.internal_ips, *(hop.gateway for hop in hops if hop.gateway))),
        tunnels=frozenset(hop.interface for hop in hops if not hop.gateway),
    )


def _way(service: EgressService, around: Surroundings, exit_: Exit | None, *, steered: bool) -> Way:
    if service.obstacle:
        return service.obstacle
    if exit_ and exit_.obstacle:
        return Obstacle(code=Code.NO_EXIT, detail=exit_.obstacle)
    assert service.gateway
    node = service.gateway.node
    if node.name == around.me or not steered:
        return None
    return transport.find(node, service.family, around.host, around.config.egress.transport)


# --- this node's part ------------------------------------------------------------------------------------------------


def decide(undecided: Undecided, granted: Granted, before: Decided | None = None) -> Decided:
    """This node's part of the egress, with the slots that it got. What `before` decided for the very same Services
    under the same circumstances is taken from there."""
    survey, around = undecided.survey, undecided.around
    if not around.config.egress.enabled:
        return Decided(undecided=undecided)
    had = before or Decided(undecided=Undecided(survey=survey, around=around))
    stays = before is not None and had.undecided.around is around and had.granted == granted
    if stays:
        services = remade(
            had.undecided.services, had.services, undecided.services, lambda one: _treat(one, granted, around)
        )
    else:
        services = tuple(_treat(one, granted, around) for one in undecided.services)
    gone, came = exchanged(had.services, services)
    shared = had.shared
    if (
        shared is None
        or not stays
        or not _same_places(had.undecided.survey, survey)
        or _essence(gone) != _essence(came)
    ):
        shared = _shared(undecided, services, granted)
    pods = had.pods.changed(_treatments(came), _addresses(gone))
    egress = replace(shared.egress, pods=pods, served=survey.served)
    contribution = Contribution(
        rules=shared.rules,
        routes=shared.routes,
        parts=(egress, shared.local_answers, shared.transit),
        sysctls=shared.sysctls,
        rejections=survey.rejections,
        problems=shared.problems,
    )
    return Decided(
        undecided=undecided,
        granted=granted,
        contribution=contribution,
        services=services,
        pods=pods,
        owners=had.owners.changed({pod.address: one for one in came for pod in one.service.pods}, _addresses(gone)),
        shared=shared,
    )


def _same_places(one: Survey, other: Survey) -> bool:
    return one.networks is other.networks and one.peers is other.peers and one.nodes is other.nodes


def _essence(services: Iterable[ServiceDecision]) -> Mapping[object, object]:
    """What `_shared` looks at of each Service."""
    return {
        one.service.key: (one.claim, one.way, one.local, one.elsewhere, *_of_service(one.service)) for one in services
    }


def _of_service(one: EgressService) -> tuple[object, ...]:
    return one.source, one.filter, one.split, one.obstacle, one.service.ports


def _treatments(services: Iterable[ServiceDecision]) -> dict[Address, EgressPod]:
    return {address: pod for one in services for addresses, pod in one.treated() for address in addresses}


def _addresses(services: Iterable[ServiceDecision]) -> Iterator[Address]:
    return (pod.address for one in services for pod in one.service.pods)


def _shared(undecided: Undecided, services: tuple[ServiceDecision, ...], granted: Granted) -> _Shared:
    survey, around = undecided.survey, undecided.around
    treated = [(one, pod) for one in services for pod in (one.local, one.elsewhere) if pod]
    hops = _next_hops(services, granted)
    rules, routes = _routing(hops, survey, around.config)
    used = {pod.slot for _, pod in treated}
    egress = Egress(
        gateways={slot: holder for holder, slot in granted.items() if slot in used},
        filters={pod.filter: one.service.filter for one, pod in treated if pod.filter},
        hold="drop" if around.config.egress.when_unavailable == "drop" else "reject",
        source_ports=around.config.egress.source_ports,
        sources=frozenset(pod.source for _, pod in treated if pod.source),
        inside=survey.networks.inside,
        next_hops=frozenset(hop.gateway for hop in hops.values() if hop.gateway),
        tunnels=frozenset(hop.interface for hop in hops.values() if not hop.gateway),
    )
    return _Shared(
        rules=rules,
        routes=routes,
        egress=egress,
        local_answers=_local_answers(survey),
        transit=_transit(undecided),
        sysctls=_sysctls(undecided),
        problems=(*_unnamed(undecided), *(problem for one in services for problem in one.problems)),
    )


def _treat(one: ServiceDecision, granted: Granted, around: Surroundings) -> ServiceDecision:
    way = one.way
    if one.claim and one.claim.holder not in granted:
        way = _no_slot(one.service, around.config)
    slot = granted.get(one.claim.holder) if one.claim else None
    treat = {
        local: _treatment(one.service, way, slot, around, local=local)
        for local in (True, False)
        if (one.here if local else one.pods > one.local_pods)
    }
    return ServiceDecision(
        service=one.service,
        way=way,
        claim=one.claim,
        here=one.here,
        local=treat.get(True),
        elsewhere=treat.get(False),
    )


def _treatment(
    service: EgressService, way: Way, slot: Slot | None, around: Surroundings, *, local: bool
) -> EgressPod | None:
    """How the Service's pods are treated that run here (`local`), or elsewhere. None: their traffic is left alone, as
    `when_unavailable = "allow"` asks."""
    key, steers = service.filter.key, around.steers(local=local)
    if isinstance(way, Obstacle):
        if around.config.egress.when_unavailable == "allow":
            return None
        held = Treatment.WAIT if service.quiet else Treatment.HOLD
        return _pod(held if steers else Treatment.ELSEWHERE, key=key, local=local)
    if _gateway(service) == around.me:
        return _pod(Treatment.SNAT, slot, service.source, key=key, local=local)
    if steers:
        return _pod(Treatment.STEER, slot, key=key, local=local)
    return _pod(Treatment.ELSEWHERE, key=key, local=local)


@lru_cache(1 << 14)
def _pod(
    treatment: Treatment, slot: Slot | None = None, source: Address | None = None, *, key: str, local: bool
) -> EgressPod:
    """The same object for the same treatment: that two decisions agree is then seen without comparing them."""
    return EgressPod(treatment=treatment, slot=slot, source=source, filter=key, local=local)


def _no_slot(service: EgressService, config: Config) -> Obstacle:
    detail = (
        f"no mark is left for gateway {_gateway(service)}: "
        f"all {count(config.firewall.mark_mask)} values under firewall.mark_mask are taken"
    )
    return Obstacle(code=Code.NO_SLOT, detail=detail)


def _gateway(service: EgressService) -> NodeName:
    assert service.gateway, "only asked about services without an obstacle"
    return service.gateway.node.name


# --- routes, packet filter, sysctls ----------------------------------------------------------------------------------


def _next_hops(services: Iterable[ServiceDecision], granted: Granted) -> dict[tuple[Slot, Family], NextHop]:
    hops: dict[tuple[Slot, Family], NextHop] = {}
    for one in services:
        steers = any(pod and pod.treatment is Treatment.STEER for pod in (one.local, one.elsewhere))
        if steers and one.claim and isinstance(one.way, transport.Way):
            hops[granted[one.claim.holder], one.service.family] = one.way.hop
    return hops


def _routing(
    hops: Mapping[tuple[Slot, Family], NextHop], survey: Survey, config: Config
) -> tuple[frozenset[Rule], frozenset[Route]]:
    rules, routes = set(), set()
    for (slot, family), hop in hops.items():
        table, priority = config.firewall.route_table_base + slot, config.firewall.rule_priority
        rules.add(mark_rule(family, slot, config.firewall, table=table, priority=priority))
        routes |= {leading(family, table, (hop,)), closing(family, table)}
    return frozenset(rules), frozenset(routes | set(thrown(rules, survey.networks.pods)))


def _local_answers(survey: Survey) -> LocalAnswers:
    """Of all Services, since the first answers may come before this node knows that it is the gateway."""
    return LocalAnswers(
        addresses=frozenset(one.source for one in survey.services if one.source),
        entrances=frozenset(
            port.port for one in survey.services for port in one.service.ports if port.protocol == "TCP"
        ),
    )


def _transit(undecided: Undecided) -> Transit:
    """Each node may have a tunnel of its own: what comes in by any is looked at, since a pod may come by that of a node
    of which nothing is known yet."""
    survey, around = undecided.survey, undecided.around
    node = survey.nodes.get(around.me)
    return Transit(
        pod_networks=survey.networks.pods,
        node_interfaces=_node_interfaces(undecided) | (around.host.tunnels - around.host.unnameable),
        node_addresses=frozenset((*node.addresses, *node.internal_ips) if node else ()),
    )


def _node_interfaces(undecided: Undecided) -> frozenset[str]:
    """The interfaces by which nodes are reached, as far as the packet filter can name them."""
    return _peer_interfaces(undecided) - undecided.around.host.unnameable


def _peer_interfaces(undecided: Undecided) -> frozenset[str]:
    interfaces = undecided.around.host.interfaces
    asked = questions(undecided.survey, undecided.around.me).addresses
    return frozenset(interfaces[a] for a in asked if a in interfaces)


def _sysctls(undecided: Undecided) -> dict[str, str]:
    """Loose reverse-path filtering on the interfaces that steered traffic and its answers enter, where it is strict
    now: both come by another way than the kernel would take back. On an interface without an IPv4 address, as many
    tunnels are, that does not help, and it is turned off."""
    around = undecided.around
    if around.config.host.rp_filter != "loose":
        return {}
    interfaces = _node_interfaces(undecided)
    entered = {name for address, name in around.host.interfaces.items() if address.version == 4} & interfaces
    off = {name for name in entered if reverse_path.is_useless_when_loose(name, around.host)}
    return reverse_path.settings(around.host, loose=interfaces, off=off)


def _unnamed(undecided: Undecided) -> Iterator[Problem]:
    host = undecided.around.host
    for name in sorted((_peer_interfaces(undecided) | host.tunnels) & host.unnameable):
        text = (
            f"interface {name!r} cannot be named in the packet filter, so traffic that enters there is not checked for "
            "pods of other nodes; rename it with letters, digits and . _ @ + - only"
        )
        yield Problem(code=Code.INTERFACE_NAME, text=text)
