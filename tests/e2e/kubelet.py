"""A stand-in for the kubelet and its container runtime: starts pods in the order of a real one.

The Pod is bound, the pod gets its address, CNI's result is written as libcni writes it, and only later the API tells
the address. Each pod's first act, from the moment its address is up, is a new flow every 5 ms.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from metaleg_node.lab import objects
from metaleg_node.lab.plan import SERVER, LabPod, LabService
from tests.lab.lab import Lab

PAUSE: Final = 0.005
EGRESS_PORT, PLAIN_PORT = 9101, 9102
"""Where egress pods and others send, so that the server knows whose a datagram is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a pod with an address of its own; `egress`: a labelled Service selects it. `reported_after`: from
    its first packet to its address in the API, in seconds."""

    name: str
    address: str
    egress: bool
    reported_after: float = 0.0

    @property
    def port(self) -> int:
        return EGRESS_PORT if self.egress else PLAIN_PORT


@dataclass(slots=True, kw_only=True)
class Listener:
    """The server outside: the sources of all datagrams by port, with the first pod that had each, and when each pod's
    first came."""

    lab: Lab
    sources: dict[int, dict[str, str]] = field(default_factory=lambda: {EGRESS_PORT: {}, PLAIN_PORT: {}})
    first: dict[str, float] = field(default_factory=dict)
    _came: threading.Condition = field(default_factory=threading.Condition)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        sockets = [self.lab.namespace("outside").socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in self.sources]
        threads = []
        for port, sock in zip(self.sources, sockets, strict=True):
            sock.bind((str(SERVER[4]), port))
            threads.append(threading.Thread(target=self._listen, args=(port, sock)))
            threads[-1].start()
        try:
            yield
        finally:
            for sock, thread in zip(sockets, threads, strict=True):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                thread.join()
                sock.close()

    def _listen(self, port: int, sock: socket.socket) -> None:
        while True:
            text, sender = sock.recvfrom(100)
            if not text:  # Shut down; no pod sends an empty one.
                return
            source = sender[0]
            with self._came:
                self.sources[port].setdefault(source, text.decode())
                self.first.setdefault(text.decode(), time.monotonic())
                self._came.notify_all()

    def wait_for(self, name: str, timeout: float) -> float | None:
        """When a pod's first datagram came, in seconds of the monotonic clock; None if none comes in time."""
        with self._came:
            self._came.wait_for(lambda: name in self.first, timeout)
            return self.first.get(name)


@dataclass(slots=True, kw_only=True)
class Kubelet:
    """Starts and ends pods of one node in the namespace of one of the lab's pods. `results` is CNI's directory."""

    lab: Lab
    sandbox: LabPod
    results: Path
    service: LabService
    _pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    _endpoints: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.results.mkdir(mode=0o700, parents=True)
        self.lab.namespace(self.sandbox).ip(["address flush dev eth0 scope global"])

    def bind(self, start: Start) -> None:
        """The API has the Pod, on this node and without an address."""
        labels = {"app": self.service.name} if start.egress else {"app": "other"}
        metadata = {"name": start.name, "namespace": objects.NAMESPACE, "uid": f"uid-{start.name}", "labels": labels}
        spec = {"nodeName": self.sandbox.node.name}
        self._pods[start.name] = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {}}
        self.write()

    def attach(self, start: Start) -> float:
        """CNI's ADD: the address, then the result. Returns when it was written, in seconds of the monotonic clock."""
        node = self.sandbox.node
        self.lab.namespace(self.sandbox).ip(
            [
                f"address add {start.address}/{node.pod_networks[4].prefixlen} dev eth0",
                f"route replace default via {node.pod_networks[4][1]}",
            ]
        )
        # In place and not renamed, as libcni does it.
        self._result(start).write_text(json.dumps(_cached(start)))
        return time.monotonic()

    def report(self, start: Start) -> None:
        """The API tells the address: in the Pod, and in the Service's EndpointSlice."""
        self._pods[start.name]["status"] = {"podIPs": [{"ip": start.address}]}
        if start.egress:
            target = {"kind": "Pod", "name": start.name, "namespace": objects.NAMESPACE}
            self._endpoints = [{"addresses": [start.address], "nodeName": self.sandbox.node.name, "targetRef": target}]
        self.write()

    def detach(self, start: Start) -> None:
        """CNI's DEL; the API is told later, see `forget`."""
        self.lab.namespace(self.sandbox).ip([f"address delete {start.address}/24 dev eth0"])
        self._result(start).unlink()

    def delete(self, start: Start) -> None:
        """Somebody deletes the Pod, which goes on until it is `detach`ed."""
        self._pods[start.name]["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z"
        self.write()

    def forget(self, start: Start) -> None:
        """The Pod and its endpoint are gone; the next write tells."""
        del self._pods[start.name]
        if start.egress:
            self._endpoints = []

    def write(self) -> None:
        """Gives all daemons the state."""
        found = self.lab.cluster_objects()
        for one in found:
            if one["kind"] == "Service":
                one["spec"]["selector"] = {"app": self.service.name}
            if one["kind"] == "EndpointSlice" and one["addressType"] == "IPv4":
                one["endpoints"] = self._endpoints
        self.lab.write_state([*found, *self._pods.values()])

    @contextlib.contextmanager
    def sending(self, start: Start) -> Iterator[None]:
        """The pod's flows, from before its address is up."""
        stopped = threading.Event()
        thread = threading.Thread(target=self._send, args=(start, stopped))
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _send(self, start: Start, stopped: threading.Event) -> None:
        with self.lab.namespace(self.sandbox).inside():
            while not stopped.wait(PAUSE):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                    sock.bind((start.address, 0))
                    sock.sendto(start.name.encode(), (str(SERVER[4]), start.port))

    def _result(self, start: Start) -> Path:
        return self.results / f"lab-{start.name}-eth0"


def _cached(start: Start) -> dict[str, Any]:
    """As libcni 1.1 writes it for containerd (libcni/api.go, cachedInfo)."""
    arguments = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": objects.NAMESPACE,
        "K8S_POD_NAME": start.name,
        "K8S_POD_INFRA_CONTAINER_ID": start.name,
        "K8S_POD_UID": f"uid-{start.name}",
    }
    return {
        "kind": "cniCacheV1",
        "containerId": start.name,
        "config": "e30=",
        "ifName": "eth0",
        "networkName": "lab",
        "cniArgs": [[key, value] for key, value in arguments.items()],
        "result": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": f"{start.address}/24", "interface": 0}],
        },
    }
