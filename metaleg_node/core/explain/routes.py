"""The routes that marked packets take, beside what the kernel says of them; and what explanations have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from metaleg_node.core.explain.answer import Held, Step
from metaleg_node.core.explain.situation import Lookup, Situation, Way
from metaleg_node.core.explain.targets import Destination
from metaleg_node.core.model import Address, Family, NextHop, ObjectRef, Route, RouteType, Rule, Slot
from metaleg_node.core.problems import Code, Problem

_HOST = (Code.FORWARDING_OFF, Code.RP_FILTER, Code.INTERFACE_NAME)
_LOOK_AT = {
    Code.NO_ADDRESS: "kubectl -n {namespace} describe service {name}",
    Code.BAD_ADDRESS: "kubectl -n {metallb} get ipaddresspools",
    Code.NO_GATEWAY: "kubectl -n {metallb} get servicel2statuses,servicebgpstatuses",
    Code.SEVERAL_GATEWAYS: "kubectl -n {metallb} get servicebgpstatuses,bgpadvertisements",
    Code.UNKNOWN_NODE: "kubectl get nodes",
    Code.NO_INTERNAL_IP: "kubectl get nodes -o wide",
    Code.OFF_LINK: "ip route",
    Code.NO_ROUTE: "ip route",
    Code.NO_POD_NETWORK: "ip route; ip -d link",
    Code.NO_EXIT: "metaleg-node status",
    Code.NO_SLOT: "metaleg-node status",
}


def look_at(code: Code, service: ObjectRef, situation: Situation) -> str:
    """A command that shows more about what is in the way of a Service; empty where the reason says it all."""
    metallb = situation.config.cluster.metallb_namespace
    return _LOOK_AT.get(code, "").format(metallb=metallb, namespace=service.namespace, name=service.name)


def host_problems(situation: Situation) -> tuple[Problem, ...]:
    """What this host lacks for what it has to do."""
    return tuple(problem for problem in situation.desired.problems if problem.code in _HOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A packet with the mark of a slot, to a destination or (None) to any. `source` is set for a pod's, which comes in
    from there; others are taken as sent by this host."""

    slot: Slot
    family: Family
    source: Address | None = None
    to: Destination | None


def routing(packet: Marked, situation: Situation) -> Iterator[Step]:
    """The rule and the route of its mark, and what the kernel answers for it. A slot without a rule is that of a
    gateway on itself: such packets go by the main table."""
    kernel = situation.kernel
    rule = _rule(packet, situation)
    leading = _leading(packet, rule, situation) if rule else []
    if rule:
        yield Step(name="rule", text=str(rule), kernel=kernel.has(rule))
        for route in leading:
            yield Step(name="route", text=f"{route}{_neighbours(route, situation)}", kernel=kernel.has(route))
    if packet.to:
        way = _way(packet, packet.to, situation)
        hops = [hop for route in leading for hop in route.next_hops]
        same = Held.SAME if rule and _is_one_of(way, rule.table, hops) else Held.DIFFERS
        yield Step(name="way", text=f"the kernel says: {way}", kernel=same if rule else None)


def hop_problems(packet: Marked, situation: Situation) -> Iterator[Problem]:
    """Next hops that do not answer, and where there is no way at all."""
    rule, text = _rule(packet, situation), ""
    if rule:
        hops = {hop for route in _leading(packet, rule, situation) for hop in route.next_hops}
        dead = sorted(str(hop.gateway) for hop in hops if situation.kernel.neighbours.get(hop) == "failed")
        text = f"{', '.join(dead)} does not answer (neighbour failed)" if dead else ""
    elif packet.to and (refusal := _way(packet, packet.to, situation).refusal):
        text = f"the kernel sends nothing to {packet.to.address}: {refusal}"
    if text:
        yield Problem(code=Code.NO_ROUTE, subject="host", text=text)


def _rule(packet: Marked, situation: Situation) -> Rule | None:
    mark = int(situation.mark(packet.slot), 16)
    rules = situation.desired.state.routing.rules
    return next((r for r in rules if r.mark == mark and r.family == packet.family and not r.source), None)


def _leading(packet: Marked, rule: Rule, situation: Situation) -> list[Route]:
    """The route of the rule's table that takes the destination; without one that which takes any."""
    to = packet.to
    found = [
        route
        for route in situation.desired.state.routing.routes
        if route.table == rule.table
        and route.destination.version == rule.family
        and route.type is RouteType.UNICAST
        and (to.address in route.destination if to else not route.destination.prefixlen)
    ]
    return sorted(found, key=lambda route: (-route.destination.prefixlen, route.metric))[:1]


def _neighbours(route: Route, situation: Situation) -> str:
    states = situation.kernel.neighbours
    told = [f"neighbour {states[hop]}" for hop in route.next_hops if hop in states]
    return f" ({', '.join(told)})" if told else ""


def _way(packet: Marked, to: Destination, situation: Situation) -> Way:
    mark = int(situation.mark(packet.slot), 16)
    back = situation.kernel.way(Lookup(destination=packet.source)).hop if packet.source else None
    if back is None:
        return situation.kernel.way(Lookup(destination=to.address, mark=mark))
    return situation.kernel.way(
        Lookup(destination=to.address, source=packet.source, interface=back.interface, mark=mark)
    )


def _is_one_of(way: Way, table: int, hops: list[NextHop]) -> bool:
    told = (way.hop.gateway, way.hop.interface) if way.hop else None
    return way.table == table and told in [(hop.gateway, hop.interface) for hop in hops]
