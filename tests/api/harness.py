"""The source under test with a store, and the objects of a small cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from metaleg_node.configuration.config import ClusterSettings, Config, EgressSettings
from metaleg_node.core.model import AnnouncedBy
from metaleg_node.sources.api_watch import Timing
from metaleg_node.sources.kubernetes_api import KubernetesSource, names
from metaleg_node.sources.store import Store
from tests.api.server import ApiServer, Object
from tests.patience import patient

LABEL = "metaleg.de/rewriteSrcIP"
FAST = Timing(
    list=0.5,
    list_total=2.0,
    watch=20.0,
    silence=0.5,
    first_retry=0.02,
    last_retry=0.2,
    steady=0.5,
    busy=0.5,
    absent_first=0.1,
    absent_last=0.2,
    gone=0.6,
)
WAIT = patient(5.0)
"""Seconds within which what must happen has happened, also on a busy machine."""


class Harness:
    """A source that follows a server."""

    def __init__(self, server: ApiServer, kubeconfig: Path, timing: Timing = FAST, **egress: Any) -> None:
        self.server = server
        self.config = config_for(kubeconfig, **egress)
        self.changes = 0
        self.observe: Callable[[], object] = lambda: None
        self.store = Store(self._changed, names(self.config))
        self._timing = timing
        self.source = KubernetesSource(self.config, self.store, timing)

    def timing(self, **seconds: float) -> Harness:
        """Changes times, before the start."""
        self.source = KubernetesSource(self.config, self.store, replace(self._timing, **seconds))
        return self

    def configured(self, config: Config) -> Harness:
        """Follows what another configuration needs, before the start."""
        self.config = config
        self.store = Store(self._changed, names(config))
        self.source = KubernetesSource(config, self.store, self._timing)
        return self

    def start(self) -> Harness:
        self.source.start()
        return self

    def loaded(self) -> Harness:
        """Starts, and waits for the first complete state."""
        self.start()
        self.wait(lambda: self.store.loaded)
        return self

    def stop(self) -> None:
        self.source.stop()

    def wait(self, condition: Callable[[], bool], seconds: float = WAIT) -> None:
        assert eventually(condition, seconds), f"problems: {self.store.problems}, {self.names()}"

    def names(self, kind: str = "services") -> list[str]:
        """The names of what the store holds."""
        return sorted(one.ref.name for one in getattr(self.store.snapshot(), kind))

    def wait_names(self, *wanted: str, kind: str = "services") -> None:
        self.wait(lambda: self.names(kind) == sorted(wanted))

    def wait_problem(self, text: str) -> str:
        """Waits for a problem that says this."""
        self.wait(lambda: any(text in problem for problem in self.store.problems))
        return next(problem for problem in self.store.problems if text in problem)

    def wait_well(self) -> None:
        self.wait(lambda: self.store.loaded and not self.store.problems)

    def _changed(self) -> None:
        self.changes += 1
        self.observe()


def eventually(condition: Callable[[], bool], seconds: float = WAIT) -> bool:
    """Whether a condition that nobody tells about comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def config_for(kubeconfig: Path, **egress: Any) -> Config:
    settings = ClusterSettings(kubeconfig=str(kubeconfig))
    return replace(Config(), cluster=settings, egress=replace(EgressSettings(), **egress))


def write_kubeconfig(file: Path, url: str, *, cluster: Object | None = None, user: Object | None = None) -> Path:
    """A kubeconfig with one context, put in place in one step."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url, **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(yaml.safe_dump(document))
    beside.replace(file)
    return file


# --- objects ---------------------------------------------------------------------------------------------------------


def service(name: str, *, labelled: bool = True, **metadata: Any) -> Object:
    labels = {LABEL: "true"} if labelled else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "mail", "labels": labels, **metadata},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10"},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.200"}]}},
    }


def node(name: str, *, ready: bool = True) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.168.10.11"}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def l2_status(service_name: str, node_name: str, name: str = "l2-x") -> Object:
    return {
        "apiVersion": "metallb.io/v1beta1",
        "kind": "ServiceL2Status",
        "metadata": {
            "name": name,
            "namespace": "metallb-system",
            "labels": {"metallb.io/service-name": service_name, "metallb.io/service-namespace": "mail"},
        },
        "status": {"node": node_name},
    }


def event(service_name: str, node_name: str, name: str, last: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "mail"},
        "involvedObject": {"kind": "Service", "namespace": "mail", "name": service_name},
        "reason": "nodeAssigned",
        "message": f'announcing from node "{node_name}" with protocol "layer2"',
        "lastTimestamp": last,
    }


def gateways(harness: Harness) -> dict[str, str]:
    """Service name to the node that announces it, as the store knows it."""
    return {a.service[1]: a.node for a in harness.store.snapshot().announcements}


ONLY_EVENTS = {"gateway_source": (AnnouncedBy.EVENTS,)}
