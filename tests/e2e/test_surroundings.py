"""What hosts and networks around the program do to egress traffic and its answers: reverse-path filters that look at
marks, links with a small MTU, switches that check sources, kube-proxy's own firewall, two kinds of iptables at once."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network

import pytest

from metaleg_node.core.model import FAMILIES, Address, Family, Network
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.outside import ADDRESS_FAMILY
from metaleg_node.lab.plan import (
    NODES,
    OUTSIDE_NETWORK,
    ROUTER_LAN,
    ROUTER_OUTSIDE,
    SERVER,
    SERVER_PORT,
    SERVICE_PORT,
    LabPod,
    LabService,
)
from metaleg_node.lab.topology import DEFAULT_ROUTE
from tests.e2e.scenario import (
    NODE1,
    NODE2,
    NODE3,
    SETTLED,
    egress_service,
    expect,
    expect_no_way_out,
    foreign,
    ours,
    sources,
    texts,
)
from tests.lab import cluster_rules
from tests.lab.lab import Lab
from tests.lab.plan import Attachment, Flavour, LabOptions, PodTransport
from tests.lab.probes import open_tcp

KINDS = (
    LabOptions(flavour=Flavour.IPTABLES_LEGACY, rp_filter=1),
    LabOptions(flavour=Flavour.NFT, transport=PodTransport.VXLAN, attachment=Attachment.ROUTED, rp_filter=1),
)


@pytest.fixture(scope="module", params=KINDS, ids=lambda o: f"{o.transport}-{o.attachment}")
def cluster(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One egress Service (pods on node1 and node2, gateway node2), running daemons, strict reverse-path filters; each
    test puts back what it changes."""
    with Lab(request.param) as lab:
        lab.set_services(egress_service(lab))
        lab.start_daemons()
        yield lab


# --- sysctls of others -----------------------------------------------------------------------------------------------


@contextmanager
def marks_count_for_reverse_paths(lab: Lab) -> Iterator[None]:
    """As wg-quick and Tailscale set it, for all interfaces."""
    with ExitStack() as stack:
        for node in NODES:
            stack.callback(lab.namespace(node).sysctl, {"ipv4/conf/all/src_valid_mark": 0})
            lab.namespace(node).sysctl({"ipv4/conf/all/src_valid_mark": 1})
        yield


def test_F18_reverse_paths_are_right_also_where_marks_count_for_them(cluster: Lab) -> None:
    web = cluster.services["web"]
    for node in NODES:
        found = cluster.namespace(node).run("sysctl", "-ar", r"^net\.ipv4\.conf\..*\.src_valid_mark$").splitlines()
        assert {line.split()[-1] for line in found} == {"0"}, "the program itself never sets it"
    with marks_count_for_reverse_paths(cluster):
        for pod in web.pods:
            assert sources(cluster, pod, 0.3) == texts(web.addresses)
        assert sources(cluster, cluster.pod(NODE1, 2)) == texts(NODE1.addresses)


# --- what the network tells ------------------------------------------------------------------------------------------

SMALL_MTU = 1300
PMTU = {4: (socket.IPPROTO_IP, 10, 14), 6: (socket.IPPROTO_IPV6, 23, 24)}
"""IP_MTU_DISCOVER and IP_MTU of linux/in.h, IPV6_MTU_DISCOVER and IPV6_MTU of linux/in6.h, with their level."""
ERRORS = {4: (socket.IPPROTO_IP, 11, socket.IP_TTL), 6: (socket.IPPROTO_IPV6, 25, socket.IPV6_UNICAST_HOPS)}
"""IP_RECVERR, IPV6_RECVERR, and how many hops a packet may travel."""
WANT, DO = 1, 2
"""IP_PMTUDISC_WANT: fragment what the path does not take whole; IP_PMTUDISC_DO: refuse it."""


@contextmanager
def narrow(lab: Lab) -> Iterator[None]:
    """A link beyond the router takes packets of 1300 bytes only; the server knows it, the cluster does not."""

    def link(mtu: int, metrics: str) -> None:
        lab.namespace("router").ip([f"link set wan mtu {mtu}"])
        ways = (f"{DEFAULT_ROUTE[f]} via {ROUTER_OUTSIDE[f]}" for f in FAMILIES)
        lab.namespace("outside").ip(f"route replace {way} {metrics}" for way in ways)
        for pod in lab.pods:
            for family in FAMILIES:
                lab.namespace(pod).run("ip", f"-{family}", "route", "flush", "cache")

    link(SMALL_MTU, f"mtu {SMALL_MTU} advmss 1400")
    try:
        yield
    finally:
        link(1500, "")


def udp_to_server(lab: Lab, pod: LabPod, family: Family, *, port: int = SERVER_PORT) -> socket.socket:
    sock = lab.namespace(pod).socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM)
    sock.settimeout(2)
    sock.connect((str(SERVER[family]), port))
    return sock


