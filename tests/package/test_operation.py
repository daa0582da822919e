"""What an administrator does to the running service, and what happens to it, while traffic flows."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import SERVER
from tests.e2e.scenario import NODE1, NODE3, texts
from tests.package import tree
from tests.package.node import CONFIG, FRAGMENTS, Node, Stream
from tests.patience import patient

HOOK = "/etc/metaleg-node/hooks/test"
NETWORK = """
[Match]
Name=networkd0
[Network]
Address=172.31.255.1/30
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
"""An interface that systemd-networkd is in charge of."""
_RESTARTED = patient(20.0)
"""Seconds within which systemd has noticed and the service is there again, also on a busy machine."""


def lost(stream: Stream, node: Node) -> list[str]:
    """What went wrong with the connections of a stream; there must have been some in either family."""
    assert set(stream.seen) == node.address
    assert min(stream.seen.values()) > 40
    return stream.lost


# --- reload ----------------------------------------------------------------------------------------------------------


def test_a_reload_takes_a_good_file_and_refuses_a_bad_one(running: Node) -> None:
    container = running.container
    process = container.property("MainPID")
    container.run("systemctl", "reload", "metaleg-node")
    container.wait("sh", "-c", "journalctl --unit=metaleg-node | grep 'read again: no change'")
    running.configure(egress={"exclude_cidrs": [f"{SERVER[4]}/32", f"{SERVER[6]}/128"]})
    container.run("systemctl", "reload", "metaleg-node")
    running.expect(texts(NODE1.addresses))

    container.write(CONFIG, "[egress]\nenable = true\n")
    container.run("systemctl", "reload", "metaleg-node")
    container.wait("sh", "-c", "systemctl show --property=StatusText metaleg-node | grep egress.enable")
    told = running.status()
    assert told.returncode == 1
    assert f"{CONFIG}: not taken, the configuration before stays in force" in told.stdout
    running.expect(texts(NODE1.addresses))

    running.configure()
    container.run("systemctl", "reload", "metaleg-node")
    running.expect(running.address)
    container.wait("systemctl", "is-active", "metaleg-node")
    assert container.property("MainPID") == process


def test_a_configuration_error_ends_it_for_good(fresh: Node) -> None:
    container = fresh.container
    container.write(CONFIG, "[egress]\nenable = true\n")
    assert container.run("systemctl", "start", "metaleg-node", check=False).returncode == 1
    facts = [container.property(name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")]
    assert facts == ["failed", "78", "0"]
    assert f"{CONFIG}: egress.enable" in container.log()


# --- restart, upgrade ------------------------------------------------------------------------------------------------


def test_a_restart_loses_no_connection(running: Node) -> None:
    with Stream(running) as stream:
        for _ in range(3):
            running.container.run("systemctl", "restart", "metaleg-node")
        running.container.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "metaleg-node")
        restarted = wait_until(lambda: running.container.property("NRestarts") == "1", _RESTARTED, pause=0.1)
        running.container.wait("systemctl", "is-active", "metaleg-node")
    assert restarted
    assert lost(stream, running) == []


def test_an_upgrade_loses_no_connection_and_keeps_the_configuration(
    running: Node, package: Path, tmp_path: Path
) -> None:
    container = running.container
    before = container.run("cat", CONFIG).stdout
    process = container.property("MainPID")
    later = tree.newer(package, tmp_path)
    with Stream(running) as stream:
        container.install([later])
        stream.moving = True
        running.lab.failover("web", NODE3)
        running.expect(running.address)
    assert lost(stream, running) == []
    version = container.run("dpkg-query", "--show", "--showformat=${Version}", "metaleg-node").stdout
    assert version == tree.fields(later)["Version"]
    assert container.property("MainPID") not in (process, "0")
    assert container.run("cat", CONFIG).stdout == before


def test_an_upgrade_asks_nothing_a_refused_one_leaves_the_old_version_running_and_a_downgrade_works(
    fresh: Node, package: Path, package_before: Path, tmp_path: Path
) -> None:
    container, later = fresh.container, tree.newer(package, tmp_path)
    settings = container.run("cat", CONFIG).stdout
    container.run("apt-get", "-q", "-y", "purge", "metaleg-node")
    container.install([package_before])
    fresh.fragment(settings)
    fresh.start()
    fresh.expect(fresh.address)
    with Stream(fresh) as stream:
        fresh.fragment("[egress]\nenable = true\n", name="wrong")
        old = container.property("MainPID")
        told = container.install([later])
        assert f"{FRAGMENTS}/wrong.toml: egress.enable: unknown key" in told
        assert "the service was not restarted and the version before still runs" in told
        assert (container.property("MainPID"), container.property("ActiveState")) == (old, "active")

        container.run("rm", f"{FRAGMENTS}/wrong.toml")
        container.install([package_before])
        before = container.property("MainPID")
        assert before != old
        told = container.install([later])
        assert "Configuration file" not in told
        after = container.property("MainPID")
        assert after not in (before, "0")
    assert lost(stream, fresh) == []
    shipped = (tree.ROOT / "etc/metaleg-node/config.toml").read_text()
    assert container.run("cat", CONFIG).stdout == shipped
    assert fresh.status().returncode == 0


# --- the watchdog ----------------------------------------------------------------------------------------------------


def test_systemd_watches_the_service_as_it_comes(running: Node) -> None:
    assert running.container.property("WatchdogUSec") == "2min"


def test_a_loop_that_is_stuck_is_started_again(fresh: Node) -> None:
    container = fresh.container
    fresh.drop_in("[Service]\nWatchdogSec=2s\n")
    fresh.start()
    fresh.expect(fresh.address)
    container.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "metaleg-node")
    assert wait_until(lambda: container.property("NRestarts") == "1", _RESTARTED, pause=0.1)
    container.wait("systemctl", "is-active", "metaleg-node")
    assert "Watchdog timeout" in container.log()
    fresh.lab.failover("web", NODE1)
    fresh.expect(fresh.address)
    assert fresh.status().returncode == 0


