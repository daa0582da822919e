"""What makes the loop turn: events that other threads and signals put in, and events that are due at a time."""

from __future__ import annotations

import enum
import queue
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Event(enum.StrEnum):
    """Why the loop turns; the values are what logs and hooks are told."""

    START = "start"
    CLUSTER = "cluster state changed"
    KERNEL = "kernel changed"
    FIREWALL = "firewall changed"
    INTERVAL = "full comparison"
    RELOAD = "configuration changed"
    RETRY = "retry"
    STOP = "stop"


_SIGNALS: Mapping[int, Event] = {
    signal.SIGTERM: Event.STOP,
    signal.SIGINT: Event.STOP,
    signal.SIGHUP: Event.RELOAD,
}


class Events:
    """`put` may be called from any thread and from signal handlers, the rest from the loop's thread."""

    def __init__(self) -> None:
        # Its put is reentrant, as a signal handler needs it (queue, "SimpleQueue Objects").
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._due: dict[Event, float] = {}

    def put(self, event: Event) -> None:
        """Something happened."""
        self._queue.put(event)

    def schedule(self, event: Event, seconds: float) -> None:
        """Makes an event happen after `seconds`, instead of the time it was due before; 0: never."""
        self._due.pop(event, None)
        if seconds:
            self._due[event] = time.monotonic() + seconds

    def next(self, *, settle: float, at_most: float) -> set[Event]:
        """Waits for something to happen, then for `settle` seconds to gather what else does; STOP is not waited upon.

        Returns after `at_most` seconds in any case, maybe with nothing.
        """
        wait = min([at_most, *(at - time.monotonic() for at in self._due.values())])
        events: set[Event] = set()
        try:
            events.add(self._queue.get(timeout=max(wait, 0.0)))
            end = time.monotonic() + settle
            while Event.STOP not in events and (left := end - time.monotonic()) > 0:
                events.add(self._queue.get(timeout=left))
        except queue.Empty:
            pass
        now = time.monotonic()
        due = {event for event, at in self._due.items() if at <= now}
        for event in due:
            del self._due[event]
        return events | due

    @contextmanager
    def from_signals(self) -> Iterator[None]:
        """Turns SIGTERM and SIGINT into STOP and SIGHUP into RELOAD while the block runs."""
        before = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _frame: object) -> None:
        self.put(_SIGNALS[number])
