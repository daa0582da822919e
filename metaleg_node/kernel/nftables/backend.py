"""The nftables backend: reads our table, works out the difference to the table that should be, commits it at once.

Only `table inet metaleg_node` is ever read or written. Every change is one transaction of `nft -f -`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from metaleg_node.core.model import (
    Address,
    DestinationFilter,
    EgressPod,
    Firewall,
    Match,
    Network,
    NodeName,
    ReturnPath,
    Slot,
    Treatment,
)
from metaleg_node.kernel import process
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.nftables.table import (
    FAMILY,
    NAME,
    Chain,
    Set,
    Table,
    gateway_of,
    note_of,
    path_chain,
    path_of,
    pod_of,
    render,
)

_TABLE = f"{FAMILY} {NAME}"
_MOVED_SECONDS = 30
"""How long the former gateway may still send answers: until it, and the router, know of the change."""
_HOLDER = re.compile(r"[-A-Za-z0-9._:]{1,253}")
"""Names of nodes and of return paths, as they stand in comments."""
_PATH_NOTE = re.compile(rf"({_HOLDER.pattern})(?: (0x[0-9a-f]{{1,8}}))?")
_PLAIN = re.compile(r"[-A-Za-z0-9_.:/@+ ]*")
"""All that keys, values and comments of ours consist of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was found: the table (None: there is none) and, as far as it can be understood, what it means."""

    table: Table | None
    firewall: Firewall | None


ABSENT = Observed(table=None, firewall=None)


def observe() -> Observed:
    """Reads our table. Raises KernelError."""
    done = process.run(["nft", "-j", "list", "table", FAMILY, NAME])
    if done.returncode:
        if "No such file or directory" in done.stderr:
            return ABSENT
        raise KernelError(f"cannot list table {_TABLE}: {_complaint(done.stderr)}")
    try:
        table = _parse(json.loads(done.stdout)["nftables"])
    except ValueError:
        # nft 1.0.6 prints rubbish for the flags of a table, which somebody else must have set.
        table = Table(sets={}, chains={}, strange=frozenset({"table that nft cannot list as JSON"}))
    return Observed(table=table, firewall=_understand(table))


def damage(observed: Observed) -> tuple[str, ...]:
    """The chains, sets and counters that are not as this program makes them for what the table means: others changed
    them, or an older version made them."""
    if observed.table is None or observed.firewall is None:
        return ()
    if not observed.firewall.mark_mask:
        return ("chain prerouting", *sorted(observed.table.strange))
    here, ours = observed.table, render(observed.firewall)
    chains = sorted(n for n in {*here.chains, *ours.chains} if _differ(here.chains.get(n), ours.chains.get(n)))
    sets = sorted(n for n in {*here.sets, *ours.sets} if here.sets.get(n) != ours.sets.get(n))
    counters = sorted(here.counters ^ ours.counters)
    return (
        *(f"chain {n}" for n in chains),
        *(f"set {n}" for n in sets),
        *(f"counter {n}" for n in counters),
        *sorted(here.strange),
    )


def apply(observed: Observed, desired: Firewall | None) -> tuple[Observed, bool]:
    """Makes the kernel hold `desired`, given what was observed; one transaction, none when nothing differs.

    Returns what the kernel holds now, and whether there was a transaction. Raises KernelError; the kernel is then
    unchanged.
    """
    after = render(desired) if desired else None
    script = transaction(observed.table, after)
    if script:
        script += "".join(_remember_moved(observed.firewall, desired))
        done = process.run(["nft", "-f", "-"], stdin=script)
        if done.returncode:
            raise KernelError(f"nft refused the change of table {_TABLE}: {_complaint(done.stderr)}")
    return Observed(table=after, firewall=desired), bool(script)


def counters() -> dict[str, tuple[int, int]]:
    """(packets, bytes) of each of our counters; empty while there is no table. Raises KernelError."""
    done = process.run(["nft", "-j", "list", "counters", "table", FAMILY, NAME])
    if done.returncode:
        return {}
    found = (item.get("counter") for item in json.loads(done.stdout)["nftables"])
    return {c["name"]: (c["packets"], c["bytes"]) for c in found if c and c["table"] == NAME and c["family"] == FAMILY}


def _remember_moved(before: Firewall | None, after: Firewall | None) -> Iterator[str]:
    """For a while answers to the connections that these pods had until now make no new entries; see `nft_table`."""
    if before is None or after is None:
        return
    for address, old in before.pods.items():
        new = after.pods.get(address)
        bound = old.local and old.treatment in (Treatment.STEER, Treatment.SNAT)
        if bound and (new is None or (new.treatment, new.source) != (old.treatment, old.source)):
            name, key = f"moved{address.version}", _plain(str(address))
            fresh = f"add element {_TABLE} {name} {{ {key} timeout {_MOVED_SECONDS}s }}\n"
            # An element that is there keeps its old time limit; it must go for the new one, and exist to go.
            yield f"{fresh}delete element {_TABLE} {name} {{ {key} }}\n{fresh}"


# --- the difference as a script --------------------------------------------------------------------------------------


def transaction(before: Table | None, after: Table | None) -> str:
    """The nft script that turns one table into the other; empty when they are the same."""
    if after is None:
        return f"delete table {_TABLE}\n" if before else ""
    if before is None or _must_rebuild(before, after):
        return "\n".join([f"add table {_TABLE}", f"delete table {_TABLE}", *_create(after)]) + "\n"
    lines = [*_grow(before, after), *_elements(before, after), *_shrink(before, after)]
    return "\n".join(lines) + "\n" if lines else ""


def _must_rebuild(before: Table, after: Table) -> bool:
    """A base chain's hook and a set's type cannot be changed in place, and what is not ours has no other way to go."""
    chains = any(before.chains[n].hook != c.hook for n, c in after.chains.items() if n in before.chains)
    sets = any(before.sets[n].header != s.header for n, s in after.sets.items() if n in before.sets)
    return chains or sets or before.counters != after.counters or bool(before.strange)


def _create(after: Table) -> Iterator[str]:
    yield f"add table {_TABLE}"
    yield from (f"add counter {_TABLE} {name}" for name in sorted(after.counters))
    yield from _grow(Table(sets={}, chains={}), after)
    for name, wanted in after.sets.items():
        yield from _add_elements(name, wanted.elements)


def _grow(before: Table, after: Table) -> Iterator[str]:
    """New sets and chains, and the rules of chains that differ; all chains first, since rules jump between them, and
    since nft sends the elements of a new interval map with the map, before what stands after that."""
    changed = {n: c for n, c in after.chains.items() if _differ(before.chains.get(n), c)}
    for name, chain in changed.items():
        yield f"add chain {_TABLE} {name}" + (f" {{ {chain.hook} }}" if chain.hook else "")
    yield from (_declare_set(name, wanted) for name, wanted in after.sets.items() if name not in before.sets)
    yield from (f"flush chain {_TABLE} {name}" for name in changed if name in before.chains)
    for name, chain in changed.items():
        for rule, comment in zip(chain.rules, chain.comments, strict=True):
            yield f'add rule {_TABLE} {name} {rule} comment "{_plain(comment)}"'


def _differ(before: Chain | None, after: Chain | None) -> bool:
    """Whether two chains differ; of an observed one the rules are known by their comments only."""
    if before is None or after is None:
        return before is not after
    return (before.hook, before.comments) != (after.hook, after.comments)


def _declare_set(name: str, wanted: Set) -> str:
    what, types = ("map", f"{wanted.key_type} : {wanted.value_type}") if wanted.value_type else ("set", wanted.key_type)
    flags = " flags interval;" if wanted.interval else " flags timeout;" if wanted.timeout else ""
    return f"add {what} {_TABLE} {name} {{ type {types};{flags} }}"


def _elements(before: Table, after: Table) -> Iterator[str]:
    """Removes before it adds: an element with another value must go before the new one can come."""
    for name, wanted in after.sets.items():
        have = before.sets[name].elements if name in before.sets else {}
        if have == wanted.elements:
            continue
        stale = {k: v for k, v in have.items() if wanted.elements.get(k, "") != v}
        fresh = {k: v for k, v in wanted.elements.items() if have.get(k, "") != v}
        if stale:
            yield f"delete element {_TABLE} {name} {{"
            yield from (f"{_key(name, key)}," for key in stale)
            yield "}"
        yield from _add_elements(name, fresh)


def _add_elements(name: str, elements: Mapping[str, str | None]) -> Iterator[str]:
    """One element a line, so that a complaint of nft names the one it means."""
    if elements:
        yield f"add element {_TABLE} {name} {{"
        for key, value in elements.items():
            yield f"{_key(name, key)} : {_plain(value)}," if value else f"{_key(name, key)},"
        yield "}"


def _key(name: str, key: str) -> str:
    return f'"{_plain(key)}"' if name in ("node_interfaces", "checked") else _plain(key)


def _plain(text: str) -> str:
    """The text, if it cannot mean anything else to nft. Raises KernelError."""
    if not _PLAIN.fullmatch(text):
        raise KernelError(f"{text[:60]!r} is not passed to nft: no address, interface or node is written so")
    return text


def _shrink(before: Table, after: Table) -> Iterator[str]:
    """Chains and sets that are no longer needed; nothing refers to a chain once all of them are empty."""
    chains = [name for name in before.chains if name not in after.chains]
    sets = {name: "map" if s.value_type else "set" for name, s in before.sets.items() if name not in after.sets}
    yield from (f"flush {what} {_TABLE} {name}" for name, what in sets.items())
    yield from (f"flush chain {_TABLE} {name}" for name in chains)
    yield from (f"delete chain {_TABLE} {name}" for name in chains)
    yield from (f"delete {what} {_TABLE} {name}" for name, what in sets.items())


# --- reading ---------------------------------------------------------------------------------------------------------


def _parse(items: Iterable[dict[str, Any]]) -> Table:
    """The table behind `nft -j list table`; the JSON's shape is described in libnftables-json(5)."""
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
    key_type = body["type"] if isinstance(body["type"], str) else json.dumps(body["type"])
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
        case _:
            return ""


