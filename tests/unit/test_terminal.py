"""What people see: lines that fit, and colours only where they are wanted."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from metaleg_node import terminal
from metaleg_node.commands import plan
from metaleg_node.core.changes import Action, change
from metaleg_node.daemon import status
from metaleg_node.text import table
from tests.unit.test_status import DOCUMENT

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class Screen(io.StringIO):
    """A standard output that is a terminal, or is none."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    yield
    terminal.setup("never")


@pytest.mark.parametrize(
    ("choice", "on_terminal", "variables", "coloured"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {}, True),
        ("always", True, {"NO_COLOR": "1"}, True),
        ("never", True, {}, False),
    ],
)
def test_colours_are_on_a_terminal_that_wants_them(
    choice: str, on_terminal: bool, variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Screen(terminal=on_terminal))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    terminal.setup(choice)
    assert (terminal.paint("differs ") == "\x1b[31mdiffers\x1b[0m ") is coloured
    assert terminal.paint("shop/no") == "shop/no", "only whole words"
    assert terminal.paint("-") == "-", "nothing is not bad"
    text = status.render(DOCUMENT, NOW)
    assert bool(ESCAPE.search(text)) is coloured
    terminal.setup("never")
    assert ESCAPE.sub("", text) == status.render(DOCUMENT, NOW), "colours move nothing"


def test_signs_of_a_plan_have_colours() -> None:
    changes = [change(action, "pod", "x", "y") for action in Action]
    lines = [*map(plan._line, changes)]
    assert lines == [*map(str, changes)]
    terminal.setup("always")
    painted = [*map(plan._line, changes)]
    assert len({line.partition("m")[0] for line in painted}) == 3
    assert [ESCAPE.sub("", line) for line in painted] == lines


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_status_and_plan_fit_and_leave_no_word_out(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    long = {**DOCUMENT, "problems": [{**DOCUMENT["problems"][0], "text": "a word " * 40}]}
    line = change(Action.ADD, "route", "default via fd00::1 dev eth0 table 1000001", "because " * 20)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = status.render(long, NOW)  # type: ignore[arg-type]
    planned = plan._line(line)
    assert max(map(len, (*shown.splitlines(), *planned.splitlines()))) <= columns
    for word in ("192.0.2.200", "unavailable", "2001:db8::1", "10.0.2.9/32", "public", "1000002"):
        assert word in shown
    assert shown.count("word") == 40
    assert planned.split() == str(line).split()


def test_what_is_no_terminal_gets_one_line_for_one_thing() -> None:
    assert terminal.wrapped("word " * 100, "  ").count("\n") == 0
    assert terminal.width() is None


ROWS = [("shop/web", "active", "-"), ("shop/other", "unavailable", "no node announces the address of the Service")]
HEADER = ("service", "state", "reason")


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (
            50,
            "SERVICE     STATE        REASON\n"
            "shop/web    active       -\n"
            "shop/other  unavailable  no node announces the\n"
            "                         address of the Service",
        ),
        (
            40,
            "SERVICE     STATE\n    REASON\nshop/web    active\nshop/other  unavailable\n"
            "    no node announces the address of the\n    Service",
        ),
        (
            22,
            "service: shop/web\n  state: active\nservice: shop/other\n  state: unavailable\n"
            "  reason: no node\n          announces\n          the address\n          of the\n          Service",
        ),
    ],
)
def test_a_table_that_does_not_fit_wraps_its_last_column_then_puts_it_below_then_becomes_a_list(
    width: int, shown: str
) -> None:
    assert table(ROWS, HEADER, width) == shown
