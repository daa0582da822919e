"""What the monitor hears, on the real kernel; ip(8) and nft(8) play everybody else."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from metaleg_node.core.compare.diff import (
    AddRule,
    DeleteForeignRoute,
    DeleteForeignRule,
    DeleteRoute,
    DeleteRule,
    PutRoute,
)
from metaleg_node.core.model import NextHop, Route, RouteType, Rule
from metaleg_node.kernel import process
from metaleg_node.kernel.netlink import socket as netlink_socket
from metaleg_node.kernel.netlink.monitor import Hint, Monitor
from metaleg_node.kernel.netlink.routing import RoutingControl
from metaleg_node.kernel.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from metaleg_node.kernel.nftables import watch
from metaleg_node.kernel.nftables.backend import Nftables
from metaleg_node.kernel.nftables.watch import generation
from tests.firewalls import FULL, but
from tests.kernel.changes import change
from tests.netns import Netns
from tests.patience import patient

TABLE = 1000001
LIMIT = patient(5.0)
OURS = """\
table inet metaleg_node {
    set pods { type ipv4_addr; }
    chain hold { drop; }
    chain forward {
        type filter hook forward priority 0
        counter
    }
}
"""


@pytest.fixture
def quiet(inside: Netns) -> Netns:
    """The namespace once the kernel has finished telling of the new links: both are up, no address is tentative."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        links = inside.run("ip", "-o", "link", "show").stdout
        if links.count("state UP") == 2 and "tentative" not in inside.run("ip", "address").stdout:
            return inside
    raise AssertionError(f"the links did not come up:\n{links}")


def never() -> bool:
    return False


@contextmanager
def listening(own: Callable[[], frozenset[int]] = frozenset) -> Iterator[queue.SimpleQueue[Hint]]:
    heard: queue.SimpleQueue[Hint] = queue.SimpleQueue()
    with Monitor(heard.put, tables={20, TABLE, TABLE + 1}, own_ports=own, disturbed=never):
        yield heard


def hints(netns: Netns, act: Callable[[], object], own: Callable[[], frozenset[int]] = frozenset) -> set[Hint]:
    """What is heard of an action, itself without addresses.

    A new address afterwards shows that everything before it was read; a second one, that the whole burst was told.
    """
    found: set[Hint] = set()
    with listening(own) as heard:
        act()
        for marker in ("10.77.0.1/32", "10.77.0.2/32"):
            netns.run("ip", "address", "add", marker, "dev", "lo")
            while (hint := heard.get(timeout=LIMIT)) is not Hint.ADDRESSES:
                found.add(hint)
    return found


def ip(netns: Netns, *commands: str) -> Callable[[], object]:
    def run() -> None:
        for command in commands:
            netns.run("ip", *command.split())

    return run


