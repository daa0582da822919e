"""Not one packet outside with another source than the LoadBalancer's, whatever happens to daemons, links and gateways.

New flows of egress pods never stop during these tests; the record of every packet that reached the server judges.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab import objects
from metaleg_node.lab.daemons import START_TIMEOUT, wait_until
from metaleg_node.lab.outside import ADDRESS_FAMILY
from metaleg_node.lab.plan import NODES, SERVER, SERVER_PORT, LabNode, LabPod, LabService
from tests.e2e.interpreters import Applying, Mortal
from tests.e2e.scenario import (
    NODE1,
    NODE2,
    NODE3,
    PAUSE,
    SETTLED,
    Flows,
    egress_service,
    expect,
    expect_no_way_out,
    ours,
    sources,
    texts,
)
from tests.lab import topology
from tests.lab.daemons import Daemon
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions


@contextmanager
def judged(lab: Lab, pause: float = PAUSE) -> Iterator[Flows]:
    """Flows of the egress pods while the block runs; then nothing but the LoadBalancer's addresses may have come out,
    and they must have, in both families, from the beginning to the end."""
    web = lab.services["web"]
    lab.reset_seen()
    with Flows(lab, web.pods, pause) as flows:
        yield flows
        for pod in web.pods:
            expect(lab, pod, texts(web.addresses))
    assert lab.seen() == set(web.addresses.values())
    assert set(flows.answers) - {"none"} == texts(web.addresses)


def test_F33_S1_repeated_gateway_failovers(running: Lab, web: LabService) -> None:
    with judged(running):
        for gateway in (NODE3, NODE1, NODE2, NODE1, NODE3, NODE2):
            running.failover("web", gateway)
            for pod in web.pods:
                expect(running, pod, texts(web.addresses))


def reconfigured(lab: Lab, options: Mapping[str, Mapping[str, object]]) -> None:
    """Gives all daemons these settings, and waits until they are in force."""
    for daemon in lab.daemons.values():
        before = daemon.status()["last_reconcile"]
        daemon.configure(options)
        daemon.reload()
        assert wait_until(partial(_reconciled_since, daemon, before), SETTLED)


def _reconciled_since(daemon: Daemon, before: object) -> bool:
    return bool(daemon.status()["last_reconcile"] != before)


def test_settings_that_change_marks_tables_and_rules(running: Lab, web: LabService) -> None:
    with judged(running):
        for options in (
            {"firewall": {"mark_mask": 0x00F00000}},
            {"firewall": {"mark_mask": 0x0FF00000}},
            {"firewall": {"mark_mask": 0x0FF00000, "route_table_base": 1_000_001}},
            {"firewall": {"rule_priority": 90}},
            {"egress": {"local_endpoints_only": False}},
            {"egress": {"source_ports": "random"}},
            {},
        ):
            reconfigured(running, options)
            for pod in web.pods:
                expect(running, pod, texts(web.addresses))


def test_addresses_annotations_and_owners_that_change(running: Lab, web: LabService) -> None:
    moved = replace(web, number=5)
    older = LabService(name="aaa", number=6, pods=web.pods[:1], gateway=NODE1)
    everywhere = {"metaleg.de/only-cidrs": "0.0.0.0/0,::/0"}
    allowed = {*web.addresses.values(), *moved.addresses.values(), *older.addresses.values()}
    running.reset_seen()
    with Flows(running, web.pods, PAUSE):
        for services in (
            (moved,),
            (older, moved),
            (replace(moved, annotations=everywhere),),
            (replace(moved, annotations={"metaleg.de/only-cidrs": "x"}),),
            (web,),
        ):
            running.set_services(*services)
            first, last = services[0], services[-1]
            if last.annotations.get("metaleg.de/only-cidrs") == "x":
                expect_no_way_out(running, web.pods[-1])
            else:
                expect(running, web.pods[0], texts(first.addresses))
                expect(running, web.pods[-1], texts(last.addresses))
    assert running.seen() <= allowed
    assert running.seen() == allowed


def test_F5_nodes_that_hear_of_a_failover_late_or_one_by_one(running: Lab, web: LabService) -> None:
    with judged(running) as flows:
        for gateway, order in ((NODE3, NODES), (NODE1, NODES[::-1]), (NODE2, (NODE2, NODE3, NODE1))):
            running.failover("web", gateway, seen_by=())
            for node in order:
                flows.go_on()
                running.write_state(nodes=[node])
                assert wait_until(partial(_steers_to, running.daemons[node], gateway), SETTLED)
            for pod in web.pods:
                expect(running, pod, texts(web.addresses))


def _steers_to(daemon: Daemon, gateway: LabNode) -> bool:
    """Whether a daemon has done all that follows from a gateway."""
    return {service["gateway"] for service in daemon.status()["services"]} == {gateway.name}


def _is_dead_or_steers_to(daemon: Daemon, gateway: LabNode) -> bool:
    return not daemon.running or _steers_to(daemon, gateway)


@pytest.mark.parametrize("victim", NODES, ids=lambda node: node.name)
def test_a_daemon_killed_in_the_middle_of_applies(running: Lab, tmp_path: Path, victim: LabNode) -> None:
    daemon, fate = running.daemons[victim], Mortal(tmp_path)
    daemon.python = fate.python
    _start_again(daemon)
    deaths = 0
    # Node3 has no pod and no way to one: two steps are all that it ever does.
    most = 3 if victim == NODE3 else 99
    with judged(running) as flows:
        for steps, gateway in enumerate((NODE3, NODE1, NODE2, NODE3, NODE1, NODE2, NODE3)):
            fate.live_for(steps % most)
            running.failover("web", gateway)
            assert wait_until(partial(_is_dead_or_steers_to, daemon, gateway), SETTLED)
            deaths += not daemon.running
            flows.go_on()
            fate.live_for(None)
            _start_again(daemon)
    assert deaths >= 3, "an apply that has so few steps was not killed in the middle"


def _start_again(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()
    daemon.wait_ready()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("before", "after"), [(NODE2, NODE3), (NODE3, NODE1), (NODE1, NODE2), (NODE2, None)])
def test_an_apply_killed_at_each_of_its_steps(
    running: Lab, tmp_path: Path, before: LabNode, after: LabNode | None
) -> None:
    """Node1 is bound for another gateway, becomes the gateway, is no gateway any more, or has to hold its pods."""
    daemon = running.daemons[NODE1]
    assert daemon.stop() == 0
    applying = Applying(daemon, running.namespace(NODE1), tmp_path)

    def applied(gateway: LabNode | None, steps: int | None = None) -> int:
        if running.services["web"].gateway != gateway:
            running.failover("web", gateway)
        status = applying.apply(steps)
        assert status in (0, -signal.SIGKILL)
        return status

    deaths = 0
    # What a killed apply leaves lasts: fewer flows find it as well, and leave the processor to the program.
    with applying, judged(running, pause=0.02):
        while True:
            assert applied(before) == 0
            if applied(after, deaths) == 0:
                break
            deaths += 1
        assert applied(NODE2) == 0
    assert deaths >= 2, "an apply that has so few steps was not killed in the middle"


def test_daemons_killed_while_they_start(running: Lab) -> None:
    """At once, when they have said who they are, when they have done something for the first time."""
    with judged(running) as flows:
        for said, gateway in (("", NODE3), ("runs for node", NODE1), (" changes in ", NODE2)):
            running.failover("web", gateway)
            before = {daemon: daemon.log() for daemon in running.daemons.values()}
            for daemon in before:
                daemon.kill()
                daemon.start()
            assert wait_until(partial(_all_have_said, before, said), START_TIMEOUT)
            flows.go_on()
        for daemon in running.daemons.values():
            _start_again(daemon)


def _all_have_said(before: Mapping[Daemon, str], text: str) -> bool:
    """Whether this is in the logs of all daemons, behind what was there before."""
    return all(text in daemon.log().removeprefix(log) for daemon, log in before.items())


def test_F34_a_restart_interrupts_nothing(running: Lab, web: LabService) -> None:
    for daemon in running.daemons.values():
        with judged(running):
            assert daemon.stop() == 0
            for pod in web.pods:
                assert sources(running, pod) == texts(web.addresses)
            daemon.start()
            daemon.wait_ready()


def test_pods_that_come_and_go(running: Lab, web: LabService) -> None:
    extra = running.pod(NODE3)
    with judged(running):
        for _ in range(2):
            running.set_services(replace(web, pods=(*web.pods, extra)))
            assert wait_until(lambda: _nodes_that_know(running, extra) == list(NODES), SETTLED)
            running.set_services(web)
            assert wait_until(lambda: _nodes_that_know(running, extra) == [], SETTLED)


def _nodes_that_know(lab: Lab, pod: LabPod) -> list[LabNode]:
    """Those whose packet filter holds an address of the pod."""
    return [n for n in NODES if any(f"{a} :" in ours(lab, n)["nftables"] for a in pod.addresses.values())]


def test_no_gateway_at_all_and_back(running: Lab, web: LabService) -> None:
    with judged(running):
        running.failover("web", None)
        for pod in web.pods:
            expect_no_way_out(running, pod)
        running.failover("web", NODE3)


# --- a second way out, which a lost link must not fall through to ----------------------------------------------------


@pytest.fixture
def backup() -> Iterator[Lab]:
    """Node1 has a second link to the router, with a worse default route and its own masquerade."""
    with Lab(LabOptions(flavour=Flavour.IPTABLES_LEGACY)) as lab:
        node, router = lab.namespace(NODE1), lab.namespace("router")
        router.ip([f"link add spare up type veth peer name eth1 netns {node.name}"])
        router.ip(["address add 192.168.20.1/24 dev spare", "address add fd00:20::1/64 dev spare nodad"])
        node.ip(
            ["link set eth1 up", "address add 192.168.20.11/24 dev eth1", "address add fd00:20::11/64 dev eth1 nodad"]
        )
        node.ip(["route add 0.0.0.0/0 via 192.168.20.1 metric 2000", "route add ::/0 via fd00:20::1 metric 2000"])
        lab.set_services(egress_service(lab))
        lab.start_daemons()
        yield lab


def _link_up(lab: Lab, node: LabNode) -> None:
    """What the node's network configuration does when the link comes back; the kernel has forgotten it."""
    lines = [line for line in topology.node(node, (), lab.options, lambda name: name) if "cni0" not in line]
    lab.namespace(node).ip(line.replace(" add ", " replace ") for line in lines)


