"""One input after the other, each from a seed of its own so that it can be made again."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from metaleg_node.configuration.config import ConfigError
from tests.fuzz.targets import TARGETS

SLOWEST = 3.0
"""Seconds of processor time that no input of some kilobytes may take."""


@dataclass(slots=True, kw_only=True)
class Result:
    """How many inputs there were of each kind, how many of them were refused, and what was found, by its place."""

    inputs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    found: dict[str, str] = field(default_factory=dict)


def one(name: str, seed: str, directory: Path, result: Result) -> None:
    """Has one input read."""
    target = TARGETS[name]
    result.inputs[name] += 1
    began = time.process_time()
    try:
        target.run(Random(f"{name} {seed}"), directory)
    except target.declared as error:
        result.refused[name] += 1
        lines = map(str, error.problems) if isinstance(error, ConfigError) else [str(error)]
        if not all(line and line.isprintable() for line in lines):
            result.found.setdefault(f"{name}: unprintable", f"{name} {seed}: {error!r}")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        key = f"{name}: {type(error).__name__} at {place.filename}:{place.lineno}"
        result.found.setdefault(key, f"{name} {seed}:\n{traceback.format_exc()[-3000:]}")
    if time.process_time() - began > SLOWEST:
        result.found.setdefault(f"{name}: slow", f"{name} {seed}: {time.process_time() - began:.1f} s")
