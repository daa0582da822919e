"""A node with a pod, three routers, and clients that each only one of them knows the way to, for tests of answers that
go back through the router that brought the request.

    client N -- router N -- node -- pod; another node with a pod

Routers 1 and 2 are on the node's eth0, as is the other node, and router 3 is on its eth1. All of them have the way to
client 0. The node's default route leads to nobody. What kube-proxy does is a DNAT to the pod, and with the policy
Cluster a masquerade to the other node's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaleg_node.core.model import FAMILIES, ClusterState, Family
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.packet_filters import Backend
from metaleg_node.lab import namespaces
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.outside import ADDRESS_FAMILY
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Outcome, Plan, Reconciler
from tests.lab.server import Server
from tests.lab.topology import machine_sysctls
from tests.patience import patient
from tests.unit.builders import config
from tests.unit.test_pools import BGP, advertise, cluster, peer, pool

PORT, SPEAKER = 5000, 5001
ROUTERS = (1, 2, 3)
POD, FAR, HOST, BEHIND = 1, 2, 3, 4
"""What answers at a LoadBalancer address: a pod of the node, one of another node, the node itself, a server behind the
other node that nobody knows to be one (IPv4 alone)."""
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
_NUMBERS = itertools.count(1)

_SERVICES = """\
table inet services {
    chain before {
        type nat hook prerouting priority dstnat
        ip daddr 192.0.2.1 dnat ip to 10.244.1.2
        ip6 daddr 2001:db8:2::1 dnat ip6 to fd00:244:1::2
        ip daddr 192.0.2.2 dnat ip to 10.244.2.2
        ip6 daddr 2001:db8:2::2 dnat ip6 to fd00:244:2::2
        ip daddr 192.0.2.3 dnat ip to 10.0.0.1
        ip daddr 192.0.2.4 dnat ip to 203.0.113.9
        ip6 daddr 2001:db8:2::3 dnat ip6 to fd00::1
    }
    chain after {
        type nat hook postrouting priority srcnat
        ip daddr { 10.244.2.2, 203.0.113.9 } masquerade
        ip6 daddr fd00:244:2::2 masquerade
    }
}
"""


def lb(number: int, family: Family = 4) -> str:
    """A LoadBalancer address."""
    return f"192.0.2.{number}" if family == 4 else f"2001:db8:2::{number}"


def router(number: int, family: Family = 4) -> str:
    """A router's address."""
    link = 3 if number == 3 else 0
    return f"10.0.{link}.1{number}" if family == 4 else f"fd00:{link}::1{number}"


def client(number: int, family: Family = 4) -> str:
    """A client's address."""
    return f"198.18.{number}.1" if family == 4 else f"fd18:{number}::1"


def _between(number: int, family: Family) -> tuple[str, str]:
    """The addresses of a router and of the clients' machine on the link between them."""
    prefix = f"172.31.{number}." if family == 4 else f"fd31:{number}::"
    return f"{prefix}1", f"{prefix}2"


def _length(family: Family) -> int:
    return 24 if family == 4 else 64


def peering(peers: Iterable[str], node: str = "a") -> list[dict[str, Any]]:
    """MetalLB's objects with these peers' addresses, and the Node."""
    return [
        pool("p", "192.0.2.0/25", "2001:db8:2::/64"),
        advertise(),
        *(peer(f"r{n}", address) for n, address in enumerate(peers)),
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}},
    ]


