"""The hold for pods that are not known yet, in nftables."""

from __future__ import annotations

from metaleg_node.core.firewall.new_pods import NewPods
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.kernel.nftables.table import IP, Piece, Table, address_set, base, chain

_HOOK = base("filter", "forward", -10)
"""What is forwarded only: neither this host nor anything on the same link is outside."""


def render(part: NewPods, _firewall: Firewall) -> Piece:
    """Its sets and chain. The networks are sets of the egress and of the guard for other nodes' pods."""
    sets = {f"plain{v}": address_set(v, part.plain) for v in IP}
    sets |= {f"claimed{v}": address_set(v, part.claimed) for v in IP}
    whose = "" if part.here else "iifname @node_interfaces "
    rules = [
        # What began before, and every answer.
        "ct status confirmed accept",
        *(f"{ip} daddr @inside{v} accept" for v, ip in IP.items()),
        *(f"{ip} saddr @{known}{v} accept" for known in ("plain", "claimed") for v, ip in IP.items()),
        # Not refused: a connection that is tried again succeeds as soon as the pod is known.
        *(f'{whose}{ip} saddr @pod_networks{v} counter name "unknown" drop' for v, ip in IP.items()),
    ]
    return Piece(sets=sets, chains={"new_pods": chain(rules, hook=_HOOK, note="here" if part.here else "elsewhere")})


def understand(table: Table, _mask: int) -> NewPods:
    """What the table means."""
    return NewPods(
        held="new_pods" in table.chains,
        here=table.note("new_pods") == "here",
        plain=table.addresses("plain"),
        claimed=table.addresses("claimed"),
    )
