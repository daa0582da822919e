"""The guard for unknown pods of other nodes, in nftables."""

from __future__ import annotations

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.transit import Transit
from metaleg_node.kernel.nftables.table import (
    DROP,
    IP,
    Piece,
    Set,
    Table,
    address_set,
    chain,
    interface_set,
    network_set,
)

_LOST = tuple(
    # What belongs to no connection cannot be translated, by us or the CNI: another node's pod must not leave so.
    f"iifname @node_interfaces {ip} saddr @pod_networks{v} {ip} daddr != @inside{v} {DROP}"
    for v, ip in IP.items()
)

_TRANSIT = tuple(
    # Another node steered its pod to us before we know of it: it must not leave with our own address, one of those that
    # the Node object names or what a masquerade takes, one of the interface.
    f"meta nfproto ipv{v} iifname @node_interfaces ct original {ip} saddr @pod_networks{v} "
    f"{own} {ip} daddr != @inside{v} ct status ! dnat {DROP}"
    for v, ip in IP.items()
    for own in (f"{ip} saddr @node_addresses{v}", "fib saddr . oif type local")
)


def render(transit: Transit, _firewall: Firewall) -> Piece:
    """Its sets and chains. What is inside the cluster is a set of the egress."""
    sets: dict[str, Set] = {"node_interfaces": interface_set(transit.node_interfaces)}
    for version in IP:
        sets[f"node_addresses{version}"] = address_set(version, transit.node_addresses)
        sets[f"pod_networks{version}"] = network_set(version, transit.pod_networks)
    return Piece(
        sets=sets,
        chains={"lost": chain(_LOST), "transit": chain(_TRANSIT)},
        # A connection whose first packet was dropped here is never confirmed.
        guard=("ct status ! confirmed ct status snat jump transit",),
    )


def understand(table: Table, _mask: int) -> Transit:
    """What the table means."""
    return Transit(
        pod_networks=table.networks("pod_networks"),
        node_interfaces=frozenset(table.elements("node_interfaces")),
        node_addresses=table.addresses("node_addresses"),
    )
