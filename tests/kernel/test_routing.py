"""Rules and routes on the real kernel; ip(8) is the judge and plays everybody else."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from metaleg_node.core.compare.diff import (
    AddRule,
    DeleteForeignRoute,
    DeleteForeignRule,
    DeleteRoute,
    DeleteRule,
    PutRoute,
)
from metaleg_node.core.model import Link, NextHop, Route, RouteType, Routing, Rule
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink.routing import RoutingControl
from metaleg_node.kernel.netlink.socket import NetlinkSocket
from tests.kernel.changes import change
from tests.netns import Netns

TABLE = 1000001
OTHER = 1000002
MASK = 0x3F000000
WORST = 4278198272


@pytest.fixture
def control(inside: Netns) -> Iterator[RoutingControl]:
    assert inside
    with RoutingControl() as opened:
        yield opened


def hop(gateway: str | None, interface: str = "v0", weight: int = 1) -> NextHop:
    return NextHop(gateway=ip_address(gateway) if gateway else None, interface=interface, weight=weight)


def route(destination: str, *hops: NextHop, metric: int = 10, table: int = TABLE) -> Route:
    kind = RouteType.UNICAST if hops else RouteType.UNREACHABLE
    return Route(table=table, destination=ip_network(destination), type=kind, metric=metric, next_hops=hops)


def thrown(destination: str) -> Route:
    return dataclasses.replace(route(destination), type=RouteType.THROW)


def shown(netns: Netns, what: str, family: int = 4, table: int = TABLE) -> list[str]:
    words = ["table", str(table)] if what == "route" else []
    output = netns.run("ip", f"-{family}", what, "show", *words, check=False).stdout
    return [" ".join(line.split()) for line in output.splitlines()]


def onlink(gateway: str, weight: int = 1) -> NextHop:
    return dataclasses.replace(hop(gateway, weight=weight), onlink=True)


ROUTES = {
    "v4 gateway outside the interface's networks": (
        route("0.0.0.0/0", onlink("192.0.2.1")),
        ["default via 192.0.2.1 dev v0 proto 201 metric 10 onlink"],
    ),
    "v6 gateway outside the interface's networks": (
        route("::/0", onlink("2001:db8::1")),
        ["default via 2001:db8::1 dev v0 proto 201 metric 10 onlink pref medium"],
    ),
    "v4 gateways outside the interface's networks": (
        route("0.0.0.0/0", onlink("192.0.2.1"), onlink("192.0.2.3", weight=200)),
        [
            "default proto 201 metric 10",
            "nexthop via 192.0.2.1 dev v0 weight 1 onlink",
            "nexthop via 192.0.2.3 dev v0 weight 200 onlink",
        ],
    ),
    "v6 gateways outside the interface's networks": (
        route("::/0", onlink("2001:db8::1"), onlink("2001:db8::3", weight=256)),
        [
            "default proto 201 metric 10 pref medium",
            "nexthop via 2001:db8::1 dev v0 weight 1 onlink",
            "nexthop via 2001:db8::3 dev v0 weight 256 onlink",
        ],
    ),
    "v4 default": (
        route("0.0.0.0/0", hop("10.9.0.2")),
        ["default via 10.9.0.2 dev v0 proto 201 metric 10"],
    ),
    "v6 default": (
        route("::/0", hop("fd09::2")),
        ["default via fd09::2 dev v0 proto 201 metric 10 pref medium"],
    ),
    "v4 unreachable": (
        route("0.0.0.0/0", metric=WORST),
        [f"unreachable default proto 201 metric {WORST}"],
    ),
    "v6 unreachable": (
        route("::/0", metric=WORST),
        [f"unreachable default dev lo proto 201 metric {WORST} pref medium"],
    ),
    "v4 throw": (thrown("10.50.0.0/16"), ["throw 10.50.0.0/16 proto 201 metric 10"]),
    "v6 throw": (thrown("fd50::/64"), ["throw fd50::/64 dev lo proto 201 metric 10 pref medium"]),
    "v4 without gateway": (
        route("10.50.0.0/16", hop(None)),
        ["10.50.0.0/16 dev v0 proto 201 scope link metric 10"],
    ),
    "v6 without gateway": (
        route("fd50::/64", hop(None)),
        ["fd50::/64 dev v0 proto 201 metric 10 pref medium"],
    ),
    "v4 multipath": (
        route("10.50.0.0/16", hop("10.9.0.2", weight=3), hop("10.9.0.3")),
        [
            "10.50.0.0/16 proto 201 metric 10",
            "nexthop via 10.9.0.2 dev v0 weight 3",
            "nexthop via 10.9.0.3 dev v0 weight 1",
        ],
    ),
    "v6 multipath": (
        route("::/0", hop("fd09::2", weight=256), hop("fd09::3")),
        [
            "default proto 201 metric 10 pref medium",
            "nexthop via fd09::2 dev v0 weight 256",
            "nexthop via fd09::3 dev v0 weight 1",
        ],
    ),
}


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_is_put_read_back_and_deleted(control: RoutingControl, inside: Netns, name: str) -> None:
    wanted, lines = ROUTES[name]
    change(control, PutRoute(route=wanted))
    assert shown(inside, "route", wanted.destination.version) == lines
    observed = control.observe({TABLE})
    assert observed.routes == {wanted}
    assert not observed.foreign_routes
    change(control, PutRoute(route=wanted))
    assert control.observe({TABLE}).routes == {wanted}
    change(control, DeleteRoute(route=wanted))
    change(control, DeleteRoute(route=wanted))
    assert shown(inside, "route", wanted.destination.version) == []


@pytest.mark.parametrize(
    ("gateways", "destination"), [(("10.9.0.2", "10.9.0.3"), "0.0.0.0/0"), (("fd09::2", "fd09::3"), "::/0")]
)
def test_a_route_is_replaced_by_every_other_shape_of_the_same_metric(
    control: RoutingControl, gateways: tuple[str, str], destination: str
) -> None:
    shapes = [
        route(destination, hop(gateways[0])),
        route(destination, hop(gateways[1])),
        route(destination, hop(gateways[0]), hop(gateways[1], weight=2)),
        route(destination),
    ]
    for before in shapes:
        for after in shapes:
            change(control, PutRoute(route=before))
            change(control, PutRoute(route=after))
            assert control.observe({TABLE}).routes == {after}


def test_a_metric_of_zero_is_told_as_the_kernel_keeps_it(control: RoutingControl) -> None:
    change(control, PutRoute(route=route("0.0.0.0/0", hop("10.9.0.2"), metric=0)))
    change(control, PutRoute(route=route("::/0", hop("fd09::2"), metric=0)))
    metrics = {found.destination.version: found.metric for found in control.observe({TABLE}).routes}
    assert metrics == {4: 0, 6: 1024}


def test_a_route_left_in_a_table_of_an_older_configuration_is_found(control: RoutingControl) -> None:
    old = route("0.0.0.0/0", hop("10.9.0.2"), table=100)
    change(control, PutRoute(route=old))
    assert control.observe({TABLE}).routes == {old}
    change(control, DeleteRoute(route=old))
    assert control.observe({TABLE}).routes == frozenset()


FOREIGN_ROUTES = {
    "v4 static": (
        "10.7.0.0/16 via 10.9.0.2 proto static metric 5",
        "10.7.0.0/16 via 10.9.0.2 dev v0 proto static metric 5",
    ),
    "v4 same key as ours, other tos": (
        "default via 10.9.0.2 tos 0x10 proto 202 metric 10",
        "default (IPv4) via 10.9.0.2",
    ),
    "v4 multipath": (
        "10.8.0.0/16 nexthop via 10.9.0.2 nexthop via 10.9.0.3",
        "via 10.9.0.2 dev v0 via 10.9.0.3 dev v0",
    ),
    "v4 prohibit": ("prohibit 10.6.1.0/24", "prohibit 10.6.1.0/24 proto boot metric 0"),
    "v4 local": ("local 10.6.2.1/32 dev v0", "local 10.6.2.1/32 dev v0"),
    "v4 throw": ("throw 10.6.3.0/24 metric 9", "throw 10.6.3.0/24 proto boot metric 9"),
    "v4 by an IPv6 gateway": ("10.3.0.0/16 via inet6 fd09::2 proto 201", "10.3.0.0/16 dev v0"),
    "v4 ours with a source": ("10.2.0.0/16 via 10.9.0.2 src 10.9.0.1 proto 201", "10.2.0.0/16 via 10.9.0.2 dev v0"),
    "v4 ours with a realm": ("10.2.0.0/16 via 10.9.0.2 realm 5 proto 201", "10.2.0.0/16 via 10.9.0.2"),
    "v4 ours with a realm of one hop": (
        "10.2.0.0/16 proto 201 nexthop via 10.9.0.2 realm 5 nexthop via 10.9.0.3",
        "via 10.9.0.2 dev v0 via 10.9.0.3 dev v0 proto 201",
    ),
    "v4 blackhole": ("blackhole 10.6.0.0/16", "blackhole 10.6.0.0/16"),
    "v4 ours with an mtu": ("10.5.0.0/16 via 10.9.0.2 mtu 1400 proto 201", "10.5.0.0/16"),
    "v4 nexthop object": ("10.4.0.0/16 nhid 7", "10.4.0.0/16"),
    "v6 static": ("fd07::/64 via fd09::2 proto static", "fd07::/64 via fd09::2 dev v0 proto static"),
    "v6 multipath": (
        "fd08::/64 nexthop via fd09::2 nexthop via fd09::3",
        "fd08::/64 via fd09::2 dev v0 via fd09::3 dev v0 proto boot metric 1024",
    ),
    "v6 unreachable": ("unreachable fd06:1::/64", "unreachable fd06:1::/64 dev lo"),
    "v6 ours with a source": ("fd05::/64 via fd09::2 src fd09::1 proto 201", "fd05::/64 via fd09::2 dev v0"),
    "v6 ours that expires": ("fd05::/64 via fd09::2 mtu 1400 expires 900 proto 201", "fd05::/64 via fd09::2"),
    "v6 by source": ("fd03::/64 from fd02::/64 via fd09::2 proto 201", "fd03::/64 via fd09::2"),
    "v6 prohibit": ("prohibit fd06::/64", "prohibit fd06::/64"),
    "v6 nexthop object": ("fd04::/64 nhid 8", "fd04::/64"),
}


@pytest.mark.parametrize("name", FOREIGN_ROUTES)
def test_a_foreign_route_in_our_table_is_told_and_exactly_it_is_deleted(
    control: RoutingControl, inside: Netns, name: str
) -> None:
    words, text = FOREIGN_ROUTES[name]
    family = 4 if name.startswith("v4") else 6
    inside.run("ip", "nexthop", "add", "id", "7", "via", "10.9.0.2", "dev", "v0")
    inside.run("ip", "nexthop", "add", "id", "8", "via", "fd09::2", "dev", "v0")
    ours = {route("0.0.0.0/0", hop("10.9.0.2")), route("::/0", hop("fd09::2"))}
    for mine in ours:
        change(control, PutRoute(route=mine))
    inside.run("ip", f"-{family}", "route", "append", "table", str(TABLE), *words.split())
    elsewhere = shown(inside, "route", family, 254)
    observed = control.observe({TABLE})
    assert observed.routes == ours
    (item,) = observed.foreign_routes
    assert text in item.text
    assert item.text.endswith(f"table {TABLE}")
    change(control, DeleteForeignRoute(item=item))
    change(control, DeleteForeignRoute(item=item))
    after = control.observe({TABLE})
    assert after.routes == ours
    assert not after.foreign_routes
    assert shown(inside, "route", family, 254) == elsewhere


def test_routes_of_others_outside_our_tables_are_not_told(control: RoutingControl, inside: Netns) -> None:
    inside.run("ip", "route", "add", "10.7.0.0/16", "via", "10.9.0.2", "table", str(OTHER))
    inside.run("ip", "route", "add", "10.7.0.0/16", "via", "10.9.0.2")
    assert control.observe({TABLE}).foreign_routes == frozenset()


RULES = {
    "mark": (
        Rule(family=4, priority=4700, table=TABLE, mark=0x1000000, mask=MASK),
        "from all fwmark 0x1000000/0x3f000000",
    ),
    "mark v6": (
        Rule(family=6, priority=4700, table=TABLE, mark=0x1000000, mask=MASK),
        "from all fwmark 0x1000000/0x3f000000",
    ),
    "no mark under a mask": (
        Rule(family=4, priority=4700, table=TABLE, mark=0, mask=MASK),
        "from all fwmark 0/0x3f000000",
    ),
    "high mark": (
        Rule(family=4, priority=4700, table=TABLE, mark=0x80000000, mask=0xFFFFFFFF),
        "from all fwmark 0x80000000",
    ),
    "source": (Rule(family=4, priority=20, table=20, source=ip_network("192.0.2.0/24")), "from 192.0.2.0/24"),
    "source v6": (Rule(family=6, priority=20, table=20, source=ip_network("2001:db8::/32")), "from 2001:db8::/32"),
    "host source": (Rule(family=4, priority=20, table=20, source=ip_network("192.0.2.1/32")), "from 192.0.2.1"),
    "destination": (
        Rule(family=4, priority=4790, table=254, destination=ip_network("10.0.0.0/8")),
        "from all to 10.0.0.0/8",
    ),
    "all": (
        Rule(
            family=6,
            priority=4711,
            table=TABLE,
            mark=0x2000000,
            mask=MASK,
            source=ip_network("fd01::/64"),
            destination=ip_network("fd02::1/128"),
        ),
        "from fd01::/64 to fd02::1 fwmark 0x2000000/0x3f000000",
    ),
    "everything": (Rule(family=4, priority=4799, table=TABLE), "from all"),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_added_read_back_and_deleted(control: RoutingControl, inside: Netns, name: str) -> None:
    rule, text = RULES[name]
    before = shown(inside, "rule", rule.family)
    table = "main" if rule.table == 254 else rule.table
    change(control, AddRule(rule=rule))
    change(control, AddRule(rule=rule))
    line = f"{rule.priority}: {text} lookup {table} proto 201"
    assert [found for found in shown(inside, "rule", rule.family) if found not in before] == [line]
    observed = control.observe({TABLE, 20})
    assert observed.rules == {rule}
    assert not observed.foreign_rules
    change(control, DeleteRule(rule=rule))
    change(control, DeleteRule(rule=rule))
    assert shown(inside, "rule", rule.family) == before


FOREIGN_RULES = {
    "static into our table": (
        f"priority 4700 from 10.1.0.0/16 lookup {TABLE} proto static",
        "from 10.1.0.0/16 lookup 1000001 proto static",
    ),
    "same as ours but protocol": (
        f"priority 4700 fwmark 0x1000000/0x3f000000 lookup {TABLE} proto 99",
        "fwmark 0x1000000/0x3f000000",
    ),
    "ours with iif": (f"priority 4700 iif v0 lookup {TABLE} proto 201", "iif v0"),
    "ours with tos": (f"priority 4700 tos 0x10 lookup {TABLE} proto 201", "tos 0x10"),
    "ours inverted": (f"priority 4700 not from 10.1.0.0/16 lookup {TABLE} proto 201", "not from 10.1.0.0/16"),
    "ours suppressed": (f"priority 4700 lookup {TABLE} suppress_prefixlength 0 proto 201", "from all lookup"),
    "ours with ports": (f"priority 4700 ipproto tcp dport 80-90 lookup {TABLE} proto 201", "ipproto 6"),
    "ours for a user": (f"priority 4700 uidrange 5-6 lookup {TABLE} proto 201", "from all lookup"),
    "ours that drops": ("priority 4700 from 10.1.0.0/16 blackhole proto 201", "from 10.1.0.0/16"),
    "a detached interface": (f"priority 4700 iif gone0 lookup {TABLE}", "iif gone0"),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", FOREIGN_RULES)
def test_a_foreign_rule_for_our_table_is_told_and_exactly_it_is_deleted(
    control: RoutingControl, inside: Netns, name: str, family: int
) -> None:
    words, text = FOREIGN_RULES[name]
    if family == 6:
        words, text = words.replace("10.1.0.0/16", "fd01::/64"), text.replace("10.1.0.0/16", "fd01::/64")
    mine = Rule(family=4 if family == 4 else 6, priority=4700, table=TABLE, mark=0x1000000, mask=MASK)
    change(control, AddRule(rule=mine))
    inside.run("ip", f"-{family}", "rule", "add", "priority", "4700", "from", "all", "lookup", "100", "proto", "static")
    before = shown(inside, "rule", family)
    inside.run("ip", f"-{family}", "rule", "add", *words.split())
    observed = control.observe({TABLE})
    assert observed.rules == {mine}
    (item,) = observed.foreign_rules
    assert text in item.text
    change(control, DeleteForeignRule(item=item))
    change(control, DeleteForeignRule(item=item))
    assert shown(inside, "rule", family) == before


def test_rules_of_others_for_other_tables_are_not_told(control: RoutingControl, inside: Netns) -> None:
    inside.run("ip", "rule", "add", "priority", "4750", "fwmark", "7", "lookup", "100")
    assert control.observe({TABLE}).foreign_rules == frozenset()


REFUSALS = {
    "gateway off-link": (route("0.0.0.0/0", hop("192.0.2.9")), "Nexthop has invalid gateway"),
    "gateway off-link v6": (route("::/0", hop("fd99::1")), "errno 113"),
    "second gateway off-link": (route("0.0.0.0/0", hop("10.9.0.2"), hop("192.0.2.9")), "errno 101"),
    "no such interface": (route("0.0.0.0/0", hop("10.9.0.2", "gone0")), "there is no interface gone0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_route_names_route_and_reason_and_leaves_the_old_one(control: RoutingControl, name: str) -> None:
    bad, reason = REFUSALS[name]
    good = route(str(bad.destination), hop("10.9.0.2" if bad.destination.version == 4 else "fd09::2"))
    change(control, PutRoute(route=good))
    with pytest.raises(KernelError, match=reason) as caught:
        change(control, PutRoute(route=bad))
    assert str(bad) in str(caught.value)
    assert control.observe({TABLE}).routes == {good}


def test_without_the_capability_the_error_names_it(inside: Netns) -> None:
    program = (
        "from metaleg_node.core.compare.diff import AddRule\n"
        "from metaleg_node.core.model import Rule\n"
        "from metaleg_node.kernel.netlink.routing import RoutingControl\n"
        "rule = Rule(family=4, priority=4700, table=1000001)\n"
        "with RoutingControl() as control: print(*control.change([AddRule(rule=rule)]))"
    )
    done = inside.run("setpriv", "--bounding-set=-net_admin", sys.executable, "-c", program, check=False)
    assert (
        "cannot add the rule IPv4 priority 4700 lookup 1000001: the capability CAP_NET_ADMIN is missing" in done.stdout
    )


def test_addresses_of_all_interfaces_are_told(control: RoutingControl, inside: Netns) -> None:
    inside.run("ip", "address", "add", "10.8.0.1", "peer", "10.8.0.2", "dev", "v1")
    found = control.addresses()
    expected = {"127.0.0.1", "::1", "10.9.0.1", "fd09::1", "10.8.0.1"}
    assert {address for address in found if not address.is_link_local} == {ip_address(text) for text in expected}


def test_lookup_tells_interface_and_whether_a_router_is_needed(control: RoutingControl, inside: Netns) -> None:
    inside.run("ip", "route", "add", "default", "via", "10.9.0.254")
    inside.run("ip", "route", "add", "unreachable", "203.0.113.0/24")
    inside.run("ip", "route", "add", "blackhole", "203.0.114.0/24")
    inside.run("ip", "route", "add", "prohibit", "203.0.115.0/24")
    inside.run("ip", "route", "add", "throw", "203.0.116.0/24", "table", "main")
    inside.run("ip", "-6", "route", "add", "fd70::/64", "via", "fd09::254")
    inside.run("ip", "-6", "route", "add", "unreachable", "fd71::/64")
    inside.run("ip", "-6", "route", "add", "blackhole", "fd72::/64")
    asked = "10.9.0.2 198.51.100.1 10.9.0.1 127.0.0.1 203.0.113.1 203.0.114.1 203.0.115.1 203.0.116.1"
    asked += " fd09::2 fd70::1 fd71::1 fd72::1 fd99::1 ::1"
    interfaces, on_link = control.lookup([ip_address(text) for text in asked.split()])
    assert interfaces == {ip_address(text): "v0" for text in ("10.9.0.2", "198.51.100.1", "fd09::2", "fd70::1")}
    assert on_link == {ip_address("10.9.0.2"), ip_address("fd09::2")}


def test_many_foreign_routes_do_not_slow_an_observation(control: RoutingControl, inside: Netns) -> None:
    lines = [f"route add 172.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}/32 via 10.9.0.2 proto 186" for n in range(10000)]
    inside.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
    mine = {route("0.0.0.0/0", hop("10.9.0.2"), table=table) for table in range(TABLE, TABLE + 63)}
    change(control, *(PutRoute(route=one) for one in mine))
    begin = time.process_time()
    assert control.observe(range(TABLE, TABLE + 63)).routes == mine
    assert time.process_time() - begin < 0.5


def test_all_that_was_put_is_observed_together_whatever_its_shape(control: RoutingControl) -> None:
    wanted = set()
    for family, prefix, gateways in (
        (4, "10.{}.0.0/16", ("10.9.0.2", "10.9.0.3")),
        (6, "fd{:02x}::/32", ("fd09::2", "fd09::3")),
    ):
        hops = [hop(None)] if family == 6 else [hop(None), onlink("192.0.2.1")]
        hops += [hop(gateways[0]), onlink(gateways[1])]
        several = [(hop(gateways[0], weight=w), hop(gateways[1], weight=v)) for w, v in ((1, 1), (2, 256), (256, 1))]
        several += [(hop(gateways[0]), onlink(gateways[1], weight=7))]
        shapes = [route("::/0", *one) for one in [*((one,) for one in hops), *several, ()]] + [thrown("::/0")]
        for number, (shape, metric, table) in enumerate(
            itertools.product(shapes, (1, 1024, WORST), (20, 254, TABLE, OTHER)), start=16
        ):
            destination = ip_network(prefix.format(number))
            wanted.add(dataclasses.replace(shape, destination=destination, metric=metric, table=table))
    change(control, *(PutRoute(route=one) for one in wanted))
    assert control.observe({20, TABLE, OTHER}) == Routing(routes=frozenset(wanted))


def test_thousands_of_our_own_routes_are_all_observed(control: RoutingControl, inside: Netns) -> None:
    mine = {thrown(f"10.{n >> 8}.{n & 255}.0/24") for n in range(4000)}
    lines = [f"route add throw {one.destination} metric {one.metric} table {TABLE} proto 201" for one in mine]
    inside.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
    assert control.observe({TABLE}).routes == mine


LISTED: dict[str, Callable[[RoutingControl], object]] = {
    "the IPv4 rules": lambda control: control.observe({TABLE}).rules,
    "the addresses": lambda control: control.addresses(),
    "the IPv4 addresses of v0": lambda control: control.links(["v0"]),
    "the IPv4 routes": lambda control: control.connected(),
}


@pytest.mark.parametrize("what", LISTED)
def test_what_keeps_changing_while_it_is_listed_is_listed_again(
    control: RoutingControl, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    change(control, AddRule(rule=Rule(family=4, priority=4700, table=TABLE)))
    quiet = LISTED[what](control)
    left = [2]
    receive = NetlinkSocket._receive

    def disturbed(self: NetlinkSocket, what: str) -> bytes:
        data = bytearray(receive(self, what))
        if left[0]:
            left[0] -= 1
            data[6] |= 0x10  # NLM_F_DUMP_INTR, in the first message alone
        return bytes(data)

    monkeypatch.setattr(NetlinkSocket, "_receive", disturbed)
    assert LISTED[what](control) == quiet
    assert left == [0]
    left[0] = 1000
    with pytest.raises(KernelError, match=f"cannot list {what}: they kept changing"):
        LISTED[what](control)


def test_many_changes_are_told_one_by_one(control: RoutingControl) -> None:
    good = [route(f"10.50.{n}.0/24", hop("10.9.0.2")) for n in range(100)]
    far = [route(f"10.51.{n}.0/24", hop("192.0.2.9")) for n in range(100)]
    nowhere = [route(f"10.52.{n}.0/24", hop("10.9.0.2", "gone0")) for n in range(100)]
    mixed = [one for three in zip(good, far, nowhere, strict=True) for one in three]
    told = control.change([PutRoute(route=one) for one in mixed])
    assert [error is None for error in told] == [one in good for one in mixed]
    for one, error in zip(mixed, told, strict=True):
        reason = "Nexthop has invalid gateway (errno 101)" if one in far else "there is no interface gone0"
        assert one in good or str(error) == f"cannot set the route {one}: {reason}"
    assert control.observe({TABLE}).routes == set(good)
    assert control.change([DeleteRoute(route=one) for one in mixed]) == [None] * len(mixed)
    assert control.observe({TABLE}).routes == frozenset()


def test_a_route_through_a_thousand_routers_is_put(control: RoutingControl) -> None:
    hops = [hop(f"10.9.0.{2 + n % 250}", weight=1 + n % 256) for n in range(1000)]
    wide = [dataclasses.replace(route(f"10.5{n}.0.0/16"), type=RouteType.UNICAST) for n in range(5)]
    wide = [dataclasses.replace(one, next_hops=tuple(sorted(hops))) for one in wide]
    change(control, *(PutRoute(route=one) for one in wide))
    assert control.observe({TABLE}).routes == set(wide)


def test_thousands_of_addresses_are_all_told(control: RoutingControl, inside: Netns) -> None:
    many = {f"10.{100 + (n >> 8)}.{n & 255}.1" for n in range(5000)} | {f"fd10::{n:x}" for n in range(1, 500)}
    lines = [f"address add {address}/{128 if ':' in address else 32} dev lo" for address in many]
    inside.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
    assert {ip_address(address) for address in many} <= control.addresses()


@pytest.mark.usefixtures("inside")
def test_opening_and_closing_leaks_no_descriptor() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with RoutingControl() as control:
        control.observe({TABLE})
    before = descriptors()
    for _ in range(20):
        with RoutingControl() as control:
            control.observe({TABLE})
        control.close()
    assert descriptors() == before


def test_a_rule_identical_but_for_its_table_is_another_rule(control: RoutingControl) -> None:
    one = Rule(family=4, priority=4700, table=TABLE, mark=1 << 24, mask=MASK)
    two = dataclasses.replace(one, table=OTHER)
    change(control, AddRule(rule=one))
    change(control, AddRule(rule=two))
    change(control, DeleteRule(rule=one))
    assert control.observe({TABLE}).rules == {two}


# --- what return paths ask -------------------------------------------------------------------------------------------


def test_networks_of_own_addresses_are_connected(control: RoutingControl, inside: Netns) -> None:
    inside.run("ip", "route", "add", "10.77.0.0/16", "dev", "v0")
    inside.run("ip", "route", "add", "10.78.0.0/16", "via", "10.9.0.2")
    inside.run("ip", "address", "add", "10.80.0.1", "peer", "10.80.0.2", "dev", "v0")
    found = {str(network) for network in control.connected()}
    assert found == {"10.9.0.0/24", "10.80.0.2/32", "fd09::/64", "fe80::/64"}


LEARNED = {
    "networkd's prefix": ("fd77::/64 dev v0 proto ra metric 100", ["fd77::/64"]),
    "dhcpcd's network": ("10.77.0.0/24 dev v0 proto dhcp scope link metric 202", ["10.77.0.0/24"]),
    "a prefix behind the router": ("fd77::/64 via fe80::2 dev v0 proto ra metric 100", []),
    "a network behind the router": ("10.77.0.0/16 via 10.9.0.2 proto dhcp", []),
    "a network behind an IPv6 router": ("10.77.0.0/16 via inet6 fe80::2 dev v0 proto dhcp", []),
    "several routers": ("fd77::/64 proto ra nexthop via fd09::2 dev v0 nexthop via fd09::3 dev v0", []),
    "a default route by an interface": ("default dev v0 proto dhcp", []),
    "an IPv6 default route by an interface": ("::/0 dev v0 proto ra", []),
    "what is refused": ("unreachable fd77::/48 dev lo proto ra", []),
    "half the Internet by a VPN": ("0.0.0.0/1 dev v0", []),
    "an operator's": ("fd77::/64 dev v0 proto static", []),
    "our own": ("10.77.0.0/24 dev v0 proto 201 metric 4700", []),
}


@pytest.mark.parametrize("name", LEARNED)
def test_networks_that_came_with_an_address_are_connected_whoever_routed_them(
    control: RoutingControl, inside: Netns, name: str
) -> None:
    words, wanted = LEARNED[name]
    before = control.connected()
    inside.run("ip", "route", "add", *words.split())
    assert sorted(map(str, control.connected() - before)) == wanted


def test_links_that_exist_are_told_with_whether_they_are_up(control: RoutingControl, inside: Netns) -> None:
    inside.run("ip", "link", "set", "v1", "down")
    inside.run("sysctl", "-qw", "net.ipv6.conf.v1.disable_ipv6=1")
    assert control.links(["v0", "v1", "gone"]) == {
        "v0": Link(up=True, has_ipv4=True, takes_ipv6=True),
        "v1": Link(up=False, has_ipv4=False, takes_ipv6=False),
    }


def test_an_interface_too_small_for_IPv6_takes_none(control: RoutingControl, inside: Netns) -> None:
    inside.run("ip", "link", "set", "v1", "mtu", "1200")
    assert control.links(["v1"]) == {"v1": Link(up=True, has_ipv4=False, takes_ipv6=False)}
