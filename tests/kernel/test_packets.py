"""What the packet filter does to packets: a pod, a node that masquerades like a CNI, and the world outside.

That something does not arrive is known by what is sent after it and does.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from metaleg_node.core.compare import flows
from metaleg_node.core.firewall.egress import EgressPod, Treatment
from metaleg_node.core.firewall.return_paths import ReturnPath
from metaleg_node.core.model import DestinationFilter, Holder, Match, Slot
from metaleg_node.kernel.netlink import conntrack
from tests.firewalls import MASK, addresses, flat, networks
from tests.kernel.packet_net import (
    BACKENDS,
    BASE,
    HOLD,
    IPTABLES,
    LB,
    NEAR,
    NODE,
    PLAIN,
    POD,
    POD6,
    PORT,
    RULE6,
    SNAT,
    STEER,
    WEB,
    WEB6,
    Net,
    batch,
    every_variant,
    nftables_only,
    packet_net,
    wait_for_drop,
)
from tests.netns import Netns
from tests.patience import patient

LB6 = "2001:db8:2::200"
SYN, RST, ACK = 0x02, 0x04, 0x10
"""Flags of TCP (RFC 9293, section 3.1)."""


@pytest.fixture(params=BACKENDS)
def net(netns: Netns, request: pytest.FixtureRequest) -> Iterator[Net]:
    with packet_net(netns, request.param) as made:
        yield made


# --- steering --------------------------------------------------------------------------------------------------------


def test_without_us_the_pod_is_masqueraded(net: Net) -> None:
    assert net.seen(net.server(), net.open(net.pod, POD)) == [NODE]


@every_variant
def test_a_steered_pod_leaves_with_its_own_address_whatever_the_CNI_masquerades(net: Net) -> None:
    net.put(STEER)
    assert net.seen(net.server(), net.open(net.pod, POD)) == [POD]
    assert net.counted("steered") == 1


@nftables_only("iptables knows no next hop")
def test_a_steered_pod_whose_rule_is_lost_sends_nothing(net: Net) -> None:
    net.put(STEER)
    server, sender = net.server(), net.open(net.pod, POD)
    assert net.seen(server, sender) == [POD]
    net.node.run("ip", "rule", "delete", "priority", "4700")
    assert net.seen(server, sender, net.open(net.pod, POD)) == []
    assert net.counted("dropped") == 2


@nftables_only("iptables knows no next hop")
def test_a_steered_pod_whose_route_leads_elsewhere_sends_nothing(net: Net) -> None:
    net.put(STEER)
    net.node.run("ip", "route", "replace", "default", "via", "10.0.0.254", "table", "1000001")
    assert net.seen(net.server(), net.open(net.pod, POD)) == []


def test_F33_a_packet_marked_before_a_change_and_guarded_after_it_does_not_leave(net: Net) -> None:
    """The mark of a slot that is none any more stands for the change in between."""
    net.put(STEER)
    server, sender = net.server(), net.open(net.pod, POD)
    assert net.seen(server, sender) == [POD]
    former = f"ip saddr {POD} meta mark set {9 << 24:#x}"
    chain = f"type filter hook prerouting priority -80; {former}"
    net.node.run("nft", "-f", "-", stdin=f"table inet former {{\nchain pre {{ {chain};\n}}\n}}\n")
    assert net.seen(server, sender, net.open(net.pod, POD)) == []
    assert net.counted("dropped") == 2


@nftables_only("iptables knows no next hop")
def test_ipv6_is_steered_too_and_stops_with_its_rule(net: Net) -> None:
    net.put(STEER)
    server, sender = net.server(address=WEB6), net.open(net.pod, POD6)
    sender.sendto(b"x", (WEB6, PORT))
    assert server.recvfrom(9)[1][0] == POD6
    net.node.run("ip", "-6", "rule", "delete", "priority", "4700")
    sender.sendto(b"lost", (WEB6, PORT))
    net.node.run("ip", "-6", *RULE6)
    sender.sendto(b"found", (WEB6, PORT))
    assert server.recvfrom(9)[0] == b"found"


def test_destinations_inside_the_cluster_are_left_alone(net: Net) -> None:
    net.put(STEER)
    server = net.open(net.world, NEAR, port=PORT)
    assert net.seen(server, net.open(net.pod, POD)) == [NODE]


@pytest.mark.parametrize("held", [EgressPod(treatment=Treatment.HOLD), EgressPod(treatment=Treatment.ELSEWHERE), STEER])
def test_S5_F12_answers_of_a_node_port_are_left_alone(net: Net, held: EgressPod) -> None:
    net.offer_node_port()
    net.put(held)
    pod, client = net.open(net.pod, POD, port=80), net.open(net.world, WEB)
    client.sendto(b"question", (NODE, 30080))
    question, who = pod.recvfrom(9)
    pod.sendto(b"answer", who)
    assert question == b"question"
    assert client.recvfrom(9) == (b"answer", (NODE, 30080))


@every_variant
def test_connections_that_began_before_keep_their_way(net: Net) -> None:
    server = net.server(socket.SOCK_STREAM)
    early = net.open(net.pod, POD, kind=socket.SOCK_STREAM)
    early.connect((WEB, PORT))
    connection, who = server.accept()
    net.stack.enter_context(connection)
    assert who[0] == NODE
    for treatment in (STEER, SNAT, EgressPod(treatment=Treatment.HOLD), EgressPod(treatment=Treatment.ELSEWHERE)):
        net.put(treatment)
        early.send(b"x")
        assert connection.recv(9) == b"x"
        connection.send(b"y")
        assert early.recv(9) == b"y"


# --- translating -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ports", ["preserve", "random"])
@every_variant
def test_the_gateway_translates_to_the_load_balancer_address(net: Net, ports: str) -> None:
    net.put(SNAT, source_ports=ports)
    server, sender = net.server(), net.open(net.pod, POD, port=4321)
    sender.sendto(b"x", (WEB, PORT))
    source, port = server.recvfrom(9)[1]
    assert source == LB
    assert (port == 4321) == (ports == "preserve")
    server.sendto(b"answer", (source, port))
    assert sender.recv(9) == b"answer"


@every_variant
def test_S9_packets_that_conntrack_does_not_know_do_not_leave_untranslated(net: Net) -> None:
    net.node.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0")
    net.put(SNAT)
    assert first_of_no_connection(net) == PLAIN, "only what is not ours leaves as it is"
    assert net.counted("dropped") == 1


def first_of_no_connection(net: Net) -> str:
    """Whose packet comes out first, of an egress pod's and then another pod's that belong to no connection."""
    with net.world.inside():
        wire = net.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
    wire.settimeout(patient(5))
    for source in (POD, PLAIN):
        with net.pod.inside():
            raw = net.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
        raw.bind((source, 0))
        raw.sendto(segment(source), (WEB, 0))
    return str(wire.recvfrom(99)[1][0])


def segment(source: str, destination: str = WEB, *, port: int = 4000, flags: int = ACK) -> bytes:
    """A TCP segment of no connection; only ACK is set, unless told otherwise."""
    fields = (port, PORT, 7, 7, 5 << 4, flags, 512, 0, 0)
    head = struct.pack("!HHIIBBHHH", *fields)
    # IPv6 has the last two in other places (RFC 8200, section 8.1), which makes no other sum.
    ends = ip_address(source).packed + ip_address(destination).packed
    pseudo = ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(head))
    total = sum(struct.unpack(f"!{(len(pseudo) + len(head)) // 2}H", pseudo + head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[18:]


def test_F33_nor_does_one_of_no_connection_that_was_marked_before_a_change(net: Net) -> None:
    net.node.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0")
    net.put(STEER)
    former = f"type filter hook prerouting priority -80; ip saddr {POD} meta mark set {9 << 24:#x}"
    net.node.run("nft", "-f", "-", stdin=f"table inet former {{\nchain pre {{ {former};\n}}\n}}\n")
    assert first_of_no_connection(net) == PLAIN
    assert net.counted("dropped") == 1


def test_a_new_packet_to_an_address_that_is_translated_to_makes_no_entry(net: Net) -> None:
    net.put(SNAT)
    net.server().sendto(b"early", (LB, 4321))
    wait_for_drop(net)
    assert LB not in net.node.run("conntrack", "-L").stdout


@pytest.mark.parametrize("address", [LB, LB6])
@pytest.mark.parametrize(("loose", "entrance"), [(1, False), (0, False), (1, True)])
def test_an_answer_of_no_connection_to_an_address_of_this_host_gets_no_reset(
    net: Net, address: str, loose: int, entrance: bool
) -> None:
    """As with kube-proxy in IPVS mode. The Service's own clients are told; and so is everybody who begins anew."""
    net.node.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_loose={loose}")
    batch(net.node, f"address add {address} dev lo{' nodad' if address == LB6 else ''}")
    if address == LB6:
        batch(net.world, f"route add {LB6} via fd00::1")
    ports = frozenset({PORT}) if entrance else frozenset[int]()
    net.put(None, addresses=addresses(LB, LB6), entrances=ports)
    source, family = (WEB6, socket.AF_INET6) if address == LB6 else (WEB, socket.AF_INET)
    with net.world.inside():
        wire = net.stack.enter_context(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP))
    wire.settimeout(patient(5))
    wire.bind((source, 0))
    for flags in (ACK, SYN):
        wire.sendto(segment(source, address, flags=flags), (address, 0))
    heard = wire.recv(99)
    # An IPv6 packet comes without its header.
    assert heard[13 + (0 if address == LB6 else 20)] == (RST if entrance else RST | ACK)
    assert net.counted("dropped") == (0 if entrance else 1)


