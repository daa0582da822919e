"""Where a packet goes: whether such a destination counts as outside, and why not when not."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from metaleg_node.core.cluster_networks import NEVER_EGRESS
from metaleg_node.core.egress.survey import EgressService
from metaleg_node.core.explain.answer import Step
from metaleg_node.core.explain.situation import Situation
from metaleg_node.core.explain.targets import Destination
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Service
from metaleg_node.core.networks import Membership


def why_it_stays(to: Destination | None, service: EgressService, situation: Situation) -> str:
    """Why the destination is none that counts; empty if it does, or if any is meant."""
    if to is None:
        return ""
    if inside := _why_inside(to, situation):
        return inside
    filter_, address = service.filter, to.address
    if address in Membership(filter_.exclude):
        return f"{address} is excluded by the annotation metaleg.de/exclude-cidrs of {service.service.ref}"
    if filter_.only and address not in Membership(filter_.only):
        return f"{address} is not in the annotation metaleg.de/only-cidrs of {service.service.ref}"
    return ""


def _why_inside(to: Destination, situation: Situation) -> str:
    address, networks = to.address, situation.survey.networks
    if of_service := _of_service(to, situation.cluster.services):
        return of_service
    kinds = (
        (frozenset(map(ip_network, networks.node_addresses)), "is a node's address"),
        (networks.pods, "is in a pod network"),
        (NEVER_EGRESS, "is no address of a host outside (loopback, link-local, multicast)"),
        (networks.cluster, "is in a Service network"),
        (networks.inside, "is in egress.exclude_cidrs"),
    )
    return next((f"{address} {what}" for some, what in kinds if address in Membership(some)), "")


def _of_service(to: Destination, services: Iterable[Service]) -> str:
    for service in services:
        served = {(port.protocol.lower(), port.port) for port in service.ports}
        if to.address in service.ingress and (not to.port or (to.protocol, to.port) in served):
            return f"{to.address} is the LoadBalancer address of {service.ref}, which kube-proxy leads to a pod"
        if to.address in service.cluster_ips:
            return f"{to.address} is the ClusterIP of {service.ref}"
    return ""


def step(to: Destination | None, service: EgressService, situation: Situation, *, asked: bool) -> Step:
    """What the destination is; where this node is `asked`, with the rule, and whether the kernel sees it so."""
    stays = why_it_stays(to, service, situation)
    text = stays or (f"{to.address} is outside the cluster" if to else "any outside the cluster")
    if service.filter.key and not stays:
        text += f", and counts by the annotations of {service.service.ref}"
    if not asked:
        return Step(name="destination", text=text)
    want, key = situation.wanted(Egress), service.filter.key

    def same(have: Firewall) -> bool:
        egress = have.part(Egress)
        if egress.filters.get(key) != want.filters.get(key):
            return False
        if to is None:
            return egress.inside == want.inside
        return (to.address in Membership(egress.inside)) == (to.address in Membership(want.inside))

    rule = situation.kernel.locator.destination(to.address, key) if to else ""
    return Step(name="destination", text=text, rule=rule, kernel=situation.kernel.holds(same))
