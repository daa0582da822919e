"""docs/known-faults.md has a row for each id that a test carries, and names tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"\| ([FSNKVR]\d+) \| .+ \| .+ \| (.+) \|")
ID = re.compile(r"(?<![A-Za-z0-9])[FSNKVR]\d{1,2}(?![A-Za-z0-9])")
NO_TEST = re.compile(r"(not applicable|kept out by design): .+")


def rows() -> list[tuple[str, str]]:
    """Each id of the table, and the cell with its tests."""
    lines = (ROOT / "docs" / "known-faults.md").read_text(encoding="utf-8").splitlines()
    return [(found[1], found[2]) for line in lines if (found := ROW.fullmatch(line))]


def modules() -> Iterator[tuple[str, ast.Module]]:
    """All tests but these, which are about all ids."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path != Path(__file__):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def told(node: ast.AST) -> str:
    """The name of a function or class, or the text of a constant: docstrings, and the names of cases in a table."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name.replace("_", " ")
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


CARRIED = {(name, path) for path, module in modules() for node in ast.walk(module) for name in ID.findall(told(node))}
TESTS = {
    f"{path}::{node.name}"
    for path, module in modules()
    for node in module.body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
}


def test_every_id_that_a_test_carries_has_one_row() -> None:
    known = [name for name, _ in rows()]
    assert len(known) == len(set(known))
    assert {(name, path) for name, path in CARRIED if name not in known} == set()


@pytest.mark.parametrize("tests", [pytest.param(tests, id=name) for name, tests in rows()])
def test_a_row_names_tests_that_exist_or_says_why_there_is_none(tests: str) -> None:
    named = re.findall(r"`([^`]+)`", tests)
    assert set(named) <= TESTS
    assert named or NO_TEST.fullmatch(tests)


def test_ids_are_found_in_names_and_cases() -> None:
    """F46 is in the name of a test, F40 in that of a case of a table."""
    assert {name for name, _ in CARRIED} >= {"F46", "F40"}