def test_an_answer_that_conntrack_takes_for_invalid_does_not_go_back_to_the_router(net: Net) -> None:
    """The second packet of a handshake that this gateway never saw; without a drop it would travel to and fro until
    somebody tells the server, with his own address, that its hop limit is exceeded."""
    net.put(SNAT)
    with net.world.inside():
        raw = net.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
    raw.bind((WEB, 0))
    raw.sendto(segment(WEB, LB, flags=SYN | ACK), (LB, 0))
    wait_for_drop(net)


def test_what_belongs_to_no_connection_of_a_pod_that_this_node_does_not_know_does_not_leave(net: Net) -> None:
    """Another node may know already that this one is the gateway."""
    net.node.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0")
    net.put(None, node_interfaces=frozenset({"pod0"}))
    with net.pod.inside():
        raw = net.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
    raw.bind((POD, 0))
    raw.sendto(segment(POD), (WEB, 0))
    wait_for_drop(net)


@pytest.mark.parametrize("known", [[NODE], []], ids=["address in the Node object", "address of the interface"])
def test_a_pod_of_another_node_does_not_leave_with_this_ones_address(net: Net, known: list[str]) -> None:
    """This node would masquerade it: another one steers it here, which does not know it yet."""
    net.put(None, node_interfaces=frozenset({"pod0"}), node_addresses=addresses(*known))
    net.open(net.pod, POD).sendto(b"x", (WEB, PORT))
    wait_for_drop(net)


