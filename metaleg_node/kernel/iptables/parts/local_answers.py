"""Answers that come to an address of this host and belong to no connection, in iptables.

No table that may drop comes after IPVS, which takes what it serves at 98 and 99 (ip_vs_core.c, ip_vs_ops): so a packet
of a connection that IPVS serves must be known to conntrack, as it is with kube-proxy, or be for one of the entrances.
"""

from __future__ import annotations

from metaleg_node.core.firewall.local_answers import LocalAnswers
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Family
from metaleg_node.kernel.iptables.ruleset import (
    Hook,
    Piece,
    Ruleset,
    address_set,
    drop,
    goto,
    numbers,
    port_set,
    set_name,
    when,
)


def render(part: LocalAnswers, _firewall: Firewall, family: Family) -> Piece:
    """Its sets and chains for one family; where there is nothing to look for, the sets alone, which the egress asks."""
    answered, entrances = set_name(family, "answered"), set_name(family, "entrances")
    sets = {answered: address_set(family, part.addresses), entrances: port_set(part.entrances)}
    if part == LocalAnswers():
        return Piece(sets=sets)
    return Piece(
        sets=sets,
        chains={
            ("mangle", "ANSWERS"): [
                f"-p tcp -m tcp ! --tcp-flags SYN,ACK SYN -m conntrack --ctstate NEW,INVALID {goto('UNEXPECTED')}"
            ],
            ("mangle", "UNEXPECTED"): [f"-p tcp {when(entrances, 'dst')} -j RETURN", drop(when(answered, "dst"))],
        },
        hooks={("mangle", "ANSWERS"): Hook(chain="INPUT")},
    )


def understand(ruleset: Ruleset, _mask: int) -> LocalAnswers:
    """What is held."""
    entrances = numbers(ruleset.elements(set_name(4, "entrances")))
    return LocalAnswers(addresses=ruleset.addresses("answered"), entrances=frozenset(entrances))
