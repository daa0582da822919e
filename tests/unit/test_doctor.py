"""The table of checks, its documentation, and how a diagnosis is made and told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from metaleg_node.core.problems import Severity
from metaleg_node.doctor import text
from metaleg_node.doctor.diagnosis import Check, Finding, chosen, diagnose
from metaleg_node.doctor.facts import Facts, NotSeenError
from metaleg_node.doctor.table import CHECKS
from metaleg_node.kernel.errors import KernelError
from tools.generate import ROOT

NO_FACTS = cast("Facts", None)
EXAMPLE_AND_HOW = re.compile(r"\n\n```\n(.+?)\n```\n\n(.+?)\n(\n## .*)?\n*", re.DOTALL)
ERRORS = [NotSeenError("why"), KernelError("why"), PermissionError(13, "why"), ValueError("why")]


def test_every_code_is_there_once_and_in_order() -> None:
    codes = [check.code for check in CHECKS]
    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"ML-[1-7]\d\d", code) for code in codes)


def sections() -> dict[str, str]:
    """What stands below each heading of docs/doctor.md that is a code."""
    found = re.split(r"^### (ML-\d+)$", (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_the_documentation_has_a_heading_for_every_code_and_for_no_other() -> None:
    assert [*sections()] == [check.code for check in CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.code)
def test_every_heading_has_an_example_and_says_how_it_is_known(check: Check) -> None:
    found = EXAMPLE_AND_HOW.fullmatch(sections()[check.code])
    assert found
    example, how = found.group(1, 2)
    first, *rest = example.splitlines()
    assert first == f"{check.severity!s:<7} {check.code} {check.title}"
    assert [line[2:9].strip() for line in rest if line[2] != " "] == ["seen", "follows", "mend"]
    assert how.rstrip().endswith(".")


def test_every_check_is_made_for_real_somewhere() -> None:
    """By a test that names its code in quotation marks."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_doctor*.py") if path != Path(__file__))
    assert [check.code for check in CHECKS if f'"{check.code}"' not in tests] == []


def finding(text: str) -> Finding:
    return Finding(seen=text, follows="f", mend="m")


def check(code: str, severity: Severity = Severity.WARNING, *found: Finding, error: Exception | None = None) -> Check:
    def look(_: Facts) -> Iterator[Finding]:
        yield from found
        if error:
            raise error

    return Check(code=code, severity=severity, title=f"title of {code}", look=look)


def test_the_worst_findings_come_first_and_notes_alone_are_healthy() -> None:
    note, warning = check("ML-101", Severity.NOTE, finding("n")), check("ML-102", Severity.WARNING, finding("w"))
    error = check("ML-103", Severity.ERROR, finding("e"))
    found = diagnose([note, warning, error, check("ML-104")], NO_FACTS)
    assert [one.seen for _, one in found.findings] == ["e", "w", "n"]
    assert [one.code for one in found.passed] == ["ML-104"]
    assert not found.healthy
    assert diagnose([note], NO_FACTS).healthy


@pytest.mark.parametrize(
    "error", [NotSeenError("why"), KernelError("why"), PermissionError(13, "why"), ValueError("why")]
)
def test_a_check_that_cannot_be_made_keeps_no_other_from_being_made(error: Exception) -> None:
    found = diagnose([check("ML-101", error=error), check("ML-102", Severity.WARNING, finding("w"))], NO_FACTS)
    ((unseen, reason),) = found.unseen
    assert (unseen.code, "why" in reason) == ("ML-101", True)
    assert len(found.findings) == 1
    assert "1 could not be made" in text.render(found, verbose=False)
    assert reason in text.render(found, verbose=True)


def test_what_is_ignored_is_not_made() -> None:
    found = diagnose([check("ML-101", error=AssertionError())], NO_FACTS, ["ML-101"])
    assert [one.code for one in found.ignored] == ["ML-101"]
    assert found.unseen == ()


@pytest.mark.parametrize(
    ("prefix", "codes"),
    [("", ["ML-101", "ML-201", "ML-213"]), ("ML-2", ["ML-201", "ML-213"]), ("ml-213", ["ML-213"]), ("21", ["ML-213"])],
)
def test_checks_are_chosen_by_what_their_code_begins_with(prefix: str, codes: list[str]) -> None:
    assert [one.code for one in chosen(map(check, ("ML-101", "ML-201", "ML-213")), prefix)] == codes


def test_the_document_has_all_of_it() -> None:
    found = diagnose([check("ML-101", Severity.ERROR, finding("e")), check("ML-102")], NO_FACTS, ["ML-102"])
    assert text.document(found) == {
        "version": 1,
        "healthy": False,
        "findings": [
            {
                "code": "ML-101",
                "severity": "error",
                "title": "title of ML-101",
                "seen": "e",
                "follows": "f",
                "mend": "m",
            }
        ],
        "passed": [],
        "unseen": [],
        "ignored": ["ML-102"],
    }
