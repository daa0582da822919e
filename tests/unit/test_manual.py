"""The manual pages are ones that man(1) reads without complaint, and leave nothing out."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from email.utils import parsedate_to_datetime

import pytest

from metaleg_node.cli import parser
from metaleg_node.configuration.config import Config
from metaleg_node.configuration.settings import leaves
from tests.programs import wanted
from tools import roff
from tools.generate import ROOT
from tools.grammar import commands, program

PAGES = ("metaleg-node.8", "metaleg-node.toml.5")
ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MANPAGER": "cat"}


def run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, env=ENVIRONMENT, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rendered(page: str) -> str:
    """What a reader sees, without what makes it bold or underlined."""
    return re.sub(r"\x1b\[[0-9;]*m|.\x08", "", run("man", "--warnings=w", "-l", str(ROOT / "man" / page)))


@pytest.mark.parametrize("page", PAGES)
def test_apropos_can_index_the_page(page: str) -> None:
    name = page.rpartition(".")[0]
    assert run("lexgrog", str(ROOT / "man" / page)).startswith(f'{ROOT}/man/{page}: "{name} - ')


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_nothing_to_warn_of_and_there_are_examples(page: str) -> None:
    assert run(wanted("mandoc"), "-T", "lint", "-W", "warning", str(ROOT / "man" / page)) == ""
    assert "\nEXAMPLES\n" in rendered(page)


def test_the_date_is_the_versions() -> None:
    changelog = (ROOT / "packaging/debian/changelog").read_text()
    stamp = changelog.partition("  ")[2].rpartition(">  ")[2].splitlines()[0]
    date = parsedate_to_datetime(stamp).date().isoformat()
    assert all(f" {date} " in (ROOT / "man" / page).read_text().splitlines()[1] for page in PAGES)


def test_the_page_of_the_program_has_every_command_and_option() -> None:
    text = rendered("metaleg-node.8")
    for command in (program(), *commands()):
        assert not command.name or re.search(rf"^ +metaleg-node \[options\] {command.name}\b", text, re.M)
        assert " ".join(command.description.split()) in " ".join(text.split())
        for argument in command.arguments:
            assert re.search(rf"^ +{re.escape(', '.join(argument.names))}", text, re.M), argument


def test_the_grammar_is_what_help_shows() -> None:
    shown = parser().format_help()
    (listed,) = re.findall(r"\n  COMMAND\n((?:    .*\n)+)", shown)
    assert re.findall(r"^    (\S+)", listed, re.M) == [command.name for command in commands()]
    assert all(argument.text for command in (program(), *commands()) for argument in command.arguments)


def test_the_page_of_the_file_has_every_key_with_its_default() -> None:
    text = rendered("metaleg-node.toml.5")
    for leaf in leaves(Config):
        assert re.search(rf"^ +{leaf.path[-1]} (= \S|\(required\))", text, re.M), leaf
    assert 'state_file = ""\n' in text
    assert "mark_mask = 0x3f000000\n" in text


@pytest.mark.parametrize(
    "text",
    [
        ".SH at the beginning of a line",
        "'quoted' and \"quoted\"",
        "--option, ~user, x^2, a\\nb, \\fBnot bold\\fR, `",
        "… and ümläut",
        " ".join(["word ."] * 60),
    ],
)
def test_text_comes_out_as_it_went_in(text: str) -> None:
    page = roff.header("x", 1, "2026-01-31", "", "") + roff.heading("NAME") + "x \\- y\n" + roff.heading("TEXT")
    shown = run("man", "--warnings=w", "-l", "-", stdin=page + roff.lines(roff.escape(text)) + "\n")
    (body,) = re.findall(r"TEXT\n(.*)\n\n", re.sub(r"\x1b\[[0-9;]*m|.\x08", "", shown), re.S)
    assert " ".join(body.split()) == " ".join(text.split())


def test_markup_becomes_fonts() -> None:
    assert roff.prose("`a-b` is *not* c") == "\\fBa\\-b\\fR is \\fInot\\fR c"


def test_a_list_of_references_ends_without_a_comma() -> None:
    pages: Sequence[tuple[str, int]] = [("nft", 8), ("ip-rule", 8)]
    assert roff.references(pages).splitlines()[1:] == [".BR nft (8),", ".BR ip\\-rule (8)"]
