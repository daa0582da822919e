"""Which tracked connections contradict the packet filter."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

import pytest

from metaleg_node.core.compare import flows
from metaleg_node.core.model import Flow
from tests.firewalls import FULL, but

STEERED, TRANSLATED, HELD, ELSEWHERE, PLAIN = (f"10.244.1.{n}" for n in (2, 5, 7, 9, 77))
STEERED_ONLY, TRANSLATED_EXCEPT = "10.244.1.4", "10.244.1.6"
WEB, LB = "203.0.113.7", "192.0.2.200"
LOCAL = frozenset({ip_address("192.168.9.9")})


def flow(
    source: str, *, to: str = WEB, seen_as: str = "", really: str = "", ours: bool = True, protocol: str = "tcp"
) -> Flow:
    """`seen_as` is the source that the outside sees, `really` the destination after translation; else the same."""
    return Flow(
        family=4,
        protocol=protocol,
        source=ip_address(source),
        destination=ip_address(to),
        ports=(("sport", "1000"), ("dport", "80")),
        reply_source=ip_address(really or to),
        reply_destination=ip_address(seen_as or source),
        ours=ours,
    )


KEPT = {
    "steered": flow(STEERED),
    "translated": flow(TRANSLATED, seen_as=LB),
    "held": flow(HELD),
    "elsewhere": flow(ELSEWHERE),
    "S5 inbound, its answers come from the pod": flow(WEB, to=LB, really=STEERED, ours=False),
    "TCP that began before": flow(STEERED, ours=False, seen_as="10.0.0.1"),
    "SCTP that began before": flow(STEERED, ours=False, seen_as="10.0.0.1", protocol="sctp"),
    "to another pod": flow(STEERED, to="10.244.2.3", ours=False, protocol="udp"),
    "to a Service, after translation": flow(STEERED, to="10.96.0.10", really="10.244.2.3", ours=False, protocol="udp"),
    "to this node": flow(STEERED, to="192.168.9.9", ours=False, protocol="udp"),
    "F29 somebody else's": flow(PLAIN, ours=False, protocol="udp"),
    "excluded by its Service": flow(STEERED_ONLY, to="10.9.9.9", ours=False, protocol="udp"),
    "not among the only ones": flow(STEERED_ONLY, to="203.0.113.9", ours=False, protocol="udp"),
    "LB address translated inward": flow(PLAIN, to=LB, really="10.244.2.3", ours=False),
}
STALE = {
    "UDP that began before": (flow(STEERED, ours=False, protocol="udp"), "before the Service opted in"),
    "ICMP that began before": (flow(STEERED, ours=False, protocol="icmp"), "before the Service opted in"),
    "was translated, is steered": (flow(STEERED, seen_as=LB), "another gateway"),
    "was translated, is another node's": (flow(ELSEWHERE, seen_as=LB), "another gateway"),
    "was steered, is translated": (flow(TRANSLATED), f"must leave as {LB}, not as {TRANSLATED}"),
    "another source": (flow(TRANSLATED, seen_as="192.0.2.9"), f"must leave as {LB}, not as 192.0.2.9"),
    "F31 no longer an egress pod": (flow(PLAIN), "no longer egress traffic"),
    "F31 no longer an egress pod, UDP": (flow(PLAIN, protocol="udp"), "no longer egress traffic"),
    "destination now inside": (flow(STEERED, to="10.244.9.9"), "no longer egress traffic"),
    "destination now excluded": (flow(TRANSLATED_EXCEPT, to="192.168.0.9"), "no longer egress traffic"),
    "destination is now this node's": (flow(STEERED, to="192.168.9.9"), "no longer egress traffic"),
    "an early answer": (flow(WEB, to=LB, ours=False), "an answer that came before"),
    "an early answer, UDP": (flow(WEB, to=LB, ours=False, protocol="udp"), "an answer that came before"),
}


def reasons(*some: Flow) -> list[str]:
    return [reason for _, reason in flows.stale(some, FULL, LOCAL)]


@pytest.mark.parametrize("name", KEPT)
def test_a_connection_is_kept(name: str) -> None:
    assert reasons(KEPT[name]) == []


@pytest.mark.parametrize("name", STALE)
def test_a_connection_is_forgotten(name: str) -> None:
    one, reason = STALE[name]
    (found,) = reasons(one)
    assert reason in found


@pytest.mark.parametrize("name", STALE)
def test_what_is_forgotten_is_looked_for(name: str) -> None:
    found, _ = STALE[name]
    assert found.ours or {found.source, found.destination} & flows.concerned(FULL)


def test_a_load_balancer_address_on_this_host_gets_no_early_answers() -> None:
    early = STALE["an early answer"][0]
    assert not list(flows.stale([early], FULL, frozenset({ip_address(LB)})))


def test_destinations_are_judged_by_the_filter_of_the_pods_service() -> None:
    excluded = flow(TRANSLATED_EXCEPT, to="192.168.2.7", seen_as=LB)
    counted = dataclasses.replace(
        excluded, destination=ip_address("192.168.2.8"), reply_source=ip_address("192.168.2.8")
    )
    assert len(reasons(excluded)) == 1
    assert not reasons(counted)


def test_without_egress_all_of_ours_go_and_nobody_elses() -> None:
    empty = but(FULL, pods={}, sources=frozenset(), filters={})
    assert [f for f, _ in flows.stale([*KEPT.values()], empty, LOCAL)] == [f for f in KEPT.values() if f.ours]
