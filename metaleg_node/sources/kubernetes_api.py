"""The cluster's state from the Kubernetes API: one thread for each thing to know, all filling one store.

Reads only what the configuration needs (`sources.resources`), and writes nothing but Events where they are wanted.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from metaleg_node.configuration.config import ClusterSettings, Config
from metaleg_node.core.model import ClusterState
from metaleg_node.sources import credentials
from metaleg_node.sources.api_client import ApiClient, ApiError, Failure
from metaleg_node.sources.api_watch import Follower, Timing, list_all
from metaleg_node.sources.credentials import CredentialsError
from metaleg_node.sources.resources import Subject, subjects
from metaleg_node.sources.service_events import EventWriter
from metaleg_node.sources.store import Store

STOP_TIMEOUT: Final = 2.0
"""How long a stop waits, in seconds. A thread that waits for an answer to a list ends later, without effect."""


class KubernetesSource:
    """Keeps a store up to date with the API; the store must need what `names` tells."""

    def __init__(self, config: Config, store: Store, timing: Timing | None = None) -> None:
        self._store = store
        self._api = ApiClient(config.cluster.kubeconfig, config.cluster.context)
        self._stopped = threading.Event()
        self._followers = [Follower(s, self._api, store, timing or Timing()) for s in subjects(config)]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begins to list and watch; the first state comes later, by the store's `changed`."""
        if not self._followers:
            self._store.replace_all("Kubernetes API", ())
        for follower in self._followers:
            thread = threading.Thread(
                target=follower.run, args=(self._stopped,), name=f"watch-{follower.name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Ends the threads and their connections."""
        self._stopped.set()
        self._api.close()
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def ages(self) -> dict[str, float]:
        """For each thing that is watched: the seconds since the server last said anything about it."""
        return {follower.name: follower.age for follower in self._followers}


def event_writer(settings: ClusterSettings) -> EventWriter | None:
    """What writes Events, not yet started; None where they are not wanted."""
    return EventWriter(settings) if settings.events else None


def names(config: Config) -> tuple[str, ...]:
    """The names under which the source fills the store."""
    return tuple(subject.name for subject in subjects(config))


def credentials_problem(settings: ClusterSettings) -> str:
    """Why there are no credentials; empty if there are some, whether they are accepted or not."""
    try:
        credentials.check(settings.kubeconfig, settings.context)
    except CredentialsError as error:
        return str(error)
    return ""


def read(config: Config) -> tuple[ClusterState, tuple[str, ...]]:
    """The cluster's state, listed once, and what would keep the service from reading it now: credentials, connection,
    each right that is missing. With any of these the state does not count."""
    store = Store(lambda: None, names(config))
    problems: list[str] = []
    with ApiClient(config.cluster.kubeconfig, config.cluster.context) as api:
        for subject in subjects(config):
            try:
                _read(api, subject, store)
            except ApiError as error:
                problems.append(str(error))
                if error.failure in (Failure.CREDENTIALS, Failure.UNREACHABLE, Failure.UNAUTHORIZED):
                    break
    return store.snapshot(), tuple(problems)


def _read(api: ApiClient, subject: Subject, store: Store) -> None:
    for resource in subject.choices:
        try:
            parts, _ = list_all(api, resource, Timing())
        except ApiError as error:
            last = resource is subject.choices[-1] and not subject.optional
            if error.failure is not Failure.NOT_SERVED or last:
                raise
        else:
            store.replace(subject.name, parts)
            return
    store.replace(subject.name, {})
