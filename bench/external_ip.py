"""What External-IP costs packets of pods that go elsewhere, with few LoadBalancer addresses and with many."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from bench.cluster import OTHER_PODS
from bench.forwarding import Case, beside_first, forget_connections, from_pods, to_address
from bench.node import ADDRESS, PODS, nodes
from bench.results import Figure
from bench.traffic import Sender
from metaleg_node.core.firewall.external_ip import ExternalIp, Target, VirtualServer
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.kernel.nftables.backend import Nftables
from metaleg_node.lab.namespaces import Namespace

_FIRST = IPv4Address("198.18.0.0")
_CLUSTER_IP = IPv4Address("10.96.0.0")
_CLIENTS = IPv4Network("10.244.0.0/15")
_LAYOUTS = {
    "no External-IP": 0,
    "10 addresses": 10,
    "10,000 addresses": 10_000,
    "no External-IP, a second time (the method's error)": 0,
}
_NEW = 3_200
"""Packets after conntrack has forgotten everything: most of them are the first of their connection."""


def measure(rounds: int) -> list[Figure]:
    """Packets of established connections, and the first packets of new ones."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    case = Case(
        layout="", kind="", packets=from_pods(OTHER_PODS), answers=to_address(IPv4Address(ADDRESS), share=10_000)
    )
    with nodes([f"external-{number}" for number in range(len(_LAYOUTS))], 1) as spaces:
        named = dict(zip(_LAYOUTS, spaces.values(), strict=True))
        for name, space in named.items():
            with space.inside():
                Nftables().put(_firewall(_LAYOUTS[name]))
        return [*beside_first(named, case, rounds), *_beginnings(named, case, rounds)]


def _firewall(addresses: int) -> Firewall | None:
    if not addresses:
        return None
    targets = {
        VirtualServer(address=_FIRST + number, protocol="TCP", port=80): Target(cluster_ip=_CLUSTER_IP + number)
        for number in range(addresses)
    }
    return Firewall(mark_mask=0x3F000000).having(ExternalIp(targets=targets, clients=frozenset({_CLIENTS})))


def _beginnings(spaces: Mapping[str, Namespace], case: Case, rounds: int) -> Iterator[Figure]:
    found: dict[str, list[float]] = {name: [] for name in spaces}
    for _ in range(rounds):
        for name, space in spaces.items():
            found[name].append(_beginning(space, case))
    for name, values in found.items():
        yield Figure(name=f"{name}: the first packets", unit="ns/packet", values=tuple(values))


def _beginning(node: Namespace, case: Case) -> float:
    with node.inside(), Sender(case.packets, PODS) as sender:
        bursts = []
        for _ in range(10):
            forget_connections()
            bursts.append(sender.send(_NEW))
        forget_connections()
    return statistics.median(bursts)
