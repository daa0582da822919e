"""Answers that come to an address of this host and belong to no connection, in nftables."""

from __future__ import annotations

from metaleg_node.core.firewall.local_answers import LocalAnswers
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.kernel.nftables.table import DROP, IP, Piece, Set, Table, address_set, base, chain, number, numbers

_HOOK = base("filter", "input", 110)
"""IPVS takes what it serves at 98 and 99 (ip_vs_core.c, ip_vs_ops), whether conntrack has an entry of it or not: what
comes here is not its own."""


def render(part: LocalAnswers, _firewall: Firewall) -> Piece:
    """Its sets and chains; where there is nothing to look for, the sets alone, which the egress asks."""
    sets = {f"answered{version}": address_set(version, part.addresses) for version in IP}
    sets["entrances"] = Set(key_type="inet_service", elements=dict.fromkeys(map(number, sorted(part.entrances))))
    if part == LocalAnswers():
        return Piece(sets=sets)
    return Piece(
        sets=sets,
        chains={
            "answers": chain(["ct state new,invalid tcp flags & (syn | ack) != syn jump unexpected"], hook=_HOOK),
            "unexpected": chain(
                ["tcp dport @entrances return", *(f"{ip} daddr @answered{v} {DROP}" for v, ip in IP.items())]
            ),
        },
    )


def understand(table: Table, _mask: int) -> LocalAnswers:
    """What the table means."""
    return LocalAnswers(
        addresses=table.addresses("answered"), entrances=frozenset(numbers(table.elements("entrances")))
    )
