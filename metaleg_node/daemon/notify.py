"""Tells systemd how the service is doing: the protocol of sd_notify(3) and sd_watchdog_enabled(3).

Each message is one datagram of KEY=VALUE lines to the Unix socket that NOTIFY_SOCKET names. Outside systemd nothing
is sent.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

_SEND_TIMEOUT = 1.0
"""Seconds; the manager's queue may be full, and a late message is not worth a stalled loop."""


class Notifier:
    """Sends state changes to the service manager; a failure to do so is logged and otherwise ignored."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._target = environ.get("NOTIFY_SOCKET", "")

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is complete."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(text))

    def reloading(self) -> None:
        """The configuration is being read again; `ready` must follow. The time is what Type=notify-reload asks for."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The loop is alive; to be sent every `watchdog_interval`."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._target:
            return
        # A leading @ stands for the abstract namespace's NUL byte.
        address = "\0" + self._target[1:] if self._target.startswith("@") else self._target
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.settimeout(_SEND_TIMEOUT)
                channel.connect(address)
                channel.send("\n".join(lines).encode())
        except OSError as error:
            log.warning("cannot send %s to systemd's NOTIFY_SOCKET %s: %s", lines[0], self._target, error)


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two `Notifier.watchdog` calls: half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises.

    None when systemd does not watch this process.
    """
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit = environ.get("WATCHDOG_USEC", "")
    return int(limit) / 2_000_000 if limit.isdecimal() and int(limit) > 0 else None


def _status(text: str) -> str:
    # A newline would begin another field of the message.
    return f"STATUS={' '.join(text.split())}"
