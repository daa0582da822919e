"""What iptables and ipset hold for a given `Firewall`, and back: the parts, put together.

What all of them share is here: the guard, which looks at marked packets before anybody translates their source, and a
chain that no packet comes to, whose comments are the notes: with which mask and by which version all this was made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import metaleg_node
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.firewall.external_ip import ExternalIp
from metaleg_node.core.firewall.invalid_input import InvalidInput
from metaleg_node.core.firewall.local_answers import LocalAnswers
from metaleg_node.core.firewall.new_pods import NewPods
from metaleg_node.core.firewall.part import Firewall, Part
from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.firewall.reverse_path import ReversePathCheck
from metaleg_node.core.firewall.transit import Transit
from metaleg_node.core.model import CONNTRACK_LABEL, FAMILIES, Family
from metaleg_node.kernel.iptables.parts import (
    egress,
    external_ip,
    invalid_input,
    local_answers,
    new_pods,
    return_paths,
    reverse_path,
    transit,
)
from metaleg_node.kernel.iptables.ruleset import (
    CHAINS,
    Chain,
    Hook,
    Jumps,
    Piece,
    Place,
    Ruleset,
    Set,
    address_set,
    chain,
    drop,
    goto,
    marked,
    notes_chain,
    set_mark,
    set_name,
)

ABOUT = Place(4, "mangle", f"{CHAINS}ABOUT")
"""The chain with the notes."""
_MADE = re.compile(r"(0x[0-9a-f]{1,8}) (\S+)")


def _nothing(_before: Any, _after: Any) -> Iterator[str]:
    return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendering:
    """How this packet filter holds one kind of part. `also` gives further elements that a change of it needs; `needs`
    are kinds whose sets its rules ask, too."""

    render: Callable[[Any, Firewall, Family], Piece]
    understand: Callable[[Ruleset, int], Part]
    also: Callable[[Any, Any], Iterator[str]] = _nothing
    needs: tuple[type[Part], ...] = ()


_PARTS: dict[type[Part], _Rendering] = {
    # In this order their chains are entered from one chain of the system.
    ReversePathCheck: _Rendering(render=reverse_path.render, understand=reverse_path.understand),
    InvalidInput: _Rendering(render=invalid_input.render, understand=invalid_input.understand),
    LocalAnswers: _Rendering(render=local_answers.render, understand=local_answers.understand),
    ExternalIp: _Rendering(render=external_ip.render, understand=external_ip.understand),
    ReturnPaths: _Rendering(render=return_paths.render, understand=return_paths.understand),
    Egress: _Rendering(render=egress.render, understand=egress.understand, also=egress.also, needs=(LocalAnswers,)),
    Transit: _Rendering(render=transit.render, understand=transit.understand, needs=(Egress, LocalAnswers)),
    NewPods: _Rendering(render=new_pods.render, understand=new_pods.understand, needs=(Egress, LocalAnswers, Transit)),
}


def render(firewall: Firewall) -> Ruleset:
    """What is to be held for a firewall."""
    present = {type(part) for part in firewall.parts}
    needed = present | {kind for one in present for kind in _PARTS[one].needs}
    kinds = [kind for kind in _PARTS if kind in needed]
    # By this set it is known that there is anything of ours, whatever parts there are.
    sets: dict[str, Set] = {set_name(4, "here"): address_set(4, ())}
    chains: dict[Place, Chain] = {}
    first: dict[Place, Jumps] = {}
    last: dict[Place, Jumps] = {}
    notes = {"made": f"{firewall.mark_mask:#x} {metaleg_node.__version__}"}
    for family in FAMILIES:
        pieces = [_PARTS[kind].render(firewall.part(kind), firewall, family) for kind in kinds]
        for piece in (*pieces, _guard(pieces, firewall, hooked=Egress in needed)):
            sets |= piece.sets
            chains |= {Place(family, t, CHAINS + name): chain(rules) for (t, name), rules in piece.chains.items()}
            for (table, name), hook in piece.hooks.items():
                place, ends = Place(family, table, hook.chain), last if hook.last else first
                ends[place] = (*ends.get(place, ()), CHAINS + name)
            notes |= piece.notes
    chains[ABOUT] = notes_chain(notes)
    return Ruleset(sets=sets, chains=chains, first=first, last=last, notes=notes)


def _guard(pieces: Iterable[Piece], firewall: Firewall, *, hooked: bool) -> Piece:
    rules = [rule for piece in pieces for rule in piece.guard]
    if not rules and not hooked:
        return Piece()
    return Piece(
        chains={
            ("mangle", "GUARD"): [
                f"{marked(0, firewall)} -m connlabel ! --label {CONNTRACK_LABEL} -j RETURN",
                f"-m conntrack --ctdir REPLY {goto('UNMARK')}",
                *rules,
                # Egress traffic without a mark, or with one that no pod has any more: it is held, and somebody accepted
                # it all the same, or it was marked before a change and is looked at here after it.
                drop(f"-m connlabel --label {CONNTRACK_LABEL}"),
                # Without a connection there is no label.
                drop("-m conntrack --ctstate INVALID"),
                goto("UNMARK"),
            ],
            # The mark has done its work. A tunnel hands it on to the packet that it makes of this one, which must find
            # its own way.
            ("mangle", "UNMARK"): [set_mark(0, firewall)],
        },
        hooks={("mangle", "GUARD"): Hook(chain="POSTROUTING")},
    )


def also(before: Firewall, after: Firewall) -> Iterator[str]:
    """What a change needs beside the difference: lines for ipset restore."""
    for kind, rendering in _PARTS.items():
        yield from rendering.also(before.part(kind), after.part(kind))


def understand(ruleset: Ruleset) -> Firewall:
    """The firewall that this means, always one that can be rendered. What was altered by others beyond understanding is
    left out; the difference to the rendered ruleset shows it all the same."""
    made = _MADE.fullmatch(ruleset.notes.get("made", ""))
    mask = int(made[1], 16) if made else 0
    return Firewall(mark_mask=mask, parts=tuple(one.understand(ruleset, mask) for one in _PARTS.values()))


def maker(ruleset: Ruleset) -> str:
    """The version of this program that made it; empty if it does not tell."""
    made = _MADE.fullmatch(ruleset.notes.get("made", ""))
    return made[2] if made else ""
