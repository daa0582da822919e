"""The lab itself: puts the namespaces, links, state files and daemons together and takes them away again."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metaleg_node.lab import namespaces, objects, outside, topology
from metaleg_node.lab.daemons import Daemon
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import NODES, POD_NETWORK, PODS_PER_NODE, LabNode, LabPod, LabService

_NUMBERS = itertools.count(1)
_MASQUERADE = "".join(
    f"""\
table {ip} cni-masquerade {{
    chain postrouting {{
        type nat hook postrouting priority srcnat - 5;
        {ip} saddr {pods} {ip} daddr != {pods} masquerade fully-random
    }}
}}
"""
    for ip, pods in (("ip", POD_NETWORK[4]), ("ip6", POD_NETWORK[6]))
)


class Lab:
    """A context manager: the network exists inside the `with` block. Needs root. Raises KernelError and OSError.

    The machines are `outside`, `router`, `switch`, `node1`..`node3` and the pods, `pod1-1` and so on. A node has no
    rules but the CNI's masquerade, and what serves, links and sets up a machine is a method: tests have labs with more.
    """

    def __init__(self) -> None:
        self.pods = tuple(LabPod(node=node, number=i + 1) for node in NODES for i in range(PODS_PER_NODE))
        self.services: dict[str, LabService] = {}
        self.daemons: Mapping[LabNode, Daemon] = {}
        self._name = f"{namespaces.PREFIX}-{os.getpid()}-{next(_NUMBERS)}"
        self._announced = 0
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._resources:
            self._build()
            self._resources = self._resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    # --- machines ----------------------------------------------------------------------------------------------------

    def namespace(self, machine: str | LabNode | LabPod) -> Namespace:
        name = machine if isinstance(machine, str) else machine.name
        return Namespace(name=f"{self._name}-{name}")

    def pod(self, node: LabNode, number: int = 1) -> LabPod:
        """A node's pod, numbered from 1."""
        return LabPod(node=node, number=number)

    def _build(self) -> None:
        namespaces.remove_stale()
        self._directory = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="metaleg-lab-")))
        machines = ["outside", "router", "switch", *(node.name for node in NODES), *(pod.name for pod in self.pods)]
        names = [self.namespace(m).name for m in machines]
        self._resources.callback(namespaces.remove, names)
        namespaces.create(names)
        for machine in machines:
            self.namespace(machine).sysctl(self._sysctls(machine))
        self._connect()
        self.apply_rules()
        self._serve()
        self.daemons = {node: self._daemon(node, self._directory / node.name) for node in NODES}
        for daemon in self.daemons.values():
            daemon.configure({})

    def _sysctls(self, machine: str) -> Mapping[str, int | str]:
        return topology.machine_sysctls(forwarding=machine.startswith(("node", "router")))

    def _connect(self) -> None:
        self.namespace("switch").ip(topology.switch(self._naming))
        self.namespace("router").ip(topology.router(self._naming))
        self.namespace("outside").ip(topology.outside())
        for node in NODES:
            self.namespace(node).ip(self._node_links(node, tuple(pod for pod in self.pods if pod.node == node)))
        for pod in self.pods:
            self.namespace(pod).ip(self._pod_links(pod))

    def _naming(self, machine: str) -> str:
        return self.namespace(machine).name

    def _node_links(self, node: LabNode, pods: tuple[LabPod, ...]) -> Iterator[str]:
        yield from topology.uplink(node)
        yield from topology.pod_bridge(node, pods, self._naming)
        yield from topology.pod_routes(node)

    def _pod_links(self, pod: LabPod) -> Iterator[str]:
        return topology.pod(pod)

    def _serve(self) -> None:
        self._resources.enter_context(outside.serving(self.namespace("outside")))

    def _daemon(self, node: LabNode, directory: Path) -> Daemon:
        return Daemon(node, self.namespace(node), directory)

    def apply_rules(self) -> None:
        """Writes the nodes' rules that are not metaleg-node's."""
        for node in NODES:
            self.namespace(node).run("nft", "-f", "-", stdin=_MASQUERADE)

    # --- the cluster -------------------------------------------------------------------------------------------------

    def set_services(self, *services: LabService) -> None:
        """Replaces all Services: the router's routes and the state files."""
        self.services = {service.name: service for service in services}
        for service in services:
            self.announce(service)
        self.write_state()

    def failover(self, name: str, gateway: LabNode | None, *, seen_by: Sequence[LabNode] = NODES) -> None:
        """Another node announces a Service now: the router follows at once, then the state files (`seen_by`)."""
        self.services[name] = replace(self.services[name], gateway=gateway)
        self._announced += 1
        self.announce(self.services[name])
        self.write_state(nodes=seen_by)

    def announce(self, service: LabService) -> None:
        """Makes the router send what is for the Service's addresses to its gateway, as a gratuitous ARP would."""
        for family, address in service.addresses.items():
            if service.gateway:
                way = f"via {service.gateway.addresses[family]}"
                self.namespace("router").ip([f"route replace {address} {way}"])
            else:
                self.namespace("router").run("ip", f"-{family}", "route", "flush", str(address))

    def cluster_objects(self) -> list[objects.Object]:
        """The cluster as Kubernetes objects."""
        return objects.cluster(self.services.values(), self._announced)

    def write_state(self, content: Iterable[objects.Object] | None = None, nodes: Sequence[LabNode] = NODES) -> None:
        """Replaces the state files of these nodes, by default with `cluster_objects`."""
        text = objects.dump(self.cluster_objects() if content is None else content)
        for node in nodes:
            objects.replace_file(self.daemons[node].state_file, text)

    # --- daemons -----------------------------------------------------------------------------------------------------

    def start_daemons(self, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Starts the daemons of all nodes together and waits until all are ready; `overrides` are configuration by
        section and key."""
        for node in NODES:
            self.daemons[node].configure(overrides or {})
            self._resources.callback(self.daemons[node].kill)
            self.daemons[node].start()
        for node in NODES:
            self.daemons[node].wait_ready()
