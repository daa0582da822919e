"""How long a Service's claims outlast its gateway."""

from __future__ import annotations

from metaleg_node.core.egress.survey import take
from metaleg_node.core.model import ClusterState
from metaleg_node.reconcile.patience import GATEWAY_AWAY, Patience
from tests.unit.builders import announced, cluster, config, endpoint, endpoint_slice, service

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
