"""Our table beside what else uses the packet filter and connection tracking of the same namespace."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.kernel.nftables import backend as nftables
from metaleg_node.lab.plan import NODES, LabPod, LabService
from tests.firewalls import FIREWALLS
from tests.lab import cluster_rules
from tests.lab.plan import LabOptions
from tests.netns import Netns


@pytest.fixture
def here(netns: Netns) -> Iterator[Netns]:
    """The test itself is in the namespace."""
    with netns.inside():
        yield netns


PROGRAMS: dict[Family, str] = {4: "iptables-nft", 6: "ip6tables-nft"}
SERVICE = LabService(name="web", number=0, pods=(LabPod(node=NODES[0], number=1),), gateway=NODES[1])


def saved(netns: Netns, family: Family) -> str:
    """What iptables-save tells of all tables; counters and times are left out."""
    done = netns.run(f"{PROGRAMS[family]}-save")
    assert "incompatible" not in done.stdout + done.stderr
    return re.sub(r"^#.*\n|\[\d+:\d+\]", "", done.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["full", "paths"])
def test_F43_iptables_nft_lists_saves_and_restores_as_before(here: Netns, name: str) -> None:
    for family in FAMILIES:
        rules = cluster_rules.iptables(NODES[0], [SERVICE], LabOptions(forward_drop=True), family)
        here.run(f"{PROGRAMS[family]}-restore", stdin=rules)
    before = {family: saved(here, family) for family in FAMILIES}
    nftables.apply(nftables.observe(), FIREWALLS[name])
    ours = here.run("nft", "-s", "list", "table", "inet", "metaleg_node").stdout
    for family, program in PROGRAMS.items():
        assert saved(here, family) == before[family]
        assert "KUBE-SVC-web" in here.run(program, "-t", "nat", "-L", "-n").stdout
        for flag in ("-A", "-D"):
            here.run(program, *f"-t nat {flag} POSTROUTING -m mark --mark 1 -j RETURN".split())
        here.run(f"{program}-restore", stdin=here.run(f"{program}-save").stdout)
        assert saved(here, family) == before[family]
    assert here.run("nft", "-s", "list", "table", "inet", "metaleg_node").stdout == ours


@pytest.mark.parametrize("name", ["full", "paths-by-conntrack"])
def test_F46_connections_are_tracked_where_nobody_else_asks_for_it(here: Netns, name: str) -> None:
    assert not is_tracked(here)
    nftables.apply(nftables.observe(), FIREWALLS[name])
    assert is_tracked(here)
    nftables.apply(nftables.observe(), None)
    assert not is_tracked(here)


def is_tracked(netns: Netns) -> bool:
    """Whether a new flow of the namespace gets an entry of conntrack."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(b"x", receiver.getsockname())
        port = sender.getsockname()[1]
    return f"sport={port} " in netns.run("conntrack", "-L").stdout
