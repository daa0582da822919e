"""Stand-ins for the packet filter rules that a node has anyway: the CNI's masquerade, kube-proxy, a strict FORWARD.

They are what metaleg-node must live beside. Chains, marks and order are those of kube-proxy's iptables and nftables
modes (kubernetes.io, "Virtual IPs and Service Proxies"), the masquerade that of flannel and kindnet. Pure text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metaleg_node.core.model import Family
from metaleg_node.lab.plan import POD_NETWORK, SERVER_PORT, SERVICE_PORT, LabNode, LabPod, LabService
from tests.lab.plan import LabOptions, PodTransport

_PROTOCOLS = ("tcp", "udp")
_LOOPBACK: dict[Family, str] = {4: "127.0.0.0/8", 6: "::1"}
_MULTICAST: dict[Family, str] = {4: "224.0.0.0/4", 6: "ff00::/8"}


def iptables(node: LabNode, services: Sequence[LabService], options: LabOptions, family: Family) -> str:
    """Input of iptables-restore(8) or ip6tables-restore(8): the whole `nat` and `filter` tables of a node."""
    services = [s for s in services if family in s.families]
    chains = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "CNI-MASQ"]
    rules = [
        "-A PREROUTING -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-A POSTROUTING -j CNI-MASQ",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        *(_iptables_masquerade(node, options, family) if options.masquerade else ()),
    ]
    for service in services:
        chains += [f"KUBE-{kind}-{service.name}" for kind in ("SVC", "EXT", "FW")]
        chains += [f"KUBE-SEP-{service.name}-{pod.name}" for pod in service.pods]
        rules += _iptables_service(node, service, family)
    rules.append(f"-A KUBE-SERVICES ! -d {_LOOPBACK[family]} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    nat = ["*nat", *(f":{chain} - [0:0]" for chain in chains), *rules, "COMMIT"]
    return "\n".join([*nat, *_iptables_filter(services, options, family), ""])


def nft(node: LabNode, services: Sequence[LabService], options: LabOptions, family: Family) -> str:
    """Input of nft(8): the tables of a node for one family."""
    ip, pods = _nft_word(family), POD_NETWORK[family]
    services = [s for s in services if family in s.families]
    lines = [f"add table {ip} kube-proxy", f"delete table {ip} kube-proxy", f"table {ip} kube-proxy {{"]
    lines += ["chain mark_masq {", "meta mark set meta mark | 0x4000", "}"]
    for service in services:
        lines += _nft_service(node, service, family)
    lines += ["chain services {", *(rule for s in services for rule in _nft_entrances(s, family)), "}"]
    lines += ["chain firewall_check {", *(rule for s in services for rule in _nft_firewall(s, family)), "}"]
    checked = ["ct state new jump firewall_check"]
    lines += [
        *_nft_base("filter_prerouting_pre_dnat", "filter prerouting", "dstnat - 10", checked),
        *_nft_base("filter_output_pre_dnat", "filter output", "-110", checked),
        *_nft_base("prerouting", "nat prerouting", "dstnat", ["jump services"]),
        *_nft_base("output", "nat output", "-100", ["jump services"]),
        *_nft_base(
            "postrouting",
            "nat postrouting",
            "srcnat",
            ["meta mark & 0x4000 == 0 return", "meta mark set meta mark ^ 0x4000", "masquerade fully-random"],
        ),
        "}",
    ]
    if options.masquerade:
        rule = f"{ip} saddr {pods} {ip} daddr != {pods} masquerade fully-random"
        chain = _nft_base("postrouting", "nat postrouting", "srcnat - 5", [*_nft_overlay(node, options, family), rule])
        lines += _nft_table(family, "cni-masquerade", chain)
    if options.forward_drop:
        accepts = ["meta mark & 0x4000 == 0x4000 accept", "ct state established,related accept"]
        accepts += [f"{ip} saddr {pods} accept", f"{ip} daddr {pods} accept"]
        chain = _nft_base("forward", "filter forward", "filter", accepts, policy="drop")
        lines += _nft_table(family, "filter", chain)
    return "\n".join([*lines, ""])


def _iptables_masquerade(node: LabNode, options: LabOptions, family: Family) -> Iterator[str]:
    pods = POD_NETWORK[family]
    if options.transport is PodTransport.VXLAN:
        # What a node sends into the overlay has a source of the overlay, or a strict rp_filter would refuse it there.
        yield f"-A CNI-MASQ ! -s {pods} -d {node.pod_networks[family]} -j RETURN"
        yield f"-A CNI-MASQ ! -s {pods} -d {pods} -j MASQUERADE --random-fully"
    yield f"-A CNI-MASQ -s {pods} -d {pods} -j RETURN"
    yield f"-A CNI-MASQ -s {pods} ! -d {_MULTICAST[family]} -j MASQUERADE --random-fully"


def _iptables_filter(services: Sequence[LabService], options: LabOptions, family: Family) -> Iterator[str]:
    yield "*filter"
    yield ":KUBE-PROXY-FIREWALL - [0:0]"
    for hook in ("INPUT", "FORWARD", "OUTPUT"):
        yield f"-A {hook} -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL"
    for service in services:
        if family in service.source_ranges:
            # What KUBE-FW has not let into KUBE-EXT still has the address that it was sent to.
            for protocol in _PROTOCOLS:
                match = f"-d {service.addresses[family]} -p {protocol} --dport {SERVICE_PORT}"
                yield f"-A KUBE-PROXY-FIREWALL {match} -j DROP"
    if options.forward_drop:
        yield ":FORWARD DROP [0:0]"
        yield "-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"
        yield "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        yield f"-A FORWARD -s {POD_NETWORK[family]} -j ACCEPT"
        yield f"-A FORWARD -d {POD_NETWORK[family]} -j ACCEPT"
    yield "COMMIT"


def _iptables_service(node: LabNode, service: LabService, family: Family) -> Iterator[str]:
    svc, ext, fw = (f"KUBE-{kind}-{service.name}" for kind in ("SVC", "EXT", "FW"))
    restricted = family in service.source_ranges
    for protocol in _PROTOCOLS:
        entrance = fw if restricted else ext
        yield f"-A KUBE-SERVICES -d {service.cluster_ips[family]} -p {protocol} --dport {SERVICE_PORT} -j {svc}"
        yield f"-A KUBE-SERVICES -d {service.addresses[family]} -p {protocol} --dport {SERVICE_PORT} -j {entrance}"
        yield f"-A KUBE-NODEPORTS -p {protocol} --dport {service.node_port} -j {ext}"
    if restricted:
        yield f"-A {fw} -s {service.source_ranges[family]} -j {ext}"
    if service.local:
        yield f"-A {ext} -s {POD_NETWORK[family]} -j {svc}"
        yield f"-A {ext} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"
        yield f"-A {ext} -m addrtype --src-type LOCAL -j {svc}"
    else:
        yield f"-A {ext} -j KUBE-MARK-MASQ"
    yield from _iptables_balance(ext, service, _backends(node, service))
    yield from _iptables_balance(svc, service, service.pods)
    for pod in service.pods:
        endpoint, address = f"KUBE-SEP-{service.name}-{pod.name}", pod.addresses[family]
        target = f"{address}:{SERVER_PORT}" if family == 4 else f"[{address}]:{SERVER_PORT}"
        yield f"-A {endpoint} -s {address} -j KUBE-MARK-MASQ"
        yield from (f"-A {endpoint} -p {protocol} -j DNAT --to-destination {target}" for protocol in _PROTOCOLS)


def _backends(node: LabNode, service: LabService) -> tuple[LabPod, ...]:
    """Which pods answer what comes from outside: with externalTrafficPolicy Local only those of this node."""
    return tuple(pod for pod in service.pods if not service.local or pod.node == node)


def _iptables_balance(chain: str, service: LabService, pods: Sequence[LabPod]) -> Iterator[str]:
    for left, pod in zip(range(len(pods), 0, -1), pods, strict=True):
        chance = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        yield f"-A {chain}{chance} -j KUBE-SEP-{service.name}-{pod.name}"


def _nft_word(family: Family) -> str:
    return "ip" if family == 4 else "ip6"


def _nft_table(family: Family, name: str, body: Sequence[str]) -> list[str]:
    table = f"table {_nft_word(family)} {name}"
    return [f"add {table}", f"delete {table}", f"{table} {{", *body, "}"]


def _nft_base(name: str, hook: str, priority: str, rules: Sequence[str], *, policy: str = "accept") -> list[str]:
    kind, point = hook.split()
    declaration = f"type {kind} hook {point} priority {priority}; policy {policy};"
    return [f"chain {name} {{", declaration, *rules, "}"]


def _nft_overlay(node: LabNode, options: LabOptions, family: Family) -> Iterator[str]:
    ip, pods = _nft_word(family), POD_NETWORK[family]
    if options.transport is PodTransport.VXLAN:
        yield f"{ip} saddr != {pods} {ip} daddr {node.pod_networks[family]} return"
        yield f"{ip} saddr != {pods} {ip} daddr {pods} masquerade fully-random"


def _nft_service(node: LabNode, service: LabService, family: Family) -> Iterator[str]:
    ip, backends = _nft_word(family), _backends(node, service)
    for pod in service.pods:
        address = pod.addresses[family]
        target = f"{address}:{SERVER_PORT}" if family == 4 else f"[{address}]:{SERVER_PORT}"
        yield f"chain endpoint_{service.name}_{pod.name} {{"
        yield f"{ip} saddr {address} jump mark_masq"
        yield f"meta l4proto {{ tcp, udp }} dnat to {target}"
        yield "}"
    yield from [f"chain service_{service.name} {{", *_nft_balance(service, service.pods), "}"]
    yield f"chain external_{service.name} {{"
    if service.local:
        yield f"{ip} saddr {POD_NETWORK[family]} goto service_{service.name}"
        yield f"fib saddr type local jump mark_masq\nfib saddr type local goto service_{service.name}"
    else:
        yield "jump mark_masq"
    yield from _nft_balance(service, backends)
    yield "}"


def _nft_balance(service: LabService, pods: Sequence[LabPod]) -> Iterator[str]:
    if pods:
        targets = ", ".join(f"{i} : goto endpoint_{service.name}_{pod.name}" for i, pod in enumerate(pods))
        yield f"numgen random mod {len(pods)} vmap {{ {targets} }}"


def _nft_firewall(service: LabService, family: Family) -> Iterator[str]:
    ip, ports = _nft_word(family), "meta l4proto { tcp, udp } th dport"
    if family in service.source_ranges:
        here = f"{ip} daddr {service.addresses[family]} {ports} {SERVICE_PORT}"
        yield f"{here} {ip} saddr != {service.source_ranges[family]} drop"


def _nft_entrances(service: LabService, family: Family) -> Iterator[str]:
    ip, ports = _nft_word(family), "meta l4proto { tcp, udp } th dport"
    yield f"{ip} daddr {service.cluster_ips[family]} {ports} {SERVICE_PORT} goto service_{service.name}"
    yield f"{ip} daddr {service.addresses[family]} {ports} {SERVICE_PORT} goto external_{service.name}"
    local = f"fib daddr type local {ip} daddr != {_LOOPBACK[family]}"
    yield f"{local} {ports} {service.node_port} goto external_{service.name}"
