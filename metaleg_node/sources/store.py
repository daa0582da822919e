"""Holds what the sources learned, so that the daemon can take one consistent snapshot whenever it wants.

Sources write from their own threads; the daemon reads from its own. Both see whole states only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
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
                self._parts[source] = dict(parts)
                self._snapshot = None
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
            same = parts.get(key) == part
            if not same:
                parts[key] = part
                self._snapshot = None
        if not same:
            self._changed()

    def remove(self, source: str, key: object) -> None:
        """Forgets what one raw object gave."""
        with self._lock:
            known = self._parts.get(source, {}).pop(key, None) is not None
            if known:
                self._snapshot = None
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

    def _build(self) -> ClusterState:
        groups: dict[str, list[ClusterObject]] = {field: [] for field in _FIELDS.values()}
        parts = self._all_parts()
        for part in parts:
            for one in part.objects:
                groups[_FIELDS[type(one)]].append(one)
        fields: dict[str, Any] = {field: tuple(group) for field, group in groups.items()}
        return ClusterState(**fields, rejections=tuple(one for part in parts for one in part.rejections))

    def _all_parts(self) -> list[Parsed]:
        order = [*self._needed, *(source for source in self._parts if source not in self._needed)]
        return [part for source in order for part in self._parts.get(source, {}).values()]


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
