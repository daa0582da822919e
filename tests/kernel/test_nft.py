"""Scripts carried out by the library and by the program: both the same, on the real kernel."""

from __future__ import annotations

import logging
import os

import pytest

from metaleg_node.kernel.nftables import nft
from metaleg_node.kernel.nftables.nft import Nft, by_program
from tests.netns import Netns

GOOD = "add table inet t\nadd set inet t s { type ipv4_addr; }\nadd element inet t s { 192.0.2.1 }\n"
REFUSED = {
    "by nft": "add table inet u\nadd element inet t s { 192.0.2.300 }\n",
    "by the kernel": "add table inet u\ndelete element inet t s { 192.0.2.7 }\n",
    "nothing of that name": "add table inet u\nadd element inet t x { 192.0.2.1 }\n",
}


def listed(netns: Netns) -> str:
    return netns.run("nft", "list", "ruleset").stdout


def test_the_library_does_what_the_program_does_and_starts_nothing(
    inside: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_program(GOOD) is None
    by_the_program = listed(inside)
    inside.run("nft", "flush", "ruleset")
    ours = Nft()
    with monkeypatch.context() as alone:
        alone.setattr(nft, "by_program", pytest.fail)
        assert ours.complaint(GOOD) is None
    assert listed(inside) == by_the_program


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_as_a_whole_and_told_in_the_same_words(inside: Netns, name: str) -> None:
    ours = Nft()
    assert ours.complaint(GOOD) is None
    told = ours.complaint(REFUSED[name])
    by_the_program = by_program(REFUSED[name])
    assert told
    assert told == by_the_program
    assert "table inet u" not in listed(inside)
    assert ours.complaint("add element inet t s { 192.0.2.2 }\n") is None


@pytest.mark.usefixtures("inside")
def test_a_large_script_is_left_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, scripts = Nft(), list[str]()
    assert ours.complaint(GOOD) is None
    many = "".join(f"add element inet t s {{ 10.0.{n >> 8}.{n & 255} }}\n" for n in range(2000))
    monkeypatch.setattr(nft, "by_program", scripts.append)
    assert ours.complaint(many) is None
    assert scripts == [many]


def test_without_the_library_there_is_the_program(
    inside: Netns, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(nft, "_LIBRARY", "libnftables-of-nowhere.so.1")
    ours = Nft()
    assert ours.complaint(GOOD) is None
    assert ours.complaint("add table inet second\n") is None
    assert "table inet second" in listed(inside)
    assert len([r for r in caplog.records if "libnftables-of-nowhere" in r.getMessage()]) == 1


@pytest.mark.usefixtures("inside")
def test_what_is_kept_open_is_closed_with_it() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours = Nft()
    assert ours.complaint(GOOD) is None
    assert len(os.listdir("/proc/self/fd")) > before
    del ours
    assert len(os.listdir("/proc/self/fd")) == before
