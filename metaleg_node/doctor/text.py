"""A diagnosis as people and programs read it. The document's form is in docs/doctor.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypedDict

from metaleg_node import terminal
from metaleg_node.core.problems import Severity
from metaleg_node.doctor.diagnosis import Check, Diagnosis, Finding
from metaleg_node.text import counted, printable

_SEVERITIES: dict[Severity, Literal["note", "warning", "error"]] = {
    Severity.NOTE: "note",
    Severity.WARNING: "warning",
    Severity.ERROR: "error",
}


class FindingDocument(TypedDict):
    """See `diagnosis.Finding`; `severity` is note, warning or error."""

    code: str
    severity: Literal["note", "warning", "error"]
    title: str
    seen: str
    follows: str
    mend: str


class UnseenDocument(TypedDict):
    """A check that could not be made."""

    code: str
    reason: str


class DoctorDocument(TypedDict):
    """What `doctor --json` prints."""

    version: Literal[1]
    healthy: bool
    findings: list[FindingDocument]
    passed: list[str]
    unseen: list[UnseenDocument]
    ignored: list[str]


def document(found: Diagnosis) -> DoctorDocument:
    """For programs."""
    return DoctorDocument(
        version=1,
        healthy=found.healthy,
        findings=[
            FindingDocument(
                code=check.code,
                severity=_SEVERITIES[check.severity],
                title=check.title,
                seen=one.seen,
                follows=one.follows,
                mend=one.mend,
            )
            for check, one in found.findings
        ],
        passed=[check.code for check in found.passed],
        unseen=[UnseenDocument(code=check.code, reason=reason) for check, reason in found.unseen],
        ignored=[check.code for check in found.ignored],
    )


def render(found: Diagnosis, *, verbose: bool) -> str:
    """For a terminal; no newline at the end. `verbose`: what passed and what could not be told as well."""
    return "\n".join(_lines(found, verbose=verbose))


def _lines(found: Diagnosis, *, verbose: bool) -> Iterator[str]:
    for check, one in found.findings:
        yield from _finding(check, one)
    if verbose:
        for check in found.passed:
            yield f"{terminal.paint('ok     ')} {check.code} not so: {check.title}"
        for check in found.ignored:
            yield f"ignored {check.code} {check.title}"
        for check, reason in found.unseen:
            yield terminal.wrapped(printable(reason), f"{terminal.paint('?      ')} {check.code} ", " " * 8)
    rest = [f"{counted(len(found.passed), 'check')} passed"]
    rest += [f"{len(found.ignored)} ignored"] if found.ignored else []
    rest += [f"{len(found.unseen)} could not be made (--verbose tells why)"] if found.unseen else []
    yield f"{counted(len(found.findings), 'finding') if found.findings else 'nothing found'}; {', '.join(rest)}"


def _finding(check: Check, one: Finding) -> Iterator[str]:
    severity = terminal.paint(f"{check.severity!s:<7}")
    yield f"{severity} {check.code} {terminal.bold(check.title)}"
    for word, text in (("seen", one.seen), ("follows", one.follows), ("mend", one.mend)):
        yield terminal.wrapped(printable(text), f"  {word:<8}", " " * 10)
