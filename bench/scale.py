"""Many nodes as clients of one API server: what they ask of it, what an event costs, and how many they follow.

The clients are the real source and store of the service, a few hundred in each process; there is no kernel behind them
and nothing is decided. The server is the tests' own, a Python process without encryption: its bytes, requests and
watches are those of a real one, its speed is not.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from bench.api import labelled, real_node
from bench.cluster import Cluster, Object
from bench.daemon import wait, workspace
from bench.results import Figure
from metaleg_node.configuration.config import parse
from metaleg_node.core.model import ClusterState
from metaleg_node.sources.kubernetes_api import KubernetesSource, names
from metaleg_node.sources.store import Store
from tests.api.harness import write_kubeconfig
from tests.api.server import ApiServer

_CLUSTER = Cluster(services=100, pods=10, nodes=1)
_HUGE, _HUGE_NODES = Cluster(services=5000, pods=10, nodes=1), 5000
_EVENTS = 10
_RATE_SECONDS = 4.0
_LATE_MS = 1000.0
"""Whoever hears of an event so late does not follow any more."""
_MANAGED = [{"manager": "kube-controller-manager", "fieldsV1": {"f": "x" * 500}}]
_START_LIMIT = 300.0
_LIMIT = 60.0


def measure(clients: int) -> list[Figure]:
    """What a cluster of 5,000 nodes costs one of them at its start; then so many nodes at once."""
    with _running(_HUGE, _HUGE_NODES, 1) as one:
        found = list(one.start(f"one of {_HUGE_NODES:,} nodes"))
    with _running(_CLUSTER, clients, clients) as all_of_them:
        name = f"{clients} nodes"
        return [*found, *all_of_them.start(name), *all_of_them.one_by_one(name), *all_of_them.faster_and_faster(name)]


# --- the clients -----------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Client:
    """One node; `times`: when it had each new state, in seconds of the monotonic clock."""

    kubeconfig: Path
    times: list[float] = field(default_factory=list)
    store: Store = field(init=False)
    source: KubernetesSource = field(init=False)
    _seen: ClusterState | None = None

    def __post_init__(self) -> None:
        config = parse(f'cluster.kubeconfig = "{self.kubeconfig}"', file="bench")
        self.store = Store(self._changed, names(config))
        self.source = KubernetesSource(config, self.store)

    def _changed(self) -> None:
        state = self.store.snapshot()
        if state is not self._seen:
            self._seen = state
            self.times.append(time.monotonic())


def _follow(kubeconfig: Path, number: int, end: Connection) -> None:
    """A process with a number of clients. Tells when it is ready. Answers 0 when all have the first state, and n when
    all have had n new ones or the limit is over, with each client's times and its own processor time in seconds."""
    clients = [_Client(kubeconfig=kubeconfig) for _ in range(number)]
    end.send(([], time.process_time()))
    while (wanted := end.recv()) is not None:
        if wanted == 0:
            for client in clients:
                client.source.start()
            wait(lambda: all(one.store.loaded for one in clients), "the first states", every=0.05, limit=_START_LIMIT)
        else:
            limit = time.monotonic() + _LIMIT
            while time.monotonic() < limit and any(len(one.times) < wanted for one in clients):
                time.sleep(0.01)
        end.send(([one.times for one in clients], time.process_time()))
        for client in clients:
            client.times = []
    os._exit(0)  # Thousands of threads wait for a server that is about to stop.


@dataclass(slots=True, kw_only=True)
class _Crowd:
    """All processes."""

    ends: list[Connection]
    seconds: float = 0.0
    """Processor time of all, at the last answer."""

    def ask(self, wanted: int) -> Callable[[], list[list[float]]]:
        """Asks for so many new states of each client (0: the first). What it returns gives each client's times."""
        for end in self.ends:
            end.send(wanted)

        return self.answer

    def answer(self) -> list[list[float]]:
        """Waits for all processes."""
        answers = [end.recv() for end in self.ends]
        self.seconds = sum(seconds for _, seconds in answers)
        return [times for some, _ in answers for times in some]


