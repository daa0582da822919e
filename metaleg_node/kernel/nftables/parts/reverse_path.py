"""The check of the reverse path, in nftables."""

from __future__ import annotations

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.reverse_path import ReversePathCheck
from metaleg_node.kernel.nftables.table import Piece, Table, base, chain, interface_set, network_set


def render(part: ReversePathCheck, _firewall: Firewall) -> Piece:
    """Before connection tracking, as the kernel's own check is before everything."""
    rule = "iifname @checked ip daddr != @spared4 fib saddr . iif oif missing drop"
    return Piece(
        sets={"checked": interface_set(part.checked), "spared4": network_set(4, part.spared)},
        chains={"path_check": chain([rule], hook=base("filter", "prerouting", -300))},
    )


def understand(table: Table, _mask: int) -> ReversePathCheck:
    """What the table means."""
    return ReversePathCheck(checked=frozenset(table.elements("checked")), spared=table.networks("spared"))
