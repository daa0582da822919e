"""ML-3xx: other programs on this host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from shlex import quote

from metaleg_node.core.problems import Code
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.doctor.checks.forwarding import of_problems
from metaleg_node.doctor.diagnosis import Finding
from metaleg_node.doctor.facts import KUBE_PROXY_DEVICE, Facts
from metaleg_node.doctor.host_files import keyfile, true
from metaleg_node.kernel import other_filters

_TRANSLATION = 90
"""The priority of our chain at the hook postrouting."""
_LOCAL, _MAIN, _DEFAULT = 255, 254, 253
_EGRESS_PRODUCTS = {
    "KUBE-VIP-EGRESS": "kube-vip's egress",
    "EGRESSGATEWAY-": "spidernet's egressgateway",
    "ANTREA-": "Antrea",
    "COIL": "coil",
}
"""Chains by what they begin with."""
_BPF_DEVICES = {
    "cilium_host": "Cilium",
    "cilium_net": "Cilium",
    "bpfin.cali": "Calico's eBPF data plane",
    "bpfout.cali": "Calico's eBPF data plane",
}
_BPF_PROGRAMS = {"cil_": "Cilium", "calico_": "Calico's eBPF data plane", "cali_": "Calico's eBPF data plane"}
"""What traffic control has on interfaces, by what the programs' names begin with."""
_CILIUM_CONFIG = "run/cilium/state/globals/node_config.h"
"""What Cilium's agent compiles its programs with, on the host's own file system."""
_MANAGED = ("ManageForeignRoutingPolicyRules", "ManageForeignRoutes")
_SHOWN = 5
"""Chains that are looked at one by one."""


def marks(facts: Facts) -> Iterator[Finding]:
    """301"""
    yield from of_problems(
        (one for one in facts.collisions if one.code is Code.FOREIGN_MARKS),
        "Steered packets are taken for that program's, or lose their way.",
        "let firewall.mark_mask have bits that nobody else uses (`metaleg-node plan` shows what that changes), or "
        "change the mask of that program",
    )


def numbers(facts: Facts) -> Iterator[Finding]:
    """302"""
    yield from of_problems(
        (one for one in facts.collisions if one.code is Code.FOREIGN_NUMBERS),
        "Packets follow that rule or route in place of ours, or theirs are removed with ours.",
        "set firewall.rule_priority or firewall.route_table_base to numbers that are free",
    )


def rules_before(facts: Facts) -> Iterator[Finding]:
    """303"""
    first = facts.config.firewall.rule_priority
    own = {_LOCAL, _MAIN, _DEFAULT, 0}
    for rule in sorted(facts.others.rules):
        general = rule.mask is None or (rule.inverted and not rule.mask & facts.config.firewall.mark_mask & rule.mark)
        if rule.priority >= first or rule.selective or not general or rule.table in own:
            continue
        out = [found.interface for found in facts.machine.defaults(rule.table) if found.family == rule.family]
        if out:
            yield Finding(
                seen=f"the rule {rule.text} comes before ours ({first}), and table {rule.table} has a default route by "
                f"{out[0]}",
                follows="All that is steered leaves by that route, as with a VPN that takes everything; our guard "
                "drops it, since it would have a wrong source.",
                mend=f"let firewall.rule_priority be less than {rule.priority}, or that program spare the mark "
                f"{facts.config.firewall.mark_mask:#x}",
            )


def networkd(facts: Facts) -> Iterator[Finding]:
    """304"""
    if not facts.files.exists("run/systemd/netif/links"):
        return
    found = facts.files.configured("systemd", "networkd.conf", "Network", _MANAGED)
    kept = [key for key in _MANAGED if key not in found or true(found[key].value)]
    if kept:
        where = found[kept[0]].file if kept[0] in found else "no file sets it, and the default is yes"
        yield Finding(
            seen=f"systemd-networkd runs with {kept[0]} on ({where})",
            follows="It removes our rules and routes when it is restarted or reloaded; the service puts them back "
            "within a second.",
            mend="mkdir -p /etc/systemd/networkd.conf.d; printf '[Network]\\nManageForeignRoutingPolicyRules=no\\n"
            "ManageForeignRoutes=no\\n' > /etc/systemd/networkd.conf.d/metaleg-node.conf; "
            "systemctl restart systemd-networkd",
        )


def flushes(facts: Facts) -> Iterator[Finding]:
    """305"""
    text = facts.files.text("etc/nftables.conf")
    if facts.files.enabled("nftables.service") and re.search(r"^\s*flush\s+ruleset\b", text, re.MULTILINE):
        yield Finding(
            seen="/etc/nftables.conf has `flush ruleset`, and nftables.service is enabled",
            follows="When it is started or reloaded it takes our table with all others; the service puts it back "
            "within a second, in which pods' packets are not steered.",
            mend="in that file, replace `flush ruleset` by `table inet filter` and `delete table inet filter` for "
            "each table that it makes",
        )
    settings = dict(
        re.findall(r"^\s*(\w+)\s*=\s*(\S+)", facts.files.text("etc/firewalld/firewalld.conf"), re.MULTILINE)
    )
    flush_all = true(settings.get("FlushAllOnReload", "yes"))
    if facts.files.exists("run/firewalld") and settings.get("FirewallBackend") == "iptables" and flush_all:
        yield Finding(
            seen="firewalld runs with FirewallBackend=iptables and FlushAllOnReload (/etc/firewalld/firewalld.conf)",
            follows="A reload takes the rules of kube-proxy and the CNI, until these write them anew.",
            mend="set FirewallBackend=nftables there, and restart firewalld",
        )


