"""Forgets connections beside the loop: looking through them takes longer than all the rest of a change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from metaleg_node.core.compare import diff, flows
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.problems import Code, Problem
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink import conntrack
from metaleg_node.kernel.netlink.routing import RoutingControl

log = logging.getLogger(__name__)

_PAUSE_SECONDS, _REST = 0.1, 4.0
"""Between two sweeps: at least so long, and so many times as long as the last one took, since each walks the whole
table and slows down everything else meanwhile."""
_RETRY_SECONDS, _LAST_RETRY_SECONDS = 1.0, 5.0
_STOP_SECONDS = 1.0
_MANY_FLOWS = 20


class Sweeper:
    """A thread that carries out sweeps, in the network namespace of the thread that called `start`: the first one at
    once, what is asked for until it rests gathered into the next. One that fails is tried again until it succeeds.

    `swept` is told, in this thread, how many entries went each time.
    """

    def __init__(self, swept: Callable[[int], object]) -> None:
        self._swept = swept
        self._waiting: diff.SweepFlows | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.problems: tuple[Problem, ...] = ()
        """What keeps connections bound to a former source now; read by any thread."""

    def ask(self, sweep: diff.SweepFlows) -> None:
        """Wants a sweep soon."""
        with self._changed:
            self._waiting = self._waiting.with_(sweep) if self._waiting else sweep
            self._changed.notify_all()

    def forget(self) -> None:
        """What was asked for is not needed any more."""
        with self._changed:
            self._waiting = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what waits is left to the next start, which looks at all connections anyway."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(_STOP_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self) -> None:
        pause, retry = 0.0, _RETRY_SECONDS
        while sweep := self._next(pause):
            started = time.monotonic()
            try:
                with RoutingControl() as routing:
                    flushed = forget_connections(sweep, routing)
            except Exception as error:
                self._failed(sweep, error)
                pause, retry = retry, min(2 * retry, _LAST_RETRY_SECONDS)
                continue
            seconds = time.monotonic() - started
            log.debug("conntrack: %d connections forgotten in %.0f ms", flushed, seconds * 1000)
            self.problems = ()
            self._swept(flushed)
            pause, retry = max(_PAUSE_SECONDS, _REST * seconds), _RETRY_SECONDS

    def _next(self, pause: float) -> diff.SweepFlows | None:
        """What is asked for after a pause; None: the thread ends."""
        rested = time.monotonic() + pause
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, rested - time.monotonic())
            self._changed.wait_for(lambda: self._stopping or self._waiting)
            sweep, self._waiting = self._waiting, None
            return None if self._stopping else sweep

    def _failed(self, sweep: diff.SweepFlows, error: Exception) -> None:
        with self._changed:
            self._waiting = sweep.with_(self._waiting) if self._waiting else sweep
        if not isinstance(error, KernelError):
            log.exception("looking through the connections met something unexpected")
        text = f"connections may still be bound to a former source, and are dropped: {error}; it is tried again"
        problem = Problem(code=Code.KERNEL, text=text)
        if not self.problems:
            log.error("%s", problem.line)
        self.problems = (problem,)


def forget_connections(sweep: diff.SweepFlows, routing: RoutingControl) -> int:
    """Deletes the conntrack entries that contradict a firewall, and tells how many; others forget their router. Raises
    KernelError."""
    for mark, mask in sweep.routers - diff.routers(sweep.firewall):
        conntrack.unmark(mark, mask)
    answered = sweep.firewall.part(Egress).sources
    some = flows.concerned(sweep.firewall) if sweep.addresses is None else sweep.addresses
    to = (some & answered) | {server.address for server in sweep.servers}
    found = conntrack.flows(some - answered, to, labelled=sweep.addresses is None)
    stale = list(flows.stale(found, sweep.firewall, routing.addresses(), sweep.servers)) if found else []
    for flow, reason in stale[:_MANY_FLOWS]:
        log.debug("conntrack: forgetting %s %s to %s: %s", flow.protocol, flow.source, flow.reply_source, reason)
    return conntrack.delete(flow for flow, _ in stale)