@contextmanager
def _crowd(kubeconfig: Path, clients: int) -> Iterator[_Crowd]:
    spawn = multiprocessing.get_context("spawn")
    processes = min(clients, os.cpu_count() or 1)
    crowd = _Crowd(ends=[])
    for number in range(processes):
        end, other = spawn.Pipe()
        share = len(range(number, clients, processes))
        spawn.Process(target=_follow, args=(kubeconfig, share, other), daemon=True).start()
        other.close()
        crowd.ends.append(end)
    crowd.answer()
    try:
        yield crowd
    finally:
        for end in crowd.ends:
            end.send(None)


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Bench:
    """A server with clients that have not started yet."""

    server: ApiServer
    crowd: _Crowd
    clients: int
    _number: Iterator[int] = field(default_factory=count)

    def start(self, who: str) -> Iterator[Figure]:
        """All at once, as after a power failure."""
        began, server, client = time.monotonic(), time.process_time(), self.crowd.seconds
        loaded = [times[-1] - began for times in self.crowd.ask(0)()]
        watches = len(names(parse("", file="bench"))) * self.clients
        wait(lambda: sum(one.is_watch for one in self.server.asked) >= watches, "all watches", limit=_LIMIT)
        lists = sum(not one.is_watch for one in self.server.asked)
        yield _figure(f"{who}, start: each has its first state", "s", *loaded)
        yield _figure(f"{who}, start: lists of a node, all pages", "", lists / self.clients)
        yield _figure(f"{who}, start: watches of a node", "", watches / self.clients)
        yield _figure(f"{who}, start: a node receives", "KiB", sum(self.server.sent.values()) / 1024 / self.clients)
        yield from self._cpu(f"{who}, start", server, client, 1)

    def one_by_one(self, who: str) -> Iterator[Figure]:
        """Each event waits until all clients have had the one before."""
        for name, make in (("slice", self._slice), ("Node", self._node), ("announcement", self._announcement)):
            sent, server, client = sum(self.server.sent.values()), time.process_time(), self.crowd.seconds
            late = [one for _ in range(_EVENTS) for one in self._late(make, 1, 0.0)]
            size = (sum(self.server.sent.values()) - sent) / _EVENTS / self.clients
            yield _figure(f"{who}, {name}: event", "bytes", size)
            yield _figure(f"{who}, {name}: until a client has it", "ms", *late)
            yield from self._cpu(f"{who}, {name}", server, client, _EVENTS)

    def faster_and_faster(self, who: str) -> Iterator[Figure]:
        """Pods change at a rate that doubles until the clients hear of it late."""
        for rate in (2**step for step in count()):
            late = self._late(self._slice, round(rate * _RATE_SECONDS), 1 / rate)
            p99 = statistics.quantiles(late, n=100)[98]
            yield _figure(f"{who}, {rate} slices a second: until a client has it, p99", "ms", p99)
            if p99 > _LATE_MS:
                return

    def _late(self, make: Callable[[int], Object], events: int, pause: float) -> list[float]:
        """For each event and client how long it took, in ms. Those that came to nobody in time count as the limit."""
        answer = self.crowd.ask(events)
        began, sent = time.monotonic(), []
        for event in range(events):
            time.sleep(max(0.0, began + event * pause - time.monotonic()))
            sent.append(time.monotonic())
            self.server.put(make(next(self._number)))
        heard = answer()
        return [
            (times[event] - sent[event] if event < len(times) else _LIMIT) * 1000
            for times in heard
            for event in range(events)
        ]

    def _slice(self, number: int) -> Object:
        """A pod is replaced."""
        one = next(o for o in _CLUSTER.service(number % _CLUSTER.services, gateway=1) if o["kind"] == "EndpointSlice")
        one["metadata"]["labels"]["metaleg.de/rewriteSrcIP"] = "true"
        one["metadata"]["managedFields"] = _MANAGED
        one["endpoints"][0]["addresses"] = [str(IPv4Address("10.244.100.0") + number)]
        return one

    def _node(self, number: int) -> Object:
        """A node gets another pod network. A heartbeat is as large, but no client tells of it."""
        one = real_node(number % self.clients)
        one["spec"] = {"podCIDRs": [f"10.251.{number % 250}.0/24"]}
        return one

    def _announcement(self, number: int) -> Object:
        """An address moves."""
        found = _CLUSTER.service(number % _CLUSTER.services, gateway=number + 2)
        one = next(one for one in found if one["kind"] == "ServiceL2Status")
        one["metadata"]["managedFields"] = _MANAGED
        return one

    def _cpu(self, name: str, server: float, client: float, times: int) -> Iterator[Figure]:
        """Processor time since then, for each of so many times: all of the server's, and a client's own."""
        yield _figure(f"{name}: the server, CPU", "ms", (time.process_time() - server) * 1000 / times)
        used = (self.crowd.seconds - client) * 1000 / times / self.clients
        yield _figure(f"{name}: a client, CPU", "ms", used)


def _figure(name: str, unit: str, *values: float) -> Figure:
    return Figure(name=name, unit=unit, values=values)


@contextmanager
def _running(cluster: Cluster, nodes: int, clients: int) -> Iterator[_Bench]:
    """The cluster has so many Nodes, each as large as real ones."""
    with workspace() as directory, ApiServer() as server:
        server.set_all([*labelled(cluster), *map(real_node, range(nodes))])
        kubeconfig = write_kubeconfig(directory / "kubeconfig", server.url)
        with _crowd(kubeconfig, clients) as crowd:
            yield _Bench(server=server, crowd=crowd, clients=clients)