# --- hooks -----------------------------------------------------------------------------------------------------------


def write_hook(node: Node, script: str) -> None:
    node.container.write(HOOK, f"#!/bin/sh\n{script}\n", mode=0o755)
    node.configure(hooks={"post": "/etc/metaleg-node/hooks"})


def wait_for_line(node: Node, line: str) -> None:
    """What a hook says is told once it has ended."""
    log = "journalctl --output=cat --unit=metaleg-node"
    node.container.wait("sh", "-c", f"{log} | grep --line-regexp '{line}'")


def test_hooks_run_as_the_service_in_its_sandbox(fresh: Node) -> None:
    container = fresh.container
    write_hook(fresh, "id -un; touch /etc/hook-was-here || echo read-only; touch /run/metaleg-node/hook-was-here")
    fresh.start()
    container.wait("test", "-e", "/run/metaleg-node/hook-was-here")
    wait_for_line(fresh, "hook test: read-only")
    assert "hook test: metaleg-node" in container.log().splitlines()


def test_hooks_that_need_root_have_it_with_the_documented_drop_in(fresh: Node) -> None:
    container = fresh.container
    write_hook(fresh, "id -un; touch /etc/frr/hook-was-here && chown nobody /etc/frr/hook-was-here")
    container.run("mkdir", "--parents", "/etc/frr")
    fresh.drop_in(documented_drop_in())
    fresh.start()
    container.wait("test", "-e", "/etc/frr/hook-was-here")
    assert container.run("stat", "-c", "%U", "/etc/frr/hook-was-here").stdout == "nobody\n"
    wait_for_line(fresh, "hook test: root")
    fresh.expect(fresh.address)
    container.run("rm", "--recursive", "/etc/frr", HOOK)


def documented_drop_in() -> str:
    """The drop-in for hooks as root, as the documentation prints it."""
    text = (tree.ROOT / "docs/install.md").read_text()
    (block,) = (block for block in text.split("```") if "User=root" in block)
    return block


# --- systemd-networkd ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_in", ["as it comes", "switched off"])
def test_networkd_leaves_our_rules_alone_because_of_the_drop_in(running: Node, drop_in: str) -> None:
    """The service is stopped meanwhile, or it would put them back."""
    container, namespace = running.container, running.lab.namespace(NODE1)
    container.run("systemctl", "stop", "metaleg-node")
    container.write("/run/systemd/network/10-test.network", NETWORK)
    if drop_in == "switched off":
        container.run("mkdir", "--parents", "/run/systemd/networkd.conf.d")
        container.run("ln", "--symbolic", "/dev/null", "/run/systemd/networkd.conf.d/metaleg-node.conf")
    try:
        container.run("systemctl", "start", "systemd-networkd")
        # Whenever it configures an interface it takes away what it does not know.
        namespace.ip(["link add networkd0 up type veth peer name networkd1", "link set networkd1 up"])
        container.run("/lib/systemd/systemd-networkd-wait-online", "--interface=networkd0", "--timeout=10")
        assert ("\n4700:" in namespace.run("ip", "rule", "show")) == (drop_in == "as it comes")
    finally:
        container.run("systemctl", "stop", "systemd-networkd.socket", "systemd-networkd")
        container.run("rm", "-rf", "/run/systemd/network", "/run/systemd/networkd.conf.d")
        namespace.ip(["link delete networkd0"])
    running.start()
    running.expect(running.address)
