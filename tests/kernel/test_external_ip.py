"""What becomes of packets to LoadBalancer addresses that lead to a ClusterIP.

The node's own addresses stand for what IPVS serves there: a socket that is bound to the ClusterIP answers in its place.
Behind it, in the world, is a server that stands for an endpoint on another node.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaleg_node.core.compare import diff
from metaleg_node.core.firewall.external_ip import Target, VirtualServer
from metaleg_node.core.node_state import NodeState
from metaleg_node.kernel.netlink.routing import RoutingControl
from metaleg_node.reconcile.machine import Machine
from tests.firewalls import networks, target, virtual_server, wall
from tests.kernel.packet_net import (
    BACKENDS,
    IPTABLES,
    NODE,
    PLAIN,
    POD,
    POD6,
    WEB,
    WEB6,
    Net,
    batch,
    nftables_only,
    packet_net,
)
from tests.netns import Netns
from tests.patience import patient

LB, LB6, IP, IP6, SECOND = "192.0.2.210", "2001:db8:1::210", "10.96.0.10", "fd00:96::10", "10.96.0.11"
PODS = networks("10.244.0.0/16", "fd00:10:244::/48")
KUBE_PROXY = """\
table inet kube {
    chain post {
        type nat hook postrouting priority srcnat;
        meta mark & 0x4000 != 0 masquerade
    }
}
"""
PROXY_PROCESS = """\
table inet proxy {
    chain pre {
        type nat hook prerouting priority dstnat;
        ip daddr 192.0.2.211 udp dport 80 dnat ip to 10.96.0.11
    }
    chain out {
        type nat hook output priority -100;
        ip daddr 192.0.2.211 udp dport 80 dnat ip to 10.96.0.11
    }
}
"""


@pytest.fixture(params=BACKENDS)
def net(netns: Netns, request: pytest.FixtureRequest) -> Iterator[Net]:
    with packet_net(netns, request.param) as made:
        batch(
            netns,
            "link set lo up",
            "link add kube-ipvs0 type bridge",
            *(f"address add {address} dev kube-ipvs0" for address in (LB, "192.0.2.211", IP, SECOND)),
            *(f"address add {address} dev kube-ipvs0 nodad" for address in (LB6, IP6)),
        )
        yield made


def put(net: Net, targets: dict[str, Target], **values: object) -> None:
    by_server: dict[VirtualServer, Target] = {virtual_server(text): one for text, one in targets.items()}
    net.filter.put(wall(targets=by_server, clients=PODS, **values))


def source(net: Net, where: Netns, to: str, servers: dict[str, socket.socket], *, by: str = "") -> tuple[str, str]:
    """Which of the servers gets a datagram to the address' port 80, and from whom; `by` is the sender's address."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with where.inside():
        sender = net.stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    if by:
        sender.bind((by, 0))
    sender.settimeout(patient(5))
    sender.connect((to, 80))
    sender.send(b"x")
    found: list[tuple[str, str]] = []
    while not found:
        for name, server in servers.items():
            server.settimeout(patient(0.05))
            try:
                _, client = server.recvfrom(9)
            except TimeoutError:
                continue
            server.sendto(b"answer", client)
            found.append((name, client[0]))
    assert sender.recv(9) == b"answer", "the answer comes from where the question went"
    (only,) = found
    return only


def servers(net: Net, *addresses: str) -> dict[str, socket.socket]:
    return {a: net.open(net.world if a in (WEB, WEB6) else net.node, a, port=80) for a in addresses}


def test_K3_each_protocol_and_port_leads_to_its_own_service_and_all_others_are_left_alone(net: Net) -> None:
    put(net, {f"{LB} UDP 80": target(IP), f"{LB} TCP 80": target(SECOND), f"{LB6} UDP 80": target(IP6)})
    there = servers(net, LB, LB6, IP, IP6, SECOND, "192.0.2.211")
    assert source(net, net.pod, LB, there, by=POD) == (IP, POD)
    assert source(net, net.pod, LB6, there, by=POD6) == (IP6, POD6)
    assert source(net, net.node, LB, there) == (IP, LB)
    assert source(net, net.pod, "192.0.2.211", there, by=POD) == ("192.0.2.211", POD)
    assert source(net, net.world, LB, there) == (LB, "10.0.0.2"), "what comes from outside is not ours to lead"
    with net.open(net.node, SECOND, port=80, kind=socket.SOCK_STREAM) as listener:
        listener.listen()
        client = net.open(net.pod, POD, kind=socket.SOCK_STREAM)
        client.connect((LB, 80))
        accepted, (address, _) = listener.accept()
        accepted.close()
        assert address == POD


@pytest.mark.parametrize("mark", [0, 0x4000], ids=["our-own", "K4-with-a-mark"])
def test_K4_the_host_reaches_other_nodes_with_an_address_that_they_can_answer(net: Net, mark: int) -> None:
    """No chain of kube-proxy is needed; where a mark is asked for, whoever masquerades by it does."""
    put(net, {f"{LB} UDP 80": target(WEB), f"{LB6} UDP 80": target(WEB6)}, masquerade_mark=mark)
    if mark and net.backend == IPTABLES:
        for program in ("iptables", "ip6tables"):
            net.iptables("-t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE", program=program)
    elif mark:
        net.node.run("nft", "-f", "-", stdin=KUBE_PROXY)
    there = servers(net, WEB, WEB6)
    assert source(net, net.node, LB, there, by=LB) == (WEB, NODE)
    assert source(net, net.node, LB6, there, by=LB6) == (WEB6, "fd00::1")
    assert source(net, net.pod, LB6, there, by=POD6) == (WEB6, POD6), "pods keep their own"


