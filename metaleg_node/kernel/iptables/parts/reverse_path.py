"""The check of the reverse path, in iptables."""

from __future__ import annotations

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.reverse_path import ReversePathCheck
from metaleg_node.core.model import Family
from metaleg_node.kernel.iptables.ruleset import RAW_SET, Hook, Piece, Ruleset, network_set, unless


def render(part: ReversePathCheck, _firewall: Firewall, family: Family) -> Piece:
    """Before connection tracking, as the kernel's own check is before everything. The kernel has one for IPv4 alone."""
    if family != 4:
        return Piece()
    spared = RAW_SET
    rules = [f"-i {name} {unless(spared, 'dst')} -m rpfilter --invert -j DROP" for name in sorted(part.checked)]
    return Piece(
        sets={spared: network_set(family, part.spared)},
        chains={("raw", "REVERSE-PATH"): rules},
        hooks={("raw", "REVERSE-PATH"): Hook(chain="PREROUTING")},
        notes={"checked": ",".join(sorted(part.checked))},
    )


def understand(ruleset: Ruleset, _mask: int) -> ReversePathCheck:
    """What is held."""
    checked = filter(None, ruleset.notes.get("checked", "").split(","))
    return ReversePathCheck(checked=frozenset(checked), spared=ruleset.networks("spared"))
