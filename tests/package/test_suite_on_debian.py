"""The installed program, with Debian's interpreter and its releases of all it uses, in labs inside the container."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.package import tree
from tests.package.archive import Archive
from tests.package.node import Node
from tests.patience import FACTOR, VARIABLE

TOOLS = (
    "iproute2",
    "iptables",
    "iputils-ping",
    "openssl",
    "procps",
    "python3-pytest",
    "python3-pytest-timeout",
)
"""What a lab, and the tests, need beside the package."""
TREE = "usr/src/metaleg-node-tests"
"""Where the tests are in the container; the program is not beside them."""
SCRIPTS = re.findall(r"^Tests: (\S+)$", (tree.ROOT / "packaging/debian/tests/control").read_text(), re.MULTILINE)


@pytest.fixture(scope="session")
def equipped(installed: Node, archive: Archive) -> Node:
    """With the tests, and their tools."""
    root = installed.container.root
    installed.container.install(archive.download(root, *TOOLS))
    shutil.copytree(tree.ROOT / "tests", root / TREE / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(tree.ROOT / "pyproject.toml", root / TREE)
    return installed


@pytest.fixture
def quiet(equipped: Node) -> Node:
    """Nothing else runs in the container."""
    equipped.reset()
    return equipped


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_autopkgtest_runs(quiet: Node, script: str) -> None:
    text = (tree.ROOT / "packaging/debian/tests" / script).read_text()
    quiet.container.write(f"/tmp/autopkgtest/{script}", text, mode=0o755)
    quiet.container.run("env", "AUTOPKGTEST_TMP=/tmp/autopkgtest", f"/tmp/autopkgtest/{script}")


@pytest.mark.parametrize("file", ["test_api_return_path.py", "test_drift.py"])
def test_the_end_to_end_tests(quiet: Node, file: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--confcutdir=tests/e2e", "--override-ini=addopts="]
    # Packages of a stable distribution warn about what came after them.
    options += ["-W", "default::DeprecationWarning"]
    patience = f"{VARIABLE}={FACTOR}"
    command = ["env", f"--chdir=/{TREE}", "PYTHONDONTWRITEBYTECODE=1", patience, "python3", "-m", "pytest", *options]
    done = quiet.container.run(*command, f"tests/e2e/{file}", check=False, timeout=110)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
