"""Writes Kubernetes Events about Services, in a thread of its own: nothing waits for it, and what is too much is left
out. The same news within an hour is one Event with a count.

https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/ (served as v1 as well, which kubectl
reads)
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from metaleg_node.configuration.config import ClusterSettings
from metaleg_node.core.egress.news import News
from metaleg_node.core.model import NodeName, ObjectRef
from metaleg_node.sources.api_client import ApiClient, ApiError

_COMPONENT: Final = "metaleg-node"
_TIMEOUT: Final = 10.0
_WAITING: Final = 100
"""So many news wait at most."""
_REMEMBERED: Final = 1000
_HOUR: Final = 3600.0
_BURST: Final = 10
_REFILL_SECONDS: Final = 60.0
"""Of one Service so many Events at once, then one a minute."""


Event = dict[str, Any]


@dataclass(slots=True)
class _Series:
    """The same news again and again."""

    first: str
    last: float
    count: int = 0


@dataclass(slots=True)
class _Allowance:
    left: float
    seen: float


class EventWriter:
    """`problem` is why the last Event could not be written; empty when it was."""

    def __init__(self, settings: ClusterSettings, clock: Callable[[], float] = time.time) -> None:
        self._api = ApiClient(settings.kubeconfig, settings.context)
        self._clock = clock
        self._queue: queue.Queue[Event | None] = queue.Queue(_WAITING)
        self._series: dict[tuple[News, NodeName], _Series] = {}
        self._allowances: dict[ObjectRef, _Allowance] = {}
        self._thread = threading.Thread(target=self._run, name="service-events", daemon=True)
        self.problem = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What waits is left out."""
        self._api.close()
        while self._thread.is_alive():
            try:
                self._queue.put_nowait(None)
                break
            except queue.Full:
                self._queue.get()

    def tell(self, news: Iterable[News], me: NodeName) -> None:
        """Returns at once; what comes too often, or cannot be kept, is left out."""
        for one in news:
            if self._allowed(one.service) and not self._queue.full():
                self._queue.put_nowait(self._event(one, me))

    def _allowed(self, service: ObjectRef) -> bool:
        now = self._clock()
        if service not in self._allowances and len(self._allowances) >= _REMEMBERED:
            self._forget_the_quiet(now)
            if len(self._allowances) >= _REMEMBERED:
                return False
        found = self._allowances.setdefault(service, _Allowance(left=_BURST, seen=now))
        found.left = min(_BURST, found.left + (now - found.seen) / _REFILL_SECONDS)
        found.seen = now
        if found.left < 1:
            return False
        found.left -= 1
        return True

    def _forget_the_quiet(self, now: float) -> None:
        """Those who may tell as much as if nothing were remembered of them."""
        quiet = now - _BURST * _REFILL_SECONDS
        self._allowances = {who: found for who, found in self._allowances.items() if found.seen > quiet}

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                self._write(event)
                self.problem = ""
            except ApiError as error:
                self.problem = str(error)

    def _write(self, event: Event) -> None:
        named, service = event["metadata"], event["involvedObject"]
        core = f"/api/v1/namespaces/{named['namespace']}"
        # kubectl describe asks for Events of this very object.
        found = self._api.get(f"{core}/services/{service['name']}", {}, _TIMEOUT).get("metadata")
        whole = {**event, "involvedObject": {**service, "uid": found.get("uid") if isinstance(found, dict) else None}}
        self._api.apply(f"{core}/events/{named['name']}", whole, _TIMEOUT)

    def _event(self, news: News, me: NodeName) -> Event:
        now = self._clock()
        time_text = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        series = self._series.get((news, me))
        if series is None or now - series.last > _HOUR:
            if len(self._series) >= _REMEMBERED:
                self._series.clear()
            series = self._series[news, me] = _Series(first=time_text, last=now)
        series.count += 1
        series.last = now
        identity = "\0".join((me, news.reason, news.text, series.first))
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "namespace": news.service.namespace,
                "name": f"{news.service.name}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Service",
                "namespace": news.service.namespace,
                "name": news.service.name,
            },
            "type": news.kind.value,
            "reason": news.reason,
            "message": news.text[:1024],
            "source": {"component": _COMPONENT, "host": me},
            "reportingComponent": _COMPONENT,
            "reportingInstance": me,
            "firstTimestamp": series.first,
            "lastTimestamp": time_text,
            "count": series.count,
        }
