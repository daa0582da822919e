"""Everything that API servers, and what stands before them, do wrong: nothing is lost, and all is well again after."""

from __future__ import annotations

import gzip
import time

import pytest

from tests.api import faults
from tests.api.faults import a_list, a_watch
from tests.api.harness import Harness, eventually, gateways, l2_status, node, service
from tests.api.server import ApiServer, Fault

OF_LISTS = {
    "500": faults.answers(500, "InternalError"),
    "503": faults.answers(503, "ServiceUnavailable"),
    "504": faults.answers(504, "Timeout"),
    "410": faults.answers(410, "Expired"),
    "503 until nobody knows when": faults.answers(503, "ServiceUnavailable", headers={"Retry-After": "\xb2"}),
    "a redirect": faults.sends(302, b"", "text/plain"),
    "a proxy's page with 200": faults.html(200),
    "a proxy's page with 502": faults.html(502),
    "a proxy's page with 404": faults.html(404),
    "404 of a resource that must be there": faults.sends(404, b"404 page not found\n", "text/plain"),
    "an empty body": faults.sends(200, b"", "application/json"),
    "a JSON list": faults.sends(200, b"[]", "application/json"),
    "another object": faults.sends(200, b'{"kind":"Status","metadata":{"resourceVersion":"1"}}', "application/json"),
    "no version": faults.sends(200, b'{"kind":"ServiceList","metadata":{},"items":[]}', "application/json"),
    "items of a wrong type": faults.sends(
        200, b'{"kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":{}}', "application/json"
    ),
    "bytes that are no text": faults.sends(200, b"\xff\xfe\x00{", "application/json"),
    "nested without end": faults.sends(200, b"[" * 100_000, "application/json"),
    "not the gzip it says": faults.sends(200, gzip.compress(b"{}")[:-4], "application/json"),
    "cut off in the middle": faults.truncates,
    "reset": faults.cuts_connection,
    "silence": faults.says_nothing,
}

ERROR_410 = b'{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}\n'
OF_WATCHES = {
    "410 as status": faults.answers(410, "Expired"),
    "410 as event": faults.streams(ERROR_410),
    "500 as status": faults.answers(500, "InternalError"),
    "504 as status": faults.answers(504, "Timeout", "Too large resource version"),
    "500 as event": faults.streams(b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}\n'),
    "an error without a code": faults.streams(b'{"type":"ERROR","object":{"kind":"Status","code":[410]}}\n'),
    "an event without object": faults.streams(b'{"type":"ADDED"}\n'),
    "an object without version": faults.streams(b'{"type":"DELETED","object":{"metadata":{"name":"a"}}}\n'),
    "a version that is no text": faults.streams(
        b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"\\ud800"}}}\n'
    ),
    "no JSON": faults.streams(b"hello\n"),
    "half an event": faults.streams(b'{"type":"DELETED","object":{"metadata":{"name":"a","namespace":"mail"'),
    "half an event, then a reset": faults.streams(b'{"type":"DELETED","object":{"met', close=True),
    "a proxy's page": faults.html(200),
    "a proxy's error page": faults.html(502),
    "an end at once": faults.streams(),
    "silence before the answer": faults.says_nothing,
    "reset": faults.cuts_connection,
}


@pytest.mark.parametrize("fault", OF_LISTS.values(), ids=OF_LISTS.keys())
def test_a_first_list_that_fails_is_told_and_tried_again(server: ApiServer, harness: Harness, fault: Fault) -> None:
    server.put(service("a"), node("worker-1"))
    server.inject(fault, when=a_list("services"), times=3)
    harness.start().wait_problem("Kubernetes API")
    assert not harness.store.loaded
    harness.wait_names("a")
    harness.wait_well()
    assert server.faults_to_come == 0


