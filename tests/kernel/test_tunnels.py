"""Tunnels of IP: what is told of them, and how steered packets leave by them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from metaleg_node.kernel.netlink.routing import RoutingControl
from tests import kernel_modules
from tests.kernel.packet_net import BACKENDS, POD, STEER, Net, batch, nftables_only, packet_net
from tests.netns import Netns


@pytest.fixture(params=BACKENDS)
def net(netns: Netns, request: pytest.FixtureRequest) -> Iterator[Net]:
    with packet_net(netns, request.param) as made:
        yield made


@nftables_only("iptables knows no next hop")
def test_a_steered_pod_leaves_without_a_next_hop_by_a_tunnel_alone(net: Net) -> None:
    net.node.run("ip", "route", "replace", "default", "dev", "eth0", "table", "1000001")
    server, sender = net.server(), net.open(net.pod, POD)
    net.put(STEER, tunnels=frozenset({"tun-gateway"}))
    assert net.seen(server, sender) == []
    net.put(STEER, tunnels=frozenset({"tun-gateway", "eth0"}))
    assert net.seen(server, sender) == [POD]


def test_the_other_ends_of_tunnels_are_told_and_all_tunnels_whatever_they_are_called(inside: Netns) -> None:
    kernel_modules.needed("ipip", "sit", "ip6_tunnel", "ip_gre", "ip6_gre")
    four, six = "local 10.9.0.1 remote 10.9.0.2", "local fd09::1 remote fd09::2"
    made = {"ipip": four, "sit": four, "gre": f"key 7 {four}", "ip6tnl": six, "ip6gre": six}
    batch(
        inside,
        *(f"link add t-{kind} type {kind} {ends}" for kind, ends in made.items()),
        "link add all-ipip type ipip local 10.9.0.1",
        "link add all-ip6 type ip6tnl local fd09::1",
        "link add ether type gretap local 10.9.0.1 remote 10.9.0.3",
    )
    wanted = {f"t-{kind}": ip_address(ends.split()[-1]) for kind, ends in made.items()}
    with RoutingControl() as control:
        found = control.kinds([*wanted, "all-ipip", "all-ip6", "ether", "v0"])
        assert {name: one.remote for name, one in found.items() if one.remote} == wanted
        assert {name: found[name].kind for name in wanted} == {f"t-{kind}": kind for kind in made}
        assert {*wanted, "all-ipip", "all-ip6"} <= control.tunnels()
        assert not control.tunnels() & {"ether", "v0", "lo"}
        batch(inside, "link set t-sit name moved", "link delete t-gre", "link add t-gre type dummy")
        assert control.tunnels() & {"moved", "t-sit", "t-gre"} == {"moved"}


def test_ways_tell_the_next_hop_and_kinds_what_devices_are(inside: Netns) -> None:
    inside.run("ip", "link", "add", "over", "up", "type", "vxlan", "id", "7", "dstport", "8472", "local", "10.9.0.1")
    inside.run("ip", "route", "add", "10.244.2.0/24", "via", "10.244.2.0", "dev", "over", "onlink")
    inside.run("ip", "route", "add", "10.244.3.0/24", "via", "inet6", "fd09::3", "dev", "v0")
    inside.run("ip", "link", "add", "many", "up", "type", "vxlan", "external", "dstport", "4789")
    encap = ("encap", "ip", "id", "7", "dst", "10.9.0.2", "dev", "many")
    inside.run("ip", "route", "add", "10.244.4.0/24", *encap)
    inside.run("ip", "route", "add", "10.244.5.0/24", *encap, "via", "10.244.5.0", "onlink")
    with RoutingControl() as control:
        ways = control.ways([ip_address(f"10.244.{number}.1") for number in (2, 3, 4, 5)])
        found = control.kinds(["over", "v0", "lo", "nowhere"])
        numbered = control.numbering()[1]
    assert [*ways.values()] == [
        ("over", False, ip_address("10.244.2.0"), False),
        ("v0", False, None, False),
        ("many", False, None, True),
        ("many", False, ip_address("10.244.5.0"), True),
    ]
    assert {name: one.kind for name, one in found.items()} == {"over": "vxlan", "v0": "veth", "lo": ""}
    assert {name for name, one in found.items() if one.interface in numbered} == {"v0", "lo"}
