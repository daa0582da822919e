"""The lab itself: puts the namespaces, rules, servers and daemons together and takes them away again."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metaleg_node.core.model import FAMILIES, Address, Family
from metaleg_node.lab import cluster_rules, namespaces, objects, probes, topology
from metaleg_node.lab.daemons import Daemon
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import (
    NODES,
    ROUTER_OUTSIDE,
    SERVER,
    SERVER_PORT,
    Flavour,
    LabNode,
    LabOptions,
    LabPod,
    LabService,
    PodTransport,
)
from metaleg_node.lab.server import Server

_NUMBERS = itertools.count(1)
_WATCH = "table inet watch"
_WATCH_RULES = f"""{_WATCH} {{
    set seen4 {{ type ipv4_addr; size 65535; flags dynamic; }}
    set seen6 {{ type ipv6_addr; size 65535; flags dynamic; }}
    chain prerouting {{
        type filter hook prerouting priority raw;
        iifname "eth0" add @seen4 {{ ip saddr }}
        iifname "eth0" add @seen6 {{ ip6 saddr }}
    }}
}}
"""


class Lab:
    """A context manager: the network exists inside the `with` block. Needs root. Raises KernelError and OSError.

    The machines are `outside`, `router`, `switch`, `node1`..`node3` and the pods, `pod1-1` and so on.
    """

    def __init__(self, options: LabOptions | None = None) -> None:
        self.options = options or LabOptions()
        self.pods = tuple(LabPod(node=n, number=i + 1) for n in NODES for i in range(self.options.pods_per_node))
        self.services: dict[str, LabService] = {}
        self.daemons: dict[LabNode, Daemon] = {}
        self.server = Server()
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

    def plug(self, node: LabNode, *, connected: bool) -> None:
        """Pulls a node's cable out of the switch, or puts it back."""
        state = "up" if connected else "down"
        self.namespace("switch").ip([f"link set {topology.switch_port(node.name)} {state}"])

    def _build(self) -> None:
        namespaces.remove_stale()
        self._directory = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="metaleg-lab-")))
        machines = ["outside", "router", "switch", *(node.name for node in NODES), *(pod.name for pod in self.pods)]
        names = [self.namespace(m).name for m in machines]
        self._resources.callback(namespaces.remove, names)
        namespaces.create(names)
        self._set_sysctls(machines)
        self._connect()
        self.apply_rules()
        self.namespace("outside").run("nft", "-f", "-", stdin=_WATCH_RULES)
        self._serve()
        for node in NODES:
            daemon = Daemon(node, self.namespace(node), self._directory / node.name)
            daemon.configure({})
            self.daemons[node] = daemon

    def _set_sysctls(self, machines: Iterable[str]) -> None:
        nodes = {node.name for node in NODES}
        for machine in machines:
            strictness = self.options.rp_filter if machine in nodes else 0
            forwarding = machine in nodes or machine == "router"
            self.namespace(machine).sysctl(topology.machine_sysctls(strictness, forwarding=forwarding))

    def _connect(self) -> None:
        naming = lambda machine: self.namespace(machine).name  # noqa: E731
        self.namespace("switch").ip(topology.switch(naming))
        self.namespace("router").ip(topology.router(naming))
        self.namespace("outside").ip(topology.outside())
        for node in NODES:
            own = tuple(pod for pod in self.pods if pod.node == node)
            self.namespace(node).ip(topology.node(node, own, self.options, naming))
            if self.options.transport is PodTransport.VXLAN:
                entries = "\n".join(topology.forwarding_entries(node))
                self.namespace(node).run("bridge", "-batch", "-", stdin=entries)
        for pod in self.pods:
            self.namespace(pod).ip(topology.pod(pod, self.options))

    def _serve(self) -> None:
        self._resources.callback(self.server.stop)
        self.server.listen(self.namespace("outside"), "outside", SERVER_PORT)
        self.server.watch_echoes(self.namespace("outside"))
        for pod in self.pods:
            self.server.listen(self.namespace(pod), pod.name, SERVER_PORT)
        self.server.start()

    def apply_rules(self) -> None:
        """(Re)writes the nodes' rules that are not metaleg-node's: kube-proxy's, the CNI's, FORWARD."""
        for node in NODES:
            for family in FAMILIES:
                self._apply_rules(node, family)

    def _apply_rules(self, node: LabNode, family: Family) -> None:
        services, namespace = tuple(self.services.values()), self.namespace(node)
        if self.options.flavour is Flavour.NFT:
            rules = cluster_rules.nft(node, services, self.options, family)
            namespace.run("nft", "-f", "-", stdin=rules)
            return
        rules = cluster_rules.iptables(node, services, self.options, family)
        backend = self.options.flavour.removeprefix("iptables-")
        program = f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-restore"
        namespace.run(program, "-w", "5", stdin=rules)

    # --- the cluster -------------------------------------------------------------------------------------------------

    def set_services(self, *services: LabService) -> None:
        """Replaces all Services: kube-proxy's rules, the router's routes and the state files."""
        self.services = {service.name: service for service in services}
        self.apply_rules()
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

    # --- what can be seen --------------------------------------------------------------------------------------------

    def ask(
        self,
        client: str | LabNode | LabPod,
        protocol: str = "tcp",
        family: Family = 4,
        timeout: float = 1.0,
        to: tuple[Address, int] | None = None,
    ) -> probes.Answer:
        """One new connection (tcp, udp or icmp) to the server outside, or tcp and udp to another (address, port)."""
        destination, port = to or (SERVER[family], SERVER_PORT)
        namespace = self.namespace(client)
        match protocol:
            case "tcp":
                return probes.tcp(namespace, destination, port, timeout)
            case "udp":
                return probes.udp(namespace, destination, port, timeout)
            case _:
                return probes.icmp(namespace, destination, timeout, self.server.echo_source)

    def source_seen(
        self, client: str | LabNode | LabPod, protocol: str = "tcp", family: Family = 4, timeout: float = 1.0
    ) -> str:
        """The source address that the server outside sees, or why it sees none (see `probes.Answer`)."""
        return str(self.ask(client, protocol, family, timeout))

    def seen(self) -> set[Address]:
        """The sources of all packets that have reached the server outside, whatever their protocol, since
        `reset_seen`; without the router's own and link-local ones."""
        listing = json.loads(self.namespace("outside").run("nft", "-j", "list", "table", "inet", "watch"))
        elements = (e for item in listing["nftables"] for e in item.get("set", {}).get("elem", ()))
        found = {ip_address(e["elem"]["val"] if isinstance(e, dict) else e) for e in elements}
        return {a for a in found if a not in ROUTER_OUTSIDE.values() and not a.is_link_local and not a.is_unspecified}

    def reset_seen(self) -> None:
        flushes = "".join(f"flush set inet watch seen{family}\n" for family in FAMILIES)
        self.namespace("outside").run("nft", "-f", "-", stdin=flushes)
