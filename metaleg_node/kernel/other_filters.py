"""What other programs' packet filters do with packet marks and conntrack, whether they forward at all, and where they
come before us; only read, never changed.

The tables nat, which may be huge, and large tables of nftables are left out, and the elements of sets.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from metaleg_node.core.others import MarkUse
from metaleg_node.kernel import process
from metaleg_node.kernel.errors import KernelError, MissingProgramError
from metaleg_node.kernel.iptables.ruleset import CHAINS
from metaleg_node.kernel.nftables.table import FAMILY, NAME
from metaleg_node.kernel.packet_filters import why_no_nftables

_ALL_BITS = 0xFFFFFFFF
_MANY_CHAINS = 200
_XTABLES = ("filter", "mangle", "raw")
_PROGRAMS = {"ip": "iptables", "ip6": "ip6tables"}
_LEGACY = {"ip": Path("/proc/thread-self/net/ip_tables_names"), "ip6": Path("/proc/thread-self/net/ip6_tables_names")}
_OF_DOCKER = re.compile(r"docker\d+|br-[0-9a-f]{12}")
"""Interfaces of containers that are no pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One rule: the bits of the mark that it changes and those that it asks for, the chain that it goes on to, whether
    it accepts packets that a pod may send to begin with, and whether it keeps packets from conntrack."""

    chain: str
    changed: int = 0
    asked: int = 0
    target: str = ""
    accepts: bool = False
    untracks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What all of them do together; `closed` are chains that forward nothing that a pod may send, `untracked` those
    that keep packets from conntrack."""

    marks: frozenset[MarkUse]
    closed: frozenset[str]
    untracked: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain of nftables or iptables-nft, or (`program` set) of iptables-legacy; `type` and `hook` are empty for one
    that others jump to, and in iptables-legacy."""

    table: str
    name: str
    type: str = ""
    hook: str = ""
    priority: int = 0
    program: str = ""


def look() -> Found:
    """Reads them. Raises KernelError."""
    marks: set[MarkUse] = set()
    closed: set[str] = set()
    untracked: set[str] = set()
    for place, dropping, rules in (*_xtables(), *_nftables()):
        marks |= {MarkUse(place=f"{place} chain {r.chain}", changed=r.changed, asked=r.asked) for r in rules}
        closed |= {f"{place} chain {chain}" for chain in dropping if not _lets_through(chain, rules)}
        untracked |= {f"{place} chain {rule.chain}" for rule in rules if rule.untracks}
    return Found(
        marks=frozenset(use for use in marks if use.changed or use.asked),
        closed=frozenset(closed),
        untracked=frozenset(untracked),
    )


def chains() -> tuple[Chain, ...]:
    """All chains but ours, those of iptables-nft too. Raises KernelError."""
    return tuple(
        Chain(
            table=f"{one['family']} {one['table']}",
            name=one["name"],
            type=one.get("type", ""),
            hook=one.get("hook", ""),
            priority=one.get("prio", 0),
        )
        for item in _listing("list", "chains")
        if (one := item.get("chain")) and (one["family"], one["table"]) != (FAMILY, NAME)
    )


def legacy_chains() -> tuple[Chain, ...]:
    """The chains of iptables-legacy's tables nat but ours; none where nobody uses it. Raises KernelError."""
    return tuple(
        Chain(table=f"{program}-legacy nat", name=line[1:].split(" ", 1)[0], program=f"{program}-legacy")
        for family, program in _PROGRAMS.items()
        if "nat" in _legacy(family)
        for line in _saved(f"{program}-legacy-save", "nat")
        if line.startswith(":") and not line.startswith(f":{CHAINS}")
    )


def flowtables() -> tuple[str, ...]:
    """Others' flowtables, as `nft list flowtable` names them. Raises KernelError."""
    found = (item["flowtable"] for item in _listing("list", "flowtables") if "flowtable" in item)
    return tuple(f"{one['family']} {one['table']} {one['name']}" for one in found)


def rules_of(chain: Chain) -> tuple[str, ...]:
    """The rules of a chain, as nft or iptables prints them. Raises KernelError."""
    if chain.program:
        return tuple(process.run([chain.program, "-t", "nat", "-S", chain.name]).stdout.splitlines()[1:])
    done = process.run(["nft", "list", "chain", *chain.table.split(), chain.name])
    return tuple(line.strip() for line in done.stdout.splitlines()[2:-2])


def legacy_tables() -> tuple[str, ...]:
    """The tables that iptables-legacy has, whether there is a rule in them or not."""
    return tuple(f"{_PROGRAMS[family]}-legacy table {name}" for family in _LEGACY for name in sorted(_legacy(family)))


_Table = tuple[str, list[str], list[_Rule]]
"""What it is called, its chains at the forward hook with the policy drop, its rules."""


def _lets_through(chain: str, rules: Iterable[_Rule]) -> bool:
    by_chain: dict[str, list[_Rule]] = defaultdict(list)
    for rule in rules:
        by_chain[rule.chain].append(rule)
    seen: set[str] = set()
    todo = [chain]
    while todo:
        name = todo.pop()
        seen.add(name)
        if any(rule.accepts for rule in by_chain[name]):
            return True
        todo += {rule.target for rule in by_chain[name] if rule.target} - seen
    return False


# --- iptables --------------------------------------------------------------------------------------------------------


