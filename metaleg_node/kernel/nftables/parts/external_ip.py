"""LoadBalancer addresses to ClusterIPs in nftables.

All chains of one hook that translate are one list, which ends at the first that does (nf_nat_core.c, nf_nat_inet_fn):
after us nobody translates or masquerades by the destination any more. IPVS comes after the list (ip_vs_core.c,
ip_vs_ops) and takes the ClusterIP, which is an address of this host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from metaleg_node.core.firewall.external_ip import ExternalIp, Target, VirtualServer
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Network
from metaleg_node.kernel.elements import address_of
from metaleg_node.kernel.nftables.table import (
    IP,
    Chain,
    Piece,
    Set,
    Table,
    address_set,
    base,
    chain,
    network_set,
    number,
)

_PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP"}
_NUMBERS = {name: value for value, name in _PROTOCOLS.items()}
_KEY = re.compile(r"(\S+) \. (0x[0-9a-f]+) \. (0x[0-9a-f]+)")
_SERVER = {v: f"{ip} daddr . meta l4proto . th dport" for v, ip in IP.items()}
_FROM = "external_from_"


def render(part: ExternalIp, _firewall: Firewall) -> Piece:
    """Its sets and chains."""
    sets: dict[str, Set] = {}
    for version in IP:
        own = {server: target for server, target in part.targets.items() if server.address.version == version}
        sets[f"external_targets{version}"] = _servers(
            version, {s: str(t.cluster_ip) for s, t in own.items()}, f"ipv{version}_addr"
        )
        sets[f"external_ranges{version}"] = _servers(
            version, {s: f"goto {_FROM}{t.key}" for s, t in own.items() if t.key}, "verdict"
        )
        sets[f"external_not_host{version}"] = _servers(version, {s: None for s, t in own.items() if not t.host})
        sets[f"external_addresses{version}"] = address_set(version, {server.address for server in own})
        sets[f"external_pods{version}"] = network_set(version, part.clients)
    chains = _chains(part)
    for (version, key), networks in _ranges(part).items():
        sets[f"{_FROM}{key}"] = network_set(version, networks)
        chains[f"{_FROM}{key}"] = chain([f"{IP[version]} saddr @{_FROM}{key} goto external_translate"])
    return Piece(sets=sets, chains=chains)


def _servers(version: int, elements: Mapping[VirtualServer, str | None], value: str = "") -> Set:
    return Set(
        key_type=f"ipv{version}_addr . inet_proto . inet_service",
        value_type=value,
        elements={element_of(server): text for server, text in elements.items()},
    )


def element_of(server: VirtualServer) -> str:
    """How a virtual server stands in the sets."""
    return f"{server.address} . {number(_NUMBERS[server.protocol])} . {number(server.port)}"


def _ranges(part: ExternalIp) -> dict[tuple[int, str], frozenset[Network]]:
    return {(server.address.version, t.key): t.sources for server, t in part.targets.items() if t.key}


def _chains(part: ExternalIp) -> dict[str, Chain]:
    pods = [
        rule
        for version, ip in IP.items()
        for rule in (
            f"{ip} saddr @external_pods{version} {_SERVER[version]} vmap @external_ranges{version}",
            f"{ip} saddr @external_pods{version} goto external_translate",
        )
    ]
    host = [f"{_SERVER[version]} @external_not_host{version} return" for version in IP]
    return {
        "external_translate": chain(
            f"dnat {ip} to {_SERVER[version]} map @external_targets{version}" for version, ip in IP.items()
        ),
        "external_prerouting": chain(pods, hook=base("nat", "prerouting", -110)),
        "external_output": chain([*host, "goto external_translate"], hook=base("nat", "output", -110)),
        "external_postrouting": _postrouting(part.masquerade_mark),
    }


def _postrouting(mark: int) -> Chain:
    """The kernel gives a connection of this host to one of its own addresses that address as its source. A pod of
    another node would answer to the same address at its own node."""
    do, hook = ("masquerade", base("nat", "postrouting", 90))
    if mark:
        do, hook = f"meta mark set meta mark | {number(mark)}", base("filter", "postrouting", -150)
    rules = (
        f"ct direction original ct status dnat ct original {ip} daddr @external_addresses{version} "
        f'fib saddr type local oifname != "lo" {do}'
        for version, ip in IP.items()
    )
    return chain(rules, hook=hook, note=f"{mark:#x}")


# --- reading back ----------------------------------------------------------------------------------------------------


def understand(table: Table, _mask: int) -> ExternalIp:
    """What the table means, as far as it can be understood."""
    mark = table.note("external_postrouting")
    return ExternalIp(
        targets=dict(_targets(table)),
        clients=table.networks("external_pods"),
        masquerade_mark=int(mark, 16) if re.fullmatch(r"0x[0-9a-f]{1,8}", mark) else 0,
    )


def _targets(table: Table) -> Iterator[tuple[VirtualServer, Target]]:
    for version in IP:
        ranges = table.elements(f"external_ranges{version}")
        closed = table.elements(f"external_not_host{version}")
        for key, value in table.elements(f"external_targets{version}").items():
            server, cluster_ip = _server(key), address_of(value or "")
            if server and cluster_ip:
                name = (ranges.get(key) or "").removeprefix("goto ")
                sources = table.networks_of(name) if name.startswith(_FROM) else frozenset()
                yield server, Target(cluster_ip=cluster_ip, sources=sources, host=key not in closed)


def _server(key: str) -> VirtualServer | None:
    """The virtual server that an element is, None for another thing."""
    found = _KEY.fullmatch(key)
    address, protocol = (address_of(found[1]), _PROTOCOLS.get(int(found[2], 16))) if found else (None, None)
    if not found or not address or not protocol:
        return None
    return VirtualServer(address=address, protocol=protocol, port=int(found[3], 16))
