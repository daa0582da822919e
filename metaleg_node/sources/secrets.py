"""The secrets that a kubeconfig has or names, for nothing but keeping them out of what is given away."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import yaml

LARGEST: Final = 4 << 20
"""Bytes that a kubeconfig may have: one with hundreds of clusters has fewer."""
_HARMLESS: Final = frozenset(
    {"apiVersion", "command", "interactiveMode", "username", "provideClusterInfo", "installHint", "as", "as-uid"}
)
"""Fields of a user in which nothing secret stands (kubeconfig(v1), AuthInfo). Of an exec plugin the names of its
variables are none, but their values and its arguments may be."""
_FILES: Final = frozenset({"tokenFile", "client-key"})


def of_kubeconfig(file: Path) -> frozenset[str]:
    """All that may be secret in it, whatever is wrong with it: of every user, and in the files that they name."""
    try:
        document = yaml.safe_load(_text(file))
    except (OSError, ValueError, yaml.YAMLError):
        return frozenset()
    users = document.get("users") if isinstance(document, dict) else None
    entries = users if isinstance(users, list) else []
    return frozenset(secret for entry in entries if isinstance(entry, dict) for secret in _in(entry.get("user"), file))


def _in(part: object, file: Path) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key in _FILES and isinstance(value, str):
                with suppress(OSError, ValueError):
                    yield from _forms(_text(file.parent / value))
            elif key not in _HARMLESS and not (key == "name" and "value" in part):
                yield from _in(value, file)
    elif isinstance(part, list):
        for one in part:
            yield from _in(one, file)
    elif isinstance(part, str):
        yield from _forms(part)


def _forms(text: str) -> Iterator[str]:
    """A secret as it may stand in a text: whole, as JSON writes it, without its encoding, and line by line."""
    yield text.strip()
    yield json.dumps(text.strip())[1:-1]
    with suppress(binascii.Error, ValueError):
        text = base64.b64decode(text, validate=True).decode()
        yield text.strip()
    yield from (line for line in text.splitlines() if len(line) > 8 and not line.startswith("-----"))


def _text(file: Path) -> str:
    if not file.is_file() or file.stat().st_size > LARGEST:
        raise ValueError(f"{file} is no small file")
    return file.read_text(encoding="utf-8")