@dataclass(slots=True, kw_only=True)
class RouterNet:
    """The machines by name; the test is in the node."""

    names: dict[str, Namespace]
    reconciler: Reconciler
    machine: Machine
    state: ClusterState

    def __getitem__(self, name: str) -> Namespace:
        return self.names[name]

    @property
    def node(self) -> Namespace:
        return self.names["node"]

    # --- what metaleg-node does --------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        self.machine.packet_filter.changed()
        return self.reconciler.plan(self.state)

    def apply(self) -> Outcome:
        outcome = self.reconciler.apply(self.plan())
        assert outcome.ok, outcome.problems
        assert self.plan().steps == ()
        return outcome

    def configure(self, text: str = BGP, peers: Iterable[int] = ROUTERS) -> None:
        """Another configuration, or other peers; applied."""
        self.state = self.peering(router(n, f) for n in peers for f in FAMILIES)
        self.reconciler = Reconciler(self.machine, config(f'node.name = "a"\n{_PODS}{text}'))
        self.apply()

    @staticmethod
    def peering(peers: Iterable[str]) -> ClusterState:
        """What follows from MetalLB's objects with these peers' addresses."""
        return cluster(*peering(peers))

    def meet(self, *numbers: int) -> None:
        """The node and these routers learn each other's link-layer addresses."""
        for number in numbers or ROUTERS:
            for f in FAMILIES:
                self.node.run("ping", "-c1", "-i0.2", f"-w{int(patient(5))}", router(number, f))

    # --- clients -----------------------------------------------------------------------------------------------------

    def lead(self, client_: int, by: int) -> None:
        """What the client sends goes by this router from now on."""
        self["client"].ip(f"route replace default via {_between(by, f)[0]} table {100 + client_}" for f in FAMILIES)

    def open(self, number: int, to: int, kind: int = TCP, family: Family = 4) -> socket.socket:
        """A connection of a client to a LoadBalancer address, over which something was said. Raises OSError."""
        sock = self._socket(number, kind, family)
        try:
            sock.settimeout(patient(3))
            sock.connect((lb(to, family), PORT))
            say(sock)
        except OSError:
            sock.close()
            raise
        return sock

    def answered(
        self, numbers: Iterable[int], to: int, kind: int = TCP, family: Family = 4, *, count: int = 8
    ) -> dict[int, int]:
        """How many of so many connections at once of each client get an answer."""
        found = Counter(dict.fromkeys(numbers, 0))
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            for number in [*found] * count:
                sock = stack.enter_context(self._socket(number, kind, family))
                sock.setblocking(False)
                sock.connect_ex((lb(to, family), PORT))
                selector.register(sock, selectors.EVENT_WRITE, number)
            deadline = time.monotonic() + patient(2 if count < 50 else 5)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    _go_on(selector, key, found)
        return dict(found)

    def pings(self, number: int, to: int, family: Family = 4) -> bool:
        try:
            self["client"].run("ping", "-c1", f"-W{int(patient(1))}", "-I", client(number, family), lb(to, family))
        except KernelError:
            return False
        return True

    def _socket(self, number: int, kind: int, family: Family) -> socket.socket:
        sock = self["client"].socket(ADDRESS_FAMILY[family], kind)
        sock.bind((client(number, family), 0))
        return sock

    def listen_to(self, number: int) -> tuple[socket.socket, socket.socket]:
        """The two ends of a new flow of datagrams: the client's, which sends one and nothing more, and the pod's. TCP
        says nothing new where nobody confirms what it said before."""
        pod, sock = self["pod"].socket(socket.AF_INET, UDP), self._socket(number, UDP, 4)
        for one in (pod, sock):
            one.settimeout(patient(3))
        pod.bind(("", SPEAKER))
        sock.connect((lb(POD), SPEAKER))
        sock.send(b"hello")
        pod.connect(pod.recvfrom(9)[1])
        return sock, pod

    # --- the node's connections --------------------------------------------------------------------------------------

    def marks(self, sock: socket.socket) -> list[int]:
        """The connection mark of what a client's socket speaks by."""
        words = f"sport={sock.getsockname()[1]} dport={sock.getpeername()[1]} "
        listed = self.node.run("conntrack", "-L", "-f", "ipv4" if sock.family is socket.AF_INET else "ipv6")
        mine = [line for line in listed.splitlines() if words in line]
        return [int(word[5:]) for line in mine for word in line.split() if word.startswith("mark=")]


def _go_on(selector: selectors.BaseSelector, key: selectors.SelectorKey, found: Counter[int]) -> None:
    sock = key.fileobj
    assert isinstance(sock, socket.socket)
    try:
        if key.events & selectors.EVENT_WRITE:
            sock.send(b"hello\n")
            selector.modify(sock, selectors.EVENT_READ, key.data)
            return
        found[key.data] += bool(sock.recv(2048))
    except OSError:
        pass
    selector.unregister(sock)


def say(sock: socket.socket) -> bytes:
    """Says something and returns the answer."""
    sock.send(b"hello\n")
    return sock.recv(2048)


_PODS = 'cluster.pod_cidrs = ["10.244.0.0/16", "fd00:244::/32"]\n'


@contextlib.contextmanager
def router_net(state_dir: Path, backend: Backend = "nftables") -> Iterator[RouterNet]:
    """The block runs in the node's namespace. Nothing is applied yet."""
    prefix = f"{namespaces.PREFIX}-{os.getpid()}-routers{next(_NUMBERS)}"
    machines = ("node", "pod", "far", "client", "switch", *(f"r{n}" for n in ROUTERS))
    names = {name: Namespace(name=f"{prefix}-{name}") for name in machines}
    with ExitStack() as stack:
        stack.callback(namespaces.remove, [one.name for one in names.values()])
        namespaces.create(one.name for one in names.values())
        for name, one in names.items():
            one.sysctl(machine_sysctls(0, forwarding=name not in ("pod", "client")))
        # By ports as well, so that each connection of a client may leave by another router.
        names["node"].sysctl({f"ipv{f}/fib_multipath_hash_policy": 1 for f in FAMILIES})
        _connect(names)
        server = Server()
        stack.callback(server.stop)
        for name in ("pod", "far", "node"):
            server.listen(names[name], name, PORT)
        server.start()
        stack.enter_context(names["node"].inside())
        machine = stack.enter_context(Machine(state_dir, backend))
        yield RouterNet(names=names, reconciler=Reconciler(machine, config("")), machine=machine, state=ClusterState())


