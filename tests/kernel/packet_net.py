"""A pod, a node that masquerades like a CNI, and the world outside, for tests of what the packet filter does.

The world is the gateway's neighbour, the default router and a server in one.
"""

from __future__ import annotations

import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from metaleg_node.core.firewall.egress import EgressPod, Treatment
from metaleg_node.core.model import NodeName, Slot
from metaleg_node.kernel import process
from metaleg_node.kernel.iptables.backend import Iptables
from metaleg_node.kernel.nftables.backend import Nftables
from metaleg_node.kernel.packet_filter import Counter, PacketFilter
from tests.firewalls import addresses, but, networks, wall
from tests.netns import Netns, execute
from tests.patience import patient

POD, PLAIN, NODE, LB, WEB, NEAR = "10.244.1.2", "10.244.1.77", "10.0.0.1", "192.0.2.200", "203.0.113.7", "10.0.0.2"
POD6, WEB6 = "fd00:10:244:1::2", "2001:db8::7"
PORT = 5000

IPTABLES, IPTABLES_NFT = "iptables", "iptables-nft"
"""The names of that packet filter, by the variants of its programs; the other one is nftables. What others do on the
node is done with the same."""
MASQUERADE = """\
table inet cni {
    chain post {
        type nat hook postrouting priority srcnat;
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
    }
}
"""
NODE_PORT = """\
table ip proxy {
    chain pre {
        type nat hook prerouting priority dstnat;
        ip daddr 10.0.0.1 udp dport 30080 dnat to 10.244.1.2:80
    }
}
"""
MASQUERADE_IPTABLES = "-t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE"

