"""The same tests with the releases of Debian 12: python3-kubernetes 22.6 on urllib3 1.26."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = Path("/usr/bin/python3")
ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments")
"""What the tests need themselves; all of it runs on any interpreter."""
SKIP = "python3-kubernetes of Debian is not installed"


def has_debian_packages() -> bool:
    done = subprocess.run([PYTHON, "-c", "import kubernetes, prometheus_client"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(sys.prefix == "/usr", reason="this is Debian's interpreter already")
@pytest.mark.skipif(not PYTHON.exists() or not has_debian_packages(), reason=SKIP)
@pytest.mark.parametrize(
    "file",
    ["test_follow.py", "test_faults.py", "test_credentials.py", "test_cluster_source.py", "test_return_path.py"],
)
def test_all_the_same_with_the_packages_of_debian(tmp_path: Path, file: str) -> None:
    for name in TOOLS:
        found = importlib.util.find_spec(name)
        if found and found.origin:
            (tmp_path / name).symlink_to(Path(found.origin).parent)
    command: list[str | Path] = [
        PYTHON,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--confcutdir",
        "tests/api",
        f"tests/api/{file}",
    ]
    # Packages of a stable distribution warn about what came after them.
    command += ["-W", "default::DeprecationWarning", "--override-ini", "addopts="]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
