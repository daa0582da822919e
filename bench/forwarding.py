"""What a packet costs on its way through a node: with nothing of ours, with metaleg-node and either packet filter, with
the least that steers or translates when written by hand, and with the layout of one ipset and one rule per Service.

Every layout stands in a namespace of its own. In each round every one is measured once, each right after the node with
nothing of ours, since a virtual machine is now faster and now slower; the ratios are those of such pairs. Connections
are made anew before each measurement and forgotten after it: no layout has the warmer or fuller connection table.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from bench.cluster import FIRST_LOAD_BALANCER, FIRST_POD, OTHER_PODS, Cluster
from bench.daemon import Daemon, workspace
from bench.node import ADDRESS, LAN, PODS, nodes
from bench.results import Figure
from bench.traffic import Sender, Stream, Vary
from metaleg_node.kernel.netlink.socket import NETLINK_NETFILTER, NetlinkSocket, Request
from metaleg_node.lab.namespaces import Namespace

_SERVERS = IPv4Address("198.51.100.0")
_PODS = 10_000
_WARM_UP = 40_000
"""Packets to open the connections with, and as many answers: 98 of 100 pods get one."""
_BURST, _SECONDS = 3_200, 0.1
_SLOW = 10
"""The layout of one rule per Service is so slow that it gets this fraction of the pods and packets."""
_FORGET_CONNECTIONS = 0x0102
"""IPCTNL_MSG_CT_DELETE of ctnetlink; without a tuple: all."""


_TITLES = {
    "plain": "nothing of ours",
    "plain-again": "the same node a second time (the method's error)",
    "steer": "metaleg-node",
    "gateway": "metaleg-node as the gateway",
    "iptables-steer": "metaleg-node with iptables",
    "iptables-gateway": "metaleg-node with iptables as the gateway",
    "hand-steer": "the least by hand",
    "hand-gateway": "the least by hand as the gateway",
    "ipset-steer": "one ipset and rule per Service",
    "ipset-gateway": "one ipset and rule per Service as the gateway",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Packets of one kind through one layout; `answers` come back from the servers. What is measured is either."""

    layout: str
    kind: str
    packets: Stream
    answers: Stream
    back: bool = False


