"""What the installation brings, and what is left when the package is removed, and when it is purged."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.scenario import NODE1, ours, texts
from tests.package.node import CONFIG, Node
from tests.package.snapshot import Snapshot


def test_the_installation_starts_nothing_and_makes_a_user_that_cannot_log_in(fresh: Node, package: Path) -> None:
    container = fresh.container
    container.run("apt-get", "-q", "-y", "purge", "metaleg-node")
    container.install([package])
    assert container.run("systemctl", "is-enabled", "metaleg-node", check=False).stdout == "disabled\n"
    assert container.property("ActiveState") == "inactive"
    assert container.run("getent", "passwd", "metaleg-node").stdout.endswith(
        ":/var/lib/metaleg-node:/usr/sbin/nologin\n"
    )
    assert container.run("dpkg", "--verify", "metaleg-node").stdout == ""
    assert container.run("systemd-analyze", "verify", "--man=no", "metaleg-node.service").stderr == ""
    assert container.run("stat", "-c", "%U:%G %a", "/etc/metaleg-node/hooks").stdout == "root:root 755\n"


def test_removed_its_configuration_is_left_and_purged_nothing_is(
    running: Node, untouched: Snapshot, package: Path
) -> None:
    container = running.container
    running.container.run("apt-get", "-q", "-y", "remove", "metaleg-node")
    try:
        assert set(ours(running.lab, NODE1).values()) == {""}
        running.expect(texts(NODE1.addresses))
        # Back to what the cluster was like at the time of that snapshot.
        running.lab.set_services()
        kernel = Snapshot.of(running).kernel
        assert {name: text for name, text in kernel.items() if untouched.kernel.get(name) != text} == {}
        container.run("test", "-e", CONFIG)

        container.run("apt-get", "-q", "-y", "purge", "metaleg-node")
        assert Snapshot.of(running).files - untouched.files == set()
    finally:
        container.install([package])
