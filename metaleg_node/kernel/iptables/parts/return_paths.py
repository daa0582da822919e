"""Return paths in iptables.

What is known by its connection is marked in mangle, replies of this host included, which are routed anew then. What is
known by its source is judged by its destination, which is not translated yet where mangle sees it: of a connection's
first packet the end of nat PREROUTING sees it, later ones have it in their connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.return_paths import ReturnPath, ReturnPaths
from metaleg_node.core.model import FAMILIES, MARKING, Family, Holder, Match, Network, Slot
from metaleg_node.kernel.elements import HOLDER, has_slot
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

_NOTE = re.compile(rf"({HOLDER.pattern})(?: (0x[0-9a-f]{{1,8}}))?")
_FIRST = "-m conntrack ! --ctstatus CONFIRMED"


def render(part: ReturnPaths, firewall: Firewall, family: Family) -> Piece:
    """Its sets and chains for one family."""
    sets = {set_name(family, "direct"): network_set(family, part.direct)}
    for slot, path in part.paths.items():
        sets[set_name(family, f"path-{slot}")] = network_set(family, path.networks)
    chains: dict[tuple[str, str], list[str]] = {}
    hooks: dict[tuple[str, str], Hook] = {}
    if Match.CONNTRACK in part.match:
        replies = [f"-m conntrack --ctdir REPLY {jump('PATHS')}"]
        chains |= {("mangle", "PATHS-IN"): replies, ("mangle", "PATHS-OUT"): replies}
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
    return Piece(
        sets=sets,
        chains=chains,
        hooks=hooks,
        guard=tuple(Rule(f"{marked(firewall.mark(slot), firewall)} {goto('UNMARK')}") for slot in sorted(part.paths)),
        notes={
            "paths": " ".join(sorted(part.match)),
            **{f"path-{slot}": _note(path) for slot, path in sorted(part.paths.items())},
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
    if Match.CONNTRACK in part.match:
        # Before the translation is undone the destination may still be this node's own; the client is the one that
        # asked.
        spared = [f"-m conntrack --ctorigsrc {network} -j RETURN" for network in direct]
        chains["mangle", f"PATH-{slot}"] = [*spared, mark]
    if Match.SOURCE in part.match:
        condition = [] if path.mark is None else [f"-m mark ! --mark {path.mark:#x} -j RETURN"]
        near = [*condition, f"{when(set_name(family, 'direct'), 'dst')} -j RETURN"]
        translated = [
            f"-m conntrack --ctdir {way} {side} {network} -j RETURN"
            for network in direct
            for way, side in (("ORIGINAL", "--ctreplsrc"), ("REPLY", "--ctorigsrc"))
        ]
        chains["mangle", f"SOURCE-{slot}"] = [*near, *translated, mark]
        chains["nat", f"FIRST-{slot}"] = [*near, mark]
    return chains


def _note(path: ReturnPath) -> str:
    return str(path.holder) if path.mark is None else f"{path.holder} {path.mark:#x}"


# --- reading back ----------------------------------------------------------------------------------------------------


def understand(ruleset: Ruleset, mask: int) -> ReturnPaths:
    """What is held, as far as it can be understood."""
    named = ruleset.notes.get("paths", "").split()
    return ReturnPaths(
        paths=dict(_paths(ruleset, mask)),
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
