"""What is printed for people fits their terminal, and words that say how well it stands have a colour there.

In a pipe or a file there is one line for one thing, without colours, however long: scripts read lines.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence

from metaleg_node.text import table

CHOICES = ("auto", "always", "never")

_GREEN, _RED, _YELLOW, _BOLD = "32", "31", "33", "1"
_COLOURS = {
    **dict.fromkeys(("same", "yes", "active", "ok"), _GREEN),
    **dict.fromkeys(("differs", "no", "unavailable", "inactive", "error"), _RED),
    **dict.fromkeys(("?", "warning"), _YELLOW),
}
"""Words by what they say (SGR, ECMA-48)."""
_NARROWEST = 40


class _Terminal:
    """What was chosen for this run of the program."""

    coloured = False


def setup(choice: str) -> None:
    """Decides about colours; `choice` is one of CHOICES. NO_COLOR counts as no-color.org has it: if it is not empty."""
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    _Terminal.coloured = choice == "always" or (choice == "auto" and on_terminal)


def width() -> int | None:
    """How many columns there are; None: no terminal, so no limit. COLUMNS counts in any case (environ(7))."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdecimal() and int(given):
        return max(int(given), _NARROWEST)
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, _NARROWEST)
    except (OSError, ValueError):
        return None


def paint(cell: str, like: str = "") -> str:
    """A word that stands alone, blanks around it or not, in its colour, where it has one; or in that of another."""
    word = cell.strip()
    colour = _COLOURS.get(like or word)
    if not _Terminal.coloured or not colour:
        return cell
    return cell.replace(word, f"\x1b[{colour}m{word}\x1b[0m")


def bold(text: str) -> str:
    """A text that is looked for first."""
    return f"\x1b[{_BOLD}m{text}\x1b[0m" if _Terminal.coloured else text


def fitted(rows: Iterable[Sequence[object]], header: Sequence[str]) -> str:
    """A table that fits, with its words in colour; see `text.table`."""
    return table(rows, header, width(), paint)


def page(text: str) -> str:
    """A text in the place of the one before: a terminal is cleared, elsewhere an empty line is between."""
    return f"\x1b[H\x1b[J{text}" if sys.stdout.isatty() else f"{text}\n"


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """A paragraph in lines that fit; `first` stands before the first line, `rest` before the others."""
    columns = width()
    if columns is None:
        return first + text
    return "\n".join(
        textwrap.wrap(
            text,
            columns,
            initial_indent=first,
            subsequent_indent=rest,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    )
