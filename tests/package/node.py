"""A node of the lab on which the Debian package is installed, in a booted container; the other nodes run as always."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import toml

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.plan import NODES, SERVER, SERVER_PORT, LabPod
from tests.e2e.scenario import NODE1, NODE2, NODE3, SETTLED, egress_service, expect, texts
from tests.lab import probes
from tests.lab.lab import Lab
from tests.package.cgroups import own_group
from tests.package.container import Container

CONFIG = "/etc/metaleg-node/config.toml"
FRAGMENTS = "/etc/metaleg-node/conf.d"
DROP_INS = "/run/systemd/system/metaleg-node.service.d"
STATE_FOLDER = "/srv/cluster"
"""Where the container sees the lab's state file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """node1 of `lab`, with a pod whose gateway is node2."""

    lab: Lab
    container: Container

    @property
    def pod(self) -> LabPod:
        return self.lab.pod(NODE1)

    @property
    def address(self) -> set[str]:
        """What the pod leaves with when all is well."""
        return texts(self.lab.services["web"].addresses)

    def reset(self) -> None:
        """The usual Service, the usual configuration, nothing left of an earlier test, and the service stopped."""
        self.container.run("systemctl", "stop", "metaleg-node")
        self.container.run("rm", "--recursive", "--force", DROP_INS, FRAGMENTS, "/etc/metaleg-node/kubeconfig")
        self.container.run("install", "-d", FRAGMENTS)
        self.container.run("systemctl", "daemon-reload")
        self.container.run("systemctl", "reset-failed")
        self.configure()
        self.lab.set_services(egress_service(self.lab))
        for node in (NODE2, NODE3):
            daemon = self.lab.daemons[node]
            if not daemon.running:
                daemon.configure({})
                daemon.start()
                daemon.wait_ready()

    def configure(self, **sections: Mapping[str, Any]) -> None:
        """Writes the configuration: the state file, and `sections`."""
        config = {"cluster": {"state_file": f"{STATE_FOLDER}/state.yaml"}, **sections}
        self.container.write(CONFIG, toml.dumps(config))

    def fragment(self, text: str, name: str = "site") -> None:
        """Writes a file that is merged over the configuration."""
        self.container.write(f"{FRAGMENTS}/{name}.toml", text)

    def drop_in(self, text: str) -> None:
        """A drop-in for the unit, until the next test."""
        self.container.write(f"{DROP_INS}/test.conf", text)
        self.container.run("systemctl", "daemon-reload")

    def start(self) -> None:
        self.container.run("systemctl", "start", "metaleg-node")

    def expect(self, sources: set[str]) -> None:
        expect(self.lab, self.pod, sources)

    def status(self) -> subprocess.CompletedProcess[str]:
        """`metaleg-node status`, which need not be 0."""
        return self.container.run("metaleg-node", "status", check=False)


@contextmanager
def booted(lab: Lab, root: Path) -> Iterator[Node]:
    """A node that has booted; the package is not there yet."""
    with ExitStack() as stack:
        folder = lab.daemons[NODE1].state_file.parent
        group = stack.enter_context(own_group())
        container = Container(root, NODE1.name, lab.namespace(NODE1), {STATE_FOLDER: folder}, group)
        stack.callback(container.kill)
        container.boot()
        stack.callback(container.power_off)
        for node in NODES:
            stack.callback(lab.daemons[node].kill)
        yield Node(lab=lab, container=container)


_PATIENCE = 2.0
"""Seconds within which the server must have answered."""


@dataclass(slots=True)
class Stream:
    """Connections of a pod to the server outside, while the `with` block runs: one after the other, and one in each
    family that lasts. `seen` counts the sources by which the server knew them, `lost` says what went wrong.

    An answer that is on its way when the gateway changes comes to a node that knows nothing of the connection, until a
    packet of the pod passes there. So once `moving` is set the pod says its line again until it is answered."""

    node: Node
    moving: bool = False
    seen: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        with ExitStack() as stack:
            lasting = [stack.enter_context(self._open(family)) for family in FAMILIES]
            while not self.lost and not self._ending.wait(0.005):
                for family, connection in zip(FAMILIES, lasting, strict=True):
                    try:
                        with self._open(family) as new:
                            self._ask(new)
                        self._ask(connection)
                    except OSError as error:
                        self.lost.append(f"{time.monotonic():.3f}: IPv{family}: {error!r}")

    def _open(self, family: Family) -> socket.socket:
        patience = SETTLED if self.moving else _PATIENCE
        return probes.open_tcp(self.node.lab.namespace(self.node.pod), SERVER[family], SERVER_PORT, patience)

    def _ask(self, connection: socket.socket) -> None:
        """Counts what the server knows a connection by. Raises OSError."""
        connection.settimeout(_PATIENCE / 4)
        began = time.monotonic()
        connection.sendall(b"who am I?\n")
        while True:
            try:
                answer = connection.recv(2048)
            except TimeoutError:
                if time.monotonic() - began > (SETTLED if self.moving else _PATIENCE):
                    raise
                if self.moving:
                    connection.sendall(b"who am I?\n")
            else:
                if not answer:
                    raise ConnectionResetError("the server ended the connection")
                self.seen[answer.split()[0].decode()] += 1
                return