STEER = EgressPod(treatment=Treatment.STEER, slot=Slot(1))
SNAT = EgressPod(treatment=Treatment.SNAT, slot=Slot(1), source=ip_address(LB))
HOLD = EgressPod(treatment=Treatment.HOLD)
BASE = wall(
    gateways={Slot(1): NodeName("gateway")},
    sources=addresses(LB),
    addresses=addresses(LB),
    next_hops=addresses(NEAR, "fd00::2"),
    inside=networks("10.244.0.0/16", "10.0.0.0/24", "fd00::/64", "fd00:10:244::/48"),
    pod_networks=networks("10.244.0.0/16"),
    node_interfaces=frozenset({"eth0"}),
    node_addresses=addresses(NODE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """The pod's, the node's and the world's namespace. The test itself is in the node's."""

    backend: str
    variant: str
    """Of the programs of iptables."""
    filter: PacketFilter
    pod: Netns
    node: Netns
    world: Netns
    stack: ExitStack

    def put(self, pod: EgressPod | None, **parts: object) -> None:
        """Makes this the treatment of the pod, in both families; the IPv6 one is never translated."""
        treated = {ip_address(a): pod for a in (POD, POD6) if pod and (a == POD or not pod.source)}
        self.put_all(pods=treated, **parts)

    def put_all(self, **parts: object) -> None:
        self.filter.put(but(BASE, **parts))

    def counted(self, name: str) -> int:
        """Packets."""
        return self.filter.counters().get(name, Counter(0, 0)).packets

    def iptables(self, words: str, *, program: str = "iptables") -> None:
        """What somebody else does on the node."""
        self.node.run(f"{program}-{self.variant}", "-w", *words.split())

    def offer_node_port(self) -> None:
        """What kube-proxy does: UDP to the node's port 30080 comes to the pod's port 80."""
        if self.backend == IPTABLES:
            self.iptables("-t nat -A PREROUTING -d 10.0.0.1 -p udp --dport 30080 -j DNAT --to 10.244.1.2:80")
        else:
            self.node.run("nft", "-f", "-", stdin=NODE_PORT)

    def open(self, where: Netns, source: str, *, port: int = 0, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with where.inside():
            made = self.stack.enter_context(socket.socket(family, kind))
        made.settimeout(patient(5))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((source, port))
        return made

    def server(self, kind: int = socket.SOCK_DGRAM, address: str = WEB) -> socket.socket:
        made = self.open(self.world, address, port=PORT, kind=kind)
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def seen(self, server: socket.socket, *senders: socket.socket) -> list[str]:
        """The sources from which the server gets one datagram of each sender, until that of a plain pod comes."""
        last = self.open(self.pod, PLAIN)
        for sender in (*senders, last):
            sender.sendto(b"last" if sender is last else b"x", server.getsockname()[:2])
        found = []
        while (got := server.recvfrom(9))[0] != b"last":
            found.append(got[1][0])
        assert got[1][0] == NODE, "other pods are masqueraded as ever"
        return found


@contextmanager
def packet_net(netns: Netns, backend: str = "nftables") -> Iterator[Net]:
    """The three namespaces, linked; the block runs in the node's, which is `netns`."""
    names = [Netns(name=f"metaleg-test-{uuid.uuid4().hex[:8]}") for _ in range(2)]
    with ExitStack() as stack:
        for other in names:
            execute("ip", "netns", "add", other.name)
            stack.callback(execute, "ip", "netns", "delete", other.name)
        pod, world = names
        for one in (netns, pod, world):
            one.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        batch(netns, f"link add pod0 type veth peer name eth0 netns {pod.name}", *UP.format(dev="pod0").splitlines())
        batch(netns, f"link add eth0 type veth peer name eth0 netns {world.name}", *UP.format(dev="eth0").splitlines())
        batch(
            netns,
            "address add 10.244.1.1/24 dev pod0",
            "address add fd00:10:244:1::1/64 dev pod0 nodad",
            "address add 10.0.0.1/24 dev eth0",
            "address add fd00::1/64 dev eth0 nodad",
            "route add default via 10.0.0.254",
            "route add default via fd00::254",
            "route add default via 10.0.0.2 table 1000001",
            "route add default via fd00::2 table 1000001",
            "rule add fwmark 0x01000000/0x3f000000 lookup 1000001 priority 4700",
        )
        netns.run("ip", "-6", *RULE6)
        batch(
            pod,
            "link set lo up",
            *UP.format(dev="eth0").splitlines(),
            *(f"address add {a} dev eth0" for a in (f"{POD}/24", f"{PLAIN}/24", f"{POD6}/64 nodad")),
            "route add default via 10.244.1.1",
            "route add default via fd00:10:244:1::1",
        )
        batch(
            world,
            "link set lo up",
            *UP.format(dev="eth0").splitlines(),
            *(f"address add {a}/24 dev eth0" for a in (NEAR, "10.0.0.254")),
            *(f"address add {a}/64 dev eth0 nodad" for a in ("fd00::2", "fd00::254")),
            f"address add {WEB}/32 dev lo",
            f"address add {WEB6}/128 dev lo nodad",
            *(f"route add {to} via 10.0.0.1" for to in ("10.244.1.0/24", "192.0.2.0/24")),
            "route add fd00:10:244:1::/64 via fd00::1",
        )
        netns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        variant = "nft" if backend == IPTABLES_NFT else "legacy"
        if backend == IPTABLES_NFT:
            backend = IPTABLES
            stack.enter_context(without_legacy_programs())
        ours: PacketFilter = Iptables(watch_seconds=0) if backend == IPTABLES else Nftables()
        net = Net(backend=backend, variant=variant, filter=ours, pod=pod, node=netns, world=world, stack=stack)
        if backend == IPTABLES:
            net.iptables(MASQUERADE_IPTABLES)
        else:
            netns.run("nft", "-f", "-", stdin=MASQUERADE)
        with netns.inside():
            yield net


@contextmanager
def without_legacy_programs() -> Iterator[None]:
    """Where iptables is the variant that is made of nf_tables, and no other is installed."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        (Path(folder) / "ipset").symlink_to(process.find("ipset"))
        for name in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                (Path(folder) / f"{name}{suffix}").symlink_to(process.find(f"{name}-nft{suffix}"))
        patch.setattr(process, "SEARCH_PATH", folder)
        yield


BACKENDS = ("nftables", IPTABLES)
every_variant = pytest.mark.parametrize("net", [*BACKENDS, IPTABLES_NFT], indirect=True)
"""For a test of the fixture `net` that runs with the programs of iptables that are made of nf_tables, too."""


def nftables_only(reason: str) -> pytest.MarkDecorator:
    """For a test of the fixture `net` that iptables cannot pass, and why (docs/iptables.md), or that tells nothing more
    with it."""
    assert reason
    return pytest.mark.parametrize("net", ["nftables"], indirect=True)


UP = "link set {dev} up"
RULE6 = ("rule", "add", "fwmark", "0x01000000/0x3f000000", "lookup", "1000001", "priority", "4700")


def batch(where: Netns, *lines: str) -> None:
    where.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def wait_for_drop(net: Net) -> None:
    """Returns when a packet was dropped since the packet filter is there."""
    for _ in range(1000):
        if net.counted("dropped"):
            return
    raise AssertionError("nothing was dropped")
