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

log = logging.getLogger(__name__)

PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. The back-off doubles from `first_retry` to `last_retry`, give or take half, as client-go does it.

    `list` is the longest silence while an answer is awaited, `watch` how long the server is asked to keep a watch
    open, `silence` how much longer than that nothing may come. What the server does not have is looked for after
    `absent_first`, then less often, up to `absent_last`; what it no longer has is believed to be gone after `gone`.
    """

    list: float = 30.0
    watch: float = 270.0
    silence: float = 15.0
    first_retry: float = 0.8
    last_retry: float = 30.0
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
        parts, version = list_all(self._api, resource, self._timing.list)
        if resource.forgotten:
            parts = {**self._remembered(), **parts}
        self._store.replace(self.name, parts)
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
        seconds = self._timing.watch * random.uniform(0.8, 1.1)
        if self._choice:
            # The better choice may have come to exist.
            seconds = min(seconds, self._absent_wait)
        seconds = max(1.0, round(seconds))
        params = {
            **resource.selectors,
            "resourceVersion": version or "",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(seconds)),
        }
        began, events = time.monotonic(), 0
        silence = seconds + self._timing.silence
        with self._api.watch(resource.path, params, self._timing.list, silence) as stream:
            self._went_well()
            for event in stream:
                self._take(resource, event)
                events += 1
        self._went_well()
        if self._choice:
            self._choice = 0
        if not events and time.monotonic() - began < 1.0:
            return self._pause()  # A server that ends every watch at once must not be asked without end.
        return 0.0

    def _take(self, resource: Resource, event: Object) -> None:
        self._heard = time.monotonic()
        raw, kind = event["object"], event.get("type")
        version = _version(raw)
        if version is None:
            raise ApiError(Failure.GARBAGE, f"Kubernetes API: a {kind} event of {resource.plural} has no version")
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
        self._heard = time.monotonic()
        self._failures = 0
        self._store.set_problem(self.name, "")

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
        self._store.set_problem(self.name, str(error))
        return max(self._pause(), error.retry_after)

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
        self._went_well()
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


def list_all(api: ApiClient, resource: Resource, timeout: float) -> tuple[dict[object, Parsed], str]:
    """All objects of a resource, and the version to watch from. Raises ApiError.

    https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks
    """
    parts: dict[object, Parsed] = {}
    params = {**resource.selectors, "limit": str(PAGE)}
    while True:
        page = api.get(resource.path, params, timeout)
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
