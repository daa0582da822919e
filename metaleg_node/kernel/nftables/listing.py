"""Reading our table: what `nft -j list table` prints, see libnftables-json(5)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from metaleg_node.kernel.nftables.table import Chain, Set, Table

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
"""nft lists a protocol by its name where /etc/protocols knows one, else as a number."""


def parse(items: Iterable[dict[str, Any]]) -> Table:
    """The table behind the listed objects."""
    sets: dict[str, Set] = {}
    hooks: dict[str, str] = {}
    comments: dict[str, list[str]] = {}
    counters: set[str] = set()
    strange: set[str] = set()
    for item in items:
        kind, body = next(iter(item.items()))
        if kind in ("set", "map"):
            sets[body["name"]], odd = _parse_set(body)
            strange |= {f"element {key} of set {body['name']}" for key in odd}
        elif kind == "chain":
            hooks[body["name"]] = _parse_hook(body)
            comments.setdefault(body["name"], [])
        elif kind == "rule":
            comments.setdefault(body["chain"], []).append(body.get("comment", ""))
        elif kind == "counter":
            counters.add(body["name"])
        elif kind == "table":
            strange |= {"flags of the table"} if "flags" in body else set()
        elif kind != "metainfo":
            strange.add(f"{kind} {body.get('name', '')}".strip())
    chains = {name: Chain(comments=tuple(texts), hook=hooks.get(name, "")) for name, texts in comments.items()}
    return Table(sets=sets, chains=chains, counters=frozenset(counters), strange=frozenset(strange))


def _parse_hook(body: Mapping[str, Any]) -> str:
    if "hook" not in body:
        return ""
    return f"type {body['type']} hook {body['hook']} priority {body['prio']}; policy {body.get('policy', 'accept')};"


def _parse_set(body: Mapping[str, Any]) -> tuple[Set, list[str]]:
    """A set or map, and the elements in forms that this program never writes: ranges, comments, timeouts."""
    elements: dict[str, str | None] = {}
    odd: list[str] = []
    is_map = "map" in body
    flags = set(body.get("flags", ()))
    for element in () if "timeout" in flags else body.get("elem", ()):
        key, value = element if is_map else (element, None)
        if text := _key_text(key):
            elements[text] = _value_text(value) if is_map else None
        else:
            odd.append(json.dumps(key, sort_keys=True))
    key_type = body["type"] if isinstance(body["type"], str) else " . ".join(map(str, body["type"]))
    value_type = body.get("map", "")
    # Flags that are not ours make the header differ, so that the set is made anew.
    extra = " ".join(sorted(flags - {"interval", "timeout"}))
    found = Set(
        key_type=f"{key_type} {extra}".strip(),
        value_type=value_type if isinstance(value_type, str) else json.dumps(value_type),
        elements=elements,
        interval="interval" in flags,
        timeout="timeout" in flags,
    )
    return found, odd


def _key_text(key: Any) -> str:
    """An element's key in the spelling that `nft_table` uses; empty for a form that it does not use."""
    match key:
        case str():
            # nft writes IPv4 in IPv6 with dots, Python does not.
            return str(ip_address(key)) if ":" in key and "." in key else key
        case int():
            return f"{key:#010x}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{_key_text(address)}/{length}"
        case {"concat": [first, *others]}:
            # The first is an address or an interface, which may be called like a protocol.
            rest = [_PROTOCOLS.get(part, part) if isinstance(part, str) else part for part in others]
            texts = [*map(_key_text, (first, *rest))]
            return " . ".join(texts) if all(texts) else ""
        case _:
            return ""


def _value_text(value: Any) -> str:
    """An element's value; one that is not ours keeps its JSON, which differs from all of ours."""
    match value:
        case {"goto": {"target": chain}}:
            return f"goto {chain}"
        case _:
            return _key_text(value) or json.dumps(value, sort_keys=True)
