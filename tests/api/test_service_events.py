"""Kubernetes Events on Services, as an API server gets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metaleg_node.configuration.config import ClusterSettings
from metaleg_node.core.egress.news import Kind, News
from metaleg_node.core.model import NodeName, ObjectRef
from metaleg_node.sources import access_rights
from metaleg_node.sources.service_events import EventWriter
from tests.api.harness import eventually, service, write_kubeconfig
from tests.api.server import ApiServer

ME = NodeName("node-a")
NOW = 1767182400.0
"""2025-12-31T12:00:00Z."""


class Writer:
    """A writer whose clock the test sets."""

    def __init__(self, server: ApiServer, kubeconfig: Path) -> None:
        self.now = NOW
        self.server = server
        self.events = EventWriter(ClusterSettings(kubeconfig=str(kubeconfig)), clock=lambda: self.now)

    def tell(self, text: str = "moved", *, name: str = "relay", reason: str = "EgressMoved") -> None:
        ref = ObjectRef(kind="Service", namespace="mail", name=name)
        self.events.tell([News(service=ref, kind=Kind.NORMAL, reason=reason, text=text)], ME)

    def written(self, number: int) -> list[Any]:
        """Waits for that many different Events."""
        assert eventually(lambda: len(self.server.made) >= number), self.events.problem
        return list(self.server.made.values())


@pytest.fixture
def writer(server: ApiServer, tmp_path: Path) -> Iterator[Writer]:
    server.put(*(service(name, uid=f"uid-of-{name}") for name in ("relay", "other")))
    writer = Writer(server, write_kubeconfig(tmp_path / "kubeconfig", server.url))
    writer.events.start()
    yield writer
    writer.events.stop()


def test_an_event_is_what_kubectl_describe_looks_for(writer: Writer) -> None:
    writer.tell("moved from node b to node-a")
    (event,) = writer.written(1)
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "namespace": "mail",
        "name": "relay",
        "uid": "uid-of-relay",
    }
    assert (event["type"], event["reason"], event["message"]) == (
        "Normal",
        "EgressMoved",
        "moved from node b to node-a",
    )
    assert (event["source"], event["count"]) == ({"component": "metaleg-node", "host": "node-a"}, 1)
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2025-12-31T12:00:00Z"
    (path,) = writer.server.made
    assert path == f"/api/v1/namespaces/mail/events/{event['metadata']['name']}"


def test_the_same_news_is_one_event_that_counts_until_an_hour_has_passed(writer: Writer) -> None:
    writer.tell()
    writer.now += 60
    writer.tell()
    assert eventually(lambda: [one["count"] for one in writer.server.made.values()] == [2])
    (event,) = writer.written(1)
    assert (event["firstTimestamp"], event["lastTimestamp"]) == ("2025-12-31T12:00:00Z", "2025-12-31T12:01:00Z")
    writer.now += 3601
    writer.tell()
    assert sorted(one["count"] for one in writer.written(2)) == [1, 2]


def test_a_service_that_flaps_is_told_of_ten_times_and_then_once_a_minute(writer: Writer) -> None:
    for number in range(30):
        writer.tell(f"news {number}")
    writer.tell(name="other")
    assert len(writer.written(11)) == 11
    writer.now += 60
    writer.tell("later")
    writer.tell("too often")
    assert [one["message"] for one in writer.written(12)][11:] == ["later"]


def test_what_cannot_be_written_is_a_problem_until_something_is(writer: Writer) -> None:
    writer.server.forbidden.add("events")
    writer.tell()
    assert eventually(lambda: "lacks a right" in writer.events.problem)
    writer.server.forbidden.clear()
    writer.tell("again")
    writer.written(1)
    assert eventually(lambda: not writer.events.problem)


def test_the_right_to_write_is_given_only_when_it_is_asked_for() -> None:
    verbs = [
        {verb for one in made for rule in one.get("rules", ()) for verb in rule["verbs"]} - {"get", "list", "watch"}
        for made in (access_rights.objects("m", "c"), access_rights.objects("m", "c", events=True))
    ]
    assert verbs == [set(), {"create", "patch"}]
    names = [one["metadata"]["name"] for one in access_rights.event_objects()]
    assert names == ["metaleg-node-events"] * 2
