"""`metaleg-node demo`: shows a newcomer in a few seconds, on this machine's own kernel, what the program does."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import FrameType

from metaleg_node.core.model import FAMILIES, Address, Family
from metaleg_node.kernel.errors import KernelError
from metaleg_node.lab import outside
from metaleg_node.lab.daemons import DaemonError
from metaleg_node.lab.lab import Lab
from metaleg_node.lab.plan import NODES, POOL, SERVER, LabNode, LabPod, LabService
from metaleg_node.text import table

_SERVICE = "web"
_PATIENCE = 10.0
"""Seconds until a source address that does not become right counts as wrong."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTRODUCTION = f"""\
A small cluster is built on this machine, out of network namespaces. Your own network is not touched.

    server outside ({SERVER[4]}) --- router --- node1, node2, node3 --- two pods on each

The Service "{_SERVICE}" has the LoadBalancer address {POOL[4]} ({POOL[6]}), and its pod runs on node1.
Each row below is a new connection from that pod, and the source address that the server outside saw.
"""


def demo() -> int:
    """Builds the lab, shows the steps as a table, and removes everything again.

    0 when every source address was right; 1 when not, without root, or after Ctrl-C.
    """
    if os.geteuid() != 0:
        print("metaleg-node demo: needs root, to make network namespaces; try: sudo metaleg-node demo", file=sys.stderr)
        return 1
    with ExitStack() as restore:
        for number in _SIGNALS:
            restore.callback(signal.signal, number, signal.signal(number, _interrupt))
        try:
            return _show()
        except KeyboardInterrupt:
            print("Stopped; everything is removed.", file=sys.stderr)
        except (KernelError, DaemonError, OSError) as error:
            print(f"metaleg-node demo: {error}", file=sys.stderr)
    return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """The first signal ends the demo; what follows must not end its clean-up."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _show() -> int:
    print(_INTRODUCTION, flush=True)
    with Lab() as lab:
        story = Story(lab)
        story.tell()
    print(table(story.rows, ("step", "gateway", "IPv4 source", "IPv6 source", "milliseconds")))
    print("\nMilliseconds: from the cause to the first new connections, IPv4 and IPv6, with the right source.")
    if story.right:
        print("All as it should be; the cluster is removed again.")
    else:
        print("NOT as it should be. Is something on this machine special? `metaleg-node doctor` may know.")
    return 0 if story.right else 1


class Story:
    """The steps of the demo in a lab; `rows` and `right` tell how they went."""

    def __init__(self, lab: Lab) -> None:
        self.rows: list[tuple[str, str, str, str, str]] = []
        self.right = True
        self._lab = lab
        self._home, self._first, self._second = NODES
        self._pod: LabPod = lab.pod(self._home)

    def tell(self) -> None:
        lab, home = self._lab, self._home
        service = LabService(name=_SERVICE, number=0, pods=(self._pod,), gateway=self._first, labelled=False)
        lab.set_services(service)
        self._say("No daemon runs: the pod leaves with the address of its node.")
        self._step("no metaleg-node", lambda: None, home.addresses, measured=False)
        self._say("metaleg-node starts on every node; the Service has no label yet, so nothing changes.")
        self._step("daemons run, no label", lab.start_daemons, home.addresses, measured=False)
        self._say("The Service gets the label metaleg.de/rewriteSrcIP=true.")
        self._step("Service labelled", self._label, POOL)
        self._say(f"MetalLB moves the address to {self._second.name}: a gateway failover.")
        self._step("gateway failover", lambda: lab.failover(_SERVICE, self._second), POOL)
        for node, what in ((home, "the pod's node"), (self._second, "the gateway")):
            self._say(f"Somebody runs `nft flush ruleset` on {what}, {node.name}; the daemon puts its own table back.")
            self._step(f"flush on {what}", partial(self._flush, node), POOL)
        print()

    def _label(self) -> None:
        services = self._lab.services
        services[_SERVICE] = replace(services[_SERVICE], labelled=True)
        self._lab.write_state()

    def _flush(self, node: LabNode) -> None:
        self._lab.namespace(node).run("nft", "flush", "ruleset")

    def _step(
        self, name: str, cause: Callable[[], None], expected: Mapping[Family, Address], *, measured: bool = True
    ) -> None:
        """Does something, then waits until new connections show the expected sources."""
        began = time.monotonic()
        cause()
        sources = self._sources()
        while list(sources) != [str(expected[f]) for f in FAMILIES] and time.monotonic() < began + _PATIENCE:
            sources = self._sources()
        taken = f"{(time.monotonic() - began) * 1000:.0f}" if measured else "-"
        gateway = self._lab.services[_SERVICE].gateway
        self.rows.append((name, gateway.name if gateway else "-", *sources, taken))
        self.right &= list(sources) == [str(expected[f]) for f in FAMILIES]

    def _sources(self) -> tuple[str, str]:
        client = self._lab.namespace(self._pod)
        four, six = (outside.source_seen(client, family, timeout=0.05) for family in FAMILIES)
        return four, six

    @staticmethod
    def _say(text: str) -> None:
        print(f"* {text}", flush=True)
