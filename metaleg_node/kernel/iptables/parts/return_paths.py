"""Return paths in iptables.

What is known by its connection is marked in mangle, replies of this host included, which are routed anew then. What is
known by its source is judged by its destination, which is not translated yet where mangle sees it: of a connection's
first packet the end of nat PREROUTING sees it, later ones have it in their connection.

Where answers are to go back through the router that brought the request, a request meets `ROUTERS`: one rule for each
router, by its link-layer address, leads to the router's chain, and its slot is kept in the connection mark, under the
mark mask. In the path's chain one rule for each of its routers leads to the chain that marks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.return_paths import PathRouter, ReturnPath, ReturnPaths
from metaleg_node.core.model import FAMILIES, MARKING, Family, Holder, Match, Network, Slot
from metaleg_node.kernel.elements import HOLDER, has_slot, router_note, router_of
from metaleg_node.kernel.iptables.ruleset import (
    Hook,
    Piece,
    Rule,
    Ruleset,
    goto,
    jump,
    marked,
    network_set,
    set_mark,
    set_name,
    when,
)
from metaleg_node.kernel.packet_filter import answers_counter, requests_counter

_NOTE = re.compile(rf"({HOLDER.pattern})(?: (0x[0-9a-f]{{1,8}}))?")
_POOLS = "path-pools"
_FIRST = "-m conntrack ! --ctstatus CONFIRMED"


def render(part: ReturnPaths, firewall: Firewall, family: Family) -> Piece:
    """Its sets and chains for one family."""
    sets = {set_name(family, "direct"): network_set(family, part.direct)}
    for slot, path in part.paths.items():
        sets[set_name(family, f"path-{slot}")] = network_set(family, path.networks)
    chains: dict[tuple[str, str], Iterable[Rule | str]] = {}
    hooks: dict[tuple[str, str], Hook] = {}
    if Match.CONNTRACK in part.match:
        replies = [f"-m conntrack --ctdir REPLY {jump('PATHS')}"]
        chains |= {("mangle", "PATHS-IN"): replies, ("mangle", "PATHS-OUT"): replies}
        if pools := part.remembering(family):
            sets[set_name(family, _POOLS)] = network_set(family, pools)
            requests = f"-m conntrack --ctdir ORIGINAL {when(set_name(family, _POOLS), 'dst')} {goto('ROUTERS')}"
            chains["mangle", "PATHS-IN"] = [*replies, requests]
            chains["mangle", "ROUTERS"] = list(_requests(part, firewall, family))
        chains["mangle", "PATHS"] = list(_replies(part, family))
        hooks |= {("mangle", "PATHS-IN"): Hook(chain="PREROUTING"), ("mangle", "PATHS-OUT"): Hook(chain="OUTPUT")}
    if Match.SOURCE in part.match:
        sources = [f"{when(set_name(family, f'path-{n}'), 'src')} {goto(f'SOURCE-{n}')}" for n in sorted(part.paths)]
        first = [line.replace("SOURCE-", "FIRST-") for line in sources]
        chains["mangle", "SOURCES-IN"] = [f"{_FIRST} -j RETURN", *sources]
        chains["mangle", "SOURCES-OUT"] = sources
        chains["nat", "SOURCES-FIRST"] = first
        hooks |= {
            ("mangle", "SOURCES-IN"): Hook(chain="PREROUTING"),
            ("mangle", "SOURCES-OUT"): Hook(chain="OUTPUT"),
            ("nat", "SOURCES-FIRST"): Hook(chain="PREROUTING", last=True),
        }
    for slot in part.paths:
        chains |= _chains(part, slot, firewall, family)
    chains |= _router_chains(part, firewall, family)
    return Piece(
        sets=sets,
        chains=chains,
        hooks=hooks,
        guard=tuple(Rule(f"{marked(firewall.mark(slot), firewall)} {goto('UNMARK')}") for slot in sorted(part.holders)),
        notes={
            "paths": " ".join(sorted(part.match)),
            **{f"path-{slot}": _note(path) for slot, path in sorted(part.paths.items())},
            **{f"router-{slot}": router_note(router) for slot, router in sorted(part.routers.items())},
        },
    )


def _replies(part: ReturnPaths, family: Family) -> Iterator[str]:
    for slot, path in sorted(part.paths.items()):
        for network in sorted((n for n in path.networks if n.version == family), key=str):
            yield f"{replies_of(network)} {goto(f'PATH-{slot}')}"


def replies_of(network: Network) -> str:
    """What the rule about replies from a network begins with."""
    return f"-m conntrack --ctorigdst {network}"


def _chains(part: ReturnPaths, slot: Slot, firewall: Firewall, family: Family) -> Mapping[tuple[str, str], list[str]]:
    path = part.paths[slot]
    direct = sorted((n for n in part.direct if n.version == family), key=str)
    chains: dict[tuple[str, str], list[str]] = {}
    mark = set_mark(firewall.mark(slot), firewall)
    back = [f"{_came_by(first, firewall)} {goto(f'ROUTER-{own}')}" for first, own in _routers_of(slot, part, family)]
    if Match.CONNTRACK in part.match:
        # Before the translation is undone the destination may still be this node's own; the client is the one that
        # asked.
        spared = [f"-m conntrack --ctorigsrc {network} -j RETURN" for network in direct]
        chains["mangle", f"PATH-{slot}"] = [*spared, *back, mark]
    if Match.SOURCE in part.match:
        condition = [] if path.mark is None else [f"-m mark ! --mark {path.mark:#x} -j RETURN"]
        near = [*condition, f"{when(set_name(family, 'direct'), 'dst')} -j RETURN"]
        translated = [
            f"-m conntrack --ctdir {way} {side} {network} -j RETURN"
            for network in direct
            for way, side in (("ORIGINAL", "--ctreplsrc"), ("REPLY", "--ctorigsrc"))
        ]
        answers = [f"-m conntrack --ctdir REPLY {line}" for line in back]
        chains["mangle", f"SOURCE-{slot}"] = [*near, *translated, *answers, mark]
        chains["nat", f"FIRST-{slot}"] = [*near, mark]
    return chains


def _note(path: ReturnPath) -> str:
    return str(path.holder) if path.mark is None else f"{path.holder} {path.mark:#x}"


# --- routers ---------------------------------------------------------------------------------------------------------


def _routers_of(path: Slot, part: ReturnPaths, family: Family) -> list[tuple[Slot, Slot]]:
    """Of a path's routers: the slot that connections remember, and the router's own."""
    own = part.sorted_out().get(path, {})
    return [(first, slot) for first, slot in own.items() if part.routers[slot].family == family]


def _came_by(slot: Slot, firewall: Firewall) -> str:
    """A connection remembers this router. Others may keep something in the other bits."""
    return f"-m connmark --mark {firewall.mark(slot):#x}/{firewall.mark_mask:#x}"


def _remember(value: int, firewall: Firewall) -> str:
    return f"-j CONNMARK --set-xmark {value:#x}/{firewall.mark_mask:#x}"


def _first_seen(part: ReturnPaths, family: Family) -> dict[Slot, PathRouter]:
    return {slot: router for slot, router in part.first_seen().items() if router.family == family}


_RELATED = "-m conntrack --ctstate RELATED -j RETURN"
"""An ICMP error about an answer may come from anywhere, and has no business with a connection's router."""


