"""What makes the loop turn."""

from __future__ import annotations

import os
import signal
import threading
import time

from metaleg_node.daemon.events import Event, Events


def test_events_that_come_together_turn_the_loop_once() -> None:
    events = Events()
    events.put(Event.CLUSTER)
    events.put(Event.KERNEL)
    assert events.next(settle=0.05, at_most=10) == {Event.CLUSTER, Event.KERNEL}
    assert events.next(settle=0, at_most=0) == set()


def test_gathering_goes_on_in_the_next_call_when_the_time_is_over() -> None:
    events = Events()
    events.put(Event.CLUSTER)
    assert events.next(settle=0.2, at_most=0) == set()
    events.put(Event.KERNEL)
    assert events.next(settle=3600, at_most=10) == {Event.CLUSTER, Event.KERNEL}


def test_a_quarter_of_the_time_without_an_event_is_enough() -> None:
    events = Events()
    events.put(Event.CLUSTER)
    started = time.monotonic()
    assert events.next(settle=2, at_most=10) == {Event.CLUSTER}
    assert time.monotonic() - started < 2


def test_after_a_rest_the_first_event_is_acted_upon_at_once_with_what_is_there() -> None:
    events = Events()
    events.put(Event.CLUSTER)
    assert events.next(settle=0.001, at_most=60) == {Event.CLUSTER}
    time.sleep(0.01)
    events.put(Event.CLUSTER)
    events.put(Event.KERNEL)
    assert events.next(settle=0.001, at_most=0) == {Event.CLUSTER, Event.KERNEL}
    events.put(Event.KERNEL)
    assert events.next(settle=3600, at_most=0) == set(), "no rest before this one"


def test_events_that_never_stop_are_gathered_no_longer_than_told() -> None:
    events, over = Events(), threading.Event()

    def trickle() -> None:
        while not over.wait(0.01):
            events.put(Event.KERNEL)

    thread = threading.Thread(target=trickle)
    thread.start()
    assert events.next(settle=0.4, at_most=60) == {Event.KERNEL}
    over.set()
    thread.join()


def test_what_is_due_ends_the_gathering() -> None:
    events = Events()
    events.put(Event.CLUSTER)
    events.schedule(Event.RETRY, 0.05)
    assert events.next(settle=3600, at_most=3600) == {Event.CLUSTER, Event.RETRY}


def test_a_stop_is_heard_though_something_is_always_due() -> None:
    events = Events()
    events.schedule(Event.INTERVAL, 1e-9)
    events.put(Event.STOP)
    assert events.next(settle=0, at_most=0) == {Event.INTERVAL, Event.STOP}


def test_a_stop_is_not_kept_waiting() -> None:
    events = Events()
    events.put(Event.STOP)
    assert events.next(settle=3600, at_most=3600) == {Event.STOP}


def test_a_due_event_comes_once_and_can_be_put_off() -> None:
    events = Events()
    events.schedule(Event.RETRY, 3600)
    events.schedule(Event.INTERVAL, 0.01)
    assert events.next(settle=0, at_most=10) == {Event.INTERVAL}
    events.schedule(Event.RETRY, 0)
    assert events.next(settle=0, at_most=0) == set()


def test_an_event_from_another_thread_ends_the_wait() -> None:
    events = Events()
    threading.Timer(0.01, events.put, (Event.KERNEL,)).start()
    assert events.next(settle=0, at_most=60) == {Event.KERNEL}


def test_signals_become_events_and_get_their_handlers_back() -> None:
    events = Events()
    before = signal.getsignal(signal.SIGHUP)
    with events.from_signals():
        for number, event in ((signal.SIGHUP, Event.RELOAD), (signal.SIGTERM, Event.STOP), (signal.SIGINT, Event.STOP)):
            os.kill(os.getpid(), number)
            assert events.next(settle=0, at_most=10) == {event}
    assert signal.getsignal(signal.SIGHUP) == before
