"""What the status says of a plan, and the line that `systemctl status` shows."""

from __future__ import annotations

import json
import operator
from dataclasses import replace

import pytest

from metaleg_node.core.assembly import Desired
from metaleg_node.core.model import Service
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon.cluster_source import Freshness
from metaleg_node.daemon.report import ServiceEntries, in_short, problem_list, problems, shown, status_line
from metaleg_node.daemon.status import SourceStatus
from metaleg_node.reconcile.reconciler import Plan
from tests.unit.builders import A, announced, cluster, decide, service

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
        listed = ServiceEntries().of(Plan(desired=Desired(state=NodeState(), services=reports), steps=()))
        (shown,) = map(json.loads, listed.entries)
        assert (shown["state"], shown["gateway"], shown["reason"]) == ("active", "b", reason)


def test_the_entry_of_a_service_is_made_anew_only_when_something_else_was_decided() -> None:
    def planned(*services: Service) -> Plan:
        return Plan(desired=decide(cluster(services=services), A), steps=())

    entries, services = ServiceEntries(), [service(f"s{number}") for number in range(3)]
    plan = planned(*services)
    first = entries.of(plan).entries
    assert all(map(operator.is_, entries.of(plan).entries, first))
    less = replace(plan, desired=replace(plan.desired, services=plan.desired.services[1:]))
    assert all(map(operator.is_, entries.of(less).entries, first[1:]))
    other = planned(services[0], service("s1", ingress=()), services[2])
    assert entries.of(other) == ServiceEntries().of(other)
    assert entries.of(PLAN).entries == []


def test_of_very_many_problems_of_one_kind_the_first_are_told_and_the_number_of_the_others() -> None:
    many = [Problem(code=Code.OBJECT_NOT_USED, subject=f"Pod a/{number}", text="bad") for number in range(25)]
    other = Problem(code=Code.LISTEN, text="in use")
    *first, rest = shown([*many, other])
    assert first == [*many[:20], other]
    assert (rest.code, "and 5 more" in rest.text) == (Code.OBJECT_NOT_USED, True)


def test_5000_sick_services_are_counted_and_not_written_one_by_one() -> None:
    sick = [service(f"s{number}", ingress=()) for number in range(5000)]
    found = decide(cluster(services=[service(), *sick]), A)
    plan = Plan(desired=found, steps=())
    listed, unlisted = ServiceEntries().of(plan)
    assert [json.loads(one)["state"] for one in listed] == [*["unavailable"] * 20, "active"]
    assert unlisted == {"no-address": 4980}
    told = [*problems(plan)]
    assert len(told) == 5000
    assert len(json.dumps([listed, problem_list(shown(told))])) < 20_000
    source = SourceStatus(kind="state file", place="/s.yaml", state="live", since=None, missing=[])
    line = status_line(plan, source, told)
    assert "5000 problems: " in line
    assert line.endswith("; and 4995 more")
    assert len(line) < 1000


def test_the_worst_comes_first_in_the_status_line_and_notes_do_not_come() -> None:
    told = [Problem(code=code, text=code) for code in (Code.NO_EFFECT, Code.NO_ADDRESS, Code.KERNEL)]
    source = SourceStatus(kind="state file", place="/s.yaml", state="live", since=None, missing=[])
    assert status_line(PLAN, source, told) == "0 services, 0 pod addresses; 2 problems: kernel; no-address"
    assert status_line(PLAN, source, told[:1]) == "0 services, 0 pod addresses"


def test_a_path_with_a_thousand_notes_has_a_short_reason() -> None:
    assert in_short(["a", "b"]) == "a; b"
    assert in_short([*map(str, range(1000))]) == "0; 1; 2; 3; 4; and 995 more"
