"""How good inputs are damaged: in their bytes, and in the values that they are written from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 65536, 2**63, -(2**70), 10**400, float("inf"), float("nan")),
    *(
        "",
        " ",
        "\n",
        "x\ny",
        "\x00",
        "\x1b[31m",
        "\u202e",
        "\ud800",
        "\xb2",
        "\u0663",
        "\ufeff",
        "x" * 70000,
        "a" * 300,
    ),
    *("null", "true", "~", "0x1f", "1e999", "1:2:3", "2026-13-45", "2026-01-02", "9999-12-31T23:59:60Z", "-" * 50),
    *("0.0.0.0", "0.0.0.0/0", "::", "::/0", "10.0.0.1/33", "fe80::1%eth0", "::ffff:1.2.3.4", "1.2.3", "010.1.1.1"),
    *("10.0.0.0-10.0.0.255", "10.0.0.9-10.0.0.1", "::-ffff::", "https://[::1", "http://a:b", "socks5://x", "//", "/"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": {"c": []}}}, ["a", 1, {}], [["x"] * 3] * 3),
)
TOKENS: tuple[bytes, ...] = (
    *(b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\n", b"\r\n", b"\t", b" ", b"---\n", b"...\n", b": ", b"- ", b"#"),
    *(b"{", b"}", b"[", b"]", b",", b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"&a ", b"*a", b"<<: ", b"!!binary "),
    *(b"!!timestamp ", b"!!float ", b"!!python/none ", b"? ", b"|\n", b">-\n", b"%YAML 9.9\n", b"@", b"`", b"1e999"),
    *(b"0x", b"9" * 5000, b"[" * 2000, b"{a: " * 300, b"'''", b'"""', b"=", b".", b"[[", b"]]", b"inf", b"nan", b"-0"),
)


def damaged_value(random: Random, good: Any) -> Any:
    """A copy with one to four changes at any places in it."""
    made = copy.deepcopy(good)
    for _ in range(random.randint(1, 4)):
        _damage(random, made)
    return made


def _damage(random: Random, value: Any) -> None:
    """Walks down to some place and changes what is there."""
    here = value
    while isinstance(here, dict | list) and here:
        key = random.choice(list(here) if isinstance(here, dict) else range(len(here)))
        inner = here[key]
        if isinstance(inner, dict | list) and inner and random.random() < 0.8:
            here = inner
            continue
        random.choice(_CHANGES)(random, here, key)
        return


def _replace(random: Random, here: Any, key: Any) -> None:
    here[key] = copy.deepcopy(random.choice(HOSTILE))


def _remove(_random: Random, here: Any, key: Any) -> None:
    del here[key]


def _repeat(random: Random, here: Any, key: Any) -> None:
    if isinstance(here, list):
        here.extend(copy.deepcopy(here[key]) for _ in range(random.choice((1, 2, 300))))


def _wrap(random: Random, here: Any, key: Any) -> None:
    here[key] = random.choice(([here[key]], {"a": here[key]}, str(here[key])))


def _move(random: Random, here: Any, key: Any) -> None:
    """Changes a key, or the place in a list."""
    inner = here.pop(key)
    if isinstance(here, dict):
        here[random.choice((f"{key}x", f"{key}"[:-1], "", "name", "x" * 300, "a\nb"))] = inner
    else:
        here.insert(random.randint(0, len(here)), inner)


def _edit(random: Random, here: Any, key: Any) -> None:
    """Damages a text or a number a little."""
    inner = here[key]
    if isinstance(inner, str):
        at = random.randint(0, len(inner))
        inserted = random.choice(("", ".", ":", "/", "-", ",", "0", "9", " ", "\n", "%", "=", "é", "\x7f"))
        here[key] = inner[:at] + inserted + inner[at + random.randint(0, 2) :]
    elif isinstance(inner, int):
        here[key] = inner + random.choice((-1, 1, 256, 65536, 2**32))


_CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (
    _replace,
    _replace,
    _edit,
    _edit,
    _remove,
    _repeat,
    _wrap,
    _move,
)


def damaged_bytes(random: Random, good: bytes) -> bytes:
    """One to six changes of the bytes."""
    made = good
    for _ in range(random.randint(1, 6)):
        start = random.randint(0, len(made))
        end = min(len(made), start + random.choice((0, 0, 1, 1, 2, 8, 64)))
        piece = random.choice((b"", random.choice(TOKENS), random.randbytes(random.randint(1, 3)), made[start:end] * 2))
        made = made[:start] + piece + made[end:]
    return made if random.random() < 0.9 else made[: random.randint(0, len(made))]
