"""The store: whole states in, whole snapshots out, and a call when something changed."""

from __future__ import annotations

import random
import threading

import pytest

from metaleg_node.core.model import (
    AnnouncedBy,
    Announcement,
    ClusterObject,
    ClusterState,
    NodeName,
    ObjectRef,
    Pod,
    Rejection,
)
from metaleg_node.core.objects.manifests import Parsed
from metaleg_node.sources.store import Store


class Calls:
    """Counts the calls of `changed`."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def pod(name: str, *, host_network: bool = False) -> Pod:
    ref = ObjectRef(kind="Pod", namespace="mail", name=name)
    return Pod(ref=ref, node=None, host_network=host_network, addresses=())


def announcement(name: str, node: str) -> Announcement:
    return Announcement(
        ref=ObjectRef(kind="ServiceL2Status", namespace="metallb-system", name=name),
        source=AnnouncedBy.L2_STATUS,
        service=("mail", "relay"),
        node=NodeName(node),
        since="",
    )


def test_a_new_store_is_empty_and_not_loaded() -> None:
    store = Store(Calls())
    assert (store.snapshot(), store.problems, store.loaded) == (ClusterState(), (), False)


def test_an_empty_state_counts_as_loaded() -> None:
    calls = Calls()
    store = Store(calls)
    store.replace_all("state file", [])
    assert (store.loaded, calls.count) == (True, 1)


def test_a_new_state_replaces_the_old_one_of_the_same_source_only() -> None:
    store = Store(Calls())
    store.replace_all("pods", [pod("a"), pod("b")])
    store.replace_all("statuses", [announcement("x", "worker-1")])
    store.replace_all("pods", [pod("c")])
    snapshot = store.snapshot()
    assert snapshot.pods == (pod("c"),)
    assert snapshot.announcements == (announcement("x", "worker-1"),)


def test_F2_two_statuses_of_one_service_are_both_kept() -> None:
    store = Store(Calls())
    both = (announcement("x", "worker-1"), announcement("y", "worker-2"))
    store.replace_all("state file", both)
    assert store.snapshot().announcements == both


def test_of_two_objects_of_one_name_the_last_counts_and_that_is_told() -> None:
    store = Store(Calls())
    store.replace_all("state file", [pod("a"), pod("b"), pod("a", host_network=True), pod("a", host_network=True)])
    assert store.snapshot().pods == (pod("b"), pod("a", host_network=True))
    (rejection,) = store.snapshot().rejections
    assert str(rejection.ref) == "Pod mail/a"
    assert "more than once" in rejection.reason


def test_the_same_state_again_calls_nobody_and_keeps_the_snapshot() -> None:
    calls = Calls()
    store = Store(calls)
    told = [Rejection(ref=ObjectRef(kind="Pod", name="x"), reason="bad")]
    store.replace_all("state file", [pod("a")], told)
    before = store.snapshot()
    store.replace_all("state file", [pod("a")], told)
    assert store.snapshot() is before
    assert calls.count == 1
    store.replace_all("state file", [pod("a")])
    assert store.snapshot().rejections == ()
    assert calls.count == 2


def test_a_problem_leaves_the_objects_and_ends_with_the_next_state() -> None:
    calls = Calls()
    store = Store(calls)
    store.replace_all("state file", [pod("a")])
    store.set_problem("state file", "broken")
    store.set_problem("state file", "broken")
    assert (store.problems, store.snapshot().pods, calls.count) == (("broken",), (pod("a"),), 2)
    store.replace_all("state file", [pod("a")])
    assert (store.problems, calls.count) == ((), 3)


def test_a_problem_is_no_state() -> None:
    store = Store(Calls())
    store.set_problem("state file", "missing")
    assert not store.loaded


def test_the_callback_may_use_the_store() -> None:
    seen: list[int] = []
    store = Store(lambda: seen.append(len(store.snapshot().pods)))
    store.replace_all("state file", [pod("a")])
    assert seen == [1]


def test_readers_see_whole_states_only() -> None:
    store = Store(Calls())
    done = threading.Event()

    def write() -> None:
        for count in range(300):
            store.replace_all("state file", [pod(f"p{index}") for index in range(count % 2 * 50)])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    sizes = set()
    while not done.is_set():
        sizes.add(len(store.snapshot().pods))
    writer.join()
    assert sizes <= {0, 50}


@pytest.mark.parametrize("kinds", [1, 4], ids=["one of a kind each", "anything"])
def test_objects_that_come_change_and_go_leave_what_a_store_from_scratch_has(kinds: int) -> None:
    chance = random.Random(1)
    store, parts = Store(Calls()), dict[object, Parsed]()
    for number in range(300):
        key = chance.choice("abcde")
        one, other = pod(f"{key}{number}"), announcement(f"{key}{number}", "worker-1")
        refused = Rejection(ref=one.ref, reason="bad")
        if kinds > 1 and chance.random() < 0.2:
            parts.pop(key, None)
            store.remove("s", key)
        else:
            choices = [
                Parsed(objects=(one,)),
                Parsed(objects=(one, pod(f"{key}{number}x"))),
                Parsed(rejections=(refused,)),
                Parsed(objects=(other,)),
            ]
            parts[key] = chance.choice(choices[:kinds])
            store.put("s", key, parts[key])
        scratch = Store(Calls())
        scratch.replace("s", parts)
        assert store.snapshot() == scratch.snapshot()


def part(one: ClusterObject) -> Parsed:
    return Parsed(objects=(one,))


def test_a_store_is_loaded_when_every_needed_source_gave_a_state() -> None:
    store = Store(Calls(), ["pods", "statuses"])
    store.replace("pods", {"a": part(pod("a"))})
    assert (store.loaded, store.missing) == (False, ("statuses",))
    store.set_problem("statuses", "forbidden")
    assert not store.loaded
    store.replace("statuses", {})
    assert (store.loaded, store.missing, store.problems) == (True, (), ())


def test_single_objects_come_change_and_go() -> None:
    calls = Calls()
    store = Store(calls, ["pods"])
    store.replace("pods", {"a": part(pod("a")), "b": part(pod("b"))})
    store.put("pods", "c", part(pod("c")))
    store.put("pods", "a", part(pod("a", host_network=True)))
    store.remove("pods", "b")
    assert store.snapshot().pods == (pod("a", host_network=True), pod("c"))
    assert calls.count == 4
    store.put("pods", "c", part(pod("c")))
    store.remove("pods", "b")
    assert calls.count == 4, "nothing changed"


def test_an_object_that_became_bad_leaves_its_rejection_only() -> None:
    store = Store(Calls(), ["pods"])
    store.replace("pods", {"a": part(pod("a"))})
    bad = Rejection(ref=pod("a").ref, reason="bad")
    store.put("pods", "a", Parsed(rejections=(bad,)))
    assert (store.snapshot().pods, store.snapshot().rejections) == ((), (bad,))


def test_needed_sources_come_in_their_order_whoever_is_first() -> None:
    store = Store(Calls(), ["first", "second"])
    store.replace("second", {"x": part(announcement("x", "worker-2"))})
    store.replace("first", {"y": part(announcement("y", "worker-1"))})
    assert [one.node for one in store.snapshot().announcements] == ["worker-1", "worker-2"]


def test_one_problem_of_many_sources_is_told_once() -> None:
    calls = Calls()
    store = Store(calls)
    for source in ("a", "b", "b"):
        store.set_problem(source, "connection refused")
    assert (store.problems, calls.count) == (("connection refused",), 2)
    store.set_problem("a", "")
    assert len(store.problems) == 1
    store.set_problem("b", "")
    assert len(store.problems) == 0
