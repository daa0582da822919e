"""Real daemons in the nodes of the lab: started, and waited for until they are ready."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import AF_INET, SOCK_STREAM
from typing import Any

import toml

from metaleg_node.kernel import process
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import LabNode

_HEALTH_PORT = 21794
START_TIMEOUT = 20.0
"""Seconds that a daemon may take to be ready; far more than it needs, for machines under load."""


class DaemonError(Exception):
    """A daemon did not do what was asked; the message carries its log."""


class Daemon:
    """`metaleg-node` on one node, with its files in a directory of its own."""

    def __init__(self, node: LabNode, namespace: Namespace, directory: Path) -> None:
        self._node = node
        self._namespace = namespace
        self._directory = directory
        self.python = sys.executable
        """The interpreter that runs it from the next start on."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def config_file(self) -> Path:
        return self._directory / "config.toml"

    @property
    def state_file(self) -> Path:
        return self._directory / "state.yaml"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """What all daemons of this node have written so far."""
        path = self._directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def configure(self, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the configuration: this node and its state file, and `overrides` by section and key."""
        config: dict[str, dict[str, Any]] = {
            "node": {"name": self._node.name},
            "cluster": {"state_file": str(self.state_file)},
        }
        for section, values in overrides.items():
            config.setdefault(section, {}).update(values)
        self._directory.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(toml.dumps(config))

    def start(self) -> None:
        """Starts the daemon without waiting for it."""
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv("run"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self) -> None:
        """Waits until /readyz says so. Raises DaemonError when the daemon ends or START_TIMEOUT seconds pass."""
        if not wait_until(lambda: self.ready() or not self.running, START_TIMEOUT, pause=0.02) or not self.running:
            how = "did not become ready" if self.running else f"ended with {self._process and self._process.returncode}"
            raise DaemonError(f"metaleg-node on {self._node.name} {how}; its log:\n{self.log()}")

    def ready(self) -> bool:
        try:
            with self._namespace.socket(AF_INET, SOCK_STREAM) as sock:
                sock.settimeout(2)
                sock.connect(("127.0.0.1", _HEALTH_PORT))
                sock.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                with sock.makefile("rb") as answer:
                    return answer.read().split()[1:2] == [b"200"]
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def _argv(self, *words: str) -> list[str]:
        options = ["--config", str(self.config_file)]
        options += ["--runtime-dir", str(self._directory / "run"), "--state-dir", str(self._directory / "lib")]
        enter = [process.find("ip"), "netns", "exec", self._namespace.name]
        return [*enter, self.python, "-m", "metaleg_node", *options, *words]


def wait_until(condition: Callable[[], bool], timeout: float, pause: float = 0.005) -> bool:
    """Asks again and again, `pause` seconds apart, until the condition holds; False when `timeout` seconds pass."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
