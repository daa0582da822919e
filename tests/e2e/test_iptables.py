"""A cluster whose nodes have iptables as the packet filter: what everybody notices, and the change to nftables and back
under load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metaleg_node.core.model import FAMILIES
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import NODES
from tests.e2e.scenario import (
    NODE1,
    NODE2,
    NODE3,
    PROTOCOLS,
    SETTLED,
    egress_service,
    expect,
    expect_no_way_out,
    ours,
    sources,
    texts,
)
from tests.e2e.test_matrix import inner_traffic
from tests.e2e.test_no_wrong_source import judged, reconfigured
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions, PodTransport

IPTABLES = {"firewall": {"backend": "iptables"}}
KIND = LabOptions(flavour=Flavour.IPTABLES_LEGACY, transport=PodTransport.VXLAN, rp_filter=1, forward_drop=True)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(KIND) as lab:
        lab.set_services(egress_service(lab))
        yield lab


def held(lab: Lab) -> dict[str, tuple[bool, bool]]:
    """Of each node whether nftables holds anything of ours, and whether iptables does."""
    found = {}
    for node in NODES:
        saved = "".join(lab.namespace(node).run(f"{p}-legacy-save") for p in ("iptables", "ip6tables"))
        sets = lab.namespace(node).run("ipset", "list", "-n")
        found[node.name] = (bool(ours(lab, node)["nftables"]), "METALEG-NODE" in saved or "metaleg" in sets)
    return found


def test_pods_leave_with_the_address_and_all_else_is_as_before(lab: Lab) -> None:
    web = lab.services["web"]
    before = dict(inner_traffic(lab))
    lab.start_daemons(IPTABLES)
    for pod in web.pods:
        assert sources(lab, pod) == texts(web.addresses)
    for node in (NODE1, NODE2, NODE3):
        assert sources(lab, lab.pod(node, 2)) == texts(node.addresses)
        assert sources(lab, node) == texts(node.addresses)
    assert dict(inner_traffic(lab)) == before
    for node, daemon in lab.daemons.items():
        assert [problem["code"] for problem in daemon.status()["problems"]] == ["limited"], node.name
    lab.failover("web", None)
    expect_no_way_out(lab, web.pods[0])
    # What waits for a gateway is dropped for a while before it is rejected.
    assert wait_until(lambda: lab.source_seen(web.pods[0]) == "unreachable", SETTLED), "when_unavailable rejects"
    for daemon in lab.daemons.values():
        daemon.stop()
        assert daemon.command("cleanup").returncode == 0
    assert set(held(lab).values()) == {(False, False)}
    lab.failover("web", NODE2)
    assert dict(inner_traffic(lab)) == before


def test_no_wrong_source_whatever_changes(lab: Lab) -> None:
    """Gateways, kube-proxy that writes its tables whole, the packet filter itself."""
    web = lab.services["web"]
    lab.start_daemons(IPTABLES)
    with judged(lab) as flows:
        for gateway in (NODE3, NODE1, NODE2):
            lab.failover("web", gateway)
            for pod in web.pods:
                expect(lab, pod, texts(web.addresses))
        lab.apply_rules()
        flows.go_on()
        for pod in web.pods:
            expect(lab, pod, texts(web.addresses))
        for backend, holds in (("nftables", (True, False)), ("iptables", (False, True))):
            reconfigured(lab, {"firewall": {"backend": backend}})
            flows.go_on()
            assert set(held(lab).values()) == {holds}
    assert {lab.source_seen(pod, p, f) for pod in web.pods for p in PROTOCOLS for f in FAMILIES} == texts(web.addresses)
