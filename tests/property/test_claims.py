"""Whose pods are whose: any Services that share pods, in any order of their objects."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metaleg_node.core.egress.survey import take
from metaleg_node.core.model import ClusterState, EndpointSlice, Service
from tests.unit.builders import announced, cluster, config, endpoint, endpoint_slice, service

NAMES = ("one", "two", "three")
ADDRESSES = tuple(f"10.244.1.{n}" for n in range(5, 8))
CONDITIONS = st.fixed_dictionaries({"ready": st.booleans(), "serving": st.booleans(), "terminating": st.booleans()})


@st.composite
def services(draw: st.DrawFn) -> Service:
    return service(
        draw(st.sampled_from(NAMES)),
        created=draw(st.sampled_from(("2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"))),
        ingress=draw(st.sampled_from(((), ("192.0.2.201",), ("192.0.2.202",), ("10.0.0.1",)))),
        type=draw(st.sampled_from(("LoadBalancer", "LoadBalancer", "ClusterIP"))),
        annotations=draw(st.sampled_from(({}, {"metaleg.de/only-cidrs": "x"}))),
    )


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    endpoints = [
        endpoint(
            draw(st.sampled_from(ADDRESSES)),
            node=draw(st.sampled_from("ab")),
            name=draw(st.sampled_from(("p", "q"))),
            conditions=draw(CONDITIONS),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    return endpoint_slice(*endpoints, service=draw(st.sampled_from(NAMES)))


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    return cluster(
        services=draw(st.lists(services(), max_size=3, unique_by=lambda s: s.ref)),
        slices=draw(st.lists(slices(), max_size=6)),
        announcements=[announced("c", service=name) for name in draw(st.sets(st.sampled_from(NAMES)))],
    )


def owners(state: ClusterState) -> dict[tuple[str, int], set[tuple[str, str | None, str]]]:
    return {
        (one.service.ref.name, one.family): {(str(pod.address), pod.node, pod.pod) for pod in one.pods}
        for one in take(state, config()).services
    }


@given(states(), st.randoms(use_true_random=False))
def test_the_order_of_objects_decides_nothing(state: ClusterState, random: object) -> None:
    def shuffled(items: tuple[object, ...]) -> list[object]:
        found = list(items)
        random.shuffle(found)  # type: ignore[attr-defined]
        return found

    again = cluster(
        services=shuffled(state.services),  # type: ignore[arg-type]
        slices=shuffled(state.endpoint_slices),  # type: ignore[arg-type]
        announcements=state.announcements,
    )
    assert owners(again) == owners(state)


@given(states())
def test_each_address_is_one_services_and_no_sick_one_keeps_a_live_pod_from_a_healthy_one(state: ClusterState) -> None:
    found = take(state, config()).services
    healthy = {one.service.ref.name for one in found if not one.obstacle}
    taken = [(pod.address, one) for one in found for pod in one.pods]
    assert len({address for address, _ in taken}) == len(taken)
    owner = dict(taken)
    for one in state.endpoint_slices:
        for each in one.endpoints:
            if one.service in healthy and not each.terminating:
                assert not owner[each.addresses[0]].obstacle