ROUTING = {
    "route added to our table": ((), f"route add 10.7.0.0/16 via 10.9.0.2 table {TABLE}", {Hint.ROUTES}),
    "v6 route added to our table": ((), f"-6 route add fd07::/64 via fd09::2 table {TABLE}", {Hint.ROUTES}),
    "route added to our low table": ((), "route add 10.7.0.0/16 via 10.9.0.2 table 20", {Hint.ROUTES}),
    "our route deleted": (
        (f"route add default via 10.9.0.2 proto 201 table {TABLE}",),
        f"route del default table {TABLE}",
        {Hint.ROUTES},
    ),
    "our v6 route replaced": (
        (f"-6 route add default via fd09::2 proto 201 table {TABLE}",),
        f"-6 route replace default via fd09::3 table {TABLE}",
        {Hint.ROUTES},
    ),
    "our table flushed": (
        (f"route add default via 10.9.0.2 proto 201 table {TABLE}",),
        f"route flush table {TABLE}",
        {Hint.ROUTES},
    ),
    "route with our protocol elsewhere": ((), "route add 10.7.0.0/16 via 10.9.0.2 proto 201 table 99", {Hint.ROUTES}),
    "main table changed": ((), "route add 10.7.0.0/16 via 10.9.0.2", {Hint.LINKS}),
    "v6 main table changed": ((), "-6 route add fd07::/64 via fd09::2", {Hint.LINKS}),
    "foreign table changed": ((), "route add 10.7.0.0/16 via 10.9.0.2 table 99", set()),
    "foreign high table changed": ((), "route add 10.7.0.0/16 via 10.9.0.2 table 1000999", set()),
    "v6 foreign table changed": ((), "-6 route add fd07::/64 via fd09::2 table 1000999", set()),
    "our rule deleted": (
        (f"rule add priority 4700 fwmark 1 lookup {TABLE} proto 201",),
        "rule del priority 4700",
        {Hint.RULES},
    ),
    "our v6 rule deleted": (
        (f"-6 rule add priority 4700 fwmark 1 lookup {TABLE} proto 201",),
        "-6 rule del priority 4700",
        {Hint.RULES},
    ),
    "foreign rule at our table": ((), f"rule add priority 9 lookup {TABLE}", {Hint.RULES}),
    "rule with our protocol elsewhere": ((), "rule add priority 9 lookup 99 proto 201", {Hint.RULES}),
    "foreign rule": ((), "rule add priority 9 fwmark 7 lookup 99", set()),
    "v6 foreign rule": ((), "-6 rule add priority 9 fwmark 7 lookup 1000999", set()),
}


@pytest.mark.parametrize("name", ROUTING)
def test_a_foreign_change_of_routing_is_told_by_its_kind(quiet: Netns, name: str) -> None:
    before, change, expected = ROUTING[name]
    ip(quiet, *before)()
    assert hints(quiet, ip(quiet, change)) == expected


