"""The difference between two tables as nft scripts, which grow with what differs alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from metaleg_node.core.increments import Evolving
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.nftables.table import TABLE, Chain, Set, Table

_PLAIN = re.compile(r"[-A-Za-z0-9_.:/@+ ]*")
"""All that keys, values and comments of ours consist of."""


def transactions(before: Table | None, after: Table | None) -> tuple[str, ...]:
    """The nft scripts that turn one table into the other, in order; none when they are the same.

    What packets meet changes in one of them. What is new and what is no longer needed comes in a transaction before and
    goes in one after: while the kernel commits, a packet may meet the rules of the one generation and the elements of
    the other. A chain then has no rules yet, and "in none of these networks" is true of all: of half a million packets
    31 left with the node's address.
    """
    if after is None:
        return (f"delete table {TABLE}\n",) if before else ()
    if before is None or _must_rebuild(before, after):
        return (_script([f"add table {TABLE}", f"delete table {TABLE}", *_create(after)]),)
    ready = replace(
        before,
        sets={**{n: s for n, s in after.sets.items() if n not in before.sets}, **before.sets},
        chains={**{n: c for n, c in after.chains.items() if n not in before.chains and not c.hook}, **before.chains},
        counters=before.counters | after.counters,
    )
    kept = replace(
        after,
        sets={**before.sets, **after.sets},
        chains={**before.chains, **after.chains},
        counters=before.counters | after.counters,
    )
    steps = (
        [*_grow(before, ready), *_elements(before, ready)],
        [*_grow(ready, kept), *_elements(ready, kept)],
        [*_shrink(kept, after)],
    )
    return tuple(_script(lines) for lines in steps if lines)


def _script(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _must_rebuild(before: Table, after: Table) -> bool:
    """A base chain's hook and a set's type cannot be changed in place, and what is not ours has no other way to go."""
    chains = any(before.chains[n].hook != c.hook for n, c in after.chains.items() if n in before.chains)
    sets = any(before.sets[n].header != s.header for n, s in after.sets.items() if n in before.sets)
    return chains or sets or bool(before.strange)


def _create(after: Table) -> Iterator[str]:
    yield f"add table {TABLE}"
    yield from _grow(Table(sets={}, chains={}, counters=frozenset()), after)
    for name, wanted in after.sets.items():
        yield from _add_elements(name, wanted, wanted.elements)


def _grow(before: Table, after: Table) -> Iterator[str]:
    """New counters, sets and chains, and the rules of chains that differ; all chains first, since rules jump between
    them, and since nft sends the elements of a new interval map with the map, before what stands after that."""
    yield from (f"add counter {TABLE} {name}" for name in sorted(after.counters - before.counters))
    changed = {n: c for n, c in after.chains.items() if differ(before.chains.get(n), c)}
    for name, chain in changed.items():
        yield f"add chain {TABLE} {name}" + (f" {{ {chain.hook} }}" if chain.hook else "")
    yield from (_declare_set(name, wanted) for name, wanted in after.sets.items() if name not in before.sets)
    yield from (f"flush chain {TABLE} {name}" for name in changed if name in before.chains)
    for name, chain in changed.items():
        for rule, comment in zip(chain.rules, chain.comments, strict=True):
            yield f'add rule {TABLE} {name} {rule} comment "{_plain(comment)}"'


def differ(before: Chain | None, after: Chain | None) -> bool:
    """Whether two chains differ; of an observed one the rules are known by their comments only."""
    if before is None or after is None:
        return before is not after
    return (before.hook, before.comments) != (after.hook, after.comments)


def _declare_set(name: str, wanted: Set) -> str:
    what, types = ("map", f"{wanted.key_type} : {wanted.value_type}") if wanted.value_type else ("set", wanted.key_type)
    flags = " flags interval;" if wanted.interval else " flags timeout;" if wanted.timeout else ""
    return f"add {what} {TABLE} {name} {{ type {types};{flags} }}"


def _elements(before: Table, after: Table) -> Iterator[str]:
    """Removes before it adds: an element with another value must go before the new one can come."""
    for name, wanted in after.sets.items():
        have = before.elements(name)
        if have is wanted.elements:
            continue
        elements = wanted.elements if isinstance(wanted.elements, Evolving) else Evolving(wanted.elements)
        differing = sorted(elements.difference(have))
        stale = [key for key in differing if key in have]
        fresh = {key: elements[key] for key in differing if key in elements}
        if stale:
            yield f"delete element {TABLE} {name} {{"
            yield from (f"{_key(wanted, key)}," for key in stale)
            yield "}"
        yield from _add_elements(name, wanted, fresh)


def _add_elements(name: str, to: Set, elements: Mapping[str, str | None]) -> Iterator[str]:
    """One element a line, so that a complaint of nft names the one it means."""
    if elements:
        yield f"add element {TABLE} {name} {{"
        for key, value in elements.items():
            yield f"{_key(to, key)} : {_plain(value)}," if value else f"{_key(to, key)},"
        yield "}"


def _key(of: Set, key: str) -> str:
    if not of.key_type.startswith("ifname"):
        return _plain(key)
    name, *others = _plain(key).split(" . ")
    return " . ".join([f'"{name}"', *others])


def _plain(text: str) -> str:
    """The text, if it cannot mean anything else to nft. Raises KernelError."""
    if not _PLAIN.fullmatch(text):
        raise KernelError(f"{text[:60]!r} is not passed to nft: no address, interface or node is written so")
    return text


def _shrink(before: Table, after: Table) -> Iterator[str]:
    """Chains, sets and counters that are no longer needed; nothing refers to a chain once all of them are empty."""
    chains = [name for name in before.chains if name not in after.chains]
    sets = {name: "map" if s.value_type else "set" for name, s in before.sets.items() if name not in after.sets}
    yield from (f"flush {what} {TABLE} {name}" for name, what in sets.items())
    yield from (f"flush chain {TABLE} {name}" for name in chains)
    yield from (f"delete chain {TABLE} {name}" for name in chains)
    yield from (f"delete {what} {TABLE} {name}" for name, what in sets.items())
    yield from (f"delete counter {TABLE} {name}" for name in sorted(before.counters - after.counters))
