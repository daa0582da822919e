"""Slots stay with their gateways."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from metaleg_node.core import slots
from metaleg_node.core.model import NextHop, NodeName, Route, Slot
from tests.unit.builders import A, B, C, addresses, node


def held(**names: NodeName) -> dict[Slot, NodeName]:
    """`s1=A` reads: slot 1 is held by a."""
    return {Slot(int(slot[1:])): name for slot, name in names.items()}


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
        (held(s1=NodeName("")), [A], {A: 2}),
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
def test_who_gets_which_slot(before: dict[Slot, NodeName], wanted: list[NodeName], expected: dict[str, int]) -> None:
    assert slots.assign(before, wanted, slots=4) == expected


def test_a_former_holders_slot_is_taken_when_nothing_else_is_left() -> None:
    assert slots.assign(held(s1=A, s2=B), [B, C], slots=2) == {B: 2, C: 1}


def test_F45_64_gateways_for_63_slots_leave_the_last_one_out_and_holders_in() -> None:
    names = [NodeName(f"n{i}") for i in range(64)]
    granted = slots.assign({}, names, slots=63)
    assert granted == {name: i + 1 for i, name in enumerate(names[:63])}
    last = {Slot(1): names[63]}
    again = slots.assign(last, names, slots=63)
    assert again[names[63]] == 1
    assert names[62] not in again


def test_where_the_packet_filter_is_lost_the_routes_tell_the_holders() -> None:
    def route(table: int, gateway: str) -> Route:
        hop = NextHop(gateway=addresses([gateway])[0], interface="eth0")
        return Route(table=table, destination=ip_network("0.0.0.0/0"), metric=0, next_hops=(hop,))

    unreachable = Route(table=1000005, destination=ip_network("0.0.0.0/0"), metric=9)
    routes = [route(1000003, "10.0.0.2"), route(1000004, "10.0.0.77"), route(20, "10.0.0.1"), unreachable]
    assert slots.held_by_routes(routes, [node("a"), node("b")], 1000000) == {3: B}
