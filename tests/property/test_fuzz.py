"""A short run of `./dev fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import Result, one
from tests.fuzz.targets import TARGETS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_leads_to_declared_exceptions_alone(name: str, tmp_path: Path) -> None:
    result = Result()
    for number in range(400):
        one(name, f"0-{number}", tmp_path, result)
    assert not result.found, "\n".join(result.found.values())
    assert result.refused[name] < result.inputs[name]
