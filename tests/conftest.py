"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Iterator

import hypothesis
import pytest

from metaleg_node.lab import daemons
from tests import patience
from tests.netns import Netns, execute

# A loaded machine is no reason to fail: pytest's own timeout finds what hangs.
hypothesis.settings.register_profile("metaleg", deadline=None)
hypothesis.settings.load_profile("metaleg")
daemons.START_TIMEOUT = patience.patient(daemons.START_TIMEOUT)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stretches pytest's own limit too, the usual one or a test's own."""
    if patience.FACTOR == 1:
        return
    usual = float(config.getini("timeout"))
    for item in items:
        marker = item.get_closest_marker("timeout")
        item.add_marker(pytest.mark.timeout(patience.patient(marker.args[0] if marker else usual)), append=False)


@pytest.fixture(scope="session", autouse=True)
def _signals_are_not_ignored_by_what_tests_start() -> None:
    """Who starts the tests may ignore signals: nohup(1) does, and a shell for its background jobs. The tests still do,
    but by a handler: what they start would inherit that a signal is ignored, but not a handler (execve(2))."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _no_terminal_is_told_of() -> None:
    """pytest tells its workers how wide its own terminal is."""
    for name in ("COLUMNS", "NO_COLOR"):
        os.environ.pop(name, None)


@pytest.fixture
def netns() -> Iterator[Netns]:
    """An empty network namespace with `lo` up; it is gone after the test."""
    namespace = Netns(name=f"metaleg-test-{uuid.uuid4().hex[:8]}")
    execute("ip", "netns", "add", namespace.name)
    try:
        namespace.run("ip", "link", "set", "lo", "up")
        yield namespace
    finally:
        execute("ip", "netns", "delete", namespace.name)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sets the log up for good, towards a stream that ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
