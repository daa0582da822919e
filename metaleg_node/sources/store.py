"""Holds what the sources learned, so that the daemon can take one consistent snapshot whenever it wants.

Sources write from their own threads; the daemon reads from its own. Both see whole states only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from metaleg_node.core.model import (
    AddressPool,
    Advertisement,
    Announcement,
    BGPPeer,
    ClusterObject,
    ClusterState,
    CniResults,
    EndpointSlice,
    Node,
    ObjectRef,
    Pod,
    Rejection,
    Service,
    ServiceCIDR,
)
from metaleg_node.core.objects.manifests import Parsed

_FIELDS: dict[type[ClusterObject], str] = {
    Service: "services",
    EndpointSlice: "endpoint_slices",
    Node: "nodes",
    Pod: "pods",
    CniResults: "cni",
    ServiceCIDR: "service_cidrs",
    Announcement: "announcements",
    AddressPool: "pools",
    Advertisement: "advertisements",
    BGPPeer: "peers",
}


class Store:
    """The objects of all sources, and the problems of those sources.

    A source gives its whole state (`replace_all`, `replace`), or one object after the other (`put`, `remove`) by keys
    of its own. `needed` names the sources that must have given a whole state before all of it counts as loaded; their
    objects come in this order. `changed` is called without arguments after each change of what a reader can see, in the
    thread of the source that made it, with no lock held. All methods are safe to call from any thread.
    """

    def __init__(self, changed: Callable[[], None], needed: Iterable[str] = ()) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._needed = tuple(needed)
        self._parts: dict[str, dict[object, Parsed]] = {}
        self._problems: dict[str, str] = {}
        self._snapshot: ClusterState | None = ClusterState()
        # What each source gave, by field of the state, until it gives something else; and the fields as put together
        # last. What does not change stays the very same object, by which everybody else knows it.
        self._given: dict[str, _Fields] = {}
        self._places: dict[str, dict[object, int]] = {}
        self._exchanged: dict[str, dict[int, ClusterObject]] = {}
        self._together: dict[str, tuple[list[tuple[Any, ...]], tuple[Any, ...]]] = {}

    @property
    def loaded(self) -> bool:
        """Whether a first complete state is there; until then a snapshot means nothing."""
        with self._lock:
            return bool(self._parts) and self._parts.keys() >= set(self._needed)

    @property
    def missing(self) -> tuple[str, ...]:
        """The needed sources that have not given a state yet."""
        with self._lock:
            return tuple(source for source in self._needed if source not in self._parts)

    @property
    def problems(self) -> tuple[str, ...]:
        """What now hinders the sources, a sentence each; one that hinders several of them once."""
        with self._lock:
            return tuple(dict.fromkeys(self._problems.values()))

    def hindered(self, source: str) -> bool:
        """Whether something hinders this source now."""
        with self._lock:
            return source in self._problems

    def snapshot(self) -> ClusterState:
        """All objects as one immutable value, in the order in which the sources gave them."""
        with self._lock:
            if self._snapshot is None:
                self._snapshot = self._build()
            return self._snapshot

    def replace_all(self, source: str, objects: Iterable[ClusterObject], rejections: Iterable[Rejection] = ()) -> None:
        """Puts a complete new state of one source, named for people, in place of its old one; ends its problem.

        Of two objects of one name the last one counts, with a rejection that says so.
        """
        kept, twice = _by_ref(objects)
        parts: dict[object, Parsed] = {ref: Parsed(objects=(one,)) for ref, one in kept.items()}
        self.replace(source, parts | {None: Parsed(rejections=(*rejections, *twice))})

    def replace(self, source: str, parts: Mapping[object, Parsed], *, ends_problem: bool = True) -> None:
        """Puts a complete new state of one source, by keys, in place of its old one; by default ends its problem."""
        with self._lock:
            before = self._parts.get(source)
            same = before is not None and list(before.items()) == list(parts.items())
            if not same:
                old = before or {}
                # The very same object where nothing changed: mostly that is all of a list.
                self._parts[source] = {k: old[k] if k in old and old[k] == part else part for k, part in parts.items()}
                self._forget(source)
            had_problem = ends_problem and self._problems.pop(source, None) is not None
        if had_problem or not same:
            self._changed()

    def parts(self, source: str) -> dict[object, Parsed]:
        """What a source gave last, by its keys."""
        with self._lock:
            return dict(self._parts.get(source, {}))

    def raw(self) -> list[bytes]:
        """The raw objects behind the snapshot, as JSON, where the sources keep them."""
        with self._lock:
            return [part.raw for part in self._all_parts() if part.raw]

    def put(self, source: str, key: object, part: Parsed) -> None:
        """Puts what one raw object gave in the place of what it gave before."""
        with self._lock:
            parts = self._parts.setdefault(source, {})
            old = parts.get(key)
            same = old == part
            if not same:
                parts[key] = part
                exchanged = old is not None and self._exchange(source, key, old, part)
                if not exchanged:
                    self._forget(source)
        if not same:
            self._changed()

    def remove(self, source: str, key: object) -> None:
        """Forgets what one raw object gave."""
        with self._lock:
            known = self._parts.get(source, {}).pop(key, None) is not None
            if known:
                self._forget(source)
        if known:
            self._changed()

    def set_problem(self, source: str, text: str) -> None:
        """Says what hinders a source, nothing any more if the text is empty; its objects stay as they are."""
        with self._lock:
            same = self._problems.get(source, "") == text
            if text:
                self._problems[source] = text
            else:
                self._problems.pop(source, None)
        if not same:
            self._changed()

    def _forget(self, source: str) -> None:
        self._given.pop(source, None)
        self._places.pop(source, None)
        self._exchanged.pop(source, None)
        self._snapshot = None

    def _exchange(self, source: str, key: object, old: Parsed, new: Parsed) -> bool:
        """Lets the next snapshot have one object in the place of another. Returns whether that was all there is to it:
        so it is where each raw object gives one of a kind, as with thousands of slices, and nothing was refused."""
        parts, given = self._parts[source], self._given.get(source, {})
        single = not (old.rejections or new.rejections) and len(old.objects) == len(new.objects) == 1
        if not single or given.keys() != {_FIELDS[type(new.objects[0])]}:
            return False
        if source not in self._places:
            alone = all(len(part.objects) == 1 for part in parts.values())
            self._places[source] = dict(zip(parts, range(len(parts)), strict=True)) if alone else {}
        if key not in self._places[source]:
            return False
        self._exchanged.setdefault(source, {})[self._places[source][key]] = new.objects[0]
        self._snapshot = None
        return True

    def _build(self) -> ClusterState:
        found: dict[str, list[tuple[Any, ...]]] = {name: [] for name in (*_FIELDS.values(), "rejections")}
        for source in self._order():
            if source not in self._given:
                self._given[source] = _fields(self._parts[source].values())
            elif exchanged := self._exchanged.pop(source, None):
                ((name, before),) = self._given[source].items()
                now = [*before]
                for at, one in exchanged.items():
                    now[at] = one
                self._given[source] = {name: tuple(now)}
            for name, objects in self._given[source].items():
                found[name].append(objects)
        fields: dict[str, Any] = {name: self._joined(name, objects) for name, objects in found.items()}
        return ClusterState(**fields)

    def _joined(self, name: str, objects: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        before, together = self._together.get(name, ([], ()))
        if len(before) != len(objects) or not all(map(is_, before, objects)):
            together = objects[0] if len(objects) == 1 else tuple(chain.from_iterable(objects))
            self._together[name] = objects, together
        return together

    def _order(self) -> list[str]:
        order = [*self._needed, *(source for source in self._parts if source not in self._needed)]
        return [source for source in order if source in self._parts]

    def _all_parts(self) -> list[Parsed]:
        return [part for source in self._order() for part in self._parts[source].values()]


_Fields = dict[str, tuple[Any, ...]]


def _fields(parts: Collection[Parsed]) -> _Fields:
    """What one source gave, by field of the state; mostly that is one kind of objects."""
    objects = tuple(chain.from_iterable(map(attrgetter("objects"), parts)))
    rejections = tuple(chain.from_iterable(map(attrgetter("rejections"), parts)))
    kinds = dict.fromkeys(map(type, objects))
    if len(kinds) == 1:
        found: _Fields = {_FIELDS[kind]: objects for kind in kinds}
    else:
        found = {_FIELDS[kind]: tuple(one for one in objects if type(one) is kind) for kind in kinds}
    return {**found, "rejections": rejections} if rejections else found


def _by_ref(objects: Iterable[ClusterObject]) -> tuple[dict[ObjectRef, ClusterObject], list[Rejection]]:
    kept: dict[ObjectRef, ClusterObject] = {}
    twice: dict[ObjectRef, Rejection] = {}
    for one in objects:
        if kept.pop(one.ref, None) is not None:
            twice[one.ref] = Rejection(
                ref=one.ref, reason="is there more than once; the last one counts, remove the others"
            )
        kept[one.ref] = one
    return kept, list(twice.values())