# --- source ports ----------------------------------------------------------------------------------------------------

BOTH = {ip_address(POD): SNAT, ip_address(PLAIN): SNAT}
WELL_KNOWN = range(1, 512)
"""A port of these is translated to one of these only (nf_nat_l4proto_unique_tuple)."""


def test_F24_pods_with_the_same_port_are_told_apart(net: Net) -> None:
    net.put_all(pods=BOTH)
    server = net.server()
    senders = [net.open(net.pod, source, port=4321) for source in (POD, PLAIN)]
    for sender in senders:
        sender.sendto(b"question", (WEB, PORT))
        _, who = server.recvfrom(9)
        assert who[0] == LB
        server.sendto(repr(sender).encode(), who)
    for sender in senders:
        assert sender.recv(999) == repr(sender).encode()


WATCH = """\
table inet watch {
    set seen { type ipv4_addr . inet_service; flags dynamic; }
    chain prerouting {
        type filter hook prerouting priority raw;
        ip daddr 203.0.113.7 meta l4proto { tcp, udp } add @seen { ip saddr . th sport }
    }
    chain input { type filter hook input priority 0; tcp dport 5000 drop; }
}
"""


@pytest.mark.parametrize("kind", [socket.IPPROTO_TCP, socket.IPPROTO_UDP], ids=["tcp", "udp"])
def test_F24_where_no_port_is_free_packets_are_lost_and_none_leaves_with_another_source(net: Net, kind: int) -> None:
    net.put_all(pods=BOTH)
    net.world.run("nft", "-f", "-", stdin=WATCH)
    for source in (POD, PLAIN):
        with net.pod.inside():
            raw = net.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, kind))
        raw.bind((source, 0))
        for port in WELL_KNOWN:
            datagram = struct.pack("!HHHH", port, PORT, 8, 0)
            tcp = kind == socket.IPPROTO_TCP
            raw.sendto(segment(source, port=port, flags=SYN) if tcp else datagram, (WEB, 0))
    server = net.server()
    net.open(net.pod, POD, port=4321).sendto(b"last", (WEB, PORT))
    assert server.recvfrom(9) == (b"last", (LB, 4321))
    assert net.counted("translated") == 2 * len(WELL_KNOWN) + 1, "half of them are lost only after that"
    listed = json.loads(net.world.run("nft", "-j", "list", "set", "inet", "watch", "seen").stdout)
    (found,) = [item["set"]["elem"] for item in listed["nftables"] if "set" in item]
    assert {tuple(element["concat"]) for element in found} == {(LB, port) for port in (*WELL_KNOWN, 4321)}


