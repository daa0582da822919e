"""ML-2xx: forwarding, reverse-path filters, and what else the host does with packets on their way."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from shlex import quote

from metaleg_node.core.firewall.egress import Treatment
from metaleg_node.core.model import FAMILIES, MAIN_TABLE
from metaleg_node.core.problems import Code, Problem
from metaleg_node.doctor.diagnosis import Finding
from metaleg_node.doctor.facts import KUBE_PROXY_DEVICE, Facts

_STRICT = "1"
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_OF_ALL = tuple(name.replace("/", ".") for name in _FORWARDING.values())


def of_problems(problems: Iterable[Problem], follows: str, mend: str) -> Iterator[Finding]:
    """What is told elsewhere too, in the form of findings."""
    for problem in problems:
        yield Finding(seen=problem.text, follows=follows, mend=mend)


def forwarding(facts: Facts) -> Iterator[Finding]:
    """201"""
    used = {address.version for node in facts.cluster.nodes for address in node.internal_ips}
    for family in FAMILIES:
        name = _FORWARDING[family]
        if family in used and facts.sysctl(name) == "0":
            dotted = name.replace("/", ".")
            yield Finding(
                seen=f"{dotted} is 0, and the nodes have IPv{family} addresses",
                follows="This node forwards nothing: neither for its pods, nor as a gateway.",
                mend=f"sysctl -w {dotted}=1; echo '{dotted} = 1' >> /etc/sysctl.d/90-metaleg-node-forwarding.conf",
            )


def one_interface(facts: Facts) -> Iterator[Finding]:
    """212"""
    of_one = (one for one in facts.problems(Code.FORWARDING_OFF) if not any(name in one.text for name in _OF_ALL))
    yield from of_problems(
        of_one,
        "What enters there is dropped, though the host forwards otherwise.",
        "set it to 1 with `sysctl -w`, and in /etc/sysctl.d",
    )


def strict(facts: Facts) -> Iterator[Finding]:
    """202"""
    yield from of_problems(
        facts.problems(Code.RP_FILTER),
        "The kernel drops these packets without a word; ML-204 counts them.",
        'set host.rp_filter = "loose", or `sysctl -w net.ipv4.conf.INTERFACE.rp_filter=2`',
    )


def strict_files(facts: Facts) -> Iterator[Finding]:
    """203"""
    for name, line in facts.files.sysctls("net/ipv4/conf/*/rp_filter").items():
        interface = name.split("/")[3]
        concerned = interface in ("all", "default") or any(fnmatch.fnmatch(own, interface) for own in facts.devices)
        if line.value == _STRICT and concerned:
            yield Finding(
                seen=f"{line.file} sets {name.replace('/', '.')} to 1",
                follows="The filter is strict again after the next boot, or when an interface appears, until the "
                "service has loosened it: packets of steered pods are dropped that long.",
                mend=f"write 2 there, or a file that comes later: echo '{name.replace('/', '.')} = 2' > "
                "/etc/sysctl.d/99-rp-filter.conf",
            )


def reverse_path_drops(facts: Facts) -> Iterator[Finding]:
    """204"""
    if dropped := facts.growth("reverse_path_drops"):
        yield Finding(
            seen=f"reverse-path filters dropped {dropped} packets while doctor looked "
            "(IPReversePathFilter in /proc/net/netstat)",
            follows="Somebody sends what this host takes for forged: maybe pods that are steered here.",
            mend="find the interface: sysctl -w net.ipv4.conf.all.log_martians=1; dmesg -w; then set its rp_filter "
            "to 2",
        )


def advertisements(facts: Facts) -> Iterator[Finding]:
    """205"""
    for found in facts.machine.defaults(MAIN_TABLE):
        base = f"net/ipv6/conf/{found.interface}"
        if not found.advertised or facts.sysctl(f"{base}/forwarding") != "1":
            continue
        if facts.sysctl(f"{base}/accept_ra") == "1":
            yield Finding(
                seen=f"the IPv6 default route by {found.interface} is of a router's advertisement, forwarding is 1 "
                f"and net.ipv6.conf.{found.interface}.accept_ra is 1",
                follows="A host that forwards takes no more advertisements with 1: the route ends with its lifetime, "
                "and IPv6 with it.",
                mend=f"sysctl -w {quote(f'net.ipv6.conf.{found.interface}.accept_ra=2')}, and in /etc/sysctl.d",
            )


def forward_drop(facts: Facts) -> Iterator[Finding]:
    """206"""
    yield from of_problems(
        (one for one in facts.collisions if one.code is Code.FORWARD_DROP),
        "Pods' packets are dropped on their way to the gateway, or out of it.",
        "accept the pod networks there, with Docker: iptables -I DOCKER-USER -s POD-NETWORK -j ACCEPT, and with -d",
    )


def redirects(facts: Facts) -> Iterator[Finding]:
    """207"""
    services = facts.situation.desired.services
    served = (one for one in services if one.elsewhere and one.elsewhere.treatment is Treatment.SNAT)
    pods = {pod.address for one in served for pod in one.service.pods if pod.address.version == 4} - facts.own_pods
    interfaces, on_link = facts.machine.lookup(pods)
    out = {found.interface for found in facts.machine.defaults(MAIN_TABLE) if found.family == 4}
    # One of the two is enough (ip-sysctl, send_redirects).
    every = facts.sysctl("net/ipv4/conf/all/send_redirects") == "1"
    for name in sorted(out & {interfaces[address] for address in on_link}):
        if every or facts.sysctl(f"net/ipv4/conf/{name}/send_redirects") == "1":
            yield Finding(
                seen=f"this gateway takes packets of pods that are its neighbours in by {name} and sends them out by "
                f"it, and send_redirects is 1 for {'all' if every else name}",
                follows="It tells these pods, or their node, that there is a shorter way. Who heeds that sends past "
                "the gateway, with a wrong source.",
                mend="sysctl -w net.ipv4.conf.all.send_redirects=0 " + quote(f"net.ipv4.conf.{name}.send_redirects=0"),
            )


def _to_nodes(facts: Facts) -> set[str]:
    """The interfaces by which the other nodes are reached."""
    others = {address for node in facts.cluster.nodes if node.name != facts.me for address in node.internal_ips}
    return {*facts.machine.lookup(others)[0].values()} & facts.devices.keys()


def bridge_filter(facts: Facts) -> Iterator[Finding]:
    """208"""
    bridges = [name for name in sorted(_to_nodes(facts)) if facts.devices[name].kind == "bridge"]
    if bridges and facts.sysctl("net/bridge/bridge-nf-call-iptables") == "1":
        yield Finding(
            seen=f"the nodes are reached by the bridge {bridges[0]}, and net.bridge.bridge-nf-call-iptables is 1",
            follows="Where pod networks are routed between nodes (host-gw), answers that this gateway has translated "
            "back are bridged out of the port that they came in by, and lost. Overlays such as VXLAN lose none.",
            mend=f"take the nodes' card out of {bridges[0]}, or, where no pod is on a bridge, "
            "sysctl -w net.bridge.bridge-nf-call-iptables=0",
        )


def mtu(facts: Facts) -> Iterator[Finding]:
    """209"""
    exits = [facts.devices[name] for name in _to_nodes(facts)]
    docker = {device.number for device in facts.devices.values() if device.name.startswith(("docker", "br-"))}
    others = (one for one in facts.devices.values() if one not in exits)
    pods = [one for one in others if one.kind == "veth" and one.master not in docker]
    if not exits or not pods:
        return
    narrow, wide = min(exits, key=lambda one: one.mtu), max(pods, key=lambda one: one.mtu)
    if wide.mtu > narrow.mtu:
        yield Finding(
            seen=f"pods' {wide.name} has an MTU of {wide.mtu}, and {narrow.name}, by which nodes are reached, of "
            f"{narrow.mtu}",
            follows="Large packets of steered pods do not fit. Those that must not be fragmented are lost where ICMP "
            "does not get through: connections begin and then hang.",
            mend=f"set the CNI's MTU to {narrow.mtu} or less, or that of {narrow.name} to {wide.mtu} on all nodes",
        )


def marks_count(facts: Facts) -> Iterator[Finding]:
    """210"""
    for name in ("all", *facts.devices):
        if facts.sysctl(f"net/ipv4/conf/{name}/src_valid_mark") == "1":
            yield Finding(
                seen=f"net.ipv4.conf.{name}.src_valid_mark is 1, as wg-quick and Tailscale set it",
                follows="Reverse-path filters go by marks. Our routes are made for that; routes that others wrote by "
                "hand for our marks may not be.",
                mend="nothing, while egress works",
            )


def ipvs_arp(facts: Facts) -> Iterator[Finding]:
    """211"""
    if KUBE_PROXY_DEVICE not in facts.devices or facts.config.host.strict_arp:
        return
    wanted = {"arp_ignore": 1, "arp_announce": 2}
    loose = [name for name, least in wanted.items() if int(facts.sysctl(f"net/ipv4/conf/all/{name}") or 0) < least]
    if loose:
        yield Finding(
            seen=f"{KUBE_PROXY_DEVICE} holds the LoadBalancer addresses, and net.ipv4.conf.all.{loose[0]} is not "
            f"{wanted[loose[0]]}",
            follows="Every node answers ARP for every LoadBalancer address: answers go to the wrong node.",
            mend="set host.strict_arp = true, or kube-proxy's ipvs.strictARP: true",
        )
