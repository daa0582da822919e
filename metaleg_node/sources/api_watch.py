"""Keeps one subject in the store in line with the API server: list, then watch, and again after whatever happens.

A `Follower` makes one step at a time, a list or a watch, and says how long to wait before the next. It never gives up,
and never takes objects away because a watch broke: only a complete list, or the server's own word, does that.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from metaleg_node.core.model import Announcement
from metaleg_node.core.objects.manifests import NOTHING, Parsed, parse, pruned
from metaleg_node.sources import documents
from metaleg_node.sources.api_client import ApiClient, ApiError, Failure, Object
from metaleg_node.sources.resources import Resource, Subject
from metaleg_node.sources.store import Store
from metaleg_node.text import printable

log = logging.getLogger(__name__)

PAGE: Final = 500
_ENDS: Final = 2
"""After so many failures a watch that ends at once is told: an API server that is stopped ends its watches too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. The back-off doubles from `first_retry` to `last_retry`, give or take half, as client-go does it.

    `list` is the longest silence while an answer is awaited, `list_total` the longest that a list with all its pages
    may take, `watch` how long the server is asked to keep a watch open, `silence` how much longer than that nothing may
    come. All is well again, and the back-off begins anew, when a watch has lived for `steady`; a server that asks for
    patience is a problem when it does so for `busy`. What the server does not have is looked for after `absent_first`,
    then less often, up to `absent_last`; what it no longer has is believed to be gone after `gone`.
    """

    list: float = 30.0
    list_total: float = 120.0
    watch: float = 270.0
    silence: float = 15.0
    first_retry: float = 0.8
    last_retry: float = 30.0
    steady: float = 5.0
    busy: float = 60.0
    absent_first: float = 30.0
    absent_last: float = 300.0
    gone: float = 60.0


class Follower:
    """Follows one subject. `run_once` and `run` belong to one thread, the properties to any."""

    def __init__(self, subject: Subject, api: ApiClient, store: Store, timing: Timing) -> None:
        self.subject = subject
        self._api = api
        self._store = store
        self._timing = timing
        self._choice = 0
        self._versions: list[str | None] = [None] * len(subject.choices)
        self._host = ""
        self._failures = 0
        self._busy_since: float | None = None
        self._listed: int | None = None
        self._missing_since: float | None = None
        self._absent_wait = timing.absent_first
        self._heard = time.monotonic()

    @property
    def name(self) -> str:
        return self.subject.name

    @property
    def age(self) -> float:
        """Seconds since the server last said anything about the subject, or since the start."""
        return time.monotonic() - self._heard

    def run(self, stopped: threading.Event) -> None:
        """Follows until the event is set."""
        while not stopped.is_set():
            wait = self._guarded_run_once()
            stopped.wait(wait)

    def run_once(self) -> float:
        """One list or one watch. Returns after how many seconds to go on."""
        try:
            host = self._api.access().host
            if self._versions[self._choice] is None or host != self._host:
                self._list()
                self._host = host  # Versions mean nothing to another cluster.
                return 0.0
            return self._watch()
        except ApiError as error:
            return self._failed(error)

    @property
    def _resource(self) -> Resource:
        return self.subject.choices[self._choice]

    # --- listing -----------------------------------------------------------------------------------------------------

    def _list(self) -> None:
        resource = self._resource
        parts, version = list_all(self._api, resource, self._timing)
        if resource.forgotten:
            parts = {**self._remembered(), **parts}
        self._store.replace(self.name, parts, ends_problem=not self._is_failing)
        self._versions = [None] * len(self._versions)
        self._versions[self._choice] = version
        self._listed, self._missing_since = self._choice, None
        self._absent_wait = self._timing.absent_first
        self._went_well()

    def _remembered(self) -> Mapping[object, Parsed]:
        return self._store.parts(self.name) if self._listed == self._choice else {}

    # --- watching ----------------------------------------------------------------------------------------------------

    def _watch(self) -> float:
        """Returns at once when the server ended the watch as asked; it goes on where this one ended."""
        resource, version = self._resource, self._versions[self._choice]
        seconds = self._watch_seconds()
        params = {
            **resource.selectors,
            "resourceVersion": version or "",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        with self._api.watch(resource.path, params, self._timing.list, seconds + self._timing.silence) as stream:
            self._went_well()
            opened = time.monotonic()
            try:
                for event in stream:
                    self._take(resource, event)
            finally:
                steady = time.monotonic() - opened >= self._timing.steady
                if steady:
                    self._all_well()
        if self._choice:
            self._choice = 0
        if steady:
            self._heard = time.monotonic()
            return 0.0
        # A server that ends every watch at once must not be asked without end.
        if self._failures >= _ENDS:
            self._store.set_problem(self.name, f"Kubernetes API: ends each watch of {resource.plural} at once")
        return self._pause()

    def _watch_seconds(self) -> int:
        """After failures just long enough to see that a watch lives."""
        if self._failures:
            return int(self._timing.steady) + 1
        seconds = self._timing.watch * random.uniform(0.8, 1.1)
        if self._choice:
            # The better choice may have come to exist.
            seconds = min(seconds, self._absent_wait)
        return max(1, round(seconds))

    def _take(self, resource: Resource, event: Object) -> None:
        self._heard = time.monotonic()
        raw, kind = event["object"], event.get("type")
        version = _version(raw)
        if version is None:
            told = printable(str(kind)[:20])
            raise ApiError(Failure.GARBAGE, f"Kubernetes API: a {told} event of {resource.plural} has no version")
        if kind in ("ADDED", "MODIFIED"):
            key, part = translate(resource, raw)
            if not (resource.forgotten and self._is_older(key, part)):
                self._store.put(self.name, key, part)
        elif kind == "DELETED" and not resource.forgotten:
            self._store.remove(self.name, translate(resource, raw)[0])
        self._versions[self._choice] = version

    def _is_older(self, key: object, part: Parsed) -> bool:
        return _since(part) < _since(self._store.parts(self.name).get(key, NOTHING))

    # --- when something is wrong -------------------------------------------------------------------------------------

    def _went_well(self) -> None:
        """The server answered."""
        self._heard = time.monotonic()
        self._busy_since = None
        if not self._is_failing:
            self._store.set_problem(self.name, "")

    @property
    def _is_failing(self) -> bool:
        """What failed more than once counts as failing until a watch has lived for a while: a list may succeed, and its
        watch never."""
        return self._failures > 1

    def _all_well(self) -> None:
        self._failures = 0
        self._went_well()

    def _pause(self) -> float:
        """How long to wait after another failure."""
        timing = self._timing
        wait = min(timing.last_retry, timing.first_retry * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return wait * random.uniform(0.5, 1.5)

    def _failed(self, error: ApiError) -> float:
        if error.failure is Failure.NOT_SERVED and (wait := self._not_served()) is not None:
            return wait
        if error.failure is not Failure.UNREACHABLE and error.failure is not Failure.BUSY:
            # After a broken connection, and when it is asked for patience, the server still knows where we were.
            self._versions[self._choice] = None
        if error.failure is Failure.EXPIRED and not self._failures:
            self._failures = 1
            return 0.0
        if error.failure is not Failure.BUSY or self._is_busy_for_long():
            self._store.set_problem(self.name, str(error))
        return max(self._pause(), error.retry_after * random.uniform(1.0, 1.2))

    def _is_busy_for_long(self) -> bool:
        now = time.monotonic()
        self._busy_since = self._busy_since or now
        return now - self._busy_since >= self._timing.busy

    def _not_served(self) -> float | None:
        """What to do when the server does not have what was asked for. None: that is an error."""
        if not self.subject.optional and self._choice + 1 == len(self.subject.choices):
            return None
        now = time.monotonic()
        self._missing_since = self._missing_since or now
        if self._listed == self._choice and now - self._missing_since < self._timing.gone:
            # API servers lose sight of custom resources for a moment, while they start for example.
            return None
        if self._choice + 1 < len(self.subject.choices):
            self._choice += 1
            return 0.0
        self._choice = 0
        self._versions = [None] * len(self._versions)
        self._store.replace(self.name, {})
        self._listed = None
        self._all_well()
        wait, self._absent_wait = self._absent_wait, min(self._absent_wait * 2, self._timing.absent_last)
        return wait * random.uniform(0.8, 1.2)

    def _guarded_run_once(self) -> float:
        """A defect must not silently end a thread that the whole service listens to."""
        try:
            return self.run_once()
        except Exception as error:
            log.exception("%s: unexpected error", self.name)
            self._store.set_problem(self.name, f"Kubernetes API: {self.name}: unexpected error {error!r}")
            self._versions[self._choice] = None
            return self._pause()


def list_all(api: ApiClient, resource: Resource, timing: Timing) -> tuple[dict[object, Parsed], str]:
    """All objects of a resource, and the version to watch from. Raises ApiError.

    https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks
    """
    parts: dict[object, Parsed] = {}
    params = {**resource.selectors, "limit": str(PAGE)}
    deadline = time.monotonic() + timing.list_total
    while True:
        page = api.get(resource.path, params, timing.list, deadline - time.monotonic())
        version = _version(page)
        items = page.get("items")
        if version is None or not isinstance(items, list | None) or not str(page.get("kind", "")).endswith("List"):
            raise ApiError(Failure.GARBAGE, f"Kubernetes API: {resource.path}: the answer is no list of objects")
        for key, part in (translate(resource, raw) for raw in items or ()):
            if not (resource.forgotten and _since(part) < _since(parts.get(key, NOTHING))):
                parts[key] = part
        following = page["metadata"].get("continue")
        if not following:
            return parts, version
        params = {**params, "continue": str(following)}


def translate(resource: Resource, raw: object) -> tuple[object, Parsed]:
    """What one raw object gave, and the key that later events about it have as well."""
    if not isinstance(raw, dict):
        return None, parse(raw)
    # The only ConfigMap that is ever asked for is the one with MetalLB's old configuration.
    typed = {**raw, "kind": resource.kind, "apiVersion": resource.api_version}
    part = documents.translate(typed, _name(raw))
    if part != NOTHING:
        part = replace(part, raw=json.dumps(pruned(typed), separators=(",", ":")).encode())
    if resource.forgotten:
        told = next((one.service for one in part.objects if isinstance(one, Announcement)), None)
        return (told or _name(raw)), part
    return _name(raw), part


def _name(raw: Object) -> tuple[str, str]:
    metadata = raw.get("metadata")
    found = metadata if isinstance(metadata, dict) else {}
    return str(found.get("namespace", "")), str(found.get("name", ""))


def _since(part: Parsed) -> str:
    return max((one.since for one in part.objects if isinstance(one, Announcement)), default="")


def _version(raw: Object) -> str | None:
    metadata = raw.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return version if isinstance(version, str) and version else None
