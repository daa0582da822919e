"""What return paths cost: a thousand networks and sixteen BGP peers, beside the rules that one would write by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

from bench.cluster import OTHER_PODS
from bench.daemon import workspace
from bench.forwarding import Case, beside_first, from_pods, to_address
from bench.node import ADDRESS, nodes
from bench.results import Figure
from metaleg_node.configuration.config import Config, parse
from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.model import AddressPool, Advertisement, BGPPeer, ClusterState, Node, ObjectRef
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler

_NETWORKS, _PEERS = 1000, 16
_OURS = "metaleg-node, 1,000 networks"
_SYMMETRIC = "the same, answers by the peer of the request"
_AIMS = {"first apply": 200, "unchanged comparison": 20}
"""In milliseconds."""
_FIRST = int(IPv4Address("100.64.0.0"))


def measure(rounds: int) -> list[Figure]:
    """First apply and unchanged comparison, a loop of `ip rule add` doing the same, and packets per second."""
    with workspace() as directory:
        return [*_control(directory, rounds), *_forwarding(directory, rounds)]


def _control(directory: Path, rounds: int) -> Iterator[Figure]:
    first: list[float] = []
    again: list[float] = []
    reread: list[float] = []
    symmetric: list[tuple[float, float, float]] = []
    by_hand: list[float] = []
    batched: list[float] = []
    for _ in range(rounds):
        with nodes(["ours", "symmetric", "by-hand", "batched"], _PEERS) as spaces:
            with spaces["ours"].inside():
                took = _reconcile(directory)
            with spaces["symmetric"].inside():
                symmetric.append(_reconcile(directory, symmetric=True))
            first.append(took[0])
            again.append(took[1])
            reread.append(took[2])
            by_hand.append(_rule_by_rule(spaces["by-hand"]))
            batched.append(_in_one_batch(spaces["batched"]))
    for (name, aim), values in zip(_AIMS.items(), (first, again), strict=True):
        yield Figure(name=f"metaleg-node: {name}", unit="ms", values=tuple(values), at_most=aim)
    yield Figure(name="the same, with the packet filter read again", unit="ms", values=tuple(reread))
    for (name, aim), found in zip(_AIMS.items(), zip(*symmetric, strict=True), strict=False):
        yield Figure(name=f"{_SYMMETRIC}: {name}", unit="ms", values=found, at_most=aim)
    yield Figure(name="a loop of `ip rule add`", unit="ms", values=tuple(by_hand))
    yield Figure(name="one `ip -batch` of the same rules", unit="ms", values=tuple(batched))


def _forwarding(directory: Path, rounds: int) -> Iterator[Figure]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    case = Case(
        layout="", kind="", packets=from_pods(OTHER_PODS), answers=to_address(IPv4Address(ADDRESS), share=10_000)
    )
    with nodes(["none", "none-again", "paths", "symmetric", "rules"], _PEERS) as spaces:
        with spaces["paths"].inside():
            _reconcile(directory)
        with spaces["symmetric"].inside():
            _reconcile(directory, symmetric=True)
        _in_one_batch(spaces["rules"])
        titles = (
            "no return path",
            "the same node a second time (the method's error)",
            _OURS,
            _SYMMETRIC,
            "1,000 rules `from NETWORK`",
        )
        yield from beside_first(dict(zip(titles, spaces.values(), strict=True)), case, rounds, aim=_OURS)


def _reconcile(directory: Path, *, symmetric: bool = False) -> tuple[float, float, float]:
    """Milliseconds in this namespace of a first apply and of comparisons that find nothing to do: an ordinary one, and
    one as at reconcile.interval, which does not rely on what is known of the packet filter."""
    cluster = _cluster()
    with Machine(directory) as machine:
        reconciler = Reconciler(machine, _config(symmetric=symmetric))
        started = time.monotonic()
        plan = reconciler.plan(cluster)
        assert plan.desired.state.firewall
        assert [len(path.networks) for path in plan.desired.state.firewall.part(ReturnPaths).paths.values()] == [
            _NETWORKS
        ]
        outcome = reconciler.apply(plan)
        applied = time.monotonic()
        assert outcome.ok, outcome.problems
        assert not reconciler.plan(cluster).steps
        compared = time.monotonic()
        machine.packet_filter.forget()
        assert not reconciler.plan(cluster).steps
        times = (started, applied, compared, time.monotonic())
        return (times[1] - times[0]) * 1000, (times[2] - times[1]) * 1000, (times[3] - times[2]) * 1000


def _config(*, symmetric: bool) -> Config:
    bgp = f"return_path.bgp = {{ enabled = true, symmetric = {str(symmetric).lower()} }}"
    return parse(f"node.name = 'node1'\negress.enabled = false\n{bgp}\n", file="bench")


def _networks() -> list[str]:
    """No two of them are neighbours, so that each stays a network of its own."""
    return [str(ip_network((_FIRST + 64 * number, 28))) for number in range(_NETWORKS)]


def _cluster() -> ClusterState:
    ranges = tuple((n[0], n[-1]) for n in map(ip_network, _networks()))
    peers = [
        BGPPeer(
            ref=ObjectRef(kind="BGPPeer", namespace="metallb-system", name=f"p{number}"),
            labels={},
            address=ip_address(f"192.168.10.{11 + number}"),
            node_selectors=(),
        )
        for number in range(1, _PEERS + 1)
    ]
    node = Node(
        ref=ObjectRef(kind="Node", name="node1"),
        labels={},
        internal_ips=(ip_address(ADDRESS),),
        addresses=(ip_address(ADDRESS),),
        pod_cidrs=(ip_network("10.244.0.0/15"),),
        ready=True,
    )
    pool = AddressPool(
        ref=ObjectRef(kind="IPAddressPool", namespace="metallb-system", name="all"), labels={}, ranges=ranges
    )
    advertisement = Advertisement(
        ref=ObjectRef(kind="BGPAdvertisement", namespace="metallb-system", name="all"),
        pools=(),
        pool_selectors=(),
    )
    return ClusterState(nodes=(node,), pools=(pool,), advertisements=(advertisement,), peers=tuple(peers))


def _rule_by_rule(node: Namespace) -> float:
    started = time.monotonic()
    for network in _networks():
        node.run("ip", "rule", "add", "from", network, "lookup", "20", "priority", "20")
    return (time.monotonic() - started) * 1000


def _in_one_batch(node: Namespace) -> float:
    started = time.monotonic()
    node.ip(f"rule add from {network} lookup 20 priority 20" for network in _networks())
    return (time.monotonic() - started) * 1000
