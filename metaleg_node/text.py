"""Plain text: one way each to print a table and a time, and to make foreign text safe to print.

Names and messages come from cluster objects that others write; a newline or a terminal control sequence in one of them
must not forge a line of the log or of a table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime


def printable(text: str) -> str:
    """The text with everything that `str.isprintable` refuses (control, format and bidirectional characters, line
    separators, lone surrogates) written as a backslash escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def rfc3339(moment: datetime) -> str:
    """A moment, which has its time zone, as every log, status and saved state writes it: `2026-01-31T12:00:00.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def counted(number: int, noun: str) -> str:
    """`1 pod`, `2 pods`, `2 addresses`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def table(
    rows: Iterable[Sequence[object]],
    header: Sequence[str],
    width: int | None = None,
    paint: Callable[[str], str] = str,
) -> str:
    """Left-aligned columns, two spaces apart, the header in capitals; no newline at the end. In `width` columns, if
    given, the last cell is wrapped, or stands below its row; where even that does not fit each row becomes a list of
    its cells. `paint` colours cells that are one word.

    Every row has as many cells as the header, else ValueError.
    """
    lines = [[name.upper() for name in header]]
    lines += [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    before = sum(widths[:-1]) + len(_GAP) * len(widths[:-1])
    if width is None or before + widths[-1] <= width:
        laid_out = [[f"{_row(line[:-1], widths, paint)}{paint(line[-1])}"] for line in lines]
    elif before + _NARROW <= width:
        laid_out = [_beside(line, widths, width, paint) for line in lines]
    elif before - len(_GAP) <= width:
        laid_out = [_below(line, widths, width, paint) for line in lines]
    else:
        laid_out = [_listed(header, line, width, paint) for line in lines[1:]]
    return "\n".join(line.rstrip() for lines in laid_out for line in lines)


_GAP = "  "
_NARROW = 20
"""The narrowest column that text is wrapped in."""


def _row(cells: Iterable[str], widths: Iterable[int], paint: Callable[[str], str]) -> str:
    return "".join(f"{paint(cell.ljust(width))}{_GAP}" for cell, width in zip(cells, widths, strict=False))


def _beside(line: list[str], widths: list[int], width: int, paint: Callable[[str], str]) -> list[str]:
    begin = sum(widths[:-1]) + len(_GAP) * len(widths[:-1])
    first, *rest = _wrap(line[-1], width - begin) or [""]
    return [f"{_row(line[:-1], widths, paint)}{paint(first)}", *(" " * begin + one for one in rest)]


def _below(line: list[str], widths: list[int], width: int, paint: Callable[[str], str]) -> list[str]:
    under = [] if line[-1] == "-" else _wrap(line[-1], width - 4)
    return [_row(line[:-1], widths, paint), *(f"    {one}" for one in under)]


def _listed(header: Sequence[str], line: list[str], width: int, paint: Callable[[str], str]) -> list[str]:
    cells = [(name, cell) for name, cell in zip(header, line, strict=True) if cell != "-"]
    found = []
    for number, (name, cell) in enumerate(cells):
        indent = "  " if number else ""
        first, *rest = _wrap(cell, width - len(indent) - len(name) - 2) or [""]
        found += [f"{indent}{name}: {paint(first)}", *(f"{' ' * (len(indent) + len(name) + 2)}{one}" for one in rest)]
    return found


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 8), break_on_hyphens=False)


def endpoint(host: str, port: int) -> str:
    """An address to listen on, as it is written."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
