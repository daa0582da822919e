"""The lab with a second way in, and Services that are announced there: what tests of return paths begin with."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from typing import Any

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import NODES, SERVER_PORT, SERVICE_PORT, LabNode, LabService
from tests.e2e import second_way
from tests.e2e.scenario import NODE1, NODE2, NODE3, SETTLED
from tests.e2e.second_way import BOTH_POOLS, HostPod, SecondWay
from tests.lab import probes
from tests.lab.lab import Lab
from tests.lab.plan import LabOptions
from tests.lab.server import Server
from tests.patience import patient

ALL = {(p, f): True for p in second_way.PROTOCOLS for f in FAMILIES}
NONE = dict.fromkeys(ALL, False)
_DIRECT = LabService(name="dsr", number=7, pods=(), gateway=None, labelled=False)


def services(lab: Lab, host: LabNode) -> tuple[LabService, LabService, LabService]:
    """externalTrafficPolicy Cluster and Local, and a backend on a node's host network; not one asks for egress."""
    pods = (lab.pod(NODE1), lab.pod(NODE2))
    return (
        LabService(name="cluster", number=0, pods=pods, gateway=None, labelled=False),
        LabService(name="local", number=1, pods=pods, gateway=None, labelled=False, local=True),
        LabService(name="host", number=2, pods=(HostPod(node=host, number=9),), gateway=None, labelled=False),
    )


class Scene:
    """A lab with a second way in; node1 announces the Services there. `host` has the backend of the host network."""

    def __init__(self, lab: Lab, second: SecondWay, host: LabNode) -> None:
        self.lab = lab
        self.second = second
        self.services = services(lab, host)
        lab.set_services(*self.services)
        for service in self.services:
            second.announce(service, NODE1)
        self.write(BOTH_POOLS)

    def write(self, more: list[dict[str, Any]]) -> None:
        self.lab.write_state([*self.lab.cluster_objects(), *more])

    def answers(self, timeout: float = 1.0) -> dict[str, dict[tuple[str, Family], bool]]:
        return {s.name: self.second.answers(s, timeout) for s in self.services}

    def settle(self, wanted: dict[tuple[str, Family], bool], timeout: float = SETTLED) -> None:
        """Waits until the client gets all answers, or none, from every Service."""
        last: list[object] = []

        def right() -> bool:
            last[:] = [self.answers(0.25)]
            return last[0] == {s.name: wanted for s in self.services}

        assert wait_until(right, timeout), last

    def serve_from_a_pod(self) -> None:
        """Instead of the Services: as with Cilium, or with direct server return, a pod of node1 has a LoadBalancer
        address itself, and its packets have that source before they are routed."""
        self.lab.set_services()
        node, pod = self.lab.namespace(NODE1), self.lab.pod(NODE1)
        self.lab.namespace(pod).ip(
            f"address add {a} dev lo{' nodad' if f == 6 else ''}" for f, a in _DIRECT.addresses.items()
        )
        node.ip(f"route add {a} via {pod.addresses[f]}" for f, a in _DIRECT.addresses.items())
        self.second.announce(_DIRECT, NODE1)

    def answers_from_a_pod(self) -> list[bool]:
        """Whether it answers the client, by family."""
        client, pod = self.second.machine("client"), self.lab.pod(NODE1).name
        return [probes.tcp(client, _DIRECT.addresses[f], SERVER_PORT, patient(0.5)).by == pod for f in FAMILIES]

    def inside(self) -> dict[str, str]:
        """Who answers to clients inside the cluster and on the nodes' LAN, by Service, client, protocol and family."""
        lab, found = self.lab, {}
        clients: list[Any] = [*NODES, lab.pod(NODE1, 2), lab.pod(NODE2, 2), lab.pod(NODE3), "router"]
        for service in self.services:
            for client in clients:
                for p in second_way.PROTOCOLS:
                    for f in FAMILIES:
                        answer = lab.ask(client, p, f, patient(0.5), to=(service.addresses[f], SERVICE_PORT))
                        name = client if isinstance(client, str) else client.name
                        found[f"{service.name} {name} {p} {f}"] = answer.error
        return found


def scene(
    stack: ExitStack,
    lab: LabOptions | Lab,
    *,
    interface: str = "eth1",
    addresses: bool = False,
    host: LabNode = NODE1,
) -> Scene:
    """`lab` is one that is not built yet, or the options of one; the others are as in `SecondWay`."""
    lab = stack.enter_context(lab if isinstance(lab, Lab) else Lab(lab))
    second = stack.enter_context(SecondWay(lab, interface, addresses=addresses))
    backends = Server()
    stack.callback(backends.stop)
    backends.listen(lab.namespace(host), f"host-{host.name}", SERVER_PORT)
    backends.start()
    return Scene(lab, second, host)


def status_of(scene_: Scene, node: LabNode, name: str = "public") -> dict[str, Any]:
    """A path in the daemon's status; empty while it is not there."""
    paths = scene_.lab.daemons[node].status().get("paths", [])
    return next((dict(p) for p in paths if p["name"] == name), {})


def reaches_node(here: Scene, interface: str = "eth1") -> bool:
    """Whether a packet of the client to the node's own address, which should come in by eth0, is let in by another
    interface."""
    router, client = here.second.machine("router2"), here.second.machine("client")
    address = NODE1.addresses[4]
    (link,) = json.loads(here.lab.namespace(NODE1).run("ip", "-j", "link", "show", interface))
    router.ip(
        [
            f"route replace {address} dev lan",
            f"neighbour replace {address} lladdr {link['address']} dev lan nud permanent",
        ]
    )
    client.ip([f"route replace {address} via {second_way.CLIENT_NETWORK[4][1]}"])
    with (
        here.lab.namespace(NODE1).socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("", 0))
        receiver.settimeout(patient(0.5))
        sender.sendto(b"hello", (str(address), receiver.getsockname()[1]))
        try:
            return receiver.recv(100) == b"hello"
        except TimeoutError:
            return False
