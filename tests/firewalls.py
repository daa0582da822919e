"""Packet filters for tests: one of every kind, by name. The first is what the others vary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any, cast

from metaleg_node.core.cluster_networks import NEVER_EGRESS
from metaleg_node.core.firewall.egress import Egress, EgressPod, Treatment
from metaleg_node.core.firewall.external_ip import ExternalIp, Target, VirtualServer
from metaleg_node.core.firewall.invalid_input import InvalidInput
from metaleg_node.core.firewall.local_answers import LocalAnswers
from metaleg_node.core.firewall.new_pods import NewPods
from metaleg_node.core.firewall.part import Firewall, Part
from metaleg_node.core.firewall.return_paths import PathRouter, ReturnPath, ReturnPaths
from metaleg_node.core.firewall.reverse_path import ReversePathCheck
from metaleg_node.core.firewall.transit import Transit
from metaleg_node.core.model import MARKING, Address, DestinationFilter, Family, Holder, Match, Network, NodeName, Slot
from metaleg_node.core.networks import merged

MASK = 0x3F000000

_PARTS: tuple[type[Part], ...] = (
    Egress,
    LocalAnswers,
    Transit,
    NewPods,
    ReturnPaths,
    ReversePathCheck,
    InvalidInput,
    ExternalIp,
)
_OWNERS = {field.name: kind for kind in _PARTS for field in dataclasses.fields(kind)}


def but(firewall: Firewall, **values: object) -> Firewall:
    """The same with other values in whichever part has them, or another `mark_mask`; `gateways` may be plain names."""
    if "mark_mask" in values:
        firewall = dataclasses.replace(firewall, mark_mask=cast(int, values.pop("mark_mask")))
    if isinstance(named := values.get("gateways"), dict):
        values["gateways"] = {slot: Holder.read(str(name)) for slot, name in named.items()}
    for kind in {_OWNERS[name] for name in values}:
        own = {name: value for name, value in values.items() if _OWNERS[name] is kind}
        firewall = firewall.having(dataclasses.replace(firewall.part(kind), **own))
    return firewall


def wall(**values: object) -> Firewall:
    """A firewall with these values, and nothing else."""
    return but(Firewall(mark_mask=MASK), **values)


def flat(firewall: Firewall | None) -> Any:
    """The values of all its parts together, holders as their names."""
    assert firewall
    values = {name: getattr(firewall.part(kind), name) for name, kind in _OWNERS.items()}
    named = {slot: str(holder) for slot, holder in values["gateways"].items()}
    return SimpleNamespace(**values | {"mark_mask": firewall.mark_mask, "gateways": named, "mark": firewall.mark})


def addresses(*texts: str) -> frozenset[Address]:
    return frozenset(map(ip_address, texts))


def networks(*texts: str) -> frozenset[Network]:
    return frozenset(map(ip_network, texts))


def pods(numbers: Iterable[int], pod: EgressPod, version: int = 4) -> dict[Address, EgressPod]:
    """Pods 10.244.1.N or fd00:10:244:1::N with one treatment."""
    prefix = "10.244.1." if version == 4 else "fd00:10:244:1::"
    return {ip_address(f"{prefix}{n}"): pod for n in numbers}


RESTRICTED = DestinationFilter(
    exclude=networks("10.0.0.0/8", "2001:db8:f::/48"), only=networks("8.0.0.0/7", "2000::/3")
)
EXCEPT = DestinationFilter(exclude=networks("192.168.0.0/24", "192.168.2.7/32"))
"""Two networks, of which one is a single address."""
R, E = RESTRICTED.key, EXCEPT.key
LB4, LB6 = ip_address("192.0.2.200"), ip_address("2001:db8:1::200")

STEER = EgressPod(treatment=Treatment.STEER, slot=Slot(1))
SNAT4 = EgressPod(treatment=Treatment.SNAT, slot=Slot(2), source=LB4)
SNAT6 = EgressPod(treatment=Treatment.SNAT, slot=Slot(2), source=LB6)
HOLD = EgressPod(treatment=Treatment.HOLD)
WAIT = EgressPod(treatment=Treatment.WAIT)
ELSEWHERE = EgressPod(treatment=Treatment.ELSEWHERE)


def filtered(pod: EgressPod, key: str) -> EgressPod:
    return dataclasses.replace(pod, filter=key)


FULL = wall(
    pods={
        **pods([2, 3], STEER),
        **pods([4], filtered(STEER, R)),
        **pods([5], SNAT4),
        **pods([6], filtered(SNAT4, E)),
        **pods([7], HOLD),
        **pods([8], filtered(HOLD, R)),
        **pods([9], ELSEWHERE),
        **pods([10], filtered(ELSEWHERE, E)),
        **pods([2], STEER, 6),
        **pods([5], filtered(SNAT6, R), 6),
        **pods([7], HOLD, 6),
        **pods([9], ELSEWHERE, 6),
    },
    gateways={Slot(1): NodeName("node-b"), Slot(2): NodeName("node-a")},
    sources=frozenset({LB4, LB6}),
    next_hops=addresses("10.0.0.2", "fd00::2"),
    tunnels=frozenset({"tun-b", "ip6-b"}),
    inside=merged([*NEVER_EGRESS, *networks("10.244.0.0/16", "10.96.0.0/12", "10.0.0.0/24", "fd00:10::/32")]),
    served=frozenset({53, 5060}),
    addresses=frozenset({LB4, LB6}),
    entrances=frozenset({25, 443}),
    filters={R: RESTRICTED, E: EXCEPT},
    pod_networks=networks("10.244.0.0/16", "fd00:10:244::/48"),
    node_interfaces=frozenset({"eth0", "flannel.1", "bond0.100", "br-lan_2", "a+b@c"}),
    node_addresses=addresses("10.0.0.1", "fd00::1"),
)

PATHS = but(
    FULL,
    paths={
        Slot(3): ReturnPath(
            holder=Holder.read("path:public_A.b"), networks=networks("198.51.100.0/24", "2001:db8:51::/64")
        ),
        Slot(4): ReturnPath(
            holder=Holder.read("path::bgp"),
            networks=networks("192.0.2.0/25", "192.0.2.128/26", "192.0.2.200", "2001:db8:2::200"),
            mark=0x14,
        ),
    },
    match=MARKING,
    direct=FULL.part(Egress).inside | networks("172.16.0.0/12"),
    checked=frozenset({"eth1", "bond0.100"}),
    spared=networks("198.51.100.0/24", "192.0.2.7/32"),
)


def path_router(holder: str, path: int, family: Family, link_address: str) -> PathRouter:
    return PathRouter(
        holder=Holder.read(holder), path=Slot(path), family=family, interface="bond0.100", link_address=link_address
    )


replaced = dataclasses.replace
ROUTER_SLOTS = {
    Slot(5): path_router("router:public_A.b:198.51.100.1", 3, 4, "02:00:00:00:00:01"),
    Slot(6): path_router("router:public_A.b:198.51.100.2", 3, 4, "02:00:00:00:00:02"),
    Slot(7): path_router("router:public_A.b:2001:db8:51::1", 3, 6, "02:00:00:00:00:01"),
    Slot(8): path_router("router:public_A.b:2001:db8:51::2", 3, 6, ""),
    Slot(10): path_router("router::bgp:198.51.100.1", 4, 4, "02:00:00:00:00:01"),
    Slot(11): path_router("router::bgp:198.51.100.3", 4, 4, "02:00:00:00:00:01"),
}
"""Some are one machine; one is not there."""
ROUTERS = but(PATHS, routers=ROUTER_SLOTS)


def virtual_server(text: str) -> VirtualServer:
    """Written as ADDRESS PROTOCOL PORT."""
    address, protocol, port = text.split()
    return VirtualServer(address=ip_address(address), protocol=protocol, port=int(port))


def target(cluster_ip: str, *sources: str, host: bool = True) -> Target:
    """The ClusterIP, and the networks whose pods may come so."""
    return Target(cluster_ip=ip_address(cluster_ip), sources=networks(*sources), host=host)


TARGETS = {
    virtual_server("192.0.2.210 TCP 80"): target("10.96.0.10"),
    virtual_server("192.0.2.210 UDP 80"): target("10.96.0.11"),
    virtual_server("192.0.2.210 SCTP 65535"): target("10.96.0.10", "10.244.1.0/24"),
    virtual_server("192.0.2.211 TCP 443"): target("10.96.0.12", "10.244.1.0/24", host=False),
    virtual_server("192.0.2.212 TCP 1"): target("10.96.0.13", "10.0.0.0/8", "192.0.2.7/32"),
    virtual_server("2001:db8:1::210 TCP 80"): target("fd00:96::10"),
    virtual_server("2001:db8:1::210 UDP 53"): target("fd00:96::10", "fd00:10:244:1::/64", host=False),
}
EXTERNAL = but(FULL, targets=TARGETS, clients=networks("10.244.0.0/16", "fd00:10:244::/48"))

_LONG = NodeName(".".join(["n" * 62] * 4) + "x")
assert len(_LONG) == 252

FIREWALLS: dict[str, Firewall] = {
    "full": FULL,
    "empty": wall(),
    "drop": but(FULL, hold="drop"),
    "waiting": but(FULL, pods={**pods([2], WAIT), **pods([3], HOLD), **pods([4], filtered(WAIT, R))}, gateways={}),
    "random": but(FULL, source_ports="random"),
    "no-invalid-input": but(FULL, dropped=True),
    "another-mask": but(FULL, mark_mask=0xF0),
    "highest-mask": but(FULL, mark_mask=0xFC000000),
    "moved": but(
        FULL,
        pods={
            **pods([2], SNAT4),
            **pods([3], ELSEWHERE),
            **pods([4], HOLD),
            **pods([5], STEER),
            **pods([6], filtered(STEER, R)),
            **pods([2], SNAT6, 6),
        },
        gateways={Slot(1): NodeName("node-c"), Slot(2): NodeName("node-a")},
        next_hops=addresses("10.0.0.3"),
        filters={R: RESTRICTED},
    ),
    "other-sources": but(
        FULL,
        pods=pods([5, 6], EgressPod(treatment=Treatment.SNAT, slot=Slot(2), source=ip_address("192.0.2.201"))),
        gateways={Slot(2): NodeName("node-a")},
        sources=addresses("192.0.2.201"),
        filters={},
    ),
    "narrower-networks": but(
        FULL,
        inside=networks("10.244.0.0/17", "10.244.128.0/18", "10.96.0.0/13", "10.0.0.128/25", "224.0.0.0/5", "::1/128"),
        pod_networks=networks("10.244.1.0/24", "10.244.2.0/24"),
    ),
    "wider-networks": but(
        FULL, inside=networks("8.0.0.0/5", "128.0.0.0/1", "8000::/1"), pod_networks=networks("10.240.0.0/12")
    ),
    "all-networks": but(FULL, inside=networks("0.0.0.0/0", "::/0")),
    "ends-of-the-range": but(
        FULL,
        inside=networks(
            "0.0.0.0/32", "255.255.255.255/32", "::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "240.0.0.0/8"
        ),
    ),
    "neighbours": but(
        FULL, inside=networks("10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/32", "fd00:1::/64", "fd00:1:0:1::/64")
    ),
    "ipv4-in-ipv6": but(
        FULL,
        inside=networks("::ffff:0:0/96", "64:ff9b::/96", "::192.0.2.0/120"),
        node_addresses=addresses("::192.0.2.1"),
    ),
    "long-names": but(FULL, gateways={Slot(1): _LONG, Slot(2): NodeName(_LONG[:101])}),
    "paths": PATHS,
    "routers": ROUTERS,
    "routers-that-are-not-there": but(
        ROUTERS, routers={slot: replaced(one, link_address="") for slot, one in ROUTER_SLOTS.items()}
    ),
    "routers-moved": but(
        ROUTERS,
        routers={
            Slot(5): replaced(ROUTER_SLOTS[Slot(6)], path=Slot(4), interface="tcp"),
            Slot(9): replaced(ROUTER_SLOTS[Slot(7)], link_address="02:00:00:00:00:09"),
        },
    ),
    "routers-alone": wall(
        paths=ROUTERS.part(ReturnPaths).paths, routers=ROUTER_SLOTS, match=frozenset({Match.CONNTRACK})
    ),
    "paths-by-conntrack": but(
        PATHS, match=frozenset({Match.CONNTRACK}), paths={Slot(3): PATHS.part(ReturnPaths).paths[Slot(3)]}
    ),
    "paths-by-source": but(PATHS, match=frozenset({Match.SOURCE}), direct=frozenset()),
    "paths-alone": but(
        PATHS,
        pods={},
        gateways={},
        sources=frozenset(),
        inside=frozenset(),
        filters={},
        paths={Slot(4): PATHS.part(ReturnPaths).paths[Slot(3)], Slot(3): PATHS.part(ReturnPaths).paths[Slot(4)]},
    ),
    "path-to-everywhere": but(
        PATHS, paths={Slot(3): ReturnPath(holder=Holder.read("path:x"), networks=networks("0.0.0.0/0", "::/0"))}
    ),
    "path-of-one-address": but(
        PATHS, paths={Slot(3): ReturnPath(holder=Holder.read("path:x"), networks=networks("192.0.2.7/32"))}
    ),
    "reverse-path-check-alone": wall(checked=frozenset({"eth1"}), spared=networks("10.0.0.0/8")),
    "external-ips": EXTERNAL,
    "external-ips-alone": wall(targets=TARGETS, clients=networks("10.244.0.0/16")),
    "external-ips-elsewhere": but(
        EXTERNAL,
        targets={
            virtual_server("192.0.2.210 TCP 80"): target("10.96.0.11"),
            virtual_server("192.0.2.210 UDP 80"): target("10.96.0.11", "10.0.0.0/8", host=False),
            virtual_server("192.0.2.211 TCP 443"): target("10.96.0.12", "10.244.2.0/24", "10.244.4.0/24"),
        },
    ),
    "external-ips-for-the-host-alone": but(EXTERNAL, clients=frozenset()),
    "external-ips-with-a-mark": but(EXTERNAL, masquerade_mark=0x4000),
    "new-pods": but(
        FULL, held=True, plain=addresses("10.244.1.20", "fd00:10:244:1::20"), claimed=addresses("10.244.1.2")
    ),
    "new-pods-here": but(
        FULL,
        held=True,
        here=True,
        plain=addresses("10.244.1.20", "10.244.1.21"),
        claimed=addresses("10.244.1.3", "fd00:10:244:1::2"),
    ),
    "63-slots": wall(
        pods={
            ip_address(f"10.244.1.{n}"): EgressPod(treatment=Treatment.STEER, slot=Slot(n), filter=R if n % 2 else "")
            for n in range(1, 64)
        },
        gateways={Slot(n): NodeName(f"node-{n}") for n in range(1, 64)},
        next_hops=frozenset(ip_address(f"10.0.0.{n}") for n in range(1, 64)),
        filters={R: RESTRICTED},
    ),
}
