"""This node's Pods from the API, for egress.new_pods: what of them is read, and what a broken watch means."""

from __future__ import annotations

from typing import Any

from tests.api import faults
from tests.api.faults import a_watch
from tests.api.harness import Harness, node, service
from tests.api.server import ApiServer, Object
from tests.api.test_return_path import following

HOLD = 'node.name = "worker-1"\negress.new_pods = "hold"'


def pod(name: str, on: str, **status: Any) -> Object:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": {"app": "web"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": on}, "status": status}


def test_only_this_nodes_pods_come_with_all_that_tells_whose_they_are(server: ApiServer, harness: Harness) -> None:
    web = service("web")
    web["spec"]["selector"] = {"app": "web"}
    server.put(node("worker-1"), web, pod("here", "worker-1"), pod("there", "worker-2"))
    following(harness, HOLD).loaded()
    harness.wait(lambda: [str(one.ref) for one in harness.store.snapshot().pods] == ["Pod default/here"])
    (found,) = harness.store.snapshot().pods
    assert (found.labels, found.uid, found.addresses, found.ending) == ({"app": "web"}, "uid-here", (), False)
    assert [one.selector for one in harness.store.snapshot().services] == [{"app": "web"}]
    server.put(pod("here", "worker-1", podIPs=[{"ip": "10.244.1.9"}]))
    harness.wait(lambda: [str(a) for one in harness.store.snapshot().pods for a in one.addresses] == ["10.244.1.9"])
    assert "uid-here" in b"".join(harness.store.raw()).decode(), "the last known state tells it too"


def test_without_the_right_to_read_pods_nothing_counts_as_known(server: ApiServer, harness: Harness) -> None:
    server.put(node("worker-1"), service("web"))
    server.forbidden.add("pods")
    following(harness, HOLD).start()
    harness.wait(lambda: harness.store.hindered("Pod"))
    harness.wait(lambda: harness.store.missing == ("Pod",))
    assert 'cannot list resource "pods"' in str(harness.store.problems)


def test_a_watch_of_pods_that_stalls_makes_them_unsure_until_the_next_one_tells_what_was_missed(
    server: ApiServer, harness: Harness
) -> None:
    server.put(node("worker-1"), service("web"), pod("before", "worker-1"))
    server.inject(faults.streams(silent=60), when=a_watch("pods"))
    sure: list[bool] = []
    harness.observe = lambda: sure.append(not harness.store.hindered("Pod"))
    following(harness, HOLD).timing(watch=1.0, silence=0.2).loaded()
    harness.wait(lambda: server.faults_to_come == 0)
    server.put(pod("missed", "worker-1"))
    harness.wait_names("before", "missed", kind="pods")
    assert False in sure
    assert sure[-1]
