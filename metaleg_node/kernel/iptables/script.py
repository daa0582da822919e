"""The difference between two rulesets as input of ipset and of iptables-restore, which grow with what differs alone.

Sets are filled before and emptied after the rules that ask them change. The map of the pods is what begins egress: it
is filled last and emptied first, so that a pod which is in it is in all that its packets meet, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.iptables.ruleset import CHAINS, COMMENT, HALVES, Place, Rule, Ruleset, Set, fits

_TABLES = ("raw", "filter", "mangle", "nat")
"""In this order what is new comes: what marks the first packet of a connection is in the last of them."""
_PLAIN = re.compile(r'[-\w.:/@+, =!]*(?:"[-\w.:/@+ ]*")?', re.ASCII)
"""All that rules, elements and comments of ours consist of."""
_MOST_ELEMENTS = 1 << 20


def grow(before: Ruleset, after: Ruleset) -> Iterator[str]:
    """New sets and new elements, for `ipset -exist restore`: an element that is there gets another value so."""
    for name, wanted in after.sets.items():
        if name not in before.sets:
            yield f"create {name} {_declared(wanted)}"
    for name, wanted in _maps_last(after.sets):
        have = _halved(before.elements(name))
        for key, value in _halved(wanted.elements).items():
            if have.get(key) != value:
                yield plain(f"add {name} {key} {value}".rstrip())


def shrink(before: Ruleset, after: Ruleset) -> Iterator[str]:
    """Elements and sets that are no longer needed, for `ipset -exist restore`."""
    for name, had in reversed(_maps_last(before.sets)):
        if name in after.sets:
            wanted = _halved(after.elements(name))
            yield from (plain(f"del {name} {key}") for key in _halved(had.elements) if key not in wanted)
    yield from (f"destroy {name}" for name in before.sets if name not in after.sets)


def _maps_last(sets: Mapping[str, Set]) -> list[tuple[str, Set]]:
    return sorted(sets.items(), key=lambda item: item[1].options == "skbinfo")


def _declared(wanted: Set) -> str:
    hashed = f" hashsize 64 maxelem {_MOST_ELEMENTS}" if wanted.kind.startswith("hash:") else ""
    return f"{wanted.kind}{hashed} {wanted.options}".rstrip()


def _halved(elements: Mapping[str, str]) -> Mapping[str, str]:
    """With halves in place of a network that has all addresses, which ipset does not know."""
    whole = HALVES.keys() & elements.keys()
    if not whole:
        return elements
    halves = {half: "" for network in whole for half in HALVES[network]}
    return halves | {key: value for key, value in elements.items() if key not in whole}


def rebuilds(before: Ruleset, after: Ruleset) -> bool:
    """Whether a set is of another type than it should be, which cannot be changed while a rule asks it."""
    return any(before.sets[n].header != s.header for n, s in after.sets.items() if n in before.sets)


def rules(before: Ruleset, after: Ruleset) -> dict[Family, str]:
    """Input of iptables-restore for each family that differs; each table changes at once. What is taken away goes in
    the opposite order of what comes."""
    tables = _TABLES if after else _TABLES[::-1]
    scripts: dict[Family, str] = {}
    for family in FAMILIES:
        lines = [line for table in tables for line in _table(family, table, before, after)]
        if lines:
            scripts[family] = "\n".join(lines) + "\n"
    return scripts


def _table(family: Family, table: str, before: Ruleset, after: Ruleset) -> Iterator[str]:
    def here(places: Iterable[Place]) -> list[Place]:
        return [place for place in places if place[:2] == (family, table)]

    changed = [place for place in here(after.chains) if differ(place, before, after)]
    gone = [place for place in here(before.chains) if place not in after.chains]
    entered = [place for place in here(entrances(before, after)) if misplaced(place, before, after)]
    if not changed and not gone and not entered:
        return
    yield f"*{table}"
    # Declaring a chain of ours makes it, or empties it.
    yield from (f":{place.chain} - [0:0]" for place in (*changed, *gone))
    for place in changed:
        chain = after.chains[place]
        yield from (_rule(place, rule, text) for rule, text in zip(chain.rules, chain.comments, strict=True))
    for place in entered:
        yield from _entrance(place, before, after)
    yield from (f"-X {place.chain}" for place in gone)
    yield "COMMIT"


def differ(place: Place, before: Ruleset, after: Ruleset) -> bool:
    """Whether a chain of ours is not as it should be; of an observed one the rules are known by their comments only."""
    had, wanted = before.chains.get(place), after.chains.get(place)
    return (had and had.comments) != (wanted and wanted.comments)


def entrances(before: Ruleset, after: Ruleset) -> list[Place]:
    """The chains of others that enter ours, or should."""
    return list(dict.fromkeys((*after.first, *after.last, *before.calls)))


def misplaced(place: Place, before: Ruleset, after: Ruleset) -> bool:
    """Whether a chain of others enters ours otherwise than it should."""
    return not fits(before.jumps.get(place, ()), *after.entered(place))


def _rule(place: Place, rule: Rule, comment: str) -> str:
    return plain(f"-A {place.chain} {rule.text}") + f' -m comment --comment "{plain(comment)}"'


def _entrance(place: Place, before: Ruleset, after: Ruleset) -> Iterator[str]:
    """In one go, so that nothing passes by meanwhile."""
    first, last = after.entered(place)
    yield from (f"-D {call}" for call in before.calls.get(place, ()))
    yield from (f"-I {place.chain} {n} {_call(name)}" for n, name in enumerate(first, start=1))
    yield from (f"-A {place.chain} {_call(name)}" for name in last)


def _call(chain: str) -> str:
    assert chain.startswith(CHAINS)
    return f"-m comment --comment {COMMENT} -j {chain}"


def plain(text: str) -> str:
    """The text, if it cannot mean anything else to iptables-restore or ipset. Raises KernelError."""
    if not _PLAIN.fullmatch(text):
        raise KernelError(f"{text[:60]!r} is not passed to iptables: no address, interface or node is written so")
    return text
