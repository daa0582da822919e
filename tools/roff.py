"""Manual pages in roff, with the macros of man(7): text is escaped here, and nowhere else."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

_WIDTH = 78
_SPECIAL = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", '"': "\\(dq"}
_MARKUP = re.compile(r"`(?P<literal>[^`]+)`|\*(?P<emphasis>[^*]+)\*")


def escape(text: str) -> str:
    """Text as it is to be read, with hyphens and quotes that can be copied."""
    return "".join(_SPECIAL.get(c) or (c if c.isascii() else f"\\[u{ord(c):04X}]") for c in text)


def bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fR"


def italic(text: str) -> str:
    return f"\\fI{escape(text)}\\fR"


def prose(text: str) -> str:
    """Text in which `literals` and *emphasis* are marked as in Markdown, on several lines."""
    parts, end = [], 0
    for match in _MARKUP.finditer(text):
        parts.append(escape(text[end : match.start()]))
        parts.append(bold(match["literal"]) if match["literal"] else italic(match["emphasis"]))
        end = match.end()
    return lines("".join([*parts, escape(text[end:])]))


def lines(escaped: str) -> str:
    """Escaped text cut into lines, none of which begins like a request."""
    cut = textwrap.wrap(escaped, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in cut)


def header(name: str, section: int, date: str, source: str, manual: str) -> str:
    """The page's first lines; `date` (YYYY-MM-DD) is that of the version in `source`."""
    words = " ".join([escape(name.upper()), str(section), date, *(f'"{escape(word)}"' for word in (source, manual))])
    return f'.\\" Written by tools/generate.py.\n.TH {words}\n.nh\n.ad l\n'


def heading(text: str) -> str:
    return f'.SH "{escape(text)}"\n'


def examples(found: Iterable[tuple[str, str]]) -> str:
    """What one wants, and the command lines or the text for it as they are to be typed."""
    return "".join(
        f"{paragraphs(text)}.RS 4\n.nf\n{chr(10).join(map(escape, code.splitlines()))}\n.fi\n.RE\n"
        for text, code in found
    )


def subheading(text: str) -> str:
    return f'.SS "{escape(text)}"\n'


def paragraphs(text: str) -> str:
    """Paragraphs of prose that empty lines separate, for the beginning of a section."""
    return ".PP\n".join(f"{prose(' '.join(one.split()))}\n" for one in text.strip().split("\n\n"))


def item(tag: str, *texts: str) -> str:
    """An entry of a list: the tag, already escaped, and prose, each text beginning on a new line."""
    return f".TP\n{tag}\n" + ".br\n".join(f"{prose(text)}\n" for text in texts)


def items(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of literals, each with what it means."""
    return "".join(item(bold(name), text) for name, text in pairs)


def indented(body: str) -> str:
    return f".RS\n{body}.RE\n"


def references(pages: Iterable[tuple[str, int]]) -> str:
    """The pages of SEE ALSO."""
    return heading("SEE ALSO") + "".join(_references(list(pages)))


def _references(pages: list[tuple[str, int]]) -> Iterator[str]:
    for name, section in pages:
        comma = "" if (name, section) == pages[-1] else ","
        yield f".BR {escape(name)} ({section}){comma}\n"
