"""Which connections the conntrack table remembers in a way that contradicts the firewall.

The kernel decides about translation at a connection's first packet and never again (nf_nat). When a pod's treatment
changes, the entries of its connections must go, so that their next packet is decided anew; nobody else's may.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from metaleg_node.core.firewall.egress import Egress, Treatment
from metaleg_node.core.firewall.external_ip import VirtualServer
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Address, DestinationFilter, Flow
from metaleg_node.core.networks import Membership

LONG_LIVED = frozenset({"tcp", "sctp", "dccp"})
"""Connections that break when their source changes midway; all others are moved at once."""


def stale(
    flows: Iterable[Flow], firewall: Firewall, local: frozenset[Address], servers: Collection[VirtualServer] = ()
) -> Iterator[tuple[Flow, str]]:
    """The entries to delete, each with the reason. `local` are this node's addresses, which are never outside;
    `servers` lead elsewhere now. An entry does not tell whether it went by a former ClusterIP, since IPVS puts the
    endpoint in its place."""
    egress = firewall.part(Egress)
    inside = Membership(egress.inside)
    filters = {key: _Filter(value) for key, value in egress.filters.items()}
    for flow in flows:
        if servers and flow.protocol not in LONG_LIVED and _server(flow) in servers:
            yield flow, "its destination leads elsewhere now"
            continue
        destination = flow.reply_source
        if destination in egress.sources and destination == flow.destination and destination not in local:
            yield flow, "an answer that came before this gateway knew the connection"
            continue
        pod = egress.pods.get(flow.source)
        leaves = destination not in inside and destination not in local
        if leaves and pod and pod.filter in filters:
            leaves = filters[pod.filter].counts(destination)
        if reason := _why_stale(flow, egress, leaves=leaves):
            yield flow, reason


def _server(flow: Flow) -> VirtualServer:
    port = int(dict(flow.ports).get("dport", "0"))
    return VirtualServer(address=flow.destination, protocol=flow.protocol.upper(), port=port)


def concerned(firewall: Firewall) -> frozenset[Address]:
    """`stale` finds fault only with connections that begin at or go to one of these, and with those that are ours."""
    egress = firewall.part(Egress)
    return egress.sources.union(egress.pods)


def _why_stale(flow: Flow, egress: Egress, *, leaves: bool) -> str:
    pod = egress.pods.get(flow.source)
    if pod is None or not leaves:
        return "no longer egress traffic" if flow.ours else ""
    if not flow.ours:
        return "" if flow.protocol in LONG_LIVED else "began before the Service opted in"
    # Should this node become the gateway again, what the other one saw meanwhile would be unknown to such an entry: the
    # kernel takes an acknowledgement of that for invalid (nf_conntrack_proto_tcp).
    if pod.treatment in (Treatment.STEER, Treatment.ELSEWHERE) and flow.reply_destination != flow.source:
        return "was translated here, but now belongs to another gateway"
    if pod.treatment is Treatment.SNAT and flow.reply_destination != pod.source:
        return f"must leave as {pod.source}, not as {flow.reply_destination}"
    return ""


class _Filter:
    """A Service's destination annotations, ready for many questions."""

    def __init__(self, destinations: DestinationFilter) -> None:
        self._exclude = Membership(destinations.exclude)
        self._only = Membership(destinations.only) if destinations.only else None

    def counts(self, destination: Address) -> bool:
        if destination in self._exclude:
            return False
        return self._only is None or destination in self._only
