"""What the scenarios have in common: the usual Service, looking at a node's kernel, and flows that never stop."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from metaleg_node.core.model import FAMILIES, ROUTE_PROTOCOL, Address, Family
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.outside import ADDRESS_FAMILY
from metaleg_node.lab.plan import NODES, SERVER, SERVER_PORT, LabNode, LabPod, LabService
from tests.lab.lab import Lab
from tests.lab.plan import Flavour
from tests.patience import patient

NODE1, NODE2, NODE3 = NODES
PROTOCOLS = ("tcp", "udp", "icmp")
SECOND = patient(1.0)
"""Within which repairs must be done; the issue's own limit."""
SETTLED = patient(5.0)
"""Seconds after which a change must have happened, with room for a loaded machine."""


def egress_service(lab: Lab, gateway: LabNode | None = NODE2) -> LabService:
    """Labelled, with a pod on the gateway and one elsewhere."""
    return LabService(name="web", number=0, pods=(lab.pod(NODE1), lab.pod(NODE2)), gateway=gateway)


def sources(lab: Lab, client: LabPod | LabNode, timeout: float = 1.0) -> set[str]:
    """What the server sees of a client, over all protocols and both families."""
    return {lab.source_seen(client, p, f, patient(timeout)) for p in PROTOCOLS for f in FAMILIES}


def expect(lab: Lab, client: LabPod | LabNode, wanted: set[str], timeout: float = SETTLED) -> None:
    """Waits until new TCP connections of a client show exactly these sources over both families."""
    last: list[set[str]] = []

    def right() -> bool:
        last[:] = [{lab.source_seen(client, "tcp", f, patient(0.3)) for f in FAMILIES}]
        return last[0] == wanted

    assert wait_until(right, timeout), f"{client.name} leaves with {last[0]}, not {wanted}, after {timeout} s"


def expect_no_way_out(lab: Lab, client: LabPod | LabNode, timeout: float = SETTLED) -> None:
    """Waits until no protocol of a client reaches the server any more, whatever it is told instead."""
    kinds = [(p, f) for p in PROTOCOLS for f in FAMILIES]
    cut_off = wait_until(lambda: not any(lab.ask(client, p, f, patient(0.05)).source for p, f in kinds), timeout)
    assert cut_off, f"{client.name} still reaches the server after {timeout} s"


def texts(addresses: dict[Family, Address]) -> set[str]:
    return {str(address) for address in addresses.values()}


def foreign(lab: Lab, node: LabNode) -> dict[str, str]:
    """Everything in a node's kernel that is not ours: rules, routes, packet filter. Counters are left out. Numbers stay
    numbers: where the package is installed they have names."""
    namespace, ours = lab.namespace(node), f"proto {ROUTE_PROTOCOL}"
    view = {}
    for what in ("rule", "route show table all"):
        for family in FAMILIES:
            lines = namespace.run("ip", "-N", "-o", "-d", f"-{family}", *what.split()).splitlines()
            view[f"{what} {family}"] = "\n".join(line for line in lines if ours not in line)
    view["nftables"] = _OUR_TABLE.sub("", namespace.run("nft", "-s", "list", "ruleset"))
    if lab.options.flavour is Flavour.IPTABLES_LEGACY:
        for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
            saved = namespace.run(program)
            view[program] = re.sub(r"^#.*\n|\[\d+:\d+\]", "", saved, flags=re.MULTILINE)
    return view


def ours(lab: Lab, node: LabNode) -> dict[str, str]:
    """Everything of ours in a node's kernel, as text, in an order that does not tell in which it came to be."""
    namespace, tag = lab.namespace(node), f"proto {ROUTE_PROTOCOL}"
    view = {}
    for what in ("rule", "route show table all"):
        for family in FAMILIES:
            lines = namespace.run("ip", "-N", "-o", "-d", f"-{family}", *what.split()).splitlines()
            view[f"{what} {family}"] = "\n".join(sorted(line for line in lines if tag in line))
    tables = "".join(_OUR_TABLE.findall(namespace.run("nft", "-s", "list", "ruleset")))
    view["nftables"] = "".join(sorted(_ELEMENTS.sub(_sorted, one) for one in _BLOCK.findall(tables)))
    return view


def _sorted(elements: re.Match[str]) -> str:
    return ", ".join(sorted(element.strip() for element in elements[0].split(",")))


_BLOCK = re.compile(r"^\t\w+ \w+ \{\n.*?^\t\}\n", flags=re.MULTILINE | re.DOTALL)
_ELEMENTS = re.compile(r"(?<=elements = \{)[^}]*(?=\})")
_OUR_TABLE = re.compile(r"^table inet metaleg_node \{\n.*?^\}\n", flags=re.MULTILINE | re.DOTALL)


PAUSE = 0.004


@dataclass(slots=True)
class Flows:
    """New flows of pods without end, while the `with` block runs: TCP, UDP and ICMP, both families, every
    `pause` seconds. Nothing waits for answers; the server's own record tells what came out. `answers` counts the source
    addresses that UDP answers told of."""

    lab: Lab
    pods: tuple[LabPod, ...]
    pause: float = PAUSE
    answers: Counter[str] = field(default_factory=Counter)
    started: int = 0
    _open: deque[tuple[float, socket.socket]] = field(default_factory=deque)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread
        self._ending.set()
        self._thread.join()

    def go_on(self, count: int = 100) -> None:
        """Waits until so many more have begun: a while that is as rich in flows on a busy machine as on an idle one."""
        goal = self.started + count
        assert wait_until(lambda: self.started >= goal, SETTLED), "no new flows"

    def _run(self) -> None:
        while not self._ending.wait(self.pause):
            for pod in self.pods:
                for family in FAMILIES:
                    self._start(self.lab.namespace(pod), family)
            self._close(time.monotonic() - 0.4)
        self._close(time.monotonic())

    def _start(self, namespace: Namespace, family: Family) -> None:
        icmp, request = ((socket.IPPROTO_ICMP, 8), (socket.IPPROTO_ICMPV6, 128))[family == 6]
        kinds = (socket.SOCK_STREAM, 0), (socket.SOCK_DGRAM, 0), (socket.SOCK_DGRAM, icmp)
        for kind, protocol in kinds:
            sock = namespace.socket(ADDRESS_FAMILY[family], kind, protocol)
            sock.setblocking(False)
            self._open.append((time.monotonic(), sock))
            self.started += 1
            try:
                sock.connect((str(SERVER[family]), SERVER_PORT))
                sock.send(bytes([request, 0, 0, 0, 0, 0, 0, 1]) if protocol else b"flow\n")
            except OSError:
                continue

    def _close(self, before: float) -> None:
        while self._open and self._open[0][0] <= before:
            _, sock = self._open.popleft()
            with sock:
                if sock.type == socket.SOCK_DGRAM and not sock.proto:
                    self._count(sock)

    def _count(self, sock: socket.socket) -> None:
        try:
            self.answers[sock.recv(2048).split()[0].decode()] += 1
        except OSError:
            self.answers["none"] += 1
