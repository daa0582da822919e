"""The same tests with the releases of Debian 12: python3-kubernetes 22.6 on urllib3 1.26."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = Path("/usr/bin/python3")
ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "test_follow.py",
    "test_faults.py",
    "test_credentials.py",
    "test_kubeconfig_fields.py",
    "test_cluster_source.py",
    "test_return_path.py",
)
MODULES = "kubernetes, prometheus_client, pytest, pytest_timeout, toml, watchdog, xdist, yaml"


@pytest.mark.skipif(sys.prefix == "/usr", reason="this is Debian's interpreter already")
@pytest.mark.skipif(not Path("/etc/debian_version").exists(), reason="Debian's libraries are tested on Debian only")
def test_all_the_same_with_the_packages_of_debian() -> None:
    found = subprocess.run([PYTHON, "-c", f"import {MODULES}"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"./dev setup installs what {PYTHON} lacks here: {found.stderr}"
    command: list[str | Path] = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses", "6"]
    command += ["--confcutdir", "tests/api", *(f"tests/api/{file}" for file in FILES)]
    # Packages of a stable distribution warn about what came after them.
    command += ["-W", "default::DeprecationWarning", "--override-ini", "addopts="]
    # urllib3 1.26 leaves the socket of a TLS handshake that broke to the garbage collector, which comes at some time.
    command += ["-W", "default::pytest.PytestUnraisableExceptionWarning"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
