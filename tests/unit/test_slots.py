"""Slots stay with their gateways."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from metaleg_node.core import slots
from metaleg_node.core.model import Holder, HolderKind, NextHop, Route, RouteType, Routing, Rule, Slot
from metaleg_node.core.slots import Claim
from tests.unit.builders import addresses

A, B, C = (Holder(kind=HolderKind.NODE, name=name) for name in "abc")
MASK, BASE = 0x3F000000, 1000000


def held(**holders: Holder) -> dict[Slot, Holder]:
    """`s1=A` reads: slot 1 is held by a."""
    return {Slot(int(slot[1:])): holder for slot, holder in holders.items()}


@pytest.mark.parametrize(
    ("mask", "expected"), [(0x3F000000, 63), (0xFF, 63), (0x1, 1), (0xF0, 15), (0xFFFFFFFF, 63), (0x80000000, 1)]
)
def test_a_mask_has_a_slot_for_each_value_but_zero_and_never_more_than_63(mask: int, expected: int) -> None:
    assert slots.count(mask) == expected


@pytest.mark.parametrize(
    ("before", "wanted", "expected"),
    [
        ({}, [B, A], {B: 1, A: 2}),
        ({}, [A, A, B], {A: 1, B: 2}),
        (held(s3=A), [B, A], {A: 3, B: 1}),
        (held(s1=A), [B], {B: 2}),
        (held(s1=A, s2=B), [C], {C: 3}),
        (held(s1=C, s2=A, s3=B), [C], {C: 1}),
        (held(s1=A, s2=A), [A], {A: 1}),
        (held(s9=A), [A], {A: 1}),
        (held(s1=Holder.read("")), [A], {A: 2}),
    ],
    ids=[
        "in the order wanted",
        "wanted twice",
        "holder keeps",
        "a former holder's slot is spared",
        "slots never held first",
        "those not wanted lose theirs",
        "one of two",
        "beyond the mask",
        "lost name",
    ],
)
def test_who_gets_which_slot(before: dict[Slot, Holder], wanted: list[Holder], expected: dict[Holder, Slot]) -> None:
    assert slots.assign(before, wanted, slots=4) == expected


def test_a_former_holders_slot_is_taken_when_nothing_else_is_left() -> None:
    assert slots.assign(held(s1=A, s2=B), [B, C], slots=2) == {B: 2, C: 1}


@pytest.mark.parametrize(
    ("before", "wanted", "yielding", "expected"),
    [
        ({}, [A], [B, C], {A: 1, B: 2}),
        (held(s1=B, s2=C), [A], [B], {A: 2, B: 1}),
        (held(s1=B, s2=C), [A], [B, C], {A: 1, C: 2}),
        (held(s1=B, s2=A), [A], [B], {A: 2, B: 1}),
        (held(s1=C), [A, B], [C], {A: 2, B: 1}),
    ],
    ids=["what is left", "the free one first", "the holder of one yields", "both keep theirs", "none is left"],
)
def test_who_yields_gets_what_is_left(
    before: dict[Slot, Holder], wanted: list[Holder], yielding: list[Holder], expected: dict[Holder, Slot]
) -> None:
    assert slots.assign(before, wanted, yielding=yielding, slots=2) == expected


def test_F45_64_gateways_for_63_slots_leave_the_last_one_out_and_holders_in() -> None:
    names = [Holder.read(f"n{i}") for i in range(64)]
    granted = slots.assign({}, names, slots=63)
    assert granted == {name: i + 1 for i, name in enumerate(names[:63])}
    last = {Slot(1): names[63]}
    again = slots.assign(last, names, slots=63)
    assert again[names[63]] == 1
    assert names[62] not in again


# --- where the packet filter is lost ---------------------------------------------------------------------------------


def table(number: int, *gateways: str, closed: bool = True) -> set[Route]:
    """A table with a default route through these, and an unreachable one when it is closed."""
    everywhere = ip_network("0.0.0.0/0")
    hops = tuple(NextHop(gateway=gateway, interface="eth0") for gateway in addresses(gateways))
    end = Route(table=number, destination=everywhere, type=RouteType.UNREACHABLE, metric=9)
    return {Route(table=number, destination=everywhere, metric=0, next_hops=hops), *([end] if closed else [])}


def router_table(number: int, gateway: str) -> set[Route]:
    """A table that leads to one router, and to both when that is gone."""
    both = table(number, "10.1.0.1", "10.1.0.2", closed=False)
    return table(number, gateway, closed=False) | {replace(route, metric=slots.SPARE_METRIC) for route in both}


def tunnel_table(number: int, interface: str) -> set[Route]:
    """A closed table whose default route has no next hop."""
    hops = (NextHop(gateway=None, interface=interface),)
    return {replace(route, next_hops=hops) if route.next_hops else route for route in table(number, "10.0.0.9")}


def claim(text: str, *gateways: str, **more: Any) -> Claim:
    return Claim(holder=Holder.read(text), gateways=frozenset(addresses(gateways)), **more)


CLAIMS = [
    claim("path:public", "10.1.0.1", closed=False),
    claim("path::bgp", "10.0.0.8", "10.0.0.9", closed=False, table=20),
    claim("b", "10.0.0.2", "fd00::2"),
    claim("c", "10.0.0.3", tunnels=frozenset({"tun-c"})),
    claim("egress:public", "10.1.0.1"),
    claim("router:public:10.1.0.1", "10.1.0.1", closed=False, spare=True),
    claim("router:public:10.1.0.2", "10.1.0.2", closed=False, spare=True),
]
RULE = Rule(family=4, priority=20, table=20, mark=6 << 24, mask=MASK)
LOST: dict[str, tuple[set[Route], set[Rule], dict[int, str]]] = {
    "a gateway by its InternalIP": (table(BASE + 3, "10.0.0.2"), set(), {3: "b"}),
    "a gateway by its tunnel": (tunnel_table(BASE + 3, "tun-c"), set(), {3: "c"}),
    "nobody's tunnel": (tunnel_table(BASE + 3, "tun-x"), set(), {}),
    "nobody's": (table(BASE + 4, "10.0.0.77"), set(), {}),
    "a table below ours": (table(30, "10.0.0.2"), set(), {}),
    "a path and its exit, of which one is closed": (
        table(BASE + 1, "10.1.0.1") | table(BASE + 2, "10.1.0.1", closed=False),
        set(),
        {1: "egress:public", 2: "path:public"},
    ),
    "a path with a fixed table, by its mark": (
        table(20, "10.0.0.9", closed=False),
        {RULE},
        {6: "path::bgp"},
    ),
    "that table without its rule": (table(20, "10.0.0.9", closed=False), set(), {}),
    "routers of a path, each by the first of its ways": (
        router_table(BASE + 2, "10.1.0.2")
        | router_table(BASE + 4, "10.1.0.1")
        | table(BASE + 7, "10.1.0.1", closed=False),
        set(),
        {2: "router:public:10.1.0.2", 4: "router:public:10.1.0.1", 7: "path:public"},
    ),
    "the first of two tables": (table(BASE + 5, "10.0.0.3") | table(BASE + 6, "10.0.0.3"), set(), {5: "c"}),
}


@pytest.mark.parametrize("name", LOST)
def test_where_the_packet_filter_is_lost_rules_and_routes_tell_the_holders(name: str) -> None:
    routes, rules, expected = LOST[name]
    routing = Routing(routes=frozenset(routes), rules=frozenset(rules))
    found = slots.read_back(routing, CLAIMS, MASK, BASE)
    assert {slot: str(holder) for slot, holder in found.items()} == expected


@pytest.mark.parametrize("text", ["node-a", "path:public", "path::bgp", "egress:public", "router::bgp:fd00::8"])
def test_a_holder_is_read_from_its_text(text: str) -> None:
    assert str(Holder.read(text)) == text
    assert (Holder.read(text).kind is HolderKind.NODE) is (":" not in text)
