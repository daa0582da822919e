"""LoadBalancer addresses that pods and this host reach by the Service's ClusterIP, where IPVS serves them.

kube-proxy in IPVS mode has each address that it serves on the interface kube-ipvs0, also where externalTrafficPolicy
Local leaves the address without an endpoint. The ClusterIP, which is there too, leads to all endpoints. In its other
modes no address is there: a translation to the ClusterIP would keep kube-proxy's own from being made, and cut the
address off.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from metaleg_node.configuration.config import Config, ExternalIpSettings
from metaleg_node.core.cluster_networks import ClusterNetworks
from metaleg_node.core.contribution import Contribution
from metaleg_node.core.firewall.external_ip import ExternalIp, Target, VirtualServer
from metaleg_node.core.model import (
    Address,
    ClusterState,
    Host,
    Network,
    Node,
    ObjectRef,
    Questions,
    Rejection,
    Service,
)
from metaleg_node.core.networks import Membership, merged
from metaleg_node.core.problems import Code, Problem

INTERFACE = "kube-ipvs0"
"""kube-proxy's defaultDummyDevice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalAddress:
    """One address of a Service. `sources` are the networks that may come to it, empty: all; `obstacle` says why it is
    left to kube-proxy."""

    service: ObjectRef
    address: Address
    cluster_ip: Address | None
    servers: tuple[VirtualServer, ...] = ()
    sources: frozenset[Network] = frozenset()
    obstacle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedAddresses:
    """What the cluster and the configuration ask for, the same on every node."""

    addresses: tuple[ExternalAddress, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """This node's part, and how each address stands here."""

    contribution: Contribution = field(default_factory=Contribution)
    addresses: tuple[ExternalAddress, ...] = ()


# --- what is asked for -----------------------------------------------------------------------------------------------


def read(cluster: ClusterState, config: Config) -> WantedAddresses:
    """The addresses of the Services that count. What two Services claim is left to kube-proxy, for which they collide
    as well."""
    settings = config.external_ip
    if not settings.enabled:
        return WantedAddresses()
    claims = _claims(cluster, settings)
    known = bool(cluster.service_cidrs or config.cluster.service_cidrs)
    ranges: set[frozenset[Network]] = set()
    found, rejections = [], []
    for service in sorted(cluster.services, key=lambda s: (s.created, s.ref)):
        if service.traffic_policy not in settings.traffic_policies:
            continue
        for address in _addresses(service, settings):
            one = _external(service, address)
            if not one.obstacle and address not in service.ingress and not known:
                one = replace(one, servers=(), obstacle=f"{address} may be any Service's own; {_SET_SERVICE_CIDRS}")
            if not one.obstacle and sum(map(len, ranges | {one.sources})) > config.egress.max_networks:
                one = replace(one, servers=(), obstacle=f"{address}: {_TOO_MANY}")
            ranges |= {one.sources} if one.servers else set()
            taken = [server for server in one.servers if len(claims[server]) > 1]
            if taken:
                reason = _collision(taken, claims[taken[0]], service.ref)
                rejections.append(Rejection(ref=service.ref, reason=reason))
            if one.obstacle and address not in service.proxied:
                rejections.append(Rejection(ref=service.ref, reason=f"External-IP: {one.obstacle}"))
            servers = tuple(server for server in one.servers if len(claims[server]) == 1)
            if taken and not servers:
                one = replace(one, obstacle="other Services claim it on the same ports")
            found.append(replace(one, servers=servers))
    return WantedAddresses(addresses=tuple(found), rejections=tuple(rejections))


_SET_SERVICE_CIDRS = "as no Service network is known, it is left alone; set cluster.service_cidrs"
_TOO_MANY = "with its loadBalancerSourceRanges there would be more networks than egress.max_networks; it is left alone"
_NAMED = 3


def _claims(cluster: ClusterState, settings: ExternalIpSettings) -> dict[VirtualServer, list[ObjectRef]]:
    """Who claims what, in order."""
    claims: dict[VirtualServer, list[ObjectRef]] = defaultdict(list)
    for service in sorted(cluster.services, key=lambda s: s.ref):
        for address in _addresses(service, settings):
            for server in _servers(service, address):
                claims[server].append(service.ref)
    return claims


def _addresses(service: Service, settings: ExternalIpSettings) -> Iterator[Address]:
    """Each once, although spec.externalIPs may repeat one of the load balancer."""
    own = service.ingress if service.type == "LoadBalancer" else ()
    more = service.external_ips if settings.external_ips and service.type != "ExternalName" else ()
    yield from dict.fromkeys((*own, *more))


def _servers(service: Service, address: Address) -> tuple[VirtualServer, ...]:
    if address in service.proxied:
        return ()
    ports = dict.fromkeys((port.protocol, port.port) for port in service.ports)
    return tuple(VirtualServer(address=address, protocol=protocol, port=port) for protocol, port in ports)


def _external(service: Service, address: Address) -> ExternalAddress:
    cluster_ip = next((a for a in service.cluster_ips if a.version == address.version), None)
    obstacle = ""
    if address in service.proxied:
        obstacle = f"{address} has the ipMode Proxy: who connects to it must come to the load balancer"
    elif service.source_ranges is None:
        obstacle = f"{address} is left alone, since spec.loadBalancerSourceRanges cannot be understood"
    elif cluster_ip is None:
        obstacle = f"{address} has no IPv{address.version} ClusterIP to lead to"
    sources = merged(net for net in service.source_ranges or () if net.version == address.version)
    return ExternalAddress(
        service=service.ref,
        address=address,
        cluster_ip=cluster_ip,
        servers=() if obstacle else _servers(service, address),
        # A list that lets everybody in is none.
        sources=frozenset() if any(not net.prefixlen for net in sources) else sources,
        obstacle=obstacle,
    )


def _collision(taken: Sequence[VirtualServer], claims: Sequence[ObjectRef], me: ObjectRef) -> str:
    """Why a Service has less than it asks for: the first of what others claim, and some of them."""
    more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
    others = [str(ref) for ref in claims[: _NAMED + 1] if ref != me][:_NAMED]
    rest = f" and {len(claims) - 1 - len(others)} more" if len(claims) - 1 > len(others) else ""
    return f"External-IP: {taken[0]}{more} is claimed by {', '.join(others)}{rest}, too; it is left to kube-proxy"


# --- this node's part ------------------------------------------------------------------------------------------------


def questions(wanted: WantedAddresses) -> Questions:
    """What IPVS serves here."""
    return Questions(addresses_of=frozenset({INTERFACE}) if wanted.addresses else frozenset())


def decide(
    wanted: WantedAddresses, settings: ExternalIpSettings, node: Node | None, host: Host, networks: ClusterNetworks
) -> Decided:
    """This node's part: the addresses that IPVS serves here, and serves at their ClusterIP. `node` is this one."""
    inside = Membership(networks.cluster)
    stolen = [one for one in wanted.addresses if not one.obstacle and one.address in inside]
    present = tuple(_here(one, host, inside) for one in wanted.addresses)
    targets: dict[VirtualServer, Target] = {}
    for one in present:
        if one.cluster_ip and not one.obstacle:
            allowed = Membership(one.sources)
            own = node.internal_ips if node else ()
            target = Target(
                cluster_ip=one.cluster_ip,
                sources=one.sources,
                # kube-proxy, too, knows a host by its node's address, whatever the source that it connects with.
                host=not one.sources or any(address in allowed for address in own),
            )
            targets.update(dict.fromkeys(one.servers, target))
    part = ExternalIp(targets=targets, clients=networks.pods, masquerade_mark=settings.masquerade_mark)
    contribution = Contribution(
        parts=(part,) if targets else (),
        rejections=(
            *wanted.rejections,
            *(Rejection(ref=one.service, reason=f"External-IP: {one.address} {_INSIDE}") for one in stolen),
        ),
        problems=(_NO_PODS,) if targets and not networks.pods else (),
    )
    return Decided(contribution=contribution, addresses=present)


_NO_PODS = Problem(
    code=Code.INCOMPLETE_STATE,
    subject="External-IP",
    text="no pod network is known, so nothing is done for pods; set cluster.pod_cidrs",
)


_INSIDE = "is a node's, a pod's or a Service's own, so nobody else's; it is left alone"


def _here(one: ExternalAddress, host: Host, inside: Membership) -> ExternalAddress:
    if not one.obstacle and one.address in inside:
        return replace(one, obstacle=f"{one.address} {_INSIDE}")
    served = host.addresses_of.get(INTERFACE)
    if one.obstacle or (served and one.address in served and one.cluster_ip in served):
        return one
    if served is None:
        return replace(one, obstacle=f"there is no {INTERFACE} here: kube-proxy does not serve by IPVS")
    missing = one.address if one.address not in served else one.cluster_ip
    return replace(one, obstacle=f"{missing} is not on {INTERFACE}: IPVS does not serve it here")
