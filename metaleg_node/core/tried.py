"""The oldest kernel and programs that this version was tried with, and what to tell where there are older ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

OLDEST = {"Linux": "5.10", "nft": "1.0.6", "iptables": "1.8.9", "ipset": "7.17"}
"""Debian 11's kernel, and the programs of Debian 12."""


def older(versions: Mapping[str, str]) -> Iterator[str]:
    """A sentence on each that is older than it was tried with: versions by the names in `OLDEST`, as uname(2) and the
    programs tell them."""
    for name, version in versions.items():
        if _numbers(version) < _numbers(OLDEST[name]):
            yield f"{name} {version} is older than {OLDEST[name]}, the oldest that this version was tried with"


def _numbers(version: str) -> list[int]:
    """What a version begins with: [6, 1, 0] of 6.1.0-38-amd64."""
    return [int(number) for number in re.split(r"[^\d.]", version)[0].split(".") if number]
