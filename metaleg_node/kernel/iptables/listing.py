"""Reading what iptables-save and `ipset save` print, as far as it is ours or leads to ours."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from metaleg_node.core.model import Family
from metaleg_node.kernel.elements import network_of, network_text
from metaleg_node.kernel.iptables.ruleset import (
    CHAINS,
    COMMENT,
    COUNTERS,
    HALVES,
    OTHERS,
    OWN_SET,
    STRANGE,
    Chain,
    Jumps,
    Place,
    Set,
)
from metaleg_node.kernel.packet_filter import Counter

_SYSTEM = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_COUNTED = re.compile(r"\[(\d+):(\d+)\] (-A .*)")
_COMMENT = re.compile(r' --comment (?:"((?:[^"\\]|\\.)*)"|(\S+))')
_SIZES = frozenset({"hashsize", "maxelem", "bucketsize", "initval"})
"""What the kernel chooses by itself; each is followed by a value."""


class Rules:
    """What the tables of one family say of ours, as iptables-save lists them."""

    def __init__(self, family: Family, lines: Iterable[str]) -> None:
        self.jumps: dict[Place, Jumps] = {}
        self.calls: dict[Place, tuple[str, ...]] = {}
        self._comments: dict[Place, list[str]] = {}
        jumps: dict[Place, list[str]] = defaultdict(list)
        calls: dict[Place, list[str]] = defaultdict(list)
        table = ""
        for line in lines:
            if line.startswith("*"):
                table = line[1:].strip()
            elif line.startswith(f":{CHAINS}"):
                self._comments.setdefault(Place(family, table, line[1:].split()[0]), [])
            elif line.startswith(f"-A {CHAINS}"):
                self._comments.setdefault(Place(family, table, line.split(" ", 2)[1]), []).append(_comment(line))
            elif line.startswith("-A "):
                place = Place(family, table, line.split(" ", 2)[1])
                called = _called(line) if CHAINS in line else OTHERS
                if called:
                    calls[place].append(line.removeprefix("-A "))
                if (called or place.chain in _SYSTEM) and not (called == OTHERS and jumps[place][-1:] == [OTHERS]):
                    jumps[place].append(called)
        self.calls = {place: tuple(some) for place, some in calls.items()}
        self.jumps = {place: tuple(jumps[place]) for place in calls}

    @property
    def chains(self) -> dict[Place, Chain]:
        """Those of ours."""
        return {place: Chain(comments=tuple(comments)) for place, comments in self._comments.items()}


def _called(line: str) -> str:
    """The chain of ours that a rule enters, in the way in which this program writes it; STRANGE for another way, and
    OTHERS where it enters none."""
    words = shlex.split(line)
    target = _after(words, "-j") or _after(words, "-g")
    if not target.startswith(CHAINS):
        return OTHERS
    return target if words[2:] == ["-m", "comment", "--comment", COMMENT, "-j", target] else STRANGE


def _comment(line: str) -> str:
    """That of a rule, empty for none."""
    found = _COMMENT.search(line)
    return found[1] or found[2] or "" if found else ""


def _after(words: list[str], word: str) -> str:
    return words[words.index(word) + 1] if word in words[:-1] else ""


def counted(lines: Iterable[str]) -> Iterator[tuple[str, Counter]]:
    """What rules of ours that count for something have counted; `lines` are those of iptables-save with counters."""
    for line in lines:
        if CHAINS in line and (found := _COUNTED.fullmatch(line.strip())):
            name = _comment(found[3]).partition(" ")[2]
            if found[3].startswith(f"-A {CHAINS}") and COUNTERS.fullmatch(name):
                yield name, Counter(int(found[1]), int(found[2]))


# --- sets ------------------------------------------------------------------------------------------------------------


def sets(lines: Iterable[str]) -> dict[str, Set]:
    """Those of ours."""
    headers: dict[str, tuple[str, str]] = {}
    elements: dict[str, dict[str, str]] = {}
    for line in lines:
        action, name, what = line.rstrip("\n").split(" ", 2)
        if action == "create" and OWN_SET.fullmatch(name):
            headers[name], elements[name] = _header(what.split()), {}
        elif action == "add" and name in headers and "timeout" not in headers[name][1]:
            key, _, value = what.partition(" ")
            elements[name][_plain(key)] = value
    return {
        name: Set(kind=kind, options=options, elements=_whole(elements[name]))
        for name, (kind, options) in headers.items()
    }


def _header(words: list[str]) -> tuple[str, str]:
    """The type with the family or the range, and what else was asked for when the set was made."""
    kept = [word for i, word in enumerate(words) if word not in _SIZES and words[i - 1] not in _SIZES]
    return " ".join(kept[:3]), " ".join(kept[3:])


def _plain(key: str) -> str:
    """An element's key as this program spells it: ipset writes IPv4 in IPv6 with dots."""
    network = network_of(key) if ":" in key else None
    return network_text(network) if network else key


def _whole(elements: Mapping[str, str]) -> Mapping[str, str]:
    """ipset knows no network that has all addresses, only its halves; this program puts both for nothing else."""
    for network, halves in HALVES.items():
        if all(half in elements for half in halves):
            return {network: "", **{key: value for key, value in elements.items() if key not in halves}}
    return elements
