"""The demo as a newcomer meets it: it is right, it leaves nothing, and it says what it needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from metaleg_node.lab import demo, namespaces
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.lab import Lab
from tests.netns import execute


def _labs_of(process_id: int) -> list[str]:
    names = execute("ip", "netns", "list").stdout.split()
    return [name for name in names if name.startswith(f"{namespaces.PREFIX}-{process_id}-")]


def test_the_demo_shows_the_right_sources_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.demo() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "192.0.2.200" in line and "2001:db8:2::200" in line and "node" in line]
    assert len([row for row in rows if row[-1].isdigit()]) == 4
    assert _labs_of(os.getpid()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["first step", "namespaces"])
def test_a_demo_that_is_interrupted_leaves_nothing(number: signal.Signals, after: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "metaleg_node", "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    if after == "first step":
        while not process.stdout.readline().startswith("* metaleg-node starts"):
            pass
    else:
        assert wait_until(lambda: _labs_of(process.pid) != [], 10)
    process.send_signal(number)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (1, "Stopped; everything is removed.\n")
    assert _labs_of(process.pid) == []


def test_without_root_the_demo_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert demo.demo() == 1
    assert "needs root" in capsys.readouterr().err


def test_the_demo_notices_a_wrong_source(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "_PATIENCE", 0.3)
    monkeypatch.setattr(Lab, "start_daemons", lambda _lab: None)
    assert demo.demo() == 1
    assert "NOT as it should be" in capsys.readouterr().out
