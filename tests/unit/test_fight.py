"""Who undoes what is ours again and again slows repairs down, and is told."""

from __future__ import annotations

from metaleg_node.core.changes import Action, change
from metaleg_node.core.problems import Code
from metaleg_node.daemon.fight import Fight

CHANGE = change(Action.ADD, "rule", "IPv4 priority 4700 lookup 1000001")


def fought(rounds: int, every: float) -> tuple[Fight, float]:
    """The fight, and the time of its last repair."""
    fight = Fight()
    times = [100 + every * number for number in range(rounds)]
    for now in times:
        fight.repaired([CHANGE], now)
    return fight, times[-1]


def test_nine_repairs_in_a_row_are_none() -> None:
    fight, now = fought(9, 0.1)
    assert (fight.pause(now), fight.problems(now)) == (0, ())


def test_after_ten_in_a_row_the_next_waits_until_a_second_has_passed_and_it_is_told() -> None:
    fight, now = fought(10, 0.1)
    assert fight.pause(now) == 1
    assert abs(fight.pause(now + 0.75) - 0.25) < 1e-9
    assert fight.pause(now + 1.1) <= 0
    (problem,) = fight.problems(now)
    assert problem.code is Code.UNDONE
    assert "IPv4 priority 4700 lookup 1000001" in problem.text


def test_the_slow_pace_does_not_end_it() -> None:
    fight, now = fought(30, 1.3)
    assert fight.pause(now) == 1
    assert fight.problems(now)


def test_repairs_that_are_apart_are_none() -> None:
    fight, now = fought(30, 2.5)
    assert (fight.pause(now), fight.problems(now)) == (0, ())


def test_it_is_over_when_nothing_more_comes() -> None:
    fight, now = fought(20, 0.1)
    assert fight.problems(now + 3) == ()
    fight.repaired([CHANGE], now + 3)
    assert (fight.pause(now + 3), fight.problems(now + 3)) == (0, ())


def test_different_things_in_a_row_are_none() -> None:
    fight = Fight()
    for number in range(30):
        fight.repaired([change(Action.ADD, "rule", number)], 100 + number / 10)
    assert (fight.pause(103), fight.problems(103)) == (0, ())


def test_two_things_in_turn_are_one() -> None:
    fight = Fight()
    for number in range(20):
        fight.repaired([change(Action.ADD, "rule", number % 2)], 100 + number / 10)
    (problem,) = fight.problems(102)
    assert "0 and 1 more" in problem.text