NEXT_HOP = "neighbour replace 10.9.0.2 dev v0"
NEIGHBOURS = {
    "is there": ((), f"{NEXT_HOP} lladdr 02:00:00:00:00:02 nud reachable", {Hint.NEIGHBOURS}),
    "over IPv6": ((), "neighbour replace fd09::2 dev v0 lladdr 02:00:00:00:00:02 nud stale", {Hint.NEIGHBOURS}),
    "fails": ((f"{NEXT_HOP} lladdr 02:00:00:00:00:02 nud stale",), f"{NEXT_HOP} nud failed", {Hint.NEIGHBOURS}),
    "is another machine": (
        (f"{NEXT_HOP} lladdr 02:00:00:00:00:02 nud stale",),
        f"{NEXT_HOP} lladdr 02:00:00:00:00:03 nud stale",
        {Hint.NEIGHBOURS},
    ),
    "grows old": (
        (f"{NEXT_HOP} lladdr 02:00:00:00:00:02 nud reachable",),
        f"{NEXT_HOP} lladdr 02:00:00:00:00:02 nud stale",
        set(),
    ),
    "matters to nobody": ((), "neighbour replace 10.9.0.7 dev v0 lladdr 02:00:00:00:00:02 nud stale", set()),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_news_of_next_hops_are_told(quiet: Netns, name: str) -> None:
    """What was before is told as news first: the monitor knows nothing of a neighbour when it begins."""
    before, change, expected = NEIGHBOURS[name]
    hops = frozenset(ip_address(text).packed for text in ("10.9.0.2", "fd09::2"))
    heard: queue.SimpleQueue[Hint] = queue.SimpleQueue()
    with Monitor(heard.put, tables=(), own_ports=frozenset, disturbed=never, next_hops=lambda: hops):
        for command in before:
            quiet.run("ip", *command.split())
            assert heard.get(timeout=LIMIT) is Hint.NEIGHBOURS
        quiet.run("ip", *change.split())
        found = set()
        for marker in ("10.77.0.1/32", "10.77.0.2/32"):
            quiet.run("ip", "address", "add", marker, "dev", "lo")
            while (hint := heard.get(timeout=LIMIT)) is not Hint.ADDRESSES:
                found.add(hint)
    assert found == expected


def test_who_asks_for_no_next_hops_hears_nothing_of_neighbours(quiet: Netns) -> None:
    assert hints(quiet, ip(quiet, f"{NEXT_HOP} lladdr 02:00:00:00:00:02 nud reachable")) == set()


def test_a_new_address_is_told(quiet: Netns) -> None:
    with listening() as heard:
        quiet.run("ip", "address", "add", "10.88.0.1/32", "dev", "v1")
        assert heard.get(timeout=LIMIT) is Hint.ADDRESSES


def test_a_lost_link_is_told_although_its_routes_go_without_a_word(quiet: Netns) -> None:
    with listening() as heard:
        quiet.run("ip", "link", "set", "v0", "down")
        while heard.get(timeout=LIMIT) is not Hint.LINKS:
            pass


SYSCTLS = {
    "strict on an interface": ("ipv4.conf.v0.rp_filter=1", {Hint.SYSCTLS}),
    "strict for all": ("ipv4.conf.all.rp_filter=1", {Hint.SYSCTLS}),
    "strict for future interfaces": ("ipv4.conf.default.rp_filter=1", {Hint.SYSCTLS}),
    "loose on an interface": ("ipv4.conf.v0.rp_filter=2", {Hint.SYSCTLS}),
    "as it was": ("ipv4.conf.v0.rp_filter=0", set()),
    "forwarding": ("ipv4.conf.v0.forwarding=1", {Hint.SYSCTLS}),
    "forwarding of IPv6": ("ipv6.conf.v0.forwarding=1", {Hint.SYSCTLS}),
    "another setting that is told": ("ipv4.conf.v0.proxy_arp=1", set()),
    # If the kernel tells these one day, they need not wait for a full comparison any more.
    "arp_ignore": ("ipv4.conf.all.arp_ignore=1", set()),
    "arp_announce": ("ipv4.conf.all.arp_announce=2", set()),
}


@pytest.mark.parametrize("name", SYSCTLS)
def test_a_change_of_rp_filter_or_forwarding_is_told(quiet: Netns, name: str) -> None:
    change, expected = SYSCTLS[name]
    quiet.run("sysctl", "-q", "-w", *(f"net.ipv4.conf.{who}.rp_filter=0" for who in ("all", "default", "v0")))
    quiet.run("sysctl", "-q", "-w", *(f"net.{ip}.conf.v0.forwarding=0" for ip in ("ipv4", "ipv6")))
    assert hints(quiet, lambda: quiet.run("sysctl", "-q", "-w", f"net.{change}")) == expected


FIREWALL = {
    "ruleset flushed": ("flush ruleset", {Hint.FIREWALL}),
    "table deleted": ("delete table inet metaleg_node", {Hint.FIREWALL}),
    "element added": ("add element inet metaleg_node pods { 10.0.0.9 }", {Hint.FIREWALL}),
    "element deleted": ("delete element inet metaleg_node pods { 10.0.0.1 }", {Hint.FIREWALL}),
    "chain flushed": ("flush chain inet metaleg_node forward", {Hint.FIREWALL}),
    "rule added": ("add rule inet metaleg_node hold accept", {Hint.FIREWALL}),
    "chain added": ("add chain inet metaleg_node foreign", {Hint.FIREWALL}),
    "table made dormant": ("add table inet metaleg_node { flags dormant; }", {Hint.FIREWALL}),
    "ours after another in one transaction": (
        "add table inet aaa\nadd element inet metaleg_node pods { 10.0.0.9 }",
        {Hint.FIREWALL},
    ),
    "other table": ("add table inet other", set()),
    "same name in another family": ("add table ip metaleg_node", set()),
    "similar name": ("add table inet metaleg_node2\nadd table inet metaleg_nod", set()),
    "our name in a foreign comment": (
        'add table inet other\nadd chain inet other c\nadd rule inet other c counter comment "metaleg_node"',
        set(),
    ),
}


def hints_of_firewall(packet_filter: Nftables, act: Callable[[], object]) -> set[Hint]:
    """What is heard of an action, until the packet filter was asked twice more."""
    heard: queue.SimpleQueue[Hint] = queue.SimpleQueue()
    asked: queue.SimpleQueue[None] = queue.SimpleQueue()
    packet_filter.observe()
    with packet_filter.watched() as disturbed:

        def ask() -> bool:
            asked.put(None)
            return disturbed()

        with Monitor(heard.put, tables=(), own_ports=frozenset, disturbed=ask):
            # The second question begins when the first one is answered: what the table is is known then.
            await_questions(asked)
            act()
            await_questions(asked)
    return {heard.get() for _ in range(heard.qsize())} & {Hint.FIREWALL}


def await_questions(asked: queue.SimpleQueue[None]) -> None:
    """Until a question that begins from now on has been answered."""
    while not asked.empty():
        asked.get()
    for _ in range(2):
        asked.get(timeout=LIMIT)


@pytest.mark.parametrize("name", FIREWALL)
def test_a_change_of_our_table_is_told_and_no_other(quiet: Netns, name: str) -> None:
    change, expected = FIREWALL[name]
    quiet.run("nft", "-f", "-", stdin="table inet another {\n}\n" + OURS)
    quiet.run("nft", "add", "element", "inet", "metaleg_node", "pods", "{ 10.0.0.1 }")
    assert hints_of_firewall(Nftables(), lambda: quiet.run("nft", "-f", "-", stdin=change + "\n")) == expected


def test_a_rule_deleted_by_its_handle_is_told(quiet: Netns) -> None:
    quiet.run("nft", "-f", "-", stdin=OURS)
    listing = quiet.run("nft", "-a", "list", "chain", "inet", "metaleg_node", "hold").stdout
    handle = listing.split("drop # handle ")[1].split()[0]
    change = ("nft", "delete", "rule", "inet", "metaleg_node", "hold", "handle", handle)
    assert hints_of_firewall(Nftables(), lambda: quiet.run(*change)) == {Hint.FIREWALL}


def test_our_own_commits_are_not_told(quiet: Netns) -> None:
    assert quiet
    packet_filter = Nftables()
    assert hints_of_firewall(packet_filter, lambda: packet_filter.put(FULL)) == set()


def test_the_same_damage_after_a_repair_is_told_again(quiet: Netns) -> None:
    packet_filter = Nftables()
    packet_filter.put(FULL)
    with packet_filter.watched() as disturbed:
        assert not disturbed()
        for _ in range(3):
            quiet.run("nft", "flush", "chain", "inet", "metaleg_node", "guard")
            assert disturbed()
            assert not disturbed(), "told twice"
            assert packet_filter.changed()
            packet_filter.observe()
            packet_filter.put(FULL)
            # The next damage comes before anybody asked.


def test_what_others_commit_elsewhere_leaves_the_look_good(quiet: Netns) -> None:
    packet_filter = Nftables()
    packet_filter.put(FULL)
    with packet_filter.watched() as disturbed:
        assert not disturbed()
        for number in range(3):
            quiet.run("nft", "add", "table", "inet", f"other{number}")
            assert not disturbed()
            assert not packet_filter.changed()


def test_our_own_changes_in_a_row_do_not_have_the_table_read_after_each(
    quiet: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    digest = watch.digest
    monkeypatch.setattr(watch, "digest", lambda netlink: (reads.append(1), digest(netlink))[1])
    packet_filter = Nftables()
    with packet_filter.watched() as disturbed:

        def put(number: int) -> None:
            packet_filter.observe()
            packet_filter.put(FULL if number % 2 else but(FULL, hold="drop"))
            assert not disturbed()

        for number in range(20):
            put(number)
        assert len(reads) == 1
        while len(reads) == 1:
            assert not disturbed()
        # From now on others are about: each of their commits would make a whole look necessary.
        quiet.run("nft", "add", "table", "inet", "other")
        assert not disturbed()
        for number in range(5):
            before = len(reads)
            put(number)
            assert len(reads) == before + 1
            quiet.run("nft", "add", "table", "inet", f"other{number}")
            assert not disturbed()


@contextmanager
def nft_listener() -> Iterator[None]:
    """Somebody else who listens to nf_tables."""
    with subprocess.Popen([process.find("nft"), "monitor"], stdout=subprocess.DEVNULL) as monitoring:
        yield
        monitoring.kill()


def nftables_listeners() -> int:
    """Sockets of this namespace that listen to nf_tables (NETLINK_NETFILTER 12, NFNLGRP_NFTABLES 7)."""
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
    sockets = [line.split() for line in lines]
    return sum(protocol == "12" and bool(int(groups, 16) & 1 << 6) for _, protocol, _, groups, *_ in sockets)


def test_no_socket_of_ours_listens_to_nf_tables(quiet: Netns) -> None:
    """While anybody does, every commit of everybody allocates a message for each element of a set."""
    packet_filter, seen = Nftables(), set[int]()

    def commit() -> None:
        packet_filter.put(FULL)
        quiet.run("nft", "flush", "ruleset")
        seen.add(nftables_listeners())

    assert hints_of_firewall(packet_filter, commit) == {Hint.FIREWALL}
    assert seen == {0}
    with nft_listener():
        deadline = time.monotonic() + LIMIT
        while not nftables_listeners():
            assert time.monotonic() < deadline, "this test would not see a listener"


def test_our_own_writes_are_not_told(quiet: Netns) -> None:
    with RoutingControl() as control:
        assert hints(quiet, lambda: write_everything(control), lambda: control.port_ids) == set()


def test_what_is_done_to_foreign_items_is_told_since_it_may_hit_our_own(quiet: Netns) -> None:
    quiet.run("ip", "route", "add", "10.7.0.0/16", "via", "10.9.0.2", "table", str(TABLE))
    quiet.run("ip", "rule", "add", "priority", "4700", "lookup", str(TABLE))
    with RoutingControl() as control:
        told = hints(quiet, lambda: delete_what_is_foreign(control), lambda: control.port_ids)
    assert told == {Hint.ROUTES, Hint.RULES}


def test_our_own_writes_are_told_when_nobody_says_they_are_ours(quiet: Netns) -> None:
    with RoutingControl() as control:
        assert hints(quiet, lambda: write_everything(control)) == {Hint.ROUTES, Hint.RULES}


def delete_what_is_foreign(control: RoutingControl) -> None:
    observed = control.observe({TABLE})
    for item in observed.foreign_routes:
        change(control, DeleteForeignRoute(item=item))
    for item in observed.foreign_rules:
        change(control, DeleteForeignRule(item=item))


def write_everything(control: RoutingControl) -> None:
    for network, gateways in (("0.0.0.0/0", ("10.9.0.2", "10.9.0.3")), ("::/0", ("fd09::2", "fd09::3"))):
        hops = tuple(NextHop(gateway=ip_address(gateway), interface="v0") for gateway in gateways)
        one = Route(table=TABLE, destination=ip_network(network), metric=10, next_hops=hops[:1])
        both = Route(table=TABLE, destination=ip_network(network), metric=10, next_hops=hops)
        last = Route(table=TABLE, destination=ip_network(network), metric=999, type=RouteType.UNREACHABLE)
        rule = Rule(family=4 if hops[0].gateway == ip_address("10.9.0.2") else 6, priority=4700, table=TABLE)
        for route in (last, one, both, one):
            change(control, PutRoute(route=route))
        change(control, AddRule(rule=rule))
        change(control, DeleteRule(rule=rule))
        change(control, DeleteRoute(route=one))
        change(control, DeleteRoute(route=last))
    assert control.observe({TABLE}).routes == frozenset()


def test_a_large_foreign_batch_neither_kills_nor_wakes(quiet: Netns) -> None:
    elements = ",\n".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(20000))
    batch = f"table inet other {{\n set s {{\n type ipv4_addr\n elements = {{ {elements} }}\n }}\n}}\n"
    quiet.run("nft", "-f", "-", stdin=OURS)
    assert hints_of_firewall(Nftables(), lambda: quiet.run("nft", "-f", "-", stdin=batch)) == set()


def test_churning_foreign_routes_do_not_wake(quiet: Netns) -> None:
    batch = "\n".join(f"route add 172.16.{n >> 8}.{n & 255}/32 via 10.9.0.2 table 99" for n in range(10000))
    assert hints(quiet, lambda: quiet.run("ip", "-batch", "-", stdin=batch + "\n")) == set()


def test_lost_notifications_are_told_as_overflow_and_listening_goes_on(
    quiet: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink_socket, "_BUFFER", 4096)
    blocked = threading.Event()
    heard: queue.SimpleQueue[Hint] = queue.SimpleQueue()

    def wake(hint: Hint) -> None:
        blocked.wait(LIMIT)
        heard.put(hint)

    with Monitor(wake, tables={TABLE}, own_ports=frozenset, disturbed=never):
        batch = "\n".join(f"route add 172.16.{n >> 8}.{n & 255}/32 via 10.9.0.2" for n in range(500))
        quiet.run("ip", "-batch", "-", stdin=batch + "\n")
        blocked.set()
        while heard.get(timeout=LIMIT) is not Hint.OVERFLOW:
            pass
        quiet.run("ip", "rule", "add", "priority", "4700", "lookup", str(TABLE))
        while heard.get(timeout=LIMIT) is not Hint.RULES:
            pass


def test_stopping_is_prompt_and_can_be_repeated(quiet: Netns) -> None:
    assert quiet
    running = Monitor(lambda _: None, tables=(), own_ports=frozenset, disturbed=never)
    running.stop()
    running.start()
    begin = time.monotonic()
    running.stop()
    running.stop()
    assert time.monotonic() - begin < patient(5)


def test_fifty_starts_and_stops_leak_neither_descriptors_nor_threads(quiet: Netns) -> None:
    assert quiet
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(50):
        with listening():
            pass
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_the_generation_grows_with_commits_of_anybody_only(quiet: Netns) -> None:
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        first = generation(netlink)
        assert generation(netlink) == first
        quiet.run("nft", "list", "ruleset")
        quiet.run("nft", "-c", "add", "table", "inet", "other")
        assert generation(netlink) == first
        quiet.run("nft", "add", "table", "inet", "other")
        assert generation(netlink) == first + 1
        quiet.run("nft", "-f", "-", stdin=OURS)
        assert generation(netlink) == first + 2


def test_a_surprise_does_not_make_it_deaf_and_everything_is_looked_at_again(inside: Netns) -> None:
    heard: queue.SimpleQueue[Hint] = queue.SimpleQueue()
    surprises = iter([True])

    def wake(hint: Hint) -> None:
        if next(surprises, False):
            raise ValueError("a surprise")
        heard.put(hint)

    with Monitor(wake, tables=(), own_ports=frozenset, disturbed=never):
        inside.run("ip", "address", "add", "10.77.0.1/32", "dev", "lo")
        assert {heard.get(timeout=LIMIT), heard.get(timeout=LIMIT)} == {Hint.OVERFLOW, Hint.FIREWALL}
        inside.run("ip", "address", "add", "10.77.0.2/32", "dev", "lo")
        assert heard.get(timeout=LIMIT) is Hint.ADDRESSES
