"""Following an API server that behaves: what is asked for, and what the store makes of it."""

from __future__ import annotations

import threading
import time

import pytest

from metaleg_node.sources.api_watch import PAGE
from tests.api.harness import (
    LABEL,
    Harness,
    event,
    eventually,
    gateways,
    l2_status,
    node,
    service,
)
from tests.api.server import ApiServer, Object


def watched_from(server: ApiServer) -> list[int]:
    """The versions from which Services were watched."""
    return [int(one.query["resourceVersion"]) for one in server.asked if one.plural == "services" and one.is_watch]


def test_changes_reach_the_store_without_a_second_list(server: ApiServer, harness: Harness) -> None:
    server.put(service("a"), node("worker-1"))
    harness.loaded().wait_names("a")
    server.put(service("b"), node("worker-2"))
    harness.wait_names("a", "b")
    harness.wait_names("worker-1", "worker-2", kind="nodes")
    server.delete(service("a"))
    harness.wait_names("b")
    server.put(service("b", annotations={"metaleg.de/only-cidrs": "10.0.0.0/8"}))
    harness.wait(lambda: bool(harness.store.snapshot().services[0].annotations))
    assert len([one for one in server.asked if one.plural == "services" and not one.is_watch]) == 1


def test_only_what_is_needed_is_asked_for(server: ApiServer, harness: Harness) -> None:
    harness.loaded()
    harness.wait(lambda: sum(one.is_watch for one in server.asked) == 6)
    queries = {(one.plural, one.query.get("labelSelector"), one.query.get("fieldSelector")) for one in server.asked}
    assert queries == {
        ("services", f"{LABEL}=true", None),
        ("endpointslices", f"{LABEL}=true", None),
        ("nodes", None, None),
        ("servicecidrs", None, None),
        ("servicel2statuses", None, None),
        ("servicebgpstatuses", None, None),
    }
    scoped = {one.path for one in server.asked if "statuses" in one.path}
    assert all("/namespaces/metallb-system/" in path for path in scoped)
    watches = [one for one in server.asked if one.is_watch]
    assert all(one.query["allowWatchBookmarks"] == "true" and int(one.query["timeoutSeconds"]) > 10 for one in watches)
    assert all(one.query["limit"] == str(PAGE) for one in server.asked if not one.is_watch)


def test_a_service_that_loses_or_gets_the_label_goes_or_comes(server: ApiServer, harness: Harness) -> None:
    server.put(service("a"), service("b", labelled=False))
    harness.loaded().wait_names("a")
    server.put(service("a", labelled=False), service("b"))
    harness.wait_names("b")


def test_a_long_list_comes_in_pages(server: ApiServer, harness: Harness) -> None:
    server.page_limit = 7
    server.put(*(service(f"s{number:03}") for number in range(50)))
    harness.loaded().wait_names(*(f"s{number:03}" for number in range(50)))
    pages = [one for one in server.asked if one.plural == "services" and not one.is_watch]
    assert len(pages) == 8
    assert sum("continue" in one.query for one in pages) == 7


def test_nothing_counts_before_every_needed_resource_has_been_listed(server: ApiServer, harness: Harness) -> None:
    server.put(service("a"))
    server.forbidden.add("nodes")
    harness.start().wait(lambda: harness.store.missing == ("Node",))
    assert not harness.store.loaded
    server.forbidden.clear()
    harness.wait(lambda: harness.store.loaded)


def test_a_watch_that_ends_as_asked_goes_on_where_it_ended(server: ApiServer, harness: Harness) -> None:
    server.put(service("a"))
    harness.timing(watch=0.9).loaded()
    assert eventually(lambda: len(watched_from(server)) > 1)
    server.put(service("b"))
    harness.wait_names("a", "b")
    assert len([one for one in server.asked if one.plural == "services" and not one.is_watch]) == 1


def test_bookmarks_move_the_place_to_go_on_from(server: ApiServer, harness: Harness) -> None:
    server.bookmark_seconds = 0.1
    server.put(service("a"))
    harness.loaded()
    for number in range(5):
        server.put(service(f"other-{number}", labelled=False))
    latest = server.version
    assert eventually(lambda: server.bookmarks["services"] > 0)
    before = server.bookmarks["services"]
    assert eventually(lambda: server.bookmarks["services"] > before)
    server.break_connections()
    assert eventually(lambda: watched_from(server)[-1] == latest)
    assert len([one for one in server.asked if one.plural == "services" and not one.is_watch]) == 1


def test_events_are_read_only_where_there_is_no_service_l2_status(server: ApiServer, harness: Harness) -> None:
    server.serve_resource("metallb.io/v1beta1/servicel2statuses", served=False)
    server.put(service("a"), event("a", "worker-1", "a.1", "2024-05-01T08:00:00Z"))
    server.put(
        event("a", "worker-2", "a.2", "2024-05-01T09:00:00Z"), event("a", "worker-3", "a.0", "2024-05-01T07:00:00Z")
    )
    harness.loaded()
    assert gateways(harness) == {"a": "worker-2"}
    (selector,) = {one.query["fieldSelector"] for one in server.asked if one.plural == "events"}
    assert selector == "involvedObject.kind=Service,reason=nodeAssigned"


