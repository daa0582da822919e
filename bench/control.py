"""How soon the kernel follows the state file, and what that costs in processor time and memory."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address

from bench.cluster import Cluster, Object, documents, one_list
from bench.daemon import Daemon, cpu_seconds, memory_mib, wait, workspace
from bench.node import nodes
from bench.results import Figure
from metaleg_node.lab.objects import replace_file

SMALL = Cluster(services=10)
LARGE = Cluster(services=1000, nodes=20, pod_nodes=20, gateways=20)
_CHANGED = 7
"""The Service that has a pod more or less."""
_CALM_SECONDS, _IDLE_SECONDS = 3, 20
_TABLE = ("inet", "metaleg_node")


def update(rounds: int) -> list[Figure]:
    """Milliseconds from the state file's replacement to the kernel in effect, beside `nft` doing the same change."""
    figures: list[Figure] = []
    for title, cluster, form, aim in (
        ("10 Services", SMALL, documents, 50.0),
        ("1,000 Services, 10,000 pods, YAML documents", LARGE, documents, 1000.0),
        ("1,000 Services, 10,000 pods, one kind: List", LARGE, one_list, 1000.0),
    ):
        with _daemon(cluster, form) as daemon:
            with daemon.running() as process:
                _wait_settled(daemon, _last_pod(cluster))
                came, went = _changes(daemon, cluster, form, rounds)
                now, peak = memory_mib(process)
            bare = [_bare_milliseconds(daemon, cluster) for _ in range(rounds)]
        figures += [
            Figure(name=f"{title}: a pod comes", unit="ms", values=tuple(came), at_most=aim),
            Figure(name=f"{title}: a pod goes", unit="ms", values=tuple(went), at_most=aim),
            Figure(name=f"{title}: nft alone, a pod comes", unit="ms", values=tuple(bare)),
            Figure(name=f"{title}: resident memory after these changes", unit="MiB", values=(now,)),
            Figure(name=f"{title}: its peak", unit="MiB", values=(peak,)),
        ]
    return figures


def compare(rounds: int) -> list[Figure]:
    """Processor time of an unchanged full comparison, and resident memory."""
    figures: list[Figure] = []
    for title, cluster, seconds, memory in (
        ("10 Services", SMALL, None, 70.0),
        ("1,000 Services, 10,000 pods", LARGE, 0.5, 120.0),
    ):
        with _daemon(cluster, documents) as daemon:
            daemon.configure(reconcile={"interval": "1s"})
            with daemon.running() as process:
                _wait_settled(daemon, _last_pod(cluster))
                costs = [_comparison(daemon, process) for _ in range(rounds)]
                now, peak = memory_mib(process)
        name = f"{title}: unchanged full comparison"
        figures += [
            Figure(name=name, unit="s of CPU", values=tuple(costs), at_most=seconds),
            Figure(name=f"{title}: resident memory", unit="MiB", values=(now,), at_most=memory),
            Figure(name=f"{title}: its peak", unit="MiB", values=(peak,)),
        ]
    return figures


def idle(rounds: int) -> list[Figure]:
    """Processor time of a daemon with nothing to do, and of one whose neighbour commits to nftables every second."""
    figures: list[Figure] = []
    for title, cluster in (("10 Services", SMALL), ("1,000 Services, 10,000 pods", LARGE)):
        with _daemon(cluster, documents) as daemon, daemon.running() as process:
            _wait_settled(daemon, _last_pod(cluster))
            time.sleep(_CALM_SECONDS)
            daemon.node.run("nft", "add", "table", "inet", "neighbour")
            for what, act in (
                ("nothing happens", lambda: None),
                ("others commit every second", partial(_commit_elsewhere, daemon)),
            ):
                values = tuple(_share(process, act) for _ in range(rounds))
                figures.append(Figure(name=f"{title}: {what}", unit="% of a core", values=values))
    return figures


def _commit_elsewhere(daemon: Daemon) -> None:
    daemon.node.run("nft", "add chain inet neighbour c; delete chain inet neighbour c")


def _share(process: int, act: Callable[[], object]) -> float:
    """Per cent of a core that a process uses while something happens once a second."""
    before, began = cpu_seconds(process), time.monotonic()
    for _ in range(_IDLE_SECONDS):
        act()
        time.sleep(1)
    return 100 * (cpu_seconds(process) - before) / (time.monotonic() - began)


def start(rounds: int) -> list[Figure]:
    """Milliseconds from the start of the process to the kernel in effect, on a node without anything of ours."""
    values = []
    for _ in range(rounds):
        with _daemon(SMALL, documents) as daemon:
            before, started = daemon.generation(), time.monotonic()
            with daemon.running():
                values.append(_in_effect(daemon, before, _last_pod(SMALL), present=True) - started)
    return [_milliseconds("10 Services: start to in effect", values, 1000.0)]


