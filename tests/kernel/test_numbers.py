"""The numbers of chains that packets carry from one look-up to the next, in nftables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metaleg_node.core.firewall.egress import EgressPod
from metaleg_node.lab.daemons import wait_until
from tests.kernel.packet_net import NEAR, POD, POD6, PORT, SNAT, STEER, WEB, WEB6, Net, packet_net
from tests.netns import Netns
from tests.patience import patient


@pytest.fixture
def net(netns: Netns) -> Iterator[Net]:
    with packet_net(netns) as made:
        yield made


@pytest.mark.parametrize("number", ["6d00:1", "6dff:ffff"])
def test_a_packet_whose_number_leads_to_no_chain_any_more_does_not_leave(net: Net, number: str) -> None:
    """It was looked up before a change, its chain after it."""
    net.put(STEER)
    server, sender = net.server(), net.open(net.pod, POD)
    assert net.seen(server, sender) == [POD]
    pods = f"element inet metaleg_node pods4 {{ {POD}"
    net.node.run("nft", "-f", "-", stdin=f"delete {pods} }}\nadd {pods} : {number} }}\n")
    assert net.seen(server, sender, net.open(net.pod, POD)) == []
    assert net.counted("dropped") == 2


@pytest.mark.parametrize(
    ("pod", "to", "source"), [(STEER, WEB, POD), (STEER, WEB6, POD6), (SNAT, WEB, POD), (STEER, NEAR, POD)]
)
def test_behind_our_chains_a_packets_priority_is_what_it_was(net: Net, pod: EgressPod, to: str, source: str) -> None:
    net.put(pod)
    count = "meta l4proto udp meta priority none counter name as_it_was\nmeta l4proto udp counter name each"
    chain = f"type filter hook prerouting priority -80; {count}"
    counters = "counter as_it_was { }\ncounter each { }"
    net.node.run("nft", "-f", "-", stdin=f"table inet others {{\n{counters}\nchain pre {{ {chain}\n}}\n}}\n")
    net.open(net.pod, source).sendto(b"x", (to, PORT))

    def counted(name: str) -> int:
        found = net.node.run("nft", "list", "counter", "inet", "others", name).stdout
        return int(found.split("packets ")[1].split()[0])

    assert wait_until(lambda: counted("each") > 0, patient(5))
    assert counted("as_it_was") == counted("each")
