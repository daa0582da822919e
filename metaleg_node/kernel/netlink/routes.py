"""Routes as rtnetlink messages, on bytes: a node may have thousands of ours, which are looked at after every change of
routing.

What the model cannot express (a route with its own MTU) is no route of ours, even if it carries our protocol number: it
is told as foreign, so that it is removed and not half understood. Structures: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from metaleg_node.core.explain.situation import Lookup, Way
from metaleg_node.core.model import ROUTE_PROTOCOL, Address, Family, ForeignItem, Network, NextHop, Route, RouteType
from metaleg_node.kernel.netlink.rtnetlink import (
    FAMILY,
    PROTOCOLS,
    ROUTING,
    SOCKET_FAMILY,
    address,
    family_of,
    foreign,
    message_in,
    network,
)
from metaleg_node.kernel.netlink.socket import attribute, attribute_of, attributes, number, numeric

NameOf = Callable[[int], str]
"""Tells an interface's name by its index."""
IndexOf = Callable[[str], int]
"""Tells an interface's index by its name; raises OSError when there is none."""

_PROTOCOL_AT, _TYPE_AT = 5, 7
_HOP = struct.Struct("=HBBi")
"""struct rtnexthop: length, flags, weight - 1, interface; attributes follow."""
_DST, _SRC, _IIF, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH, _CACHEINFO = 1, 2, 3, 4, 5, 6, 9, 12
_TABLE, _MARK, _VIA, _PREF, _ENCAP_TYPE, _NH_ID = 15, 16, 18, 20, 21, 30
_KNOWN = {_DST, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH, _CACHEINFO, _TABLE, _PREF}
_SAID_BY_NEXTHOP = {_OIF, _GATEWAY, _MULTIPATH, _VIA}
_BEHIND_ROUTERS = {_GATEWAY, _VIA, _MULTIPATH, _NH_ID}
_ONLINK, _CLONED, _LOOKUP_TABLE = 0x4, 0x200, 0x1000
"""RTNH_F_ONLINK; RTM_F_CLONED: a cache entry, no route; RTM_F_LOOKUP_TABLE: tell the table that led to a route."""
_COMPAT = 252
"""RT_TABLE_COMPAT: the table's number does not fit the header and stands in an attribute alone."""
_UNIVERSE, _LINK, _NOWHERE = 0, 253, 255
"""RT_SCOPE_*."""
_UNICAST = 1
_ADVERTISED = 9
"""RTPROT_RA."""
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
_OURS = {code: RouteType(name) for code, name in _TYPES.items() if name in {kind.value for kind in RouteType}}
_TYPE_NUMBERS = {kind: code for code, kind in _OURS.items()}


# --- asking ----------------------------------------------------------------------------------------------------------


def dump_body(family: Family, *, table: int = 0, protocol: int = 0) -> bytes:
    """The RTM_GETROUTE message, without its header, that asks for all routes of a table or a protocol; 0: any."""
    header = ROUTING.pack(SOCKET_FAMILY[family], 0, 0, 0, 0, protocol, 0, 0, 0)
    return header + numeric(_TABLE, table) if table else header


