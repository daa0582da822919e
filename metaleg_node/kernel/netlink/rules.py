"""Policy rules as rtnetlink messages, on bytes.

What the model cannot express (a rule with an incoming interface) is no rule of ours, even if it carries our protocol
number: it is told as foreign, so that it is removed and not half understood. Attributes: linux/fib_rules.h.
"""

from __future__ import annotations

from collections.abc import Collection

from metaleg_node.core.model import ROUTE_PROTOCOL, ForeignItem, Rule
from metaleg_node.core.others import PolicyRule
from metaleg_node.kernel.netlink.rtnetlink import FAMILY, PROTOCOLS, ROUTING, SOCKET_FAMILY, foreign, network
from metaleg_node.kernel.netlink.socket import attribute, attributes, number, numeric, string

_DST, _SRC, _IIFNAME, _PRIORITY, _FWMARK, _SUPPRESS = 1, 2, 3, 6, 10, 14
_TABLE, _FWMASK, _OIFNAME, _PROTOCOL, _IP_PROTO = 15, 16, 17, 21, 22
_KNOWN = {_DST, _SRC, _PRIORITY, _FWMARK, _SUPPRESS, _TABLE, _FWMASK, _PROTOCOL}
_TO_TABLE = 1
"""FR_ACT_TO_TBL: the rule looks up a table."""
_INVERT = 2
"""FIB_RULE_INVERT: "not"."""
_NO_SUPPRESSION = 0xFFFFFFFF


def dump_body(family: int) -> bytes:
    """The RTM_GETRULE message, without its header, that asks for all rules."""
    return ROUTING.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)


def concerns(body: bytes, tables: Collection[int]) -> bool:
    """Whether a rule carries our protocol number or looks one of these tables up."""
    found = attributes(body, ROUTING.size)
    return number(found.get(_PROTOCOL, b"")) == ROUTE_PROTOCOL or _table(body, found) in tables


def _table(body: bytes, found: dict[int, bytes]) -> int | None:
    """The table that a rule looks up, None when it does something else."""
    _, _, _, _, table, _, _, action, _ = ROUTING.unpack_from(body)
    return (number(found.get(_TABLE, b"")) or table) if action == _TO_TABLE else None


def read_rule(body: bytes) -> Rule | None:
    """The rule of ours that a message describes, None when it is not one that the model can express."""
    family, to_length, from_length, tos, _, _, _, _, flags = ROUTING.unpack_from(body)
    found = attributes(body, ROUTING.size)
    table = _table(body, found)
    ours = number(found.get(_PROTOCOL, b"")) == ROUTE_PROTOCOL and found.keys() <= _KNOWN
    if table is None or not ours or tos or flags or number(found.get(_SUPPRESS, b"\xff" * 4)) != _NO_SUPPRESSION:
        return None
    return Rule(
        family=FAMILY[family],
        priority=number(found.get(_PRIORITY, b"")),
        table=table,
        mark=number(found.get(_FWMARK, b"")) if _FWMASK in found else None,
        mask=number(found[_FWMASK]) if _FWMASK in found else None,
        source=network(family, found.get(_SRC, b""), from_length) if from_length else None,
        destination=network(family, found.get(_DST, b""), to_length) if to_length else None,
    )


def foreign_rule(body: bytes) -> ForeignItem:
    """A rule as ip-rule(8) would print it."""
    family, to_length, from_length, tos, _, _, _, _, flags = ROUTING.unpack_from(body)
    found = attributes(body, ROUTING.size)
    words = [f"IPv{FAMILY[family]}", "priority", str(number(found.get(_PRIORITY, b"")))]
    words += ["not"] if flags & _INVERT else []
    words += ["from", str(network(family, found.get(_SRC, b""), from_length)) if from_length else "all"]
    words += ["to", str(network(family, found.get(_DST, b""), to_length))] if to_length else []
    words += ["tos", f"{tos:#x}"] if tos else []
    if _FWMASK in found:
        words += ["fwmark", f"{number(found.get(_FWMARK, b'')):#x}/{number(found[_FWMASK]):#x}"]
    words += ["iif", string(found[_IIFNAME])] if _IIFNAME in found else []
    words += ["oif", string(found[_OIFNAME])] if _OIFNAME in found else []
    words += ["ipproto", str(number(found[_IP_PROTO]))] if _IP_PROTO in found else []
    protocol = number(found.get(_PROTOCOL, b""))
    return foreign([*words, "lookup", str(_table(body, found)), "proto", PROTOCOLS.get(protocol, str(protocol))], body)


def policy_rule(body: bytes) -> PolicyRule:
    """Somebody else's rule, as far as it may collide with ours."""
    family, *_, flags = ROUTING.unpack_from(body)
    found = attributes(body, ROUTING.size)
    return PolicyRule(
        text=foreign_rule(body).text,
        family=FAMILY[family],
        priority=number(found.get(_PRIORITY, b"")),
        mark=number(found.get(_FWMARK, b"")),
        mask=number(found[_FWMASK]) if _FWMASK in found else None,
        inverted=bool(flags & _INVERT),
        table=_table(body, found) or 0,
        selective=_selects(body, found),
    )


def _selects(body: bytes, found: dict[int, bytes]) -> bool:
    """Whether only some packets meet a rule, or only some routes of its table count."""
    _, to_length, from_length, tos, _, _, _, _, _ = ROUTING.unpack_from(body)
    all_routes = number(found.get(_SUPPRESS, b"\xff" * 4)) == _NO_SUPPRESSION
    return bool(to_length or from_length or tos) or not all_routes or not found.keys() <= _KNOWN


def rule_body(rule: Rule) -> bytes:
    """The message, without its header, that adds or deletes a rule. Table, priority and protocol are always named."""
    numbers = [(_PRIORITY, rule.priority), (_TABLE, rule.table)]
    if rule.mark is not None:
        numbers += [(_FWMARK, rule.mark), (_FWMASK, 0xFFFFFFFF if rule.mask is None else rule.mask)]
    parts = [numeric(kind, value) for kind, value in numbers]
    parts.append(attribute(_PROTOCOL, bytes([ROUTE_PROTOCOL])))
    lengths = []
    for kind, one in ((_DST, rule.destination), (_SRC, rule.source)):
        lengths.append(one.prefixlen if one else 0)
        parts += [attribute(kind, one.network_address.packed)] if one else []
    return ROUTING.pack(SOCKET_FAMILY[rule.family], *lengths, 0, 0, 0, 0, _TO_TABLE, 0) + b"".join(parts)
