"""What followed from changes is compared with what comes out from scratch, told if it differs, and healed."""

from __future__ import annotations

import dataclasses
import threading

from metaleg_node.core.egress import survey
from metaleg_node.core.node_state import NodeState
from metaleg_node.reconcile.knowledge import Facts, Knowledge
from metaleg_node.reconcile.second_opinion import SecondOpinion
from tests.unit.builders import A, cluster, config, host

FACTS = Facts(host=host(survey.take(cluster(), config()), A), held={}, lost=False)


def test_a_fault_is_found_by_name_and_gone_once_everything_was_worked_out_anew() -> None:
    knowledge = Knowledge(config(), A, lambda _: set())
    state = cluster()
    assert knowledge.second_opinion() is None, "nothing was decided yet"
    known = knowledge.of(state)
    desired = knowledge.decide(known, FACTS, lambda _: {})
    assert (ask := knowledge.second_opinion()) is not None
    assert ask() == ""
    known.decided = dataclasses.replace(desired, state=NodeState(firewall=desired.state.firewall))
    assert (ask := knowledge.second_opinion()) is not None
    assert ask() == "rules, routes"
    knowledge.forget()
    assert knowledge.decide(knowledge.of(state), FACTS, lambda _: {}).state == desired.state


def test_one_comparison_at_a_time_and_only_a_difference_wakes() -> None:
    differed, begun, go_on = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
    answers = iter(["", "routes"])

    def compared() -> str:
        begun.release()
        go_on.acquire()
        return next(answers)

    opinion = SecondOpinion(differed.set)

    def ask() -> None:
        opinion.due = True
        opinion.ask(lambda: compared)

    opinion.ask(lambda: compared)
    assert not begun.acquire(blocking=False), "it is not due"
    ask()
    assert begun.acquire(timeout=10)
    ask()
    go_on.release()
    opinion.join()
    assert not differed.is_set()
    assert not begun.acquire(blocking=False), "the second one was not begun beside the first"
    ask()
    go_on.release()
    assert differed.wait(10)
    assert (opinion.found(), opinion.found()) == ("routes", "")


def test_a_comparison_that_fails_counts_as_a_difference() -> None:
    differed = threading.Event()

    def compared() -> str:
        raise ValueError("odd")

    opinion = SecondOpinion(differed.set)
    opinion.due = True
    opinion.ask(lambda: compared)
    assert differed.wait(10)
    assert opinion.found() == "an unexpected ValueError: odd"
