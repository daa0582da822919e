"""Answers go back through the very router that brought the request, on the real kernel."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.model import FAMILIES, Slot
from metaleg_node.core.return_path.node import PathDecision
from metaleg_node.daemon import report
from metaleg_node.kernel.iptables.backend import Iptables
from metaleg_node.kernel.nftables.backend import Nftables
from metaleg_node.lab.daemons import wait_until
from metaleg_node.reconcile.reconciler import Plan, carry_out, cleanup_plan
from tests.patience import patient
from tests.router_net import BEHIND, FAR, HOST, POD, ROUTERS, TCP, UDP, RouterNet, client, lb, router, router_net, say
from tests.unit.test_pools import BGP

FLUSH = {
    Nftables.place: "nft delete table inet metaleg_node",
    Iptables.place: "for p in iptables ip6tables; do $p-legacy -t mangle -F; $p-legacy -t mangle -X; done",
}
ETH_P_IP, ETH_P_ARP = 0x0800, 0x0806
ANY = f"{BGP}symmetric = false\n"
ALL = dict.fromkeys(ROUTERS, 8)


@pytest.fixture(params=["nftables", "iptables"])
def net(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RouterNet]:
    """All routers are peers, and known."""
    # A thousand ends of connections, where a shell has 1,024 files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with router_net(tmp_path, request.param) as made:
        made.meet()
        made.configure()
        yield made


def slots(net: RouterNet) -> dict[str, Slot]:
    """The routers' slots, by their IPv4 addresses."""
    return {str(hop.gateway): slot for hop, slot in path(net.plan()).routers.items()}


def path(plan: Plan) -> PathDecision:
    (found,) = plan.desired.paths
    return found


def known(net: RouterNet) -> set[str]:
    """The IPv4 routers that are told apart now."""
    firewall = net.plan().desired.state.firewall
    assert firewall
    found = firewall.part(ReturnPaths).routers.values()
    return {one.holder.name.rpartition(":")[2] for one in found if one.family == 4 and one.link_address}


def mark(net: RouterNet, number: int) -> int:
    return slots(net)[router(number)] << 24


def strict(net: RouterNet) -> None:
    """Clients take answers by the way that they send by alone."""
    net["client"].sysctl({f"ipv4/conf/via{n}/rp_filter": 1 for n in ROUTERS})


def test_R19_each_client_is_answered_through_its_own_router(net: RouterNet) -> None:
    for family in FAMILIES:
        for to in (POD, FAR, HOST):
            for kind in (TCP, UDP):
                assert net.answered(ROUTERS, to, kind, family) == ALL, (family, to, kind)
            assert all(net.pings(n, to, family) for n in ROUTERS), (family, to)
    net.configure(ANY)
    # A datagram has one chance; TCP may find the right router when it tries again.
    found = net.answered(ROUTERS, POD, UDP, count=20)
    assert all(0 < number < 20 for number in found.values()), "any router gets what only one can deliver"


def test_two_hundred_connections_through_each_router_at_once_are_all_answered(net: RouterNet) -> None:
    assert net.answered(ROUTERS, POD, count=200) == dict.fromkeys(ROUTERS, 200)
    plan = net.reconciler.look_again(net.plan())
    for hop in path(plan).routers:
        came = report.passed(plan, path(plan), hop)
        assert came
        # A handshake and a line each, at least, if it is a router of IPv4.
        least = 3 * 200 if hop.gateway and hop.gateway.version == 4 else 0
        assert came.requests.packets >= least, hop
        assert came.answers.packets >= least * 2 // 3, hop


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_connection_follows_its_requests_to_another_router(net: RouterNet, kind: int) -> None:
    strict(net)
    with net.open(0, POD, kind) as sock:
        assert net.marks(sock) == [mark(net, 1)]
        for number in (3, 2, 1, 3):
            net.lead(0, number)
            assert say(sock), number
            assert net.marks(sock) == [mark(net, number)]


def test_what_comes_by_a_router_that_is_no_peer_leaves_by_any(net: RouterNet) -> None:
    net.configure(peers=(1, 2))
    net.lead(0, 3)
    assert net.answered([0], POD, count=20) == {0: 20}
    net.lead(0, 1)
    with net.open(0, POD) as sock:
        assert net.marks(sock) == [mark(net, 1)]
        net.lead(0, 3)
        assert say(sock)
        assert net.marks(sock) == [0]
    assert net.answered([1, 2], POD) == {1: 8, 2: 8}


def test_when_a_router_fails_its_open_connections_go_on_by_the_others_and_back(net: RouterNet) -> None:
    net.node.sysctl({"ipv4/fib_multipath_use_neigh": 1})
    ends, pod = net.listen_to(0)
    with ends, pod:
        pod.send(b"one")
        assert ends.recv(9) == b"one"
        before = slots(net)
        net["switch"].ip(["link set to-r1 down"])
        net.node.ip([f"neighbour replace {router(1)} dev eth0 nud failed"])
        assert known(net) == {router(2), router(3)}
        net.apply()
        # The client says nothing meanwhile.
        pod.send(b"two")
        assert ends.recv(9) == b"two"
        assert slots(net) == before
        net["switch"].ip(["link set to-r1 up"])
        net.meet(1)
        net.apply()
        pod.send(b"three")
        assert ends.recv(9) == b"three"
    assert net.answered(ROUTERS, POD) == ALL


def test_when_an_interface_goes_down_its_routers_connections_leave_by_the_others_at_once(net: RouterNet) -> None:
    net.lead(0, 3)
    ends, pod = net.listen_to(0)
    with ends, pod:
        assert net.marks(ends) == [mark(net, 3)]
        net.node.ip(["link set eth1 down"])
        # Nobody has decided anything yet.
        pod.send(b"one")
        assert ends.recv(9) == b"one"
        net.apply()
        pod.send(b"two")
        assert ends.recv(9) == b"two"
    assert net.answered([1, 2], POD) == {1: 8, 2: 8}
    net.node.ip(["link set eth1 up", "address add fd00:3::1/64 dev eth1"])
    net.meet(3)
    net.apply()
    assert net.answered(ROUTERS, POD) == ALL


