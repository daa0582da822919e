"""What a host lacks for what is asked of it, and silence where nothing is lacking or nothing asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from metaleg_node.core import preconditions
from metaleg_node.core.egress import survey
from metaleg_node.core.model import ClusterState, Family, NodeName
from tests.unit.builders import A, B, C, announced, assembled, cluster, config, host

TUNNEL = {ip_address(f"10.244.{number}.1"): "flannel.1" for number in (1, 2, 3)}
KEEP = '[host]\nrp_filter = "keep"'


def judged(state: ClusterState, me: NodeName, text: str = "", *, tunnel: bool = False, **facts: Any) -> list[str]:
    """What is told of a host that reaches everything by eth0, other nodes' pods by a tunnel where there is one."""
    settings = config(text)
    surveyed = survey.take(state, settings)
    here = host(surveyed, me)
    if tunnel:
        by_tunnel = {address: name for address, name in TUNNEL.items() if address in here.interfaces}
        here = dataclasses.replace(here, interfaces={**here.interfaces, **by_tunnel})
    desired = assembled(surveyed, settings, me, dataclasses.replace(here, **facts))
    return [problem.text for problem in desired.problems if problem.code in preconditions.CODES]


def begin(found: Iterable[str], expected: Iterable[str]) -> bool:
    return all(text.startswith(start) for text, start in zip(found, expected, strict=True))


NOT_FORWARDING: Mapping[str, tuple[set[tuple[Family, str]], list[str]]] = {
    "IPv4": ({(4, "all"), (4, "eth0")}, ["IPv4 forwarding is off (net.ipv4.ip_forward is 0), which Service shop/web"]),
    "one interface": ({(4, "eth0")}, ["IPv4 forwarding is off (net.ipv4.conf.eth0.forwarding is 0)"]),
    "all, but not where packets enter": ({(4, "all")}, []),
    "an interface that nothing enters by": ({(4, "eth9")}, []),
    "IPv6, which no Service here uses": ({(6, "all"), (6, "eth0")}, []),
    "nothing": (set(), []),
}


@pytest.mark.parametrize("name", NOT_FORWARDING)
@pytest.mark.parametrize("me", [A, C])
def test_forwarding_that_is_off_is_told_where_services_need_it(name: str, me: NodeName) -> None:
    off, expected = NOT_FORWARDING[name]
    assert begin(judged(cluster(), me, not_forwarding=frozenset(off)), expected)


def test_what_is_not_used_may_be_as_it_likes() -> None:
    off = frozenset({(4, "all"), (4, "eth0"), (6, "all"), (6, "eth0")})
    assert judged(ClusterState(), A, not_forwarding=off) == []
    assert judged(cluster(announcements=[]), A, not_forwarding=off) == []
    assert judged(cluster(announcements=[announced("a")]), C, not_forwarding=off) == []
    assert judged(cluster(), A, "[egress]\nenabled = false", not_forwarding=off) == []


STRICT: Mapping[str, tuple[NodeName, str, bool, dict[str, int], list[str]]] = {
    "pods' packets on the gateway": (C, KEEP, True, {"eth0": 1}, ["rp_filter is strict on eth0"]),
    "answers on the pods' node": (A, KEEP, True, {"flannel.1": 1}, ["rp_filter is strict on flannel.1"]),
    "strict for all": (A, KEEP, True, {"all": 1}, ["rp_filter is strict on flannel.1"]),
    "loose for all": (A, KEEP, True, {"all": 2, "flannel.1": 1}, []),
    "where nothing of it enters": (A, KEEP, True, {"eth0": 1}, []),
    "pods are reached by the nodes' interface": (C, KEEP, False, {"all": 1}, []),
    "it is loosened anyway": (C, "", True, {"eth0": 1}, []),
    "a node with neither": (B, KEEP, True, {"eth0": 1}, []),
}


@pytest.mark.parametrize("name", STRICT)
def test_a_strict_reverse_path_filter_that_stays_is_told_where_it_drops(name: str) -> None:
    me, text, tunnel, values, expected = STRICT[name]
    assert begin(judged(cluster(), me, text, tunnel=tunnel, rp_filter=values), expected)


def test_a_loose_filter_that_drops_on_an_interface_without_an_address_is_told() -> None:
    bare = frozenset({"flannel.1"})
    found = judged(cluster(), A, KEEP, tunnel=True, rp_filter={"flannel.1": 2}, unnumbered=bare)
    assert begin(found, ["rp_filter is loose, which without an IPv4 address is strict, on flannel.1"])
    assert judged(cluster(), A, KEEP, tunnel=True, rp_filter={"flannel.1": 0}, unnumbered=bare) == []
    assert judged(cluster(), A, tunnel=True, rp_filter={"flannel.1": 2}, unnumbered=bare) == []


def test_on_the_gateway_packets_that_come_by_the_way_to_their_pods_pass_a_strict_filter() -> None:
    text = f'{KEEP}\n[egress]\ntransport = "pod-network"\n'
    hops = {address: ip_address("10.244.9.0") for address in TUNNEL}
    facts = {"rp_filter": {"all": 1}, "kinds": {"flannel.1": "vxlan"}, "gateways": hops}
    assert judged(cluster(), C, text, tunnel=True, **facts) == []
    assert begin(judged(cluster(), A, text, tunnel=True, **facts), ["rp_filter is strict on flannel.1"])