def get_body(target: Address) -> bytes:
    """The RTM_GETROUTE message, without its header, that asks for the way to an address."""
    header = ROUTING.pack(family_of(target), target.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    return header + attribute(_DST, target.packed)


def way_body(question: Lookup, interface: int) -> bytes:
    """The RTM_GETROUTE message, without its header, that asks for the way of a packet that came in by the interface
    with this index; 0: one of this host."""
    to, source = question.destination, question.source
    # IPv6 tells the table in any case, and refuses the flag.
    flags = _LOOKUP_TABLE if to.version == 4 else 0
    header = ROUTING.pack(family_of(to), to.max_prefixlen, source.max_prefixlen if source else 0, 0, 0, 0, 0, 0, flags)
    parts = [attribute(_DST, to.packed)]
    parts += [attribute(_SRC, source.packed)] if source else []
    parts += [numeric(_IIF, interface)] if interface else []
    parts += [numeric(_MARK, question.mark)] if question.mark else []
    return header + b"".join(parts)


def read_way(body: bytes, name_of: NameOf) -> Way:
    """What the kernel answers to `way_body`."""
    _, _, _, _, table, _, _, kind, _ = ROUTING.unpack_from(body)
    found = attributes(body, ROUTING.size)
    if kind != _UNICAST:
        return Way(refusal=f"{_TYPES.get(kind, str(kind))} to this host")
    gateway = found.get(_GATEWAY)
    hop = NextHop(gateway=address(gateway) if gateway else None, interface=name_of(number(found.get(_OIF, b""))))
    return Way(table=number(found.get(_TABLE, b"")) or table, hop=hop)


class Found(NamedTuple):
    """The answer to a route look-up: the interface's index, whether no router is in between, the next hop where it is
    of the same family, and whether the route puts packets into others (`encap`, ip-route(8))."""

    interface: int
    direct: bool
    gateway: Address | None
    encapsulates: bool


def read_lookup(body: bytes) -> Found | None:
    """What the kernel answers to `get_body`; None when the way is not a unicast route."""
    if body[_TYPE_AT] != _UNICAST:
        return None
    found = attributes(body, ROUTING.size)
    gateway = found.get(_GATEWAY)
    return Found(
        interface=number(found.get(_OIF, b"")),
        direct=not found.keys() & {_GATEWAY, _VIA, _ENCAP_TYPE},
        gateway=address(gateway) if gateway else None,
        encapsulates=_ENCAP_TYPE in found,
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def table(body: bytes) -> int | None:
    """The table that a route is in, None for a cache entry, which is no route."""
    _, _, _, _, short, _, _, _, flags = ROUTING.unpack_from(body)
    if flags & _CLONED:
        return None
    return number(attribute_of(body, ROUTING.size, _TABLE)) if short == _COMPAT else short


def is_ours(body: bytes) -> bool:
    """Whether a route carries our protocol number."""
    return body[_PROTOCOL_AT] == ROUTE_PROTOCOL


def read_route(body: bytes, name_of: NameOf) -> Route | None:
    """The route of ours that a message describes, None when it is not one that the model can express."""
    family, length, _, tos, table, protocol, _, kind, flags = ROUTING.unpack_from(body)
    found = attributes(body, ROUTING.size)
    if protocol != ROUTE_PROTOCOL or kind not in _OURS or tos or not found.keys() <= _KNOWN:
        return None
    hops: tuple[NextHop, ...] = ()
    if kind == _UNICAST:
        several = [*_hops(flags, found)]
        if not all(hop.found.keys() <= _KNOWN for hop in several):
            return None
        hops = tuple(sorted((_read_hop(hop, name_of) for hop in several), key=_hop_order))
    return Route(
        table=number(found.get(_TABLE, b"")) or table,
        destination=network(family, found.get(_DST, b""), length),
        type=_OURS[kind],
        metric=number(found.get(_PRIORITY, b"")),
        next_hops=hops,
    )


def foreign_route(body: bytes, name_of: NameOf) -> ForeignItem:
    """A route as ip-route(8) would print it."""
    family, length, _, _, table, protocol, _, kind, flags = ROUTING.unpack_from(body)
    found = attributes(body, ROUTING.size)
    words = [] if kind == _UNICAST else [_TYPES.get(kind, str(kind))]
    destination = network(family, found.get(_DST, b""), length)
    words.append(str(destination) if length else f"default (IPv{destination.version})")
    for hop in _hops(flags, found):
        gateway = hop.found.get(_GATEWAY)
        words += ["via", str(address(gateway))] if gateway else []
        words += ["dev", name_of(hop.interface)] if hop.interface else []
    words += ["proto", PROTOCOLS.get(protocol, str(protocol)), "metric", str(number(found.get(_PRIORITY, b"")))]
    words += ["table", str(number(found.get(_TABLE, b"")) or table)]
    return foreign(words, body)


def read_connected(body: bytes) -> Network | None:
    """The destination of a route without gateway, None for any other and for a default route."""
    family, length, _, _, _, _, _, kind, _ = ROUTING.unpack_from(body)
    found = attributes(body, ROUTING.size)
    if kind != _UNICAST or not length or found.keys() & _BEHIND_ROUTERS:
        return None
    return network(family, found.get(_DST, b""), length)


class Default(NamedTuple):
    """A next hop of a default route: the interface it leaves by, and whether a router's advertisement made it."""

    family: Family
    interface: str
    advertised: bool


def read_defaults(body: bytes, name_of: NameOf) -> Iterator[Default]:
    """What a message tells of default routes."""
    family, length, _, _, _, protocol, _, kind, flags = ROUTING.unpack_from(body)
    if length or kind != _UNICAST:
        return
    for hop in _hops(flags, attributes(body, ROUTING.size)):
        yield Default(FAMILY[family], name_of(hop.interface), protocol == _ADVERTISED)


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
        yield _Hop(flags, 1, number(found.get(_OIF, b"")), found)
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
        gateway=address(gateway) if gateway else None,
        interface=name_of(hop.interface) if hop.interface else "",
        weight=hop.weight,
        onlink=bool(hop.flags & _ONLINK),
    )


def _hop_order(hop: NextHop) -> tuple[bool, NextHop]:
    """The natural order; hops without a gateway, which compare with no others, come first."""
    return hop.gateway is not None, hop


# --- changing --------------------------------------------------------------------------------------------------------


def put_body(route: Route, index_of: IndexOf) -> bytes:
    """The message, without its header, that adds or replaces a route. Raises OSError when an interface does not
    exist."""
    hops = route.next_hops
    near = hops and not any(hop.gateway for hop in hops)
    scope = _LINK if near else _UNIVERSE
    if len(hops) == 1:
        return _header(route, scope, hops[0].onlink) + _way(hops[0]) + numeric(_OIF, index_of(hops[0].interface))
    several = b"".join(_encoded(hop, index_of) for hop in hops)
    return _header(route, scope) + (attribute(_MULTIPATH, several) if several else b"")


def delete_body(route: Route) -> bytes:
    """The message, without its header, that deletes the route with this table, destination, type and metric: of any
    next hops, and of any scope."""
    return _header(route, _NOWHERE)


def delete_foreign_body(item: ForeignItem) -> bytes:
    """The body of the request that deletes a foreign route.

    A route by nexthop object is told with the object's gateway and interface too, but not taken back with them
    (rtm_to_fib_config: "mutually exclusive").
    """
    body = message_in(item)
    found = attributes(body, ROUTING.size)
    if _NH_ID not in found:
        return body
    kept = (attribute(kind, value) for kind, value in found.items() if kind not in _SAID_BY_NEXTHOP)
    return body[: ROUTING.size] + b"".join(kept)


def _header(route: Route, scope: int, onlink: bool = False) -> bytes:
    """What names a route. Of IPv6 the kernel ignores the scope."""
    to, kind = route.destination, _TYPE_NUMBERS[route.type]
    header = ROUTING.pack(family_of(to), to.prefixlen, 0, 0, 0, ROUTE_PROTOCOL, scope, kind, _ONLINK if onlink else 0)
    named = attribute(_DST, to.network_address.packed) if to.prefixlen else b""
    return header + named + numeric(_TABLE, route.table) + numeric(_PRIORITY, route.metric)


def _encoded(hop: NextHop, index_of: IndexOf) -> bytes:
    """One of several next hops."""
    way, flags = _way(hop), _ONLINK if hop.onlink else 0
    return _HOP.pack(_HOP.size + len(way), flags, hop.weight - 1, index_of(hop.interface)) + way


def _way(hop: NextHop) -> bytes:
    return attribute(_GATEWAY, hop.gateway.packed) if hop.gateway else b""
