"""LoadBalancer addresses from inside the cluster: who reaches a Service with externalTrafficPolicy Local."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import ip_address
from socket import AF_INET, IPPROTO_SCTP, SOCK_STREAM
from typing import Any

import pytest

from metaleg_node.core.model import FAMILIES, Address, Family
from metaleg_node.lab import objects
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import SERVER_PORT, SERVICE_NETWORK, SERVICE_PORT, LabNode, LabPod, LabService
from tests.e2e.ipvs import IpvsLab
from tests.e2e.scenario import NODE1, NODE2, NODE3, SECOND, SETTLED
from tests.kernel_modules import needed
from tests.lab.lab import Lab
from tests.lab.probes import Answer, open_tcp
from tests.patience import patient

ON: dict[str, dict[str, Any]] = {"external_ip": {"enabled": True}}
KINDS = tuple((protocol, family) for protocol in ("tcp", "udp") for family in FAMILIES)
NEAR, FAR = LabPod(node=NODE2, number=2), LabPod(node=NODE1, number=1)
CLIENTS: tuple[str | LabNode | LabPod, ...] = ("outside", NEAR, FAR, NODE2, NODE1)
"""The pod of the Service runs on node2."""
CROWD = ip_address("198.18.0.0")
"""The first address of a thousand Services."""

# docs/external-ip.md has this table.
REACHED = {
    "kube-proxy before 1.21": {"outside", NEAR, NODE2},
    "kube-proxy since 1.21": {"outside", NEAR, FAR, NODE2},
    "with External-IP": {*CLIENTS},
}


def web(lab: Lab, **values: Any) -> LabService:
    """Unlabelled; its only pod is on node2, which announces it."""
    pods = (lab.pod(NODE2),)
    local = LabService(name="web", number=0, pods=pods, gateway=NODE2, labelled=False, local=True)
    return dataclasses.replace(local, **values)


def ask(lab: Lab, service: LabService, client: str | LabNode | LabPod, protocol: str, family: Family) -> Answer:
    # What is lost is lost soon; what arrives arrives in milliseconds, in a virtual machine in tens of them.
    return lab.ask(client, protocol, family, patient(0.4), to=(service.addresses[family], SERVICE_PORT))


def reached(lab: Lab, service: LabService, clients: Iterable[str | LabNode | LabPod] = CLIENTS) -> set[object]:
    """Who gets an answer by every protocol and family; nobody gets one by some of them only."""
    found: set[object] = set()
    for client in clients:
        answers = [not ask(lab, service, client, *kind).error for kind in KINDS]
        assert len({*answers}) == 1, f"{client}: {dict(zip(KINDS, answers, strict=True))}"
        found |= {client} if answers[0] else set()
    return found


def seen(lab: Lab, service: LabService, client: LabNode | LabPod) -> set[str]:
    """As which addresses the pod of the Service sees a client."""
    return {ask(lab, service, client, *kind).source for kind in KINDS}


def states(lab: Lab, node: LabNode) -> dict[str, tuple[str, str]]:
    """State and reason of each address."""
    return {one["address"]: (one["state"], one["reason"]) for one in lab.daemons[node].status()["external_ips"]}


def active(lab: Lab, node: LabNode, number: int) -> bool:
    """Whether so many addresses lead to their ClusterIP there."""
    return sum(state == "active" for state, _ in states(lab, node).values()) == number


@pytest.mark.parametrize(
    "release", ["kube-proxy before 1.21", "kube-proxy since 1.21"], ids=["before-1.21", "since-1.21"]
)
def test_who_reaches_a_local_service(release: str) -> None:
    with IpvsLab(falls_back=release.endswith("since 1.21")) as lab:
        service = web(lab)
        lab.set_services(service)
        assert reached(lab, service) == REACHED[release]
        lab.start_daemons(ON)
        assert reached(lab, service) == REACHED["with External-IP"]
        for pod in (NEAR, FAR):
            assert seen(lab, service, pod) == {str(a) for a in pod.addresses.values()}
        assert seen(lab, service, NODE1) == {str(a) for a in NODE1.addresses.values()}
        with open_tcp(lab.namespace(NODE1), service.addresses[4], SERVICE_PORT, patient(5)) as connection:
            lab.namespace(NODE1).run("nft", "flush", "ruleset")
            assert wait_until(lambda: all(not ask(lab, service, NODE1, *kind).error for kind in KINDS), SETTLED)
            lab.services = {}
            lab.write_state()
            assert wait_until(lambda: not states(lab, NODE1), SETTLED)
            connection.sendall(b"hello\n")
            assert connection.recv(2048)
        assert reached(lab, service) == REACHED[release]


def beside(service: LabService, protocol: str, port: int, number: int, *addresses: Address) -> objects.Object:
    """A Service with the ClusterIPs of that number, at those addresses."""
    made = objects.service(dataclasses.replace(service, name=f"{protocol}-{number}"))
    made["spec"]["ports"] = [{"protocol": protocol.upper(), "port": port}]
    made["spec"]["clusterIPs"] = [str(SERVICE_NETWORK[f][number]) for f in FAMILIES]
    made["status"]["loadBalancer"]["ingress"] = [{"ip": str(address)} for address in addresses]
    return made


def test_services_that_share_an_address_sctp_and_a_thousand_others() -> None:
    needed("sctp")
    with IpvsLab(falls_back=False) as lab:
        service = web(lab)
        lab.set_services(service)
        shared = [beside(service, "tcp", 81, 200, *service.addresses.values())]
        shared += [beside(service, "sctp", 82, 201, *service.addresses.values())]
        crowd = [beside(service, "tcp", SERVICE_PORT, 1000 + n, CROWD + n) for n in range(1000)]
        for protocol, port, number in (("tcp", 81, 200), ("sctp", 82, 201)):
            lab.serve(NODE1, [(protocol, SERVICE_NETWORK[f][number], port) for f in FAMILIES], service.pods)
        lab.serve(NODE1, [("tcp", CROWD + n, SERVICE_PORT) for n in range(1000)], ())
        lab.serve(NODE1, [("tcp", SERVICE_NETWORK[4][1000 + n], SERVICE_PORT) for n in range(1000)], service.pods)
        assert lab.ask(NODE1, "tcp", 4, patient(0.4), to=(CROWD + 999, SERVICE_PORT)).error
        lab.start_daemons(ON)
        lab.write_state([*lab.cluster_objects(), *shared, *crowd])
        assert wait_until(lambda: active(lab, NODE1, 2 + 1000), patient(20))
        for client in (NODE1, FAR):
            for port in (SERVICE_PORT, 81):
                for family in FAMILIES:
                    assert not lab.ask(client, "tcp", family, patient(1), to=(service.addresses[family], port)).error
            assert not lab.ask(client, "tcp", 4, patient(1), to=(CROWD + 999, SERVICE_PORT)).error
        assert associated(lab, service, FAR, 82)


def associated(lab: Lab, service: LabService, client: LabPod, port: int) -> bool:
    """Whether an SCTP association with the Service's pod comes to be, and carries a message back."""
    pod, word = lab.namespace(*service.pods), b"hello"
    with ExitStack() as stack:
        ends = [stack.enter_context(n.socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP)) for n in (pod, lab.namespace(client))]
        listener, asking = ends
        for end in ends:
            end.settimeout(patient(2))
        listener.bind(("", SERVER_PORT))
        listener.listen()
        asking.connect((str(service.addresses[4]), port))
        answering = stack.enter_context(listener.accept()[0])
        answering.sendall(word)
        return asking.recv(100) == word


