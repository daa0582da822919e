"""Listing and forgetting tracked connections, on the real kernel; conntrack(8) makes the entries and is the judge."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from ipaddress import ip_address

import pytest

from metaleg_node.kernel.netlink import conntrack
from tests.netns import Netns
from tests.work import calls

POD4, POD6 = ip_address("10.244.1.5"), ip_address("fd00:10:244::5")
WEB4, WEB6 = ip_address("198.51.100.7"), ip_address("2001:db8::7")
HERE4, HERE6 = ip_address("10.9.0.1"), ip_address("fd09::1")
EVERYBODY = [POD4, POD6, WEB4, WEB6, HERE4, HERE6]
LB4, LB6 = ip_address("192.0.2.200"), ip_address("2001:db8:1::200")


def create(netns: Netns, entry: str) -> None:
    netns.run("conntrack", "-I", *entry.split(), "--timeout", "300")


def listed(netns: Netns) -> str:
    return "".join(netns.run("conntrack", "-L", "-f", family).stdout for family in ("ipv4", "ipv6"))


def fill(netns: Netns, count: int) -> None:
    """Loads many UDP connections of as many pods at once."""
    lines = (
        f"-I -s 10.244.{n >> 8}.{n & 255} -d 198.51.100.7 -p udp --sport {1000 + n} --dport 53 -t 300"
        for n in range(count)
    )
    netns.run("conntrack", "-R", "-", stdin="\n".join(lines) + "\n")


TUPLES = {
    "tcp4": ("-s 10.244.1.5 -d 198.51.100.7 -p tcp --sport 4001 --dport 443 --state ESTABLISHED -u ASSURED", "tcp"),
    "tcp4-unreplied": ("-s 10.244.1.5 -d 198.51.100.7 -p tcp --sport 4002 --dport 443 --state SYN_SENT", "tcp"),
    "udp4": ("-s 10.244.1.5 -d 198.51.100.7 -p udp --sport 4001 --dport 53 -m 5", "udp"),
    "icmp": ("-s 10.244.1.5 -d 198.51.100.7 -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 77", "icmp"),
    "sctp4": (
        "-s 10.244.1.5 -d 198.51.100.7 -p sctp --sport 1 --dport 2 --orig-vtag 8 --reply-vtag 9 --state ESTABLISHED",
        "sctp",
    ),
    "gre4": ("-s 10.244.1.5 -d 198.51.100.7 -p gre --srckey 3 --dstkey 3", "gre"),
    "esp4": ("-s 10.244.1.5 -d 198.51.100.7 -p 50", "50"),
    "tcp6": ("-s fd00:10:244::5 -d 2001:db8::7 -p tcp --sport 4001 --dport 443 --state ESTABLISHED", "tcp"),
    "udp6": ("-s fd00:10:244::5 -d 2001:db8::7 -p udp --sport 4001 --dport 53", "udp"),
    "icmpv6": ("-s fd00:10:244::5 -d 2001:db8::7 -p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 9", "icmpv6"),
    "zone": ("-s 10.244.1.5 -d 198.51.100.7 -p udp --sport 4009 --dport 53 -w 7", "udp"),
}


@pytest.mark.parametrize("name", TUPLES)
def test_each_kind_of_entry_is_told_as_conntrack_prints_it_and_can_be_deleted(inside: Netns, name: str) -> None:
    words, protocol = TUPLES[name]
    create(inside, words)
    line = listed(inside)
    (flow,) = conntrack.flows(EVERYBODY)
    assert (flow.protocol, flow.source, flow.destination) == (
        (protocol, POD4, WEB4) if flow.family == 4 else (protocol, POD6, WEB6)
    )
    assert (flow.reply_source, flow.reply_destination) == (flow.destination, flow.source)
    for word, value in flow.ports:
        assert f"{word}={value} " in line
    assert len(flow.ports) == {"50": 0, "icmp": 3, "icmpv6": 3}.get(protocol, 2)
    assert flow.zone == (7 if name == "zone" else 0)
    assert conntrack.delete([flow]) == 1
    assert conntrack.flows(EVERYBODY) == []


def test_the_reply_side_shows_the_translation(inside: Netns) -> None:
    create(inside, "-s 10.244.1.5 -d 198.51.100.7 -p udp --sport 1 --dport 53 -n 192.0.2.200")
    create(inside, "-s fd00:10:244::5 -d 2001:db8::7 -p udp --sport 1 --dport 53 -n 2001:db8:1::200")
    assert [(flow.reply_source, flow.reply_destination) for flow in conntrack.flows(EVERYBODY)] == [
        (WEB4, LB4),
        (WEB6, LB6),
    ]


def test_the_label_of_a_connection_is_read(inside: Netns) -> None:
    inside.run(
        "nft",
        "-f",
        "-",
        stdin="""\
