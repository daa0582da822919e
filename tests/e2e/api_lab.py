"""A lab whose daemons learn the cluster from an API server: over the nodes' network, by TLS, with a token each."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from metaleg_node.lab.plan import NODES, ROUTER_LAN, LabNode, LabService
from tests.api.certificates import Authority
from tests.api.harness import write_kubeconfig
from tests.api.server import ApiServer, Object
from tests.lab.lab import Lab

TOKEN = "token-of-the-lab"
PORT = 6443


class ApiLab:
    """A lab, its API server and the files that lead there."""

    def __init__(self, lab: Lab, server: ApiServer, kubeconfig: Path) -> None:
        self.lab = lab
        self.server = server
        self.overrides: dict[str, dict[str, Any]] = {"cluster": {"state_file": "", "kubeconfig": str(kubeconfig)}}

    def set_services(self, *services: LabService, extra: Iterable[Object] = ()) -> None:
        """Replaces all Services, also in the API."""
        self.lab.set_services(*services)
        self.publish(extra)

    def publish(self, extra: Iterable[Object] = ()) -> None:
        """Makes the API say what the lab is like."""
        objects = [with_service_labels(self.lab, one) for one in self.lab.cluster_objects()]
        self.server.set_all([*objects, *extra])

    def failover(self, name: str, gateway: LabNode | None) -> None:
        self.lab.failover(name, gateway)
        self.publish()

    def start_daemons(self, nodes: Iterable[LabNode] = NODES, python: str = sys.executable) -> None:
        """Starts daemons that follow the API, and waits until they are ready; they end with the `with` block."""
        daemons = [self.lab.daemons[node] for node in nodes]
        for daemon in daemons:
            daemon.python = python
            daemon.configure(self.overrides)
            daemon.start()
        for daemon in daemons:
            daemon.wait_ready()


@contextlib.contextmanager
def api_lab(lab: Lab, directory: Path) -> Iterator[ApiLab]:
    """The server runs on the router."""
    authority = Authority(directory=directory).create()
    address = str(ROUTER_LAN[4])
    server = ApiServer(
        tls=authority.server_context(f"IP:{address}"),
        address=(address, PORT),
        open_socket=lambda: lab.namespace("router").socket(socket.AF_INET, socket.SOCK_STREAM),
        tokens={TOKEN},
    )
    where = {"certificate-authority": str(authority.certificate)}
    kubeconfig = write_kubeconfig(directory / "kubeconfig", server.url, cluster=where, user={"token": TOKEN})
    with server:
        try:
            yield ApiLab(lab, server, kubeconfig)
        finally:
            for daemon in lab.daemons.values():
                daemon.kill()


def with_service_labels(lab: Lab, one: Object) -> Object:
    """An EndpointSlice with the labels of its Service, as Kubernetes' controller gives it."""
    labels = one["metadata"].get("labels", {})
    service = lab.services.get(labels.get("kubernetes.io/service-name", ""))
    if one["kind"] != "EndpointSlice" or service is None or not service.labelled:
        return one
    return {**one, "metadata": {**one["metadata"], "labels": {**labels, "metaleg.de/rewriteSrcIP": "true"}}}
