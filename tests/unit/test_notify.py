"""The messages that systemd receives, on a real datagram socket."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metaleg_node.daemon.notify import Heartbeat, Notifier, Readiness, watchdog_interval

LIMIT = 4096
"""Bytes; systemd refuses a longer message as a whole."""


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@metaleg-test-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1))
        receiver.settimeout(2)
        yield receiver, name


def messages(receiver: socket.socket) -> list[str]:
    """What is there now, without waiting; a datagram is there as soon as it is sent."""
    found = []
    receiver.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(receiver.recv(LIMIT + 1).decode())
    return found


@pytest.mark.parametrize(
    ("send", "message"),
    [
        (lambda n: n.ready(), "READY=1"),
        (lambda n: n.status("a\nREADY=1\n\tb"), "STATUS=a READY=1 b"),
        (lambda n: n.status("pod \udcff \x1b[31m"), "STATUS=pod \\udcff \\x1b[31m"),
        (lambda n: n.stopping(), "STOPPING=1"),
        (lambda n: n.watchdog(), "WATCHDOG=1"),
    ],
)
def test_each_call_is_one_datagram(
    manager: tuple[socket.socket, str], send: Callable[[Notifier], None], message: str
) -> None:
    receiver, name = manager
    send(Notifier({"NOTIFY_SOCKET": name}))
    assert messages(receiver) == [message]


def test_a_reload_tells_the_monotonic_time_in_the_same_message(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    first, second = receiver.recv(4096).decode().split("\n")
    key, value = second.split("=")
    assert (first, key) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_without_systemd_nothing_is_sent_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({}).ready()
    assert not caplog.records


def test_a_missing_manager_is_logged_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).stopping()
    assert "STOPPING=1" in caplog.text
    assert str(tmp_path / "gone") in caplog.text


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_interval_is_half_of_what_systemd_allows(environ: dict[str, str], interval: float | None) -> None:
    assert watchdog_interval(environ) == interval


def test_the_status_is_sent_when_it_changes(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    for text in ("a", "a", "b", "a"):
        notifier.status(text)
    assert messages(receiver) == ["STATUS=a", "STATUS=b", "STATUS=a"]


@pytest.mark.parametrize("character", ["x", "\N{EURO SIGN}", "\N{GRINNING FACE}"])
def test_however_much_is_wrong_the_message_is_one_that_systemd_takes(
    manager: tuple[socket.socket, str], character: str
) -> None:
    receiver, name = manager
    Notifier({"NOTIFY_SOCKET": name}).status(character * 10_000)
    (message,) = messages(receiver)
    assert len(message.encode()) < LIMIT
    assert message.endswith(f"{character}\N{HORIZONTAL ELLIPSIS}")


# --- readiness -------------------------------------------------------------------------------------------------------


def test_ready_is_told_once_for_each_time_it_is_expected(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    readiness = Readiness(Notifier({"NOTIFY_SOCKET": name}), seconds=3600)
    readiness.reached()
    assert messages(receiver) == []
    for _ in "ab":
        readiness.expect()
        readiness.reached()
        readiness.reached()
        assert messages(receiver) == ["READY=1"]


def test_ready_is_told_at_the_deadline_though_nothing_is_reached(
    manager: tuple[socket.socket, str], caplog: pytest.LogCaptureFixture
) -> None:
    receiver, name = manager
    readiness = Readiness(Notifier({"NOTIFY_SOCKET": name}), seconds=0.05)
    readiness.expect()
    assert receiver.recv(LIMIT) == b"READY=1"
    assert "nothing complete was applied within 0.05 s" in caplog.text
    readiness.reached()
    assert messages(receiver) == []


def test_a_reload_meanwhile_does_not_put_the_deadline_off(
    manager: tuple[socket.socket, str], caplog: pytest.LogCaptureFixture
) -> None:
    receiver, name = manager
    readiness = Readiness(Notifier({"NOTIFY_SOCKET": name}), seconds=0.3)
    began = time.monotonic()
    readiness.expect()
    while not caplog.records and time.monotonic() < began + 5:
        readiness.expect()
    assert [record.levelno for record in caplog.records][:1] == [logging.WARNING]
    assert receiver.recv(LIMIT) == b"READY=1"
    readiness.abandon()


def test_what_is_abandoned_is_never_told(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    readiness = Readiness(Notifier({"NOTIFY_SOCKET": name}), seconds=0.05)
    readiness.expect()
    readiness.abandon()
    receiver.settimeout(0.2)
    with pytest.raises(TimeoutError):
        receiver.recv(LIMIT)


# --- watchdog --------------------------------------------------------------------------------------------------------


def test_the_watchdog_hears_the_first_beat_and_then_one_in_each_interval(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, name = manager
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    heartbeat = Heartbeat(Notifier({"NOTIFY_SOCKET": name}), {"WATCHDOG_USEC": "8000000"})
    told = []
    for now in (100.0, 101.0, 103.5, 104.0, 109.0, 112.0, 113.0):
        wanted = heartbeat.beat()
        told.append((now, messages(receiver), wanted))
    ping = ["WATCHDOG=1"]
    assert told == [
        (100.0, ping, 4.0),
        (101.0, [], 3.0),
        (103.5, [], 0.5),
        (104.0, ping, 4.0),
        (109.0, ping, 4.0),
        (112.0, [], 1.0),
        (113.0, ping, 4.0),
    ]
    now = 120.0
    assert heartbeat.age == 7.0


def test_without_a_watchdog_the_heart_beats_silently(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    heartbeat = Heartbeat(Notifier({"NOTIFY_SOCKET": name}), {})
    assert 0 < heartbeat.beat() < 3600
    assert heartbeat.age < 5
    assert messages(receiver) == []
