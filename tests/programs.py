"""Programs of others that some tests ask: skipped where they are missing, but not in a CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def wanted(name: str) -> str:
    """The path of a program; `./dev setup` installs it, or unpacks it below build/tools."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], str(ROOT / "build/tools/usr/bin")]))
    if found:
        return found
    message = f"{name} is not installed: run `./dev setup` as root"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
