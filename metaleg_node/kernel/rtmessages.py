"""Rtnetlink messages, as pyroute2 takes them apart, in the terms of the model.

What the model cannot express (a rule with an incoming interface, a route with its own MTU) is no rule or route of
ours, even if it carries our protocol number: it is told as foreign, so that it is removed and not half understood.
Attributes: linux/fib_rules.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from metaleg_node.core.model import (
    ROUTE_PROTOCOL,
    Address,
    Family,
    ForeignItem,
    Network,
    NextHop,
    Route,
    RouteType,
    Rule,
)
from metaleg_node.kernel.netlink import HEADER, attribute, attributes

SOCKET_FAMILY: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_FAMILY: dict[int, Family] = {number: family for family, number in SOCKET_FAMILY.items()}
_ANY: dict[Family, str] = {4: "0.0.0.0", 6: "::"}

_TO_TABLE = 1
"""FR_ACT_TO_TBL: the rule looks up a table."""
_NO_SUPPRESSION = 0xFFFFFFFF
_RULE_WORDS = {
    "FRA_PRIORITY",
    "FRA_PROTOCOL",
    "FRA_TABLE",
    "FRA_FWMARK",
    "FRA_FWMASK",
    "FRA_SRC",
    "FRA_DST",
    "FRA_SUPPRESS_PREFIXLEN",
}
_ROUTE_WORDS = {
    "RTA_TABLE",
    "RTA_DST",
    "RTA_PRIORITY",
    "RTA_GATEWAY",
    "RTA_OIF",
    "RTA_MULTIPATH",
    "RTA_CACHEINFO",
    "RTA_PREF",
}
_ONLINK = 4
"""RTNH_F_ONLINK."""
_RTMSG_SIZE, _TYPE_OFFSET, _UNICAST = 12, 7, 1
"""struct rtmsg of rtnetlink(7): its size, where rtm_type stands, and RTN_UNICAST."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 1, 4, 5, 18
_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
_NH_ID = 30
_SAID_BY_NEXTHOP = {4, 5, 9, 18}
"""RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA."""
_OURS = {kind.value for kind in RouteType}
_PROTOCOLS = {1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 16: "dhcp", 186: "bgp"}

Message = Any
"""A pyroute2 message: header fields by index, attributes by get_attr(); the library has no types."""


def rule_table(message: Message) -> int | None:
    """The table that a rule looks up, None when it does something else."""
    return int(message.get_attr("FRA_TABLE") or message["table"]) if message["action"] == _TO_TABLE else None


def read_rule(message: Message) -> Rule | None:
    """The rule of ours that a message describes, None when it is not one that the model can express."""
    table = rule_table(message)
    present = {name for name, _ in message["attrs"]}
    plain = (
        message.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL
        and present <= _RULE_WORDS
        and message.get_attr("FRA_SUPPRESS_PREFIXLEN") in (None, _NO_SUPPRESSION)
        and not message["tos"]
        and not message["flags"]
    )
    if table is None or not plain:
        return None
    mask = message.get_attr("FRA_FWMASK")
    return Rule(
        family=_FAMILY[message["family"]],
        priority=message.get_attr("FRA_PRIORITY") or 0,
        table=table,
        mark=None if mask is None else message.get_attr("FRA_FWMARK") or 0,
        mask=mask,
        source=_network(message, "FRA_SRC", "src_len") if message["src_len"] else None,
        destination=_network(message, "FRA_DST", "dst_len") if message["dst_len"] else None,
    )


def rule_request(rule: Rule) -> dict[str, object]:
    """What pyroute2's `rule` takes to add or delete a rule. Table, priority and protocol are always named: the
    library would otherwise make a rule that drops packets, or invent a priority."""
    request: dict[str, object] = {
        "family": SOCKET_FAMILY[rule.family],
        "priority": rule.priority,
        "table": rule.table,
        "protocol": ROUTE_PROTOCOL,
    }
    if rule.mark is not None:
        request |= {"fwmark": rule.mark, "fwmask": 0xFFFFFFFF if rule.mask is None else rule.mask}
    if rule.source is not None:
        request |= {"src": str(rule.source.network_address), "src_len": rule.source.prefixlen}
    if rule.destination is not None:
        request |= {"dst": str(rule.destination.network_address), "dst_len": rule.destination.prefixlen}
    return request