def test_a_lost_link_does_not_fall_through_to_another_way_out(backup: Lab) -> None:
    pod, other, spare = backup.pod(NODE1), backup.pod(NODE1, 2), {"192.168.20.11", "fd00:20::11"}
    service = backup.services["web"]
    expect(backup, pod, texts(service.addresses))
    with judged(backup):
        backup.namespace(NODE1).ip(["link set eth0 down"])
        expect_no_way_out(backup, pod)
        _link_up(backup, NODE1)
    backup.namespace(NODE1).ip(["link set eth0 down"])
    expect(backup, other, spare)


def test_a_pulled_cable_heals_when_it_is_plugged_in_again(running: Lab) -> None:
    for node in (NODE1, NODE2):
        with judged(running):
            running.plug(node, connected=False)
            expect_no_way_out(running, running.pod(NODE1))
            running.plug(node, connected=True)


def test_F10_a_gateway_that_dies_cuts_pods_off_until_another_node_announces(running: Lab, web: LabService) -> None:
    """Its pod stays Ready in the EndpointSlices, and it is a gateway in its own eyes when it comes back."""
    pod, alive = running.pod(NODE1), (NODE1, NODE3)
    with judged(running):
        running.plug(NODE2, connected=False)
        others = [o for o in running.cluster_objects() if o["metadata"]["name"] != NODE2.name]
        running.write_state([*others, objects.node(NODE2, ready=False)], nodes=alive)
        expect_no_way_out(running, pod)
        running.failover("web", NODE3, seen_by=alive)
        expect(running, pod, texts(web.addresses))
        running.plug(NODE2, connected=True)
        expect(running, pod, texts(web.addresses))
        running.write_state()


