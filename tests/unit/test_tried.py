"""What is told of a kernel and programs that are older than those that the tests ran with."""

from __future__ import annotations

import pytest

from metaleg_node.core import tried

GOOD = {"Linux": "6.12.41+deb13-amd64", "nft": "1.1.3"}


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("Linux", "5.10.0-46-amd64"),
        ("Linux", "5.10"),
        ("Linux", "10.0"),
        ("nft", "1.0.6"),
        ("nft", "1.0.10"),
        ("nft", "2"),
    ],
)
def test_what_was_tried_and_all_that_is_newer_is_good(name: str, version: str) -> None:
    assert not [*tried.older({**GOOD, name: version})]


@pytest.mark.parametrize(
    ("name", "version"),
    [("Linux", "5.4.0-216-generic"), ("Linux", "5.9.16"), ("nft", "1.0.2"), ("nft", "0.9.8"), ("nft", "1.0")],
)
def test_what_is_older_is_told_with_the_oldest_that_was_tried(name: str, version: str) -> None:
    (sentence,) = tried.older({**GOOD, name: version})
    assert sentence.startswith(f"{name} {version} is older than {tried.OLDEST[name]}, ")
