"""What elements of sets are, read back from any packet filter, and how names stand in its comments."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address, ip_network

from metaleg_node.core.firewall.return_paths import PathRouter
from metaleg_node.core.model import Address, Holder, Network, Slot

HOLDER = re.compile(r"[-A-Za-z0-9._:]{1,253}")
"""Names of nodes and of return paths, as they stand in comments."""
_ROUTER = re.compile(rf"({HOLDER.pattern}) (\d+) (4|6) (\S+)(?: ([0-9a-f:]{{17}}))?")


def has_slot(slot: Slot, mask: int) -> bool:
    """Whether the mask has room for a slot."""
    return mask > 0 and 0 < slot <= mask // (mask & -mask)


def address_of(text: str) -> Address | None:
    """The address that an element is, None for another thing."""
    try:
        return ip_address(text)
    except ValueError:
        return None


@lru_cache(1 << 15)
def network_of(text: str) -> Network | None:
    """The network that an element is. Remembered: every comparison reads the same thousand networks again."""
    try:
        return ip_network(text)
    except ValueError:
        return None


@lru_cache(1 << 15)
def network_text(network: Network) -> str:
    """A network as elements are listed: a single address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def router_note(router: PathRouter) -> str:
    """A return path's router, as it stands in comments."""
    link = f" {router.link_address}" if router.link_address else ""
    return f"{router.holder} {router.path} {router.family} {router.interface}{link}"


def router_of(note: str) -> PathRouter | None:
    """The router that a comment names, None for another comment."""
    found = _ROUTER.fullmatch(note)
    if not found:
        return None
    return PathRouter(
        holder=Holder.read(found[1]),
        path=Slot(int(found[2])),
        family=4 if found[3] == "4" else 6,
        interface=found[4],
        link_address=found[5] or "",
    )
