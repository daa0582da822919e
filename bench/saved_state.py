"""What it costs to keep what the API said for the saved state, and to write that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from bench.daemon import workspace
from bench.results import Figure

SERVICES = 5_000
_FOLLOW = """\
import json, re, sys, time
from dataclasses import replace
from pathlib import Path
from bench.cluster import Cluster
from metaleg_node.sources.api_watch import translate
from metaleg_node.sources.resources import Resource
from metaleg_node.sources.saved_state import SavedState
from metaleg_node.sources.store import Store

def memory(key):
    return int(re.search(key + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def as_the_api_has_it(one):
    managed = [{"manager": "kube-controller-manager", "fieldsV1": {"f": "x" * 500}}]
    one["metadata"] |= {"uid": "0" * 36, "resourceVersion": "1234567", "managedFields": managed}
    for endpoint in one.get("endpoints", ()):
        endpoint["zone"] = "z"
        endpoint["targetRef"]["uid"] = "0" * 36
    return json.loads(json.dumps(one))

services, kept, directory = int(sys.argv[1]), sys.argv[2] == "kept", Path(sys.argv[3])
store, seconds = Store(lambda: None), 0.0
for number, one in enumerate(Cluster(services=services, nodes=500, pod_nodes=20, gateways=20).objects()):
    raw = as_the_api_has_it(one)
    group, _, version = raw["apiVersion"].rpartition("/")
    began = time.process_time()
    part = translate(Resource(kind=raw["kind"], plural="", group=group, version=version), raw)[1]
    seconds += time.process_time() - began
    store.put("API", number, part if kept else replace(part, raw=b""))
store.snapshot()
print(seconds, memory("VmRSS"), sep="\\n")
saved = SavedState(directory, settle=0.0)
began = time.process_time()
saved.start()
saved.offer(store)
saved.stop()
print(time.process_time() - began, memory("VmHWM"), sep="\\n")
"""
"""A process of its own, so that the memory is that of the state alone."""


def measure(rounds: int) -> list[Figure]:
    """Seconds of processor time and MiB, for 5,000 Services with 10 pods each in a cluster of 500 nodes."""
    return [*_figures("not kept", rounds), *_figures("kept", rounds)]


def _figures(how: str, rounds: int) -> Iterator[Figure]:
    runs = []
    for _ in range(rounds):
        with workspace() as directory:
            argv = [sys.executable, "-c", _FOLLOW, str(SERVICES), how, str(directory)]
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
        runs.append([float(line) for line in done.stdout.split()])
    names = ("reading all objects", "resident memory", "one write", "most memory")
    units = ("s of CPU", "MiB", "s of CPU", "MiB")
    for name, unit, values in zip(names, units, zip(*runs, strict=True), strict=True):
        yield Figure(name=f"{SERVICES:,} Services, the raw objects are {how}: {name}", unit=unit, values=values)
