"""Whatever a configuration file holds, the answer is a Config or a list of problems."""

from __future__ import annotations

import math
import string
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metaleg_node.configuration.config import Config, ConfigError, Problem, parse
from metaleg_node.configuration.settings import Leaf, leaves

LEAVES = [leaf for leaf in leaves(Config) if not leaf.many]
KEYS = sorted({name for leaf in leaves(Config) for name in leaf.path})
TEXTS = st.text(max_size=30) | st.sampled_from(["0", "5m", "::1", "10.0.0.1/8", "default", "/x", "a.b/c", "[::]:1"])
SCALARS = st.one_of(st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), TEXTS)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def outcome(text: str) -> Config | tuple[Problem, ...]:
    """What `parse` makes of a text; anything but these two fails the test."""
    try:
        return parse(text, file="F")
    except ConfigError as error:
        return error.problems


def is_sound(result: Config | tuple[Problem, ...]) -> bool:
    """A Config, or at least one problem; in printable characters whatever the file holds."""
    return isinstance(result, Config) or (len(result) > 0 and all(str(problem).isprintable() for problem in result))


@given(st.text(max_size=200))
def test_any_text_is_a_config_or_problems(text: str) -> None:
    assert is_sound(outcome(text))


@given(st.lists(st.tuples(st.sampled_from(KEYS) | st.text(string.ascii_letters, min_size=1), VALUES), max_size=4))
def test_any_document_is_a_config_or_problems(pairs: list[tuple[str, Any]]) -> None:
    assert is_sound(outcome("\n".join(f"{key} = {written(value)}" for key, value in pairs)))


@given(st.sampled_from(LEAVES), VALUES)
def test_any_value_for_any_key_is_taken_or_blamed_on_that_key(leaf: Leaf, value: Any) -> None:
    key = ".".join(leaf.path)
    result = outcome(f"{key} = {written(value)}")
    related = {"firewall.rule_priority": "return_path.bgp.rule_priority", "firewall.mark_mask": "external_ip"}
    assert isinstance(result, Config) or all(p.key.startswith((key, related.get(key, key))) for p in result)


def written(value: Any) -> str:
    """A value as TOML, with strings and keys in their escaped form."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return str(value).lower()
