"""Routes as rtnetlink messages, taken apart on bytes: a node may have thousands of ours, which are looked at after
every change of routing, and pyroute2 needs 60 µs for each.

What the model cannot express (a route with its own MTU) is no route of ours, even if it carries our protocol number: it
is told as foreign, so that it is removed and not half understood. Structures: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from metaleg_node.core.model import (
    ROUTE_PROTOCOL,
    Address,
    Family,
    ForeignItem,
    Network,
    NextHop,
    Route,
    RouteType,
)
from metaleg_node.kernel.netlink.rules import PROTOCOLS, SOCKET_FAMILY, message_in
from metaleg_node.kernel.netlink.socket import attribute, attributes

NameOf = Callable[[int], str]
"""Tells an interface's name by its index, see `interface_name`."""

_MESSAGE = struct.Struct("=8BI")
"""struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags."""
_PROTOCOL_AT, _TYPE_AT = 5, 7
_HOP = struct.Struct("=HBBi")
"""struct rtnexthop: length, flags, weight - 1, interface; attributes follow."""
_INET = socket.AF_INET
_DST, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH, _CACHEINFO, _TABLE, _VIA, _PREF, _NH_ID = 1, 4, 5, 6, 9, 12, 15, 18, 20, 30
_KNOWN = {_DST, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH, _CACHEINFO, _TABLE, _PREF}
_SAID_BY_NEXTHOP = {_OIF, _GATEWAY, _MULTIPATH, _VIA}
_BEHIND_ROUTERS = {_GATEWAY, _VIA, _MULTIPATH, _NH_ID}
_ONLINK = 4
"""RTNH_F_ONLINK."""
_UNICAST = 1
_TYPES = {
    _UNICAST: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
_OURS = {number: RouteType(name) for number, name in _TYPES.items() if name in {kind.value for kind in RouteType}}
_NETWORKS = 1 << 14
"""Networks that are kept: to make one takes longer than all the rest of a route's message."""


# --- asking ----------------------------------------------------------------------------------------------------------


def dump_body(family: Family, *, table: int = 0, protocol: int = 0) -> bytes:
    """The RTM_GETROUTE message, without its header, that asks for all routes of a table or a protocol; 0: any."""
    header = _MESSAGE.pack(SOCKET_FAMILY[family], 0, 0, 0, 0, protocol, 0, 0, 0)
    return header + attribute(_TABLE, struct.pack("=I", table)) if table else header


def get_route_body(address: Address) -> bytes:
    """The RTM_GETROUTE message, without its header, that asks for the way to an address."""
    family, length = SOCKET_FAMILY[4 if address.version == 4 else 6], address.max_prefixlen
    return _MESSAGE.pack(family, length, 0, 0, 0, 0, 0, 0, 0) + attribute(_DST, address.packed)


class Lookup(NamedTuple):
    """The answer to a route look-up: the interface's index, and whether no router is in between."""

    interface: int
    direct: bool


def read_lookup(body: bytes) -> Lookup | None:
    """What the kernel answers to `get_route_body`; None when the way is not a unicast route."""
    if body[_TYPE_AT] != _UNICAST:
        return None
    found = attributes(body, _MESSAGE.size)
    return Lookup(interface=_number(found.get(_OIF, b"")), direct=not found.keys() & {_GATEWAY, _VIA})


# --- reading ---------------------------------------------------------------------------------------------------------


def is_ours(body: bytes) -> bool:
    """Whether a route carries our protocol number."""
    return body[_PROTOCOL_AT] == ROUTE_PROTOCOL


def read_route(body: bytes, name_of: NameOf) -> Route | None:
    """The route of ours that a message describes, None when it is not one that the model can express."""
    family, length, _, tos, table, protocol, _, kind, flags = _MESSAGE.unpack_from(body)
    found = attributes(body, _MESSAGE.size)
    if protocol != ROUTE_PROTOCOL or kind not in _OURS or tos or not found.keys() <= _KNOWN:
        return None
    hops: tuple[NextHop, ...] = ()
    if kind == _UNICAST:
        several = [*_hops(flags, found)]
        if not all(hop.found.keys() <= _KNOWN for hop in several):
            return None
        hops = tuple(sorted((_read_hop(hop, name_of) for hop in several), key=_hop_order))
    return Route(
        table=_number(found.get(_TABLE, b"")) or table,
        destination=_network(family, found.get(_DST, b""), length),
        type=_OURS[kind],
        metric=_number(found.get(_PRIORITY, b"")),
        next_hops=hops,
    )


def foreign_route(body: bytes, name_of: NameOf) -> ForeignItem:
    """A route as ip-route(8) would print it; `raw` is the body of the kernel's own message."""
    family, length, _, _, table, protocol, _, kind, flags = _MESSAGE.unpack_from(body)
    found = attributes(body, _MESSAGE.size)
    words = [] if kind == _UNICAST else [_TYPES.get(kind, str(kind))]
    destination = _network(family, found.get(_DST, b""), length)
    words.append(str(destination) if length else f"default (IPv{destination.version})")
    for hop in _hops(flags, found):
        gateway = hop.found.get(_GATEWAY)
        words += ["via", str(_address(gateway))] if gateway else []
        words += ["dev", name_of(hop.interface)] if hop.interface else []
    words += ["proto", PROTOCOLS.get(protocol, str(protocol)), "metric", str(_number(found.get(_PRIORITY, b"")))]
    words += ["table", str(_number(found.get(_TABLE, b"")) or table)]
    return ForeignItem(text=" ".join(words), raw=(("message", body),))


def read_connected(body: bytes) -> Network | None:
    """The destination of a route without gateway, None for any other and for a default route."""
    family, length, _, _, _, _, _, kind, _ = _MESSAGE.unpack_from(body)
    found = attributes(body, _MESSAGE.size)
    if kind != _UNICAST or not length or found.keys() & _BEHIND_ROUTERS:
        return None
    return _network(family, found.get(_DST, b""), length)


def delete_route_body(item: ForeignItem) -> bytes:
    """The body of the request that deletes a foreign route.

    A route by nexthop object is told with the object's gateway and interface too, but not taken back with them
    (rtm_to_fib_config: "mutually exclusive").
    """
    body = message_in(item)
    found = attributes(body, _MESSAGE.size)
    if _NH_ID not in found:
        return body
    kept = (attribute(kind, value) for kind, value in found.items() if kind not in _SAID_BY_NEXTHOP)
    return body[: _MESSAGE.size] + b"".join(kept)


class _Hop(NamedTuple):
    """A next hop: its flags, weight, interface and attributes, which may be the route's own."""

    flags: int
    weight: int
    interface: int
    found: dict[int, bytes]


def _hops(flags: int, found: dict[int, bytes]) -> Iterator[_Hop]:
    """Several within one attribute, or what the route's own message tells of one."""
    several = found.get(_MULTIPATH, b"")
    if not several:
        yield _Hop(flags, 1, _number(found.get(_OIF, b"")), found)
    at = 0
    while at + _HOP.size <= len(several):
        length, hop_flags, more, interface = _HOP.unpack_from(several, at)
        if length < _HOP.size:
            return
        yield _Hop(hop_flags, more + 1, interface, attributes(several[at : at + length], _HOP.size))
        at += (length + 3) & ~3


def _read_hop(hop: _Hop, name_of: NameOf) -> NextHop:
    gateway = hop.found.get(_GATEWAY)
    return NextHop(
        gateway=_address(gateway) if gateway else None,
        interface=name_of(hop.interface) if hop.interface else "",
        weight=hop.weight,
        onlink=bool(hop.flags & _ONLINK),
    )


def _hop_order(hop: NextHop) -> tuple[bool, NextHop]:
    """The natural order; hops without a gateway, which compare with no others, come first."""
    return hop.gateway is not None, hop


@lru_cache(maxsize=_NETWORKS)
def _network(family: int, address: bytes, length: int) -> Network:
    if family == _INET:
        return IPv4Network((address or bytes(4), length))
    return IPv6Network((address or bytes(16), length))


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def interface_name(index: int) -> str:
    """An interface's name; one that has gone in the meantime keeps its number, as ip(8) prints it."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


# --- changing --------------------------------------------------------------------------------------------------------


def route_request(route: Route) -> dict[str, object]:
    """What names a route to pyroute2's `route`: enough to delete it, everything but the next hops to add it."""
    return {
        "family": SOCKET_FAMILY[4 if route.destination.version == 4 else 6],
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
    if route.destination.version == 4 and not any(hop.gateway for hop in route.next_hops):
        request["scope"] = "link"
    return request


def _hop_request(hop: NextHop) -> dict[str, object]:
    gateway: Address | None = hop.gateway
    request: dict[str, object] = {"oif": socket.if_nametoindex(hop.interface), "hops": hop.weight - 1}
    request |= {"flags": _ONLINK} if hop.onlink else {}
    return request if gateway is None else {"gateway": str(gateway), **request}
