"""The first moments of the program."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
RELOADED_WHILE_LOADING = """
import os, runpy, signal, sys

class Reload:
    def find_spec(self, name, path=None, target=None):
        if name in ("metaleg_node.cli", "metaleg_node.daemon.service"):
            print(name, flush=True)
            os.kill(os.getpid(), signal.SIGHUP)

sys.meta_path.insert(0, Reload())
runpy.run_module("metaleg_node", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("command", "status", "loaded"), [("run", 78, ["cli", "daemon.service"]), ("plan", -signal.SIGHUP, ["cli"])]
)
def test_a_reload_while_the_service_begins_does_not_end_it_as_a_hangup_ends_other_commands(
    tmp_path: Path, command: str, status: int, loaded: list[str]
) -> None:
    words = ["--config", str(tmp_path / "missing.toml"), command]
    done = subprocess.run(
        [sys.executable, "-c", RELOADED_WHILE_LOADING, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()) == (status, [f"metaleg_node.{name}" for name in loaded])


def test_the_installed_program_begins_there_too() -> None:
    scripts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"metaleg-node": "metaleg_node.__main__:main"}


def test_the_command_line_is_read_without_the_client_of_the_api() -> None:
    """To load it takes longer than most commands do."""
    program = (
        "import sys, metaleg_node.cli as cli; cli.parser(); print(sorted({'kubernetes', 'urllib3'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
