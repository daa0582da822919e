"""A second way into the lab's cluster, which the nodes' default gateway knows nothing of.

    client -- router2 -- switch2 -- eth1 of node1, node2, node3

The client's network (100.64.7.0/24, RFC 6598; fd00:7::/64) has no route on the lab's first router: a reply that leaves
by the nodes' default gateway is lost. So is one that leaves by dead-end, a second router on the same switch. The nodes'
eth1 have no addresses. MetalLB's answers to ARP and neighbour solicitation are permanent neighbour entries of router2.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from types import TracebackType
from typing import Any, Self

from metaleg_node.core.model import FAMILIES, Address, Family, Network
from metaleg_node.lab import namespaces
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import NODES, SERVICE_PORT, LabNode, LabPod, LabService
from tests.lab import probes
from tests.lab.lab import Lab
from tests.lab.topology import machine_sysctls
from tests.patience import patient

POOL_NETWORK: dict[Family, Network] = {4: ip_network("192.0.2.0/24"), 6: ip_network("2001:db8:2::/64")}
"""Holds the lab's LoadBalancer addresses and the second router's own."""
ROUTER2: dict[Family, Address] = {f: POOL_NETWORK[f][1] for f in FAMILIES}
OTHER_ROUTER2: dict[Family, Address] = {f: POOL_NETWORK[f][2] for f in FAMILIES}
DEAD_END: dict[Family, Address] = {f: POOL_NETWORK[f][3] for f in FAMILIES}
CLIENT_NETWORK: dict[Family, Network] = {4: ip_network("100.64.7.0/24"), 6: ip_network("fd00:7::/64")}
CLIENT: dict[Family, Address] = {f: CLIENT_NETWORK[f][10] for f in FAMILIES}
PROTOCOLS = ("tcp", "udp")
_MACHINES = ("client", "router2", "dead-end")

_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class HostPod(LabPod):
    """A pod of the host network: its addresses are the node's."""

    @property
    def addresses(self) -> dict[Family, Address]:
        return self.node.addresses

    @property
    def name(self) -> str:
        return f"host-{self.node.name}"


