"""Rules as rtnetlink messages, as pyroute2 takes them apart, in the terms of the model.

What the model cannot express (a rule with an incoming interface) is no rule of ours, even if it carries our protocol
number: it is told as foreign, so that it is removed and not half understood. Attributes: linux/fib_rules.h.
"""

from __future__ import annotations

import socket
from ipaddress import ip_network
from typing import Any

from metaleg_node.core.model import ROUTE_PROTOCOL, Family, ForeignItem, Network, Rule
from metaleg_node.kernel.netlink.socket import HEADER

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
PROTOCOLS = {1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 16: "dhcp", 186: "bgp"}
"""The names that ip(8) has for numbers of `proto`."""

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
    return ForeignItem(text=" ".join([*words, "proto", PROTOCOLS.get(protocol, str(protocol))]), raw=_raw(message))


def delete_rule_body(item: ForeignItem) -> bytes:
    """The body of the request that deletes exactly a foreign rule."""
    return message_in(item)


def message_in(item: ForeignItem) -> bytes:
    """The body of the kernel's message that described a foreign rule or route."""
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
