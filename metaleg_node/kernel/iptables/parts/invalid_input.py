"""Invalid packets for this host, in iptables."""

from __future__ import annotations

from metaleg_node.core.firewall.invalid_input import InvalidInput
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Family
from metaleg_node.kernel.iptables.ruleset import CHAINS, Hook, Piece, Place, Ruleset


def render(_part: InvalidInput, _firewall: Firewall, _family: Family) -> Piece:
    """One chain."""
    return Piece(
        chains={("mangle", "INPUT"): ["-m conntrack --ctstate INVALID -j DROP"]},
        hooks={("mangle", "INPUT"): Hook(chain="INPUT")},
    )


def understand(ruleset: Ruleset, _mask: int) -> InvalidInput:
    """What is held."""
    return InvalidInput(dropped=Place(4, "mangle", f"{CHAINS}INPUT") in ruleset.chains)
