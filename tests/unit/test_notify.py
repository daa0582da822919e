"""The messages that systemd receives, on a real datagram socket."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metaleg_node.daemon.notify import Notifier, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@metaleg-test-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1))
        receiver.settimeout(2)
        yield receiver, name


@pytest.mark.parametrize(
    ("send", "message"),
    [
        (lambda n: n.ready("3 services"), "READY=1\nSTATUS=3 services"),
        (lambda n: n.status("a\nREADY=1\n\tb"), "STATUS=a READY=1 b"),
        (lambda n: n.stopping(), "STOPPING=1"),
        (lambda n: n.watchdog(), "WATCHDOG=1"),
    ],
)
def test_each_call_is_one_datagram(
    manager: tuple[socket.socket, str], send: Callable[[Notifier], None], message: str
) -> None:
    receiver, name = manager
    send(Notifier({"NOTIFY_SOCKET": name}))
    assert receiver.recv(4096).decode() == message


def test_a_reload_tells_the_monotonic_time_in_the_same_message(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    first, second = receiver.recv(4096).decode().split("\n")
    key, value = second.split("=")
    assert (first, key) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_without_systemd_nothing_is_sent_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({}).ready("")
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
