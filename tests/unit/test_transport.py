"""By which way a gateway is reached, and which ways are refused."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from typing import Any

import pytest

from metaleg_node.configuration.config import Transport
from metaleg_node.core.assembly import Desired
from metaleg_node.core.egress import requests, survey, transport
from metaleg_node.core.model import Host, NextHop, RouteType
from metaleg_node.core.problems import Code
from tests.firewalls import flat
from tests.unit.builders import A, addresses, assembled, cluster, config, host, node

C_NODE, C_PODS = "10.0.0.3", "10.244.3.1"
(GATEWAY,) = addresses([C_NODE])
(POD_ADDRESS,) = addresses([C_PODS])


def seen(
    kind: str = "", gateway: str = "", device: str = "tun0", *, near: bool = False, remote: str = "", **facts: Any
) -> Host:
    """Node c is behind a router, or `near`; its pods are reached through a device of this kind, by this next hop or to
    this other end."""
    here = host(survey.take(cluster(), config()), A, off_link=[] if near else [C_NODE])
    far = here.on_link if gateway else here.on_link | {POD_ADDRESS}
    facts = {
        "interfaces": {**here.interfaces, POD_ADDRESS: device},
        "on_link": far,
        "gateways": dict(zip([POD_ADDRESS], addresses([gateway]), strict=True)) if gateway else {},
        "kinds": {device: kind} if kind else {},
        "remotes": dict(zip([device], addresses([remote]), strict=True)) if remote else {},
        **facts,
    }
    return dataclasses.replace(here, **facts)


def decided(here: Host, setting: str = "auto") -> Desired:
    settings = config(f'egress.transport = "{setting}"')
    return assembled(survey.take(cluster(), settings), settings, A, here)


TAKEN: dict[str, tuple[Host, NextHop]] = {
    **{
        f"{kind} with a next hop": (
            seen(kind, "10.244.3.0"),
            NextHop(gateway=addresses(["10.244.3.0"])[0], interface="tun0", onlink=True),
        )
        for kind in ("vxlan", "geneve")
    },
    "IPIP to many ends": (seen("ipip", C_NODE), NextHop(gateway=GATEWAY, interface="tun0", onlink=True)),
    **{
        f"{kind} to that node": (seen(kind, remote=C_NODE), NextHop(gateway=None, interface="tun0"))
        for kind in ("ipip", "gre")
    },
    "a next hop in a tunnel that has but one end": (
        seen("ipip", "10.9.0.9", remote="10.9.0.3"),
        NextHop(gateway=None, interface="tun0"),
    ),
    "another address of that node": (
        seen("vlan", "10.9.0.3"),
        NextHop(gateway=addresses(["10.9.0.3"])[0], interface="tun0", onlink=True),
    ),
}
REFUSED: dict[str, tuple[Host, str]] = {
    "a router": (seen("", "10.0.0.254", "eth0"), "10.0.0.254 dev eth0, is neither in a VXLAN or Geneve device nor on"),
    "a router behind a device of software": (seen("bridge", "10.0.0.254"), "10.0.0.254 dev tun0, is neither in"),
    "WireGuard": (seen("wireguard", "10.244.3.0"), "tun0 is a WireGuard device"),
    "a route that encapsulates": (
        seen("vxlan", "10.244.3.0", encapsulated=frozenset({POD_ADDRESS})),
        "the route to its pods (10.244.3.1 dev tun0) has its own encapsulation",
    ),
    "WireGuard without a next hop": (seen("wireguard"), "tun0 is a WireGuard device"),
    "a next hop of the other family": (
        seen("vxlan", "10.244.3.0", gateways={}),
        "the route to its pods (10.244.3.1 dev tun0) has no next hop of IPv4",
    ),
    "VXLAN without a next hop": (seen("vxlan"), "(10.244.3.1 dev tun0) has no next hop"),
    **{
        f"{kind}, which may carry no IPv4": (seen(kind, remote=C_NODE), f"tun0 ({kind}) is not sure to carry IPv4")
        for kind in ("sit", "ip6tnl", "ip6gre")
    },
    "GRE to many ends": (seen("gre", C_NODE), "tun0 (gre) has no other end of its own"),
    "IPIP to many ends without a next hop": (seen("ipip"), "the next hop to its pods in tun0 (ipip), none, is no addr"),
    "a router behind IPIP": (seen("ipip", "10.0.0.254"), "in tun0 (ipip), 10.0.0.254, is no address of that node"),
    "a tunnel to a router": (
        seen("gre", remote="10.0.0.254"),
        "the other end of tun0 (gre) is 10.0.0.254, which",
    ),
    "a name that cannot be written": (
        seen("gre", remote=C_NODE, unnameable=frozenset({"tun0"})),
        "the packet filter cannot name tun0",
    ),
    "pods on the nodes' own link": (seen("", device="eth0"), "(10.244.3.1 dev eth0) has no next hop"),
}


PODS: Transport = "pod-network"
C6_PODS, C6_NODE = addresses(["fd00:3::1", "fd00::3"])
C6 = dataclasses.replace(node("c"), pod_cidrs=(ip_network("fd00:3::/64"),), addresses=(*node("c").addresses, C6_NODE))
IN_TUN0 = Host(interfaces={C6_PODS: "tun0"})
"""Node c's pods of IPv6 are reached through tun0."""