def _xtables() -> Iterator[_Table]:
    listed = _listing("list", "tables")
    for family, program in _PROGRAMS.items():
        present = {item["table"]["name"] for item in listed if item.get("table", {}).get("family") == family}
        for kind, names in (("nft", present), ("legacy", _legacy(family))):
            for name in _XTABLES:
                if name in names and (saved := _saved(f"{program}-{kind}-save", name)):
                    yield f"{program}-{kind} table {name}", *_parsed(saved)


def _legacy(family: str) -> set[str]:
    try:
        return set(_LEGACY[family].read_text().split())
    except OSError:
        return set()


def _saved(program: str, table: str) -> list[str]:
    try:
        done = process.run([program, "-t", table])
    except MissingProgramError:
        return []
    return done.stdout.splitlines() if not done.returncode else []


def _parsed(lines: Iterable[str]) -> tuple[list[str], list[_Rule]]:
    dropping, rules = [], []
    for line in lines:
        if line.startswith(":FORWARD DROP"):
            dropping.append("FORWARD")
        elif line.startswith("-A ") and not line.startswith(f"-A {CHAINS}"):
            rules.append(_xtables_rule(shlex.split(line)))
    return dropping, rules


def _xtables_rule(words: list[str]) -> _Rule:
    target = _after(words, "-j") or _after(words, "-g")
    changed = asked = 0
    if target == "MARK":
        value, mask = _value_and_mask(_after(words, "--set-xmark") or "0x0/0xffffffff")
        changed = value | mask
    elif target == "CONNMARK" and "--restore-mark" in words:
        changed = int(_after(words, "--nfmask") or "0xffffffff", 16)
    if "mark" in _modules(words) and _before(words, "--mark") != "!":
        value, mask = _value_and_mask(_after(words, "--mark"))
        asked = value & mask
    limited = "--ctstate" in words or "--mark" in words or bool(_OF_DOCKER.fullmatch(_after(words, "-i")))
    accepts = target == "ACCEPT" and not limited and not _OF_DOCKER.fullmatch(_after(words, "-o"))
    untracks = target == "NOTRACK" or (target == "CT" and "--notrack" in words)
    return _Rule(chain=words[1], changed=changed, asked=asked, target=target, accepts=accepts, untracks=untracks)


def _modules(words: list[str]) -> set[str]:
    return {after for word, after in pairwise(words) if word == "-m"}


def _after(words: list[str], word: str) -> str:
    return words[words.index(word) + 1] if word in words[:-1] else ""


def _before(words: list[str], word: str) -> str:
    return words[words.index(word) - 1] if word in words else "!"


def _value_and_mask(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 16), int(mask, 16) if mask else _ALL_BITS


# --- nftables --------------------------------------------------------------------------------------------------------


def _nftables() -> Iterator[_Table]:
    chains: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for item in _listing("list", "chains"):
        if chain := item.get("chain"):
            chains[chain["family"], chain["table"]].append(chain)
    for (family, name), some in chains.items():
        ours = (family, name) == (FAMILY, NAME)
        of_iptables = family in _PROGRAMS and name in (*_XTABLES, "nat", "security")
        if not ours and not of_iptables and len(some) <= _MANY_CHAINS:
            listed = _listing("-t", "list", "table", family, name)
            rules = [_nftables_rule(item["rule"]) for item in listed if "rule" in item]
            dropping = [one["name"] for one in some if one.get("hook") == "forward" and one.get("policy") == "drop"]
            yield f"nftables table {family} {name}", dropping, rules


def _listing(*words: str) -> list[dict[str, Any]]:
    if why_no_nftables():
        return []
    done = process.run(["nft", "-j", *words])
    if done.returncode:
        if "No such file or directory" in done.stderr:
            return []
        raise KernelError(f"cannot {' '.join(words)} of nftables: {done.stderr.strip()[:200]}")
    try:
        listed: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    except ValueError:
        # nft 1.0.6 prints rubbish for some flags of tables.
        return []
    return listed


def _nftables_rule(rule: dict[str, Any]) -> _Rule:
    changed = asked = 0
    target, accepts, limited, untracks = "", False, False, False
    for statement in rule.get("expr", []):
        match statement:
            case {"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}:
                changed |= _changed(value)
            case {"match": {"op": "==", "left": left, "right": int(value)}} if _about_mark(left):
                asked |= value & _mask(left)
                limited = True
            case {"match": {"left": left, "right": right}}:
                limited |= "ct" in str(left) or _about_mark(left) or bool(_OF_DOCKER.fullmatch(str(right)))
            case {"accept": _}:
                accepts = True
            case {"notrack": _}:
                untracks = True
            case {"vmap": _}:
                # It may lead anywhere.
                accepts = True
            case {"jump": {"target": name}} | {"goto": {"target": name}}:
                target = name
    return _Rule(
        chain=rule["chain"],
        changed=changed,
        asked=asked,
        target=target,
        accepts=accepts and not limited,
        untracks=untracks,
    )


def _about_mark(value: Any) -> bool:
    return "'key': 'mark'" in str(value) and "'meta'" in str(value)


def _mask(value: Any) -> int:
    match value:
        case {"&": [_, int(mask)]}:
            return mask
    return _ALL_BITS


def _changed(value: Any) -> int:
    """The bits that may not be as they were once a mark is set to this."""
    match value:
        case {"meta": {"key": "mark"}}:
            return 0
        case {"&": [inner, int(mask)]}:
            return _changed(inner) | (~mask & _ALL_BITS)
        case {"|": [inner, int(bits)]} | {"^": [inner, int(bits)]}:
            return _changed(inner) | bits
    return _ALL_BITS
