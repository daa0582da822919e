"""The lab's daemons as systemd and people handle them: asked, reloaded, stopped."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

from metaleg_node.kernel import process
from metaleg_node.lab import daemons
from metaleg_node.lab.daemons import DaemonError
from tests.patience import patient

STOP_TIMEOUT = patient(10.0)


class Daemon(daemons.Daemon):
    """`metaleg-node` on one node, with its files in a directory of its own."""

    @property
    def process_id(self) -> int:
        assert self._process, "only a started daemon has a process id"
        return self._process.pid

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
        if not self._process:
            return 0
        self._signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DaemonError(f"metaleg-node on {self._node.name} did not stop; its log:\n{self.log()}") from None

    def _signal(self, number: int) -> None:
        if self._process and self.running:
            self._process.send_signal(number)
