"""Interfaces and their addresses as rtnetlink messages. Structures: linux/if_link.h, linux/if_addr.h, linux/ipv6.h."""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import NamedTuple

from metaleg_node.core.model import Address
from metaleg_node.kernel.netlink.rtnetlink import FAMILY, KEPT, address
from metaleg_node.kernel.netlink.socket import attribute, attribute_of, attributes, number, numeric, string

_ADDRESS = struct.Struct("=4BI")
"""struct ifaddrmsg: family, prefix length, flags, scope, interface."""
_LINK = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, which flags to change."""
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFLA_IFNAME, _IFLA_AF_SPEC, _IFLA_EXT_MASK, _IFLA_INET6_CONF = 3, 26, 29, 2
_IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 4, 10, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND = 1, 2, 4
_IFLA_IPTUN_REMOTE, _IFLA_GRE_REMOTE = 3, 7
_REMOTE = {
    **dict.fromkeys(("ipip", "sit", "ip6tnl"), _IFLA_IPTUN_REMOTE),
    **dict.fromkeys(("gre", "ip6gre"), _IFLA_GRE_REMOTE),
}
"""Where a tunnel of IP tells its other end (linux/if_tunnel.h)."""
_SKIP_STATS = 8
"""RTEXT_FILTER_SKIP_STATS."""
_UP = 1
"""IFF_UP."""
_DISABLE_IPV6 = 4 * 26
"""Where DEVCONF_DISABLE_IPV6 stands among the settings of IPv6, which are numbers of four bytes."""


def dump_body(family: int = socket.AF_UNSPEC, interface: int = 0) -> bytes:
    """The RTM_GETADDR message, without its header, that asks for the addresses of an interface; 0: of all."""
    return _ADDRESS.pack(family, 0, 0, 0, interface)


@lru_cache(maxsize=KEPT)
def read_address(body: bytes) -> Address | None:
    """The address in a message of RTM_NEWADDR, None when it is not one of IP. On a point-to-point link IFA_ADDRESS is
    the peer's. An address that stays is told in the same bytes each time."""
    if body[0] not in FAMILY:
        return None
    return address(attribute_of(body, _ADDRESS.size, _IFA_LOCAL) or attribute_of(body, _ADDRESS.size, _IFA_ADDRESS))


@lru_cache(maxsize=KEPT)
def read_numbered(body: bytes) -> int | None:
    """The index of the interface that a message of RTM_NEWADDR gives an IPv4 address, None where it is of another
    family."""
    family, _, _, _, interface = _ADDRESS.unpack_from(body)
    return int(interface) if family == socket.AF_INET else None


class Found(NamedTuple):
    """An interface's index, whether it is up, whether a route of IPv6 may lead to it, and the index of the VRF device
    that it belongs to, 0 for none."""

    interface: int
    up: bool
    takes_ipv6: bool
    vrf: int


class Device(NamedTuple):
    """An interface: its number, its kind, such as "veth" (ip-link(8); empty for one of hardware), its MTU in bytes, and
    the number of the bridge, bond or VRF device that it belongs to, 0 for none."""

    number: int
    name: str
    kind: str
    mtu: int
    master: int


class Kind(NamedTuple):
    """An interface's index, its kind as in `Device`, and of a tunnel of IP the other end's address, None where it has
    several."""

    interface: int
    kind: str
    remote: Address | None


def list_body() -> bytes:
    """The RTM_GETLINK message, without its header, that asks for all interfaces."""
    return _LINK.pack(0, 0, 0, 0, 0) + numeric(_IFLA_EXT_MASK, _SKIP_STATS)


def read_device(body: bytes) -> Device:
    """What the kernel answers to `list_body`, one message for each interface."""
    _, _, index, _, _ = _LINK.unpack_from(body)
    found = attributes(body, _LINK.size)
    return Device(
        number=index,
        name=string(found.get(_IFLA_IFNAME, b"")),
        kind=string(attribute_of(found.get(_IFLA_LINKINFO, b""), 0, _IFLA_INFO_KIND)),
        mtu=number(found.get(_IFLA_MTU, b"")),
        master=number(found.get(_IFLA_MASTER, b"")),
    )


def get_link_body(name: str) -> bytes:
    """The RTM_GETLINK message, without its header, that asks for an interface by its name."""
    named = attribute(_IFLA_IFNAME, name.encode() + b"\0")
    return _LINK.pack(0, 0, 0, 0, 0) + named + numeric(_IFLA_EXT_MASK, _SKIP_STATS)


def read_kind(body: bytes) -> Kind:
    """What the kernel answers to `get_link_body`, of the kind. Without one other end a tunnel tells zeros."""
    _, _, interface, _, _ = _LINK.unpack_from(body)
    about = attribute_of(body, _LINK.size, _IFLA_LINKINFO)
    kind = string(attribute_of(about, 0, _IFLA_INFO_KIND))
    settings = attribute_of(about, 0, _IFLA_INFO_DATA)
    remote = attribute_of(settings, 0, _REMOTE[kind]) if kind in _REMOTE else b""
    return Kind(interface=interface, kind=kind, remote=address(remote) if any(remote) else None)


def is_ip_tunnel(kind: str) -> bool:
    """Whether devices of this kind are tunnels of IP."""
    return kind in _REMOTE


def read_link(body: bytes) -> Found:
    """What the kernel answers to `get_link_body`. An interface without settings of IPv6 has none at all."""
    _, _, interface, flags, _ = _LINK.unpack_from(body)
    families = attribute_of(body, _LINK.size, _IFLA_AF_SPEC)
    settings = attribute_of(attribute_of(families, 0, socket.AF_INET6), 0, _IFLA_INET6_CONF)
    disabled = settings[_DISABLE_IPV6 : _DISABLE_IPV6 + 4]
    slave_kind = attribute_of(attribute_of(body, _LINK.size, _IFLA_LINKINFO), 0, _IFLA_INFO_SLAVE_KIND)
    return Found(
        interface=interface,
        up=bool(flags & _UP),
        takes_ipv6=bool(disabled) and not number(disabled),
        vrf=number(attribute_of(body, _LINK.size, _IFLA_MASTER)) if string(slave_kind) == "vrf" else 0,
    )
