"""ML-6xx: the way of egress packets."""

from __future__ import annotations

import http.client
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.egress.transport import Way
from metaleg_node.core.model import Address, NextHop, Node
from metaleg_node.core.problems import Code
from metaleg_node.doctor.diagnosis import Finding
from metaleg_node.doctor.facts import KUBE_PROXY_DEVICE, Facts, NotSeenError
from metaleg_node.kernel import arp, neighbour_solicitation

_GONE = frozenset({"failed", "incomplete"})
ANSWER_SECONDS = 0.3
"""How long answers to questions on a link are waited for."""
_HEALTH_SECONDS = 0.5
_MOST = 64
"""LoadBalancer addresses and nodes that are asked at most."""


def far_gateway(facts: Facts) -> Iterator[Finding]:
    """601"""
    for one in facts.situation.desired.services:
        if one.obstacle and one.obstacle.code in (Code.OFF_LINK, Code.NO_ROUTE, Code.NO_POD_NETWORK):
            yield Finding(
                seen=f"{one.service.service.ref} (IPv{one.service.family}): {one.obstacle.detail}",
                follows="Its pods here are refused, or as egress.when_unavailable says.",
                mend="let the CNI reach pods of other networks by a tunnel (VXLAN, Geneve, IPIP, GRE), which "
                "egress takes then; or give nodes that announce its address an InternalIP in this node's network: "
                "kubectl get nodes -o wide; or let MetalLB announce it from such nodes only (nodeSelectors of the "
                "L2Advertisement)",
            )


def silent_gateway(facts: Facts) -> Iterator[Finding]:
    """606"""
    used = _used(facts)
    for hop, state in facts.situation.kernel.neighbours.items():
        if state in _GONE and hop in used:
            yield Finding(
                seen=f"the gateway {hop.gateway} on {hop.interface} does not answer (neighbour {state}), for "
                f"{used[hop].service.service.ref}",
                follows="What its pods here send is lost until MetalLB moves the address.",
                mend=f"look at that node, and at the link: ip neighbour show {hop.gateway}; ping {hop.gateway}",
            )


def _used(facts: Facts) -> dict[NextHop, ServiceDecision]:
    return {one.way.hop: one for one in facts.situation.desired.services if isinstance(one.way, Way)}


def duplicates(facts: Facts) -> Iterator[Finding]:
    """607"""
    sources = {one.source for one in facts.situation.survey.services if one.source}
    interfaces, on_link = facts.machine.lookup(sources - facts.addresses)
    links: dict[tuple[str, int], list[Address]] = defaultdict(list)
    for address in sorted(on_link, key=lambda one: (one.version, int(one)))[:_MOST]:
        links[interfaces[address], address.version].append(address)
    with ThreadPoolExecutor(max_workers=16) as pool:
        answered = [*pool.map(_answering, links, links.values())]
    for (interface, version), found in zip(links, answered, strict=True):
        for address, hosts in found.items():
            if len(hosts) > 1:
                yield Finding(
                    seen=f"{' and '.join(sorted(hosts))} answer {_ASKED[version]} for {address} on {interface}",
                    follows="Answers from outside go now to one, now to the other: connections hang or break.",
                    mend="find the second one: kubectl get nodes, ip link; it may be a speaker that lost its leader "
                    "election, a node with the address on an interface, or a host outside the cluster",
                )


_ASKED = {4: "ARP", 6: "neighbour solicitations"}


def _answering(link: tuple[str, int], addresses: list[Address]) -> Mapping[Any, set[str]]:
    """Threads begin in the network namespace of the one that starts them."""
    asked: Any = arp if link[1] == 4 else neighbour_solicitation
    found: Mapping[Any, set[str]] = asked.answers(link[0], addresses, ANSWER_SECONDS)
    return found


def local_addresses(facts: Facts) -> Iterator[Finding]:
    """602"""
    of_proxy = facts.addresses_of(KUBE_PROXY_DEVICE)
    for one in facts.situation.survey.services:
        here = one.source in facts.addresses and one.source not in of_proxy
        if here and one.gateway and one.gateway.node.name != facts.me:
            yield Finding(
                seen=f"{one.source} of {one.service.ref} is an address of this host, and {one.gateway.node.name} "
                "announces it",
                follows="This host takes packets to it for its own, and answers for it: two hosts have it.",
                mend=f"ip address show to {one.source}; ip address delete {one.source}/32 dev INTERFACE",
            )


def nobody_serves(facts: Facts) -> Iterator[Finding]:
    """603"""
    for one in facts.situation.survey.services:
        if one.source and not one.pods:
            yield Finding(
                seen=f"{one.service.ref} has the label and the address {one.source}, and no pods with IPv{one.family}",
                follows="Nothing leaves with that address.",
                mend=f"kubectl -n {one.service.ref.namespace} get endpointslices -l "
                f"kubernetes.io/service-name={one.service.ref.name}; for the other family see its spec.ipFamilies",
            )


def nodes_without(facts: Facts) -> Iterator[Finding]:
    """604"""
    listen = facts.config.health.listen
    if listen is None or _is_loopback(listen[0]):
        raise NotSeenError(
            "whether other nodes run metaleg-node cannot be known: nobody but they can ask them (health.listen is on "
            "the loopback interface)"
        )
    with_pods = {pod.node for one in facts.situation.survey.services for pod in one.pods if pod.node} - {facts.me}
    nodes = [node for node in facts.cluster.nodes if node.name in with_pods and node.ready][:_MOST]
    with ThreadPoolExecutor(max_workers=16) as pool:
        answered = [*pool.map(lambda node: _answers(node, listen[1]), nodes)]
    for node in (node for node, answer in zip(nodes, answered, strict=True) if not answer):
        yield Finding(
            seen=f"node {node.name} has pods of labelled Services, and nothing of metaleg-node answers at port "
            f"{listen[1]} (health.listen) there",
            follows="If it runs no metaleg-node, its pods leave with the node's own address.",
            mend=f"on {node.name}: systemctl enable --now metaleg-node; or open that port between nodes",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _answers(node: Node, port: int) -> bool:
    return any(_is_healthy(address, port) for address in node.internal_ips)


def _is_healthy(address: Address, port: int) -> bool:
    """Any answer of HTTP will do: a node that is not ready runs it, too."""
    connection = http.client.HTTPConnection(str(address), port, timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse().read(64)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def gateway_will_move(facts: Facts) -> Iterator[Finding]:
    """605"""
    for one in facts.situation.survey.services:
        service, gateway = one.service, one.gateway
        if service.traffic_policy != "Local" or gateway is None:
            continue
        endpoints = [
            endpoint
            for endpoint_slice in facts.cluster.endpoint_slices
            if (endpoint_slice.ref.namespace, endpoint_slice.service) == (service.ref.namespace, service.ref.name)
            for endpoint in endpoint_slice.endpoints
        ]
        if not any(endpoint.ready and endpoint.node == gateway.node.name for endpoint in endpoints):
            yield Finding(
                seen=f"{service.ref} (IPv{one.family}) has externalTrafficPolicy Local, and its gateway "
                f"{gateway.node.name} has no endpoint of it that is ready",
                follows="MetalLB announces such an address only from a node with one: it is about to move, or the "
                "speaker there does not follow.",
                mend="wait a minute; then restart the speaker on that node",
            )
