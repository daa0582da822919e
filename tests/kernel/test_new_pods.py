"""What the hold of new pods does to packets (egress.new_pods)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.firewalls import addresses, networks
from tests.kernel.packet_net import BACKENDS, NEAR, NODE, PLAIN, POD, POD6, PORT, STEER, WEB, WEB6, Net, packet_net
from tests.netns import Netns

KNOWN = {"held": True, "here": True, "plain": addresses(PLAIN)}


@pytest.fixture(params=BACKENDS)
def net(netns: Netns, request: pytest.FixtureRequest) -> Iterator[Net]:
    with packet_net(netns, request.param) as made:
        yield made


def test_an_unknown_pod_sends_nothing_outside_until_it_is_known(net: Net) -> None:
    net.put(None, **KNOWN)
    server, sender = net.server(), net.open(net.pod, POD)
    assert net.seen(server, sender) == []
    assert net.counted("unknown") == 1
    net.put(None, **{**KNOWN, "plain": addresses(PLAIN, POD)})
    assert net.seen(server, sender) == [NODE]
    net.put(STEER, **KNOWN, claimed=addresses(POD))
    assert net.seen(server, net.open(net.pod, POD)) == [POD]
    assert net.counted("unknown") == 1


DUAL = networks("10.244.0.0/16", "fd00:10:244::/48")


def test_ipv6_is_held_too(net: Net) -> None:
    net.put(None, **KNOWN, pod_networks=DUAL)
    server, sender = net.server(address=WEB6), net.open(net.pod, POD6)
    sender.sendto(b"held", (WEB6, PORT))
    net.put(None, **{**KNOWN, "plain": addresses(PLAIN, POD6)}, pod_networks=DUAL)
    sender.sendto(b"known", (WEB6, PORT))
    assert server.recvfrom(9)[0] == b"known"
    assert net.counted("unknown") == 1


def test_inside_the_cluster_nobody_is_held(net: Net) -> None:
    net.put(None, **KNOWN)
    server = net.open(net.world, NEAR, port=PORT)
    net.open(net.pod, POD).sendto(b"x", (NEAR, PORT))
    assert server.recvfrom(9)[0] == b"x"
    assert net.counted("unknown") == 0


def test_what_began_before_goes_on_and_answers_are_never_held(net: Net) -> None:
    server, sender = net.server(), net.open(net.pod, POD)
    net.put(None)
    assert net.seen(server, sender) == [NODE]
    net.put(None, **KNOWN)
    assert net.seen(server, sender) == [NODE]
    inward, client = net.open(net.pod, POD, port=PORT), net.open(net.world, WEB)
    client.sendto(b"ask", (POD, PORT))
    inward.sendto(b"answer", inward.recvfrom(9)[1])
    assert client.recvfrom(9)[0] == b"answer"
    assert net.counted("unknown") == 0


def test_other_nodes_unknown_pods_are_held_also_while_none_starts_here(net: Net) -> None:
    """They come by the interface that leads to nodes; this node's own pass. In iptables the guard drops them."""
    net.node.run("ip", "route", "add", "10.244.2.0/24", "via", NEAR)
    net.world.run("ip", "address", "add", "10.244.2.9/32", "dev", "lo")
    net.world.run("ip", "route", "add", "198.51.100.9/32", "via", NODE)
    net.put(None, held=True)
    net.open(net.world, "10.244.2.9").sendto(b"x", ("198.51.100.9", PORT))
    assert net.seen(net.server(), net.open(net.pod, POD)) == [NODE]
    assert net.counted("unknown") + net.counted("dropped") == 1