def _value_text(value: Any) -> str:
    """An element's value; one that is not ours keeps its JSON, which differs from all of ours."""
    match value:
        case {"goto": {"target": chain}}:
            return f"goto {chain}"
        case _:
            return _key_text(value) or json.dumps(value, sort_keys=True)


# --- understanding ---------------------------------------------------------------------------------------------------


def _understand(table: Table) -> Firewall:
    """The firewall that a table means, always one that can be rendered. What was altered by others beyond understanding
    is left out; the difference to the rendered table shows it all the same."""
    note = re.fullmatch(r"(0x[0-9a-f]+) (reject|drop) (preserve|random) ([01])", _note(table, "prerouting"))
    mask, hold, ports, invalid = note.groups() if note else ("0x0", "reject", "preserve", "0")
    keys = {name.partition("_f")[2] for name in table.chains if name.startswith("filter_f")}
    return Firewall(
        mark_mask=int(mask, 16),
        pods=dict(_pods(table, int(mask, 16), keys)),
        gateways=dict(_gateways(table)),
        sources=frozenset(_as_addresses(table, "sources")),
        next_hops=frozenset(_as_addresses(table, "next_hops")),
        inside=frozenset(_as_networks(table, "inside")),
        served=frozenset(_ports(table)),
        filters={key: _as_filter(table, key) for key in keys},
        pod_networks=frozenset(_as_networks(table, "pod_networks")),
        node_interfaces=frozenset(_elements_of(table, "node_interfaces")),
        node_addresses=frozenset(_as_addresses(table, "node_addresses")),
        hold=hold,
        source_ports=ports,
        drop_invalid_input=invalid == "1",
        return_paths=dict(_return_paths(table, int(mask, 16))),
        match=_matches(table),
        direct=frozenset(_as_networks(table, "direct")),
        checked=frozenset(_elements_of(table, "checked")),
        spared=frozenset(_as_networks(table, "spared")),
    )


