"""Fixtures: the package, and a node that it is installed on. What takes long is made once, and as late as possible."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions
from tests.package import node, tree, unprepared
from tests.package.archive import Archive, Unavailable, default_cache
from tests.package.container import BootError
from tests.package.node import Node
from tests.package.snapshot import Snapshot
from tests.programs import lacking

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test also pays for what all need, which may have to be downloaded."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.timeout(600))


def cannot_run(reason: str) -> NoReturn:
    """Ends a test that this machine is not fit for."""
    lacking(f"THE INSTALLED PACKAGE IS NOT TESTED HERE: {reason}")


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """For what is large, or for the eyes of other users; it does not outlive the session."""
    made = Path(tempfile.mkdtemp(prefix="metaleg-package-"))
    made.chmod(0o755)
    yield made
    # Many times faster than shutil.
    subprocess.run(["rm", "--recursive", "--force", "--one-file-system", made], check=True)


@pytest.fixture(scope="session")
def package(directory: Path) -> Path:
    """The package, built from what is in the tree now."""
    if not shutil.which("dpkg-buildpackage"):
        cannot_run("dpkg-buildpackage is not installed; on Debian, `./dev setup` does it")
    return tree.build(tree.copy(directory / "first"))


@pytest.fixture(scope="session")
def package_before(directory: Path) -> Path:
    """The package of the last release, or of the commit before."""
    try:
        source = tree.before(directory / "before")
    except subprocess.CalledProcessError as error:
        cannot_run(f"this repository has no history: {error.stderr.decode()}")
    return tree.build(source)


@pytest.fixture(scope="session")
def archive() -> Archive:
    return archive_of("bookworm")


def archive_of(suite: str) -> Archive:
    """A release's archive, out of which a system can be made."""
    made = Archive(default_cache(), suite)
    try:
        made.prepare()
    except Unavailable as error:
        cannot_run(str(error))
    return made


@pytest.fixture(scope="session")
def booted(directory: Path, archive: Archive, package: Path) -> Iterator[Node]:
    """A node with all that the package depends on or suggests, but without the package."""
    root = directory / "node"
    archive.make_root(root, [*tree.dependencies(package), "iptables", "ipset"])
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(LabOptions(flavour=Flavour.NFT, rp_filter=1)))
        try:
            made = stack.enter_context(node.booted(lab, root))
        except BootError as error:
            cannot_run(str(error))
        yield made


@pytest.fixture(scope="session")
def untouched(booted: Node) -> Snapshot:
    """What the node is like without the package."""
    return Snapshot.of(booted)


@pytest.fixture(scope="session")
def installed(booted: Node, untouched: Snapshot, package: Path) -> Node:
    """The package is installed as it comes, and nothing else was done."""
    assert untouched
    booted.container.install([package])
    return booted


@pytest.fixture(scope="session")
def dev_on_an_unprepared_machine(directory: Path, archive: Archive) -> Iterator[unprepared.Running]:
    """It downloads and waits a lot, so it goes on in the background."""
    root = directory / "unprepared"
    archive.make_root(root, unprepared.PACKAGES)
    archive.write_sources(root)
    tree.copy(root / unprepared.TREE)
    command = "./dev setup && ./dev lint && .venv/bin/metaleg-node --version && ./dev deb"
    with unprepared.running(root, command) as dev:
        yield dev


@pytest.fixture(scope="session", autouse=True)
def _in_good_time(request: pytest.FixtureRequest) -> None:
    """Begins at once with what the last test waits for."""
    name = dev_on_an_unprepared_machine.__name__
    if any(name in getattr(item, "fixturenames", ()) for item in request.session.items):
        # Where that cannot be, it is for the last test to say.
        with suppress(pytest.skip.Exception, pytest.fail.Exception):
            request.getfixturevalue(name)


@pytest.fixture
def fresh(installed: Node) -> Node:
    """The service is stopped, with a good configuration and one egress Service in the state file."""
    installed.reset()
    return installed


@pytest.fixture
def running(fresh: Node) -> Node:
    """The service runs, and the pod leaves with the LoadBalancer address."""
    fresh.start()
    fresh.expect(fresh.address)
    return fresh


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    nodes = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Node)]
    if report.failed and report.when == "call" and nodes:
        report.sections.append(("metaleg-node in the container", nodes[0].container.log()[-6000:]))
