"""What the linters cannot check: sizes, the shape of values, and what must not stand in any file."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.vm.__main__ import chosen

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for folder in ("metaleg_node", "tests", "tools", "bench") for path in ROOT.glob(f"{folder}/**/*.py")
)
NOT_OURS = re.compile(r"\.git|\.venv|__pycache__|dist|build|.*\.egg-info|\.[a-z_]+_cache|\.hypothesis")

LIMITS = {"function": 60, "class": 300, "file": 600}
"""Lines that a reader can keep in mind at once."""
EXCEPTIONS = {
    "tests/unit/test_manifests.py": "tables of cases, one for each kind of object",
    "tests/unit/test_state_file.py": "tables of cases, one for each way in which the file may change or be broken",
}
"""What may be longer, as FILE or FILE:NAME, each with its reason."""


def sizes() -> Iterator[tuple[str, str, int]]:
    """Name, kind and lines of every file, class and function."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT))
        yield name, "file", text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                yield f"{name}:{node.name}", kind, (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_classes_and_files_stay_within_their_budget() -> None:
    over = {name: lines for name, kind, lines in sizes() if lines > LIMITS[kind]}
    assert {name: lines for name, lines in over.items() if name not in EXCEPTIONS} == {}
    assert sorted(EXCEPTIONS.keys() - over.keys()) == [], "an exception that is no longer needed"


def dataclasses_of(path: Path) -> Iterator[tuple[str, frozenset[str]]]:
    """Each dataclass of a file with the options that are switched on."""
    classes = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ClassDef))
    for node in classes:
        for decorator in node.decorator_list:
            if re.match(r"(dataclasses\.)?dataclass\b", ast.unparse(decorator)):
                keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                yield node.name, frozenset(k.arg or "" for k in keywords if ast.unparse(k.value) == "True")


def test_every_value_of_the_core_is_frozen_slotted_and_built_by_keyword() -> None:
    folder = ROOT / "metaleg_node/core"
    core = {
        f"{path.relative_to(folder)}:{name}": on for path in folder.glob("**/*.py") for name, on in dataclasses_of(path)
    }
    assert {"egress", "compare"} <= {key.partition("/")[0] for key in core}, "the folders of the core are looked at too"
    assert [name for name, on in core.items() if not on >= {"frozen", "slots", "kw_only"}] == []


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the tree that is ours."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not NOT_OURS.fullmatch(name)]
        for path in (Path(folder, name) for name in names if not NOT_OURS.fullmatch(name)):
            yield path, path.read_text(encoding="utf-8", errors="replace")


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    private = re.compile(r"(?<![\w.])/(home|root|work|Users)/\w")
    found = [f"{path.relative_to(ROOT)}: {match[0]}" for path, text in texts() for match in private.finditer(text)]
    assert found == []


def test_the_virtual_machines_are_given_tests_that_there_are() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *chosen()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
