"""Invalid packets for this host, in nftables."""

from __future__ import annotations

from metaleg_node.core.firewall.invalid_input import InvalidInput
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.kernel.nftables.table import Piece, Table, base, chain


def render(_part: InvalidInput, _firewall: Firewall) -> Piece:
    """One chain."""
    return Piece(chains={"input": chain(["ct state invalid drop"], hook=base("filter", "input", -10))})


def understand(table: Table, _mask: int) -> InvalidInput:
    """What the table means."""
    return InvalidInput(dropped="input" in table.chains)