def test_source_ranges_tell_who_is_led_away(net: Net) -> None:
    put(net, {f"{LB} UDP 80": target(IP, f"{POD}/32", host=False), f"{LB6} UDP 80": target(IP6, "fd00::/16")})
    there = servers(net, LB, LB6, IP, IP6)
    assert source(net, net.pod, LB, there, by=POD) == (IP, POD)
    assert source(net, net.pod, LB, there, by=PLAIN) == (LB, PLAIN)
    assert source(net, net.node, LB, there) == (LB, LB)
    assert source(net, net.pod, LB6, there, by=POD6) == (IP6, POD6)
    assert source(net, net.node, LB6, there) == (IP6, LB6)


def test_the_translation_of_others_is_made_for_all_that_is_not_ours(net: Net) -> None:
    if net.backend == IPTABLES:
        for chain in ("PREROUTING", "OUTPUT"):
            net.iptables(f"-t nat -A {chain} -d 192.0.2.211 -p udp --dport 80 -j DNAT --to 10.96.0.11")
    else:
        net.node.run("nft", "-f", "-", stdin=PROXY_PROCESS)
    there = servers(net, LB, "192.0.2.211", IP, SECOND)
    put(net, {f"{LB} UDP 80": target(IP)})
    assert source(net, net.pod, "192.0.2.211", there, by=POD) == (SECOND, POD)
    assert source(net, net.node, "192.0.2.211", there)[0] == SECOND
    assert source(net, net.pod, LB, there, by=POD) == (IP, POD)


def test_K1_an_address_that_goes_leaves_the_others_in_place(net: Net) -> None:
    both = {f"{LB} UDP 80": target(IP), "192.0.2.211 UDP 80": target(SECOND)}
    there = servers(net, LB, "192.0.2.211", IP, SECOND)
    put(net, both)
    assert [source(net, net.pod, to, there, by=POD)[0] for to in (LB, "192.0.2.211")] == [IP, SECOND]
    put(net, {f"{LB} UDP 80": target(IP)})
    assert [source(net, net.pod, to, there, by=POD)[0] for to in (LB, "192.0.2.211")] == [IP, "192.0.2.211"]


@nftables_only("the steps are the same ones")
def test_K2_datagrams_go_to_the_new_cluster_ip_at_once(net: Net, tmp_path: Path) -> None:
    """Those of one flow, through the steps that a change makes. What did not change keeps its entry."""
    server, other = virtual_server(f"{LB} UDP 80"), virtual_server("192.0.2.211 UDP 80")
    kept = {other: target(SECOND)}
    walls = [wall(clients=PODS, targets=kept | to) for to in ({}, {server: target(IP)}, {server: target(SECOND)}, {})]
    there = servers(net, LB, IP, SECOND)
    sender, beside = net.open(net.pod, POD), net.open(net.pod, POD)
    ways: list[str] = []
    with Machine(tmp_path) as machine:
        for before, after in itertools.pairwise([None, *walls]):
            states = (NodeState(firewall=firewall) for firewall in (before, after))
            done = [machine.carry_out([step.operation]) for step in diff.steps(*states, why=str)]
            assert done == [[0], [1 if before and ways else 0]]
            sender.sendto(b"x", (LB, 80))
            ways.append(next(name for _ in range(1000) for name, one in there.items() if _got(one)))
            beside.sendto(b"x", ("192.0.2.211", 80))
            assert _got(there[SECOND])
    assert ways == [LB, IP, SECOND, LB]


def _got(server: socket.socket) -> bool:
    server.settimeout(patient(0.2))
    try:
        server.recv(9)
    except TimeoutError:
        return False
    return True


@nftables_only("iptables has a rule for each address and port")
def test_a_thousand_services(net: Net) -> None:
    """A look-up each, whatever there is beside: no rule names a Service."""
    many = {f"192.0.2.{n % 200} TCP {1000 + n}": target(f"10.96.{n // 250}.{n % 250 + 1}") for n in range(1000)}
    put(net, {f"{LB} UDP 80": target(IP)})
    rules = net.node.run("nft", "-s", "list", "chains").stdout
    put(net, {**many, f"{LB} UDP 80": target(IP)})
    assert net.node.run("nft", "-s", "list", "chains").stdout == rules
    assert source(net, net.pod, LB, servers(net, LB, IP), by=POD) == (IP, POD)


@nftables_only("it is about no packet filter")
def test_the_addresses_of_an_interface(net: Net) -> None:
    with RoutingControl() as routing:
        found = routing.addresses_of({"kube-ipvs0", "eth0", "none"})
        assert set(found) == {"kube-ipvs0", "eth0"}
        assert {str(a) for a in found["kube-ipvs0"]} == {LB, LB6, "192.0.2.211", IP, IP6, SECOND}
        net.node.run("ip", "address", "flush", "dev", "kube-ipvs0")
        assert routing.addresses_of({"kube-ipvs0"}) == {"kube-ipvs0": frozenset()}
