"""How soon the kernel follows what happens in the cluster while it tracks many connections: pods that are replaced, and
gateways that move."""

from __future__ import annotations

import json
import queue
import random
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address

from bench.api import Bench, following, in_effect, labelled
from bench.cluster import Cluster, Object
from bench.daemon import cpu_seconds, memory_mib, wait
from bench.results import Figure
from metaleg_node.lab.namespaces import Namespace

SMALL = Cluster(services=10, nodes=20, pod_nodes=20, gateways=20)
LARGE = Cluster(services=5000, nodes=20, pod_nodes=20, gateways=20)
GATEWAYS = Cluster(services=30, nodes=3, pod_nodes=3, gateways=3)
_CONNECTIONS = (0, 100_000, 200_000)
_ALL_AT_ONCE = 20_000
_EVENTS_A_ROUND = 20
_RATES, _SECONDS, _SAMPLES = (100, 500), 10, 200
_START_SECONDS = 300.0
"""For 5,000 Services on a machine that has other things to do."""


def churn(rounds: int) -> list[Figure]:
    """Milliseconds from the server's sending of a slice in which one pod was replaced by another to the transaction in
    the kernel, and the processor time of one."""
    figures: list[Figure] = []
    for title, cluster in (("10 Services", SMALL), ("5,000 Services, 50,000 pods", LARGE)):
        slices = [one for one in labelled(cluster) if one["kind"] == "EndpointSlice"]
        for connections in _CONNECTIONS:
            with _running(cluster, connections) as (bench, process):
                cpu = cpu_seconds(process)
                if not connections:
                    figures.append(Figure(name=f"{title}: start, processor time", unit="s", values=(cpu,)))
                values = _times(bench, _replaced(slices, rounds * _EVENTS_A_ROUND))
                cpu = (cpu_seconds(process) - cpu) / len(values) * 1000
                if not connections:
                    now, peak = memory_mib(process)
                    figures.append(Figure(name=f"{title}: resident memory", unit="MiB", values=(now,)))
                    figures.append(Figure(name=f"{title}: its peak", unit="MiB", values=(peak,)))
            name = f"{title}, {connections:,} connections: a pod replaced"
            figures += [*_told(name, values, 25.0), Figure(name=f"{name}, processor time", unit="ms", values=(cpu,))]
    return figures


def failover(rounds: int) -> list[Figure]:
    """Milliseconds from the server's sending of an announcement to the transaction in the kernel, on a node that
    becomes the gateway, is one no more, or steers to another one."""
    figures: list[Figure] = []
    for connections in _CONNECTIONS:
        with _running(GATEWAYS, connections) as (bench, _):
            for what, before, after in (
                ("the new gateway", 2, 1),
                ("a node that steers", 2, 3),
                ("the former gateway", 1, 2),
            ):
                moves = (move for _ in range(rounds) for move in (_announced(before), _announced(after)))
                values = _times(bench, moves)[1::2]
                figures += _told(f"{connections:,} connections: {what}", values, 50.0)
    return figures


def burst(rounds: int) -> list[Figure]:
    """Many pods replaced a second for ten seconds, with 5,000 Services: milliseconds from the server's sending until
    the kernel has the new pod, of 200 of them, and what part of a core the daemon takes meanwhile."""
    figures: list[Figure] = []
    for rate in _RATES:
        late: list[float] = []
        shares = []
        for _ in range(min(rounds, 3)):
            slices = [one for one in labelled(LARGE) if one["kind"] == "EndpointSlice"]
            random.Random(3).shuffle(slices)
            with _running(LARGE, 0) as (bench, process):
                cpu, started = cpu_seconds(process), time.monotonic()
                late += _lateness(bench, list(_renewed(slices[: rate * _SECONDS])), rate)
                shares.append((cpu_seconds(process) - cpu) / (time.monotonic() - started) * 100)
        name = f"{LARGE.services:,} Services, {rate} replaced pods a second"
        figures += _told(f"{name}: in the kernel after", late, 100.0)
        figures.append(Figure(name=f"{name}: processor time", unit="% of a core", values=tuple(shares), at_most=25.0))
    return figures


def _lateness(bench: Bench, objects: list[Object], rate: int) -> list[float]:
    """Sends so many a second, evenly; returns how long it took until the kernel had those that are looked for."""
    each = len(objects) // _SAMPLES
    looked_for: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()

    def send() -> None:
        begun = time.monotonic()
        for number, one in enumerate(objects):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            if number % each == 0:
                looked_for.put((time.monotonic(), one["endpoints"][0]["addresses"][0]))
            bench.server.put(one)

    sender = threading.Thread(target=send)
    sender.start()
    found = []
    with bench.daemon.elements("pods4") as has:
        for _ in range(0, len(objects), each):
            sent, address = looked_for.get()
            found.append((wait(partial(has, address), f"{address} in the kernel", every=0.001) - sent) * 1000)
    sender.join()
    return found


@contextmanager
def _running(cluster: Cluster, connections: int) -> Iterator[tuple[Bench, int]]:
    """A daemon that has done all there was to do, on a node that tracks so many connections; and its process id."""
    with following(cluster) as bench:
        track(bench.daemon.node, connections)
        with bench.daemon.running() as process:
            wait(
                lambda: bench.daemon.status_stamp() is not None and in_effect(bench.daemon),
                "the first apply",
                every=0.05,
                limit=_START_SECONDS,
            )
            time.sleep(5.0)
            yield bench, process


def track(node: Namespace, connections: int) -> None:
    """UDP connections that last, of pods that are behind no Service: looking through them finds nothing."""
    for first in range(0, connections, _ALL_AT_ONCE):
        lines = (
            f"-I -s {IPv4Address('10.245.0.0') + number % 60_000} -d 203.0.113.{number // 60_000 + 1} "
            f"-p udp --sport {1024 + number % 50_000} --dport 53 -t 3600 -u SEEN_REPLY"
            for number in range(first, min(first + _ALL_AT_ONCE, connections))
        )
        node.run("conntrack", "-R", "-", stdin="\n".join(lines) + "\n")


def _replaced(slices: list[Object], count: int) -> Iterator[Object]:
    chance = random.Random(1)
    return _renewed(chance.choice(slices) for _ in range(count))


def _renewed(slices: Iterable[Object]) -> Iterator[Object]:
    """Each of them with another pod in the place of its first."""
    for number, one in enumerate(slices):
        new = json.loads(json.dumps(one))
        new["endpoints"][0]["addresses"] = [str(IPv4Address("10.245.200.0") + number)]
        yield new


def _announced(gateway: int) -> Object:
    """What says that a node announces the Service whose pods run here."""
    return list(GATEWAYS.service(0, gateway=gateway))[-1]


def _times(bench: Bench, objects: Iterator[Object]) -> list[float]:
    """Milliseconds from sending each to the first transaction, one after the other."""
    chance, values = random.Random(2), []
    with bench.daemon.commits() as commits:
        for one in objects:
            # What follows from the one before, connections looked through included, must not be counted again.
            time.sleep(chance.uniform(0.3, 0.6))
            commits.forget()
            started = time.monotonic()
            bench.server.put(one)
            values.append((commits.wait() - started) * 1000)
    return values


def _told(name: str, values: list[float], at_most: float) -> list[Figure]:
    p99 = statistics.quantiles(values, n=100, method="inclusive")[98]
    return [
        Figure(name=name, unit="ms", values=tuple(values)),
        Figure(name=f"{name}, p99", unit="ms", values=(p99,), at_most=at_most),
    ]
