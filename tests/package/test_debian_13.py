"""The same package on the next release of Debian, once: its systemd, its interpreter, its libraries."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.scenario import NODE1, ours, texts
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions
from tests.package import node, tree
from tests.package.conftest import archive_of


def test_the_package_is_installed_serves_and_is_purged(directory: Path, package: Path) -> None:
    root = directory / "trixie"
    archive_of("trixie").make_root(root, tree.dependencies(package))
    with Lab(LabOptions(flavour=Flavour.NFT, rp_filter=1)) as lab, node.booted(lab, root) as here:
        container = here.container
        container.install([package])
        assert container.run("systemd-analyze", "verify", "--man=no", "metaleg-node.service").stderr == ""
        here.reset()
        here.start()
        here.expect(here.address)
        container.run("systemctl", "restart", "metaleg-node")
        here.expect(here.address)
        assert container.property("NRestarts") == "0"
        container.run("apt-get", "-q", "-y", "purge", "metaleg-node")
        assert set(ours(lab, NODE1).values()) == {""}
        here.expect(texts(NODE1.addresses))
