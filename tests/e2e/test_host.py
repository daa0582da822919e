"""What the host lacks and what others do on it: told while it is so, by the service and by `doctor`; repairs of what
somebody undoes again and again are slowed down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import LabNode
from tests.e2e.scenario import NODE1, NODE2, SETTLED, egress_service, ours
from tests.lab.daemons import Daemon
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions, PodTransport

KEEP = {"host": {"rp_filter": "keep"}, "reconcile": {"interval": "1s"}}


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    """Daemons that compare everything every second and leave reverse-path filters alone; pods behind a tunnel."""
    with Lab(LabOptions(transport=PodTransport.VXLAN, forward_drop=True)) as lab:
        lab.set_services(egress_service(lab))
        lab.start_daemons(KEEP)
        yield lab


def codes(lab: Lab, node: LabNode) -> list[str]:
    return [problem["code"] for problem in lab.daemons[node].status()["problems"]]


def _sysctl(name: str, value: int) -> Callable[[Lab, LabNode], object]:
    return lambda lab, node: lab.namespace(node).run("sysctl", "-q", "-w", f"{name}={value}")


def _run(*words: str) -> Callable[[Lab, LabNode], object]:
    return lambda lab, node: lab.namespace(node).run(*words)


Act = Callable[[Lab, LabNode], object]
FAULTS: dict[str, tuple[LabNode, Act, Act, str]] = {
    "IPv4 forwarding is off": (
        NODE1,
        _sysctl("net.ipv4.ip_forward", 0),
        _sysctl("net.ipv4.ip_forward", 1),
        "forwarding-off",
    ),
    "IPv6 forwarding is off": (
        NODE2,
        _sysctl("net.ipv6.conf.all.forwarding", 0),
        _sysctl("net.ipv6.conf.all.forwarding", 1),
        "forwarding-off",
    ),
    "strict on the gateway": (
        NODE2,
        _sysctl("net.ipv4.conf.eth0.rp_filter", 1),
        _sysctl("net.ipv4.conf.eth0.rp_filter", 0),
        "rp-filter",
    ),
    "a rule before ours": (
        NODE1,
        _run(*["ip", "rule", "add", "priority", "100", "fwmark", "0x1000000/0x1000000", "lookup", "99"]),
        _run(*["ip", "rule", "delete", "priority", "100"]),
        "foreign-marks",
    ),
    "marks of ours": (
        NODE1,
        _run(
            *["iptables-nft", "-t", "mangle", "-A", "POSTROUTING", "-j", "MARK", "--set-xmark", "0x1000000/0x1000000"]
        ),
        _run(*["iptables-nft", "-t", "mangle", "-F", "POSTROUTING"]),
        "foreign-marks",
    ),
}


DOCTOR = {"forwarding-off": "ML-201", "rp-filter": "ML-202", "foreign-marks": "ML-301"}

OF_FILES = {"ML-203", "ML-304", "ML-305", "ML-306"}


def doctor(daemon: Daemon) -> set[str]:
    """The codes of what it finds wrong with the kernel, forwarding and other programs, but for what files tell: these
    are of the machine that the lab is on."""
    done = daemon.command("doctor", "--json")
    found = json.loads(done.stdout)
    codes = {one["code"] for one in found["findings"] if one["severity"] != "note"}
    assert done.returncode == (1 if codes else 0)
    return {code for code in codes if code[:4] in ("ML-1", "ML-2", "ML-3")} - OF_FILES


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_while_it_lasts(host: Lab, name: str) -> None:
    node, fault, mend, code = FAULTS[name]
    daemon = host.daemons[node]
    assert wait_until(lambda: codes(host, node) == [], SETTLED), codes(host, node)
    assert doctor(daemon) == set()
    fault(host, node)
    assert wait_until(lambda: codes(host, node) == [code], SETTLED), daemon.status()["problems"]
    assert doctor(daemon) == {DOCTOR[code]}
    mend(host, node)
    assert wait_until(lambda: codes(host, node) == [], SETTLED), daemon.status()["problems"]


@pytest.mark.parametrize("flavour", Flavour)
def test_a_cluster_as_usual_has_none(flavour: Flavour) -> None:
    with Lab(LabOptions(flavour=flavour, forward_drop=True)) as lab:
        lab.set_services(egress_service(lab))
        for node in (NODE1, NODE2):
            lab.daemons[node].configure({})
            assert doctor(lab.daemons[node]) == set()


def test_hooks_that_cannot_be_run_are_found_beforehand(host: Lab) -> None:
    daemon = host.daemons[NODE1]
    daemon.configure({**KEEP, "hooks": {"pre": "/bin/true --quickly", "post": "/nowhere/hook"}})
    try:
        first, second = sorted(daemon.command("check").stderr.splitlines())
        assert "a hook is run without arguments" in second
        assert "'/nowhere/hook': No such file or directory" in first
    finally:
        daemon.configure(KEEP)
    assert daemon.command("check").returncode == 0


def test_who_undoes_ours_again_and_again_gets_one_repair_a_second_and_is_told(host: Lab) -> None:
    daemon, namespace, before = host.daemons[NODE1], host.namespace(NODE1), ours(host, NODE1)

    def undo() -> bool:
        namespace.run("ip", "rule", "flush", "proto", "201")
        return codes(host, NODE1) == ["undone"]

    def repairs() -> int:
        return int(daemon.log().count("somebody changed what is ours"))

    assert wait_until(undo, 4 * SETTLED), daemon.status()["problems"]
    counted, began = repairs(), time.monotonic()
    assert not wait_until(lambda: not undo(), 4)
    assert repairs() - counted <= time.monotonic() - began + 1
    assert wait_until(lambda: codes(host, NODE1) == [], SETTLED)
    assert ours(host, NODE1) == before
