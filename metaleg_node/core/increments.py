"""What makes a change cost what it changes: values that know which earlier value they came from, and results that are
kept for inputs that are the very same objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, count
from operator import is_not
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
R = TypeVar("R")

_NONE: Any = object()


class Evolving(Mapping[K, V]):
    """A mapping that never changes. What `changed` makes of it shares its entries, so that a change costs what it
    changes, and so does comparing the two; an older one is put together anew only if all of it is asked for. One thread
    makes changes, any may read."""

    # The newest of a line has the entries; each older one knows the next, and what to undo to get from there to it.
    # Before the entries become another one's they are taken away here: who still finds them here after a look at them
    # has seen them as they were.
    __slots__ = ("_counts", "_entries", "_later", "_size", "_undo")

    def __init__(self, entries: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._begin(dict(entries), None)

    def _begin(self, entries: dict[K, V], counts: dict[V, int] | None) -> None:
        self._entries: dict[K, V] | None = entries
        self._later: Evolving[K, V] | None = None
        self._undo: dict[K, V] = {}
        self._size = len(entries)
        self._counts = counts

    def changed(self, put: Mapping[K, V], gone: Iterable[K] = ()) -> Evolving[K, V]:
        """The same without what is `gone`, with what is `put`; the very same object where that is so already."""
        if self._entries is None:
            return Evolving(self._copy()).changed(put, gone)
        entries = self._entries
        undo = {key: entries[key] for key in gone if key not in put and key in entries}
        undo |= {key: old for key, value in put.items() if (old := entries.get(key, _NONE)) is not value}
        if not undo:
            return self
        new = Evolving.__new__(Evolving)
        new._begin(entries, self._counted_with(put, undo))
        new._size += sum((key in put) - (old is not _NONE) for key, old in undo.items())
        self._undo, self._later = undo, new
        self._entries = None
        for key in undo:
            if key in put:
                entries[key] = put[key]
            else:
                del entries[key]
        return new

    def distinct(self) -> Mapping[V, int]:
        """Its values, and how often it has each; they must be hashable."""
        if self._counts is None:
            self._counts = dict(Counter(self._copy().values()))
        return self._counts

    def difference(self, other: Mapping[K, V]) -> set[K]:
        """The keys that only one of the two has, or with another value."""
        if other is self:
            return set()
        if isinstance(other, Evolving):
            near = _between(self, other) if _leads(self, other) else None
            near = _between(other, self) if near is None and _leads(other, self) else near
            if near is not None:
                return {key for key in near if not _same(self.get(key, _NONE), other.get(key, _NONE))}
        mine, theirs = self._copy(), dict(other)
        found: set[K] = set()
        stayed = 0
        for key, value in mine.items():
            there = theirs.get(key, _NONE)
            stayed += there is not _NONE
            # Mostly the very same object: that costs less to see than to compare two, or to look for pairs in a set.
            if there is not value and (there is _NONE or there != value):
                found.add(key)
        return found if stayed == len(theirs) else found | (theirs.keys() - mine.keys())

    def get(self, key: object, default: Any = None) -> Any:
        one = self
        while True:
            entries = one._entries
            if entries is not None:
                value = entries.get(key, _NONE)  # type: ignore[arg-type]
                if one._entries is entries:
                    break
            elif key in one._undo:
                value = one._undo[key]
                break
            else:
                assert one._later is not None
                one = one._later
        return default if value is _NONE else value

    def __getitem__(self, key: K) -> V:
        value: V = self.get(key, _NONE)
        if value is _NONE:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        return self.get(key, _NONE) is not _NONE

    def __iter__(self) -> Iterator[K]:
        return iter(self._copy())

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self is other or (len(self) == len(other) and not self.difference(other))

    # As a dict, which has no hash either.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Evolving({self._copy()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Evolving, (self._copy(),)

    def items(self) -> Any:
        return self._copy().items()

    def values(self) -> Any:
        return self._copy().values()

    def keys(self) -> Any:
        return self._copy().keys()

    def _counted_with(self, put: Mapping[K, V], undo: Mapping[K, V]) -> dict[V, int] | None:
        """The counts after a change; None while nobody asked for any."""
        if self._counts is None:
            return None
        counts = dict(self._counts)
        for key, old in undo.items():
            for value, more in ((old, -1), (put.get(key, _NONE), 1)):
                if value is not _NONE:
                    counts[value] = counts.get(value, 0) + more
                    if not counts[value]:
                        del counts[value]
        return counts

    def _copy(self) -> dict[K, V]:
        """The entries, put together from those of the newest."""
        one, undone = self, []
        while True:
            entries = one._entries
            if entries is None:
                undone.append(one._undo)
                assert one._later is not None
                one = one._later
                continue
            found = dict(entries)
            if one._entries is entries:
                break
        for undo in reversed(undone):
            for key, value in undo.items():
                if value is _NONE:
                    found.pop(key, None)
                else:
                    found[key] = value
        return found


def _leads(one: Evolving[K, V], other: Evolving[K, V]) -> bool:
    """Whether `other` came from `one`."""
    at: Evolving[K, V] | None = one
    while at is not None and at is not other:
        at = at._later
    return at is other


def _between(one: Evolving[K, V], other: Evolving[K, V]) -> set[K]:
    """The keys that were changed on the way from one to the other."""
    found: set[K] = set()
    at = one
    while at is not other:
        found |= at._undo.keys()
        assert at._later is not None
        at = at._later
    return found


def _same(one: object, other: object) -> bool:
    return one is other or (one is not _NONE and other is not _NONE and one == other)


# --- sequences of objects --------------------------------------------------------------------------------------------


def _ends(before: Sequence[object], now: Sequence[object]) -> tuple[int, int]:
    """How many objects at the beginning and at the end are the very same."""
    short = min(len(before), len(now))
    head = next(compress(count(), map(is_not, before, now)), short)
    tail = next(compress(count(), map(is_not, reversed(before), reversed(now))), short)
    return head, min(tail, short - head)


def _moved(before: Sequence[object], now: Sequence[object]) -> list[int]:
    """Where two sequences of one length have not the very same object."""
    return [*compress(count(), map(is_not, before, now))]


def exchanged(before: Sequence[T], now: Sequence[T]) -> tuple[list[T], list[T]]:
    """The objects that are in the first sequence alone, and those that are in the second alone, by identity."""
    if before is now:
        return [], []
    old: Sequence[T]
    new: Sequence[T]
    if len(before) == len(now):
        places = _moved(before, now)
        old, new = [before[at] for at in places], [now[at] for at in places]
    else:
        head, tail = _ends(before, now)
        old, new = before[head : len(before) - tail], now[head : len(now) - tail]
    there, here = set(map(id, old)), set(map(id, new))
    return [one for one in old if id(one) not in here], [one for one in new if id(one) not in there]


def remade(before: Sequence[T], results: Sequence[R], now: Sequence[T], make: Callable[[T], R]) -> tuple[R, ...]:
    """What `make` gives for each object; for those that were there before, which gave `results`, the same again."""
    if before is now:
        return tuple(results)
    if len(before) == len(now):
        found, places = [*results], _moved(before, now)
        known = {id(before[at]): results[at] for at in places}
        for at in places:
            found[at] = known[id(now[at])] if id(now[at]) in known else make(now[at])
        return tuple(found)
    head, tail = _ends(before, now)
    end, last = len(before) - tail, len(results) - tail
    known = dict(zip(map(id, before[head:end]), results[head:last], strict=True))
    made = [known[id(one)] if id(one) in known else make(one) for one in now[head : len(now) - tail]]
    return (*results[:head], *made, *results[last:])
