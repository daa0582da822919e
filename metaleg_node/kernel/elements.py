"""What elements of sets are, read back from any packet filter, and how names stand in its comments."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address, ip_network

from metaleg_node.core.model import Address, Network, Slot

HOLDER = re.compile(r"[-A-Za-z0-9._:]{1,253}")
"""Names of nodes and of return paths, as they stand in comments."""


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
