"""When connections are looked through beside the loop; which of them go is in test_flows.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from metaleg_node.core.compare.diff import SweepFlows
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Address
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink.routing import RoutingControl
from metaleg_node.reconcile import sweeper
from metaleg_node.reconcile.sweeper import Sweeper
from tests.patience import patient

PODS = [ip_address(f"10.244.1.{n}") for n in range(4)]


class Looks:
    """Stands where connections are looked through: each look waits until the test lets it go on."""

    def __init__(self) -> None:
        self.seen: list[frozenset[Address] | None] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.refusals = 0

    def __call__(self, sweep: SweepFlows, _routing: RoutingControl) -> int:
        self.seen.append(sweep.addresses)
        self.begun.release()
        assert self.go_on.acquire(timeout=patient(5))
        if self.refusals:
            self.refusals -= 1
            raise KernelError("cannot list the connections: no")
        return 3

    def wait(self) -> None:
        assert self.begun.acquire(timeout=patient(5))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    made = Looks()
    monkeypatch.setattr(sweeper, "forget_connections", made)
    monkeypatch.setattr(sweeper, "_RETRY_SECONDS", 0.01)
    yield made
    made.go_on.release(99)


def sweep(*numbers: int) -> SweepFlows:
    return SweepFlows(firewall=Firewall(mark_mask=1), addresses=frozenset(PODS[n] for n in numbers))


def test_the_first_is_done_at_once_and_what_comes_meanwhile_together(looks: Looks) -> None:
    done = threading.Semaphore(0)
    flushed: list[int] = []

    def swept(entries: int) -> None:
        flushed.append(entries)
        done.release()

    with Sweeper(swept) as ours:
        ours.ask(sweep(0))
        looks.wait()
        for number in (1, 2, 3):
            ours.ask(sweep(number))
        looks.go_on.release(2)
        for _ in range(2):
            assert done.acquire(timeout=patient(5))
    assert looks.seen == [sweep(0).addresses, sweep(1, 2, 3).addresses]
    assert flushed == [3, 3]


def test_one_that_fails_is_told_and_tried_again_with_what_came_meanwhile(looks: Looks) -> None:
    told = threading.Event()
    looks.refusals = 1
    with Sweeper(lambda _: told.set()) as ours:
        ours.ask(sweep(0))
        looks.wait()
        ours.ask(sweep(1))
        looks.go_on.release()
        looks.wait()
        (problem,) = ours.problems
        assert "may still be bound to a former source" in problem.text
        assert "cannot list the connections" in problem.text
        looks.go_on.release()
        assert told.wait(patient(5))
        assert ours.problems == ()
    assert looks.seen == [sweep(0).addresses, sweep(0, 1).addresses]


def test_what_is_not_needed_any_more_is_not_done(looks: Looks) -> None:
    with Sweeper(lambda _: None) as ours:
        ours.ask(sweep(0))
        looks.wait()
        ours.ask(sweep(1))
        ours.forget()
        ours.ask(sweep(2))
        looks.go_on.release()
        looks.wait()
    assert looks.seen == [sweep(0).addresses, sweep(2).addresses]
