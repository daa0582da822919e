"""Return paths in nftables.

A reply of a return path meets `path_prerouting`, or `path_output` when this host sent it: one look-up picks the path's
chain, which lets pass what stays on the main table and marks the rest. What is known by its source meets
`path_prerouting_source` or `path_output_source` instead, after every DNAT.

Where answers are to go back through the router that brought the request, a request meets `path_requests`: one look-up
of its link-layer source picks the chain of the router, whose slot the connection mark then keeps, under the mark mask.
In the path's chain one more look-up, of the connection mark, picks the router's chain instead of the path's own mark.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.return_paths import PathRouter, ReturnPath, ReturnPaths
from metaleg_node.core.model import MARKING, Holder, Match, Network, Slot
from metaleg_node.kernel.elements import HOLDER, has_slot, network_of, network_text, router_note, router_of
from metaleg_node.kernel.nftables.table import (
    IP,
    Chain,
    Piece,
    Set,
    Table,
    base,
    by_mark,
    chain,
    network_set,
    set_mark,
    unmark,
)
from metaleg_node.kernel.packet_filter import answers_counter, requests_counter

_NOTE = re.compile(rf"({HOLDER.pattern})(?: (0x[0-9a-f]{{1,8}}))?")


def render(part: ReturnPaths, firewall: Firewall) -> Piece:
    """Its sets and chains."""
    sets: dict[str, Set] = {}
    for version in IP:
        for match in part.match:
            sets[f"path_{match}{version}"] = _map(version, part.paths, match)
        sets[f"direct{version}"] = network_set(version, part.direct)
    return Piece(
        sets=sets | _router_sets(part, firewall),
        chains=_chains(part, firewall) | _router_chains(part, firewall),
        counters=frozenset(name(slot) for slot in part.routers for name in (requests_counter, answers_counter)),
        marked={firewall.mark(slot): "harmless" for slot in (*part.paths, *part.routers)},
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
        requests = [f"ct direction original {span} goto path_requests{v}" for v, span in _request_spans(part).items()]
        chains["path_prerouting"] = chain([*replies, *requests], hook=base("filter", "prerouting", -149))
        chains["path_output"] = chain(replies, hook=base("route", "output", -149))
        chains["path_replies"] = chain(_look_ups(part, Match.CONNTRACK))
    if Match.SOURCE in part.match:
        sources = _look_ups(part, Match.SOURCE)
        chains["path_prerouting_source"] = chain(sources, hook=base("filter", "prerouting", -95))
        chains["path_output_source"] = chain(sources, hook=base("route", "output", -95))
    for slot, path in part.paths.items():
        for match in part.match:
            rules = _rules(match, slot, path, firewall, remembered=slot in part.sorted_out())
            chains[_chain_of(match, slot)] = chain(rules, note=_note(path))
    return chains


def _look_ups(part: ReturnPaths, match: Match) -> list[str]:
    """One for each family that has networks. Comparing with the first and the last address of all spares most packets
    the look-up, which costs ten times as much."""
    rules = []
    for version, ip in IP.items():
        networks = [n for path in part.paths.values() for n in path.networks if n.version == version]
        if networks:
            what = f"ct original {ip} daddr" if match is Match.CONNTRACK else f"{ip} saddr"
            rules.append(f"{what} {_span(networks)} {what} vmap @path_{match}{version}")
    return rules


def _span(networks: Collection[Network]) -> str:
    """From the first to the last address of all."""
    first = min(networks, key=lambda n: int(n.network_address)).network_address
    last = max(networks, key=lambda n: int(n.broadcast_address)).broadcast_address
    return f"{first}-{last}" if first != last else f"{first}"


_DIRECT = {
    # Before the translation is undone the destination may still be this node's own; the client is the one that asked.
    Match.CONNTRACK: tuple(f"ct original {ip} saddr @direct{v} accept" for v, ip in IP.items()),
    Match.SOURCE: tuple(f"{ip} daddr @direct{v} accept" for v, ip in IP.items()),
}


def _rules(match: Match, slot: Slot, path: ReturnPath, firewall: Firewall, *, remembered: bool) -> list[str]:
    condition = [f"meta mark != {path.mark:#010x} accept"] if match is Match.SOURCE and path.mark is not None else []
    reply = "ct direction reply " if match is Match.SOURCE else ""
    back = [f"{reply}{_came_by(firewall)} vmap @path_back_{slot}"] if remembered else []
    return [*condition, *_DIRECT[match], *back, set_mark(slot, firewall)]


def _chain_of(match: Match, slot: Slot) -> str:
    """The chain that a return path's packets go to."""
    return f"path_{match}_{slot}"