def test_a_client_of_a_service_without_pods_is_refused_as_ever(net: Net) -> None:
    """kube-proxy translates nothing then, and refuses in FORWARD."""
    net.put(SNAT)
    refuse = f"type filter hook forward priority filter; ip daddr {LB} reject with tcp reset"
    net.node.run("nft", f"table inet proxy {{ chain forward {{ {refuse}; }}; }}")
    client = net.open(net.world, WEB, kind=socket.SOCK_STREAM)
    with pytest.raises(ConnectionRefusedError):
        client.connect((LB, 80))


@pytest.mark.parametrize("pod", [STEER, SNAT], ids=["steered", "translated"])
def test_a_packet_that_leaves_has_no_mark_any_more(net: Net, pod: EgressPod) -> None:
    """A tunnel would hand the mark on, and its own packet would be sent into the tunnel again."""
    net.put(pod)
    marked = f"type filter hook postrouting priority 200; meta mark and {MASK:#x} != 0 counter"
    net.node.run("nft", f"table inet late {{ chain post {{ {marked}; }}; }}")
    assert net.seen(net.server(), net.open(net.pod, POD)) == [str(pod.source or POD)]
    assert "counter packets 0 " in net.node.run("nft", "list", "table", "inet", "late").stdout


@pytest.mark.parametrize("egress", [True, False])
@every_variant
def test_a_reply_that_leaves_by_its_path_has_no_mark_any_more(net: Net, egress: bool) -> None:
    path = ReturnPath(holder=Holder.read("path:x"), networks=networks(f"{PLAIN}/32"))
    off: dict[str, object] = {} if egress else {"sources": frozenset(), "pod_networks": frozenset()}
    net.put(None, paths={Slot(2): path}, match=frozenset({Match.SOURCE}), **off)
    marked = f"meta mark and {MASK:#x} != 0 counter"
    # iptables takes the mark away in mangle.
    hooks = {"before": -151 if net.backend == IPTABLES else 0, "after": 200}
    chains = [f"chain {n} {{ type filter hook postrouting priority {p}; {marked}; }};" for n, p in hooks.items()]
    net.node.run("nft", f"table inet watch {{ {' '.join(chains)} }}")
    assert net.seen(net.server()) == []
    counted = re.findall(r"counter packets (\d+)", net.node.run("nft", "list", "table", "inet", "watch").stdout)
    assert counted == ["1", "0"], "marked until it is about to leave, and then no more"