def measure(rounds: int, *, services: int = 1000, others: int = 2) -> list[Figure]:
    """Ratios of packets per second, layout by layout, to the node with nothing of ours; `others` nodes are gateways."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with nodes(_TITLES, others + 1) as spaces, workspace() as directory:
        for name, cluster in _clusters(services, others).items():
            Daemon(spaces[name], directory / name).apply(cluster)
            other = f"iptables-{name}"
            Daemon(spaces[other], directory / other).apply(cluster, firewall={"backend": "iptables"})
        for gateway in (False, True):
            role = "gateway" if gateway else "steer"
            _by_hand(spaces[f"hand-{role}"], gateway=gateway)
            _ipset_layout(spaces[f"ipset-{role}"], services, gateway=gateway)
        cases = list(_cases(_PODS // services))
        plain = {case.kind: case for case in cases if case.layout == "plain"}
        pairs: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases if case.layout != "plain"}
        for _ in range(rounds):
            for case, found in pairs.items():
                found.append((cost(spaces["plain"], plain[case.kind]), cost(spaces[case.layout], case)))
    return list(_figures(pairs))


def policy_rules(rounds: int) -> list[Figure]:
    """What policy rules alone cost the packets that they do not concern, without anything else of ours."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rules = [f"rule add pref 4700 fwmark {slot << 24:#x}/0x3f000000 lookup {1_000_000 + slot}" for slot in range(1, 64)]
    over = ["rule add pref 4701 nop", "rule add pref 4699 fwmark 0/0x3f000000 goto 4701"]
    layouts = {"no": [], "1": rules[:1], "63": rules, "63 jumped over": [*over, *rules]}
    case = Case(
        layout="", kind="", packets=from_pods(OTHER_PODS), answers=to_address(IPv4Address(ADDRESS), share=_PODS)
    )
    with nodes([f"rules-{number}" for number in range(len(layouts))], 1) as spaces:
        for space, commands in zip(spaces.values(), layouts.values(), strict=True):
            space.ip(commands)
        return list(beside_first(dict(zip(layouts, spaces.values(), strict=True)), case, rounds))


def parts(rounds: int) -> list[Figure]:
    """What single parts of the layout cost the packets of established connections that they do not concern."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    case = Case(
        layout="", kind="", packets=from_pods(OTHER_PODS), answers=to_address(IPv4Address(ADDRESS), share=_PODS)
    )
    with nodes([f"part-{number}" for number in range(len(_PARTS))], 1) as spaces:
        for space, text in zip(spaces.values(), _PARTS.values(), strict=True):
            space.run("nft", "-f", "-", stdin=f"table inet part {{\n{text}\n}}\n")
        spaces["part-1"].ip(["rule add pref 4700 fwmark 0x1000000/0x3f000000 lookup 1000001"])
        return list(beside_first(dict(zip(_PARTS, spaces.values(), strict=True)), case, rounds))


def beside_first(spaces: Mapping[str, Namespace], case: Case, rounds: int, *, aim: str = "") -> Iterator[Figure]:
    """What a packet costs on each node, and beside the first of them, which is measured right before each other one;
    `aim` names the one that has one."""
    (first, reference), *others = spaces.items()
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in others}
    for _ in range(rounds):
        for name, space in others:
            pairs[name].append((cost(reference, case), cost(space, case)))
    yield _nanoseconds(first, [before for found in pairs.values() for before, _ in found])
    for name, found in pairs.items():
        yield _nanoseconds(name, [after for _, after in found])
        yield Figure(name=f"{name}: more than {first}", unit="ns/packet", values=tuple(b - a for a, b in found))
        yield _rate(name, found, aim=name == aim)


def _nanoseconds(name: str, values: Iterable[float]) -> Figure:
    return Figure(name=name, unit="ns/packet", values=tuple(values))


def _rate(name: str, pairs: Iterable[tuple[float, float]], *, aim: bool) -> Figure:
    values = tuple(before / after for before, after in pairs)
    return Figure(name=f"{name}: packets/s", unit="ratio", values=values, at_least=0.95 if aim else None)


def _base(hook: str, priority: int, *rules: str) -> str:
    return "\n".join([f"chain {hook} {{ type filter hook {hook} priority {priority};", *rules, "}"])


_PARTS = {
    "nothing of ours": "",
    "one policy rule": "",
    "a chain in prerouting with the cheapest question": _base("prerouting", -90, "ct direction reply accept"),
    "what prerouting asks first: a reply? confirmed, without the label?": _base(
        "prerouting", -90, "ct direction reply accept", "ct status confirmed ct label ! 91 accept"
    ),
    "what the guard asks: no mark? confirmed?": _base(
        "postrouting", 110, "meta mark & 0x3f000000 != 0 drop", "ct status ! confirmed ct status snat accept"
    ),
    "in the egress hook of the network card, where nft could hand packets on without a policy rule: a mark?": (
        f"}}\ntable netdev part {{\nchain egress {{ type filter hook egress device {LAN} priority 0;\n"
        "meta mark & 0x3f000000 != 0 drop\n}"
    ),
    "nothing of ours, a second time (the method's error)": "",
}


def _clusters(services: int, others: int) -> Mapping[str, Cluster]:
    """All pods are this node's; their gateways are the other nodes, or this one."""
    pods = _PODS // services
    return {
        "steer": Cluster(services=services, pods=pods, nodes=others + 1, gateways=others, first_gateway=2),
        "gateway": Cluster(services=services, pods=pods, nodes=others + 1),
    }


def _cases(share: int) -> Iterator[Case]:
    masqueraded = to_address(IPv4Address(ADDRESS), share=_PODS)
    translated = to_address(FIRST_LOAD_BALANCER, share=share)
    others = (name for name in _TITLES if name != "ipset-gateway")
    egress = {
        "plain": masqueraded,
        **dict.fromkeys(("steer", "iptables-steer", "hand-steer", "ipset-steer"), to_address(FIRST_POD)),
        **dict.fromkeys(("gateway", "iptables-gateway", "ipset-gateway"), translated),
        "hand-gateway": to_address(FIRST_LOAD_BALANCER, share=_PODS),
    }
    for layout in others:
        case = Case(layout=layout, kind="other pods", packets=from_pods(OTHER_PODS), answers=masqueraded)
        yield from (case, replace(case, kind=f"{case.kind}, answers", back=True))
    for layout, answers in egress.items():
        case = Case(layout=layout, kind="egress pods", packets=from_pods(FIRST_POD), answers=answers)
        yield from (case, replace(case, kind=f"{case.kind}, answers", back=True))


def from_pods(pods: IPv4Address) -> Stream:
    """Packets of 10,000 pods, from this address on, to servers outside."""
    return Stream(vary=Vary.SOURCE, base=pods, other=_SERVERS, count=_PODS)


def to_address(address: IPv4Address, *, share: int = 1) -> Stream:
    """Answers of the servers to 10,000 addresses, from this one on; each stands for `share` pods."""
    return Stream(vary=Vary.DESTINATION, base=address, other=_SERVERS, count=_PODS, share=share)


def cost(node: Namespace, case: Case) -> float:
    """Nanoseconds of processor time for a packet of an established connection."""
    less = _SLOW if case.layout.startswith("ipset") else 1
    packets, answers = (replace(stream, count=_PODS // less) for stream in (case.packets, case.answers))
    with node.inside():
        with Sender(packets, PODS) as sender:
            sender.send(_WARM_UP // less)
        with Sender(answers, LAN) as sender:
            sender.send(_WARM_UP // less)
        with Sender(answers, LAN) if case.back else Sender(packets, PODS) as sender:
            end = time.monotonic() + _SECONDS
            bursts = [sender.send(_BURST // less)]
            while time.monotonic() < end:
                bursts.append(sender.send(_BURST // less))
        forget_connections()
    return statistics.median(bursts)


def forget_connections() -> None:
    """Empties the connection table of this namespace."""
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        netlink.change([Request(_FORGET_CONNECTIONS, bytes(4))], "forget all connections")


def _by_hand(node: Namespace, *, gateway: bool) -> None:
    """The least that treats all egress pods alike: one set, one mark and one gateway, or one LoadBalancer address; no
    packet is looked at a second time."""
    pods = ", ".join(str(FIRST_POD + number) for number in range(_PODS))
    chosen = "ct direction original ip daddr != { 10.244.0.0/15, 192.168.10.0/24 } ip saddr @pods"
    if gateway:
        # Translation is decided at a connection's first packet, so this costs later ones next to nothing.
        chain = f"type nat hook postrouting priority 90; {chosen} snat to {FIRST_LOAD_BALANCER}"
    else:
        chain = f"type filter hook prerouting priority -90; {chosen} meta mark set 1"
        node.run("iptables", "-t", "nat", "-I", "POSTROUTING", "-m", "mark", "--mark", "1", "-j", "ACCEPT")
        node.ip(["rule add pref 4700 fwmark 1 lookup 101", "route add default via 192.168.10.12 table 101"])
    layout = f"set pods {{ type ipv4_addr; elements = {{ {pods} }}; }}\nchain hand {{ {chain}; }}"
    node.run("nft", "-f", "-", stdin=f"table ip by_hand {{\n{layout}\n}}\n")


def _ipset_layout(node: Namespace, services: int, *, gateway: bool) -> None:
    """One set and one marking rule for each Service; on the gateway also one translating rule each."""
    sets, rules, translations = [], [], []
    for number in range(services):
        name = f"service-{number}"
        first = number * (_PODS // services)
        sets.append(f"create {name} hash:ip")
        sets += [f"add {name} {FIRST_POD + first + index}" for index in range(_PODS // services)]
        rules.append(f"-A PREROUTING -m set --match-set {name} src -j MARK --set-mark 1")
        source = FIRST_LOAD_BALANCER + number
        translations.append(f"-I POSTROUTING -m set --match-set {name} src -j SNAT --to-source {source}")
    node.run("ipset", "restore", stdin="\n".join([*sets, ""]))
    node.run("iptables-restore", "--noflush", stdin="\n".join(["*mangle", *rules, "COMMIT", ""]))
    if gateway:
        node.run("iptables-restore", "--noflush", stdin="\n".join(["*nat", *translations, "COMMIT", ""]))
    else:
        node.run("iptables", "-t", "nat", "-I", "POSTROUTING", "-m", "mark", "--mark", "1", "-j", "ACCEPT")
        node.ip(["rule add pref 4700 fwmark 1 lookup 101", "route add default via 192.168.10.12 table 101"])


def _figures(pairs: Mapping[Case, Sequence[tuple[float, float]]]) -> Iterator[Figure]:
    plain: dict[str, list[float]] = {}
    for case, found in pairs.items():
        plain.setdefault(case.kind, []).extend(before for before, _ in found)
    for kind, values in plain.items():
        yield _nanoseconds(f"{_TITLES['plain']}: {kind}", values)
        for case, found in pairs.items():
            if case.kind == kind:
                name = f"{_TITLES[case.layout]}: {kind}"
                yield _nanoseconds(name, [after for _, after in found])
                yield _rate(name, found, aim=case.layout in ("steer", "gateway"))
