"""What the status says of a plan, and the line that `systemctl status` shows."""

from __future__ import annotations

import pytest

from metaleg_node.core.assembly import Desired
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon.cluster_source import Freshness
from metaleg_node.daemon.report import services, shown, status_line
from metaleg_node.daemon.status import SourceStatus
from metaleg_node.reconcile.reconciler import Plan
from tests.unit.builders import A, announced, cluster, decide

PLAN = Plan(desired=Desired(state=NodeState()), steps=())


@pytest.mark.parametrize(
    ("plan", "freshness", "problems", "line"),
    [
        (None, Freshness.WAITING, (), "waiting for the state file (/s.yaml)"),
        (None, Freshness.WAITING, ("gone",), "waiting for the state file (/s.yaml); 1 problem: gone"),
        (PLAN, Freshness.WAITING, (), "waiting for the state file (/s.yaml)"),
        (None, Freshness.LIVE, ("no nft",), "nothing is applied yet; 1 problem: no nft"),
        (PLAN, Freshness.LIVE, (), "0 services, 0 pod addresses"),
        (PLAN, Freshness.STALE, ("a", "b"), "0 services, 0 pod addresses; 2 problems: a; b"),
    ],
)
def test_the_status_line_says_what_there_is_or_what_is_missing(
    plan: Plan | None, freshness: Freshness, problems: tuple[str, ...], line: str
) -> None:
    source = SourceStatus(kind="state file", place="/s.yaml", state=freshness.value, since=None, missing=[])
    assert status_line(plan, source, [Problem(code=Code.SOURCE, text=text) for text in problems]) == line


def test_F3_a_service_that_two_nodes_announce_says_so() -> None:
    for said, reason in (
        ([announced("b")], ""),
        (
            [announced("b", since="2024-06-01T00:00:00Z"), announced("c")],
            "b announces it (ServiceL2Status metallb-system/l2-status-b), preferred to c",
        ),
    ):
        reports = decide(cluster(announcements=said), A).services
        (shown,) = services(Plan(desired=Desired(state=NodeState(), services=reports), steps=()))
        assert (shown["state"], shown["gateway"], shown["reason"]) == ("active", "b", reason)


def test_of_very_many_problems_of_one_kind_the_first_are_told_and_the_number_of_the_others() -> None:
    many = [Problem(code=Code.OBJECT_NOT_USED, subject=f"Pod a/{number}", text="bad") for number in range(25)]
    other = Problem(code=Code.LISTEN, text="in use")
    *first, rest = shown([*many, other])
    assert first == [*many[:20], other]
    assert (rest.code, "and 5 more" in rest.text) == (Code.OBJECT_NOT_USED, True)