class SecondWay:
    """A context manager that adds such a network to a lab, and takes its namespaces away again. `interface` is the
    nodes' end; several networks may have equal addresses. `addresses`: the nodes have addresses there. A number after a
    dot makes it a VLAN device, whose packets are tagged until they are in the switch."""

    def __init__(self, lab: Lab, interface: str = "eth1", *, addresses: bool = False) -> None:
        self._lab = lab
        self._interface = interface
        self._bridge = f"br-{interface.partition('.')[0]}"
        self._addresses = addresses
        self._prefix = f"{namespaces.PREFIX}-{os.getpid()}-second{next(_NUMBERS)}"
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._resources:
            names = [self.machine(name).name for name in _MACHINES]
            self._resources.callback(namespaces.remove, names)
            namespaces.create(names)
            for name in _MACHINES:
                self.machine(name).sysctl(machine_sysctls(0, forwarding=name != "client"))
            self._connect()
            self._resources = self._resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def machine(self, name: str) -> Namespace:
        """`client`, `router2` or `dead-end`."""
        return Namespace(name=f"{self._prefix}-{name}")

    def _connect(self) -> None:
        switch, router, client = self._lab.namespace("switch"), self.machine("router2"), self.machine("client")
        dead_end = self.machine("dead-end")
        switch.ip(
            [
                f"link add {self._bridge} up type bridge mcast_snooping 0 forward_delay 0",
                f"link add {self._bridge}-r up master {self._bridge} type veth peer name lan netns {router.name}",
                f"link add {self._bridge}-d up master {self._bridge} type veth peer name lan netns {dead_end.name}",
            ]
        )
        dead_end.ip(
            ["link set lan up", *(f"address add {a}/{POOL_NETWORK[f].prefixlen} dev lan" for f, a in DEAD_END.items())]
        )
        for node in NODES:
            self.plug_in(node)
        router.ip(
            [
                f"link add wan up type veth peer name eth0 netns {client.name}",
                "link set lan up",
                *(f"address add {a}/{POOL_NETWORK[f].prefixlen} dev lan" for f, a in ROUTER2.items()),
                *(f"address add {a}/{POOL_NETWORK[f].prefixlen} dev lan" for f, a in OTHER_ROUTER2.items()),
                *(f"address add {CLIENT_NETWORK[f][1]}/{CLIENT_NETWORK[f].prefixlen} dev wan" for f in FAMILIES),
            ]
        )
        client.ip(
            [
                "link set eth0 up",
                *(f"address add {a}/{CLIENT_NETWORK[f].prefixlen} dev eth0" for f, a in CLIENT.items()),
                *(f"route add {POOL_NETWORK[f]} via {CLIENT_NETWORK[f][1]}" for f in FAMILIES),
            ]
        )

    def plug_in(self, node: LabNode) -> None:
        """Makes the node's interface."""
        switch, here, port = self._lab.namespace("switch"), self._lab.namespace(node), self.port(node)
        card, _, vlan = self._interface.partition(".")
        switch.ip([f"link add {port} up type veth peer name {card} netns {here.name}"])
        here.ip([f"link set {card} up"])
        if vlan:
            switch.ip([f"link add link {port} name {port}.{vlan} up type vlan id {vlan}"])
            here.ip([f"link add link {card} name {self._interface} up type vlan id {vlan}"])
        switch.ip([f"link set {port}{'.' if vlan else ''}{vlan} master {self._bridge}"])
        if self._addresses:
            here.ip(
                f"address add {POOL_NETWORK[f][10 + node.number]}/{POOL_NETWORK[f].prefixlen} dev {self._interface}"
                for f in FAMILIES
            )

    def port(self, node: LabNode) -> str:
        """The switch's interface that the node is plugged into."""
        return f"{self._bridge}-{node.number}"

    def pull_out(self, node: LabNode) -> None:
        """Takes the node's interface away."""
        self._lab.namespace("switch").ip([f"link delete {self.port(node)}"])

    def announce(self, service: LabService, node: LabNode) -> None:
        """The node answers for the Service's addresses on the second network."""
        (link,) = json.loads(self._lab.namespace(node).run("ip", "-j", "link", "show", self._interface))
        self.machine("router2").ip(
            f"neighbour replace {address} lladdr {link['address']} dev lan nud permanent"
            for address in service.addresses.values()
        )

    def ask(self, service: LabService, protocol: str, family: Family, timeout: float = 1.0) -> probes.Answer:
        """One new connection of the client to a Service."""
        probe = probes.tcp if protocol == "tcp" else probes.udp
        return probe(self.machine("client"), service.addresses[family], SERVICE_PORT, patient(timeout))

    def answers(self, service: LabService, timeout: float = 1.0) -> dict[tuple[str, Family], bool]:
        """Whether the client gets answers, by protocol and family."""
        return {(p, f): not self.ask(service, p, f, timeout).error for p in PROTOCOLS for f in FAMILIES}


def pool(name: str, addresses: Iterable[object], labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """An IPAddressPool (metallb.io/v1beta1)."""
    return _object("v1beta1", "IPAddressPool", name, {"addresses": [str(a) for a in addresses]}, labels)


def advertisement(name: str, **spec: Any) -> dict[str, Any]:
    """A BGPAdvertisement (metallb.io/v1beta1)."""
    return _object("v1beta1", "BGPAdvertisement", name, spec)


def peer(name: str, address: Address | None, labels: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A BGPPeer (metallb.io/v1beta2)."""
    where = {"peerAddress": str(address)} if address else {}
    return _object("v1beta2", "BGPPeer", name, {**where, "peerASN": 64512, "myASN": 64513, **spec}, labels)


def _object(
    version: str, kind: str, name: str, spec: Mapping[str, Any], labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "metallb-system"}
    if labels:
        metadata["labels"] = dict(labels)
    return {"apiVersion": f"metallb.io/{version}", "kind": kind, "metadata": metadata, "spec": dict(spec)}


BOTH_POOLS = [pool("public", POOL_NETWORK.values())]
L2_PATH: dict[str, Any] = {
    "name": "public",
    "pools": ["public"],
    "interface": "eth1",
    "gateways": [str(a) for a in ROUTER2.values()],
}
TWO_ROUTERS: dict[str, Any] = {
    **L2_PATH,
    "gateways": [str(a) for f in FAMILIES for a in (ROUTER2[f], DEAD_END[f])],
}
"""The usual path, with a second router that has no way to the client."""


def l2(*paths: Mapping[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
    """Configuration with layer 2 paths, by default the usual one, and rp_filter left to them; `more` goes to
    [return_path]."""
    return {"return_path": {"l2": [dict(path) for path in paths or (L2_PATH,)], **more}, "host": {"rp_filter": "keep"}}