@pytest.mark.parametrize("fault", OF_WATCHES.values(), ids=OF_WATCHES.keys())
def test_F35_F37_a_watch_that_fails_takes_nothing_away_and_misses_nothing(
    server: ApiServer, harness: Harness, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(service("a"), service("b"), service("c"))
    server.inject(fault, when=a_watch("services"), times=2)
    seen: list[set[str]] = []
    harness.loaded()
    harness.observe = lambda: seen.append(set(harness.names()))
    server.put(service("d"))
    server.delete(service("c"))
    harness.wait_names("a", "b", "d")
    assert [names for names in seen if not {"a", "b"} <= names] == []
    assert seen
    harness.wait_well()
    harness.wait(lambda: server.faults_to_come == 0)
    assert "unexpected error" not in caplog.text


@pytest.mark.parametrize("fault", OF_LISTS.values(), ids=OF_LISTS.keys())
def test_F37_a_second_list_that_fails_takes_nothing_away(server: ApiServer, harness: Harness, fault: Fault) -> None:
    server.put(service("a"), service("b"))
    harness.loaded()
    seen: list[list[str]] = []
    harness.observe = lambda: seen.append(harness.names())
    server.delete(service("b"))
    harness.wait_names("a")
    server.inject(fault, when=a_list("services"), times=2)
    server.inject(faults.answers(410, "Expired"), when=a_watch("services"))
    server.compact()
    server.break_connections()
    server.put(service("c"))
    harness.wait_names("a", "c")
    harness.wait_well()
    assert [names for names in seen if "a" not in names] == []
    assert seen
    assert server.faults_to_come == 0


def test_F35_what_disappeared_while_the_history_was_lost_is_found_by_comparison(
    server: ApiServer, harness: Harness
) -> None:
    server.put(service("a"), service("b"), l2_status("a", "worker-1"))
    harness.loaded()
    server.inject(faults.cuts_connection, when=lambda _: True, times=8)
    server.break_connections()
    server.delete(service("b"), l2_status("a", "worker-1"))
    server.compact()
    harness.wait_names("a")
    harness.wait(lambda: gateways(harness) == {})


@pytest.mark.parametrize("as_status", [True, False])
def test_F35_an_expired_version_is_answered_by_a_new_list_at_once(
    server: ApiServer, harness: Harness, *, as_status: bool
) -> None:
    server.gone_as_status = as_status
    server.put(service("a"))
    harness.loaded()
    server.put(service("b"))
    harness.wait_names("a", "b")
    server.compact()
    server.break_connections()
    server.put(service("c"))
    harness.wait_names("a", "b", "c")
    harness.wait_well()


def test_an_expired_continue_token_begins_the_list_anew(server: ApiServer, harness: Harness) -> None:
    server.page_limit = 2
    server.put(*(service(name) for name in "abcde"))
    server.inject(
        faults.answers(410, "Expired", "The provided continue parameter is too old"),
        when=lambda asked: asked.plural == "services" and "continue" in asked.query,
    )
    harness.loaded().wait_names(*"abcde")
    assert server.faults_to_come == 0


def test_an_api_server_that_came_back_from_an_older_backup_is_followed(server: ApiServer, harness: Harness) -> None:
    server.put(service("a"), service("b"))
    harness.loaded()
    server.version += 1000
    server.put(service("c"))
    harness.wait_names("a", "b", "c")
    server.down()
    for table in server.tables.values():
        table.history.clear()
    server.version = 50
    del server.tables["v1/services"].objects["mail", "c"]
    server.up()
    harness.wait_names("a", "b")
    harness.wait_well()


def test_F34_an_api_server_that_dies_takes_nothing_away_and_is_found_again(server: ApiServer, harness: Harness) -> None:
    server.put(service("a"), node("worker-1"))
    harness.loaded()
    server.down()
    harness.wait_problem("refused")
    assert harness.names() == ["a"]
    harness.wait(lambda: len(harness.store.problems) == 1)  # One cause is told once.
    server.put(service("b"))
    server.up()
    harness.wait_names("a", "b")
    harness.wait_well()


def test_F36_a_watch_on_which_nothing_comes_for_too_long_is_replaced(server: ApiServer, harness: Harness) -> None:
    server.put(service("a"))
    server.inject(faults.streams(silent=60), when=a_watch("services"))
    harness.timing(watch=1.0, silence=0.2).loaded()
    harness.wait(lambda: server.faults_to_come == 0)
    server.put(service("b"))
    harness.wait_names("a", "b")


def test_a_missing_right_is_named_and_then_used_once_given(server: ApiServer, harness: Harness) -> None:
    server.forbidden.add("endpointslices")
    problem = harness.start().wait_problem("lacks a right")
    assert 'cannot list resource "endpointslices"' in problem
    assert "rbac.yaml" in problem
    server.forbidden.clear()
    harness.wait_well()


def test_429_is_obeyed_for_as_long_as_it_says(server: ApiServer, harness: Harness) -> None:
    server.inject(faults.answers(429, "TooManyRequests", headers={"Retry-After": "1"}), when=a_list("nodes"))
    began = time.monotonic()
    harness.loaded()
    assert time.monotonic() - began >= 1
    asked = [one for one in server.asked if one.plural == "nodes" and not one.is_watch]
    assert len(asked) == 2


def noted(moments: list[float]) -> bool:
    """Keeps the time of a request."""
    moments.append(time.monotonic())
    return True


def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_end(server: ApiServer, harness: Harness) -> None:
    moments: list[float] = []
    server.inject(faults.streams(), when=lambda asked: a_watch("services")(asked) and noted(moments), times=1000)
    harness.loaded()
    assert eventually(lambda: len(moments) > 8)
    assert moments[8] - moments[0] > 0.2


ALWAYS_SHORT = {
    "a clean end": (faults.streams(), "ends each watch of services at once"),
    "an event, then a clean end": (
        faults.streams(b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}\n'),
        "ends each watch of services at once",
    ),
    "410 as event": (faults.streams(ERROR_410), "too old resource version"),
    "410 as status": (faults.answers(410, "Expired", "too old resource version"), "too old resource version"),
    "500 as event": (OF_WATCHES["500 as event"], "etcd"),
    "403": (faults.answers(403, "Forbidden", "cannot watch"), "cannot watch"),
}


@pytest.mark.parametrize(("fault", "told"), ALWAYS_SHORT.values(), ids=ALWAYS_SHORT.keys())
def test_watches_that_never_live_are_told_and_asked_for_less_and_less(
    server: ApiServer, harness: Harness, fault: Fault, told: str
) -> None:
    """Although every list succeeds."""
    moments: list[float] = []
    problems: list[bool] = []
    server.inject(fault, when=lambda asked: a_watch("services")(asked) and noted(moments), times=1_000_000)
    server.put(service("a"))
    harness.loaded()
    assert eventually(lambda: len(moments) > 4)
    harness.wait_problem(told)
    harness.observe = lambda: problems.append(bool(harness.store.problems))
    begun = len(moments)
    assert eventually(lambda: len(moments) > begun + 6)
    assert moments[-1] - moments[-2] >= 0.1  # Half of the longest wait, as far as chance goes.
    assert all(problems)
    assert harness.names() == ["a"]
    server.heal()
    harness.wait_well()


def test_a_list_that_never_ends_is_given_up(server: ApiServer, harness: Harness) -> None:
    server.put(service("a"))
    server.inject(faults.trickles, when=a_list("services"))
    told: list[str] = []
    harness.observe = lambda: told.extend(harness.store.problems)
    harness.start().wait_names("a")
    harness.wait_well()
    assert any("not complete in time" in problem for problem in told)


def test_a_server_that_asks_for_patience_is_a_problem_only_when_it_lasts(server: ApiServer, harness: Harness) -> None:
    moments: list[float] = []
    busy = faults.answers(429, "TooManyRequests", "too many", headers={"Retry-After": "1"})
    server.inject(busy, when=lambda asked: a_list("nodes")(asked) and noted(moments), times=3)
    harness.start()
    assert eventually(lambda: len(moments) == 1)
    harness.wait(lambda: len(harness.store.missing) == 1)
    assert not harness.store.problems
    harness.wait_problem("too many")
    assert len(moments) > 1
    harness.wait_well()


def test_the_wait_between_attempts_grows(server: ApiServer, harness: Harness) -> None:
    moments: list[float] = []
    server.inject(faults.answers(500, "Error"), when=lambda a: a_list("nodes")(a) and noted(moments), times=1000)
    harness.start()
    assert eventually(lambda: len(moments) > 6)
    first, last = moments[1] - moments[0], moments[6] - moments[5]
    assert first < 0.1 <= last


def test_a_stop_while_the_server_says_nothing_takes_no_longer_than_promised(
    server: ApiServer, harness: Harness
) -> None:
    server.inject(faults.says_nothing, when=lambda _: True, times=1000)
    harness.start()
    assert eventually(lambda: len(server.asked) >= 6)
    began = time.monotonic()
    harness.stop()
    assert time.monotonic() - began < 2.5
