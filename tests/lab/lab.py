"""The tests' lab: the demo's with other transports, attachments and rules, machines that are unplugged, servers in all
pods, and a record of every source address that reached the server outside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

from metaleg_node.core.model import FAMILIES, Address, Family
from metaleg_node.lab import lab
from metaleg_node.lab.plan import NODES, ROUTER_OUTSIDE, SERVER, SERVER_PORT, LabNode, LabPod, LabService
from tests.lab import cluster_rules, probes, topology
from tests.lab.daemons import Daemon
from tests.lab.plan import Flavour, LabOptions, PodTransport
from tests.lab.server import Server

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


class Lab(lab.Lab):
    """A context manager, as the demo's."""

    daemons: Mapping[LabNode, Daemon]

    def __init__(self, options: LabOptions | None = None) -> None:
        super().__init__()
        self.options = options or LabOptions()
        self.server = Server()

    # --- machines ----------------------------------------------------------------------------------------------------

    def plug(self, node: LabNode, *, connected: bool) -> None:
        """Pulls a node's cable out of the switch, or puts it back."""
        self.namespace("switch").ip([f"link set to-{node.name} {'up' if connected else 'down'}"])

    def _sysctls(self, machine: str) -> Mapping[str, int | str]:
        strictness = self.options.rp_filter if machine.startswith("node") else 0
        return topology.machine_sysctls(strictness, forwarding=machine.startswith(("node", "router")))

    def _connect(self) -> None:
        super()._connect()
        if self.options.transport is PodTransport.VXLAN:
            for node in NODES:
                entries = "\n".join(topology.forwarding_entries(node))
                self.namespace(node).run("bridge", "-batch", "-", stdin=entries)

    def _node_links(self, node: LabNode, pods: tuple[LabPod, ...]) -> Iterator[str]:
        return topology.node(node, pods, self.options, self._naming)

    def _pod_links(self, pod: LabPod) -> Iterator[str]:
        return topology.pod(pod, self.options)

    def _serve(self) -> None:
        self.namespace("outside").run("nft", "-f", "-", stdin=_WATCH_RULES)
        self._resources.callback(self.server.stop)
        self.server.listen(self.namespace("outside"), "outside", SERVER_PORT)
        self.server.watch_echoes(self.namespace("outside"))
        for pod in self.pods:
            self.server.listen(self.namespace(pod), pod.name, SERVER_PORT)
        self.server.start()

    def _daemon(self, node: LabNode, directory: Path) -> Daemon:
        return Daemon(node, self.namespace(node), directory)

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
        super().set_services(*services)

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
