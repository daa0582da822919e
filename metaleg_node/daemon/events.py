"""What makes the loop turn: events that other threads and signals put in, and events that are due at a time."""

from __future__ import annotations

import enum
import math
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
    PUT_OFF = "repair put off"
    INTERVAL = "full comparison"
    RELOAD = "reload"
    CONFIGURATION = "configuration changed"
    RETRY = "retry"
    GATEWAY = "a gateway stays away"
    DIFFERENCE = "from scratch it is different"
    STOP = "stop"


_SIGNALS: Mapping[int, Event] = {
    signal.SIGTERM: Event.STOP,
    signal.SIGINT: Event.STOP,
    signal.SIGHUP: Event.RELOAD,
}


_QUIET = 0.25
"""The part of the time to gather that is enough when nothing more comes."""
_RESTED = 5.0
"""So many times the time to gather without anything to act upon, and the next event is acted upon at once."""


class Events:
    """`put` may be called from any thread and from signal handlers, the rest from the loop's thread."""

    def __init__(self) -> None:
        # Its put is reentrant, as a signal handler needs it (queue, "SimpleQueue Objects").
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._due: dict[Event, float] = {}
        self._gathered: set[Event] = set()
        self._full_at = self._settled_at = math.inf
        self._acted_at = math.inf
        self.stopping = False
        """Whether STOP has come, taken out already or not."""

    def put(self, event: Event) -> None:
        """Something happened."""
        self.stopping = self.stopping or event is Event.STOP
        self._queue.put(event)

    def schedule(self, event: Event, seconds: float) -> None:
        """Makes an event happen after `seconds`, instead of the time it was due before; 0: never."""
        self._due.pop(event, None)
        if seconds:
            self._due[event] = time.monotonic() + seconds

    def next(self, *, settle: float, at_most: float) -> set[Event]:
        """Waits for something to happen, then gathers what else does: for `settle` seconds, or until nothing more came
        for a quarter of that; after a rest only what is there already. What is due at a time, and STOP, end the wait.

        Returns after `at_most` seconds in any case: with nothing, while it gathers; the next call goes on with that.
        """
        end = time.monotonic() + at_most
        while Event.STOP not in self._gathered:
            try:
                self._gathered.add(self._queue.get(timeout=max(0.0, self._until(end))))
            except queue.Empty:
                break
            now = time.monotonic()
            settle = 0.0 if now - self._acted_at > _RESTED * settle else settle
            self._full_at = min(self._full_at, now + settle)
            self._settled_at = min(self._full_at, now + settle * _QUIET)
        return self._take()

    def _until(self, end: float) -> float:
        """Seconds until there is a reason to return."""
        return min(end, self._settled_at, *self._due.values()) - time.monotonic()

    def _take(self) -> set[Event]:
        """What to act upon now; nothing while more is to be gathered."""
        now = time.monotonic()
        due = {event for event, at in self._due.items() if at <= now}
        for event in due:
            del self._due[event]
        if not due and now < self._settled_at and Event.STOP not in self._gathered:
            return set()
        events, self._gathered = self._gathered | due, set()
        self._full_at = self._settled_at = math.inf
        if events:
            self._acted_at = now
        return events

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