# --- one measurement -------------------------------------------------------------------------------------------------


Form = Callable[[Iterator[Object]], str]


@contextmanager
def _daemon(cluster: Cluster, form: Form) -> Iterator[Daemon]:
    """A daemon that is not yet started, on a node of its own, with its files."""
    with nodes(["bench"], cluster.nodes) as spaces, workspace() as directory:
        daemon = Daemon(spaces["bench"], directory / "daemon")
        daemon.configure()
        replace_file(daemon.state_file, form(cluster.objects()).encode())
        yield daemon


def _changes(daemon: Daemon, cluster: Cluster, form: Form, rounds: int) -> tuple[list[float], list[float]]:
    """A pod goes and comes again, in turn; milliseconds of (coming, going)."""
    full = form(cluster.objects()).encode()
    less = form(_one_pod_less(cluster)).encode()
    came, went = [], []
    for _ in range(rounds):
        went.append(_change(daemon, less, _changed_pod(cluster), present=False))
        came.append(_change(daemon, full, _changed_pod(cluster), present=True))
    return came, went


def _change(daemon: Daemon, content: bytes, pod: IPv4Address, *, present: bool) -> float:
    beside = daemon.state_file.with_name(".next")
    beside.write_bytes(content)
    before, status = daemon.generation(), daemon.status_stamp()
    started = time.monotonic()
    beside.rename(daemon.state_file)
    took = (_in_effect(daemon, before, pod, present=present) - started) * 1000
    wait(lambda: daemon.status_stamp() != status, "the status file")
    return took


def _in_effect(daemon: Daemon, generation: int, pod: IPv4Address, *, present: bool) -> float:
    """When the transaction came after which the pod's element is there, or no longer is (monotonic seconds)."""
    while True:
        when = wait(partial(_changed_since, daemon, generation), f"a transaction about {pod}")
        generation = daemon.generation()
        if _has(daemon, pod) == present:
            return when


def _changed_since(daemon: Daemon, generation: int) -> bool:
    return daemon.generation() != generation


def _has(daemon: Daemon, pod: IPv4Address) -> bool:
    with daemon.node.inside():
        argv = ["nft", "get", "element", *_TABLE, "pods4", f"{{ {pod} }}"]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _wait_settled(daemon: Daemon, pod: IPv4Address) -> None:
    wait(lambda: _has(daemon, pod) and daemon.status_stamp() is not None, "the first apply", every=0.05)


def _comparison(daemon: Daemon, process: int) -> float:
    """Processor seconds from the end of one full comparison to the end of the next."""
    before = daemon.status_stamp()
    wait(lambda: daemon.status_stamp() != before, "a full comparison", every=0.01)
    used, before = cpu_seconds(process), daemon.status_stamp()
    wait(lambda: daemon.status_stamp() != before, "a full comparison", every=0.01)
    return cpu_seconds(process) - used


def _bare_milliseconds(daemon: Daemon, cluster: Cluster) -> float:
    """What nft needs to add the element, with nobody to tell it which."""
    pod, where = _changed_pod(cluster), " ".join((*_TABLE, "pods4"))
    listed = daemon.node.run("nft", "get", "element", *_TABLE, "pods4", f"{{ {pod} }}")
    found = re.search(rf"{pod} : (goto \w+)", listed)
    assert found, listed
    daemon.node.run("nft", "-f", "-", stdin=f"delete element {where} {{ {pod} }}\n")
    started = time.monotonic()
    daemon.node.run("nft", "-f", "-", stdin=f"add element {where} {{ {pod} : {found[1]} }}\n")
    return (time.monotonic() - started) * 1000


def _one_pod_less(cluster: Cluster) -> Iterator[Object]:
    name = f"service-{_CHANGED}-1"
    for made in cluster.objects():
        if made["metadata"]["name"] == name:
            yield {**made, "endpoints": made["endpoints"][:-1]}
        else:
            yield made


def _changed_pod(cluster: Cluster) -> IPv4Address:
    return cluster.pod(_CHANGED, cluster.pods - 1)


def _last_pod(cluster: Cluster) -> IPv4Address:
    return cluster.pod(cluster.services - 1, cluster.pods - 1)


def _milliseconds(name: str, seconds: Iterable[float], at_most: float) -> Figure:
    return Figure(name=name, unit="ms", values=tuple(value * 1000 for value in seconds), at_most=at_most)
