"""A host in a namespace for `doctor`, with a cluster in a state file and other programs' files in a folder."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metaleg_node.configuration.options import Options
from metaleg_node.doctor.diagnosis import Diagnosis, Finding
from metaleg_node.doctor.examination import examine
from tests.kernel_modules import needed
from tests.netns import Netns

Object = dict[str, Any]
LABEL = {"metaleg.de/rewriteSrcIP": "true"}


def node(name: str, **status: Any) -> Object:
    """Node a has 10.9.0.1 and fd09::1, as the host in the namespace does; b the next."""
    number = ord(name) - ord("a") + 1
    addresses = [{"type": "InternalIP", "address": text} for text in (f"10.9.0.{number}", f"fd09::{number}")]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": [f"10.244.{number}.0/24"]},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}], **status},
    }


NODES = (node("a"), node("b"))


def service(
    name: str, *, pods: Mapping[str, str], announced_by: str, address: str = "192.0.2.200", **spec: Any
) -> list[Object]:
    """A labelled Service with pods by their addresses, each with its node."""
    place = {"namespace": "shop", "name": name}
    endpoints = [
        {"addresses": [ip], "nodeName": on, "targetRef": {"kind": "Pod", "namespace": "shop", "name": f"{name}-{on}"}}
        for ip, on in pods.items()
    ]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**place, "labels": LABEL, "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], **spec},
            "status": {"loadBalancer": {"ingress": [{"ip": address}]}},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                **place,
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
        },
        {
            "apiVersion": "metallb.io/v1beta1",
            "kind": "ServiceL2Status",
            "metadata": {
                "name": f"l2-{name}",
                "namespace": "metallb-system",
                "labels": {"metallb.io/service-name": name, "metallb.io/service-namespace": "shop"},
            },
            "status": {"node": announced_by},
        },
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fault, and what is there `before` it: scripts of a shell, `files` below the root, `nodes` and `objects` of the
    cluster; `settings` are appended to the configuration. `says` stands in the finding; `needs` are modules of the
    kernel."""

    code: str
    settings: str = ""
    before: Iterable[str] = ()
    files_before: Mapping[str, str] = field(default_factory=dict)
    objects: Iterable[Object] = ()
    needs: Iterable[str] = ()
    fault: Iterable[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    then: Iterable[Object] | None = None
    then_nodes: Iterable[Object] | None = None
    says: str


class Patient:
    """The host. `root` is where other programs have their files."""

    def __init__(self, netns: Netns, folder: Path) -> None:
        self._netns = netns
        self._folder = folder
        self.root = folder / "root"
        self.root.mkdir()
        self.state = folder / "state.yaml"
        self.config = folder / "config.toml"
        self.know()
        self.configure()

    def run(self, *scripts: str) -> None:
        """Runs scripts of a shell in the namespace."""
        for script in scripts:
            self._netns.run("sh", "-ec", script)

    def know(self, *objects: Object, nodes: Iterable[Object] = NODES) -> None:
        """What the cluster holds."""
        self.state.write_text(yaml.safe_dump_all([*nodes, *objects]))

    def configure(self, text: str = "") -> None:
        """Writes the configuration: this node is a."""
        self.config.write_text(f'[node]\nname = "a"\n[cluster]\nstate_file = "{self.state}"\n{text}\n')

    def write(self, files: Mapping[str, str]) -> None:
        """Writes files below the root; `@NAME` stands for an interface's index."""
        for name, text in files.items():
            folder, at, interface = name.partition("@")
            path = self.root / (f"{folder}{socket.if_nametoindex(interface)}" if at else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    @property
    def options(self) -> Options:
        return Options(config_file=self.config, runtime_dir=self._folder / "run", state_dir=self._folder / "lib")

    def examined(self, only: str = "") -> Diagnosis:
        """What doctor finds here."""
        return examine(self.options.load(), self.options, only=only, root=self.root)

    def found(self, code: str) -> list[Finding]:
        """What a check finds, which must be able to tell."""
        diagnosis = self.examined(code)
        assert not diagnosis.unseen, diagnosis.unseen
        return [finding for _, finding in diagnosis.findings]

    def suffers(self, case: Case) -> None:
        """The fault is found, and nothing before."""
        self.know(*case.objects)
        self.configure(case.settings)
        self.write(case.files_before)
        self.run(*case.before)
        assert self.found(case.code) == []
        needed(*case.needs)
        self.run(*case.fault)
        self.write(case.files)
        self.know(*(case.objects if case.then is None else case.then), nodes=case.then_nodes or NODES)
        finding, *_ = self.found(case.code)
        assert case.says in finding.seen
        assert finding.follows
        assert finding.mend
