"""A second opinion on our netlink messages: pyroute2, which does not share a line with them, takes them apart."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from metaleg_node.core.model import ROUTE_PROTOCOL, NextHop, Route, RouteType, Rule
from metaleg_node.kernel.netlink.routes import put_body
from metaleg_node.kernel.netlink.rules import rule_body
from metaleg_node.kernel.netlink.socket import HEADER

RULES = {
    "a mark": Rule(family=4, priority=4700, table=1000001, mark=0x1000000, mask=0x3F000000),
    "of IPv6": Rule(family=6, priority=20, table=20, mark=5, mask=7),
    "from a network": Rule(family=4, priority=20, table=300, source=ip_network("192.0.2.0/24")),
    "to a network": Rule(family=6, priority=1, table=254, destination=ip_network("2001:db8::/32")),
}


def hop(gateway: str | None, weight: int = 1, *, onlink: bool = False) -> NextHop:
    return NextHop(gateway=ip_address(gateway) if gateway else None, interface="lo", weight=weight, onlink=onlink)


def route(to: str, *hops: NextHop, kind: RouteType = RouteType.UNICAST, metric: int = 0) -> Route:
    return Route(table=1000001, destination=ip_network(to), type=kind, metric=metric, next_hops=hops)


ROUTES = {
    "by a gateway": route("0.0.0.0/0", hop("10.0.0.2")),
    "onlink": route("0.0.0.0/0", hop("10.1.0.1", onlink=True)),
    "of IPv6, by a gateway": route("::/0", hop("fd00::2"), metric=1024),
    "to an interface": route("192.0.2.0/24", hop(None), metric=4700),
    "by several": route("0.0.0.0/0", hop("10.0.0.8", 100), hop("10.0.0.9", 3)),
    "unreachable": route("0.0.0.0/0", kind=RouteType.UNREACHABLE, metric=4278198272),
    "throw, IPv6": route("fd00::/64", kind=RouteType.THROW, metric=1024),
}
TYPES = {RouteType.UNICAST: 1, RouteType.UNREACHABLE: 7, RouteType.THROW: 9}


def taken_apart(kind: Any, body: bytes) -> Any:
    message = kind(HEADER.pack(HEADER.size + len(body), 0, 0, 0, 0) + body)
    message.decode()
    return message


@pytest.mark.parametrize("name", RULES)
def test_rules_mean_the_same_to_pyroute2(name: str) -> None:
    rule = RULES[name]
    message = taken_apart(fibmsg, rule_body(rule))
    assert message.get_attr("FRA_PRIORITY") == rule.priority
    assert message.get_attr("FRA_TABLE") == rule.table
    assert message.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL
    assert (message.get_attr("FRA_FWMARK"), message.get_attr("FRA_FWMASK")) == (rule.mark, rule.mask)
    for key, length, network in (("FRA_SRC", "src_len", rule.source), ("FRA_DST", "dst_len", rule.destination)):
        found = message.get_attr(key)
        assert (f"{found}/{message[length]}" if found else None) == (str(network) if network else None)


def next_hops(message: Any) -> Iterator[tuple[str | None, int, bool]]:
    """Gateway, weight and onlink of each."""
    if several := message.get_attr("RTA_MULTIPATH"):
        yield from ((one.get_attr("RTA_GATEWAY"), one["hops"] + 1, bool(one["flags"] & 4)) for one in several)
    elif message.get_attr("RTA_OIF"):
        yield message.get_attr("RTA_GATEWAY"), 1, bool(message["flags"] & 4)


@pytest.mark.parametrize("name", ROUTES)
def test_routes_mean_the_same_to_pyroute2(name: str) -> None:
    one = ROUTES[name]
    message = taken_apart(rtmsg, put_body(one, socket.if_nametoindex))
    assert message.get_attr("RTA_TABLE") == one.table
    assert message["proto"] == ROUTE_PROTOCOL
    assert message["type"] == TYPES[one.type]
    assert (message.get_attr("RTA_PRIORITY") or 0) == one.metric
    everywhere = one.destination.prefixlen == 0
    assert everywhere or message.get_attr("RTA_DST") == str(one.destination.network_address)
    assert message["dst_len"] == one.destination.prefixlen
    wanted = [(str(h.gateway) if h.gateway else None, h.weight, h.onlink) for h in one.next_hops]
    assert list(next_hops(message)) == wanted
