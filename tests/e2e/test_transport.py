"""Gateways that are no neighbours: egress takes the way that leads to their pods, by each kind of tunnel, with strict
filters of the reverse path on all nodes and pods that know nothing of the tunnels' MTU."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.outside import ADDRESS_FAMILY
from metaleg_node.lab.plan import NODES, ROUTER_LAN, SERVER, SERVER_PORT, LabNode
from tests import kernel_modules
from tests.e2e.scenario import NODE1, NODE2, NODE3, SECOND, SETTLED, Flows, egress_service, expect, sources, texts
from tests.lab import probes
from tests.lab.lab import Lab
from tests.lab.plan import TUNNEL_MTU, Flavour, LabOptions, PodTransport, vxlan_mac
from tests.lab.topology import tunnel

_MODULES = ("ipip", "ip6_tunnel", "ip_gre", "sit")
_WIDE = LabOptions(flavour=Flavour.NFT, rp_filter=1, forward_drop=True, wide=True)
KINDS = {
    # node1 and node2 are neighbours, node3 is behind the router.
    PodTransport.VXLAN: (replace(_WIDE, transport=PodTransport.VXLAN, apart=(NODE3,)), ()),
    # All nodes are behind the router: from one gateway to another is from one tunnel to another.
    PodTransport.IPIP: (replace(_WIDE, transport=PodTransport.IPIP, apart=NODES), _MODULES),
    PodTransport.PER_NODE: (replace(_WIDE, transport=PodTransport.PER_NODE, apart=NODES), _MODULES),
}
_PODS = "pod-network"
_IP_MTU_DISCOVER, _DO, _IP_MTU = {4: 10, 6: 23}, 2, {4: 14, 6: 24}
"""From linux/in.h and linux/in6.h."""


@pytest.fixture(scope="module", params=KINDS)
def far(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One egress Service with a pod on each node, announced by node3. The daemons run, without any setting."""
    options, modules = KINDS[request.param]
    kernel_modules.needed(*modules)
    with Lab(options) as lab:
        service = replace(egress_service(lab, gateway=NODE3), pods=tuple(map(lab.pod, NODES)))
        lab.set_services(service)
        lab.start_daemons()
        yield lab


@pytest.fixture(autouse=True)
def _watched(far: Lab) -> Iterator[None]:
    """All that happens is seen outside: nothing ever has another source, but what the router says itself."""
    move(far, NODE3)
    far.reset_seen()
    yield
    assert far.seen() - {*ROUTER_LAN.values()} <= {*far.services["web"].addresses.values()}


def move(lab: Lab, gateway: LabNode) -> None:
    """Another node becomes the gateway, and everybody uses it."""
    lab.failover("web", gateway)
    for node in NODES:
        expect(lab, lab.pod(node), texts(lab.services["web"].addresses))


def becomes(ask: Callable[[], object], wanted: object) -> None:
    """Waits for an answer as long as a change may take."""
    assert wait_until(lambda: ask() == wanted, SECOND), ask()


def transports(lab: Lab, node: LabNode) -> dict[str, dict[str, str]]:
    """How a node reaches each gateway, as its status tells."""
    return {one["node"]: one["transport"] for one in lab.daemons[node].status()["gateways"]}


def test_a_gateway_behind_a_router_is_reached_by_the_way_to_its_pods(far: Lab) -> None:
    for node in NODES:
        assert sources(far, far.pod(node)) == texts(far.services["web"].addresses)
    assert transports(far, NODE1) == {"node3": {"4": _PODS, "6": _PODS}}
    assert {node.name: far.daemons[node].status()["problems"] for node in NODES} == {n.name: [] for n in NODES}
    told = far.daemons[NODE1].command("explain", str(far.pod(NODE1).addresses[4]), "--to", str(SERVER[4]))
    assert told.returncode == 0, told.stdout
    assert "node3 is reached by the way to its pods (" in told.stdout


