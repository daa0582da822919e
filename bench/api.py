"""What the Kubernetes API as the source costs: the time from an event to the kernel, the start in a large cluster, and
the bytes that an idle node receives."""

from __future__ import annotations

import json
import random
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from bench.cluster import Cluster, Object
from bench.daemon import Daemon, cpu_seconds, memory_mib, wait, workspace
from bench.node import nodes
from bench.results import Figure
from metaleg_node.lab.namespaces import Namespace
from tests.api.harness import write_kubeconfig
from tests.api.server import ApiServer

EVENTS = Cluster(services=100, pods=10, nodes=20, pod_nodes=20, gateways=20)
LARGE = Cluster(services=1000, pods=10, nodes=500, pod_nodes=20, gateways=20)
_LABEL = {"metaleg.de/rewriteSrcIP": "true"}
_PORT = 6443
_MINUTE_SERVICES, _MINUTE_CHANGES, _MINUTE_NODES = 100, 1000, 500
"""The idle node's cluster: labelled Services, pod changes and nodes; nine of ten changes are of other Services."""
_KUBELET_SECONDS = 300.0
"""How often a kubelet reports an unchanged node (nodeStatusReportFrequency)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A node with a daemon that follows an API server on the same node."""

    server: ApiServer
    daemon: Daemon


def api(rounds: int) -> list[Figure]:
    """All of it; `rounds` counts for the start only."""
    return [*_events(500), *_start(rounds), *_bytes()]


@contextmanager
def following(cluster: Cluster, **reconcile: str) -> Iterator[Bench]:
    """A daemon, not yet started, and the API server that it will follow."""
    with nodes(["bench"], min(cluster.nodes, 40)) as spaces, workspace() as directory:
        server = _server(spaces["bench"])
        with server:
            kubeconfig = write_kubeconfig(directory / "kubeconfig", server.url)
            daemon = Daemon(spaces["bench"], directory / "daemon")
            daemon.configure(cluster={"state_file": "", "kubeconfig": str(kubeconfig)}, reconcile=reconcile)
            server.set_all(labelled(cluster))
            yield Bench(server=server, daemon=daemon)


def _server(space: Namespace) -> ApiServer:
    return ApiServer(address=("127.0.0.1", _PORT), open_socket=lambda: space.socket(socket.AF_INET, socket.SOCK_STREAM))


def labelled(cluster: Cluster) -> Iterator[Object]:
    """The cluster as its API has it: EndpointSlices carry their Service's labels."""
    for one in cluster.objects():
        if one["kind"] == "EndpointSlice":
            one["metadata"]["labels"] |= _LABEL
        yield one


# --- from an event to the kernel -------------------------------------------------------------------------------------


def _events(count: int) -> list[Figure]:
    """Milliseconds from the server's sending of an event to the transaction in the kernel."""
    chance = random.Random(1)
    values = []
    slices = [one for one in labelled(EVENTS) if one["kind"] == "EndpointSlice"]
    with following(EVENTS) as bench, bench.daemon.running() as process:
        wait(lambda: bench.daemon.status_stamp() is not None and in_effect(bench.daemon), "the first apply", every=0.05)
        time.sleep(1.0)
        cpu = cpu_seconds(process)
        with bench.daemon.commits() as commits:
            for number in range(count):
                one = json.loads(json.dumps(chance.choice(slices)))
                one["endpoints"][0]["addresses"] = [str(IPv4Address("10.244.100.0") + number)]
                status = bench.daemon.status_stamp()
                commits.forget()
                started = time.monotonic()
                bench.server.put(one)
                values.append((commits.wait() - started) * 1000)
                # The next event must not meet a loop that is still busy with this one.
                wait(partial(_newer, bench.daemon, status), "the status file", every=0.01)
                time.sleep(chance.uniform(0.01, 0.05))
        cpu = (cpu_seconds(process) - cpu) / count * 1000
    percentiles = statistics.quantiles(values, n=100)
    name = "100 Services, an event to the kernel in effect"
    return [
        Figure(name=f"{name}: all", unit="ms", values=tuple(values)),
        Figure(name=f"{name}: p50", unit="ms", values=(percentiles[49],)),
        Figure(name=f"{name}: p99", unit="ms", values=(percentiles[98],), at_most=50.0),
        Figure(name=f"{name}: processor time", unit="ms", values=(cpu,)),
    ]


