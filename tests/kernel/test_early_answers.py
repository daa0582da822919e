"""Answers of connections that a node does not know, at addresses that it may become the gateway of."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.kernel.packet_net import BACKENDS, LB, POD, PORT, SNAT, STEER, WEB, Net, batch, packet_net, wait_for_drop
from tests.netns import Netns


@pytest.fixture(params=BACKENDS)
def net(netns: Netns, request: pytest.FixtureRequest) -> Iterator[Net]:
    with packet_net(netns, request.param) as made:
        yield made


def test_an_early_answer_makes_no_entry_before_the_node_knows_that_it_is_the_gateway(net: Net) -> None:
    """The pod's connection then gets the port that it had, with no look through all connections in between."""
    net.put(STEER, sources=frozenset())
    server, sender = net.server(), net.open(net.pod, POD, port=4321)
    server.sendto(b"early", (LB, 4321))
    wait_for_drop(net)
    net.put(SNAT)
    sender.sendto(b"x", (WEB, PORT))
    assert server.recvfrom(9) == (b"x", (LB, 4321))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_node_that_is_the_router_of_a_gateway_hands_its_answers_on(net: Net, kind: socket.SocketKind) -> None:
    batch(net.pod, f"address add {LB}/32 dev lo")
    batch(net.node, f"route add {LB} dev pod0")
    net.put(None)
    server, gateway = net.server(kind), net.open(net.pod, LB, kind=kind)
    gateway.connect((WEB, PORT))
    gateway.send(b"question")
    if kind == socket.SOCK_STREAM:
        with server.accept()[0] as accepted:
            accepted.send(b"answer")
            assert gateway.recv(9) == b"answer"
    else:
        server.sendto(b"answer", server.recvfrom(9)[1])
        assert gateway.recv(9) == b"answer"
