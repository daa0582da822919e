"""Ranges as the fewest networks, and what is left of them when others take some."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaleg_node.core.model import Address
from metaleg_node.core.networks import (
    Range,
    covering,
    merged_ranges,
    parse_address,
    parse_network,
    range_of,
    without,
)


def ranges(*texts: str) -> list[Range]:
    pairs = (text.split("-") for text in texts)
    return [(ip_address(pair[0]), ip_address(pair[-1])) for pair in pairs]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("fe80::1%eth0", "zone"),
        ("192.0.2.1/32", "prefix length"),
        ("::ffff:192.0.2.1", "IPv4 inside IPv6"),
        ("host", "^$"),
        ("192.0.2.01", "^$"),
        (" 192.0.2.1", "^$"),
        ("", "^$"),
    ],
)
def test_what_is_no_address(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("::ffff:10.0.0.0/104", "IPv4 inside IPv6"),
        ("::ffff:10.0.0.1", "IPv4 inside IPv6"),
        ("10.0.0.0/255.0.0.0", "^$"),
        ("10.0.0.0/33", "^$"),
        ("10.0.0.0/", "^$"),
        ("fe80::%eth0/64", "^$"),
        ("10.0.0.0/8\n", "^$"),
    ],
)
@pytest.mark.parametrize("of_object", [False, True])
def test_what_is_no_network_in_any_place(text: str, hint: str, of_object: bool) -> None:
    if of_object and "/" not in text:
        hint = "^$"
    with pytest.raises(ValueError, match=hint):
        parse_network(text, of_object=of_object)


def test_what_was_written_for_us_is_asked_about_and_what_others_take_is_taken_as_they_do() -> None:
    with pytest.raises(ValueError, match=r"host bits are set; did you mean 10\.0\.0\.0/8\?"):
        parse_network("10.0.0.1/8")
    assert parse_network("10.0.0.1/8", of_object=True) == ip_network("10.0.0.0/8")
    assert parse_network("2001:db8::1") == ip_network("2001:db8::1/128")
    with pytest.raises(ValueError, match=r"^$"):
        parse_network("2001:db8::1", of_object=True)


COVERS = {
    "one address": (["192.0.2.7"], ["192.0.2.7/32"]),
    "a whole network": (["192.0.2.0-192.0.2.255"], ["192.0.2.0/24"]),
    "a range that is no network": (
        ["192.0.2.100-192.0.2.110"],
        ["192.0.2.100/30", "192.0.2.104/30", "192.0.2.108/31", "192.0.2.110/32"],
    ),
    "N2 IPv6 as IPv4": (["2001:db8::1-2001:db8::4"], ["2001:db8::1/128", "2001:db8::2/127", "2001:db8::4/128"]),
    "overlaps": (["192.0.2.0-192.0.2.200", "192.0.2.100-192.0.2.255"], ["192.0.2.0/24"]),
    "neighbours": (["192.0.2.128-192.0.2.255", "192.0.2.0-192.0.2.127"], ["192.0.2.0/24"]),
    "one inside another": (["192.0.2.0-192.0.2.255", "192.0.2.7"], ["192.0.2.0/24"]),
    "both ends of the space": (["0.0.0.0", "255.255.255.255", "::"], ["0.0.0.0/32", "255.255.255.255/32", "::/128"]),
    "families that touch as numbers": (["255.255.255.255", "::1:0:0"], ["255.255.255.255/32", "::1:0:0/128"]),
    "nothing": ([], []),
}


@pytest.mark.parametrize("name", COVERS)
def test_the_fewest_networks_that_cover_exactly_the_ranges(name: str) -> None:
    given_, wanted = COVERS[name]
    assert covering(ranges(*given_)) == frozenset(map(ip_network, wanted))


REMAINDERS = {
    "the middle": (["10.0.0.0-10.0.0.9"], ["10.0.0.3-10.0.0.5"], ["10.0.0.0-10.0.0.2", "10.0.0.6-10.0.0.9"]),
    "the beginning": (["10.0.0.0-10.0.0.9"], ["9.0.0.0-10.0.0.5"], ["10.0.0.6-10.0.0.9"]),
    "the end": (["10.0.0.0-10.0.0.9"], ["10.0.0.5-11.0.0.0"], ["10.0.0.0-10.0.0.4"]),
    "all": (["10.0.0.0-10.0.0.9"], ["10.0.0.0-10.0.0.9"], []),
    "nothing": (["10.0.0.0-10.0.0.9"], ["10.0.0.10-10.0.0.20", "::-::ffff:ffff:ffff"], ["10.0.0.0-10.0.0.9"]),
    "the end of the space": (["255.255.255.0-255.255.255.255"], ["255.255.255.255"], ["255.255.255.0-255.255.255.254"]),
}


@pytest.mark.parametrize("name", REMAINDERS)
def test_what_is_left(name: str) -> None:
    given_, taken, wanted = REMAINDERS[name]
    assert without(ranges(*given_), ranges(*taken)) == tuple(ranges(*wanted))


def small_ranges() -> st.SearchStrategy[list[Range]]:
    bases: tuple[Address, Address] = ip_address("10.0.0.0"), ip_address("2001:db8::")
    pair = st.tuples(st.sampled_from(bases), st.integers(0, 40), st.integers(0, 12))
    return st.lists(pair.map(lambda p: (p[0] + p[1], p[0] + p[1] + p[2])), max_size=6)


def members(found: list[Range] | tuple[Range, ...]) -> set[Address]:
    return {first + n for first, last in found for n in range(int(last) - int(first) + 1)}


@given(one=small_ranges(), other=small_ranges())
def test_ranges_are_sets_of_addresses(one: list[Range], other: list[Range]) -> None:
    assert members(merged_ranges(one)) == members(one)
    assert members(without(one, other)) == members(one) - members(other)
    networks = covering(one)
    assert members([range_of(network) for network in networks]) == members(one)
    assert sum(network.num_addresses for network in networks) == len(members(one))
