"""ML-7xx: return paths and MetalLB's pools."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from metaleg_node.core.cluster_networks import cluster_networks
from metaleg_node.core.networks import Ranges, range_of
from metaleg_node.core.objects import metallb
from metaleg_node.core.return_path.wanted import PathKind
from metaleg_node.doctor.diagnosis import Finding
from metaleg_node.doctor.facts import Facts

_WITHOUT_ADDRESS = "has no IPv4 address"


def without_address(facts: Facts) -> Iterator[Finding]:
    """701"""
    for one in facts.situation.desired.paths:
        for problem in one.problems:
            if _WITHOUT_ADDRESS in problem.text:
                yield Finding(
                    seen=f"{problem.subject}: {problem.text}",
                    follows="Every request that comes in there is dropped.",
                    mend='rp_filter = "auto" for this path, which is the default; or an address for the interface',
                )


def no_interface(facts: Facts) -> Iterator[Finding]:
    """702"""
    for path in facts.config.return_path.l2:
        if path.interface not in facts.devices:
            yield Finding(
                seen=f"return path {path.name} is by {path.interface}, and there is no such interface",
                follows="The path does nothing: replies leave by the default route.",
                mend=f"make it before the service starts (systemd-networkd, ifupdown), or correct interface: "
                f"ip link add link eth0 name {path.interface} type vlan id 100",
            )


def pools(facts: Facts) -> Iterator[Finding]:
    """703"""
    state, _ = metallb.configuration(facts.cluster, facts.config)
    for one, other in combinations(state.pools, 2):
        if any(Ranges(one.ranges).meet(span) for span in other.ranges):
            yield Finding(
                seen=f"the pools {one.ref.name} and {other.ref.name} have addresses in common",
                follows="MetalLB refuses such a configuration, or gives an address away twice.",
                mend=f"kubectl -n {facts.config.cluster.metallb_namespace} edit ipaddresspool {other.ref.name}",
            )
    networks = cluster_networks(facts.cluster, facts.config)
    services = (net for cidr in facts.cluster.service_cidrs for net in cidr.networks)
    inside = Ranges(range_of(net) for net in (*networks.hosts, *services, *facts.config.cluster.service_cidrs))
    for pool in state.pools:
        meeting = [span for span in pool.ranges if inside.meet(span)]
        if meeting:
            yield Finding(
                seen=f"the pool {pool.ref.name} has addresses of pods, nodes or Services, in {meeting[0][0]}-"
                f"{meeting[0][1]}",
                follows="Whoever gets such an address cuts its first owner off.",
                mend=f"kubectl -n {facts.config.cluster.metallb_namespace} edit ipaddresspool {pool.ref.name}",
            )


def multipath(facts: Facts) -> Iterator[Finding]:
    """704"""
    several = any(
        one.path.wanted.kind is PathKind.BGP and len(one.path.hops.get(4, ())) > 1
        for one in facts.situation.desired.paths
    )
    wanted = {
        "fib_multipath_hash_policy": "All packets between two hosts take the same router: the peers' weights count for "
        "few clients only.",
        "fib_multipath_use_neigh": "A router that does not answer keeps its share of the replies until BGP notices.",
    }
    for name, follows in wanted.items():
        if several and facts.sysctl(f"net/ipv4/{name}") == "0":
            yield Finding(
                seen=f"this node has several BGP peers, and net.ipv4.{name} is 0",
                follows=follows,
                mend=f"sysctl -w net.ipv4.{name}=1, and in /etc/sysctl.d",
            )
