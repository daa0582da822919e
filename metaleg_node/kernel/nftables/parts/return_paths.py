"""Return paths in nftables.

A reply of a return path meets `path_prerouting`, or `path_output` when this host sent it: one look-up picks the path's
chain, which lets pass what stays on the main table and marks the rest. What is known by its source meets
`path_prerouting_source` or `path_output_source` instead, after every DNAT.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.return_paths import ReturnPath, ReturnPaths
from metaleg_node.core.model import MARKING, Holder, Match, Network, Slot
from metaleg_node.kernel.elements import HOLDER, has_slot, network_of, network_text
from metaleg_node.kernel.nftables.table import (
    IP,
    Chain,
    Piece,
    Set,
    Table,
    base,
    chain,
    network_set,
    set_mark,
)

_NOTE = re.compile(rf"({HOLDER.pattern})(?: (0x[0-9a-f]{{1,8}}))?")


def render(part: ReturnPaths, firewall: Firewall) -> Piece:
    """Its sets and chains."""
    sets: dict[str, Set] = {}
    for version in IP:
        for match in part.match:
            sets[f"path_{match}{version}"] = _map(version, part.paths, match)
        sets[f"direct{version}"] = network_set(version, part.direct)
    return Piece(
        sets=sets,
        chains=_chains(part, firewall),
        marked={firewall.mark(slot): "harmless" for slot in part.paths},
    )


def _map(version: int, paths: Mapping[Slot, ReturnPath], match: Match) -> Set:
    elements: dict[str, str | None] = {
        network_text(network): f"goto {_chain_of(match, slot)}"
        for slot, path in paths.items()
        for network in path.networks
        if network.version == version
    }
    return Set(key_type=f"ipv{version}_addr", value_type="verdict", elements=elements, interval=True)


def _chains(part: ReturnPaths, firewall: Firewall) -> dict[str, Chain]:
    """Replies are looked at right after the priority of mangle, so that a mark which others restore there is not
    written over. Sources are looked at after every DNAT, as egress is: a request from a path's own network may go to a
    Service, and that its backend is inside the cluster only the translated destination tells."""
    chains: dict[str, Chain] = {}
    if Match.CONNTRACK in part.match:
        replies = ["ct direction reply jump path_replies"]
        chains["path_prerouting"] = chain(replies, hook=base("filter", "prerouting", -149))
        chains["path_output"] = chain(replies, hook=base("route", "output", -149))
        chains["path_replies"] = chain(_look_ups(part, Match.CONNTRACK))
    if Match.SOURCE in part.match:
        sources = _look_ups(part, Match.SOURCE)
        chains["path_prerouting_source"] = chain(sources, hook=base("filter", "prerouting", -95))
        chains["path_output_source"] = chain(sources, hook=base("route", "output", -95))
    for slot, path in part.paths.items():
        for match in part.match:
            chains[_chain_of(match, slot)] = chain(_rules(match, slot, path, firewall), note=_note(path))
    return chains


def _look_ups(part: ReturnPaths, match: Match) -> list[str]:
    """One for each family that has networks. Comparing with the first and the last address of all spares most packets
    the look-up, which costs ten times as much."""
    rules = []
    for version, ip in IP.items():
        networks = [n for path in part.paths.values() for n in path.networks if n.version == version]
        if networks:
            what = f"ct original {ip} daddr" if match is Match.CONNTRACK else f"{ip} saddr"
            first = min(networks, key=lambda n: int(n.network_address)).network_address
            last = max(networks, key=lambda n: int(n.broadcast_address)).broadcast_address
            span = f"{first}-{last}" if first != last else f"{first}"
            rules.append(f"{what} {span} {what} vmap @path_{match}{version}")
    return rules


_DIRECT = {
    # Before the translation is undone the destination may still be this node's own; the client is the one that asked.
    Match.CONNTRACK: tuple(f"ct original {ip} saddr @direct{v} accept" for v, ip in IP.items()),
    Match.SOURCE: tuple(f"{ip} daddr @direct{v} accept" for v, ip in IP.items()),
}


def _rules(match: Match, slot: Slot, path: ReturnPath, firewall: Firewall) -> list[str]:
    condition = [f"meta mark != {path.mark:#010x} accept"] if match is Match.SOURCE and path.mark is not None else []
    return [*condition, *_DIRECT[match], set_mark(slot, firewall)]


def _chain_of(match: Match, slot: Slot) -> str:
    """The chain that a return path's packets go to."""
    return f"path_{match}_{slot}"


def _note(path: ReturnPath) -> str:
    return str(path.holder) if path.mark is None else f"{path.holder} {path.mark:#x}"


# --- reading back ----------------------------------------------------------------------------------------------------


def understand(table: Table, mask: int) -> ReturnPaths:
    """What the table means, as far as it can be understood."""
    return ReturnPaths(
        paths=dict(_paths(table, mask)),
        match=frozenset(match for match in MARKING if f"path_{match}4" in table.sets),
        direct=table.networks("direct"),
    )


def _paths(table: Table, mask: int) -> Iterator[tuple[Slot, ReturnPath]]:
    networks: dict[Slot, set[Network]] = defaultdict(set)
    for match in MARKING:
        for version in IP:
            for key, verdict in table.elements(f"path_{match}{version}").items():
                slot, network = _slot_of(verdict or ""), network_of(key)
                if slot and network and has_slot(slot, mask):
                    networks[slot].add(network)
    for slot, found in networks.items():
        notes = (_NOTE.fullmatch(table.note(_chain_of(match, slot))) for match in MARKING)
        if note := next(filter(None, notes), None):
            mark = int(note[2], 16) if note[2] else None
            yield slot, ReturnPath(holder=Holder.read(note[1]), networks=frozenset(found), mark=mark)


def _slot_of(verdict: str) -> Slot | None:
    """The slot behind an element of a map; None when the verdict is not one of ours."""
    found = re.fullmatch(r"goto path_(?:conntrack|source)_(\d+)", verdict)
    return Slot(int(found[1])) if found else None