def test_what_an_event_said_holds_after_kubernetes_forgot_it(server: ApiServer, harness: Harness) -> None:
    server.serve_resource("metallb.io/v1beta1/servicel2statuses", served=False)
    first = event("a", "worker-1", "a.1", "2024-05-01T08:00:00Z")
    server.put(service("a"), first)
    harness.loaded()
    server.delete(first)
    server.compact()
    server.break_connections()
    server.put(event("b", "worker-2", "b.1", "2024-05-01T08:00:00Z"))
    harness.wait(lambda: gateways(harness) == {"a": "worker-1", "b": "worker-2"})
    server.put(
        event("a", "worker-3", "a.2", "2024-05-01T10:00:00Z"), event("a", "worker-4", "a.3", "2024-05-01T09:00:00Z")
    )
    harness.wait(lambda: gateways(harness)["a"] == "worker-3")


def test_metallb_installed_later_comes_into_effect(server: ApiServer, harness: Harness) -> None:
    server.serve_resource("metallb.io/v1beta1/servicel2statuses", served=False)
    server.put(service("a"), event("a", "worker-1", "a.1", "2024-05-01T08:00:00Z"))
    harness.loaded()
    assert gateways(harness) == {"a": "worker-1"}
    server.serve_resource("metallb.io/v1beta1/servicel2statuses", served=True)
    server.put(l2_status("a", "worker-2"))
    harness.wait(lambda: gateways(harness) == {"a": "worker-2"})


def test_an_older_version_of_a_resource_is_taken_where_the_newer_is_not_served(
    server: ApiServer, harness: Harness
) -> None:
    server.serve_resource("networking.k8s.io/v1/servicecidrs", served=False)
    server.serve_resource("networking.k8s.io/v1beta1/servicecidrs", served=True)
    server.put(
        {
            "apiVersion": "networking.k8s.io/v1beta1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16"]},
        }
    )
    harness.loaded().wait_names("kubernetes", kind="service_cidrs")


def test_a_removed_custom_resource_counts_as_gone_only_after_a_while(server: ApiServer, harness: Harness) -> None:
    name = "metallb.io/v1beta1/servicel2statuses"
    server.put(service("a"), l2_status("a", "worker-2"))
    harness.loaded()
    table = server.tables[name]
    server.serve_resource(name, served=False)
    server.break_connections()
    harness.wait_problem("404")
    assert gateways(harness) == {"a": "worker-2"}
    server.tables[name] = table
    harness.wait_well()
    assert gateways(harness) == {"a": "worker-2"}
    server.serve_resource(name, served=False)
    server.break_connections()
    harness.wait(lambda: gateways(harness) == {})
    harness.wait_well()


@pytest.mark.parametrize(
    "spoiled", [{"status": {"loadBalancer": {"ingress": "x"}}}, {"spec": 5}, {"spec": {"type": 7}}]
)
def test_a_bad_object_costs_that_object_and_is_told(
    server: ApiServer, harness: Harness, spoiled: dict[str, object]
) -> None:
    server.put(service("a"), service("b"))
    harness.loaded()
    server.put(service("a") | spoiled)
    harness.wait(lambda: bool(harness.store.snapshot().rejections))
    assert "b" in harness.names()
    server.put(service("a"))
    harness.wait(lambda: not harness.store.snapshot().rejections and harness.names() == ["a", "b"])


def test_an_object_that_stays_the_same_to_us_calls_nobody(server: ApiServer, harness: Harness) -> None:
    server.put(node("worker-1"), service("a"))
    harness.loaded()
    harness.wait(lambda: sum(one.is_watch for one in server.asked) == 6)
    changes, (known,) = harness.changes, harness.store.snapshot().nodes
    for beat in range(20):
        server.put(heartbeat("worker-1", beat))
    server.put(service("b"))
    server.put(node("worker-2"))
    harness.wait_names("worker-1", "worker-2", kind="nodes")
    harness.wait_names("a", "b")
    assert harness.changes == changes + 2
    assert any(one is known for one in harness.store.snapshot().nodes)


def heartbeat(name: str, beat: int) -> Object:
    """What a kubelet reports of a node on which nothing has changed."""
    one, when = node(name), f"2024-01-01T00:{beat:02}:00Z"
    one["metadata"]["managedFields"] = [{"manager": "kubelet", "subresource": "status", "time": when}]
    for condition in one["status"]["conditions"]:
        condition["lastHeartbeatTime"] = when
    return one


def test_a_stop_ends_every_thread_and_connection_at_once(server: ApiServer, harness: Harness) -> None:
    harness.loaded()
    harness.wait(lambda: sum(one.is_watch for one in server.asked) == 6)
    began = time.monotonic()
    harness.stop()
    assert time.monotonic() - began < 0.5
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("watch-")]
