"""The table of problems: what the documentation says of it, and which of them make a command fail."""

from __future__ import annotations

import pytest

from metaleg_node.core.problems import Code, Problem, Severity, fails
from tools.generate import ROOT

WORST = {Severity.NOTE: Code.NO_EFFECT, Severity.WARNING: Code.NO_ADDRESS, Severity.ERROR: Code.KERNEL}


def test_the_documentation_has_the_table() -> None:
    lines = (ROOT / "docs" / "operation.md").read_text(encoding="utf-8").splitlines()
    begin = lines.index("| code | severity | meaning |") + 2
    rows = [f"| `{code}` | {code.severity} | {code.meaning} |" for code in Code]
    assert lines[begin : begin + len(rows) + 1] == [*rows, ""]


@pytest.mark.parametrize(
    ("severities", "check", "status"),
    [
        ([], False, False),
        ([Severity.NOTE], False, False),
        ([Severity.WARNING], True, False),
        ([Severity.ERROR], True, True),
        ([Severity.WARNING, Severity.ERROR], True, True),
    ],
)
def test_a_tenants_mistake_makes_check_fail_and_status_not(
    severities: list[Severity], check: bool, status: bool
) -> None:
    problems = [Problem(code=WORST[severity], text="x") for severity in severities]
    assert (fails("check", problems), fails("status", problems)) == (check, status)


def test_a_problem_in_a_line_has_what_it_is_about_and_its_code() -> None:
    problem = Problem(code=Code.NO_ADDRESS, subject="Service a/b (IPv4)", text="none yet")
    assert problem.line == "Service a/b (IPv4): none yet [no-address]"