table inet t {
    chain output {
        type filter hook output priority 0
        udp dport 5001 ct label set 91
        udp dport 5002 ct label set 90
        udp dport 5003 ct state new
    }
}
""",
    )
    for target in ("10.9.0.77", "fd09::77"):
        for port in (5001, 5002, 5003):
            inside.run("bash", "-c", f"echo x > /dev/udp/{target}/{port}")
    ours = {
        (flow.family, dict(flow.ports)["dport"]): flow.ours
        for flow in conntrack.flows(EVERYBODY)
        if flow.protocol == "udp"
    }
    assert ours == {(family, port): port == "5001" for family in (4, 6) for port in ("5001", "5002", "5003")}
    assert conntrack.flows([]) == []
    many = [ip_address(f"10.244.1.{n}") for n in range(100)]
    for asked in ([], many):
        labelled = conntrack.flows(asked, labelled=True)
        assert [(flow.family, dict(flow.ports)["dport"]) for flow in labelled] == [(4, "5001"), (6, "5001")]


def test_only_the_asked_sources_and_destinations_are_listed(inside: Netns) -> None:
    for source in ("10.244.1.5", "10.244.1.6", "10.244.1.50"):
        create(inside, f"-s {source} -d 198.51.100.7 -p udp --sport 1 --dport 53")
    for source in ("fd00:10:244::5", "fd00:10:244::6"):
        create(inside, f"-s {source} -d 2001:db8::7 -p udp --sport 1 --dport 53")
    assert {flow.source for flow in conntrack.flows([POD4, POD6])} == {POD4, POD6}
    assert len(conntrack.flows([WEB4])) == 3
    assert len(conntrack.flows([WEB6])) == 2
    assert conntrack.flows([]) == []


def test_a_delete_spares_every_other_connection(inside: Netns) -> None:
    base = "-s 10.244.1.5 -d 198.51.100.7 -p udp --sport 1"
    create(inside, f"{base} --dport 53")
    create(inside, f"{base} --dport 54")
    create(inside, f"{base} --dport 53 -w 7")
    (victim,) = [flow for flow in conntrack.flows([POD4]) if ("dport", "53") in flow.ports and not flow.zone]
    assert conntrack.delete([victim]) == 1
    assert {(dict(flow.ports)["dport"], flow.zone) for flow in conntrack.flows(EVERYBODY)} == {("54", 0), ("53", 7)}


def test_deleting_what_is_gone_is_fine(inside: Netns) -> None:
    create(inside, "-s 10.244.1.5 -d 198.51.100.7 -p udp --sport 1 --dport 53")
    (flow,) = conntrack.flows(EVERYBODY)
    other = dataclasses.replace(flow, destination=ip_address("203.0.113.1"))
    assert conntrack.delete([other, flow, flow]) == 1
    assert conntrack.delete([]) == 0


def test_five_thousand_entries_are_listed_and_deleted_quickly(inside: Netns) -> None:
    fill(inside, 5000)
    begin = time.process_time()
    found = conntrack.flows(EVERYBODY)
    assert time.process_time() - begin < 0.5
    assert len(found) == 5000
    assert conntrack.delete(found) == 5000
    assert conntrack.flows(EVERYBODY) == []


def test_an_entry_that_nobody_asks_for_is_not_taken_apart(inside: Netns) -> None:
    fill(inside, 1000)
    asked = [ip_address("10.244.0.9")]
    assert len(conntrack.flows(asked)) == 1
    all_of_them, one = (calls(partial(conntrack.flows, wanted)) for wanted in (EVERYBODY, asked))
    # It is received, and its addresses are looked at.
    assert one < 3 * 1000 < all_of_them


def test_of_connection_marks_only_the_bits_under_the_mask_are_cleared_and_only_of_one_router(inside: Netns) -> None:
    mask = 0x3F000000
    for n, mark in enumerate((0x02000000, 0x02000005, 0x03000005, 0x42000000, 0)):
        create(inside, f"-s 10.244.1.5 -d 198.51.100.7 -p udp --sport {n} --dport 53 -m {mark:#x}")
    create(inside, "-s fd00:10:244::5 -d 2001:db8::7 -p tcp --sport 7 --dport 443 --state ESTABLISHED -m 0x2000001")
    create(inside, "-s 10.244.1.5 -d 198.51.100.7 -p udp --sport 9 --dport 53 -m 0x2000000 -w 7")
    assert [conntrack.unmark(mark, mask) for mark in (0x02000000, 0x04000000)] == [5, 0]
    marks = sorted(int(word[5:]) for word in listed(inside).split() if word.startswith("mark="))
    assert marks == [0, 0, 0, 1, 5, 0x03000005, 0x40000000]
    assert conntrack.unmark(0x02000000, mask) == 0
