"""The hold for pods that are not known yet, in iptables.

Those of other nodes are dropped by the guard for them, whether there is a hold or not.
"""

from __future__ import annotations

from metaleg_node.core.firewall.new_pods import NewPods
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Family
from metaleg_node.kernel.iptables.ruleset import Hook, Piece, Rule, Ruleset, address_set, set_name, when

_NOTE = "new-pods"


def render(part: NewPods, _firewall: Firewall, family: Family) -> Piece:
    """Its sets and chain for one family. The networks are sets of the egress and of the guard for other nodes' pods."""
    plain, claimed, pods = (set_name(family, name) for name in ("plain", "claimed", "pod-networks"))
    # Not refused: a connection that is tried again succeeds as soon as the pod is known.
    unknown = [Rule(f"{when(pods, 'src')} -j DROP", "unknown")] if part.here else []
    return Piece(
        sets={plain: address_set(family, part.plain), claimed: address_set(family, part.claimed)},
        chains={
            ("mangle", "NEW-PODS"): [
                # What began before, and every answer.
                "-m conntrack --ctstatus CONFIRMED -j RETURN",
                f"{when(set_name(family, 'inside'), 'dst')} -j RETURN",
                *(f"{when(known, 'src')} -j RETURN" for known in (plain, claimed)),
                *unknown,
            ]
        },
        hooks={("mangle", "NEW-PODS"): Hook(chain="FORWARD")},
        notes={_NOTE: "here" if part.here else "elsewhere"},
    )


def understand(ruleset: Ruleset, _mask: int) -> NewPods:
    """What is held."""
    note = ruleset.notes.get(_NOTE, "")
    return NewPods(
        held=bool(note),
        here=note == "here",
        plain=ruleset.addresses("plain"),
        claimed=ruleset.addresses("claimed"),
    )
