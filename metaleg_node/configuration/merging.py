"""Several TOML documents as one: which value counts, which file it is from, and keys that have another name now.

Tables merge, all other values replace what an earlier document says, arrays as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SHORT = 80
"""Characters of a key or value that messages show at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """What became of a key in version `since` (MAJOR.MINOR): it is called `now`, or it is gone, as `advice` explains.
    It is understood for two minor releases more, so that an upgrade stops no service; then its entry is deleted."""

    since: str
    now: str = ""
    advice: str = ""

    @property
    def text(self) -> str:
        """What to tell whoever still uses it."""
        if self.now:
            return f"is called {self.now} since version {self.since}; rename it, the old name ends two releases later"
        return f"has no effect since version {self.since}: {self.advice}; remove it, it is an error two releases later"


FORMER: dict[str, Former] = {}
"""Keys that were renamed or removed, dotted, outside of arrays of tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A former key that a file still has."""

    file: str
    key: str
    former: Former


@dataclass(slots=True)
class Merged:
    """All documents as one. `files` names the file of dotted keys; what is below one is from the same file, unless it
    stands there itself."""

    main: str
    tables: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)

    def add(self, file: str, document: dict[str, Any], former: Mapping[str, Former] = FORMER) -> None:
        """Puts a document over those before it."""
        for key, what in former.items():
            value = _taken(document, key.split("."))
            if value is _MISSING:
                continue
            self.uses.append(Use(file=file, key=key, former=what))
            if what.now:
                _put(document, what.now.split("."), value)
        pairs = [(self.tables, document, "")]
        while pairs:
            below, above, parent = pairs.pop()
            for name, value in above.items():
                key = join(parent, name)
                if isinstance(value, dict) and isinstance(below.get(name), dict):
                    pairs.append((below[name], value, key))
                    continue
                below[name] = value
                self.files = {kept: at for kept, at in self.files.items() if not kept.startswith(f"{key}.")}
                self.files[key] = file

    def file(self, key: str) -> str:
        """The file that a key, or an item of one, is from; the first one where nobody has written it."""
        return self.writer(key) or self.main

    def writer(self, key: str) -> str:
        """The same, but empty where nobody has written it."""
        while key and key not in self.files:
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return self.files.get(key, "")


def join(parent: str, name: str) -> str:
    """The dotted key of an entry in a table, as TOML writes it, shortened."""
    written = short(name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name))
    return f"{parent}.{written}" if parent else written


def short(text: str) -> str:
    """A text that somebody wrote, for a message."""
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."


_MISSING = object()


def _taken(table: Any, path: list[str]) -> Any:
    """Takes a value out of tables."""
    for name in path[:-1]:
        table = table.get(name) if isinstance(table, dict) else None
    return table.pop(path[-1], _MISSING) if isinstance(table, dict) else _MISSING


def _put(table: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets a value within tables, unless there is one: then that counts."""
    for name in path[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return
    table.setdefault(path[-1], value)
