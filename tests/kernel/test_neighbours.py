"""The states of next hops are what the neighbour tables say."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from metaleg_node.kernel.netlink import neighbours
from tests.netns import Netns


@pytest.mark.parametrize("word", ["reachable", "stale", "probe", "failed", "noarp", "permanent"])
@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
def test_every_state_is_told(inside: Netns, address: str, word: str) -> None:
    hardware = [] if word == "failed" else ["lladdr", "02:00:00:00:00:01"]
    inside.run("ip", "neighbour", "add", address, "dev", "v0", *hardware, "nud", word)
    hop = ip_address(address), "v0"
    assert neighbours.states([hop]) == {hop: word}


@pytest.mark.usefixtures("inside")
def test_who_was_never_asked_for_and_who_cannot_be_is_unknown() -> None:
    hops = [(ip_address("10.9.0.77"), "v0"), (ip_address("fd09::77"), "v0"), (ip_address("10.9.0.2"), "gone")]
    assert neighbours.states(hops) == dict.fromkeys(hops, neighbours.UNKNOWN)
    assert neighbours.states([]) == {}


THERE = {"reachable", "stale", "probe", "noarp", "permanent"}


@pytest.mark.parametrize("word", ["reachable", "stale", "probe", "failed", "noarp", "permanent"])
@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
def test_the_link_layer_address_of_who_is_there_is_told(inside: Netns, address: str, word: str) -> None:
    hardware = [] if word == "failed" else ["lladdr", "02:00:00:00:00:01"]
    inside.run("ip", "neighbour", "add", address, "dev", "v0", *hardware, "nud", word)
    hop, other = (ip_address(address), "v0"), (ip_address(address), "gone")
    assert neighbours.link_addresses([hop, other]) == ({hop: "02:00:00:00:00:01"} if word in THERE else {})


@pytest.mark.parametrize("address", ["10.9.0.77", "fd09::77"])
@pytest.mark.parametrize("failed", [True, False])
def test_the_kernel_looks_for_who_is_sought(inside: Netns, address: str, failed: bool) -> None:
    if failed:
        inside.run("ip", "neighbour", "add", address, "dev", "v0", "nud", "failed")
    hop = ip_address(address), "v0"
    neighbours.seek([hop, (ip_address(address), "gone")])
    assert neighbours.states([hop]) == {hop: "incomplete"}
    neighbours.seek([])
