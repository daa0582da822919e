"""What a kernel must have for a test: Debian's has it all, others may lack it."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.patience import MACHINE


def needed(*modules: str) -> None:
    """Loads modules, if any. Skips the test where they cannot be had; in a virtual machine of ours it fails then."""
    if not modules:
        return
    complaint = "there is no modprobe"
    if program := shutil.which("modprobe"):
        done = subprocess.run([program, "--all", *modules], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        complaint = done.stderr.strip()
    message = f"the kernel cannot load {', '.join(modules)}: {complaint}"
    if os.environ.get(MACHINE):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
