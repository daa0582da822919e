"""What a pod notices of gateways that move, beside many tracked connections: TCP connections that end, and the longest
time without a way out for what it begins anew."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack

from bench.changes import track
from bench.results import Figure
from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.outside import ADDRESS_FAMILY
from metaleg_node.lab.plan import SERVER, SERVER_PORT, LabPod, LabService
from tests.e2e.scenario import NODE2, NODE3, SETTLED, egress_service, sources, texts
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions

_CONNECTIONS = (0, 200_000)
"""Tracked by the nodes that are gateways in turn, half by each."""
_FAILOVERS_A_ROUND = 15
_OPEN = 25
"""TCP connections for each pod and family."""
_EVERY = 0.005
_REST = 0.4


def survival(rounds: int) -> list[Figure]:
    """Failovers of a Service with a pod on a gateway and one elsewhere, in both families; the state files follow the
    router by some milliseconds, which are told, too: nobody can be faster than the news."""
    figures: list[Figure] = []
    for connections in _CONNECTIONS:
        with Lab(LabOptions(flavour=Flavour.IPTABLES_LEGACY)) as lab:
            lab.set_services(egress_service(lab))
            lab.start_daemons()
            for node in (NODE2, NODE3):
                track(lab.namespace(node), connections // 2)
            figures += _measured(lab, lab.services["web"], connections, rounds * _FAILOVERS_A_ROUND)
    return figures


def _measured(lab: Lab, web: LabService, connections: int, count: int) -> list[Figure]:
    gaps: list[float] = []
    news: list[float] = []
    lost = 0
    with ExitStack() as stack:
        ends = [(pod, family, port) for pod in web.pods for family in FAMILIES for port in range(_OPEN)]
        clients = [stack.enter_context(_connected(lab, *end)) for end in ends]
        for number in range(count):
            with _Probe(lab, web.pods) as probe:
                time.sleep(_REST / 2)
                began = time.monotonic()
                lab.failover("web", (NODE3, NODE2)[number % 2])
                news.append((time.monotonic() - began) * 1000)
                time.sleep(_REST)
                assert wait_until(lambda: sources(lab, web.pods[0]) == texts(web.addresses), SETTLED)
            gaps.append(probe.gap * 1000)
            alive = [client for client in clients if _answers(client)]
            lost += len(clients) - len(alive)
            clients = alive
    name = f"{connections:,} connections, {count} failovers"
    return [
        Figure(name=f"{name}: router and state files told after", unit="ms", values=tuple(news)),
        Figure(name=f"{name}: longest gap of new flows", unit="ms", values=tuple(gaps)),
        Figure(name=f"{name}: of {len(ends)} TCP connections lost", unit="", values=(lost,), at_most=1.0),
    ]


def _connected(lab: Lab, pod: LabPod, family: Family, number: int) -> socket.socket:
    """From a port that nothing else has: on each gateway it is free."""
    sock = lab.namespace(pod).socket(ADDRESS_FAMILY[family], socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.bind(("", 20_000 + 1000 * pod.node.number + 100 * family + number))
    sock.connect((str(SERVER[family]), SERVER_PORT))
    return sock


def _answers(client: socket.socket) -> bool:
    try:
        client.sendall(b"still there\n")
        return bool(client.recv(2048))
    except OSError:
        return False


class _Probe:
    """New UDP flows of pods, every 5 ms, while the `with` block runs; `gap`: the longest time (seconds) from one that
    was answered to the next."""

    def __init__(self, lab: Lab, pods: Iterable[LabPod]) -> None:
        self._pods = [lab.namespace(pod) for pod in pods]
        self._sent: list[tuple[int, float, socket.socket]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.gap = 0.0

    def __enter__(self) -> _Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        last: dict[int, float] = {}
        for end, at, sock in self._sent:
            with sock:
                if _has_answer(sock):
                    self.gap = max(self.gap, at - last.get(end, at))
                    last[end] = at

    def _run(self) -> None:
        ends = [(pod, family) for pod in self._pods for family in FAMILIES]
        while not self._ending.wait(_EVERY):
            for number, (pod, family) in enumerate(ends):
                sock = pod.socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM)
                sock.setblocking(False)
                try:
                    sock.connect((str(SERVER[family]), SERVER_PORT))
                    sock.send(b"flow\n")
                except OSError:
                    pass
                self._sent.append((number, time.monotonic(), sock))


def _has_answer(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(2048))
    except OSError:
        return False