def route_table(message: Message) -> int:
    """The table that holds a route."""
    return int(message.get_attr("RTA_TABLE") or message["table"])


def destination(message: Message) -> Network:
    """The destination of a route."""
    return _network(message, "RTA_DST", "dst_len")


def read_route(message: Message) -> Route | None:
    """The route of ours that a message describes, None when it is not one that the model can express."""
    kind = _TYPES.get(message["type"], "")
    hops = _hop_messages(message) if kind == RouteType.UNICAST else ()
    expressible = (
        message["proto"] == ROUTE_PROTOCOL
        and kind in _OURS
        and {name for name, _ in message["attrs"]} <= _ROUTE_WORDS
        and not message["tos"]
        and all({name for name, _ in hop["attrs"]} <= _ROUTE_WORDS for hop in hops)
    )
    if not expressible:
        return None
    return Route(
        table=route_table(message),
        destination=_network(message, "RTA_DST", "dst_len"),
        type=RouteType(kind),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        next_hops=tuple(sorted((_read_hop(message, hop) for hop in hops), key=_hop_order)),
    )


def route_request(route: Route) -> dict[str, object]:
    """What names a route to pyroute2's `route`: enough to delete it, everything but the next hops to add it."""
    return {
        "family": SOCKET_FAMILY[_family(route.destination)],
        "dst": str(route.destination),
        "table": route.table,
        "proto": ROUTE_PROTOCOL,
        "priority": route.metric,
        "type": route.type.value,
    }


def hops_request(route: Route) -> dict[str, object]:
    """The next hops of a route for pyroute2's `route`. Raises OSError when an interface does not exist."""
    hops = [_hop_request(hop) for hop in route.next_hops]
    if not hops:
        return {}
    request: dict[str, object] = {"multipath": hops} if len(hops) > 1 else {**hops[0]}
    request.pop("hops", None)
    if _family(route.destination) == 4 and not any(hop.gateway for hop in route.next_hops):
        request["scope"] = "link"
    return request


def foreign_rule(message: Message) -> ForeignItem:
    """A rule as ip-rule(8) would print it; `raw` is the body of the kernel's own message."""
    family = _FAMILY[message["family"]]
    words = [f"IPv{family}", "priority", str(message.get_attr("FRA_PRIORITY") or 0)]
    words += ["not"] if message["flags"] & 2 else []
    words += ["from", str(_network(message, "FRA_SRC", "src_len")) if message["src_len"] else "all"]
    words += ["to", str(_network(message, "FRA_DST", "dst_len"))] if message["dst_len"] else []
    words += ["tos", f"{message['tos']:#x}"] if message["tos"] else []
    mask = message.get_attr("FRA_FWMASK")
    words += ["fwmark", f"{message.get_attr('FRA_FWMARK') or 0:#x}/{mask:#x}"] if mask is not None else []
    for name, word in (("FRA_IIFNAME", "iif"), ("FRA_OIFNAME", "oif"), ("FRA_IP_PROTO", "ipproto")):
        value = message.get_attr(name)
        words += [word, str(value)] if value is not None else []
    words += ["lookup", str(rule_table(message))]
    protocol = message.get_attr("FRA_PROTOCOL") or 0
    return ForeignItem(text=" ".join([*words, "proto", _PROTOCOLS.get(protocol, str(protocol))]), raw=_raw(message))


def foreign_route(message: Message) -> ForeignItem:
    """A route as ip-route(8) would print it; `raw` is the body of the kernel's own message."""
    kind = _TYPES.get(message["type"], str(message["type"]))
    destination = _network(message, "RTA_DST", "dst_len")
    words = [] if kind == "unicast" else [kind]
    words.append(str(destination) if destination.prefixlen else f"default (IPv{_family(destination)})")
    for hop in _hop_messages(message):
        gateway, interface = hop.get_attr("RTA_GATEWAY"), _interface(message, hop)
        words += ["via", str(gateway)] if gateway else []
        words += ["dev", interface] if interface else []
    metric, protocol = message.get_attr("RTA_PRIORITY") or 0, message["proto"]
    words += ["proto", _PROTOCOLS.get(protocol, str(protocol)), "metric", str(metric)]
    text = " ".join([*words, "table", str(route_table(message))])
    return ForeignItem(text=text, raw=_raw(message))