def _note(path: ReturnPath) -> str:
    return str(path.holder) if path.mark is None else f"{path.holder} {path.mark:#x}"


# --- routers ---------------------------------------------------------------------------------------------------------


def _came_by(firewall: Firewall) -> str:
    """What a connection remembers of its router. Others may keep something in the other bits."""
    return f"ct mark & {firewall.mark_mask:#010x}"


def _request_spans(part: ReturnPaths) -> dict[int, str]:
    found = {version: part.remembering(version) for version in IP}
    return {version: f"{IP[version]} daddr {_span(networks)}" for version, networks in found.items() if networks}


def _router_sets(part: ReturnPaths, firewall: Firewall) -> dict[str, Set]:
    sets: dict[str, Set] = {}
    firsts = part.first_seen()
    for version in _request_spans(part):
        known: dict[str, str | None] = {
            f"{router.interface} . {router.link_address}": f"goto path_from_{slot}"
            for slot, router in firsts.items()
            if router.family == version
        }
        sets[f"path_routers{version}"] = Set(key_type="ifname . ether_addr", value_type="verdict", elements=known)
        sets[f"path_pools{version}"] = network_set(version, part.remembering(version))
    for path, own in part.sorted_out().items():
        sets[f"path_back_{path}"] = by_mark(
            {firewall.mark(first): f"path_router_{slot}" for first, slot in own.items()}
        )
    return sets


def _router_chains(part: ReturnPaths, firewall: Firewall) -> dict[str, Chain]:
    chains: dict[str, Chain] = {}
    for version in _request_spans(part):
        chains[f"path_requests{version}"] = chain(
            [
                f"iifname . ether saddr vmap @path_routers{version}",
                # By somebody else; a connection that had come by a router until now does so no more.
                f"{_came_by(firewall)} == 0 accept",
                *_to_pools(version),
                f"{_remember(0, firewall)} {unmark(firewall)}",
            ]
        )
    for slot, router in part.first_seen().items():
        chains[f"path_from_{slot}"] = chain(_from_rules(slot, router, firewall))
    for slot, router in part.routers.items():
        rules = [f'counter name "{answers_counter(slot)}"', set_mark(slot, firewall)]
        chains[f"path_router_{slot}"] = chain(rules, note=router_note(router))
    return chains


def _to_pools(version: int) -> tuple[str, str]:
    """What has no business with a connection's router. An ICMP error about an answer may come from anywhere."""
    return f"{IP[version]} daddr != @path_pools{version} accept", "ct state related accept"


def _from_rules(slot: Slot, router: PathRouter, firewall: Firewall) -> list[str]:
    """Only the first request of a connection, and the first that comes by this router, is looked at any further. Who
    restores packet marks from connection marks restores ours, too: no request must be routed by it."""
    counted = f'counter name "{requests_counter(slot)}"'
    return [
        f"{_came_by(firewall)} == {firewall.mark(slot):#010x} {counted} {unmark(firewall)} accept",
        *_to_pools(router.family),
        f"{counted} {_remember(firewall.mark(slot), firewall)} {unmark(firewall)}",
    ]


def _remember(mark: int, firewall: Firewall) -> str:
    keep = ~firewall.mark_mask & 0xFFFFFFFF
    return f"ct mark set ct mark & {keep:#010x} | {mark:#010x}" if mark else f"ct mark set ct mark & {keep:#010x}"


# --- reading back ----------------------------------------------------------------------------------------------------


def understand(table: Table, mask: int) -> ReturnPaths:
    """What the table means, as far as it can be understood."""
    paths = dict(_paths(table, mask))
    return ReturnPaths(
        paths=paths,
        routers={slot: router for slot, router in _routers(table, mask) if router.path in paths},
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


def _routers(table: Table, mask: int) -> Iterator[tuple[Slot, PathRouter]]:
    for name in table.chains:
        named = re.fullmatch(r"path_router_(\d+)", name)
        router = router_of(table.note(name))
        if named and router and has_slot(slot := Slot(int(named[1])), mask):
            yield slot, router


def _slot_of(verdict: str) -> Slot | None:
    """The slot behind an element of a map; None when the verdict is not one of ours."""
    found = re.fullmatch(r"goto path_(?:conntrack|source)_(\d+)", verdict)
    return Slot(int(found[1])) if found else None
