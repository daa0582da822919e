"""All Services of type LoadBalancer from the API, beside those with the egress label: what is asked for."""

from __future__ import annotations

import pytest

from metaleg_node.configuration.config import parse
from metaleg_node.sources import kubernetes_api
from metaleg_node.sources.resources import subjects
from tests.api import faults
from tests.api.harness import LABEL, Harness, node, service
from tests.api.server import ApiServer, Asked, Object
from tests.api.test_return_path import EGRESS, NETWORKS, following

ON = "external_ip.enabled = true\n"
TYPE = "spec.type=LoadBalancer"


def of_type(name: str, kind: str, **metadata: object) -> Object:
    made = service(name, labelled=False, **metadata)
    made["spec"]["type"] = kind
    return made


@pytest.mark.parametrize(
    ("text", "names", "selectors"),
    [
        (ON, [*EGRESS, "other Services"], [(f"{LABEL}!=true", TYPE), (f"{LABEL}!=true", "")]),
        (f"{ON}external_ip.external_ips = true", [*EGRESS, "other Services"], [(f"{LABEL}!=true", "")]),
        (f"{ON}egress.enabled = false", ["other Services", *NETWORKS], [("", TYPE), ("", "")]),
    ],
)
def test_what_is_asked_for(text: str, names: list[str], selectors: list[tuple[str, str]]) -> None:
    found = {subject.name: subject for subject in subjects(parse(text, file="F"))}
    assert list(found) == names
    assert [(one.label_selector, one.field_selector) for one in found["other Services"].choices] == selectors


def test_services_come_once_whether_labelled_or_not(server: ApiServer, harness: Harness) -> None:
    server.put(node("worker-1"), service("labelled"), of_type("plain", "LoadBalancer"), of_type("inside", "ClusterIP"))
    following(harness, ON).loaded()
    harness.wait_names("labelled", "plain")
    server.put(service("plain"))
    harness.wait(lambda: [bool(s.labels) for s in harness.store.snapshot().services] == [True, True])
    harness.wait_names("labelled", "plain")
    server.put(of_type("labelled", "LoadBalancer"))
    harness.wait(lambda: sorted(bool(s.labels) for s in harness.store.snapshot().services) == [False, True])
    server.put(of_type("labelled", "ClusterIP"))
    harness.wait_names("plain")


def selects_by_type(asked: Asked) -> bool:
    return asked.query.get("fieldSelector") == TYPE


def test_a_server_that_cannot_select_by_type_is_asked_for_all(server: ApiServer, harness: Harness) -> None:
    refusal = f'Unable to find "/v1, Resource=services" that match field selector "{TYPE}": field label not supported'
    refuse = faults.answers(400, "BadRequest", f"{refusal}: spec.type")
    server.inject(refuse, when=selects_by_type, times=1000)
    server.put(node("worker-1"), of_type("plain", "LoadBalancer"), of_type("inside", "ClusterIP"))
    following(harness, ON).loaded()
    harness.wait_names("inside", "plain")
    harness.wait_well()
    server.put(of_type("later", "LoadBalancer"))
    harness.wait_names("inside", "later", "plain")
    state, problems = kubernetes_api.read(harness.config)
    assert not problems
    assert sorted(one.ref.name for one in state.services) == ["inside", "later", "plain"]
