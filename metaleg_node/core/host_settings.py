"""What the configuration asks of the host itself, whatever the cluster says."""

from __future__ import annotations

from metaleg_node.configuration.config import HostSettings
from metaleg_node.core.contribution import Contribution
from metaleg_node.core.firewall.invalid_input import InvalidInput
from metaleg_node.core.model import Host

_STRICT_ARP = {"arp_ignore": 1, "arp_announce": 2}
"""What kube-proxy's strictARP sets."""


def decide(settings: HostSettings, host: Host) -> Contribution:
    """Strict ARP, where an operator's stricter value stays; and what is done with invalid packets."""
    arp = {
        f"net/ipv4/conf/all/{name}": str(value)
        for name, value in _STRICT_ARP.items()
        if settings.strict_arp and host.arp.get(name, 0) < value
    }
    return Contribution(parts=(InvalidInput(dropped=settings.drop_invalid_input),), sysctls=arp)
