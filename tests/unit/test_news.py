"""What owners of Services are told: each change once, by one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from metaleg_node.core.egress.news import Followed, Kind
from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.model import ClusterState, NodeName
from metaleg_node.core.problems import Code
from tests.unit.builders import announced, cluster, decide, node, service

NAMES = ("a", "b", "c")
HELD = cluster(announcements=[])
NODES = HELD.nodes
ME, B = NodeName("a"), NodeName("b")


def at(gateway: str) -> ClusterState:
    return cluster(announcements=[announced(gateway)])


def told(states: Sequence[ClusterState]) -> list[tuple[int, str, str, str, str]]:
    """Each state in turn on every node: number of the state, who tells, type, reason and message."""
    found = []
    for name in NAMES:
        me = NodeName(name)
        followed = Followed()
        for number, state in enumerate(states):
            followed, new = followed.then(decide(state, me).services, me, state.nodes)
            found += [(number, name, one.kind.value, one.reason, one.text) for one in new]
    return sorted(found)


def test_a_start_tells_only_what_is_held() -> None:
    assert told([at("b")]) == []
    (one,) = told([HELD])
    assert one[:4] == (0, "a", "Warning", "EgressNoGateway")
    assert one[4].startswith("IPv4 egress is held: ")
    assert one[4].endswith("[no-gateway]")


def test_each_change_is_told_once_by_the_gateways_node() -> None:
    found = told([cluster(services=[]), at("b"), at("b"), at("c"), HELD, HELD, at("c"), HELD, at("a")])
    assert [one[:4] for one in found] == [
        (1, "b", "Normal", "EgressStarted"),
        (3, "c", "Normal", "EgressMoved"),
        (4, "a", "Warning", "EgressNoGateway"),
        (6, "c", "Normal", "EgressResumed"),
        (7, "a", "Warning", "EgressNoGateway"),
        (8, "a", "Normal", "EgressMoved"),
    ]
    assert found[1][4] == "IPv4 egress as 192.0.2.200 moved from node b to c"
    assert found[-1][4] == "IPv4 egress as 192.0.2.200 moved from node c to a"


def test_a_node_that_is_not_ready_is_not_the_one_that_tells() -> None:
    state = cluster(announcements=[], nodes=[node("a", ready=False), node("b"), node("c")])
    assert [one[1] for one in told([state])] == ["b"]


def held(decision: ServiceDecision, **obstacle: Any) -> ServiceDecision:
    """The same Service, held for another reason."""
    assert decision.service.obstacle
    return replace(decision, service=replace(decision.service, obstacle=replace(decision.service.obstacle, **obstacle)))


def test_a_text_that_says_it_otherwise_is_no_news() -> None:
    decisions = decide(HELD, ME).services
    followed, first = Followed().then(decisions, ME, HELD.nodes)
    assert len(first) == 1
    assert followed.then([held(one, detail="two") for one in decisions], ME, HELD.nodes)[1] == []


def test_only_what_was_decided_anew_is_looked_at() -> None:
    one, other, new = (
        decide(cluster(services=[service(name)], announcements=[announced("a", service=name)]), ME).services[0]
        for name in ("one", "other", "new")
    )
    followed, _ = Followed().then([one, other], ME, NODES)
    followed, told = followed.then([one, other, new], ME, NODES)
    assert [news.service.name for news in told] == ["new"]
    assert followed.then([one, other, new], ME, NODES)[1] == []
    moved = decide(cluster(services=[service("other")], announcements=[announced("b", service="other")]), B).services[0]
    gone, _ = followed.then([new], ME, NODES)
    assert [news.reason for news in gone.then([one, new], ME, NODES)[1]] == ["EgressStarted"]
    (moving,) = followed.then([one, moved, new], B, NODES)[1]
    assert (moving.reason, moving.text.split()[-5:]) == ("EgressMoved", ["from", "node", "a", "to", "b"])


@pytest.mark.parametrize("code", Code)
def test_reasons_are_one_word(code: Code) -> None:
    decisions = [held(one, code=code) for one in decide(HELD, ME).services]
    (one,) = Followed().then(decisions, ME, HELD.nodes)[1]
    assert one.kind is Kind.WARNING
    assert one.reason.isalpha()
