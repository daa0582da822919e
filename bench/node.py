"""A node of its own: a network namespace with a link to its pods and one to the other nodes, and daemons in it.

What the node sends is dropped as soon as it has left: the far ends of its links are in a second namespace that drops
everything at its ingress hook.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bench.traffic import RECEIVER_MAC, SENDER_MAC
from metaleg_node.lab import namespaces
from metaleg_node.lab.namespaces import Namespace

ADDRESS = "192.168.10.11"
PODS, LAN = "pods0", "lan0"
_SINK = """\
table netdev sink {
  chain drop_all {
    type filter hook ingress devices = { pods1, lan1 } priority 0; policy drop;
  }
}
"""
_KUBERNETES = """\
*nat
-A POSTROUTING -s 10.244.0.0/15 -d 10.244.0.0/15 -j RETURN
-A POSTROUTING -s 10.244.0.0/15 ! -d 224.0.0.0/4 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP
:KUBE-PROXY-FIREWALL -
:KUBE-FORWARD -
:KUBE-SERVICES -
:KUBE-EXTERNAL-SERVICES -
:FLANNEL-FWD -
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -j FLANNEL-FWD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FLANNEL-FWD -s 10.244.0.0/15 -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/15 -j ACCEPT
COMMIT
"""
"""What kube-proxy and a CNI (flannel) have for every forwarded packet."""


@contextmanager
def nodes(names: Iterable[str], neighbours: int) -> Iterator[dict[str, Namespace]]:
    """Namespaces that look like a node with `neighbours` other nodes beside it: pods behind `pods0`, the other nodes
    and the router behind `lan0`, the rules of kube-proxy and a CNI, and rp_filter 2, as systemd and Ubuntu set it."""
    named = {name: Namespace(name=f"{namespaces.PREFIX}-{os.getpid()}-{name}") for name in names}
    sinks = {name: Namespace(name=f"{node.name}-sink") for name, node in named.items()}
    namespaces.remove_stale()
    every = [space.name for space in (*named.values(), *sinks.values())]
    try:
        namespaces.create(every)
        for name, node in named.items():
            _connect(node, sinks[name], neighbours)
            sinks[name].run("nft", "-f", "-", stdin=_SINK)
            node.run("iptables-restore", stdin=_KUBERNETES)
        yield named
    finally:
        namespaces.remove(every)


def _connect(node: Namespace, sink: Namespace, neighbours: int) -> None:
    node.sysctl({"ipv4/conf/all/rp_filter": 2, "ipv4/conf/default/rp_filter": 2, "ipv4/ip_forward": 1})
    known = ("192.168.10.1", *(f"192.168.10.{11 + number}" for number in range(1, neighbours + 1)))
    node.ip(
        [
            f"link add {PODS} address {RECEIVER_MAC} up type veth peer name pods1 netns {sink.name}",
            f"link add {LAN} address {RECEIVER_MAC} up type veth peer name lan1 netns {sink.name}",
            f"address add {ADDRESS}/24 dev {LAN}",
            *(f"neighbour add {address} lladdr {SENDER_MAC} dev {LAN} nud permanent" for address in known),
            "route add 169.254.1.2 dev pods0 scope link",
            f"neighbour add 169.254.1.2 lladdr {SENDER_MAC} dev {PODS} nud permanent",
            f"route add 10.244.0.0/15 via 169.254.1.2 dev {PODS}",
        ]
    )
    sink.ip(["link set pods1 up", "link set lan1 up"])
    node.ip(["route add default via 192.168.10.1"])