def test_F1_F4_F8_answers_that_go_to_another_node_than_the_gateway_do_no_harm(running: Lab, web: LabService) -> None:
    """The router has not heard of the new gateway yet, or MetalLB reports another node than the one that announces."""
    pod = running.pod(NODE1)
    with judged(running), ExitStack() as stack:
        connections = [stack.enter_context(_open_from_port(running, pod, f, 20000 + f)) for f in FAMILIES]
        before = [_say(sock, b"before\n") for sock in connections]
        running.services["web"] = replace(web, gateway=NODE3)
        running.write_state()
        for other in web.pods:
            expect_no_way_out(running, other)
        for sock in connections:
            sock.sendall(b"meanwhile\n")
        running.announce(running.services["web"])
        assert [sock.recv(2048).split()[:2] for sock in connections] == before


def _open_from_port(lab: Lab, pod: LabPod, family: Family, port: int) -> socket.socket:
    """A connection to the server from a port that no other flow of these tests has: on the new gateway it is free."""
    sock = lab.namespace(pod).socket(ADDRESS_FAMILY[family], socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.bind(("", port))
    sock.connect((str(SERVER[family]), SERVER_PORT))
    return sock


@pytest.mark.parametrize("node", [NODE1, NODE2], ids=["the pod's node", "the gateway"])
def test_F7_a_node_whose_addresses_move_to_another_interface(running: Lab, web: LabService, node: LabNode) -> None:
    """As when its cable is put into another card that takes over the first one's hardware address."""
    switch, here = running.namespace("switch"), running.namespace(node)
    (link,) = json.loads(here.run("ip", "-j", "link", "show", "eth0"))
    with judged(running):
        running.plug(node, connected=False)
        here.ip(["address flush dev eth0"])
        switch.ip([f"link add card2 up master br0 type veth peer name eth1 netns {here.name}"])
        here.ip([f"link set eth1 address {link['address']}"])
        lines = (line for line in topology.node(node, (), running.options, lambda name: name) if "cni0" not in line)
        here.ip(line.replace("eth0", "eth1").replace("route add", "route replace") for line in lines)
        for pod in web.pods:
            expect(running, pod, texts(web.addresses))
    assert wait_until(lambda: "eth0" not in str(ours(running, node)), SETTLED), ours(running, node)
    assert "eth1" in ours(running, node)["nftables"]


# --- established connections -----------------------------------------------------------------------------------------


def test_established_connections_survive_a_failover_when_the_pod_sends(running: Lab, web: LabService) -> None:
    ends = [(pod, f, port) for number, pod in enumerate(web.pods) for f in FAMILIES for port in _own_ports(number, f)]
    with ExitStack() as stack:
        connections = [stack.enter_context(_open_from_port(running, *end)) for end in ends]
        before = [_say(sock, b"before\n") for sock in connections]
        running.failover("web", NODE3)
        for pod in web.pods:
            expect(running, pod, texts(web.addresses))
        after = [_say(sock, b"after\n") for sock in connections]
    assert len(set(map(tuple, before))) == len(ends) == 100
    assert after == before


def test_an_established_connection_survives_a_failover_and_the_way_back(running: Lab, web: LabService) -> None:
    """The first gateway has seen nothing of what went by the second."""
    ends = [(web.pods[0], f, 19000 + f) for f in FAMILIES]
    with ExitStack() as stack:
        connections = [stack.enter_context(_open_from_port(running, *end)) for end in ends]
        before = [_say(sock, b"before\n") for sock in connections]
        for gateway in (NODE3, NODE2, NODE3):
            running.failover("web", gateway)
            expect(running, web.pods[0], texts(web.addresses))
            assert [_say(sock, b"there\n") for sock in connections] == before


def _own_ports(pod: int, family: Family) -> range:
    """25 ports below the ephemeral ones, which no other flow has: on every gateway they are free."""
    first = 20000 + 1000 * family + 100 * pod
    return range(first, first + 25)


def test_an_answer_before_the_pod_sends_again_opens_no_way_out(running: Lab, web: LabService) -> None:
    """When the pod's node has forgotten a TCP connection (a sweep, or an operator's conntrack -F), the server's next
    packet must not make the pod's own packets look like replies, which are left alone."""
    pod = running.pod(NODE1)
    for family in FAMILIES:
        running.reset_seen()
        _answer_first(running, pod, family)
        assert running.seen() == {web.addresses[family]}


def _answer_first(lab: Lab, pod: LabPod, family: Family) -> None:
    """A connection of the pod to a port of its own; the pod's node forgets it, the server sends, then the pod."""
    with ExitStack() as stack:
        port = 7000
        listener = stack.enter_context(lab.namespace("outside").socket(ADDRESS_FAMILY[family], socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(2)
        listener.bind(("", port))
        client = stack.enter_context(lab.namespace(pod).socket(ADDRESS_FAMILY[family], socket.SOCK_STREAM))
        client.settimeout(2)
        listener.listen()
        client.connect((str(SERVER[family]), port))
        client.send(b"first")
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(2)
        assert server.recv(100) == b"first"
        lab.namespace(NODE1).run("conntrack", "-D", "-f", f"ipv{family}", "-s", str(pod.addresses[family]))
        server.send(b"answer")
        client.send(b"second")
        assert server.recv(100) == b"second"
        assert client.recv(100) == b"answer"


def _say(sock: socket.socket, line: bytes) -> list[bytes]:
    """The source address and port that the server sees for a line on this connection; empty when it is broken."""
    try:
        sock.sendall(line)
        return sock.recv(2048).split()[:2]
    except OSError:
        return []


def test_F6_S1_steered_traffic_changes_its_next_hop_with_the_gateway(running: Lab) -> None:
    running.failover("web", NODE3)
    expect(running, running.pod(NODE1), texts(running.services["web"].addresses))
    assert wait_until(lambda: _next_hops(running) == texts(NODE3.addresses), SETTLED)


def _next_hops(lab: Lab) -> set[str]:
    """Where node1's tables for gateways lead."""
    hops = set()
    for family in FAMILIES:
        for line in lab.namespace(NODE1).run("ip", "-N", f"-{family}", "route", "show", "table", "all").splitlines():
            words = line.split()
            if "proto 201" in line and "via" in words:
                hops.add(words[words.index("via") + 1])
    return hops