@pytest.mark.parametrize("family", FAMILIES)
def test_F23_tcp_learns_of_a_smaller_mtu_outside(cluster: Lab, family: Family) -> None:
    web, line = cluster.services["web"], b"x" * 30000
    for pod in web.pods:
        with narrow(cluster), open_tcp(cluster.namespace(pod), SERVER[family], SERVER_PORT, 5) as sock:
            before = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            sock.sendall(line + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                answer += sock.recv(65536)
            source, _, _, got = answer.split()
            assert (source.decode(), got) == (str(web.addresses[family]), line)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) < SMALL_MTU < before


@pytest.mark.parametrize("family", FAMILIES)
def test_F23_datagrams_that_are_too_big_are_reported_to_the_pod(cluster: Lab, family: Family) -> None:
    web, (level, discover, mtu) = cluster.services["web"], PMTU[family]
    for pod in web.pods:
        with narrow(cluster), udp_to_server(cluster, pod, family) as sock:
            sock.setsockopt(level, discover, DO)
            sock.send(b"x" * 1390)
            assert wait_until(partial(has_failed, sock, errno.EMSGSIZE), SETTLED)
            assert sock.getsockopt(level, mtu) == SMALL_MTU
            sock.setsockopt(level, discover, WANT)
            sock.send(b"y" * 4000)
            source, _, _, got = sock.recv(9000).split()
            assert (source.decode(), got) == (str(web.addresses[family]), b"y" * 4000)


def has_failed(sock: socket.socket, number: int) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == number


@pytest.mark.parametrize("family", FAMILIES)
def test_F23_errors_of_routers_and_of_the_server_reach_the_pod(cluster: Lab, family: Family) -> None:
    level, want_errors, hops = ERRORS[family]
    for pod, to_router in zip(cluster.services["web"].pods, (3, 2), strict=True):
        with udp_to_server(cluster, pod, family, port=9) as sock:
            sock.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(9)
        with udp_to_server(cluster, pod, family) as sock:
            sock.setsockopt(level, want_errors, 1)
            sock.setsockopt(level, hops, to_router)
            sock.send(b"x")
            with pytest.raises(OSError, match="No route to host"):
                sock.recv(9)
            _, ancillary, _, _ = sock.recvmsg(9, 512, socket.MSG_ERRQUEUE)
            assert offender(ancillary[0][2]) == ROUTER_LAN[family]


def offender(report: bytes) -> Address:
    """Who sent an ICMP error: the address behind struct sock_extended_err (linux/errqueue.h)."""
    (number,) = struct.unpack_from("=I", report)
    assert number == errno.EHOSTUNREACH
    where = report[16:]
    (kind,) = struct.unpack_from("=H", where)
    return ip_address(where[4:8] if kind == socket.AF_INET else where[8:24])


REDIRECTS = """\
table inet redirects {
    counter sent4 { }
    counter sent6 { }
    chain output {
        type filter hook output priority -400;
        icmp type redirect counter name sent4
        icmpv6 type nd-redirect counter name sent6
    }
}
"""


def test_F25_a_gateway_that_forwards_out_of_the_interface_of_arrival_sends_no_redirects(cluster: Lab) -> None:
    """The packets of pods and their answers come from neighbours, but not from the neighbours' own addresses. A packet
    of a node itself shows that a redirect would be seen."""
    web, gateway = cluster.services["web"], cluster.namespace(NODE2)
    addresses = cluster.namespace("router").run("ip", "-6", "address", "show", "dev", "eth0")
    (link_local,) = re.findall(r"inet6 (fe80::\S+)/64", addresses)
    detours = [f"{ROUTER_OUTSIDE[f]} via {NODE2.addresses[f]}" for f in FAMILIES]
    with ExitStack() as stack:
        stack.callback(gateway.ip, [f"route replace ::/0 via {ROUTER_LAN[6]}"])
        # IPv6 knows no redirects to other addresses than link-local ones.
        gateway.ip([f"route replace ::/0 via {link_local} dev eth0"])
        stack.callback(gateway.run, "nft", "delete", "table", "inet", "redirects")
        gateway.run("nft", "-f", "-", stdin=REDIRECTS)
        with open_tcp(cluster.namespace(web.pods[0]), SERVER[4], SERVER_PORT, 2) as sock:
            for _ in range(20):
                sock.send(b"x\n")
                assert sock.recv(100)
        assert sources(cluster, web.pods[0]) == texts(web.addresses)
        assert redirects(cluster) == (0, 0)
        stack.callback(cluster.namespace(NODE1).ip, [f"route delete {way}" for way in detours])
        cluster.namespace(NODE1).ip(f"route add {way}" for way in detours)
        for family in FAMILIES:
            assert cluster.ask(NODE1, "udp", family, to=(ROUTER_OUTSIDE[family], 9)).error == "refused"
        assert redirects(cluster) == (1, 1)


