"""What owners of Services are told: each change once, by one node."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from metaleg_node.core.egress.news import Key, Kind, Standing, news, standings
from metaleg_node.core.model import ClusterState, NodeName
from metaleg_node.core.problems import Code
from tests.unit.builders import announced, cluster, decide, node, service

NAMES = ("a", "b", "c")
HELD = cluster(announcements=[])


def at(gateway: str) -> ClusterState:
    return cluster(announcements=[announced(gateway)])


def told(states: Sequence[ClusterState]) -> list[tuple[int, str, str, str, str]]:
    """Each state in turn on every node: number of the state, who tells, type, reason and message."""
    found = []
    for name in NAMES:
        me = NodeName(name)
        before: dict[Key, Standing] | None = None
        for number, state in enumerate(states):
            now = standings(decide(state, me).services, before, me)
            found += [
                (number, name, one.kind.value, one.reason, one.text) for one in news(before, now, me, state.nodes)
            ]
            before = now
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


def test_a_text_that_says_it_otherwise_is_no_news() -> None:
    standing = Standing(gateway=None, source=None, held=Code.NO_GATEWAY, text="one", former=None)
    key = (service().ref, decide(HELD, NodeName("a")).services[0].service.family)
    again = {key: Standing(gateway=None, source=None, held=Code.NO_GATEWAY, text="two", former=None)}
    assert list(news({key: standing}, again, NodeName("a"), HELD.nodes)) == []


@pytest.mark.parametrize("code", Code)
def test_reasons_are_one_word(code: Code) -> None:
    standing = Standing(gateway=None, source=None, held=code, text="", former=None)
    (one,) = news(
        None,
        {(service().ref, decide(HELD, NodeName("a")).services[0].service.family): standing},
        NodeName("a"),
        HELD.nodes,
    )
    assert one.kind is Kind.WARNING
    assert one.reason.isalpha()
