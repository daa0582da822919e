"""The guard for unknown pods of other nodes, in iptables.

After everybody's translation there is nothing that could drop a packet: what this node does not know of is dropped
before, whatever source it would get.
"""

from __future__ import annotations

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.transit import Transit
from metaleg_node.core.model import CONNTRACK_LABEL, Family
from metaleg_node.kernel.elements import address_of
from metaleg_node.kernel.iptables.ruleset import (
    Hook,
    Piece,
    Ruleset,
    drop,
    goto,
    marked,
    network_set,
    set_name,
    unless,
    when,
)


def render(transit: Transit, firewall: Firewall, family: Family) -> Piece:
    """Its sets and chains for one family. What is inside the cluster is a set of the egress."""
    pods = set_name(family, "pod-networks")
    return Piece(
        sets={pods: network_set(family, transit.pod_networks)},
        chains={
            ("mangle", "TRANSIT"): [
                "-m conntrack ! --ctstate NEW,INVALID -j RETURN",
                *(f"-i {name} {goto('LOST')}" for name in sorted(transit.node_interfaces)),
            ],
            ("mangle", "LOST"): [
                "-m conntrack --ctstate DNAT -j RETURN",
                f"{unless(pods, 'src')} -j RETURN",
                f"{when(set_name(family, 'inside'), 'dst')} -j RETURN",
                # What this node knows of is judged already.
                f"-m connlabel --label {CONNTRACK_LABEL} -j RETURN",
                f"{marked(0, firewall, inverted=True)} -j RETURN",
                drop(""),
            ],
        },
        hooks={("mangle", "TRANSIT"): Hook(chain="FORWARD")},
        notes={
            "node-interfaces": ",".join(sorted(transit.node_interfaces)),
            "node-addresses": ",".join(sorted(map(str, transit.node_addresses))),
        },
    )


def understand(ruleset: Ruleset, _mask: int) -> Transit:
    """What is held."""
    addresses = map(address_of, ruleset.notes.get("node-addresses", "").split(","))
    return Transit(
        pod_networks=ruleset.networks("pod-networks"),
        node_interfaces=frozenset(filter(None, ruleset.notes.get("node-interfaces", "").split(","))),
        node_addresses=frozenset(address for address in addresses if address),
    )
