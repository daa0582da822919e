"""Who has which slot survives the loss of the packet filter: rules and routes tell it, on the real kernel."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import ClusterState
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler
from tests.netns import Netns
from tests.unit.builders import announced, cluster, config, endpoint, endpoint_slice, node, service
from tests.unit.test_pools import advertise, peer, pool
from tests.unit.test_pools import cluster as metallb

HERE = '[node]\nname = "a"\n'
BGP = "[return_path.bgp]\nenabled = true\n"


def path(name: str, router: str, network: str) -> str:
    return f'[[return_path.l2]]\nname = "{name}"\ninterface = "v0"\ngateways = ["{router}"]\ncidrs = ["{network}"]\n'


FIRST, SECOND = path("first", "10.9.0.11", "198.51.100.0/24"), path("second", "10.9.0.12", "203.0.113.0/24")
NODES = [node("a", ips=["10.9.0.1"]), node("b", ips=["10.9.0.2"])]
PODS = [endpoint_slice(endpoint("10.244.1.5", node="a"))]


def state(*, by: str, address: str) -> ClusterState:
    """A Service with a pod here, and a BGP peer with a pool."""
    egress = cluster(services=[service(ingress=[address])], slices=PODS, announcements=[announced(by)], nodes=NODES)
    peering = metallb(pool("p", "192.0.2.0/25"), advertise(), peer("r", "10.9.0.13"))
    return dataclasses.replace(egress, pools=peering.pools, advertisements=peering.advertisements, peers=peering.peers)


CASES = {
    "a gateway": (state(by="b", address="192.0.2.200"), "b"),
    "an exit": (state(by="a", address="203.0.113.7"), "egress:second"),
}


@pytest.mark.parametrize("name", CASES)
def test_holders_keep_their_slots_when_the_ruleset_is_flushed(inside: Netns, tmp_path: Path, name: str) -> None:
    known, third = CASES[name]
    # The first path takes the first slot, and then is gone: none of the others has the slot that it would get afresh.
    with Machine(tmp_path) as machine:
        for text in (HERE + BGP + FIRST + SECOND, HERE + BGP + SECOND):
            reconciler = Reconciler(machine, config(text))
            assert reconciler.apply(reconciler.plan(known)).ok
    before = slots(tmp_path)
    assert sorted(before.values()) == sorted(["path:second", "path::bgp", third])
    assert 1 not in before
    inside.run("nft", "flush", "ruleset")
    with Machine(tmp_path) as machine:
        again = Reconciler(machine, config(HERE + BGP + SECOND))
        plan = again.plan(known)
        assert not [change for change in plan.changes if change.kind in ("route", "rule")]
        assert again.apply(plan).ok
        assert not again.plan(known).changes
    assert slots(tmp_path) == before


def slots(directory: Path) -> dict[int, str]:
    """Who has which slot in the kernel."""
    with Machine(directory) as machine:
        firewall = machine.packet_filter.observe().firewall
    assert isinstance(firewall, Firewall)
    return {slot: str(holder) for slot, holder in firewall.holders.items()}
