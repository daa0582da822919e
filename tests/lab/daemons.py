"""The lab's daemons as systemd and people handle them: asked, reloaded, stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
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

    def on_terminal(self, columns: int, *words: str) -> tuple[int, str]:
        """The exit status of a command, and what a terminal of this width shows, with all escape sequences. It is
        interrupted once it has shown two pages."""
        terminal, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm"}
        with subprocess.Popen(self._argv(*words), stdout=other, stderr=other, env=environment) as command:
            os.close(other)
            shown, interrupted = b"", False
            with contextlib.suppress(OSError):  # The end of a terminal that nobody has open any more.
                while got := os.read(terminal, 65536):
                    shown += got
                    if shown.count(b"\x1b[H") == 2 and not interrupted:
                        interrupted = True
                        command.send_signal(signal.SIGINT)
            os.close(terminal)
        return command.returncode, shown.decode().replace("\r\n", "\n")

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