def test_source_ranges_hold_inside_as_they_do_outside() -> None:
    with IpvsLab() as lab:
        ranged = web(lab, source_ranges=NODE1.pod_networks)
        lab.set_services(ranged)
        lab.start_daemons(ON)
        assert active(lab, NODE1, 2)
        clients = ("outside", NEAR, FAR, NODE1, NODE3)
        assert reached(lab, ranged, clients) == {FAR}


def test_a_service_that_any_node_answers_works_as_before() -> None:
    """With the address led to the ClusterIP, and without."""
    with IpvsLab() as lab:
        service = web(lab, local=False)
        lab.set_services(service)
        assert reached(lab, service) == {*CLIENTS}
        lab.start_daemons(ON)
        assert not states(lab, NODE1)
        assert reached(lab, service) == {*CLIENTS}
        policies = {"external_ip": {"enabled": True, "traffic_policies": ["Local", "Cluster"]}}
        for daemon in lab.daemons.values():
            daemon.configure(policies)
            daemon.reload()
        assert wait_until(lambda: all(active(lab, node, 2) for node in (NODE1, NODE2)), SETTLED)
        assert reached(lab, service) == {*CLIENTS}
        assert seen(lab, service, FAR) == {str(a) for a in FAR.addresses.values()}


def test_without_ipvs_nothing_is_set_and_the_translation_of_others_works(lab: Lab) -> None:
    """An interface of that name that comes and goes is followed."""
    service = web(lab)
    lab.set_services(service)
    before = reached(lab, service)
    assert {"outside", FAR} <= before
    lab.start_daemons(ON)
    assert {reason for _, reason in states(lab, NODE1).values()} == {
        "there is no kube-ipvs0 here: kube-proxy does not serve by IPVS"
    }
    assert "external" not in lab.namespace(NODE1).run("nft", "list", "ruleset")
    assert reached(lab, service) == before
    both = (*service.addresses.values(), *service.cluster_ips.values())
    lab.namespace(NODE1).ip(
        ["link add kube-ipvs0 type bridge", *(f"address add {address} dev kube-ipvs0" for address in both)]
    )
    assert wait_until(lambda: active(lab, NODE1, 2), SECOND)
    assert "external_targets4" in lab.namespace(NODE1).run("nft", "list", "ruleset")
    lab.namespace(NODE1).ip(["link delete kube-ipvs0"])
    assert wait_until(lambda: active(lab, NODE1, 0), SECOND)
    assert "external" not in lab.namespace(NODE1).run("nft", "list", "ruleset")
    assert reached(lab, service) == before
