"""Real daemons in the nodes of the lab: started, asked, reloaded, stopped or killed like systemd and people do it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from socket import AF_INET, SOCK_STREAM
from typing import Any

import toml

from metaleg_node.kernel import process
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import LabNode
from metaleg_node.lab.server import wait_until

_HEALTH_PORT = 21794
START_TIMEOUT = 20.0
"""Seconds that a daemon may take to be ready; far more than it needs, for machines under load."""
STOP_TIMEOUT = 10.0


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
    def process_id(self) -> int:
        assert self._process, "only a started daemon has a process id"
        return self._process.pid

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

    def status(self) -> dict[str, Any]:
        """What the daemon wrote into status.json; empty before it did."""
        path = self._directory / "run" / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def command(self, *words: str, timeout: float = 60) -> process.Completed:
        """Runs another command of metaleg-node on this node, with the same files."""
        return process.run(self._argv(*words), timeout=timeout)

    def reload(self) -> None:
        self._signal(signal.SIGHUP)

    def stop(self) -> int:
        """SIGTERM, and the exit status. Raises DaemonError when it takes more than STOP_TIMEOUT seconds."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process and self.running:
            self._process.send_signal(number)

    def _end(self, number: int) -> int:
        if not self._process:
            return 0
        self._signal(number)
        try:
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise DaemonError(f"metaleg-node on {self._node.name} did not stop; its log:\n{self.log()}") from None

    def _argv(self, *words: str) -> list[str]:
        options = ["--config", str(self.config_file)]
        options += ["--runtime-dir", str(self._directory / "run"), "--state-dir", str(self._directory / "lib")]
        enter = [process.find("ip"), "netns", "exec", self._namespace.name]
        return [*enter, self.python, "-m", "metaleg_node", *options, *words]
