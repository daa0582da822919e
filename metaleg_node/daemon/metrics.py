"""The service's Prometheus metrics.

Labels are bounded by the labelled Services and by words of this program; pods never become labels. What describes the
cluster is swapped as one value, so that a scrape never sees half of an update.
"""

from __future__ import annotations

import logging
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from email.message import Message
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from metaleg_node.core.assembly import Desired
from metaleg_node.core.changes import KINDS
from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.increments import exchanged
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon import report
from metaleg_node.daemon.web import Response, WebServer
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.packet_filter import Counter as Count
from metaleg_node.reconcile.reconciler import Plan

log = logging.getLogger(__name__)

_PREFIX = "metaleg_node"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


_LANDING = Response(
    content_type="text/html; charset=utf-8",
    body=b"<!DOCTYPE html>\n<html lang=en><title>metaleg-node</title>\n<h1>metaleg-node</h1>\n"
    b'<p><a href="/metrics">Metrics</a>, explained in docs/operation.md.</p></html>\n',
)
_Address = tuple[str, str, str]
"""Namespace and name of a Service, and an address of it."""
_NOTHING = Plan(desired=Desired(), steps=())
"""What is shown before the first plan."""


class Metrics:
    """What the loop reports; every method is cheap and may be called from any thread.

    `traffic` reads the packet filter's counters at each scrape, see `PacketFilter`. It may raise KernelError; then the
    scrape goes without them. `watches` tells how long the API has been silent about each thing that is watched, in
    seconds, `dropped` how many lines of the log were dropped.
    """

    def __init__(
        self,
        *,
        version: str,
        traffic: Callable[[], Mapping[str, Count]],
        watches: Callable[[], Mapping[str, float]] = dict,
        dropped: Callable[[], int] = int,
    ) -> None:
        self._registry = CollectorRegistry()
        self._source_seen = time.monotonic()
        self._last_gateways: dict[_Address, str] = {}
        self._now: tuple[Plan, Sequence[Problem]] = (_NOTHING, ())
        ProcessCollector(registry=self._registry)
        for collect in (
            lambda: _problem_metrics(self._now[1]),
            lambda: _cluster_metrics(self._now[0]),
            lambda: _external_metrics(self._now[0]),
            lambda: _traffic_metrics(traffic, self._now[0]),
            lambda: _watch_metrics(watches()),
            lambda: iter([_count("log_dropped", "Lines of the log that were dropped.", dropped())]),
        ):
            self._registry.register(_Collector(collect))
        self._make_own()
        Info(f"{_PREFIX}_build", "The running version.", registry=self._registry).info({"version": version})

    def _make_own(self) -> None:
        self._reconcile_seconds = Histogram(
            f"{_PREFIX}_reconcile_duration_seconds",
            "Time from the start of a reconcile to its end.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._last_sync = self._gauge("last_sync_timestamp_seconds", "Unix time of the last complete reconcile.")
        self._source_age = self._gauge(
            "source_age_seconds", "Time since the source last confirmed the cluster state, or since the start."
        )
        self._source_age.set_function(lambda: time.monotonic() - self._source_seen)
        self._config_valid = self._gauge("config_valid", "Whether the configuration file, as last read, is in force.")
        self._reconcile_errors = self._counter("reconcile_errors", "Reconciles that did not complete.")
        self._changes = self._counter("changes_applied", "Changes made in the kernel.", "kind")
        self._drift = self._counter("drift_repaired", "What others had changed and was put back.", "kind")
        self._flushed = self._counter("conntrack_flushed", "Conntrack entries deleted.")
        self._gateway_changes = self._counter("gateway_changes", "Moves of a Service's address to another node.")
        self._differences = self._counter(
            "increment_differences", "Times that from scratch something else came out than from what had changed."
        )
        self._config_failures = self._counter("config_reload_failures", "Reloads refused because of a bad file.")
        self._hook_failures = self._counter("hook_failures", "Hooks that failed.", "hook")
        # A series that begins with its first event has no increase then, so that no alert sees it.
        for kind in ("pre", "post"):
            self._hook_failures.labels(kind)
        for change in KINDS:
            self._changes.labels(change)
            self._drift.labels(change)

    def reconciled(self, *, seconds: float, complete: bool, changes: Mapping[str, int]) -> None:
        """A reconcile ended. `changes` counts what it did, by the kind of object (rule, route, firewall …)."""
        self._reconcile_seconds.observe(seconds)
        for kind, count in changes.items():
            self._changes.labels(kind).inc(count)
        if complete:
            self._last_sync.set(time.time())
        else:
            self._reconcile_errors.inc()

    def drift(self, kind: str, count: int = 1) -> None:
        """Something that others had changed was put back."""
        self._drift.labels(kind).inc(count)

    def different(self) -> None:
        """What followed from changes was not what comes out from scratch."""
        self._differences.inc()

    def conntrack_flushed(self, entries: int) -> None:
        """So many conntrack entries were deleted."""
        self._flushed.inc(entries)

    def hook_failed(self, kind: Literal["pre", "post"]) -> None:
        """A hook failed, timed out or was refused."""
        self._hook_failures.labels(kind).inc()

    def config_loaded(self) -> None:
        """The configuration file was read and is in force."""
        self._config_valid.set(1)

    def config_refused(self) -> None:
        """The configuration file was read again and is bad; the old one stays in force."""
        self._config_valid.set(0)
        self._config_failures.inc()

    def source_confirmed(self) -> None:
        """The source said that its state is up to date."""
        self._source_seen = time.monotonic()

    def show(self, plan: Plan | None, problems: Sequence[Problem]) -> None:
        """What is known, decided and wrong from now on. A gateway change is counted when an address comes to another
        node than the one it was last on, also when it was on none between."""
        plan = plan or _NOTHING
        gone, new = exchanged(self._now[0].desired.services, plan.desired.services)
        before = {address: self._last_gateways.pop(address, "") for address, _ in _gateways(gone)}
        for address, node in _gateways(new):
            last = before.get(address, "")
            if node and last and node != last:
                self._gateway_changes.inc()
            self._last_gateways[address] = node or last
        self._now = plan, problems

    def server(self, listen: tuple[str, int]) -> WebServer:
        """A server of /metrics, and a page that leads to it, not yet started."""
        return WebServer("metrics.listen", listen, {"/metrics": self.page, "/": lambda _: _LANDING})

    def page(self, headers: Message) -> Response:
        """The metrics in the format that the Accept header asks for: Prometheus' text or OpenMetrics."""
        encode, content_type = choose_encoder(headers.get("Accept") or "")
        return Response(content_type=content_type, body=encode(_Uncreated(self._registry)))

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, labels, registry=self._registry)


