"""Pods whose gateway went away a moment ago."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from metaleg_node.core.firewall.egress import EgressPod, Treatment
from metaleg_node.kernel.nftables import backend as nftables
from tests.kernel.packet_net import LB, POD, PORT, SNAT, WEB, Net, packet_net
from tests.netns import Netns
from tests.patience import patient


@pytest.fixture
def net(netns: Netns) -> Iterator[Net]:
    with packet_net(netns) as made:
        yield made


def test_a_pod_that_waits_is_not_told_so_that_it_tries_again(net: Net) -> None:
    net.put(EgressPod(treatment=Treatment.WAIT))
    server, client = net.server(socket.SOCK_STREAM), net.open(net.pod, POD, kind=socket.SOCK_STREAM)
    client.setblocking(False)
    assert client.connect_ex((WEB, PORT)) == errno.EINPROGRESS
    wait_for_held()
    net.put(SNAT)
    client.settimeout(patient(5))
    client.connect_ex((WEB, PORT))
    with server.accept()[0] as accepted:
        assert accepted.getpeername()[0] == LB


def wait_for_held() -> None:
    for _ in range(1000):
        if nftables.counters()["held"][0]:
            return
    raise AssertionError("nothing was held")
