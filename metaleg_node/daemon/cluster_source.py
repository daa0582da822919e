"""Where the service has the cluster's state from: a state file, or the API with the last known state behind it."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from metaleg_node.configuration.config import Config
from metaleg_node.core.egress import new_pods, news
from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.model import ClusterState, NodeName
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon.status import SourceStatus
from metaleg_node.sources.cni_results import CniResultsSource
from metaleg_node.sources.resources import PODS, subjects
from metaleg_node.sources.saved_state import Saved, SavedState
from metaleg_node.sources.state_file import SOURCE as STATE_FILE
from metaleg_node.sources.state_file import StateFileSource, configmap_of
from metaleg_node.sources.store import Store

PATIENCE_SECONDS = 5.0
"""How long an API that has not answered yet is waited for before the last known state is taken, where the kernel still
holds what an earlier run put there: that may be some seconds newer than what was saved."""


class Freshness(enum.StrEnum):
    """How much the state is worth."""

    LIVE = "live"
    STALE = "stale"
    WAITING = "waiting"


def needs(config: Config) -> tuple[object, ...]:
    """All that the source goes by: where it is the same, what is known stays good."""
    cluster, early = config.cluster, _cni_socket(config)
    if cluster.state_file:
        return cluster.state_file, configmap_of(config), early
    return cluster.kubeconfig, cluster.context, cluster.events, subjects(config), configmap_of(config), early


def _cni_socket(config: Config) -> str:
    return config.egress.cni_socket if new_pods.is_on(config) else ""


class _Feed(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def ages(self) -> Mapping[str, float]: ...


class _Writer(Protocol):
    problem: str

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def tell(self, news: Iterable[news.News], me: NodeName) -> None: ...


class ClusterSource:
    """The source that a configuration names. `changed` is called from other threads."""

    def __init__(self, config: Config, state_dir: Path, changed: Callable[[], None]) -> None:
        self._config = config
        self._feed: _Feed
        self._saver: SavedState | None = None
        self._writer: _Writer | None = None
        self._followed = news.Followed()
        if config.cluster.state_file:
            self._store = Store(changed, (STATE_FILE,))
            self._feed = StateFileSource(Path(config.cluster.state_file), self._store, configmap=configmap_of(config))
        else:
            # Who reads a state file should not pay for loading the API's client.
            from metaleg_node.sources import kubernetes_api  # noqa: PLC0415

            self._store = Store(changed, kubernetes_api.names(config))
            self._feed = kubernetes_api.KubernetesSource(config, self._store)
            self._writer = kubernetes_api.event_writer(config.cluster)
            self._saver = SavedState(state_dir, configmap_of(config), changed=changed)
        path = _cni_socket(config)
        self._cni = CniResultsSource(path, self._store) if path else None
        self._saved: Saved | None = None
        self._patient_until = 0.0
        self._freshness = Freshness.WAITING
        self._booted = False
        self._seen = ClusterState(), ClusterState()

    def start(self, *, patience: float) -> float:
        """Begins to read. The last known state is taken when the API has not answered after `patience` seconds.

        Returns after how many seconds `state` must be looked at again for that; 0: not at all.
        """
        if self._saver:
            self._saved = self._saver.load()
            self._saver.start()
        self._booted = not patience
        self._patient_until = time.monotonic() + patience
        if self._writer:
            self._writer.start()
        self._feed.start()
        if self._cni:
            self._cni.start()
        return patience if self._saved else 0.0

    def stop(self) -> None:
        """Ends all threads; what is to be saved is saved."""
        self._feed.stop()
        if self._writer:
            self._writer.stop()
        if self._cni:
            self._cni.stop()
        if self._saver:
            self._saver.stop()

    def state(self) -> ClusterState | None:
        """The state to work with now; None while none is known."""
        if self._store.loaded:
            self._freshness, self._saved = Freshness.LIVE, None
            if self._saver:
                self._saver.offer(self._store)
            return self._given(self._store.snapshot(), sure=not self._store.hindered(PODS))
        if self._saved and time.monotonic() >= self._patient_until:
            self._freshness = Freshness.STALE
        return self._last_known(self._saved.state) if self._saved and self._freshness is Freshness.STALE else None

    def _last_known(self, saved: ClusterState) -> ClusterState:
        """With what CNI's results tell since. After a boot only Pods that these confirm count: another pod may have the
        address of one that is gone."""
        if not self._cni:
            return saved
        cni = self._store.snapshot().cni
        alive = {one.uid for results in cni for one in results.attachments} - {""}
        pods = tuple(pod for pod in saved.pods if pod.uid in alive) if self._booted else saved.pods
        return self._given(replace(saved, pods=pods, cni=cni), sure=False)

    def _given(self, state: ClusterState, *, sure: bool) -> ClusterState:
        """The same object as before for the same state, by which others know that nothing has changed."""
        if not self._cni:
            return state
        if state is not self._seen[0] or sure != self._seen[1].pods_sure:
            found = replace(state, pods_sure=sure)
            self._seen = state, found if found != self._seen[1] else self._seen[1]
        return self._seen[1]

    def tell(self, services: Sequence[ServiceDecision], me: NodeName) -> None:
        """Has the owners of Services told what has changed for them, where that is wanted and the state is live."""
        if self._writer and self._freshness is Freshness.LIVE:
            self._followed, told = self._followed.then(services, me, self._store.snapshot().nodes)
            self._writer.tell(told, me)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What hinders the source."""
        found = tuple(Problem(code=Code.SOURCE, text=text) for text in self._store.problems)
        if self._saver and (unsaved := self._saver.problem):
            found += (Problem(code=Code.SAVED_STATE, text=unsaved),)
        if self._writer and (untold := self._writer.problem):
            found += (Problem(code=Code.EVENTS, text=untold),)
        if self._freshness is Freshness.STALE and self._saved:
            text = f"the last known state, of {self._saved.time}, is in force"
            return (Problem(code=Code.STALE_STATE, text=text), *found)
        return found

    @property
    def confirmed(self) -> bool:
        """Whether the state is known to be up to date."""
        return self._freshness is Freshness.LIVE and not self._store.problems

    @property
    def stale(self) -> bool:
        return self._freshness is Freshness.STALE

    def ages(self) -> Mapping[str, float]:
        """For each watch: the seconds since the server last said anything."""
        return self._feed.ages()

    def status(self) -> SourceStatus:
        """For people and programs."""
        return SourceStatus(
            kind="state file" if self._config.cluster.state_file else "Kubernetes API",
            place=self._config.cluster.state_file or self._config.cluster.kubeconfig,
            state=self._freshness.value,
            since=self._saved.time if self._saved and self.stale else None,
            missing=list(self._store.missing),
        )
