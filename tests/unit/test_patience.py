"""How long a Service's claims outlast its gateway."""

from __future__ import annotations

from metaleg_node.core.assembly import Desired
from metaleg_node.core.egress.survey import take
from metaleg_node.core.firewall.egress import Treatment
from metaleg_node.core.model import ClusterState, Slot
from metaleg_node.reconcile.patience import GATEWAY_AWAY, Patience
from tests.firewalls import flat
from tests.unit.builders import (
    A,
    announced,
    assembled,
    cluster,
    config,
    endpoint,
    endpoint_slice,
    host,
    node,
    service,
)

OLD, YOUNG = service("old"), service("web", created="2024-06-01T00:00:00Z", ingress=("192.0.2.201",))
SLICES = [endpoint_slice(endpoint("10.244.1.5"), service=name) for name in ("old", "web")]
THERE = cluster(services=[OLD, YOUNG], slices=SLICES, announcements=[announced("c"), announced("b", service="old")])
AWAY = cluster(services=[OLD, YOUNG], slices=SLICES)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def owner(patience: Patience, state: ClusterState) -> str:
    found = take(state, config(), patience.awaited)
    patience.look(found)
    (name,) = [one.service.ref.name for one in found.services if one.pods]
    return name


def test_a_gateway_that_is_away_for_seconds_changes_no_owner() -> None:
    clock = Clock()
    patience = Patience(clock)
    assert owner(patience, THERE) == "old"
    for _ in range(5):
        clock.now += GATEWAY_AWAY * 0.9
        assert owner(patience, AWAY) == "old"
        assert patience.wait == GATEWAY_AWAY
        clock.now += GATEWAY_AWAY * 0.9
        assert owner(patience, THERE) == "old"
        assert patience.wait is None


def test_one_that_stays_away_does_and_is_looked_for_in_time() -> None:
    clock = Clock()
    patience = Patience(clock)
    owner(patience, THERE)
    owner(patience, AWAY)
    clock.now += GATEWAY_AWAY / 2
    assert owner(patience, AWAY) == "old"
    assert patience.wait == GATEWAY_AWAY / 2, "the time runs from when it went"
    clock.now += GATEWAY_AWAY / 2
    assert [owner(patience, AWAY) for _ in range(3)] == ["web"] * 3
    assert patience.wait is None
    assert owner(patience, THERE) == "old"


def test_a_service_that_never_had_a_gateway_is_not_awaited() -> None:
    patience = Patience(Clock())
    assert [owner(patience, AWAY) for _ in range(2)] == ["web"] * 2
    assert patience.wait is None


def test_a_service_that_is_gone_is_forgotten() -> None:
    patience = Patience(Clock())
    owner(patience, THERE)
    owner(patience, AWAY)
    owner(patience, cluster(services=[YOUNG], slices=SLICES))
    assert patience.awaited == {YOUNG.ref}
    assert patience.wait is None


# --- an announcement that is away for a moment -----------------------------------------------------------------------

HELD = {Slot(7): "c"}
ONE = cluster()
NONE = cluster(announcements=[])


def decided(patience: Patience, state: ClusterState) -> Desired:
    """What node a does, with the slot that gateway c has."""
    found = take(state, config(), recent=patience.recent)
    patience.look(found)
    return assembled(found, config(), A, host(found, A), HELD)


def treatments(desired: Desired) -> set[Treatment]:
    return {pod.treatment for pod in flat(desired.state.firewall).pods.values() if pod.local}


def impatient() -> tuple[Clock, Patience]:
    clock = Clock()
    return clock, Patience(clock, grace=1.0, quiet=3.0)


def test_F7_a_status_that_is_replaced_is_one_change_and_no_slot_moves() -> None:
    clock, patience = impatient()
    before = decided(patience, ONE)
    clock.now += 60
    away = decided(patience, NONE)
    assert away.state == before.state
    assert away.problems == before.problems
    clock.now += 0.2
    again = decided(patience, cluster(announcements=[announced("c", since="2024-05-05T00:00:00Z")]))
    assert again.state == before.state
    assert patience.wait is None
    clock.now += 60
    decided(patience, NONE)
    clock.now += 0.2
    moved = decided(patience, cluster(announcements=[announced("b")]))
    assert {one.service.gateway.node.name for one in moved.services if one.service.gateway} == {"b"}


def test_after_the_grace_pods_wait_for_three_seconds_and_then_are_told() -> None:
    clock, patience = impatient()
    decided(patience, ONE)
    assert treatments(decided(patience, NONE)) == {Treatment.STEER}
    assert patience.wait == 1.0
    clock.now += 1.0
    assert treatments(decided(patience, NONE)) == {Treatment.WAIT}
    assert patience.wait == 3.0
    clock.now += 3.0
    assert treatments(decided(patience, NONE)) == {Treatment.HOLD}
    assert patience.wait == GATEWAY_AWAY - 4.0
    assert treatments(decided(patience, ONE)) == {Treatment.STEER}
    assert patience.wait is None


def test_a_node_that_is_lost_or_not_ready_is_left_at_once() -> None:
    for nodes in ([node("a"), node("b")], [node("a"), node("b"), node("c", ready=False)]):
        _, patience = impatient()
        decided(patience, ONE)
        assert treatments(decided(patience, cluster(announcements=[], nodes=nodes))) == {Treatment.WAIT}


def test_without_grace_a_gateway_goes_with_its_announcement() -> None:
    patience = Patience(Clock())
    decided(patience, ONE)
    assert treatments(decided(patience, NONE)) == {Treatment.HOLD}
