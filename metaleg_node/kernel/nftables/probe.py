"""Whether this kernel and nft have all that our table is made of: each is tried in a table of another name, which is
checked and never made (`nft --check`)."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Final

from metaleg_node.kernel import process
from metaleg_node.kernel.errors import refusal
from metaleg_node.kernel.nftables.table import FAMILY, NAME
from metaleg_node.kernel.packet_filter import LABELS

_TABLE: Final = f"{FAMILY} {NAME}_probe"

_RULES: Final[Mapping[str, tuple[str, str]]] = {
    "connection tracking": ("type filter hook prerouting priority mangle", "ct direction original ct state new"),
    LABELS: ("type filter hook forward priority filter", "ct label 91"),
    "lookups of addresses (fib)": ("type filter hook prerouting priority mangle", "fib daddr type local"),
    "next hops (rt)": ("type filter hook forward priority filter", "rt ip nexthop 192.0.2.1"),
    "reject": ("type filter hook forward priority filter", "reject with icmpx admin-prohibited"),
    "marks": ("type filter hook prerouting priority mangle", "meta mark set meta mark & 0xc0ffffff | 0x01000000"),
    "routing again (type route)": ("type route hook output priority mangle", "meta mark 1"),
    "address translation in inet": ("type nat hook postrouting priority srcnat", "snat ip to 192.0.2.1"),
    "named maps": ("type nat hook postrouting priority srcnat", "snat ip to ip saddr map @m"),
}
"""Each thing with a chain and a rule that needs it."""


def lacking() -> dict[str, str]:
    """Which of them the kernel or nft refuses, and with which words. Raises KernelError when nft cannot be run."""
    if not _complaint(_RULES):
        return {}
    found = {name: _complaint([name]) for name in _RULES}
    return {name: words for name, words in found.items() if words}


def _complaint(names: Iterable[str]) -> str:
    lines = [f"add table {_TABLE}", f"add map {_TABLE} m {{ type ipv4_addr : ipv4_addr; }}"]
    for number, name in enumerate(names):
        chain, rule = _RULES[name]
        lines.append(f"add chain {_TABLE} c{number} {{ {chain}; }}")
        lines.append(f"add rule {_TABLE} c{number} {rule}")
    done = process.run(["nft", "--check", "-f", "-"], stdin="\n".join(lines) + "\n")
    if "Operation not permitted" in done.stderr:
        raise refusal("try what our table is made of", errno.EPERM)
    return next(iter(done.stderr.strip().splitlines()), "no reason given")[:200] if done.returncode else ""
