"""kube-proxy in IPVS mode: the LoadBalancer addresses are local on every node, and no DNAT leads away from them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.outside import ADDRESS_FAMILY
from metaleg_node.lab.plan import SERVER, SERVICE_PORT, LabNode, LabPod, LabService
from tests.e2e.ipvs import IpvsLab
from tests.e2e.path_scene import ALL, Scene, scene
from tests.e2e.scenario import (
    NODE1,
    NODE2,
    NODE3,
    egress_service,
    expect,
    expect_no_way_out,
    sources,
    texts,
)
from tests.e2e.second_way import TWO_ROUTERS, l2
from tests.lab.lab import Lab
from tests.lab.probes import open_tcp
from tests.patience import patient

CONNECTIONS = 10
"""In each family."""


@pytest.fixture(params=[True, False], ids=["conntrack", "no-conntrack"])
def ipvs(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The usual egress Service, with externalTrafficPolicy Local: without conntrack IPVS masquerades nothing, so that
    no other will do. Its pods are on the first two nodes."""
    with IpvsLab(conntrack=request.param) as lab:
        lab.set_services(_service(lab))
        lab.start_daemons()
        lab.reset_seen()
        yield lab


def _service(lab: Lab, gateway: LabNode = NODE2) -> LabService:
    usual = egress_service(lab, gateway)
    return LabService(name=usual.name, number=usual.number, pods=usual.pods, gateway=gateway, local=True)


def _reached(lab: Lab) -> dict[tuple[str, Family], str]:
    """Why a client outside gets no answer of the Service, by protocol and family; empty when it gets one."""
    web = lab.services["web"]
    return {
        (p, f): lab.ask("outside", p, f, patient(1), to=(web.addresses[f], SERVICE_PORT)).error
        for p in ("tcp", "udp")
        for f in FAMILIES
    }


REACHED = {(p, f): "" for p in ("tcp", "udp") for f in FAMILIES}


def test_egress_and_the_service_itself(ipvs: Lab) -> None:
    web = ipvs.services["web"]
    for pod in web.pods:
        assert sources(ipvs, pod) == texts(web.addresses)
    assert ipvs.seen() == set(web.addresses.values())
    assert _reached(ipvs) == REACHED
    ipvs.failover("web", NODE1)
    for pod in web.pods:
        expect(ipvs, pod, texts(web.addresses))
    assert _reached(ipvs) == REACHED
    ipvs.failover("web", None)
    for pod in web.pods:
        expect_no_way_out(ipvs, pod)
    assert ipvs.seen() <= set(web.addresses.values())


@pytest.mark.parametrize("local", [True, False], ids=["Local", "Cluster"])
def test_clients_of_a_service_that_any_node_answers(local: bool) -> None:
    with IpvsLab() as lab:
        pods = (lab.pod(NODE1), lab.pod(NODE2))
        web = LabService(name="web", number=0, pods=pods, gateway=NODE2, local=local)
        lab.set_services(web)
        before = _reached(lab)
        assert before == REACHED
        lab.start_daemons()
        for _ in pods:
            assert _reached(lab) == REACHED
        for client in (lab.pod(NODE1, 2), lab.pod(NODE3), NODE2):
            for f in FAMILIES:
                for p in ("tcp", "udp"):
                    assert not lab.ask(client, p, f, patient(1), to=(web.addresses[f], SERVICE_PORT)).error


def test_a_clients_connection_lasts_through_changes(ipvs: Lab) -> None:
    """Without conntrack in IPVS each of its packets belongs to no connection that conntrack knows."""
    web, outside = ipvs.services["web"], ipvs.namespace("outside")
    with ExitStack() as stack:
        opened = [open_tcp(outside, web.addresses[f], SERVICE_PORT, patient(5)) for f in FAMILIES]
        clients = [stack.enter_context(sock) for sock in opened]
        answers = [_say(sock) for sock in clients]
        for services in ((web, _other(ipvs)), (web,)):
            ipvs.write_state()
            ipvs.services = {service.name: service for service in services}
            ipvs.write_state()
            for pod in web.pods:
                expect(ipvs, pod, texts(web.addresses))
            assert [_say(sock) for sock in clients] == answers


def _other(lab: Lab) -> LabService:
    return LabService(name="other", number=3, pods=(lab.pod(NODE3),), gateway=NODE1, local=True)


def _say(sock: socket.socket) -> list[bytes]:
    sock.sendall(b"hello\n")
    return sock.recv(2048).split()


@pytest.mark.parametrize("first", ["server", "pod"])
def test_established_connections_survive_a_failover_whoever_speaks_first(ipvs: Lab, first: str) -> None:
    web = ipvs.services["web"]
    with ExitStack() as stack:
        ends = [(f, f * 1000 + n) for f in FAMILIES for n in range(CONNECTIONS)]
        pairs = [_connection(ipvs, stack, web.pods[0], family, port) for family, port in ends]
        ipvs.failover("web", NODE3)
        for pod in web.pods:
            expect(ipvs, pod, texts(web.addresses))
        if first == "server":
            for _, server in pairs:
                server.sendall(b"from the server")
            # What the new gateway does to these is done when this one's answer is here.
            assert sources(ipvs, web.pods[0]) == texts(web.addresses)
        for pod_side, _ in pairs:
            pod_side.sendall(b"from the pod")
        heard = [_heard(server) for _, server in pairs]
        if first == "pod":
            for _, server in pairs:
                server.sendall(b"from the server")
        told = [_heard(pod_side) for pod_side, _ in pairs]
    assert heard == [b"from the pod"] * len(pairs)
    assert told == [b"from the server"] * len(pairs)


def _connection(
    lab: Lab, stack: ExitStack, pod: LabPod, family: Family, port: int
) -> tuple[socket.socket, socket.socket]:
    """Both ends of a new connection of the pod to a port of the server's machine. The pod's end has the same port,
    which no other flow has: it is free on every gateway."""
    with lab.namespace("outside").socket(ADDRESS_FAMILY[family], socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(patient(5))
        listener.bind(("", port))
        listener.listen()
        pod_side = stack.enter_context(lab.namespace(pod).socket(ADDRESS_FAMILY[family], socket.SOCK_STREAM))
        pod_side.bind(("", port))
        # Lost packets are sent again after 0.2 s, 0.6 s, 1.4 s, ...
        pod_side.settimeout(patient(10))
        pod_side.connect((str(SERVER[family]), port))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(patient(10))
        return pod_side, server


def _heard(sock: socket.socket) -> bytes:
    """What comes next on a connection; why nothing does, when it is broken."""
    try:
        return sock.recv(2048)
    except OSError as error:
        return str(error).encode()


# --- return paths ----------------------------------------------------------------------------------------------------


def test_replies_leave_by_the_way_the_request_came() -> None:
    with ExitStack() as stack:
        here: Scene = scene(stack, IpvsLab())
        here.lab.start_daemons(l2(TWO_ROUTERS))
        here.settle(ALL)
