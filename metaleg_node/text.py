"""Plain text: one way each to print a table and a time, and to make foreign text safe to print.

Names and messages come from cluster objects that others write; a newline or a terminal control sequence in one of them
must not forge a line of the log or of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> str:
    """Left-aligned columns, two spaces apart, the header in capitals; no newline at the end.

    Every row has as many cells as the header, else ValueError.
    """
    lines = [[name.upper() for name in header]]
    lines += [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def endpoint(host: str, port: int) -> str:
    """An address to listen on, as it is written."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
