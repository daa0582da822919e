"""Sequences of objects from one time to the next: by identity, wherever in them something changed."""

from __future__ import annotations

import random

import pytest

from metaleg_node.core.increments import exchanged, remade


class Thing:
    """Known by itself."""


@pytest.mark.parametrize("seed", range(200))
def test_what_stays_keeps_its_result_and_only_what_is_new_is_made(seed: int) -> None:
    chance = random.Random(seed)
    before = [Thing() for _ in range(chance.randrange(8))]
    now = [one if chance.random() < 0.6 else Thing() for one in before]
    for change in chance.sample(("none", "more", "fewer", "order"), 2):
        if change == "more":
            now.insert(chance.randint(0, len(now)), Thing())
        elif change == "fewer" and now:
            del now[chance.randrange(len(now))]
        elif change == "order" and len(now) > 1:
            now[0], now[-1] = now[-1], now[0]
    made: list[Thing] = []

    def make(one: Thing) -> tuple[Thing]:
        made.append(one)
        return (one,)

    results = [make(one) for one in before]
    made.clear()
    found = remade(before, results, now, make)
    assert [one for (one,) in found] == now
    assert made == [one for one in now if one not in before]
    kept = {id(one): result for one, result in zip(before, results, strict=True)}
    assert all(kept[id(one)] is result for one, result in zip(now, found, strict=True) if id(one) in kept)
    assert exchanged(before, now) == ([one for one in before if one not in now], made)
