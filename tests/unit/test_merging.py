"""Keys that were renamed or removed still work; deep or hostile documents are merged like others."""

from __future__ import annotations

from typing import Any

import pytest

from metaleg_node.configuration import config as configuration
from metaleg_node.configuration.config import former_keys, parse
from metaleg_node.configuration.merging import FORMER, Former, Merged
from metaleg_node.configuration.settings import leaves
from metaleg_node.core.problems import Code, Problem, fails

RENAMED = Former(since="0.2", now="egress.exclude_cidrs")
REMOVED = Former(since="0.3", advice="the kernel knows by itself")


@pytest.fixture
def former(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMER, "cluster.no_egress", RENAMED)
    monkeypatch.setitem(FORMER, "firewall.speed", REMOVED)


@pytest.mark.usefixtures("former")
def test_a_renamed_key_counts_and_a_removed_one_does_not_and_both_are_told() -> None:
    config = parse(
        '[cluster]\nno_egress = ["192.0.2.0/24"]\n', file="A", fragments={"B": "[firewall]\nspeed = 3\n[cluster]\n"}
    )
    assert list(map(str, config.egress.exclude_cidrs)) == ["192.0.2.0/24"]
    assert [str(problem) for problem in former_keys(config)] == [
        "A: cluster.no_egress: is called egress.exclude_cidrs since version 0.2; rename it, the old name ends two "
        "releases later",
        "B: firewall.speed: has no effect since version 0.3: the kernel knows by itself; remove it, it is an error two "
        "releases later",
    ]


@pytest.mark.usefixtures("former")
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ('cluster.no_egress = ["10.0.0.0/8"]\negress.exclude_cidrs = ["192.0.2.0/24"]', "", "192.0.2.0/24"),
        ('egress.exclude_cidrs = ["192.0.2.0/24"]', 'cluster.no_egress = ["10.0.0.0/8"]', "10.0.0.0/8"),
        ('cluster.no_egress = ["10.0.0.0/8"]', 'egress.exclude_cidrs = ["192.0.2.0/24"]', "192.0.2.0/24"),
    ],
)
def test_the_new_name_counts_in_one_file_and_the_later_file_among_several(
    first: str, second: str, expected: str
) -> None:
    config = parse(first, file="A", fragments={"B": second})
    assert list(map(str, config.egress.exclude_cidrs)) == [expected]


@pytest.mark.usefixtures("former")
def test_a_bad_value_under_a_former_name_is_an_error_of_that_file() -> None:
    with pytest.raises(configuration.ConfigError, match=r"^B: egress\.exclude_cidrs\[0\]"):
        parse("", file="A", fragments={"B": 'cluster.no_egress = ["x"]'})


TAKEN = "is the address of metrics.listen as well; change the port of one of the two"
HEALTH, METRICS = (f'[{table}]\nlisten = "127.0.0.1:9"\n' for table in ("health", "metrics"))


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ((HEALTH, METRICS), f'A: health.listen = "127.0.0.1:9": {TAKEN}; metrics.listen is in B'),
        ((METRICS, HEALTH), f'B: health.listen = "127.0.0.1:9": {TAKEN}; metrics.listen is in A'),
        (("", HEALTH + METRICS), f'B: health.listen = "127.0.0.1:9": {TAKEN}'),
        (("", METRICS.replace(":9", ":21794")), f'B: health.listen = "127.0.0.1:21794": {TAKEN}'),
    ],
)
def test_what_two_keys_are_to_each_other_names_the_file_of_each(texts: tuple[str, str], problem: str) -> None:
    with pytest.raises(configuration.ConfigError) as caught:
        parse(texts[0], file="A", fragments={"B": texts[1]})
    assert str(caught.value) == problem


def test_a_former_key_makes_no_command_fail() -> None:
    problem = Problem(code=Code.FORMER_KEY, text="is called otherwise")
    assert not fails("check", [problem])
    assert not fails("status", [problem])


def test_every_former_key_leads_to_one_that_exists() -> None:
    keys = {leaf.key for leaf in leaves(configuration.Config)}
    assert [key for key, former in FORMER.items() if key in keys or (former.now and former.now not in keys)] == []


def test_a_value_replaces_a_table_with_all_that_is_known_of_it_and_depth_does_no_harm() -> None:
    merged = Merged(main="A")
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    merged.add("A", {"a": {"b": {"c": 1}, "d": 2}, "deep": deep})
    merged.add("B", {"a": {"b": {"c": 3}}, "deep": {"a": 1}})
    assert [merged.file(key) for key in ("a.b.c", "a.d", "a", "deep.a", "x.y")] == ["B", "A", "A", "B", "A"]
    merged.add("C", {"a": {"b": 4}})
    assert merged.tables == {"a": {"b": 4, "d": 2}, "deep": {"a": 1}}
    assert merged.file("a.b.c") == "C"