def _connect(names: dict[str, Namespace]) -> None:
    plugs = {"node": "eth0", "far": "eth0", "r1": "lan", "r2": "lan"}
    names["switch"].ip(
        [
            "link add br0 up type bridge mcast_snooping 0 forward_delay 0",
            *(
                f"link add to-{name} up master br0 type veth peer name {port} netns {names[name].name}"
                for name, port in plugs.items()
            ),
        ]
    )
    names["node"].ip(
        [
            f"link add pod0 up type veth peer name eth0 netns {names['pod'].name}",
            f"link add eth1 up type veth peer name lan netns {names['r3'].name}",
            "link set eth0 up",
            *(_address(a) for a in ("10.0.0.1/24 dev eth0", "fd00::1/64 dev eth0")),
            *(_address(a) for a in ("10.0.3.1/24 dev eth1", "fd00:3::1/64 dev eth1")),
            *(_address(a) for a in ("10.244.1.1/24 dev pod0", "fd00:244:1::1/64 dev pod0")),
            *("route add " + r for r in ("10.244.2.0/24 via 10.0.0.2", "fd00:244:2::/64 via fd00::2")),
            "route add 203.0.113.9 via 10.0.0.2",
            *("route add default via " + r for r in ("10.0.0.99", "fd00::99")),
        ]
    )
    names["node"].run("nft", "-f", "-", stdin=_SERVICES)
    names["pod"].ip(
        [
            "link set eth0 up",
            *(_address(a) for a in ("10.244.1.2/24 dev eth0", "fd00:244:1::2/64 dev eth0")),
            *("route add default via " + r for r in ("10.244.1.1", "fd00:244:1::1")),
        ]
    )
    names["far"].ip(
        [
            "link set eth0 up",
            *(_address(a) for a in ("10.0.0.2/24 dev eth0", "fd00::2/64 dev eth0")),
            *(_address(a) for a in ("10.244.2.2/32 dev lo", "203.0.113.9/32 dev lo", "fd00:244:2::2/128 dev lo")),
            *(
                f"route add {to} src {source}"
                for to, source in (("10.0.0.1 dev eth0", "10.244.2.2"), ("fd00::1 dev eth0", "fd00:244:2::2"))
            ),
        ]
    )
    for number in ROUTERS:
        _router(names, number)
    _clients(names["client"])


def _address(text: str) -> str:
    """Adds an address that works at once."""
    return f"address add {text}{' nodad' if '::' in text else ''}"


def _router(names: dict[str, Namespace], number: int) -> None:
    """It answers whoever asks for what is behind it that there is no way, and has the node's side by the node alone."""
    one = names[f"r{number}"]
    node = {4: router(number).rpartition(".")[0] + ".1", 6: router(number, 6).rpartition("::")[0] + "::1"}
    one.ip(
        [
            f"link add wan up type veth peer name via{number} netns {names['client'].name}",
            "link set lan up",
            *(_address(f"{router(number, f)}/{_length(f)} dev lan") for f in FAMILIES),
            *(_address(f"{_between(number, f)[0]}/{_length(f)} dev wan") for f in FAMILIES),
            *(f"route add {pool_} via {node[f]}" for f, pool_ in ((4, "192.0.2.0/25"), (6, "2001:db8:2::/64"))),
            *(f"route add {client(n, f)} via {_between(number, f)[1]}" for n in (0, number) for f in FAMILIES),
        ]
    )


def _clients(machine: Namespace) -> None:
    """One machine, whose addresses are the clients: each sends by its own router, and client 0 by the first."""
    machine.ip(
        [
            *(f"link set via{n} up" for n in ROUTERS),
            *(_address(f"{_between(n, f)[1]}/{_length(f)} dev via{n}") for n in ROUTERS for f in FAMILIES),
            *(_address(f"{client(n, f)} dev lo") for n in (0, *ROUTERS) for f in FAMILIES),
            *(
                f"route add default via {_between(n or 1, f)[0]} table {100 + n}"
                for n in (0, *ROUTERS)
                for f in FAMILIES
            ),
        ]
    )
    for n in (0, *ROUTERS):
        for f in FAMILIES:
            machine.run("ip", f"-{f}", "rule", "add", "from", client(n, f), "lookup", str(100 + n))
