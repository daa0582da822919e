"""The texts that are written from the settings table, so that they cannot disagree with the program.

`tools/generate.py` writes both into the tree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from metaleg_node.config import Config
from metaleg_node.settings import Many, Section, Setting, entries

_COMMENT_COLUMN = 36
_WIDTH = 118
_NOT_YET = "not yet in effect"

_SAMPLE_HEAD = """\
# metaleg-node: every setting with its default; all of them may be left out.
# Durations are strings with units (ms, s, m, h). A change of this file is taken over at once;
# `metaleg-node check` tells what is wrong with it.
"""

_REFERENCE_HEAD = """\
# Configuration

`metaleg-node` reads one TOML file, `/etc/metaleg-node/config.toml` unless `--config` names another. Every key may be
left out; an unknown key is an error. Durations are strings with units: `"20ms"`, `"10s"`, `"5m"`, `"1h30m"`. A CIDR
without a prefix length means that one address. SIGHUP and a change of the file load it again; a file with errors
changes nothing: the errors are reported and the old configuration stays in force. `metaleg-node check` prints all of
them, each with file, key and value, and exits with status 78.

Keys marked *not yet in effect* are known and checked, but no feature of this version uses them.

This page is written by `tools/generate.py` from the settings table in `metaleg_node/config.py`.
"""


def sample() -> str:
    """The text of etc/metaleg-node/config.toml; it parses to `Config()`."""
    return _SAMPLE_HEAD + "\n".join(_sample_table("", Section(cls=Config, doc=""))) + "\n"


def reference() -> str:
    """The Markdown text of docs/configuration.md."""
    return _REFERENCE_HEAD + "\n".join(_reference_table("", Section(cls=Config, doc=""))) + "\n"


def _sample_table(name: str, section: Section) -> Iterator[str]:
    prefix = "# " if section.many else ""
    if name:
        yield ""
        yield f"# {section.doc}{f' ({_NOT_YET})' if section.not_yet else ''}"
        yield prefix + _heading(name, section)
    for key, entry in entries(section.cls):
        if isinstance(entry, Setting):
            yield from (f"{prefix}{line}" for line in _sample_lines(key, entry))
    for key, entry in entries(section.cls):
        if isinstance(entry, Section):
            yield from _sample_table(_join(name, key), entry)


def _sample_lines(key: str, entry: Setting) -> tuple[str, ...]:
    """A setting with its comment behind it, or above it where the line would be too long."""
    value = entry.default if entry.example is None else entry.example
    comment = ": ".join(part for part in (" | ".join(entry.kind.choices), entry.doc) if part)
    note = f" ({_NOT_YET})" if entry.not_yet(value) else ""
    line = f"{key} = {_toml(value, entry)}"
    joined = f"{line:{_COMMENT_COLUMN}} # {comment}{note}"
    return (joined,) if len(joined) <= _WIDTH else (f"# {comment}{note}", line)


def _reference_table(name: str, section: Section, *, not_yet: bool = False) -> Iterator[str]:
    not_yet = not_yet or section.not_yet
    settings = [(key, entry) for key, entry in entries(section.cls) if isinstance(entry, Setting)]
    if name:
        yield from ("", f"## `{_heading(name, section)}`", "")
        yield section.doc + (f" *{_NOT_YET.capitalize()}.*" if not_yet else "")
    if settings:
        yield from ("", "| key | default | allowed | meaning |", "|---|---|---|---|")
    for key, entry in settings:
        default = "required" if entry.required else f"`{_toml(entry.default, entry)}`"
        meaning = f"{entry.doc}{_not_yet_note(entry)}"
        yield f"| {' | '.join(_cell(text) for text in (f'`{key}`', default, entry.kind.allowed, meaning))} |"
    for key, below in entries(section.cls):
        if isinstance(below, Section):
            yield from _reference_table(_join(name, key), below, not_yet=not_yet)


def _not_yet_note(entry: Setting) -> str:
    words = [f"`{word}`" for word in entry.kind.choices if not isinstance(entry.kind, Many) and entry.not_yet(word)]
    return f" ({', '.join(words)}: *{_NOT_YET}*)" if words else ""


def _heading(name: str, section: Section) -> str:
    return f"[[{name}]]" if section.many else f"[{name}]"


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _toml(value: object, entry: Setting) -> str:
    """Strings, integers, booleans and arrays of them are the same in JSON and TOML."""
    return f"{value:#x}" if entry.kind.hexadecimal else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