def _matches(table: Table) -> frozenset[Match]:
    return frozenset(match for match in Match if f"path_{match}4" in table.sets)


def _return_paths(table: Table, mask: int) -> Iterator[tuple[Slot, ReturnPath]]:
    networks: dict[Slot, set[Network]] = defaultdict(set)
    for match in Match:
        for version in (4, 6):
            for key, verdict in _elements_of(table, f"path_{match}{version}").items():
                slot, network = path_of(verdict or ""), _network(key)
                if slot and network and _has_slot(slot, mask):
                    networks[slot].add(network)
    for slot, found in networks.items():
        notes = (_PATH_NOTE.fullmatch(_note(table, path_chain(match, slot))) for match in Match)
        if note := next(filter(None, notes), None):
            mark = int(note[2], 16) if note[2] else None
            yield slot, ReturnPath(holder=NodeName(note[1]), networks=frozenset(found), mark=mark)


def _note(table: Table, chain: str) -> str:
    return note_of(table.chains[chain]) if chain in table.chains else ""


def _elements_of(table: Table, name: str) -> Mapping[str, str | None]:
    return table.sets[name].elements if name in table.sets else {}


def _pods(table: Table, mask: int, filters: Collection[str]) -> Iterator[tuple[Address, EgressPod]]:
    for version in (4, 6):
        sources = _elements_of(table, f"snat{version}")
        local = _elements_of(table, f"local_pods{version}")
        for key, verdict in _elements_of(table, f"pods{version}").items():
            source = sources.get(key)
            if address := _address(key):
                pod = pod_of(verdict or "", _address(source) if source else None, local=key in local)
                if pod and _is_sound(pod, mask, filters):
                    yield address, pod


