"""The APT repository: what the documentation's lines do on both releases of Debian."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.package import tree
from tests.package.archive import SUITES, call
from tests.package.conftest import archive_of

KEY = "repository of a test"
ADDRESS = "https://packages.metaleg-node.example"


@pytest.fixture(scope="module")
def signer(directory: Path) -> Mapping[str, str]:
    """The environment of somebody who has a key."""
    home = directory / "gnupg"
    home.mkdir(mode=0o700)
    environment = {**os.environ, "GNUPGHOME": str(home)}
    making = ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", KEY, "rsa3072", "sign", "never"]
    subprocess.run(making, env=environment, check=True, capture_output=True)
    return environment


def publish(
    source: Path, repository: Path, signer: Mapping[str, str], key: str = KEY
) -> subprocess.CompletedProcess[str]:
    command = ["./dev", "repo", str(repository), key]
    return subprocess.run(command, cwd=source, env=signer, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repositories(directory: Path, signer: Mapping[str, str]) -> tuple[Path, Path]:
    """One with a version, and the same when the next one has come."""
    source, first, both = tree.copy(directory / "published"), directory / "repository", directory / "repository-later"
    done = publish(source, first, signer)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(first, both)
    for path in ("pyproject.toml", "metaleg_node/__init__.py", "packaging/debian/changelog"):
        file = source / path
        file.write_text(file.read_text().replace("0.1.0", "0.1.1", 1))
    done = publish(source, both, signer)
    assert done.returncode == 0, done.stdout + done.stderr
    return first, both


def documented() -> str:
    """The source's line, for a repository of files."""
    text = (tree.ROOT / "docs/install.md").read_text()
    found = re.search(r'^echo "(deb .+)" >', text, re.MULTILINE)
    assert found
    return found[1].replace(ADDRESS, "file:/srv/repository")


@pytest.mark.parametrize("suite", SUITES)
def test_apt_installs_from_it_and_upgrades_from_it(
    suite: str, directory: Path, package: Path, repositories: tuple[Path, Path]
) -> None:
    root = directory / f"user-{suite}"
    archive_of(suite).make_root(root, tree.dependencies(package))
    (root / "etc/apt/sources.list.d/metaleg-node.list").write_text(f"{documented()}\n")
    (root / "etc/apt/keyrings").mkdir(exist_ok=True)
    shutil.copy(repositories[0] / "metaleg-node.gpg", root / "etc/apt/keyrings")
    for repository, version in zip(repositories, ("0.1.0", "0.1.1"), strict=True):
        shutil.rmtree(root / "srv/repository", ignore_errors=True)
        shutil.copytree(repository, root / "srv/repository")
        call("chroot", str(root), "apt-get", "-q", "update")
        call("chroot", str(root), "apt-get", "-q", "-y", "--no-install-recommends", "install", "metaleg-node")
        assert call("chroot", str(root), "metaleg-node", "--version") == f"metaleg-node {version}\n"


def test_what_somebody_changed_in_it_is_refused(
    directory: Path, package: Path, repositories: tuple[Path, Path]
) -> None:
    root = directory / "careful"
    archive_of("bookworm").make_root(root, tree.dependencies(package))
    (root / "etc/apt/sources.list.d/metaleg-node.list").write_text(f"{documented()}\n")
    (root / "etc/apt/keyrings").mkdir(exist_ok=True)
    shutil.copy(repositories[0] / "metaleg-node.gpg", root / "etc/apt/keyrings")
    shutil.copytree(repositories[0], root / "srv/repository")
    (release,) = (root / "srv/repository/dists/stable").glob("InRelease")
    release.write_text(release.read_text().replace("Origin: metaleg-node", "Origin: somebody"))
    command = ["chroot", str(root), "apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "not signed" in done.stderr or "BADSIG" in done.stderr


def test_without_a_key_it_says_what_to_do(directory: Path, signer: Mapping[str, str]) -> None:
    done = publish(tree.ROOT, directory / "unsigned", signer, key="nobody@nowhere.example")
    assert done.returncode != 0
    assert "gpg has no secret key nobody@nowhere.example" in done.stderr
    assert not (directory / "unsigned").exists()