@pytest.mark.parametrize(("before", "after"), [(NODE3, NODE2), (NODE2, NODE3)], ids=["near", "far"])
def test_a_failover_from_one_way_to_the_other_breaks_no_connection(far: Lab, before: LabNode, after: LabNode) -> None:
    move(far, before)
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(probes.open_tcp(far.namespace(far.pod(node)), SERVER[f], SERVER_PORT, SETTLED))
            for node in (NODE1, NODE2)
            for f in FAMILIES
        ]
        for sock in opened:
            _say(sock, b"here I am")
        far.failover("web", after)
        becomes(lambda: set(transports(far, NODE1)), {after.name})
        for sock in opened:
            _say(sock, b"still there")


def test_a_failover_under_traffic_lets_nothing_out_with_a_wrong_source(far: Lab) -> None:
    with Flows(far, tuple(map(far.pod, (NODE1, NODE2)))) as flows:
        for gateway in (NODE2, NODE3):
            flows.go_on()
            far.failover("web", gateway)
            becomes(lambda: set(transports(far, NODE1)), {gateway.name})
            flows.go_on()


def _say(sock: socket.socket, line: bytes) -> None:
    """Sends a line, and reads its echo."""
    sock.settimeout(SETTLED)
    sock.sendall(line + b"\n")
    got = b""
    while not got.endswith(b"\n"):
        got += sock.recv(1 << 16)
    assert got.rstrip().endswith(line), got[:100]


@pytest.mark.parametrize("family", FAMILIES)
def test_path_MTU_discovery_works_both_ways(far: Lab, family: Family) -> None:
    pod, limit = far.namespace(far.pod(NODE1)), TUNNEL_MTU
    with probes.open_tcp(pod, SERVER[family], SERVER_PORT, SETTLED) as sock:
        _say(sock, b"x" * 60000)
    with _discovering(pod.socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM), family) as mine:
        mine.connect((str(SERVER[family]), SERVER_PORT))
        # The node before the tunnel tells the pod.
        assert wait_until(lambda: _refused(mine, family, limit), SETTLED)
    server = far.namespace("outside")
    with (
        _discovering(server.socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM), family) as other,
        pod.socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM) as mine,
    ):
        other.bind((str(SERVER[family]), 9))
        mine.connect((str(SERVER[family]), 9))
        mine.send(b"here I am")
        other.settimeout(SETTLED)
        other.connect(other.recvfrom(100)[1])
        # The gateway tells the server, which knows nothing but the LoadBalancer address.
        assert wait_until(lambda: _refused(other, family, limit), SETTLED)


def _discovering(sock: socket.socket, family: Family) -> socket.socket:
    level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
    sock.setsockopt(level, _IP_MTU_DISCOVER[family], _DO)
    return sock


def _refused(sock: socket.socket, family: Family, limit: int) -> bool:
    """Whether a datagram that fills an Ethernet packet is refused, since the path is known to take `limit` bytes."""
    level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
    try:
        sock.send(b"x" * (1500 - (28 if family == 4 else 48)))
    except OSError as error:
        return error.errno == errno.EMSGSIZE and sock.getsockopt(level, _IP_MTU[family]) == limit
    return False


def test_when_the_way_to_the_pods_leads_to_a_router_nothing_leaves_until_it_is_a_tunnel_again(far: Lab) -> None:
    pod = far.pod(NODE1)
    before = {f: _way(far, NODE1, NODE3, f) for f in FAMILIES}
    with Flows(far, (pod,)) as flows:
        flows.go_on()
        reroute(far, NODE1, NODE3, {f: f"via {ROUTER_LAN[f]} dev eth0" for f in FAMILIES})
        becomes(lambda: _reasons(far), {"off-link"})
        flows.go_on()
        reroute(far, NODE1, NODE3, before)
        becomes(lambda: _reasons(far), {""})
    expect(far, pod, texts(far.services["web"].addresses))


