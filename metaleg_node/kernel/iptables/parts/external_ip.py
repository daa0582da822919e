"""LoadBalancer addresses to ClusterIPs in iptables.

What our chain translates comes to no other rule of the nat table (DNAT ends it), and then to IPVS, for which the
ClusterIP is an address of this host. A set tells whether a packet has to look for its rule: there is one for each
address and port.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from metaleg_node.core.firewall.external_ip import ExternalIp, Target, VirtualServer
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.kernel.elements import address_of
from metaleg_node.kernel.iptables.ruleset import (
    Hook,
    Piece,
    Ruleset,
    goto,
    jump,
    network_set,
    server_set,
    set_name,
    set_of_key,
    when,
)

_RANGES = "r"
_KEY = re.compile(r"(\S+),(tcp|udp|sctp):(\d+)")
_TARGET = re.compile(r'comment "(\S+) (\S+) (host|pods)"')


def render(part: ExternalIp, firewall: Firewall, family: Family) -> Piece:
    """Its sets and chains for one family."""
    del firewall
    targets = {s: t for s, t in sorted(part.targets.items(), key=_order) if s.address.version == family}
    servers = set_name(family, "external")
    sets = {
        servers: server_set(family, {_element(server): _comment(target) for server, target in targets.items()}),
        set_name(family, "external-pods"): network_set(family, part.clients),
    }
    for target in targets.values():
        if target.key:
            sets[set_of_key(family, _RANGES, target.key)] = network_set(family, target.sources)
    known = when(servers, "dst,dst")
    pods = [
        f"{match_of(server)}{_of_ranges(family, target)} -j DNAT --to-destination {target.cluster_ip}"
        for server, target in targets.items()
    ]
    host = [
        f"{match_of(server)} -j DNAT --to-destination {target.cluster_ip}"
        for server, target in targets.items()
        if target.host
    ]
    table = "mangle" if part.masquerade_mark else "nat"
    return Piece(
        sets=sets,
        chains={
            ("nat", "EXTERNAL-IN"): [
                f"{when(set_name(family, 'external-pods'), 'src')} {known} {goto('EXTERNAL-PODS')}"
            ],
            ("nat", "EXTERNAL-PODS"): pods,
            ("nat", "EXTERNAL-OUT"): [f"{known} {goto('EXTERNAL-HOST')}"],
            ("nat", "EXTERNAL-HOST"): host,
            (table, "EXTERNAL"): [
                f"-m conntrack --ctdir ORIGINAL --ctstate DNAT -m addrtype --src-type LOCAL {jump('EXTERNAL-SELF')}"
            ],
            (table, "EXTERNAL-SELF"): list(_masquerade(part, family)),
        },
        hooks={
            ("nat", "EXTERNAL-IN"): Hook(chain="PREROUTING"),
            ("nat", "EXTERNAL-OUT"): Hook(chain="OUTPUT"),
            (table, "EXTERNAL"): Hook(chain="POSTROUTING"),
        },
        notes={"masquerade-mark": f"{part.masquerade_mark:#x}"},
    )


def _order(item: tuple[VirtualServer, Target]) -> tuple[int, int, str, int]:
    server = item[0]
    return server.address.version, int(server.address), server.protocol, server.port


def _element(server: VirtualServer) -> str:
    return f"{server.address},{server.protocol.lower()}:{server.port}"


def _comment(target: Target) -> str:
    return f"{target.cluster_ip} {target.key or '-'} {'host' if target.host else 'pods'}"


def match_of(server: VirtualServer) -> str:
    """What the rules of a virtual server begin with."""
    protocol = server.protocol.lower()
    return f"-d {server.address} -p {protocol} -m {protocol} --dport {server.port}"


def _of_ranges(family: Family, target: Target) -> str:
    return f" {when(set_of_key(family, _RANGES, target.key), 'src')}" if target.key else ""


def _masquerade(part: ExternalIp, family: Family) -> Iterator[str]:
    """The kernel gives a connection of this host to one of its own addresses that address as its source. A pod of
    another node would answer to the same address at its own node."""
    mark = part.masquerade_mark
    do = f"MARK --set-xmark {mark:#x}/{mark:#x}" if mark else "MASQUERADE"
    for address in sorted({s.address for s in part.targets if s.address.version == family}, key=int):
        yield f"! -o lo -m conntrack --ctorigdst {address} -j {do}"


# --- reading back ----------------------------------------------------------------------------------------------------


def understand(ruleset: Ruleset, _mask: int) -> ExternalIp:
    """What is held, as far as it can be understood."""
    mark = ruleset.notes.get("masquerade-mark", "")
    return ExternalIp(
        targets=dict(_targets(ruleset)),
        clients=ruleset.networks("external-pods"),
        masquerade_mark=int(mark, 16) if re.fullmatch(r"0x[0-9a-f]{1,8}", mark) else 0,
    )


def _targets(ruleset: Ruleset) -> Iterator[tuple[VirtualServer, Target]]:
    for family in FAMILIES:
        for key, value in ruleset.elements(set_name(family, "external")).items():
            server, target = _KEY.fullmatch(key), _TARGET.fullmatch(value)
            address = address_of(server[1]) if server else None
            cluster_ip = address_of(target[1]) if target else None
            if server and target and address and cluster_ip:
                ranges = set_of_key(family, _RANGES, target[2]) if re.fullmatch("[0-9a-f]{32}", target[2]) else ""
                yield (
                    VirtualServer(address=address, protocol=server[2].upper(), port=int(server[3])),
                    Target(cluster_ip=cluster_ip, sources=ruleset.networks_of(ranges), host=target[3] == "host"),
                )
