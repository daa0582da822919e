"""Which LoadBalancer addresses lead to their ClusterIP on a node, and why the others do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from metaleg_node.core import external_ip
from metaleg_node.core.assembly import Desired
from metaleg_node.core.compare import diff, flows
from metaleg_node.core.egress import survey
from metaleg_node.core.external_ip import INTERFACE
from metaleg_node.core.firewall.external_ip import ExternalIp
from metaleg_node.core.model import Flow, Host, Network, Service, ServicePort
from metaleg_node.core.problems import Code
from tests.firewalls import EXTERNAL, networks, target, virtual_server, wall
from tests.unit.builders import A, addresses, assembled, cluster, config, node, service

LB, LB6, OTHER = "192.0.2.210", "2001:db8:1::210", "192.0.2.211"
IP, IP6 = "10.96.0.10", "fd00:96::10"
ON = "[external_ip]\nenabled = true\n"
EVERYTHING = f'{ON}traffic_policies = ["Local", "Cluster"]\nexternal_ips = true\n'
WITH_NETWORKS = f'{EVERYTHING}[cluster]\nservice_cidrs = ["10.96.0.0/16", "fd00:96::/112"]\n'
SERVED = (LB, LB6, OTHER, IP, IP6)


def local(name: str = "web", **values: Any) -> Service:
    """An unlabelled Service with externalTrafficPolicy Local; `values` are its fields."""
    made = service(name, ingress=(LB, LB6), cluster_ips=(IP, IP6), labels={})
    return dataclasses.replace(made, **({"traffic_policy": "Local"} | values))


def decide(*services: Service, text: str = ON, served: Iterable[str] | None = SERVED, **nodes: Any) -> Desired:
    """What node a does; `served` are the addresses on kube-ipvs0, None: there is no such interface."""
    state = cluster(services=services, **nodes)
    settings = config(text)
    host = Host(addresses_of={} if served is None else {INTERFACE: frozenset(addresses(served))})
    wanted = external_ip.read(state, settings)
    return assembled(survey.take(state, settings), settings, A, host, external=wanted)


def targets(desired: Desired) -> dict[str, str]:
    """In words."""
    assert desired.state.firewall
    return {str(s): str(t) for s, t in desired.state.firewall.part(ExternalIp).targets.items()}


def reasons(desired: Desired) -> list[str]:
    """Why addresses are left to kube-proxy."""
    return [one.obstacle for one in desired.external]


BOTH = {f"{LB} TCP 80": IP, f"{LB6} TCP 80": IP6}
RANGES = tuple(networks("10.244.1.0/24"))

LEADS = {
    "local": ((local(),), ON, BOTH),
    "labelled or not": ((local(labels={"metaleg.de/rewriteSrcIP": "true"}),), ON, BOTH),
    "Cluster works without": ((local(traffic_policy="Cluster"),), ON, {}),
    "Cluster as well": ((local(traffic_policy="Cluster"),), EVERYTHING, BOTH),
    "each port and protocol": (
        (local(ports=tuple(ServicePort(protocol=p, port=n) for p, n in (("UDP", 53), ("TCP", 53), ("SCTP", 9)))),),
        ON,
        {f"{a} {p}": c for a, c in ((LB, IP), (LB6, IP6)) for p in ("UDP 53", "TCP 53", "SCTP 9")},
    ),
    "K3 a shared address leads each port to its own Service": (
        (local(), local("dns", ports=(ServicePort(protocol="UDP", port=80),), cluster_ips=addresses((OTHER,)))),
        ON,
        {**BOTH, f"{LB} UDP 80": OTHER},
    ),
    "one family": ((local(ingress=addresses((LB,))),), ON, {f"{LB} TCP 80": IP}),
    "not of type LoadBalancer": ((local(type="ClusterIP"),), EVERYTHING, {}),
    "externalIPs, when asked for": (
        (local(type="ClusterIP", external_ips=addresses((OTHER,))),),
        WITH_NETWORKS,
        {f"{OTHER} TCP 80": IP},
    ),
    "externalIPs, when not": ((local(type="ClusterIP", external_ips=addresses((OTHER,))),), ON, {}),
    "ExternalName": ((local(type="ExternalName", external_ips=addresses((OTHER,))),), EVERYTHING, {}),
    "K5 an ingress with a host name only": ((local(ingress=()),), ON, {}),
    "ranges": (
        (local(source_ranges=RANGES),),
        ON,
        {f"{LB} TCP 80": f"{IP} for 10.244.1.0/24, not for this host", f"{LB6} TCP 80": IP6},
    ),
    "ranges with this node in them": (
        (local(source_ranges=tuple(networks("10.0.0.0/24"))),),
        ON,
        {f"{LB} TCP 80": f"{IP} for 10.0.0.0/24", f"{LB6} TCP 80": IP6},
    ),
    "ranges of everybody": ((local(source_ranges=(ip_network("0.0.0.0/0"), *RANGES)),), ON, BOTH),
    "off": ((local(),), "", {}),
}


@pytest.mark.parametrize("name", LEADS)
def test_an_address_leads_to_the_cluster_ip(name: str) -> None:
    services, text, expected = LEADS[name]
    found = decide(*services, text=text)
    assert targets(found) == expected
    assert not [p for p in found.problems if p.code is Code.INCOMPLETE_STATE]


SKIPPED = {
    "ipMode Proxy": (local(proxied=frozenset(addresses((LB, LB6)))), "has the ipMode Proxy", False),
    "no ClusterIP": (local(cluster_ips=()), "has no IPv4 ClusterIP", True),
    "ranges that nobody understands": (local(source_ranges=None), "loadBalancerSourceRanges", True),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_an_address_is_left_alone_with_a_reason(name: str) -> None:
    skipped, reason, told = SKIPPED[name]
    found = decide(skipped)
    assert targets(found) == {}
    assert len(reasons(found)) == 2
    assert reason in reasons(found)[0]
    assert any(reason in rejection.reason for rejection in found.rejections) is told


@pytest.mark.parametrize("stolen", ["10.96.0.99", "10.0.0.2", "10.244.2.7", "fd00:96::77"])
def test_nobody_takes_an_address_that_is_the_clusters_own(stolen: str) -> None:
    """Another Service's ClusterIP, above all, which is on kube-ipvs0 as well: the cluster's DNS, for example."""
    thief = local(type="ClusterIP", external_ips=addresses((stolen,)), ingress=())
    found = decide(thief, text=WITH_NETWORKS, served=(*SERVED, stolen))
    assert targets(found) == {}
    assert any(f"{stolen} is a node's, a pod's or a Service's own" in r.reason for r in found.rejections)


def test_without_service_networks_external_ips_are_left_alone() -> None:
    found = decide(local(type="ClusterIP", external_ips=addresses((OTHER,))), text=EVERYTHING)
    assert targets(found) == {}
    assert any("set cluster.service_cidrs" in rejection.reason for rejection in found.rejections)


def test_source_ranges_are_bounded_for_all_services_together() -> None:
    def ranges(number: int) -> tuple[Network, ...]:
        return tuple(networks(*(f"10.{number}.{n}.0/25" for n in range(200))))

    services = [
        local(f"s{n}", ingress=addresses((f"192.0.2.{n}",)), source_ranges=ranges(n), created=f"2024-01-0{n}T00:00:00Z")
        for n in (3, 1, 2)
    ]
    found = decide(
        *services, text=f"{ON}[egress]\nmax_networks = 400\n", served=("192.0.2.1", "192.0.2.2", "192.0.2.3", IP)
    )
    assert sorted(server.split()[0] for server in targets(found)) == ["192.0.2.1", "192.0.2.2"]
    assert [str(r.ref) for r in found.rejections] == ["Service shop/s3"]


def test_many_services_with_one_address_cost_what_they_are() -> None:
    ports = tuple(ServicePort(protocol="TCP", port=n) for n in range(1, 101))
    services = [local(f"s{n:03}", ingress=addresses((LB,)), ports=ports) for n in range(100)]
    found = decide(*services)
    assert len(found.rejections) == 100
    assert max(len(rejection.reason) for rejection in found.rejections) < 300
    assert "(and 99 more) is claimed by Service shop/s001, Service shop/s002, Service shop/s003 and 96 more" in (
        found.rejections[0].reason
    )


def test_what_two_services_claim_is_left_to_kube_proxy() -> None:
    """Also when only one of them counts."""
    second = (ServicePort(protocol="TCP", port=80), ServicePort(protocol="TCP", port=81))
    found = decide(local(), local("other", ports=second, ingress=addresses((LB,)), cluster_ips=addresses((OTHER,))))
    assert targets(found) == {f"{LB6} TCP 80": IP6, f"{LB} TCP 81": OTHER}
    assert reasons(found) == ["", "other Services claim it on the same ports", ""]
    assert [str(r.ref) for r in found.rejections] == ["Service shop/other", "Service shop/web"]
    assert f"{LB} TCP 80 is claimed by Service shop/other, too" in found.rejections[1].reason
    assert targets(decide(local(), local("other", traffic_policy="Cluster"))) == {}


@pytest.mark.parametrize(
    ("served", "expected", "reason"),
    [
        (None, {}, "there is no kube-ipvs0 here"),
        ((), {}, f"{LB} is not on kube-ipvs0"),
        ((LB, LB6, IP6), {f"{LB6} TCP 80": IP6}, f"{IP} is not on kube-ipvs0"),
        ((IP, IP6, LB6), {f"{LB6} TCP 80": IP6}, f"{LB} is not on kube-ipvs0"),
    ],
)
def test_only_what_ipvs_serves_here_is_led_away(
    served: tuple[str, ...] | None, expected: dict[str, str], reason: str
) -> None:
    found = decide(local(), served=served)
    assert targets(found) == expected
    assert reason in reasons(found)[0]
    assert not found.rejections
    assert not [p for p in found.problems if p.code is Code.INCOMPLETE_STATE]


def test_pods_are_those_of_all_pod_networks_and_the_mark_is_the_configured_one() -> None:
    found = decide(local(), text=f"{ON}masquerade_mark = 0x4000\n")
    assert found.state.firewall
    part = found.state.firewall.part(ExternalIp)
    assert part.clients == survey.take(cluster(), config()).networks.pods
    assert part.masquerade_mark == 0x4000


def test_unknown_pod_networks_are_told() -> None:
    found = decide(local(), nodes=[node("a", pods=())])
    assert "no pod network is known" in next(p.text for p in found.problems if p.subject == "External-IP")
    assert targets(found) == BOTH


def test_the_host_is_asked_only_when_there_are_addresses() -> None:
    state = cluster(services=[local()])
    assert external_ip.questions(external_ip.read(state, config(ON))).addresses_of == {INTERFACE}
    assert not external_ip.questions(external_ip.read(state, config())).addresses_of
    assert not external_ip.questions(external_ip.read(cluster(services=[]), config(ON))).addresses_of


# --- changes ---------------------------------------------------------------------------------------------------------


def lines(before: object, after: object) -> list[str]:
    steps = diff.steps(before, after, why=lambda _: "")  # type: ignore[arg-type]
    return [str(change) for change in diff.changes(steps)]


def holding(**values: object) -> Any:
    return dataclasses.replace(decide().state, firewall=wall(**values))


WEB, UDP = virtual_server(f"{LB} TCP 80"), virtual_server(f"{LB} UDP 80")


def test_a_plan_tells_where_an_address_leads() -> None:
    one, other = {WEB: target(IP)}, {WEB: target(OTHER, "10.0.0.0/8", host=False)}
    assert f"+ external-ip {LB} TCP 80 to {IP}" in lines(holding(), holding(targets=one))
    assert lines(holding(targets=one), holding(targets=other)) == [
        f"~ external-ip {LB} TCP 80 to {OTHER} for 10.0.0.0/8, not for this host  # was {IP}"
    ]
    assert f"- external-ip {LB} TCP 80 to {IP}" in lines(holding(targets=one), holding(targets={UDP: target(IP)}))
    assert "~ firewall External-IP of this host: mark 0x4000  # was: External-IP of this host: masqueraded" in lines(
        holding(targets=one), holding(targets=one, masquerade_mark=0x4000)
    )


def swept(before: Any, after: Any) -> list[frozenset[Any]]:
    steps = diff.steps(before, after, why=lambda _: "")
    return [s.operation.servers for s in steps if isinstance(s.operation, diff.SweepFlows)]


def test_K2_connections_are_forgotten_that_led_elsewhere() -> None:
    """What stays is not asked about; what cleanup takes away is."""
    before = holding(targets={WEB: target(IP), UDP: target(IP)})
    assert swept(before, holding(targets={WEB: target(IP), UDP: target(OTHER)})) == [{UDP}]
    assert swept(before, holding(targets={WEB: target(IP)})) == [{UDP}]
    assert swept(before, dataclasses.replace(before, firewall=None)) == [{WEB, UDP}]
    assert swept(dataclasses.replace(before, firewall=None), before) == [{WEB, UDP}]
    assert swept(before, before) == []


def test_nothing_leads_inward_any_more_when_connections_are_forgotten_before_a_cleanup() -> None:
    before = dataclasses.replace(decide().state, firewall=EXTERNAL)
    steps = diff.steps(before, dataclasses.replace(before, firewall=None), why=lambda _: "")
    first = next(s.operation for s in steps if isinstance(s.operation, diff.PutFirewall))
    assert first.firewall
    assert first.firewall.part(ExternalIp) == ExternalIp()


@pytest.mark.parametrize(
    ("protocol", "to", "port", "forgotten"),
    [
        ("udp", LB, "80", True),
        ("udp", LB, "81", False),
        ("udp", OTHER, "80", False),
        ("tcp", LB, "80", False),
        ("icmp", LB, "", False),
    ],
)
def test_datagrams_are_decided_anew_and_connections_live_on(protocol: str, to: str, port: str, forgotten: bool) -> None:
    flow = Flow(
        family=4,
        protocol=protocol,
        source=ip_address("10.244.1.77"),
        destination=ip_address(to),
        ports=(("sport", "1000"), ("dport", port)) if port else (("type", "8"),),
        reply_source=ip_address("10.244.2.3"),
        reply_destination=ip_address("10.244.1.77"),
        ours=False,
    )
    assert bool(list(flows.stale([flow], wall(), frozenset(), {WEB, UDP}))) is forgotten
