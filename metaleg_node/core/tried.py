"""The oldest kernel and programs that this version was tried with, and what to tell where there are older ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from metaleg_node.core.problems import Code, Problem

OLDEST = {"Linux": "6.1", "nft": "1.0.6"}
"""Debian 12's: the tests run there."""


def problems(versions: Mapping[str, str]) -> Iterator[Problem]:
    """What is older than it was tried with: versions by the names in `OLDEST`, as uname(2) and `nft --version` tell
    them."""
    for name, version in versions.items():
        if _numbers(version) < _numbers(OLDEST[name]):
            text = (
                f"{version} is older than {OLDEST[name]}, the oldest that this version was tried with: take a newer "
                "one, or see whether `metaleg-node apply` and `metaleg-node status` are content"
            )
            yield Problem(code=Code.UNTRIED, subject=name, text=text)


def _numbers(version: str) -> list[int]:
    """What a version begins with: [6, 1, 0] of 6.1.0-38-amd64."""
    return [int(number) for number in re.split(r"[^\d.]", version)[0].split(".") if number]