def reroute(lab: Lab, me: LabNode, peer: LabNode, ways: Mapping[Family, str]) -> None:
    """Other routes lead from a node to the pods of another. IPv6 takes no next hop that the old one leads elsewhere."""
    for f in FAMILIES:
        pods = peer.pod_networks[f]
        lab.namespace(me).ip([f"route delete {pods} {_way(lab, me, peer, f)}", f"route add {pods} {ways[f]}"])


def _way(lab: Lab, me: LabNode, peer: LabNode, family: Family) -> str:
    """The next hop of a node's route to the pods of another."""
    words = lab.namespace(me).run("ip", f"-{family}", "route", "show", str(peer.pod_networks[family])).split()[1:]
    return " ".join(word for word in words if word not in ("linkdown", "pref", "medium"))


def _reasons(lab: Lab) -> set[str]:
    return {one["reason"].partition(":")[0] for one in lab.daemons[NODE1].status()["services"]}


def test_another_device_is_followed_under_traffic(far: Lab) -> None:
    new: dict[tuple[LabNode, LabNode], dict[Family, str]] = {}
    for me, peer in ((NODE3, NODE1), (NODE1, NODE3)):
        new[me, peer] = _another_device(far, me, peer)
    old = {ends: {f: _way(far, *ends, f) for f in FAMILIES} for ends in new}
    told = {str(f): way.removeprefix("via ").removesuffix(" onlink") for f, way in new[NODE1, NODE3].items()}
    with Flows(far, (far.pod(NODE1),)) as flows:
        for ways, wanted in ((new, told), (old, _next_hops(far))):
            for (me, peer), words in ways.items():
                reroute(far, me, peer, words)
            becomes(lambda: _next_hops(far), wanted)
            expect(far, far.pod(NODE1), texts(far.services["web"].addresses))
            flows.go_on()


def _next_hops(lab: Lab) -> object:
    """By which node1 reaches the gateway, as its status tells."""
    return lab.daemons[NODE1].status()["gateways"][0]["next_hops"]


def _another_device(lab: Lab, me: LabNode, peer: LabNode) -> dict[Family, str]:
    """Makes a second tunnel between two nodes, and tells the next hop in it."""
    namespace, kind = lab.namespace(me), f"mtu {TUNNEL_MTU} up type"
    if lab.options.transport is not PodTransport.VXLAN:
        namespace.ip([f"link add other {kind} {tunnel('gre', me, peer)} key 2"])
        return dict.fromkeys(FAMILIES, "dev other")
    lan = f"vxlan id 2 dstport 8473 nolearning local {me.addresses[4]} dev eth0"
    neighbour = f"lladdr {vxlan_mac(peer)} dev other nud permanent"
    namespace.ip(
        [
            f"link add other address {vxlan_mac(me)} {kind} {lan}",
            *(f"neighbour add {_first(peer, f)} {neighbour}" for f in FAMILIES),
        ]
    )
    namespace.run("bridge", "fdb", "append", vxlan_mac(peer), "dev", "other", "dst", str(peer.addresses[4]))
    return {f: f"via {_first(peer, f)} dev other onlink" for f in FAMILIES}


def _first(node: LabNode, family: Family) -> str:
    return str(node.pod_networks[family].network_address)


def test_pod_network_is_taken_on_one_network_too_and_direct_refuses_what_is_far(far: Lab) -> None:
    for transport, gateway, wanted in ((_PODS, NODE2, {""}), ("direct", NODE3, {"off-link"}), ("auto", NODE3, {""})):
        for daemon in far.daemons.values():
            daemon.configure({"egress": {"transport": transport}})
            daemon.reload()
        far.failover("web", gateway)
        becomes(lambda: _reasons(far), wanted)
        if transport == _PODS:
            becomes(lambda: transports(far, NODE1), {"node2": {"4": _PODS, "6": _PODS}})
            expect(far, far.pod(NODE1), texts(far.services["web"].addresses))
