"""The figures of the documentation: drawn from their texts, shown somewhere, with words for who cannot see them."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from tests.programs import ROOT

FIGURES = sorted((ROOT / "docs/figures").glob("*.dot"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("source", FIGURES, ids=lambda path: path.stem)
def test_the_drawing_says_what_its_source_says(source: Path) -> None:
    """`./dev figures` was run after the last change; the drawing's geometry depends on the version of Graphviz."""
    drawn = " ".join(re.findall(r"<text[^>]*>(.*?)</text>", source.with_suffix(".svg").read_text()))
    labels = re.findall(r'label="((?:[^"\\]|\\.)*)"', source.read_text())
    assert labels
    for line in (line for label in labels for line in label.split("\\n") if line):
        assert line in html.unescape(drawn), "run ./dev figures"


@pytest.mark.parametrize("source", FIGURES, ids=lambda path: path.stem)
def test_the_drawing_is_shown_with_a_description(source: Path) -> None:
    name = source.with_suffix(".svg").name
    picture = re.compile(rf"!\[([^\]]*)\]\((?:docs/)?figures/{re.escape(name)}\)")
    shown = [text for page in PAGES for text in picture.findall(page.read_text())]
    assert shown
    assert all(len(text) > 20 for text in shown)