@pytest.mark.parametrize("pod", [STEER, SNAT], ids=["steered", "translated"])
def test_F33_destinations_that_come_and_go_let_nothing_out_in_between(net: Net, pod: EgressPod) -> None:
    """While the kernel commits a packet may meet new rules and old sets: "not one of the only ones" is true then."""
    everywhere = DestinationFilter(only=networks("0.0.0.0/0", "::/0"))
    restricted = dataclasses.replace(pod, filter=everywhere.key)
    net.put(pod)
    server, over = net.server(), threading.Event()

    def send() -> None:
        with net.pod.inside():
            while not over.is_set():
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
                    flow.bind((POD, 0))
                    flow.sendto(b"x", server.getsockname())

    sender = threading.Thread(target=send)
    sender.start()
    seen: set[str] = set()

    def listen() -> None:
        while (got := server.recvfrom(9))[0] != b"last":
            seen.add(got[1][0])

    listener = threading.Thread(target=listen)
    listener.start()
    for _ in range(40):
        net.put(restricted, filters={everywhere.key: everywhere})
        net.put(pod)
    over.set()
    sender.join()
    plain = net.open(net.pod, PLAIN)
    while listener.is_alive():
        # The queue of the server may be full.
        plain.sendto(b"last", server.getsockname())
        listener.join(0.05)
    assert seen == {str(pod.source or POD)}, seen


# --- holding ---------------------------------------------------------------------------------------------------------


@every_variant
def test_held_pods_are_told_at_once_and_reach_the_inside(net: Net) -> None:
    net.put(EgressPod(treatment=Treatment.HOLD))
    for source, target in ((POD, WEB), (POD6, WEB6)):
        client = net.open(net.pod, source, kind=socket.SOCK_STREAM)
        with pytest.raises(OSError, match=r"No route to host|Permission denied") as refused:
            client.connect((target, PORT))
        assert refused.value.errno in (errno.EHOSTUNREACH, errno.EACCES)
    inside = net.open(net.world, NEAR, port=PORT)
    assert net.seen(inside, net.open(net.pod, POD)) == [NODE]


@pytest.mark.parametrize("treatment", [Treatment.HOLD, Treatment.WAIT, Treatment.ELSEWHERE])
def test_dropped_pods_send_nothing(net: Net, treatment: Treatment) -> None:
    net.put(EgressPod(treatment=treatment), hold="drop")
    assert net.seen(net.server(), net.open(net.pod, POD)) == []


# --- changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(STEER, SNAT), (SNAT, STEER), (STEER, None), (SNAT, None)])
def test_F33_a_connection_bound_to_the_former_way_sends_nothing_until_it_is_forgotten(
    net: Net, before: EgressPod, after: EgressPod | None
) -> None:
    net.put(before)
    server, sender = net.server(), net.open(net.pod, POD)
    assert net.seen(server, sender) == [str(before.source or POD)]
    net.put(after)
    assert net.seen(server, sender) == []
    sweep(net)
    assert net.seen(server, sender) == [str(after.source or POD) if after else NODE]


