"""When what failed is tried again, with a clock that stands still."""

from __future__ import annotations

import random
import time

import pytest

from metaleg_node.core.changes import Action, Change, change
from metaleg_node.core.model import ClusterState
from metaleg_node.daemon.backoff import Backoff


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(random, "uniform", lambda _low, _high: 1.0)
    return clock


def rule(name: str) -> Change:
    return change(Action.ADD, "rule", name)


A, B = rule("a"), rule("b")


def test_what_never_failed_waits_for_nothing() -> None:
    assert (Backoff().before_plan(ClusterState()), Backoff().before_apply([A])) == (0, 0)


def test_each_failure_doubles_the_pause_up_to_a_minute(clock: Clock) -> None:
    tried = Backoff()
    pauses = []
    for _ in range(8):
        pauses.append(tried.failed(undone=[A]))
        clock.now += pauses[-1]
        assert tried.before_apply([A]) == 0
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    tried.over()
    assert tried.failed(undone=[A]) == 1


def test_what_is_new_waits_for_a_second_after_a_failure_only(clock: Clock) -> None:
    tried = Backoff()
    for _ in range(4):
        tried.failed(undone=[A, B])
    for old in ([A], [B], [A, B], []):
        assert tried.before_apply(old) == 8
    assert tried.before_apply([A, rule("c")]) == 1
    clock.now += 1
    assert tried.before_apply([A, rule("c")]) == 0
    assert tried.before_apply([A]) == 7


def test_what_could_not_be_planned_is_not_planned_again_until_the_cluster_is_another_one(clock: Clock) -> None:
    tried, state = Backoff(), ClusterState()
    for _ in range(4):
        tried.failed(state=state)
    assert tried.before_plan(state) == 8
    assert tried.before_plan(ClusterState()) == 1
    clock.now += 1
    assert tried.before_plan(ClusterState()) == 0
    tried.failed(undone=[A])
    assert tried.before_plan(state) == 0