def _is_sound(pod: EgressPod, mask: int, filters: Collection[str]) -> bool:
    """Whether there can be such a pod: with a slot if its treatment needs one, and with a filter that exists."""
    if pod.filter and pod.filter not in filters:
        return False
    if pod.treatment not in (Treatment.STEER, Treatment.SNAT):
        return pod.slot is None
    return pod.slot is not None and _has_slot(pod.slot, mask)


def _has_slot(slot: Slot, mask: int) -> bool:
    return mask > 0 and 0 < slot <= mask // (mask & -mask)


def _gateways(table: Table) -> Iterator[tuple[Slot, NodeName]]:
    for chain in table.chains:
        name = _note(table, chain)
        if (found := gateway_of(chain)) and _HOLDER.fullmatch(name):
            yield found[1], NodeName(name)


def _ports(table: Table) -> Iterator[int]:
    numbers = (int(key, 16) for key in _elements_of(table, "served") if key.startswith("0x"))
    return (number for number in numbers if 0 < number <= 0xFFFF)


def _as_addresses(table: Table, name: str) -> Iterator[Address]:
    for version in (4, 6):
        yield from filter(None, map(_address, _elements_of(table, f"{name}{version}")))


def _as_networks(table: Table, name: str, suffix: str = "") -> Iterator[Network]:
    for version in (4, 6):
        yield from filter(None, map(_network, _elements_of(table, f"{name}{version}{suffix}")))


def _as_filter(table: Table, key: str) -> DestinationFilter:
    return DestinationFilter(
        exclude=frozenset(_as_networks(table, "exclude", f"_f{key}")),
        only=frozenset(_as_networks(table, "only", f"_f{key}")),
    )


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


@lru_cache(1 << 14)
def _network(text: str) -> Network | None:
    """Remembered: every comparison reads the same thousand networks again."""
    try:
        return ip_network(text)
    except ValueError:
        return None


def _complaint(stderr: str) -> str:
    """The first complaint of nft, with the line it points at, or what capability is missing."""
    text = " ".join(line.strip() for line in stderr.strip().splitlines()[:2])[:500]
    if "Operation not permitted" in text:
        return "the capability CAP_NET_ADMIN is missing: run as root, or grant it to the service"
    return text or "no reason was given"