def c_node() -> Any:
    return dataclasses.replace(node("c"), addresses=(*node("c").addresses, *addresses(["10.9.0.3"])))


@pytest.mark.parametrize("name", TAKEN)
def test_ways_that_lead_to_the_gateway_whatever_the_destination(name: str) -> None:
    here, hop = TAKEN[name]
    way = transport.find(c_node(), 4, here, "auto")
    assert isinstance(way, transport.Way)
    assert (way.hop, way.transport) == (hop, "pod-network")
    assert "gateway c (10.0.0.3) is behind a router" in str(way)
    refused = transport.find(c_node(), 4, here, "direct")
    assert isinstance(refused, requests.Obstacle)
    assert refused.code is Code.OFF_LINK


@pytest.mark.parametrize("name", REFUSED)
def test_ways_that_would_lead_elsewhere_are_refused(name: str) -> None:
    here, why = REFUSED[name]
    for setting, code in (("auto", Code.OFF_LINK), ("pod-network", Code.NO_POD_NETWORK)):
        (service,) = decided(here, setting).services
        assert service.obstacle
        assert service.obstacle.code is code
        assert why in service.obstacle.detail


def test_a_neighbour_is_reached_directly_unless_the_pod_network_is_asked_for() -> None:
    here = seen("vxlan", "10.244.3.0", near=True)
    ways = {setting: decided(here, setting).services[0].way for setting in ("auto", "direct", "pod-network")}
    kinds = {setting: way.transport for setting, way in ways.items() if isinstance(way, transport.Way)}
    assert kinds == {"auto": "direct", "direct": "direct", "pod-network": "pod-network"}
    assert decided(here).state == decided(here, "direct").state


def test_without_an_InternalIP_of_the_family_the_pod_network_may_lead_there() -> None:
    bare = dataclasses.replace(node("c"), internal_ips=(), addresses=())
    way = transport.find(bare, 4, seen("vxlan", "10.244.3.0"), "auto")
    assert isinstance(way, transport.Way)
    assert "gateway c has no IPv4 InternalIP" in str(way)
    for pods, why in ((bare.pod_cidrs, "no route to its pods"), ((), "no IPv4 podCIDRs")):
        refused = transport.find(dataclasses.replace(bare, pod_cidrs=pods), 4, Host(), "auto")
        assert isinstance(refused, requests.Obstacle)
        assert refused.code is Code.NO_INTERNAL_IP
        assert why in refused.detail


def test_route_guard_and_claim_follow_the_way() -> None:
    found = decided(seen("vxlan", "10.244.3.0"))
    routes = [str(route) for route in found.state.routing.routes if route.type is RouteType.UNICAST]
    assert routes == ["default (IPv4) via 10.244.3.0 dev tun0 onlink table 1000001"]
    next_hop = addresses(["10.244.3.0"])
    firewall = flat(found.state.firewall)
    assert firewall.next_hops == set(next_hop)
    assert not firewall.tunnels
    (service,) = found.services
    assert service.claim
    assert service.claim.gateways == {*node("c").internal_ips, *next_hop}
    assert "reached by the way to its pods (tun0, vxlan), as gateway c (10.0.0.3) is behind a router" in service.reason


def test_route_guard_and_claim_of_a_tunnel_without_a_next_hop() -> None:
    found = decided(seen("ipip", remote=C_NODE))
    routes = [str(route) for route in found.state.routing.routes if route.type is RouteType.UNICAST]
    assert routes == ["default (IPv4) dev tun0 table 1000001"]
    firewall = flat(found.state.firewall)
    assert not firewall.next_hops
    assert firewall.tunnels == {"tun0"}
    (service,) = found.services
    assert service.claim
    assert service.claim.gateways == {*node("c").internal_ips}
    assert service.claim.tunnels == {"tun0"}


def test_what_comes_in_by_any_tunnel_of_IP_is_looked_at() -> None:
    here = seen("ipip", remote=C_NODE, tunnels=frozenset({"tun0", "tun9", "bad,name"}), unnameable={"bad,name"})
    found = decided(here)
    assert flat(found.state.firewall).node_interfaces == {"eth0", "tun0", "tun9"}
    assert "interface 'bad,name' cannot be named" in " ".join(problem.text for problem in found.problems)


@pytest.mark.parametrize("kind", ["ipip", "sit", "ip6tnl", "gre", "ip6gre"])
def test_IPv6_goes_by_the_tunnels_that_carry_it(kind: str) -> None:
    found = transport.find(C6, 6, dataclasses.replace(IN_TUN0, kinds={"tun0": kind}, remotes={"tun0": GATEWAY}), PODS)
    if kind in ("ipip", "ip6gre"):
        assert isinstance(found, requests.Obstacle)
        assert f"tun0 ({kind}) is not sure to carry IPv6" in found.detail
    else:
        assert isinstance(found, transport.Way)
        assert found.hop == NextHop(gateway=None, interface="tun0")


@pytest.mark.parametrize(("kind", "taken"), [("ip6tnl", True), ("sit", False)])
def test_a_next_hop_in_SIT_is_no_end_since_6to4_destinations_go_elsewhere(kind: str, taken: bool) -> None:
    here = dataclasses.replace(IN_TUN0, kinds={"tun0": kind}, gateways={C6_PODS: C6_NODE})
    assert isinstance(transport.find(C6, 6, here, PODS), transport.Way) is taken
