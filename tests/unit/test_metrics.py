"""The metrics as a scraper sees them."""

import http.client
from email.message import Message

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metaleg_node.core.changes import KINDS
from metaleg_node.core.model import ClusterState
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon.metrics import Metrics
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.packet_filter import Counter
from metaleg_node.reconcile.reconciler import Plan
from tests.unit.builders import LB4, LB6, A, announced, cluster, decide, service

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def traffic(packets: int = 0) -> dict[str, Counter]:
    nothing = Counter(packets=0, size=0)
    return {
        "steered": nothing,
        "translated": Counter(packets=packets, size=600),
        "held": Counter(packets=3, size=180),
        "dropped": Counter(packets=1, size=60),
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3", traffic=dict)


def scrape(metrics: Metrics) -> Samples:
    text = metrics.page(Message()).body.decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scrape(metrics).get((f"metaleg_node_{name}", tuple(sorted(labels.items()))))


def test_a_fresh_service_has_its_counters_at_zero(metrics: Metrics) -> None:
    for name in ("reconcile_errors_total", "conntrack_flushed_total", "gateway_changes_total", "services", "pods"):
        assert value(metrics, name) == 0, name
    assert value(metrics, "hook_failures_total", hook="pre") == 0
    assert value(metrics, "hook_failures_total", hook="post") == 0
    assert value(metrics, "config_reload_failures_total") == 0
    assert value(metrics, "build_info", version="1.2.3") == 1
    for name in ("snat_packets_total", "snat_bytes_total", "rejected_packets_total", "log_dropped_total"):
        assert value(metrics, name) == 0, name
    for kind in KINDS:
        assert (
            value(metrics, "drift_repaired_total", kind=kind) == value(metrics, "changes_applied_total", kind=kind) == 0
        )
    assert [name for name, _ in scrape(metrics) if name.endswith("_created")] == []


def test_a_complete_reconcile(metrics: Metrics) -> None:
    metrics.reconciled(seconds=0.02, complete=True, changes={"rule": 2, "firewall": 3})
    metrics.reconciled(seconds=0.02, complete=True, changes={"rule": 1})
    assert value(metrics, "reconcile_duration_seconds_count") == 2
    assert value(metrics, "reconcile_duration_seconds_bucket", le="0.01") == 0
    assert value(metrics, "reconcile_duration_seconds_bucket", le="0.025") == 2
    assert value(metrics, "changes_applied_total", kind="rule") == 3
    assert value(metrics, "changes_applied_total", kind="firewall") == 3
    assert value(metrics, "reconcile_errors_total") == 0
    assert (value(metrics, "last_sync_timestamp_seconds") or 0) > 1.7e9


def test_a_failed_reconcile_is_no_sync(metrics: Metrics) -> None:
    metrics.reconciled(seconds=1, complete=False, changes={})
    assert value(metrics, "reconcile_errors_total") == 1
    assert value(metrics, "last_sync_timestamp_seconds") == 0


def test_what_the_loop_counts(metrics: Metrics) -> None:
    metrics.drift("rule")
    metrics.drift("rule", 2)
    metrics.conntrack_flushed(5)
    metrics.hook_failed("post")
    assert value(metrics, "drift_repaired_total", kind="rule") == 3
    assert value(metrics, "conntrack_flushed_total") == 5
    assert value(metrics, "hook_failures_total", hook="post") == 1


def test_the_configuration_is_valid_until_a_reload_is_refused(metrics: Metrics) -> None:
    metrics.config_loaded()
    assert value(metrics, "config_valid") == 1
    metrics.config_refused()
    assert (value(metrics, "config_valid"), value(metrics, "config_reload_failures_total")) == (0, 1)
    metrics.config_loaded()
    assert (value(metrics, "config_valid"), value(metrics, "config_reload_failures_total")) == (1, 1)


def test_the_age_of_the_state_counts_from_its_confirmation(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("metaleg_node.daemon.metrics.time.monotonic", lambda: clock[0])
    metrics.source_confirmed()
    clock[0] += 42
    assert value(metrics, "source_age_seconds") == 42


def planned(state: ClusterState) -> Plan:
    """A plan of node a for this state of the cluster."""
    return Plan(desired=decide(state, A), steps=())


def test_the_cluster_as_understood(metrics: Metrics) -> None:
    state = cluster(
        services=[service(ingress=(LB4, LB6)), service("other", ingress=("192.0.2.201",))],
        announcements=[announced("b", since="2024-06-01T00:00:00Z"), announced("c")],
    )
    unused = [Problem(code=Code.OBJECT_NOT_USED, subject=f"Pod shop/{name}", text="bad") for name in "xy"]
    metrics.show(planned(state), [*unused, Problem(code=Code.LISTEN, text="in use")])
    assert [value(metrics, n) for n in ("services", "pods", "ambiguous_gateway", "rejected_objects")] == [2, 2, 1, 2]
    assert value(metrics, "no_gateway", reason="no-gateway") == 1
    gateways = [labels for name, labels in scrape(metrics) if name == "metaleg_node_gateway_info"]
    assert [dict(labels) for labels in gateways] == [
        {"namespace": "shop", "service": "web", "address": LB4, "node": "b"},
        {"namespace": "shop", "service": "web", "address": LB6, "node": "b"},
    ]
    problems = {labels: number for (name, labels), number in scrape(metrics).items() if name == "metaleg_node_problems"}
    assert {dict(labels)["code"] for labels in problems} == set(Code)
    assert sum(problems.values()) == 3
    assert value(metrics, "problems", code="object-not-used", severity="warning") == 2
    assert value(metrics, "problems", code="listen", severity="error") == 1


def test_series_of_services_that_are_gone_go_too(metrics: Metrics) -> None:
    metrics.show(planned(cluster(announcements=[])), ())
    assert value(metrics, "no_gateway", reason="no-gateway") == 1
    metrics.show(planned(cluster()), ())
    assert [name for name, _ in scrape(metrics) if name.endswith(("gateway_info", "no_gateway"))] == [
        "metaleg_node_gateway_info"
    ]
    metrics.show(planned(cluster(services=[])), ())
    assert not [name for name, _ in scrape(metrics) if name.endswith(("gateway_info", "no_gateway"))]


@pytest.mark.parametrize(
    ("nodes", "changes"),
    [
        (["a"], 0),
        (["", "a"], 0),
        (["a", "a"], 0),
        (["a", "b"], 1),
        (["a", "", "a"], 0),
        (["a", "", "", "b"], 1),
        (["a", "b", "a"], 2),
        (["a", None, "b"], 0),
    ],
)
def test_a_gateway_change_is_counted_once_also_across_a_gap(
    metrics: Metrics, nodes: list[str | None], changes: int
) -> None:
    for node in nodes:
        services = () if node is None else (service(),)
        metrics.show(planned(cluster(services=services, announcements=[announced(node)] if node else [])), ())
    assert value(metrics, "gateway_changes_total") == changes


def test_the_packet_filters_counters_are_read_at_each_scrape() -> None:
    packets = [10]
    metrics = Metrics(version="0", traffic=lambda: traffic(packets[0]))
    assert value(metrics, "snat_packets_total") == 10
    packets[0] = 11
    assert value(metrics, "snat_packets_total") == 11
    assert value(metrics, "snat_bytes_total") == 600
    assert value(metrics, "rejected_packets_total") == 4


def test_a_scrape_survives_a_packet_filter_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    def unreadable() -> dict[str, Counter]:
        raise KernelError("nft is not installed")

    metrics = Metrics(version="0", traffic=unreadable)
    assert value(metrics, "snat_packets_total") is None
    assert value(metrics, "services") == 0
    assert "nft is not installed" in caplog.text


def test_two_services_in_one_process_do_not_share_numbers(metrics: Metrics) -> None:
    metrics.drift("rule")
    assert value(Metrics(version="0", traffic=dict), "drift_repaired_total", kind="rule") == 0


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [(None, "text/plain; version="), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
def test_the_server_speaks_both_formats(metrics: Metrics, accept: str | None, content_type: str) -> None:
    server = metrics.server(("127.0.0.1", 0))
    server.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=3)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        assert response.status == 200
        assert (response.headers["Content-Type"] or "").startswith(content_type)
        page = response.read()
        assert b"metaleg_node_services 0.0" in page
        assert b"_created" not in page
        connection.close()
        connection.request("GET", "/")
        landing = connection.getresponse()
        assert landing.headers["Content-Type"] == "text/html; charset=utf-8"
        assert b'<a href="/metrics">' in landing.read()
    finally:
        connection.close()
        server.stop()
