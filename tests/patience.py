"""Limits of time, stretched where everything takes longer: all limits of the tests come by here."""

from __future__ import annotations

import os

VARIABLE = "METALEG_PATIENCE"
"""The environment variable with the factor; 1 on an ordinary machine."""
MACHINE = "METALEG_MACHINE"
"""The environment variable that names the release whose virtual machine this is."""
FACTOR = float(os.environ.get(VARIABLE, "1"))


def patient(seconds: float) -> float:
    """A limit of so many seconds on an ordinary machine."""
    return seconds * FACTOR