def network_manager(facts: Facts) -> Iterator[Finding]:
    """306"""
    paths = {path.interface: path.name for path in facts.config.return_path.l2}
    for name, device in facts.devices.items():
        state = keyfile(facts.files.text(f"run/NetworkManager/devices/{device.number}"), "device")
        pods = device.kind == "veth" or name.startswith(("cali", "lxc", "flannel", "cni"))
        if true(state.get("managed", "")) and (name in paths or pods):
            what = f"of return path {paths[name]}" if name in paths else "of pods"
            yield Finding(
                seen=f"NetworkManager manages {name}, {what} (/run/NetworkManager/devices/{device.number})",
                follows="It takes away addresses and routes that it has not made, and may set the interface down.",
                mend=f"printf '[keyfile]\\nunmanaged-devices=interface-name:%s\\n' {quote(name)} > "
                "/etc/NetworkManager/conf.d/metaleg-node.conf; nmcli general reload",
            )


def bpf(facts: Facts) -> Iterator[Finding]:
    """307"""
    if hint := pools.unseen(facts.devices, facts.config):
        yield Finding(
            seen=hint,
            follows="Replies of pods leave by the default route.",
            mend='return_path.match = ["conntrack", "source", "rules"]',
        )
    found = _carriers(facts) if facts.config.egress.enabled else {}
    config = facts.files.text(_CILIUM_CONFIG)
    if config and not re.search(r"^#define ENABLE_HOST_ROUTING\b", config, re.MULTILINE):
        found.pop("Cilium", None)
    for program, seen in found.items():
        yield Finding(
            seen=f"{seen}: {program} carries packets here",
            follows="What eBPF carries between pods and the network the packet filter does not see: no egress for "
            "pods.",
            mend="with Cilium: bpf.hostLegacyRouting=true; with Calico: linuxDataplane: Iptables or Nftables. Where "
            'that is so, doctor.ignore = ["ML-307"]; for return paths alone, egress.enabled = false',
        )


def _carriers(facts: Facts) -> dict[str, str]:
    """Programs that carry packets by eBPF, each with what tells of it."""
    found = {
        whose: f"the eBPF program {name} is on the interface {interface}"
        for interface, names in facts.machine.programs(facts.devices.values()).items()
        for name in sorted(names)
        for begin, whose in _BPF_PROGRAMS.items()
        if name.rpartition("/")[2].startswith(begin)
    }
    devices = {whose: f"there is the interface {name}" for name, whose in _BPF_DEVICES.items() if name in facts.devices}
    return found | devices


def other_translation(facts: Facts) -> Iterator[Finding]:
    """308"""
    for chain in facts.chains:
        if chain.hook == "postrouting" and chain.type == "nat" and chain.priority < _TRANSLATION:
            yield Finding(
                seen=f"table {chain.table} chain {chain.name} translates at priority {chain.priority}, before ours "
                f"({_TRANSLATION})",
                follows="The first translation counts: a pod may leave with that program's address. Our guard drops "
                "such packets.",
                mend=f"let it spare the pods of labelled Services: nft list chain {chain.table} {chain.name}",
            )
    products = {
        what: chain.name
        for chain in (*facts.chains, *facts.legacy_chains)
        for begin, what in _EGRESS_PRODUCTS.items()
        if chain.name.upper().startswith(begin)
    }
    for what, name in products.items():
        yield Finding(
            seen=f"there is the chain {name}, of {what}",
            follows="Two programs choose the source of pods' packets; which one wins for a pod is nobody's decision.",
            mend="let each have pods of its own, or end one of them",
        )


def ipvs(facts: Facts) -> Iterator[Finding]:
    """309"""
    if facts.config.external_ip.enabled and KUBE_PROXY_DEVICE not in facts.devices:
        yield Finding(
            seen=f"external_ip.enabled is true, and there is no interface {KUBE_PROXY_DEVICE}: kube-proxy does not "
            "work by IPVS here",
            follows="External-IP does nothing: only IPVS cuts LoadBalancer addresses off.",
            mend="set external_ip.enabled = false",
        )


_SHORT_CUT = re.compile(r"^ip6? saddr \S+ .*(jump|goto)|iifname|^-A \S+ (-s|-i) .*-[jg] ")
"""As nft and iptables print a rule for pods, by their network or interface."""


def local_detector(facts: Facts) -> Iterator[Finding]:
    """310"""
    chains = (one for one in (*facts.chains, *facts.legacy_chains) if one.name.startswith(("KUBE-EXT-", "external-")))
    for chain in islice(chains, _SHOWN):
        rules = other_filters.rules_of(chain)
        # What kube-proxy writes for externalTrafficPolicy Local, and for that alone.
        of_local = any("type local" in rule.lower() and "mark" not in rule.lower() for rule in rules)
        short_cut = any(map(_SHORT_CUT.search, rules))
        if of_local and not short_cut:
            yield Finding(
                seen=f"table {chain.table} chain {chain.name} has no rule for pods: kube-proxy does not know which "
                "packets are of pods (clusterCIDR)",
                follows="Pods reach LoadBalancer addresses with externalTrafficPolicy Local only on nodes that have an "
                "endpoint.",
                mend="set clusterCIDR, or detectLocalMode, in the configuration of kube-proxy",
            )
            return


def flowtables(_: Facts) -> Iterator[Finding]:
    """311"""
    for name in other_filters.flowtables():
        yield Finding(
            seen=f"there is the flowtable {name}",
            follows="Packets of connections in it pass no chain any more: neither our guard nor our counters see "
            "them, and a gateway that moves takes no effect on them.",
            mend=f"leave what pods send out of it: nft list flowtable {name}",
        )
