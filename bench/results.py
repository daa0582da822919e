"""Measured values and how they are told."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from metaleg_node.text import table


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What several runs gave for one question, and what the median shall be."""

    name: str
    unit: str
    values: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.at_least is None and self.at_most is None:
            return ""
        low, high = self.at_least, self.at_most
        good = (low is None or self.median >= low) and (high is None or self.median < high)
        return "met" if good else "missed"

    @property
    def aim(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"< {self.at_most:g}" if self.at_most else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "runs": len(self.values),
            "aim": self.aim,
            "verdict": self.verdict,
        }


def render(figures: Iterable[Figure]) -> str:
    """A table for a terminal."""
    rows = [
        (f.name, f.unit, *map(_number, (f.median, min(f.values), max(f.values))), len(f.values), f.aim, f.verdict)
        for f in figures
    ]
    return table(rows, ("figure", "unit", "median", "min", "max", "runs", "aim", ""))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