class _Uncreated(Collector):
    """A registry without the times at which its counters were made, which the library adds to each and nobody asks."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _Collector(Collector):
    """What a function gives at each scrape."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


def _problem_metrics(problems: Sequence[Problem]) -> Iterator[Metric]:
    found = Counts(problem.code for problem in problems)
    stale = bool(found[Code.STALE_STATE])
    yield _number("state_stale", "Whether the last known state is in force, for want of the API.", stale)
    yield _number("rejected_objects", "Cluster objects, or parts of them, not used.", found[Code.OBJECT_NOT_USED])
    yield _labelled(
        "problems",
        "What is wrong now, by the codes that the documentation explains.",
        ("code", "severity"),
        (((code, str(code.severity)), found[code]) for code in Code),
    )


def _cluster_metrics(plan: Plan) -> Iterator[Metric]:
    services, paths = plan.desired.services, [decision.path for decision in plan.desired.paths]
    ambiguous = {s.service.service.ref for s in services if s.service.gateway and s.service.gateway.ambiguous}
    reasons = Counts(s.obstacle.code for s in services if s.obstacle)
    yield _number("services", "Services that carry the egress label.", report.count_services(services))
    yield _number("pods", "Pod addresses of these Services.", report.count_pods(services))
    yield _number("ambiguous_gateway", "Services that several nodes announce.", len(ambiguous))
    yield _labelled(
        "no_gateway",
        "Services without egress, by reason, counted per IP family.",
        ("reason",),
        (((reason,), count) for reason, count in sorted(reasons.items())),
    )
    yield _labelled(
        "gateway_info",
        "The gateway of each address.",
        ("namespace", "service", "address", "node"),
        (((*address, node), 1) for address, node in sorted(_gateways(services)) if node),
    )
    active = (((path.wanted.name,), not path.obstacle) for path in paths)
    yield _labelled("return_path", "Whether a return path is active.", ("path",), active)
    networks = (((path.wanted.name,), len(path.wanted.networks)) for path in paths)
    yield _labelled("return_path_networks", "Networks of a return path.", ("path",), networks)
    yield _labelled(
        "return_path_next_hop",
        "The next hops of a return path, with their state in the neighbour table.",
        ("path", "address", "interface", "state"),
        (
            ((path.wanted.name, str(hop.gateway), hop.interface, plan.neighbours[hop]), 1)
            for path in paths
            for hop in path.next_hops
        ),
    )