def _requests(part: ReturnPaths, firewall: Firewall, family: Family) -> Iterator[str]:
    for slot, router in _first_seen(part, family).items():
        yield f"-i {router.interface} -m mac --mac-source {router.link_address} {goto(f'FROM-{slot}')}"
    # By somebody else; a connection that had come by a router until now does so no more.
    yield f"-m connmark --mark 0x0/{firewall.mark_mask:#x} -j RETURN"
    yield _RELATED
    yield _remember(0, firewall)
    yield goto("UNMARK")


def _router_chains(part: ReturnPaths, firewall: Firewall, family: Family) -> dict[tuple[str, str], list[Rule | str]]:
    """Who restores packet marks from connection marks restores ours, too: no request must be routed by it."""
    chains: dict[tuple[str, str], list[Rule | str]] = {}
    for slot in _first_seen(part, family):
        counter = requests_counter(slot)
        chains["mangle", f"FROM-{slot}"] = [
            Rule(f"{_came_by(slot, firewall)} {goto('UNMARK')}", counter),
            _RELATED,
            Rule(_remember(firewall.mark(slot), firewall), counter),
            goto("UNMARK"),
        ]
    for slot, router in part.routers.items():
        if router.family == family:
            chains["mangle", f"ROUTER-{slot}"] = [Rule(set_mark(firewall.mark(slot), firewall), answers_counter(slot))]
    return chains


# --- reading back ----------------------------------------------------------------------------------------------------


def understand(ruleset: Ruleset, mask: int) -> ReturnPaths:
    """What is held, as far as it can be understood."""
    named = ruleset.notes.get("paths", "").split()
    paths = dict(_paths(ruleset, mask))
    return ReturnPaths(
        paths=paths,
        routers={slot: router for slot, router in _routers(ruleset, mask) if router.path in paths},
        match=frozenset(match for match in MARKING if match in named),
        direct=ruleset.networks("direct"),
    )


def _paths(ruleset: Ruleset, mask: int) -> Iterator[tuple[Slot, ReturnPath]]:
    for key, text in ruleset.notes.items():
        number, note = re.fullmatch(r"path-(\d+)", key), _NOTE.fullmatch(text)
        if number and note and has_slot(slot := Slot(int(number[1])), mask):
            networks = (n for v in FAMILIES for n in ruleset.networks_of(set_name(v, f"path-{slot}")))
            mark = int(note[2], 16) if note[2] else None
            yield slot, ReturnPath(holder=Holder.read(note[1]), networks=frozenset(networks), mark=mark)


def _routers(ruleset: Ruleset, mask: int) -> Iterator[tuple[Slot, PathRouter]]:
    for key, text in ruleset.notes.items():
        number, router = re.fullmatch(r"router-(\d+)", key), router_of(text)
        if number and router and has_slot(slot := Slot(int(number[1])), mask):
            yield slot, router
