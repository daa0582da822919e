"""An unchanged state writes nothing: the kernel's own notifications are the witness."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from metaleg_node.kernel import process
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import NODES, LabNode, LabService
from tests.e2e.scenario import NODE1, NODE3, SETTLED, egress_service, expect, ours, texts
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions

_MARKS = {"begin": "192.0.2.1", "end": "192.0.2.2"}
"""Routes and tables that the test itself makes, to know that both monitors have told everything so far."""


_NOISE = re.compile("# new generation|(add|delete) (table|chain|rule) ip witness")


class Witness:
    """What `ip monitor` and `nft monitor` tell about a node while `watching`."""

    def __init__(self, lab: Lab, node: LabNode, directory: Path) -> None:
        self._namespace = lab.namespace(node)
        self._files = {name: directory / f"{node.name}-{name}" for name in ("ip", "nft")}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, words in (("ip", "monitor route rule link address"), ("nft", "monitor")):
                stack.callback(self._start(name, words))
            self._mark("begin")
            yield
            self._mark("end")

    def told(self) -> list[str]:
        """The notifications between the marks."""
        found = []
        for path in self._files.values():
            lines = path.read_text().splitlines()
            first = max(i for i, line in enumerate(lines) if _MARKS["begin"] in line)
            last = min(i for i, line in enumerate(lines) if _MARKS["end"] in line)
            found += [line for line in lines[first + 1 : last] if not _NOISE.match(line)]
        return found

    def _start(self, name: str, words: str) -> Callable[[], None]:
        with self._namespace.inside(), self._files[name].open("wb") as file:
            monitor = subprocess.Popen([process.find(name), *words.split()], stdout=file)

        def stop() -> None:
            monitor.terminate()
            monitor.wait()

        return stop

    def _mark(self, which: str) -> None:
        address = _MARKS[which]

        def told() -> bool:
            # Made and removed each time: what is there already is not told again.
            for action in ("add", "delete"):
                self._namespace.run("ip", "route", action, "blackhole", address, "table", "99")
            chain = f"chain c {{ ip daddr {address} accept\n }}"
            self._namespace.run("nft", "-f", "-", stdin=f"table ip witness {{ {chain}\n }}\ndelete table ip witness\n")
            return all(address in path.read_text() for path in self._files.values())

        assert wait_until(told, SETTLED, pause=0.05), f"the monitors did not tell of the mark {which}"


@pytest.fixture(scope="module")
def comparing() -> Iterator[Lab]:
    """One lab for all causes, since none may change anything; full comparisons so often that a test can wait."""
    with Lab(LabOptions(flavour=Flavour.IPTABLES_LEGACY)) as lab:
        lab.set_services(egress_service(lab))
        lab.start_daemons({"reconcile": {"interval": "1s"}})
        yield lab


def _reload(lab: Lab) -> None:
    for daemon in lab.daemons.values():
        daemon.reload()


def _touch(lab: Lab) -> None:
    for daemon in lab.daemons.values():
        os.utime(daemon.state_file)


def _rewrite(lab: Lab) -> None:
    lab.write_state()


def _rewrite_in_another_order(lab: Lab) -> None:
    lab.write_state(reversed(lab.cluster_objects()))


def _restart(lab: Lab) -> None:
    for daemon in lab.daemons.values():
        daemon.stop()
        daemon.start()
        daemon.wait_ready()


def _change_something_else(lab: Lab) -> None:
    other = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": "y"}}
    lab.write_state([*lab.cluster_objects(), other])


@pytest.mark.parametrize(
    "cause", [_reload, _touch, _rewrite, _rewrite_in_another_order, _restart, _change_something_else]
)
def test_an_unchanged_state_writes_nothing(comparing: Lab, tmp_path: Path, cause: Callable[[Lab], None]) -> None:
    before = {node: ours(comparing, node) for node in NODES}
    witnesses = [Witness(comparing, node, tmp_path) for node in NODES]
    with ExitStack() as stack:
        for witness in witnesses:
            stack.enter_context(witness.watching())
        cause(comparing)
        _wait_for_full_comparisons(comparing, 2)
    assert [witness.told() for witness in witnesses] == [[], [], []]
    assert {node: ours(comparing, node) for node in NODES} == before


def test_the_witness_tells_of_a_change(running: Lab, web: LabService, tmp_path: Path) -> None:
    witness = Witness(running, NODE1, tmp_path)
    with witness.watching():
        running.failover("web", NODE3)
        expect(running, running.pod(NODE1), texts(web.addresses))
    told = "\n".join(witness.told())
    assert "default via 192.168.10.13" in told
    assert "metaleg_node" in told


def test_F33_a_failover_changes_only_elements_and_the_new_gateways_chain(
    running: Lab, web: LabService, tmp_path: Path
) -> None:
    witness = Witness(running, NODE1, tmp_path)
    with witness.watching():
        running.failover("web", NODE3)
        expect(running, running.pod(NODE1), texts(web.addresses))
    told = witness.told()
    assert [line for line in told if line.startswith("add element inet metaleg_node pods4")]
    assert not [line for line in told if line.startswith(("delete table", "add table inet metaleg_node"))]


def _wait_for_full_comparisons(lab: Lab, count: int) -> None:
    for node, daemon in lab.daemons.items():
        times: set[str] = set()

        def counted(times: set[str] = times, node: LabNode = node) -> bool:
            last = lab.daemons[node].status()["last_reconcile"]
            if "full comparison" in last["reason"]:
                times.add(last["time"])
            return len(times) > count

        assert wait_until(counted, 15, pause=0.05), f"no full comparisons on {node.name}: {daemon.status()}"
