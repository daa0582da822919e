"""A real daemon and real routers: answers go back through the router that brought the request, also when it changes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaleg_node.lab.daemons import wait_until
from tests import frr
from tests.e2e.scenario import NODE1, SETTLED
from tests.lab.daemons import Daemon
from tests.patience import patient
from tests.router_net import POD, ROUTERS, RouterNet, peering, router, router_net, say

_BGP: dict[str, dict[str, Any]] = {
    "return_path": {"bgp": {"enabled": True}},
    "cluster": {"pod_cidrs": ["10.244.0.0/16", "fd00:244::/32"]},
}
_NODE, _UPSTREAM = 64513, 64520
ALL, EACH = dict.fromkeys((0, *ROUTERS), 8), dict.fromkeys(ROUTERS, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peering:
    """Routers and daemon."""

    net: RouterNet
    daemon: Daemon

    def hops(self) -> dict[str, dict[str, Any]]:
        paths = self.daemon.status().get("paths", [])
        return {hop["address"]: hop for path in paths for hop in path["next_hops"]}

    def way(self) -> str:
        """How clients' packets leave for the pool."""
        return self.net["client"].run("ip", "route", "show", "192.0.2.0/25")


@pytest.fixture
def bgp(tmp_path: Path) -> Iterator[Peering]:
    """FRR on the routers, on the node in the place of MetalLB's speaker, and on what is behind the routers: client 0
    goes by router 1 while that tells of the pool. The daemon runs."""
    frr.needed()
    with router_net(tmp_path) as net, ExitStack() as stack:
        daemon = Daemon(NODE1, net.node, tmp_path / "node1")
        daemon.configure(_BGP)
        daemon.state_file.write_text(yaml.safe_dump_all(peering((router(n) for n in ROUTERS), NODE1.name)))
        stack.callback(daemon.kill)
        _run_frr(net, stack)
        daemon.start()
        daemon.wait_ready()
        here = Peering(net=net, daemon=daemon)
        assert wait_until(lambda: "172.31.1.1" in here.way(), patient(20)), here.way()
        yield here


def _run_frr(net: RouterNet, stack: ExitStack) -> None:
    net["client"].run("ip", "rule", "delete", "from", "198.18.0.1")
    upstream = {f"172.31.{n}.1": 64600 + n for n in ROUTERS}
    stack.enter_context(frr.Frr(net["client"], _UPSTREAM, upstream, preferred="172.31.1.1"))
    peers = {router(n): 64600 + n for n in ROUTERS}
    stack.enter_context(frr.Frr(net.node, _NODE, peers, networks=("192.0.2.0/25",)))
    for n in ROUTERS:
        net[f"r{n}"].run("ip", "route", "delete", "192.0.2.0/25")
        node = router(n).rpartition(".")[0] + ".1"
        others = {node: _NODE, f"172.31.{n}.2": _UPSTREAM}
        stack.enter_context(frr.Frr(net[f"r{n}"], 64600 + n, others))


@dataclass(slots=True, kw_only=True)
class Stream:
    """Client 0 opens one connection after the other, and says something over some that stay open."""

    net: RouterNet
    opened: list[socket.socket]
    failed: list[tuple[float, float]] = field(default_factory=list)
    """When connections began that got no answer, and when they gave up."""
    done: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                self.net.open(0, POD).close()
            except OSError:
                self.failed.append((began, time.monotonic()))
            self.done += 1

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            thread.join()

    def goes_on(self, count: int = 50) -> bool:
        """Whether so many more connections were tried."""
        goal = self.done + count
        return wait_until(lambda: self.done >= goal, patient(20))


def test_R19_a_router_that_fails_and_comes_back_under_a_stream_of_connections(bgp: Peering) -> None:
    net = bgp.net
    assert wait_until(lambda: net.answered((0, *ROUTERS), POD) == ALL, SETTLED)
    with ExitStack() as stack:
        opened = [stack.enter_context(net.open(0, POD)) for _ in range(5)]
        stream = Stream(net=net, opened=opened)
        with stream.flowing():
            assert stream.goes_on()
            cut = time.monotonic()
            net["switch"].ip(["link set to-r1 down"])
            assert wait_until(lambda: "172.31.1.1" not in bgp.way(), patient(20)), bgp.way()
            moved = time.monotonic()
            assert stream.goes_on()
            assert all(say(sock) for sock in opened)
            assert net.answered((0, 2, 3), POD) == {0: 8, 2: 8, 3: 8}
            net["switch"].ip(["link set to-r1 up"])
            assert wait_until(lambda: "172.31.1.1" in bgp.way(), patient(30)), bgp.way()
            assert stream.goes_on()
        # One may have been on its way when the link was cut.
        assert [times for times in stream.failed if times[1] < cut or times[0] > moved] == []
        assert all(say(sock) for sock in opened)
    assert wait_until(lambda: net.answered((0, *ROUTERS), POD) == ALL, SETTLED)


def test_a_router_that_fails_without_a_word_is_left_and_what_came_and_went_is_counted(bgp: Peering) -> None:
    net = bgp.net
    # What lies between a router's last sign of life and the kernel's verdict, which takes a minute otherwise.
    net.node.sysctl({f"ipv4/neigh/eth0/{key}": value for key, value in _IMPATIENT.items()})
    assert wait_until(lambda: net.answered(ROUTERS, POD) == EACH, SETTLED)
    # Nobody learns of it by its link.
    net["r1"].run("nft", "-f", "-", stdin=_DEAF)
    assert wait_until(lambda: bgp.hops()[router(1)]["neighbour"] in ("failed", "incomplete"), patient(60), pause=0.1)
    chains = net.node.run("nft", "list", "map", "inet", "metaleg_node", "path_back_1")
    assert chains.count("goto") == 2, chains
    net["r1"].run("nft", "flush", "ruleset")
    assert wait_until(lambda: net.answered(ROUTERS, POD) == EACH, patient(20), pause=0.2)
    for what in ("requests", "answers"):
        lines = [line for line in _metrics(net) if line.startswith(f"metaleg_node_return_path_{what}_packets_total")]
        assert len(lines) == 3
        assert all(float(line.split()[-1]) >= 2 * 8 for line in lines), lines

    def counted() -> bool:
        return all((hop[what] or 0) >= 2 * 8 for hop in bgp.hops().values() for what in ("requests", "answers"))

    assert {hop["slot"] for hop in bgp.hops().values()} == {2, 3, 4}
    # The status counts every ten seconds.
    assert wait_until(counted, patient(15), pause=0.2), bgp.hops()
    assert "(requests " in bgp.daemon.command("status").stdout


def _metrics(net: RouterNet) -> list[str]:
    with net.node.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect(("127.0.0.1", 21793))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with sock.makefile() as answer:
            return answer.read().splitlines()


_IMPATIENT = {"base_reachable_time_ms": 500, "delay_first_probe_time": 1, "retrans_time_ms": 200}
_DEAF = """\
table netdev deaf {
    chain lan {
        type filter hook ingress device "lan" priority 0; policy drop;
    }
}
"""