@pytest.mark.parametrize(("before", "after"), [(STEER, SNAT), (SNAT, STEER), (STEER, None)])
def test_an_answer_after_a_change_does_not_turn_the_connection_around(
    net: Net, before: EgressPod, after: EgressPod | None
) -> None:
    """The former gateway still hands answers on; the pod's next packet must not count as a reply to one."""
    net.put(dataclasses.replace(before, local=True))
    server, sender = net.server(), net.open(net.pod, POD)
    net.seen(server, sender)
    net.put(dataclasses.replace(after, local=True) if after else None)
    sweep(net)
    server.sendto(b"answer", (POD, sender.getsockname()[1]))
    assert net.seen(server, sender) == [str(after.source or POD) if after else NODE]


@nftables_only("for iptables there is a test in test_iptables.py")
def test_the_time_of_suspicion_begins_anew_with_each_change(net: Net) -> None:
    net.put(dataclasses.replace(STEER, local=True))
    net.node.run("nft", "add", "element", "inet", "metaleg_node", "moved4", f"{{ {POD} timeout 30s expires 5s }}")
    net.put(dataclasses.replace(SNAT, local=True))
    listed = json.loads(net.node.run("nft", "-j", "list", "set", "inet", "metaleg_node", "moved4").stdout)
    (element,) = listed["nftables"][1]["set"]["elem"]
    assert element["elem"]["expires"] > 20


def test_a_server_in_the_middle_of_a_forgotten_connection_does_not_turn_it_around(net: Net) -> None:
    net.put(dataclasses.replace(STEER, local=True))
    listener, client = net.server(socket.SOCK_STREAM), net.open(net.pod, POD, kind=socket.SOCK_STREAM)
    client.connect((WEB, PORT))
    with listener.accept()[0] as server:
        assert conntrack.delete(conntrack.flows([ip_address(POD)]))
        server.send(b"answer")
        client.send(b"question")
        server.settimeout(patient(5))
        assert server.recv(100) == b"question"
        (flow,) = [flow for flow in conntrack.flows([ip_address(POD)]) if flow.protocol == "tcp"]
        assert (str(flow.source), flow.ours) == (POD, True)


@pytest.mark.parametrize("pod", [STEER, SNAT, HOLD], ids=["steered", "translated", "held"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_answers_to_clients_outside_that_reach_the_pod_itself_are_left_alone(
    net: Net, pod: EgressPod, kind: socket.SocketKind
) -> None:
    """Routed pod networks: the client's connection began outside, towards the pod's own address. A datagram must come
    to a port that the Service serves, see the next tests."""
    net.put(dataclasses.replace(pod, local=True), served=frozenset({PORT}))
    server, client = net.open(net.pod, POD, port=PORT, kind=kind), net.open(net.world, WEB, kind=kind)
    if kind == socket.SOCK_STREAM:
        server.listen()
        client.connect((POD, PORT))
        with server.accept()[0] as accepted:
            accepted.send(b"answer")
            assert client.recv(100) == b"answer"
    else:
        client.sendto(b"question", (POD, PORT))
        server.sendto(b"answer", server.recvfrom(100)[1])
        assert client.recvfrom(100) == (b"answer", (POD, PORT))


def test_a_datagram_of_no_known_connection_does_not_reach_the_pod(net: Net) -> None:
    """A gateway that was one until now may hand another pod's answers to this one: neither an entry nor the pod's
    complaint about it (ICMP port unreachable) may come of it."""
    net.put(dataclasses.replace(STEER, local=True), served=frozenset({PORT + 1}))
    stray, wire = net.server(), net.stack.enter_context(raw_icmp(net.world))
    stray.sendto(b"answer", (POD, 4321))
    wait_for_drop(net)
    assert POD not in net.node.run("conntrack", "-L").stdout
    stray.sendto(b"answer", (PLAIN, 4321))
    assert wire.recvfrom(99)[1][0] == PLAIN, "only a pod that is not ours complains"


@pytest.mark.parametrize("field", ["exclude", "only"])
@every_variant
def test_datagrams_from_destinations_that_do_not_count_as_egress_reach_the_pod(net: Net, field: str) -> None:
    here = networks("203.0.113.0/24") if field == "exclude" else networks("198.18.0.0/15")
    destinations = DestinationFilter(**{field: here})
    key = destinations.key
    net.put(dataclasses.replace(STEER, local=True, filter=key), filters={key: destinations})
    server, client = net.open(net.pod, POD, port=PORT), net.open(net.world, WEB)
    client.sendto(b"question", (POD, PORT))
    server.sendto(b"answer", server.recvfrom(100)[1])
    assert client.recvfrom(100) == (b"answer", (POD, PORT))


def test_pings_from_outside_reach_the_pod(net: Net) -> None:
    net.put(dataclasses.replace(STEER, local=True))
    net.world.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    with net.world.inside():
        ping = net.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP))
    ping.settimeout(patient(5))
    ping.bind((WEB, 0))
    ping.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]), (POD, 0))
    assert ping.recvfrom(99)[1][0] == POD


