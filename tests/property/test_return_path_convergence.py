"""Return paths and egress together: from any of some states to any other, cut anywhere, the kernel ends as wanted, and
no packet is ever marked for a path without a rule and a route for its mark."""

from __future__ import annotations

import dataclasses
import itertools
from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from metaleg_node.core import assembly as desired
from metaleg_node.core.compare import diff
from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.model import Host, Link
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.return_path import node as return_path
from tests.fake_kernel import FakeKernel, holds
from tests.firewalls import flat
from tests.unit.builders import config
from tests.unit.test_pools import BGP
from tests.unit.test_return_path import ANNOUNCED_HERE, HERE, L2, NEAR, PEERING, decide

SECOND = """
[[return_path.l2]]
name = "two"
interface = "eth2"
gateways = ["10.1.0.1", "10.1.0.2"]
cidrs = ["192.0.2.128/25", "203.0.113.0/24"]
rp_filter = "off"
"""
RP_FILTER = {"all": 1, "default": 1, "eth0": 1, "eth1": 0, "eth2": 1}
HOSTS: dict[str, Host] = {
    "all up": HERE,
    "eth1 missing": dataclasses.replace(HERE, links={"eth2": Link(up=True, has_ipv4=True)}),
    "eth2 down": dataclasses.replace(HERE, links={**HERE.links, "eth2": Link(up=False, has_ipv4=True)}),
    "no IPv6 on eth1": dataclasses.replace(
        HERE, links={**HERE.links, "eth1": Link(up=True, has_ipv4=True, takes_ipv6=False)}
    ),
    "no peer is near": dataclasses.replace(HERE, on_link=frozenset()),
    "an address in a path's network": dataclasses.replace(
        HERE, connected=frozenset({ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")})
    ),
}
CONFIGURATIONS = [
    "",
    L2,
    SECOND + L2,
    L2 + BGP,
    L2 + SECOND + BGP,
    BGP + "rule_fwmark = 5\n",
    L2 + "[egress]\nenabled = false\n",
    # Networks that several want for their own.
    NEAR,
    NEAR + L2 + BGP,
    L2.replace(', "fd01::1"', "") + NEAR,
    BGP + 'destination = "10.244.0.0/16"\n',
    BGP + 'destination = "10.0.0.0/24"\n' + NEAR,
    L2.replace("192.0.2.0/24", "10.244.0.0/16") + SECOND,
    L2.replace("192.0.2.0/24", '0.0.0.0/1", "128.0.0.0/1'),
]
STATES = {
    "both": dataclasses.replace(
        PEERING, **{f: getattr(ANNOUNCED_HERE, f) for f in ("services", "endpoint_slices", "announcements", "nodes")}
    ),
    "egress": ANNOUNCED_HERE,
    "pools": PEERING,
}
SYSCTLS = {f"net/ipv4/conf/{name}/rp_filter": str(value) for name, value in RP_FILTER.items()}

KNOBS = st.tuples(st.sampled_from(CONFIGURATIONS), st.sampled_from(sorted(STATES)), st.sampled_from(sorted(HOSTS)))


def wanted(kernel: FakeKernel, knobs: tuple[str, str, str]) -> desired.Desired:
    """What the daemon decides, which reads back from the kernel who has which slot."""
    text, state, host = knobs
    holders = kernel.firewall.holders if kernel.firewall else {}
    held = {slot: str(holder) for slot, holder in holders.items()}
    return decide(text, STATES[state], dataclasses.replace(HOSTS[host], rp_filter=RP_FILTER), held)


def assert_keys_are_unique(found: desired.Desired, text: str) -> None:
    """The kernel knows a route by its key: of two with one key each reconcile would write one over the other. Paths
    settle among themselves who has which; none loses a route unasked."""
    routes = found.state.routing.routes
    assert len({route.key for route in routes}) == len(routes)
    for report in found.paths:
        assert routes.issuperset(return_path.routes(report, config(text)))


def plan(kernel: FakeKernel, after: NodeState) -> tuple[diff.Step, ...]:
    return diff.steps(kernel.observe(after), after, why=lambda _: "")


def marked_without_way(kernel: FakeKernel) -> list[str]:
    found = []
    wall = kernel.firewall
    for slot, path in wall.part(ReturnPaths).paths.items() if wall else ():
        for version in {network.version for network in path.networks}:
            assert wall
            rules = [r for r in kernel.rules if (r.family, r.mark) == (version, wall.mark(slot))]
            tables = {r.table for r in kernel.routes if r.destination.version == version}
            if not any(rule.table in tables for rule in rules):
                found.append(f"{path.holder} IPv{version}")
    return found


@given(steps=st.lists(KNOBS, min_size=1, max_size=4), data=st.data())
def test_any_walk_ends_where_it_should_and_no_mark_is_without_a_way(
    steps: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    kernel = FakeKernel(NodeState(), sysctls=SYSCTLS)
    for knobs in steps:
        after = wanted(kernel, knobs)
        assert_keys_are_unique(after, knobs[0])
        planned = plan(kernel, after.state)
        cut = data.draw(st.integers(0, len(planned)), label="steps done before the kill")
        for step in planned[:cut]:
            kernel.run([step])
            assert marked_without_way(kernel) == []
        after = wanted(kernel, knobs)
        for step in plan(kernel, after.state):
            kernel.run([step])
            assert marked_without_way(kernel) == []
        assert holds(kernel, after.state)
        assert plan(kernel, wanted(kernel, knobs).state) == ()
    for step in plan(kernel, NodeState()):
        kernel.run([step])
    assert holds(kernel, NodeState())
    assert kernel.variables == SYSCTLS


def test_slots_of_paths_and_gateways_never_meet() -> None:
    for knobs in itertools.product(CONFIGURATIONS, STATES, HOSTS):
        wall = wanted(FakeKernel(NodeState()), knobs).state.firewall
        assert not wall or flat(wall).paths.keys() & flat(wall).gateways.keys() == set()


def test_no_decision_has_two_routes_of_one_key() -> None:
    for knobs in itertools.product(CONFIGURATIONS, STATES, HOSTS):
        assert_keys_are_unique(wanted(FakeKernel(NodeState()), knobs), knobs[0])