def redirects(lab: Lab) -> tuple[int, ...]:
    listing = lab.namespace(NODE2).run("nft", "list", "counters", "table", "inet", "redirects")
    return tuple(int(found) for found in re.findall(r"packets (\d+)", listing))


# --- switches that check sources -------------------------------------------------------------------------------------

ANTI_SPOOFING = """\
table bridge guard {
    chain forward {
        type filter hook forward priority 0;
        ip saddr 10.244.0.0/16 drop
        ip6 saddr fd00:244::/48 drop
    }
}
"""


def test_F26_where_the_network_drops_pod_addresses_between_nodes_pods_are_cut_off(cluster: Lab) -> None:
    web, switch = cluster.services["web"], cluster.namespace("switch")
    there, here = web.pods
    cluster.reset_seen()
    switch.run("nft", "-f", "-", stdin=ANTI_SPOOFING)
    expect_no_way_out(cluster, there)
    assert cluster.seen() == set()
    assert sources(cluster, here) == texts(web.addresses)
    switch.run("nft", "delete", "table", "bridge", "guard")
    expect(cluster, there, texts(web.addresses))


# --- other packet filters --------------------------------------------------------------------------------------------

ELSEWHERE: dict[Family, Network] = {4: ip_network("203.0.113.0/24"), 6: ip_network("2001:db8:9::/64")}
PROXIES = {"iptables": Flavour.IPTABLES_LEGACY, "nftables": Flavour.NFT, "ipvs": Flavour.IPTABLES_LEGACY}


@pytest.mark.parametrize("proxy", PROXIES)
def test_F13_answers_to_ports_of_no_service_pass_the_firewall_of_load_balancer_addresses(proxy: str) -> None:
    with Lab(LabOptions(flavour=PROXIES[proxy])) as lab:
        web = replace(egress_service(lab), source_ranges=ELSEWHERE)
        other = LabService(
            name="open", number=1, pods=web.pods, gateway=NODE3, labelled=False, source_ranges=OUTSIDE_NETWORK
        )
        lab.set_services(web, other)
        if proxy == "ipvs":
            hold_addresses_as_ipvs_does(lab, (web, other))
        lab.start_daemons()
        for pod in web.pods:
            assert sources(lab, pod) == texts(web.addresses)
        for family in FAMILIES:
            assert from_port(lab, web.pods[0], family, SERVICE_PORT) == [str(web.addresses[family]), str(SERVICE_PORT)]
            assert lab.ask("outside", "tcp", family, 0.3, to=(web.addresses[family], SERVICE_PORT)).error == "timeout"
            assert lab.ask("outside", "tcp", family, to=(other.addresses[family], SERVICE_PORT)).by


def hold_addresses_as_ipvs_does(lab: Lab, services: Iterable[LabService]) -> None:
    """kube-proxy in IPVS mode: every node has every LoadBalancer address, and refuses what is for no Service's port."""
    for node in NODES:
        for family in FAMILIES:
            program = "iptables-legacy" if family == 4 else "ip6tables-legacy"
            for service in services:
                address = str(service.addresses[family])
                lab.namespace(node).ip([f"address add {address} dev lo{' nodad' if family == 6 else ''}"])
                rule = f"-A INPUT -d {address} -m conntrack --ctstate NEW -j REJECT"
                lab.namespace(node).run(program, *rule.split())


def from_port(lab: Lab, pod: LabPod, family: Family, port: int) -> list[str]:
    """The source address and port that the server sees of a datagram from this port of a pod."""
    with lab.namespace(pod).socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.bind(("", port))
        sock.sendto(b"x", (str(SERVER[family]), SERVER_PORT))
        return sock.recv(100).decode().split()[:2]


def test_F42_iptables_legacy_and_nft_on_the_same_node(lab: Lab) -> None:
    lab.set_services(egress_service(lab))
    web, services = lab.services["web"], tuple(lab.services.values())
    for node in NODES:
        for family, program in zip(FAMILIES, ("iptables-nft-restore", "ip6tables-nft-restore"), strict=True):
            lab.namespace(node).run(program, stdin=cluster_rules.iptables(node, services, lab.options, family))
    others = {node: foreign(lab, node) for node in NODES}
    lab.start_daemons()
    for pod in web.pods:
        assert sources(lab, pod) == texts(web.addresses)
    plain = lab.pod(NODE1, 2)
    assert sources(lab, plain) == texts(NODE1.addresses)
    for family in FAMILIES:
        for client in (plain, "outside"):
            assert lab.ask(client, "tcp", family, to=(web.addresses[family], SERVICE_PORT)).by
    for node, daemon in lab.daemons.items():
        assert foreign(lab, node) == others[node]
        daemon.stop()
        assert daemon.command("cleanup").returncode == 0
        assert not any(ours(lab, node).values())
        assert foreign(lab, node) == others[node]
