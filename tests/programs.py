"""Programs of others that some tests ask: skipped where they are missing, but not in a CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

REQUIRED = "METALEG_CONTAINERS"
"""In this environment variable, "required" makes a failure of what would be skipped; CI does, too."""
ROOT = Path(__file__).resolve().parents[1]


def wanted(name: str) -> str:
    """The path of a program; `./dev setup` installs it, or unpacks it below build/tools."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], str(ROOT / "build/tools/usr/bin")]))
    if not found:
        lacking(f"{name} is not installed: run `./dev setup` as root")
    return found


def lacking(message: str) -> NoReturn:
    """Ends a test that this machine is not fit for."""
    if os.environ.get("CI") or os.environ.get(REQUIRED) == "required":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
