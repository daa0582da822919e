"""What the programs and recipes that metaleg-node replaces put into the kernel, as they leave it when they end."""

from __future__ import annotations

from collections.abc import Iterator

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.plan import NODES, LabNode, LabPod, LabService
from tests.lab.lab import Lab
from tests.lab.plan import Flavour

EXCLUDED: dict[Family, tuple[str, ...]] = {
    4: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
    6: ("fc00::/7", "fe80::/10"),
}
"""metaleg's default FIREWALL_EXCLUDE_DST_CIDRS."""
_MASK, _MARK, _TABLE = "0xf00000", "0x200000", 100001
_SETS: dict[Family, tuple[str, str, str]] = {
    4: ("inet", "METALEG-SRC-5d41402a", "METALEG-EXCLUDE-DST-4"),
    6: ("inet6", "inet6:METALEG-SRC-5d41402a", "METALEG-EXCLUDE-DST-6"),
}


def install_metaleg(lab: Lab, service: LabService) -> None:
    """As metaleg 0.2 does on every node for one Service. After this `Lab.set_services` must not be called: it writes
    whole tables of iptables."""
    for node in NODES:
        for family in FAMILIES:
            _metaleg(lab, node, service, family)


def _metaleg(lab: Lab, node: LabNode, service: LabService, family: Family) -> None:
    here, gateway = lab.namespace(node), service.gateway
    assert gateway
    kind, pods, excluded = _SETS[family]
    # FILTER_ENDPOINTS_FOR_NODE: the gateway takes all.
    members = [pod for pod in service.pods if node in (pod.node, gateway)]
    here.run("ipset", "restore", stdin="\n".join(_sets(kind, pods, excluded, members, family)))
    if node != gateway:
        # No priority: the kernel chooses.
        route, to = ["ip", f"-{family}", "route", "add"], str(gateway.addresses[family])
        here.run("ip", f"-{family}", "rule", "add", "fwmark", f"{_MARK}/{_MASK}", "lookup", str(_TABLE))
        here.run(*route, to, "dev", "eth0", "table", str(_TABLE))
        here.run(*route, "default", "via", to, "table", str(_TABLE))
        target, place = f"MARK --set-xmark {_MARK}/{_MASK}", ("mangle", "METALEG-RT-MARK")
    else:
        target, place = f"SNAT --to-source {service.addresses[family]}", ("nat", "METALEG-SNAT")
    chains = {
        ("mangle", "METALEG-RT-MARK"): ["-I PREROUTING -j METALEG-RT-MARK"],
        ("filter", "METALEG-REJECT"): ["-I FORWARD -j METALEG-REJECT"],
        ("nat", "METALEG-SNAT"): [
            "-I POSTROUTING -j METALEG-SNAT",
            f"-I POSTROUTING -m mark ! --mark 0x0/{_MASK} -j RETURN",
        ],
    }
    lines = []
    for (table, chain), jumps in chains.items():
        lines += [f"*{table}", f":{chain} - [0:0]", f"-A {chain} -m set --match-set {excluded} dst -j RETURN", *jumps]
        lines += [f"-A {chain} -m set --match-set {pods} src -j {target}"] if (table, chain) == place else []
        lines.append("COMMIT")
    here.run(f"{iptables(lab, family)}-restore", "--noflush", "-w", "5", stdin="\n".join([*lines, ""]))


def _sets(kind: str, pods: str, excluded: str, members: list[LabPod], family: Family) -> Iterator[str]:
    yield f"create {pods} hash:ip family {kind} timeout 0"
    yield from (f"add {pods} {pod.addresses[family]}" for pod in members)
    yield f"create {excluded} hash:net family {kind} timeout 0"
    yield from (f"add {excluded} {network}" for network in EXCLUDED[family])


def make_mangle(lab: Lab, node: LabNode) -> None:
    """The tables of mangle, which iptables makes at the first look and never takes away."""
    for family in FAMILIES:
        for action in ("-A", "-D"):
            lab.namespace(node).run(iptables(lab, family), "-t", "mangle", action, "PREROUTING", "-j", "RETURN")


def tools(lab: Lab) -> str:
    """The programs that the document's commands, and its scripts by the variable `tools`, must use here."""
    return " ".join(iptables(lab, family) for family in FAMILIES)


def iptables(lab: Lab, family: Family) -> str:
    """The program that the lab's other rules are written with, too."""
    backend = "legacy" if lab.options.flavour is Flavour.IPTABLES_LEGACY else "nft"
    return f"{'iptables' if family == 4 else 'ip6tables'}-{backend}"


EVERYBODYS = """*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
-A PREROUTING -i eth9 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:OUTPUT ACCEPT
:KUBE-SERVICES -
:KUBE-MARK-MASQ -
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
*filter
:INPUT ACCEPT
-A INPUT -i eth9 -j ACCEPT
COMMIT
"""
"""Rules of others, for both families."""


def node_manager(family: Family) -> str:
    """What network-node-manager puts beside them, for iptables-restore."""
    pods, external, internal = {
        4: ("10.244.0.0/16", "192.0.2.200", "10.96.0.100"),
        6: ("fd00:244::/48", "2001:db8:2::200", "fd00:96::64"),
    }[family]
    dnat = f"-d {external} -j DNAT --to-destination {internal}"
    return f"""*raw
:NMANAGER_PREROUTING -
:NMANAGER_OUTPUT -
-I PREROUTING -j NMANAGER_PREROUTING
-I OUTPUT -j NMANAGER_OUTPUT
COMMIT
*nat
:NMANAGER_PREROUTING -
:NMANAGER_OUTPUT -
:NMANAGER_EX_CLUS_PREROUTING -
:NMANAGER_EX_CLUS_OUTPUT -
-I PREROUTING -j NMANAGER_PREROUTING
-I OUTPUT -j NMANAGER_OUTPUT
-A NMANAGER_PREROUTING -j NMANAGER_EX_CLUS_PREROUTING
-A NMANAGER_OUTPUT -j NMANAGER_EX_CLUS_OUTPUT
-A NMANAGER_EX_CLUS_PREROUTING -s {pods} -d {external} -j KUBE-MARK-MASQ
-A NMANAGER_EX_CLUS_PREROUTING -s {pods} {dnat}
-A NMANAGER_EX_CLUS_OUTPUT -m addrtype --src-type LOCAL {dnat}
COMMIT
*filter
:NMANAGER_INPUT -
:NMANAGER_DROP_INVALID_INPUT -
-I INPUT -j NMANAGER_INPUT
-A NMANAGER_INPUT -j NMANAGER_DROP_INVALID_INPUT
-A NMANAGER_DROP_INVALID_INPUT -m conntrack --ctstate INVALID -j DROP
COMMIT
"""
