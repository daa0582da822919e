"""The generated files say what the program does, and are no older than the settings table."""

from __future__ import annotations

import re
import tomllib

from metaleg_node.configuration.config import Config, parse
from metaleg_node.configuration.settings import leaves
from metaleg_node.configuration.text import reference, sample
from tools.generate import FILES, ROOT


def test_the_generated_files_are_current() -> None:
    stale = [name for name, text in FILES.items() if (ROOT / name).read_text(encoding="utf-8") != text()]
    assert stale == [], "run .venv/bin/python -m tools.generate"


def test_the_sample_is_the_defaults_in_lines_that_fit_a_terminal() -> None:
    assert parse(sample(), file="sample") == Config()
    assert max(map(len, sample().splitlines())) <= 120


def test_the_sample_has_every_key_with_one_comment() -> None:
    document = tomllib.loads(sample())
    for leaf in leaves(Config):
        if not leaf.many:
            value = document
            for name in leaf.path:
                value = value[name]
        assert re.search(rf"^(# )?{leaf.path[-1]} = .*# |^(# )?# .*\n(# )?{leaf.path[-1]} = ", sample(), re.M), (
            leaf.path
        )


def test_the_layer_2_example_works_once_its_comment_signs_are_gone() -> None:
    before, example = sample().split("# [[return_path.l2]]\n")
    example, after = example.split("\n\n", 1)
    text = f"{before}[[return_path.l2]]\n{re.sub('^# ', '', example, flags=re.M)}\n\n{after}"
    (path,) = parse(text, file="sample").return_path.l2
    assert (path.name, path.pools, path.interface) == ("public", ("public",), "eth0.100")


def test_the_reference_has_a_row_for_every_key() -> None:
    for leaf in leaves(Config):
        assert f"\n| `{leaf.path[-1]}` | " in reference()
    assert all(row.replace("\\|", "").count("|") == 5 for row in reference().splitlines() if row.startswith("|"))
