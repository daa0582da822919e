"""Tables, and text from strangers made safe to print."""

import pytest

from metaleg_node.text import counted, printable, table


def test_columns_are_as_wide_as_their_widest_cell_and_nothing_trails() -> None:
    assert table([("web", 1), ("a-long-name", 22)], ("name", "pods")) == (
        "NAME         PODS\nweb          1\na-long-name  22"
    )


def test_a_row_of_the_wrong_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        table([("one",)], ("a", "b"))


def test_a_cell_cannot_forge_a_line() -> None:
    assert table([("a\nHEALTHY yes\x1b[2J",)], ("name",)) == "NAME\na\\nHEALTHY yes\\x1b[2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ümläut, 日本", "plain, ümläut, 日本"),
        ("a\r\nb\t\0", "a\\r\\nb\\t\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("\u2028\u202e", "\\u2028\\u202e"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_whatever_the_text_the_result_is_one_printable_line() -> None:
    everything = "".join(map(chr, range(0x10000)))
    assert printable(everything).isprintable()
    assert len(printable(everything).splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "pod", "0 pods"),
        (1, "pod", "1 pod"),
        (2, "pod", "2 pods"),
        (1, "address", "1 address"),
        (2, "address", "2 addresses"),
    ],
)
def test_nouns_follow_their_number(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text
