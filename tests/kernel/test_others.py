"""Collisions with other programs are seen, on the real kernel; silence where they keep to their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from metaleg_node.core.compare import diff
from metaleg_node.core.problems import Code
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler, carry_out
from tests.firewalls import FULL
from tests.netns import Netns
from tests.unit.builders import config


@pytest.fixture
def reconciler(inside: Netns, tmp_path: Path) -> Iterator[Reconciler]:
    """On a host that already holds a firewall of ours."""
    assert inside
    with Machine(tmp_path) as machine:
        assert carry_out(machine, (diff.Step(operation=diff.PutFirewall(firewall=FULL)),)).ok
        yield Reconciler(machine, config())


NFT_FORWARD = "add table inet fw; add chain inet fw forward { type filter hook forward priority 0; policy drop; }; "
NFT_MARKS = "add table inet other; add chain inet other c { type filter hook prerouting priority 0; }; "
COLLISIONS: Mapping[str, tuple[tuple[tuple[str, ...], ...], Code, str]] = {
    "a rule before ours with our bits": (
        (("ip", "rule", "add", "priority", "100", "fwmark", "0x1000000/0xff000000", "lookup", "100"),),
        Code.FOREIGN_MARKS,
        "the rule IPv4 priority 100 from all fwmark 0x1000000/0xff000000 lookup 100",
    ),
    "a rule before ours for all marks but one": (
        (("ip", "-6", "rule", "add", "priority", "100", "not", "fwmark", "0xca6c", "lookup", "51820"),),
        Code.FOREIGN_MARKS,
        "comes before ours and takes packets with our marks",
    ),
    "a rule with a priority of ours": (
        (("ip", "rule", "add", "priority", "4750", "lookup", "100"),),
        Code.FOREIGN_NUMBERS,
        "has a priority of ours (4700-4799, firewall.rule_priority)",
    ),
    "a route in a table of ours that is not used now": (
        (("ip", "route", "add", "203.0.113.0/24", "via", "10.9.0.2", "table", "1000040"),),
        Code.FOREIGN_NUMBERS,
        "table 1000040",
    ),
    "nftables sets the whole mark": (
        (("nft", f"{NFT_MARKS} add rule inet other c meta mark set 1"),),
        Code.FOREIGN_MARKS,
        "nftables table inet other chain c changes bits 0x3f000000",
    ),
    "nftables sets a bit of ours": (
        (("nft", f"{NFT_MARKS} add rule inet other c meta mark set mark or 0x2000000"),),
        Code.FOREIGN_MARKS,
        "changes bits 0x2000000",
    ),
    "nftables asks for bits of ours": (
        (("nft", f"{NFT_MARKS} add rule inet other c meta mark and 0x7000000 == 0x3000000 accept"),),
        Code.FOREIGN_MARKS,
        "asks for bits 0x3000000",
    ),
    "iptables sets bits of ours": (
        (("iptables-nft", *["-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-xmark", "0x4000000/0xf000000"]),),
        Code.FOREIGN_MARKS,
        "iptables-nft table mangle chain PREROUTING changes bits 0xf000000",
    ),
    "ip6tables asks for bits of ours": (
        (("ip6tables-nft", *["-A", "FORWARD", "-m", "mark", "--mark", "0x1000000/0x1000000", "-j", "ACCEPT"]),),
        Code.FOREIGN_MARKS,
        "ip6tables-nft table filter chain FORWARD asks for bits 0x1000000",
    ),
    "iptables-legacy sets the whole mark": (
        (("iptables-legacy", *["-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "7"]),),
        Code.FOREIGN_MARKS,
        "iptables-legacy table mangle chain OUTPUT changes bits 0x3f000000",
    ),
    "nftables forwards nothing": (
        (("nft", f"{NFT_FORWARD} add rule inet fw forward ct state established,related accept"),),
        Code.FORWARD_DROP,
        "nftables table inet fw chain forward drops what it does not accept",
    ),
    "iptables forwards Docker's containers only": (
        (
            ("iptables-nft", "-P", "FORWARD", "DROP"),
            ("iptables-nft", *["-A", "FORWARD", "-i", "docker0", "-j", "ACCEPT"]),
            ("iptables-nft", *["-A", "FORWARD", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"]),
        ),
        Code.FORWARD_DROP,
        "iptables-nft table filter chain FORWARD drops what it does not accept",
    ),
}


@pytest.mark.parametrize("name", COLLISIONS)
def test_a_collision_is_told_and_nothing_else(reconciler: Reconciler, inside: Netns, name: str) -> None:
    commands, code, text = COLLISIONS[name]
    for command in commands:
        inside.run(*command)
    (found,) = reconciler.collisions()
    assert (found.code, text in found.text) == (code, True), found.text


NEIGHBOURS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "nobody": (),
    "rules with other bits": (
        ("ip", "rule", "add", "priority", "100", "fwmark", "0x200/0xf00", "lookup", "2004"),
        ("ip", "rule", "add", "priority", "101", "fwmark", "0xca6c", "lookup", "100"),
        ("ip", "rule", "add", "priority", "102", "lookup", "100"),
        ("ip", "rule", "add", "priority", "5210", "fwmark", "0x3000000/0xff000000", "lookup", "52"),
    ),
    "kube-proxy's marks": (
        ("iptables-nft", *["-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--or-mark", "0x4000"]),
        ("iptables-nft", *["-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--xor-mark", "0x4000"]),
        (
            "iptables-nft",
            *["-t", "mangle", "-A", "PREROUTING", "-m", "mark", "!", "--mark", "0x4000/0x4000", "-j", "RETURN"],
        ),
        ("nft", f"{NFT_MARKS} add rule inet other c meta mark set mark or 0x4000"),
        ("nft", f"{NFT_MARKS} add rule inet other c meta mark set mark and 0xffff00ff or 0x200"),
        ("nft", f"{NFT_MARKS} add rule inet other c meta mark and 0x4000 == 0x4000 accept"),
    ),
    "a policy that drops, and pods accepted": (
        ("nft", f"{NFT_FORWARD} add rule inet fw forward ip saddr 10.244.0.0/16 accept"),
        ("iptables-nft", "-P", "FORWARD", "DROP"),
        ("iptables-nft", "-N", "CNI-FORWARD"),
        ("iptables-nft", *["-A", "FORWARD", "-j", "CNI-FORWARD"]),
        ("iptables-nft", *["-A", "CNI-FORWARD", "-s", "10.244.0.0/16", "-j", "ACCEPT"]),
    ),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_who_keeps_to_their_own_is_not_told(reconciler: Reconciler, inside: Netns, name: str) -> None:
    for command in NEIGHBOURS[name]:
        inside.run(*command)
    assert reconciler.collisions() == ()
