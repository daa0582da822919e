"""Tells systemd how the service is doing: the protocol of sd_notify(3) and sd_watchdog_enabled(3).

Each message is one datagram of KEY=VALUE lines to the Unix socket that NOTIFY_SOCKET names. Outside systemd nothing
is sent.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping

from metaleg_node.text import printable

log = logging.getLogger(__name__)

READY_SECONDS = 10.0
"""How long others may be kept waiting. The kubelet of a control-plane node is ordered after this service, and the API
server that this service waits for is one of that kubelet's pods."""
_UNWATCHED_SECONDS = 10.0
"""Between two beats, for /healthz, where systemd does not watch."""
_SEND_TIMEOUT = 1.0
"""Seconds; the manager's queue may be full, and a late message is not worth a stalled loop."""
_STATUS_LIMIT = 500
"""Characters. A message of more than 4096 bytes is refused as a whole (systemd's NOTIFY_BUFFER_MAX)."""


class Notifier:
    """Sends state changes to the service manager; a failure to do so is logged and otherwise ignored."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._target = environ.get("NOTIFY_SOCKET", "")
        self._told = ""

    def ready(self) -> None:
        """Start-up, or a reload, is complete."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; the same one again is not sent."""
        line = _one_line(text)
        if line != self._told:
            self._told = line
            self._send(f"STATUS={line}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` must follow. The time is what Type=notify-reload asks for."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The loop is alive; see `Heartbeat`."""
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


class Readiness:
    """Tells systemd that a start or a reload is complete: when it is, and after READY_SECONDS in any case.

    The deadline has a thread of its own. Whatever may hold the loop up, who is ordered after the service goes on.
    """

    def __init__(self, notifier: Notifier, seconds: float = READY_SECONDS) -> None:
        self._notifier = notifier
        self._seconds = seconds
        self._lock = threading.Lock()
        self._deadline: threading.Timer | None = None

    @property
    def expected(self) -> bool:
        """Whether READY=1 is due."""
        return self._deadline is not None

    def expect(self) -> None:
        """READY=1 is due from now on; while it is due already, its deadline stays."""
        with self._lock:
            if self._deadline is None:
                self._deadline = threading.Timer(self._seconds, self._passed)
                self._deadline.daemon = True
                self._deadline.start()

    def reached(self) -> None:
        """What was expected is done."""
        if self._withdraw():
            self._notifier.ready()

    def abandon(self) -> None:
        """Nothing is expected any more."""
        self._withdraw()

    def _passed(self) -> None:
        if self._withdraw():
            log.warning("nothing complete was applied within %g s; what waits for this service goes on", self._seconds)
            self._notifier.ready()

    def _withdraw(self) -> bool:
        """Whether READY=1 was due; from now on it is not."""
        with self._lock:
            due, self._deadline = self._deadline, None
        if due:
            due.cancel()
        return due is not None


class Heartbeat:
    """The sign of life of the loop, for systemd's watchdog and for /healthz; only the loop's own thread gives it."""

    def __init__(self, notifier: Notifier, environ: Mapping[str, str] = os.environ) -> None:
        self._notifier = notifier
        self._interval = watchdog_interval(environ)
        self._last = self._due = time.monotonic()

    def beat(self) -> float:
        """Tells systemd when that is due. Returns within how many seconds the next beat is wanted."""
        self._last = time.monotonic()
        if self._interval is None:
            return _UNWATCHED_SECONDS
        if self._last >= self._due:
            self._notifier.watchdog()
            self._due = self._last + self._interval
        return self._due - self._last

    @property
    def age(self) -> float:
        """Seconds since the last beat; for any thread."""
        return time.monotonic() - self._last


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two signs of life: half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises.

    None when systemd does not watch this process.
    """
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit = environ.get("WATCHDOG_USEC", "")
    return int(limit) / 2_000_000 if limit.isdecimal() and int(limit) > 0 else None


def _one_line(text: str) -> str:
    """A newline would begin another field of the message, and systemd takes only valid UTF-8."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _STATUS_LIMIT else f"{line[: _STATUS_LIMIT - 1]}…"