def test_a_pair_of_routers_with_one_address_is_known_by_who_has_it(net: RouterNet) -> None:
    """As VRRP has it, without a link-layer address of its own: the backup forwards as well until it is the master."""
    pair = "10.0.0.50"
    net["r1"].ip([f"address add {pair}/24 dev lan"])
    net.state = net.peering((pair, router(3)))
    net.node.run("ping", "-c1", pair)
    net.apply()
    assert net.answered([1, 3], POD) == {1: 8, 3: 8}
    with net.open(0, POD) as sock:
        assert net.marks(sock) == [slots(net)[pair] << 24]
        net.lead(0, 2)
        assert say(sock)
        assert net.marks(sock) == [0], "by the backup: any next hop will do"
        net["r1"].ip([f"address delete {pair}/24 dev lan"])
        net["r2"].ip([f"address add {pair}/24 dev lan"])
        announce(net, 2, pair)
        net.apply()
        assert say(sock)
        assert net.marks(sock) == [slots(net)[pair] << 24]
    assert net.answered([2, 3], POD) == {2: 8, 3: 8}


def announce(net: RouterNet, number: int, address: str) -> None:
    """A router tells everybody that it has an address now (gratuitous ARP), as a new master of VRRP does, until the
    node has heard: within a second of what it heard last a neighbour's news counts for nothing (arp(7), locktime)."""
    with net[f"r{number}"].socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("lan", ETH_P_ARP))
        mine, it = raw.getsockname()[4], ip_address(address).packed
        body = struct.pack("!HHBBH6s4s6s4s", 1, ETH_P_IP, 6, 4, 1, mine, it, bytes(6), it)
        frame = b"\xff" * 6 + mine + struct.pack("!H", ETH_P_ARP) + body

        def heard() -> bool:
            raw.send(frame)
            return mine.hex(":") in net.node.run("ip", "neighbour", "show", "to", address)

        assert wait_until(heard, patient(10), pause=0.1)


OTHERS = """\
table inet others {
    chain save {
        type filter hook postrouting priority mangle
        ct mark set ct mark | 0x5
    }
    chain restore {
        type filter hook prerouting priority mangle
        meta mark set ct mark
    }
}
"""


def test_marks_of_others_stay_and_what_they_restore_leads_no_request_astray(net: RouterNet) -> None:
    net.node.run("nft", "-f", "-", stdin=OTHERS)
    for to in (POD, BEHIND):
        assert net.answered(ROUTERS, to) == ALL
    with net.open(0, POD) as sock, net.open(2, POD) as other:
        for number in (1, 2):
            net.lead(0, number)
            assert say(sock)
            assert net.marks(sock) == [mark(net, number) | 5]
        net.configure(peers=(1, 3))
        assert net.marks(other) == [5], "of a router that is none any more nothing is remembered"
        net.lead(0, 1)
        assert say(sock)
        assert carry_out(net.machine, cleanup_plan(net.machine).steps).ok
        assert net.marks(sock) == [5]
        assert not net.machine.packet_filter.present()


def test_an_error_about_an_answer_that_comes_by_another_router_changes_nothing(net: RouterNet) -> None:
    with net.open(0, POD) as sock, net["r2"].socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        port = sock.getsockname()[1]
        addresses = ip_address(lb(POD)).packed + ip_address(client(0)).packed
        about = struct.pack("!BBHHHBBH8sHHI", 0x45, 0, 40, 1, 0, 60, 6, 0, addresses, 5000, port, 0)
        message = struct.pack("!BBHI", 3, 1, 0, 0) + about
        words = sum(struct.unpack(f"!{len(message) // 2}H", message))
        words = (words & 0xFFFF) + (words >> 16)
        message = message[:2] + struct.pack("!H", ~(words + (words >> 16)) & 0xFFFF) + message[4:]
        before = net.machine.packet_filter.counters()
        related = "table inet seen { chain c { type filter hook prerouting priority 0; ct state related counter; }; }"
        net.node.run("nft", "-f", "-", stdin=related)
        raw.sendto(message, (lb(POD), 0))
        assert "packets 1 " in _listed_when(net, "packets 1 "), before
        assert net.marks(sock) == [mark(net, 1)]
        assert say(sock)


def _listed_when(net: RouterNet, text: str) -> str:
    """The table `seen`, once it tells this, or after all patience."""
    for _ in range(int(patient(50))):
        listed = net.node.run("nft", "list", "table", "inet", "seen")
        if text in listed:
            break
        net.node.run("ping", "-c1", router(2))
    return listed


def test_slots_of_routers_outlast_a_flush_of_the_ruleset(net: RouterNet) -> None:
    net.configure(peers=(3, 2))
    net.configure()
    before = slots(net)
    assert len(before) == 6
    net.node.run("sh", "-c", FLUSH[net.machine.packet_filter.place])
    assert net.plan().steps
    net.apply()
    assert slots(net) == before


def test_routers_of_which_nothing_is_known_are_looked_for(net: RouterNet) -> None:
    net.node.ip([f"neighbour flush dev {name}" for name in ("eth0", "eth1")])
    assert known(net) == set()
    net.reconciler.look_again(net.plan())
    for _ in range(int(patient(50))):
        if known(net) == {router(n) for n in ROUTERS}:
            break
        net.node.run("ping", "-c1", "-W1", "10.0.0.2")
    assert known(net) == {router(n) for n in ROUTERS}
