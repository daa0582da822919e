"""The namespaces of the tests are what every other kernel test stands on."""

from __future__ import annotations

import os
import threading

import pytest

from tests.netns import Netns


def _inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_a_namespace_has_loopback_up_and_nothing_else(netns: Netns) -> None:
    lines = netns.run("ip", "-brief", "link", "show", "up").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["lo"]


def test_inside_moves_the_thread_and_what_it_starts_and_brings_it_back(netns: Netns) -> None:
    home, seen = _inode(), []
    with netns.inside():
        thread = threading.Thread(target=lambda: seen.append(_inode()))
        thread.start()
        thread.join()
    there = int(netns.run("stat", "-L", "-c", "%i", "/proc/self/ns/net").stdout)
    assert (seen, _inode()) == ([there], home)


def test_a_failing_program_fails_the_test_with_its_output(netns: Netns) -> None:
    with pytest.raises(AssertionError, match="not-there"):
        netns.run("ip", "link", "show", "not-there")
    assert netns.run("false", check=False).returncode == 1