def _newer(daemon: Daemon, status: int | None) -> bool:
    return daemon.status_stamp() != status


def in_effect(daemon: Daemon) -> bool:
    """Whether the node has a table of ours."""
    return "table inet metaleg_node" in daemon.node.run("nft", "list", "tables")


# --- the start -------------------------------------------------------------------------------------------------------


def _start(rounds: int) -> list[Figure]:
    """Seconds from the start of the process to the kernel in effect, and memory afterwards."""
    seconds, memory, peaks = [], [], []
    for _ in range(min(rounds, 3)):
        with following(LARGE) as bench:
            started = time.monotonic()
            with bench.daemon.running() as process:
                end = wait(partial(in_effect, bench.daemon), "the first apply", every=0.01)
                seconds.append(end - started)
                time.sleep(8.0)  # The last known state is written meanwhile.
                now, peak = memory_mib(process)
                memory.append(now)
                peaks.append(peak)
    name = "1,000 Services, 10,000 pods, 500 nodes"
    return [
        Figure(name=f"{name}: start to in effect", unit="s", values=tuple(seconds), at_most=3.0),
        Figure(name=f"{name}: resident memory", unit="MiB", values=tuple(memory), at_most=150.0),
        Figure(name=f"{name}: its peak", unit="MiB", values=tuple(peaks)),
    ]


# --- bytes -----------------------------------------------------------------------------------------------------------


def _bytes() -> list[Figure]:
    """Bytes of the events of one minute, times 60: with our selectors, and for a client that watches all of it."""
    with following(Cluster(services=_MINUTE_SERVICES, nodes=2)) as bench:
        chance = random.Random(2)
        all_services = _MINUTE_SERVICES * 101
        with bench.daemon.running():
            wait(lambda: in_effect(bench.daemon), "the first apply", every=0.05)
            time.sleep(1.0)
            before = dict(bench.server.sent)
            everything = 0
            for number in range(_MINUTE_CHANGES):
                one = _changed_slice(chance.randrange(all_services), number)
                everything += _event_size(one)
                bench.server.put(one)
            nodes_reporting = round(_MINUTE_NODES * 60 / _KUBELET_SECONDS)
            for number in range(nodes_reporting):
                node = real_node(number)
                everything += _event_size(node)
                bench.server.put(node)
            time.sleep(2.0)
            ours = {plural: size - before.get(plural, 0) for plural, size in bench.server.sent.items()}
    total, of_nodes = sum(ours.values()) * 60, ours.get("nodes", 0) * 60
    mib = 1024 * 1024
    return [
        Figure(name="idle, bytes of events in an hour", unit="MiB", values=(total / mib,)),
        Figure(name="idle, thereof reports of nodes", unit="MiB", values=(of_nodes / mib,)),
        Figure(name="idle, thereof Services, slices and announcements", unit="MiB", values=((total - of_nodes) / mib,)),
        Figure(
            name="idle, a client that watches all Services, slices and nodes",
            unit="MiB",
            values=(everything * 60 / mib,),
        ),
    ]


def _event_size(one: Object) -> int:
    return len(json.dumps({"type": "MODIFIED", "object": one}, separators=(",", ":"))) + 1


def _changed_slice(service: int, change: int) -> Object:
    """A pod came to a Service; those with the smallest numbers are labelled."""
    (_, one, _) = Cluster(services=1).service(service, gateway=1)
    if service < _MINUTE_SERVICES:
        one["metadata"]["labels"] |= _LABEL
    one["endpoints"][0]["addresses"] = [str(IPv4Address("10.244.0.0") + change)]
    one["metadata"]["managedFields"] = [{"manager": "kube-controller-manager", "fieldsV1": {"f": "x" * 500}}]
    return one


def real_node(number: int) -> Object:
    """As large as nodes of real clusters: most of it are names of images and managed fields."""
    node = next(one for one in Cluster(services=1, nodes=2).objects() if one["kind"] == "Node")
    images = [{"names": [f"registry.example/team/image-{n}@sha256:{'0' * 64}"], "sizeBytes": n} for n in range(50)]
    node["metadata"] |= {"name": f"other-{number}", "managedFields": [{"fieldsV1": {"f": "x" * 2500}}]}
    node["spec"] = {"podCIDRs": [f"10.250.{number % 250}.0/24"]}
    node["status"] = {**node["status"], "images": images, "heartbeat": number}
    return node
