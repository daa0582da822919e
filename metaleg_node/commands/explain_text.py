"""An explanation as people and programs read it. The document's form is in docs/explain.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Literal, TypedDict

from metaleg_node import terminal
from metaleg_node.core.explain.answer import Answer, Place, Step
from metaleg_node.core.explain.situation import Situation
from metaleg_node.core.problems import Problem
from metaleg_node.daemon.report import problem_list
from metaleg_node.daemon.status import ProblemStatus
from metaleg_node.text import printable


class State(TypedDict):
    """What the answer rests on. `since` is set when it is the last known state, `problem` then says why."""

    place: str
    since: str | None
    problem: str


class StepDocument(TypedDict):
    """See `core.explain.answer.Step`."""

    name: str
    text: str
    rule: str
    kernel: Literal["same", "differs", "?"] | None


class NodeDocument(TypedDict):
    """What happens on a node; what one that is not `asked` does is worked out."""

    node: str
    role: str
    asked: bool
    steps: list[StepDocument]


class AnswerDocument(TypedDict):
    """See `core.explain.answer.Answer`."""

    subject: str
    ok: bool
    verdict: str
    kernel: Literal["same", "differs", "?"] | None
    text: str
    source: str | None
    gateway: str | None
    nodes: list[NodeDocument]
    why_not: ProblemStatus | None
    look_at: str
    problems: list[ProblemStatus]
    connections: list[str]


class ExplainDocument(TypedDict):
    """What `explain --json` prints."""

    version: Literal[1]
    node: str
    state: State
    target: str
    to: str | None
    answers: list[AnswerDocument]


def document(
    target: str, to: str | None, situation: Situation, answers: Iterable[Answer], state: State
) -> ExplainDocument:
    """For programs."""
    return ExplainDocument(
        version=1,
        node=situation.me,
        state=state,
        target=target,
        to=to,
        answers=[_answer(answer) for answer in answers],
    )


def _answer(answer: Answer) -> AnswerDocument:
    return AnswerDocument(
        subject=answer.subject,
        ok=answer.ok,
        verdict=answer.verdict.value,
        kernel=answer.kernel.value if answer.kernel else None,
        text=answer.sentence,
        source=str(answer.source) if answer.source else None,
        gateway=answer.gateway or None,
        nodes=[
            NodeDocument(node=place.node, role=place.role, asked=place.asked, steps=[*map(_step, place.steps)])
            for place in answer.places
        ],
        why_not=next(iter(problem_list([answer.why_not])), None) if answer.why_not else None,
        look_at=answer.look_at,
        problems=problem_list(answer.problems),
        connections=list(answer.connections),
    )


def _step(step: Step) -> StepDocument:
    return StepDocument(
        name=step.name, text=step.text, rule=step.rule, kernel=step.kernel.value if step.kernel else None
    )


# --- for people ------------------------------------------------------------------------------------------------------

_KERNEL, _NAME = len("differs"), len("destination")


def render(answers: Iterable[Answer], situation: Situation) -> str:
    """For a terminal: the answers, an empty line between them; no newline at the end."""
    return "\n\n".join("\n".join(_lines(answer, situation)) for answer in answers)


def _lines(answer: Answer, situation: Situation) -> Iterator[str]:
    yield terminal.bold(terminal.wrapped(printable(answer.sentence)))
    numbers = count(1)
    for place in answer.places:
        yield f"  {printable(place.node)}" + (f", {place.role}" if place.role else "")
        yield from _place(place, numbers)
    if answer.why_not:
        yield from _also("why not", [_problem(answer.why_not)])
    if answer.look_at:
        yield from _also("look at", [answer.look_at])
    yield from _also("wrong here", map(_problem, answer.problems))
    if answer.kernel and situation.kernel.unread:
        yield from _also("not seen", [situation.kernel.unread])
    if answer.kernel:
        yield from _also("changed by others", situation.kernel.damage)
    yield from _also("connections", answer.connections)


def _place(place: Place, numbers: Iterator[int]) -> Iterator[str]:
    for step in place.steps:
        kernel = terminal.paint(f"{step.kernel or '':<{_KERNEL}}")
        head = f"  {next(numbers):>3} {kernel} {step.name:<{_NAME}} "
        indent = " " * (2 + 3 + 1 + _KERNEL + 1 + _NAME + 1)
        body = terminal.wrapped(printable(step.text), indent, indent)
        yield head + body[len(indent) :]
        if step.rule:
            yield terminal.wrapped(step.rule, f"{indent}in ", indent)


def _problem(problem: Problem) -> str:
    return printable(problem.line)


def _also(title: str, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield terminal.wrapped(text, f"  {title}: ", "    ")