def raw_icmp(where: Netns) -> socket.socket:
    """Hears the ICMP messages that somebody gets."""
    with where.inside():
        wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    wire.settimeout(patient(5))
    return wire


EXCEPT_WEB = DestinationFilter(exclude=networks("203.0.113.0/24"))
ELSEWHERE = "198.18.0.7"
ONLY: dict[str, tuple[str, ...]] = {
    "both": ("203.0.113.0/24", "198.18.0.0/15"),
    "the first": ("203.0.113.0/24",),
    "the second": ("198.18.0.0/15",),
    "neither": ("192.88.99.0/24",),
}


@nftables_only("for iptables there is a test of many filters in test_iptables.py")
@pytest.mark.parametrize("other", ONLY)
@pytest.mark.parametrize("one", ONLY)
def test_F22_no_network_of_a_service_hides_another_of_its_own_or_of_another_service(
    net: Net, one: str, other: str
) -> None:
    filters = [DestinationFilter(only=networks(*ONLY[name])) for name in (one, other)]
    pods = {ip_address(a): dataclasses.replace(SNAT, filter=f.key) for a, f in zip((POD, PLAIN), filters, strict=True)}
    net.put_all(pods=pods, filters={f.key: f for f in filters})
    batch(net.world, f"address add {ELSEWHERE}/32 dev lo")
    servers = {"the first": net.server(), "the second": net.server(address=ELSEWHERE)}
    for source, chosen in ((POD, one), (PLAIN, other)):
        for name, server in servers.items():
            net.open(net.pod, source).sendto(b"x", server.getsockname())
            assert server.recvfrom(9)[1][0] == (LB if chosen in ("both", name) else NODE)


NARROWED: dict[str, dict[str, object]] = {
    "excluded for all": {"inside": flat(BASE).inside | networks("203.0.113.0/24")},
    "excluded by its Service": {"filters": {EXCEPT_WEB.key: EXCEPT_WEB}},
}


@pytest.mark.parametrize("before", [STEER, SNAT], ids=["steered", "translated"])
@pytest.mark.parametrize("name", NARROWED)
def test_a_destination_that_is_no_longer_egress_gets_its_own_source_once_the_connection_is_forgotten(
    net: Net, before: EgressPod, name: str
) -> None:
    net.put(before)
    server, sender = net.server(), net.open(net.pod, POD)
    assert net.seen(server, sender) == [str(before.source or POD)]
    key = next(iter(NARROWED[name].get("filters", {"": 0})))  # type: ignore[call-overload]
    net.put(dataclasses.replace(before, filter=key), **NARROWED[name])
    assert net.seen(server, sender) == [str(before.source or POD)], "until then it keeps its way"
    sweep(net)
    assert net.seen(server, sender) == [NODE]


def sweep(net: Net) -> None:
    firewall = net.filter.observe().firewall
    assert firewall
    tracked = conntrack.flows(flows.concerned(firewall), labelled=True)
    assert conntrack.delete([flow for flow, _ in flows.stale(tracked, firewall, frozenset())])