def _external_metrics(plan: Plan) -> Iterator[Metric]:
    found = Counts("inactive" if one.obstacle else "active" for one in plan.desired.external)
    yield _labelled(
        "external_ips",
        "LoadBalancer addresses that lead to their ClusterIP here, and those that are left to kube-proxy.",
        ("state",),
        (((state,), found[state]) for state in ("active", "inactive")),
    )


def _gateways(decisions: Iterable[ServiceDecision]) -> Iterator[tuple[_Address, str]]:
    """Each address, and the node that announces it, empty while none does."""
    for one in decisions:
        if one.service.source:
            ref, gateway = one.service.service.ref, one.service.gateway
            yield (ref.namespace, ref.name, str(one.service.source)), gateway.node.name if gateway else ""


def _traffic_metrics(read: Callable[[], Mapping[str, Count]], plan: Plan) -> Iterator[Metric]:
    try:
        found = read()
    except KernelError as error:
        log.warning("metrics without the packet filter's counters: %s", error)
        return
    nothing = Count(packets=0, size=0)
    left, held, dropped, unknown = (found.get(name, nothing) for name in ("translated", "held", "dropped", "unknown"))
    yield _count("snat_packets", "Packets that left here with a LoadBalancer address.", left.packets)
    yield _count("snat_bytes", "Bytes of these packets.", left.size)
    yield _count("rejected_packets", "Outward packets of egress pods refused.", held.packets + dropped.packets)
    yield _count("unknown_pod_packets", "Outward packets of pods that were not known yet, dropped.", unknown.packets)
    yield from _router_metrics(replace(plan, passed=found))


def _router_metrics(plan: Plan) -> Iterator[Metric]:
    labels = ("path", "address", "interface")
    requests = CounterMetricFamily(
        f"{_PREFIX}_return_path_requests_packets", "Packets that came by a next hop of a return path.", labels=labels
    )
    answers = CounterMetricFamily(
        f"{_PREFIX}_return_path_answers_packets", "Packets that left by it since they answer these.", labels=labels
    )
    for one in plan.desired.paths:
        for hop in one.routers:
            if came := report.passed(plan, one, hop):
                values = (one.path.wanted.name, str(hop.gateway), hop.interface)
                requests.add_metric(values, came.requests.packets)
                answers.add_metric(values, came.answers.packets)
    yield from (requests, answers)


def _watch_metrics(ages: Mapping[str, float]) -> Iterator[Metric]:
    yield _labelled(
        "watch_age_seconds",
        "Time since the API last said anything about a resource; bookmarks come about once a minute.",
        ("resource",),
        (((name,), age) for name, age in sorted(ages.items())),
    )


def _labelled(name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
    found = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)
    for values, value in samples:
        found.add_metric(values, value)
    return found


def _number(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
