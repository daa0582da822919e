"""What it costs to read a state file, in each of its forms: for the first time, and again when one pod came."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.cluster import Cluster, Object, documents, one_list
from bench.daemon import workspace
from bench.results import Figure
from metaleg_node.lab.objects import replace_file

_READ = """\
import re, sys, time
from pathlib import Path
from metaleg_node.sources.state_file import StateFile

file, changed = map(Path, sys.argv[1:])
state = StateFile(file)
for file_to_read in (file, changed):
    if file_to_read is changed:
        changed.replace(file)
    began = time.process_time()
    state.read()
    print(time.process_time() - began)
print(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""
"""A process of its own, so that the most memory is that of reading."""


def _one_json(objects: Iterator[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}, indent=1)


_FORMS: Mapping[str, Callable[[Iterator[Object]], str]] = {
    "YAML documents": documents,
    "one YAML kind: List": one_list,
    "one JSON kind: List": _one_json,
}


def measure(rounds: int) -> list[Figure]:
    """Seconds of processor time and MiB, for 1,000 and for 18,000 Services with 10 pods each."""
    figures: list[Figure] = []
    for services in (1_000, 18_000):
        for title, form in _FORMS.items():
            with workspace() as directory:
                figures += _figures(f"{services:,} Services, {title}", services, form, directory, rounds)
    return figures


def _figures(
    title: str, services: int, form: Callable[[Iterator[Object]], str], directory: Path, rounds: int
) -> Iterator[Figure]:
    file, changed = directory / "state", directory / "changed"
    before = form(Cluster(services=services).objects()).encode()
    after = form(_one_pod_more(services)).encode()
    yield Figure(name=f"{title}: size", unit="MB", values=(len(before) / 1e6,))
    runs = []
    for _ in range(rounds):
        replace_file(file, before)
        replace_file(changed, after)
        argv = [sys.executable, "-c", _READ, str(file), str(changed)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        runs.append([float(line) for line in done.stdout.split()])
    names = ("first reading", "one pod came", "most memory")
    for name, unit, values in zip(names, ("s of CPU", "s of CPU", "MiB"), zip(*runs, strict=True), strict=True):
        yield Figure(name=f"{title}: {name}", unit=unit, values=values)


def _one_pod_more(services: int) -> Iterator[Object]:
    yield from Cluster(services=services - 1).objects()
    yield from Cluster(services=services, pods=11).service(services - 1, gateway=1)
