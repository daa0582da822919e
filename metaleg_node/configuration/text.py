"""The texts that are written from the settings table, so that they cannot disagree with the program.

`tools/generate.py` writes them into the tree; the manual page is made there, of the same parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from metaleg_node.configuration.config import Config
from metaleg_node.configuration.settings import Section, Setting, entries

_COMMENT_COLUMN = 36
_WIDTH = 118

_SAMPLE_HEAD = """\
# metaleg-node: every setting with its default; all of them may be left out.
# Durations are strings with units (ms, s, m, h). Copy what you want otherwise into a file of your own in
# /etc/metaleg-node/conf.d.
"""

SHIPPED = """\
# The configuration of metaleg-node: what it does not say has its default. All settings are in metaleg-node.toml(5) and
# in /usr/share/doc/metaleg-node/examples/config.toml.
#
# The files conf.d/*.toml beside this one are merged over it in the order of their names. Write your settings there, and
# no upgrade asks about this file. Changes are taken over once the files have been left alone for two seconds;
# `metaleg-node check` tells what is wrong with them.
"""
"""The text of the configuration file that the package brings; it must stay the same over releases, since a change asks
every administrator who has edited the file."""

INTRODUCTION = """\
`metaleg-node` reads a TOML file, `/etc/metaleg-node/config.toml` unless `--config` names another, and
the files `conf.d/*.toml` beside it, in the order of their names: tables are merged, any other value
replaces the one before, arrays as a whole. Every key may be left out; an unknown key is an error. A
key that was renamed or removed is a warning for two minor releases. Durations are strings with units: `"20ms"`,
`"10s"`, `"5m"`, `"1h30m"`. A CIDR without a prefix length means that one address. SIGHUP loads the
files again at once; without it changed files are loaded when they have been left alone for two
seconds. An empty file is an error, since somebody may just be writing it. While the service runs, a
file with errors changes nothing: they are reported, and the old configuration stays in force.
`metaleg-node check` prints all of them, each with file, key and value, and exits with status 78.
"""
"""What there is to know of all settings, in Markdown."""

_REFERENCE_HEAD = f"""\
# Configuration

{INTRODUCTION}
This page is written by `tools/generate.py` from the settings table.
"""


def sample() -> str:
    """The text of etc/metaleg-node/examples/config.toml; it parses to `Config()`."""
    return _SAMPLE_HEAD + "".join(f"{line}\n" for table in tables() for line in _sample_table(table))


def reference() -> str:
    """The Markdown text of docs/configuration.md."""
    return _REFERENCE_HEAD + "".join(f"{line}\n" for table in tables() for line in _reference_table(table))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of the configuration, with its settings by key."""

    name: str
    section: Section
    settings: tuple[tuple[str, Setting], ...]

    @property
    def heading(self) -> str:
        return f"[[{self.name}]]" if self.section.many else f"[{self.name}]"


def tables() -> Iterator[Table]:
    """All tables, each before those within it."""
    return _tables("", Section(cls=Config, doc=""))


def _tables(name: str, section: Section) -> Iterator[Table]:
    if name:
        settings = tuple((key, entry) for key, entry in entries(section.cls) if isinstance(entry, Setting))
        yield Table(name=name, section=section, settings=settings)
    for key, below in entries(section.cls):
        if isinstance(below, Section):
            yield from _tables(f"{name}.{key}".lstrip("."), below)


def _sample_table(table: Table) -> Iterator[str]:
    prefix = "# " if table.section.many else ""
    yield from ("", f"# {table.section.doc}", prefix + table.heading)
    for key, entry in table.settings:
        yield from (f"{prefix}{line}" for line in _sample_lines(key, entry))


def _sample_lines(key: str, entry: Setting) -> tuple[str, ...]:
    """A setting with its comment behind it, or above it where the line would be too long."""
    value = entry.default if entry.example is None else entry.example
    comment = ": ".join(part for part in (" | ".join(entry.kind.choices), entry.doc) if part)
    line = f"{key} = {toml_text(value, entry)}"
    joined = f"{line:{_COMMENT_COLUMN}} # {comment}"
    return (joined,) if len(joined) <= _WIDTH else (f"# {comment}", line)


def _reference_table(table: Table) -> Iterator[str]:
    yield from ("", f"## `{table.heading}`", "")
    yield table.section.doc
    if table.settings:
        yield from ("", "| key | default | allowed | meaning |", "|---|---|---|---|")
    for key, entry in table.settings:
        default = "required" if entry.required else f"`{toml_text(entry.default, entry)}`"
        yield f"| {' | '.join(_cell(text) for text in (f'`{key}`', default, entry.kind.allowed, entry.doc))} |"


def toml_text(value: object, entry: Setting) -> str:
    """A value of a key as TOML. Strings, integers, booleans and arrays of them are the same in JSON and TOML."""
    return f"{value:#x}" if entry.kind.hexadecimal else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