def delete_rule_body(item: ForeignItem) -> bytes:
    """The body of the request that deletes exactly a foreign rule."""
    return _message_in(item)


def delete_route_body(item: ForeignItem) -> bytes:
    """The body of the request that deletes exactly a foreign route.

    A route by nexthop object is told with the object's gateway and interface too, but not taken back with them
    (rtm_to_fib_config: "mutually exclusive").
    """
    body = _message_in(item)
    found = attributes(body, _RTMSG_SIZE)
    if _NH_ID not in found:
        return body
    kept = (attribute(kind, value) for kind, value in found.items() if kind not in _SAID_BY_NEXTHOP)
    return body[:_RTMSG_SIZE] + b"".join(kept)


def _message_in(item: ForeignItem) -> bytes:
    body = dict(item.raw)["message"]
    if not isinstance(body, bytes):
        raise TypeError(f"not an item of this module: {item}")
    return body


def _raw(message: Message) -> tuple[tuple[str, object], ...]:
    """The message's body, which the kernel takes back as a delete request; iproute2 flushes in the same way."""
    body = bytes(message.data[message.offset + HEADER.size : message.offset + message.length])
    return (("message", body),)


def _network(message: Message, attribute: str, length: str) -> Network:
    address = message.get_attr(attribute) or _ANY[_FAMILY[message["family"]]]
    return ip_network(f"{address}/{message[length]}")


def _family(network: Network) -> Family:
    return 4 if network.version == 4 else 6


def _hop_messages(message: Message) -> tuple[Message, ...]:
    """The messages that hold the next hops: several within one attribute, or the route's own message for one."""
    return tuple(message.get_attr("RTA_MULTIPATH") or (message,))


def _read_hop(route: Message, hop: Message) -> NextHop:
    gateway = hop.get_attr("RTA_GATEWAY")
    return NextHop(
        gateway=ip_address(gateway) if gateway else None,
        interface=_interface(route, hop),
        weight=1 if hop is route else hop["hops"] + 1,
        onlink=bool(hop["flags"] & _ONLINK),
    )


def _hop_order(hop: NextHop) -> tuple[bool, NextHop]:
    """The natural order; hops without a gateway, which compare with no others, come first."""
    return hop.gateway is not None, hop


def _interface(route: Message, hop: Message) -> str:
    index = hop.get_attr("RTA_OIF") if hop is route else hop["oif"]
    return interface_name(index) if index else ""


class Lookup(NamedTuple):
    """The answer to a route look-up: the interface's index, and whether no router is in between."""

    interface: int
    direct: bool


def get_route_body(address: Address) -> bytes:
    """The RTM_GETROUTE message, without its header, that asks for the way to an address (rtnetlink(7))."""
    family, length = SOCKET_FAMILY[4 if address.version == 4 else 6], address.max_prefixlen
    return struct.pack("=8BI", family, length, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, address.packed)


def read_lookup(body: bytes) -> Lookup | None:
    """What the kernel answers to `get_route_body`; None when the way is not a unicast route."""
    if body[_TYPE_OFFSET] != _UNICAST:
        return None
    found = attributes(body, _RTMSG_SIZE)
    index = int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)
    return Lookup(interface=index, direct=not found.keys() & {_RTA_GATEWAY, _RTA_VIA})


def interface_name(index: int) -> str:
    """An interface's name; one that has gone in the meantime keeps its number, as ip(8) prints it."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


def _hop_request(hop: NextHop) -> dict[str, object]:
    gateway: Address | None = hop.gateway
    request: dict[str, object] = {"oif": socket.if_nametoindex(hop.interface), "hops": hop.weight - 1}
    request |= {"flags": _ONLINK} if hop.onlink else {}
    return request if gateway is None else {"gateway": str(gateway), **request}
