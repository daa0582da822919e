"""What this node does so that egress pods leave with their Service's address.

`desired` turns the survey, which is the same on every node, into this node's part: steer its own pods to their
gateway, translate where it is the gateway itself, hold what has no way out, drop what came to the wrong node.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network

from metaleg_node.configuration.config import Config
from metaleg_node.core import slots
from metaleg_node.core.egress.survey import EgressService, Obstacle, PodAddress, Reason, Survey, filter_key
from metaleg_node.core.model import (
    Address,
    DestinationFilter,
    EgressPod,
    Family,
    Firewall,
    Host,
    NextHop,
    NodeName,
    NodeState,
    ObjectRef,
    Rejection,
    Route,
    RouteType,
    Routing,
    Rule,
    Slot,
    Treatment,
)
from metaleg_node.core.networks import Membership

UNREACHABLE_METRIC = 4278198272
"""0xff000000 + 8192: worse than any route that a lost link could leave behind."""
DEFAULT_METRIC: Mapping[Family, int] = {4: 0, 6: 1024}
"""Metrics as the kernel reads them back: IPv6 has no metric 0 (linux/ipv6_route.h, IP6_RT_PRIO_USER)."""
DEFAULT: Mapping[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}

_SAMPLE = 3
"""How many nodes tell by which interfaces nodes are reached, where no Service does."""
_PLAIN_INTERFACE = re.compile(r"[-A-Za-z0-9_.@+]{1,15}")
"""Names that every packet filter takes as they are; Linux allows all but blanks, slashes and colons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReport:
    """How one Service stands in one family, as this node sees it. `local_pods` are those of this node."""

    service: EgressService
    pods: int
    local_pods: int
    obstacle: Obstacle | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What this node's kernel should hold, and what there is to say about it."""

    state: NodeState
    services: tuple[ServiceReport, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    problems: tuple[str, ...] = ()
    granted: Mapping[NodeName, Slot] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The way out for LoadBalancer addresses that have a router of their own, on the node that announces them:
    `holder` has its slot, `obstacle` says why it does not work now."""

    holder: NodeName
    obstacle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """What others than gateways need of the slots: `holders` get theirs first; `exit_of` tells the exit of an address
    that has one."""

    holders: tuple[NodeName, ...] = ()
    exit_of: Callable[[Address], Exit | None] = lambda _: None


NO_OTHERS = Others()


def lookups(survey: Survey, me: NodeName) -> frozenset[Address]:
    """The addresses whose way through the main table `desired` needs to know: those of the nodes that egress traffic
    passes between, and for each of their pod networks its first address. A few other nodes are among them in any case:
    the first traffic of a Service that this node does not know yet comes in by the same interfaces."""
    peers = {s.gateway.node.name for s in survey.services if s.gateway}
    peers |= {pod.node for s in survey.services for pod in s.pods if pod.node}
    peers |= set(sorted(survey.nodes.keys() - {me})[:_SAMPLE])
    return frozenset(
        address
        for name in peers - {me}
        if (node := survey.nodes.get(name))
        for address in (*node.internal_ips, *(net[min(1, net.num_addresses - 1)] for net in node.pod_cidrs))
    )


def desired(
    survey: Survey,
    config: Config,
    me: NodeName,
    host: Host,
    held: Mapping[Slot, NodeName],
    *,
    others: Others = NO_OTHERS,
) -> Desired:
    """This node's part of the egress. `held` are the slots that the kernel holds now, with their holders."""
    number = slots.count(config.firewall.mark_mask)
    if not config.egress.enabled:
        granted = slots.assign(held, others.holders, slots=number)
        return Desired(state=NodeState(firewall=_without_egress(config)), granted=granted)
    view = _View(survey, config, me, host, others.exit_of)
    ways = {s.key: view.way(s) for s in survey.services}
    wanted = [view.holder(s) for s in survey.services if view.needs_slot(s, ways[s.key])]
    granted = slots.assign(held, [*others.holders, *wanted], slots=number)
    pods: dict[Address, EgressPod] = {}
    filters: dict[str, DestinationFilter] = {}
    reports: list[ServiceReport] = []
    for service in survey.services:
        way = ways[service.key]
        if view.needs_slot(service, way) and view.holder(service) not in granted:
            way = _no_slot(service, config)
        if key := filter_key(service.filter):
            filters[key] = service.filter
        here = frozenset(pod.address for pod in service.pods if view.is_local(pod))
        for local, addresses in ((True, here), (False, {pod.address for pod in service.pods} - here)):
            if addresses and (treated := view.treat(service, way, granted, key, local=local)):
                pods.update(dict.fromkeys(addresses, treated))
        obstacle = way if isinstance(way, Obstacle) else None
        reports.append(ServiceReport(service=service, pods=len(service.pods), local_pods=len(here), obstacle=obstacle))
    hops = view.next_hops(pods, granted, ways)
    return Desired(
        state=NodeState(
            routing=Routing(
                rules=frozenset(_rules(hops, config)), routes=frozenset(_routes(hops, config.firewall.route_table_base))
            ),
            firewall=view.firewall(pods, filters, granted, hops),
            sysctls=view.sysctls(),
        ),
        services=tuple(reports),
        rejections=survey.rejections,
        problems=view.problems(),
        granted=granted,
    )


def why(reports: Iterable[ServiceReport]) -> Callable[[Address], str]:
    """A function that tells why a pod is treated so: its Service, and the obstacle's or the gateway's reason."""

    @cache
    def owners() -> dict[Address, ServiceReport]:
        return {pod.address: report for report in reports for pod in report.service.pods}

    def tell(address: Address) -> str:
        report = owners()[address]
        service = report.service
        if report.obstacle:
            return f"{service.service.ref}: {report.obstacle.detail}"
        return f"{service.service.ref} as {service.source}" + (f": {service.gateway.why}" if service.gateway else "")

    return tell


Way = NextHop | Obstacle | None
"""How a Service's traffic gets to its gateway from here: a next hop, not at all, or None: this node is the gateway."""


class _View:
    """The survey as seen from this node."""

    def __init__(
        self, survey: Survey, config: Config, me: NodeName, host: Host, exit_of: Callable[[Address], Exit | None]
    ) -> None:
        self._survey = survey
        self._config = config
        self._me = me
        self._host = host
        self._exit_of = exit_of
        node = survey.nodes.get(me)
        self._own_pods = Membership(node.pod_cidrs if node else ())
        self._own_addresses = frozenset((*node.addresses, *node.internal_ips) if node else ())

    def is_local(self, pod: PodAddress) -> bool:
        """Whether the pod runs here; where its slice does not tell, this node's pod networks do."""
        return pod.node == self._me if pod.node else pod.address in self._own_pods

    def _steers(self, *, local: bool) -> bool:
        """Whether this node steers the traffic of such pods."""
        return local or not self._config.egress.local_endpoints_only

    def _steers_any(self, service: EgressService) -> bool:
        return any(self._steers(local=self.is_local(pod)) for pod in service.pods)

    def way(self, service: EgressService) -> Way:
        if obstacle := service.obstacle or self._exit_obstacle(service):
            return obstacle
        assert service.gateway
        node = service.gateway.node
        if node.name == self._me or not self._steers_any(service):
            return None
        candidates = [a for a in node.internal_ips if a.version == service.family]
        if not candidates:
            detail = f"gateway {node.name} has no IPv{service.family} InternalIP"
            return Obstacle(reason=Reason.NO_INTERNAL_IP, detail=detail)
        for address in candidates:
            if address in self._host.on_link:
                return NextHop(gateway=address, interface=self._host.interfaces[address])
        address = candidates[0]
        if address in self._host.interfaces:
            detail = f"gateway {node.name} ({address}) is behind a router; it must be a neighbour of this node"
            return Obstacle(reason=Reason.OFF_LINK, detail=detail)
        return Obstacle(reason=Reason.NO_ROUTE, detail=f"this node has no route to gateway {node.name} ({address})")

    def holder(self, service: EgressService) -> NodeName:
        """What the service's slot belongs to: its gateway, or here on the gateway the address' own way out."""
        exit_ = self._exit(service) if _gateway(service) == self._me else None
        return exit_.holder if exit_ else _gateway(service)

    def _exit_obstacle(self, service: EgressService) -> Obstacle | None:
        exit_ = self._exit(service) if _gateway(service) == self._me else None
        return Obstacle(reason=Reason.NO_EXIT, detail=exit_.obstacle) if exit_ and exit_.obstacle else None

    def _exit(self, service: EgressService) -> Exit | None:
        return self._exit_of(service.source) if service.source else None

    def needs_slot(self, service: EgressService, way: Way) -> bool:
        """Marks are for the pods that this node steers, and for those that it is the gateway of."""
        if isinstance(way, Obstacle) or not service.pods:
            return False
        return _gateway(service) == self._me or self._steers_any(service)

    def treat(
        self, service: EgressService, way: Way, granted: Mapping[NodeName, Slot], key: str, *, local: bool
    ) -> EgressPod | None:
        """How the Service's pods are treated that run here (`local`), or elsewhere. None: their traffic is left alone,
        as `when_unavailable = "allow"` asks."""
        steers = self._steers(local=local)
        if isinstance(way, Obstacle):
            if self._config.egress.when_unavailable == "allow":
                return None
            treatment = Treatment.HOLD if steers else Treatment.ELSEWHERE
            return EgressPod(treatment=treatment, filter=key, local=local)
        if _gateway(service) == self._me:
            slot, source = granted[self.holder(service)], service.source
            return EgressPod(treatment=Treatment.SNAT, slot=slot, source=source, filter=key, local=local)
        if steers:
            slot = granted[_gateway(service)]
            return EgressPod(treatment=Treatment.STEER, slot=slot, filter=key, local=local)
        return EgressPod(treatment=Treatment.ELSEWHERE, filter=key, local=local)

    def next_hops(
        self,
        pods: Mapping[Address, EgressPod],
        granted: Mapping[NodeName, Slot],
        ways: Mapping[tuple[ObjectRef, Family], Way],
    ) -> dict[tuple[Slot, Family], NextHop]:
        used = {(pod.slot, address.version) for address, pod in pods.items() if pod.treatment is Treatment.STEER}
        hops: dict[tuple[Slot, Family], NextHop] = {}
        for service in self._survey.services:
            way = ways[service.key]
            if isinstance(way, NextHop) and (granted.get(_gateway(service)), service.family) in used:
                hops[granted[_gateway(service)], service.family] = way
        return hops

    def firewall(
        self,
        pods: Mapping[Address, EgressPod],
        filters: Mapping[str, DestinationFilter],
        granted: Mapping[NodeName, Slot],
        hops: Mapping[tuple[Slot, Family], NextHop],
    ) -> Firewall:
        used_filters = {pod.filter for pod in pods.values()}
        used_slots = {pod.slot for pod in pods.values()}
        networks = self._survey.networks
        return Firewall(
            mark_mask=self._config.firewall.mark_mask,
            pods=pods,
            gateways={slot: name for name, slot in granted.items() if slot in used_slots},
            sources=frozenset(pod.source for pod in pods.values() if pod.source),
            next_hops=frozenset(hop.gateway for hop in hops.values() if hop.gateway),
            inside=networks.inside,
            served=self._survey.served,
            filters={key: value for key, value in filters.items() if key in used_filters},
            pod_networks=networks.pods,
            node_interfaces=self._node_interfaces(),
            node_addresses=self._own_addresses,
            hold="drop" if self._config.egress.when_unavailable == "drop" else "reject",
            source_ports=self._config.egress.source_ports,
            drop_invalid_input=self._config.host.drop_invalid_input,
        )

    def _node_interfaces(self) -> frozenset[str]:
        return frozenset(name for name in self._peer_interfaces() if _PLAIN_INTERFACE.fullmatch(name))

    def _peer_interfaces(self) -> frozenset[str]:
        interfaces = self._host.interfaces
        return frozenset(interfaces[a] for a in lookups(self._survey, self._me) if a in interfaces)

    def sysctls(self) -> dict[str, str]:
        """Loose reverse-path filtering on the interfaces that steered traffic and its answers enter, where it is strict
        now: both come by another way than the kernel would take back. The larger of `all` and the interface's own value
        counts (ip-sysctl, rp_filter), so 2 on the interface loosens it; what is off stays off."""
        if self._config.host.rp_filter != "loose":
            return {}
        rp_filter = self._host.rp_filter
        return {
            f"net/ipv4/conf/{name}/rp_filter": "2"
            for name in self._node_interfaces()
            if max(rp_filter.get("all", 0), rp_filter.get(name, 0)) == 1
        }

    def problems(self) -> tuple[str, ...]:
        found = [
            f"interface {name!r} cannot be named in the packet filter, so traffic that enters there is not checked for "
            "pods of other nodes; rename it with letters, digits and . _ @ + - only"
            for name in sorted(self._peer_interfaces() - self._node_interfaces())
        ]
        return tuple(found)


def _gateway(service: EgressService) -> NodeName:
    assert service.gateway, "only asked about services without an obstacle"
    return service.gateway.node.name


def _no_slot(service: EgressService, config: Config) -> Obstacle:
    detail = (
        f"no mark is left for gateway {_gateway(service)}: "
        f"all {slots.count(config.firewall.mark_mask)} values under firewall.mark_mask are taken"
    )
    return Obstacle(reason=Reason.NO_SLOT, detail=detail)


def _without_egress(config: Config) -> Firewall | None:
    if not config.host.drop_invalid_input:
        return None
    return Firewall(mark_mask=config.firewall.mark_mask, drop_invalid_input=True)


def _rules(hops: Mapping[tuple[Slot, Family], NextHop], config: Config) -> Iterator[Rule]:
    mask = config.firewall.mark_mask
    for slot, family in hops:
        yield Rule(
            family=family,
            priority=config.firewall.rule_priority,
            table=config.firewall.route_table_base + slot,
            mark=Firewall(mark_mask=mask).mark(slot),
            mask=mask,
        )


def _routes(hops: Mapping[tuple[Slot, Family], NextHop], table_base: int) -> Iterator[Route]:
    for (slot, family), hop in hops.items():
        table, everywhere = table_base + slot, ip_network(DEFAULT[family])
        yield Route(table=table, destination=everywhere, metric=DEFAULT_METRIC[family], next_hops=(hop,))
        yield Route(table=table, destination=everywhere, type=RouteType.UNREACHABLE, metric=UNREACHABLE_METRIC)
