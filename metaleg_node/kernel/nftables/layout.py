"""Our nftables table for a given `Firewall`, and back: the parts, put together.

What all of them share is here: the guard, which looks at marked packets after everybody's translation, and a chain that
no packet comes to, whose comment says with which mask and by which version the table was made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
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
from metaleg_node.core.model import CONNTRACK_LABEL
from metaleg_node.kernel.nftables.parts import (
    egress,
    external_ip,
    invalid_input,
    local_answers,
    new_pods,
    return_paths,
    reverse_path,
    transit,
)
from metaleg_node.kernel.nftables.table import COUNTERS, DROP, Chain, Piece, Set, Table, base, by_mark, chain, unmark

_ABOUT = "about"
_NOTE = re.compile(r"(0x[0-9a-f]{1,8}) (\S+)")


def _nothing(_before: Any, _after: Any) -> Iterator[str]:
    return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendering:
    """How this packet filter holds one kind of part: `render` looks at the part, at the mark mask and at the parts that
    it `reads`. `again` does the same, given what was rendered last. `also` gives further lines of the transaction that
    changes it; `needs` are kinds whose sets its rules ask, too."""

    render: Callable[[Any, Firewall], Piece]
    again: Callable[[Any, Firewall, Any, Piece], Piece] | None = None
    reads: tuple[type[Part], ...] = ()
    understand: Callable[[Table, int], Part]
    also: Callable[[Any, Any], Iterator[str]] = _nothing
    needs: tuple[type[Part], ...] = ()


_PARTS: dict[type[Part], _Rendering] = {
    Egress: _Rendering(
        render=egress.render,
        again=egress.render_again,
        reads=(Transit,),
        understand=egress.understand,
        also=egress.also,
        needs=(LocalAnswers,),
    ),
    LocalAnswers: _Rendering(render=local_answers.render, understand=local_answers.understand),
    Transit: _Rendering(render=transit.render, understand=transit.understand, needs=(Egress, LocalAnswers)),
    NewPods: _Rendering(render=new_pods.render, understand=new_pods.understand, needs=(Egress, LocalAnswers, Transit)),
    ReturnPaths: _Rendering(render=return_paths.render, understand=return_paths.understand),
    ReversePathCheck: _Rendering(render=reverse_path.render, understand=reverse_path.understand),
    ExternalIp: _Rendering(render=external_ip.render, understand=external_ip.understand),
    InvalidInput: _Rendering(render=invalid_input.render, understand=invalid_input.understand),
}


class Renderer:
    """Renders one firewall after another: what is the very same as the last time stays so."""

    def __init__(self) -> None:
        self._last: dict[type[Part], tuple[tuple[object, ...], Part, Piece]] = {}

    def render(self, firewall: Firewall) -> Table:
        """The table for a firewall."""
        present = [type(part) for part in firewall.parts]
        kinds = {kind: None for one in present for kind in (one, *_PARTS[one].needs)}
        return _put_together(firewall, {kind: self._piece(kind, firewall) for kind in kinds})

    def _piece(self, kind: type[Part], firewall: Firewall) -> Piece:
        one, part = _PARTS[kind], firewall.part(kind)
        beside = (firewall.mark_mask, *(firewall.part(other) for other in one.reads))
        last = self._last.get(kind)
        if last is None or last[0] != beside:
            piece = one.render(part, firewall)
        elif last[1] == part:
            return last[2]
        else:
            piece = one.again(part, firewall, *last[1:]) if one.again else one.render(part, firewall)
        self._last[kind] = beside, part, piece
        return piece


def render(firewall: Firewall) -> Table:
    """The table for a firewall."""
    return Renderer().render(firewall)


def _put_together(firewall: Firewall, kinds: Mapping[type[Part], Piece]) -> Table:
    pieces = [*kinds.values()]
    sets: dict[str, Set] = {}
    chains = {_ABOUT: chain(["return"], note=f"{firewall.mark_mask:#x} {metaleg_node.__version__}")}
    for piece in pieces:
        sets |= piece.sets
        chains |= piece.chains
    marked = {mark: name for piece in pieces for mark, name in piece.marked.items()}
    guard = [rule for piece in pieces for rule in piece.guard]
    if marked or guard or Egress in kinds:
        sets["guard_marks"] = by_mark(marked)
        chains |= _guard(guard, firewall, hooked=bool(marked or guard))
    counters = frozenset(COUNTERS).union(*(piece.counters for piece in pieces))
    return Table(sets=sets, chains=chains, counters=counters)


def _guard(rules: list[str], firewall: Firewall, *, hooked: bool) -> dict[str, Chain]:
    mask = f"{firewall.mark_mask:#010x}"
    return {
        "guard": chain(
            [f"meta mark & {mask} != 0 jump marked", *rules],
            hook=base("filter", "postrouting", 110) if hooked else "",
        ),
        # Egress traffic with a mark that no pod has any more was marked before a change and looked at here after it: a
        # processor may rest in between for longer than the change takes, and then even its rule is gone.
        "marked": chain(
            [
                f"meta mark & {mask} vmap @guard_marks",
                f"ct label {CONNTRACK_LABEL} {DROP}",
                # Without a connection there is no label.
                f"ct state invalid {DROP}",
                unmark(firewall),
            ]
        ),
        "harmless": chain([f"{unmark(firewall)} accept"]),
    }


def also(before: Firewall, after: Firewall) -> Iterator[str]:
    """What a change needs beside the difference of the tables."""
    for kind, rendering in _PARTS.items():
        yield from rendering.also(before.part(kind), after.part(kind))


def understand(table: Table) -> Firewall:
    """The firewall that a table means, always one that can be rendered. What was altered by others beyond understanding
    is left out; the difference to the rendered table shows it all the same."""
    note = _NOTE.fullmatch(table.note(_ABOUT))
    mask = int(note[1], 16) if note else 0
    return Firewall(mark_mask=mask, parts=tuple(one.understand(table, mask) for one in _PARTS.values()))


def maker(table: Table) -> str:
    """The version of this program that made the table; empty if it does not tell."""
    note = _NOTE.fullmatch(table.note(_ABOUT))
    return note[2] if note else ""
