"""How our nftables table looks for a given `Firewall`: pure text and dictionaries, no process is started here.

A packet of an egress pod meets, in order: `prerouting` (one look-up by source address picks the pod's chain, which
lets pass what is no egress and marks or drops the rest), routing by the mark, `postrouting` (source translation before
anybody else's) and `guard` (after everybody's translation: a marked packet with any other source or next hop than it
should have is dropped). Other packets of established connections cost four comparisons and no look-up.

A reply of a return path meets `path_prerouting`, or `path_output` when this host sent it: one look-up picks the path's
chain, which lets pass what stays on the main table and marks the rest. What is known by its source meets
`path_prerouting_source` or `path_output_source` instead, after every DNAT.

Each rule carries a comment that begins with a digest of its text: that is how a later look tells whether a rule is
still the one that was put there, whatever form this or that version of nft lists it in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from metaleg_node.core.model import (
    CONNTRACK_LABEL,
    Address,
    EgressPod,
    Firewall,
    Match,
    Network,
    NodeName,
    ReturnPath,
    Slot,
    Treatment,
)

FAMILY = "inet"
NAME = "metaleg_node"
COUNTERS = ("steered", "translated", "held", "dropped")

_NAME_CHUNK = 100
"""A comment holds 128 bytes; node names (up to 253) are spread over the comments of their chain's rules."""
_IP = {4: "ip", 6: "ip6"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A set (`value_type` empty, all values None) or a map; keys and values in nft's own spelling. The elements of one
    with `timeout` come and go by themselves and are no part of what the table should be."""

    key_type: str
    elements: Mapping[str, str | None]
    value_type: str = ""
    interval: bool = False
    timeout: bool = False

    @property
    def header(self) -> tuple[str, str, bool, bool]:
        """What cannot be changed without making the set anew."""
        return self.key_type, self.value_type, self.interval, self.timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain; `hook` is its base chain declaration, empty for a regular one. Comments stand beside the rules, one
    each; as observed only the comments are known."""

    comments: tuple[str, ...]
    rules: tuple[str, ...] = ()
    hook: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The table as it should be or as it is. `strange` is what else was found in it, which this program never puts
    there: it goes only with the whole table."""

    sets: Mapping[str, Set]
    chains: Mapping[str, Chain]
    counters: frozenset[str] = frozenset(COUNTERS)
    strange: frozenset[str] = frozenset()


def render(firewall: Firewall) -> Table:
    """The table for a firewall."""
    return Table(sets=_sets(firewall), chains=_chains(firewall))


def pod_chain(pod: EgressPod) -> str:
    """The name of the chain that a pod's packets go to: treatment, slot and filter, as far as there are any."""
    slot = f"_{pod.slot}" if pod.slot else ""
    return f"{pod.treatment}{slot}" + (f"_f{pod.filter}" if pod.filter else "")


def forgotten_chain(pod: EgressPod) -> str:
    """The name of the chain for what comes to a pod of this node out of connections that nobody knows."""
    return "forgotten" + (f"_f{pod.filter}" if pod.filter else "")


def path_chain(match: Match, slot: Slot) -> str:
    """The name of the chain that a return path's packets go to."""
    return f"path_{match}_{slot}"


@lru_cache(1 << 14)
def network_text(network: Network) -> str:
    """A network as nft lists it: a single address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


# --- sets and maps ---------------------------------------------------------------------------------------------------


def _sets(firewall: Firewall) -> dict[str, Set]:
    slots = {(pod.treatment, pod.slot) for pod in firewall.pods.values() if pod.slot}
    marks = {firewall.mark(slot): treatment for treatment, slot in sorted(slots)}
    sets = {
        "translate": _marks({mark: f"goto translate_{t}" for mark, t in marks.items()}),
        "guard_marks": _marks(
            {mark: f"goto guard_{t}" for mark, t in marks.items()}
            | {firewall.mark(slot): "goto right" for slot in firewall.return_paths}
        ),
        "node_interfaces": Set(
            key_type="ifname",
            elements=dict.fromkeys(sorted(firewall.node_interfaces)),
        ),
        "served": Set(key_type="inet_service", elements=dict.fromkeys(map(_number, sorted(firewall.served)))),
    }
    for version in (4, 6):
        pods = {a: pod for a, pod in firewall.pods.items() if a.version == version}
        steer: dict[str, str | None] = {str(a): f"goto {pod_chain(pod)}" for a, pod in pods.items()}
        snat: dict[str, str | None] = {str(a): str(pod.source) for a, pod in pods.items() if pod.source}
        address = f"ipv{version}_addr"
        sets[f"pods{version}"] = Set(key_type=address, value_type="verdict", elements=steer)
        sets[f"snat{version}"] = Set(key_type=address, value_type=address, elements=snat)
        local: dict[str, str | None] = {str(a): f"goto {forgotten_chain(pod)}" for a, pod in pods.items() if pod.local}
        sets[f"local_pods{version}"] = Set(key_type=address, value_type="verdict", elements=local)
        sets[f"moved{version}"] = Set(key_type=address, elements={}, timeout=True)
        sets[f"sources{version}"] = _addresses(version, firewall.sources)
        sets[f"next_hops{version}"] = _addresses(version, firewall.next_hops)
        sets[f"node_addresses{version}"] = _addresses(version, firewall.node_addresses)
        sets[f"inside{version}"] = _networks(version, firewall.inside)
        sets[f"pod_networks{version}"] = _networks(version, firewall.pod_networks)
        for key, destinations in firewall.filters.items():
            sets[f"exclude{version}_f{key}"] = _networks(version, destinations.exclude)
            sets[f"only{version}_f{key}"] = _networks(version, destinations.only)
        for match in firewall.match:
            sets[f"path_{match}{version}"] = _path_map(version, firewall.return_paths, match)
        if firewall.match:
            sets[f"direct{version}"] = _networks(version, firewall.direct)
    if firewall.checked:
        sets["checked"] = Set(key_type="ifname", elements=dict.fromkeys(sorted(firewall.checked)))
        sets["spared4"] = _networks(4, firewall.spared)
    return sets


def _path_map(version: int, paths: Mapping[Slot, ReturnPath], match: Match) -> Set:
    elements: dict[str, str | None] = {
        network_text(network): f"goto {path_chain(match, slot)}"
        for slot, path in paths.items()
        for network in path.networks
        if network.version == version
    }
    return Set(key_type=f"ipv{version}_addr", value_type="verdict", elements=elements, interval=True)


def _marks(elements: Mapping[int, str]) -> Set:
    return Set(key_type="mark", value_type="verdict", elements={_number(m): v for m, v in sorted(elements.items())})


def _number(value: int) -> str:
    """A mark or a port, as `nftables` reads numbers back."""
    return f"{value:#010x}"


def _addresses(version: int, addresses: Iterable[Address]) -> Set:
    elements = dict.fromkeys(str(a) for a in addresses if a.version == version)
    return Set(key_type=f"ipv{version}_addr", elements=elements)


def _networks(version: int, networks: Iterable[Network]) -> Set:
    elements = dict.fromkeys(network_text(n) for n in networks if n.version == version)
    return Set(key_type=f"ipv{version}_addr", elements=elements, interval=True)


# --- chains ----------------------------------------------------------------------------------------------------------


def _chains(firewall: Firewall) -> dict[str, Chain]:
    """Without egress its base chains are there, since one tells the settings, but no packet comes to them."""
    mask = f"{firewall.mark_mask:#010x}"
    egress = bool(firewall.pods or firewall.sources or firewall.pod_networks)
    chains = {
        "prerouting": _chain(
            _PREROUTING, hook=_hook("filter", "prerouting", -90) if egress else "", note=settings_note(firewall)
        ),
        "stray": _chain(_STRAY),
        "early": _chain(_EARLY),
        "forgotten": _chain([_DROP]),
        "lost": _chain(_LOST),
        "judge": _chain(_JUDGE),
        "postrouting": _chain(
            [f"meta mark & {mask} vmap @translate"], hook=_hook("nat", "postrouting", 90) if egress else ""
        ),
        "translate_snat": _chain(_translate_snat(firewall)),
        "translate_steer": _chain(_TRANSLATE_STEER),
        "guard": _chain(
            [
                f"meta mark & {mask} != 0 jump marked",
                # A connection whose first packet was dropped here is never confirmed.
                "ct status ! confirmed ct status snat jump transit",
            ],
            hook=_hook("filter", "postrouting", 110) if egress or firewall.match else "",
        ),
        # Egress traffic with a mark that no pod has any more was marked before a change and looked at here after it: a
        # processor may rest in between for longer than the change takes, and then even its rule is gone.
        "marked": _chain(
            [
                f"meta mark & {mask} vmap @guard_marks",
                f"ct label {CONNTRACK_LABEL} {_DROP}",
                # Without a connection there is no label.
                f"ct state invalid {_DROP}",
                _unmark(firewall),
            ]
        ),
        "right": _chain([f"{_unmark(firewall)} accept"]),
        "guard_snat": _chain(_GUARD_SNAT),
        "guard_steer": _chain(_GUARD_STEER),
        "transit": _chain(_TRANSIT),
    }
    if firewall.drop_invalid_input:
        chains["input"] = _chain(["ct state invalid drop"], hook=_hook("filter", "input", -10))
    for key, destinations in firewall.filters.items():
        restricted = bool(destinations.only)
        chains[f"filter_f{key}"] = _chain(_filter(key, "daddr", "accept", restricted=restricted))
        chains[f"forgotten_f{key}"] = _chain(
            [*_filter(key, "saddr", "return", restricted=restricted), "goto forgotten"]
        )
    for pod in set(firewall.pods.values()):
        name = firewall.gateways.get(pod.slot, NodeName("")) if pod.slot else NodeName("")
        chains.setdefault(pod_chain(pod), _chain(_pod_rules(pod, firewall), note=name))
    if firewall.checked:
        # Before connection tracking, as the kernel's own check is before everything.
        chains["path_check"] = _chain(_PATH_CHECK, hook=_hook("filter", "prerouting", -300))
    return chains | _path_chains(firewall)


def _path_chains(firewall: Firewall) -> dict[str, Chain]:
    """Replies are looked at right after the priority of mangle, so that a mark which others restore there is not
    written over. Sources are looked at after every DNAT, as egress is: a request from a path's own network may go to a
    Service, and that its backend is inside the cluster only the translated destination tells."""
    chains: dict[str, Chain] = {}
    if Match.CONNTRACK in firewall.match:
        replies = ["ct direction reply jump path_replies"]
        chains["path_prerouting"] = _chain(replies, hook=_hook("filter", "prerouting", -149))
        chains["path_output"] = _chain(replies, hook=_hook("route", "output", -149))
        chains["path_replies"] = _chain(_path_look_ups(firewall, Match.CONNTRACK))
    if Match.SOURCE in firewall.match:
        sources = _path_look_ups(firewall, Match.SOURCE)
        chains["path_prerouting_source"] = _chain(sources, hook=_hook("filter", "prerouting", -95))
        chains["path_output_source"] = _chain(sources, hook=_hook("route", "output", -95))
    for slot, path in firewall.return_paths.items():
        for match in firewall.match:
            chains[path_chain(match, slot)] = _chain(_path_rules(match, slot, path, firewall), note=_path_note(path))
    return chains


def _path_look_ups(firewall: Firewall, match: Match) -> list[str]:
    """One for each family that has networks. Comparing with the first and the last address of all spares most packets
    the look-up, which costs ten times as much."""
    rules = []
    for version, ip in _IP.items():
        networks = [n for path in firewall.return_paths.values() for n in path.networks if n.version == version]
        if networks:
            what = f"ct original {ip} daddr" if match is Match.CONNTRACK else f"{ip} saddr"
            first = min(networks, key=lambda n: int(n.network_address)).network_address
            last = max(networks, key=lambda n: int(n.broadcast_address)).broadcast_address
            span = f"{first}-{last}" if first != last else f"{first}"
            rules.append(f"{what} {span} {what} vmap @path_{match}{version}")
    return rules


def _hook(kind: str, hook: str, priority: int) -> str:
    return f"type {kind} hook {hook} priority {priority}; policy accept;"


_DROP = 'counter name "dropped" drop'

_PREROUTING = (
    # Most packets end here, before any look-up: replies, and confirmed connections without the label, which are no
    # egress or began before the Service opted in. The cheaper question comes first. `accept` ends only our own base
    # chain: other people's chains still see the packet.
    "ct direction reply accept",
    f"ct status confirmed ct label ! {CONNTRACK_LABEL} accept",
    "ip saddr vmap @pods4",
    "ip6 saddr vmap @pods6",
    # It began as egress traffic of a pod that is none any more, and is still bound to the source that it had: it must
    # not leave before its entry is forgotten.
    f"ct label {CONNTRACK_LABEL} {_DROP}",
    "ip daddr @sources4 jump stray",
    "ip6 daddr @sources6 jump stray",
    "ct state vmap { new : jump early, invalid : jump lost }",
)

_STRAY = (
    # Answers to connections that this gateway does not know yet. A conntrack entry made of one would take the very
    # port that the connection needs, once its pod sends again and is translated here. Without one (an answer to a TCP
    # handshake) the packet would go back to the router, and to and fro until its hop limit ends.
    "fib daddr type local return",
    "ct status dnat return",
    # A client of the Service. It may have no pod to answer, and then somebody else refuses the client.
    "tcp flags & (syn | ack) == syn return",
    f"ct state new,invalid {_DROP}",
)

_EARLY = (
    # Answers to connections of a pod that this node has forgotten, or never had: a gateway that was one until now may
    # hand them to the wrong pod. An entry made of one would make the pod's own packets look like replies, which are
    # left alone. A server's packet in the middle of a TCP connection is known by its flags, and conntrack makes no
    # entry of an ICMP answer. A datagram tells nothing: only those to a port that the Services serve are taken, and
    # even they not in the time just after the pod was treated differently.
    "ct status dnat return",
    "ip saddr @inside4 return",
    "ip6 saddr @inside6 return",
    # Names that nft knows by itself: /etc/protocols is not on every system.
    "meta l4proto { icmp, icmpv6 } return",
    "tcp flags & (syn | ack) == syn return",
    *(f"{ip} daddr @moved{v} {_DROP}" for v, ip in _IP.items()),
    "meta l4proto { udp, sctp } th dport @served return",
    *(f"{ip} daddr vmap @local_pods{v}" for v, ip in _IP.items()),
)

_LOST = tuple(
    # What belongs to no connection cannot be translated, by us or the CNI: another node's pod must not leave so.
    f"iifname @node_interfaces {ip} saddr @pod_networks{v} {ip} daddr != @inside{v} {_DROP}"
    for v, ip in _IP.items()
)

_JUDGE = (
    "fib daddr type { local, broadcast, anycast, multicast } accept",
    "ip daddr @inside4 accept",
    "ip6 daddr @inside6 accept",
)

_TRANSLATE_STEER = (
    # Translating a source to itself changes nothing but binds the connection: no later masquerade applies.
    "snat ip to ip saddr",
    "snat ip6 to ip6 saddr",
)

_GUARD_SNAT = (
    'ip saddr @sources4 counter name "translated" goto right',
    'ip6 saddr @sources6 counter name "translated" goto right',
    _DROP,
)

_GUARD_STEER = (
    f"ct status snat {_DROP}",
    'rt ip nexthop @next_hops4 counter name "steered" goto right',
    'rt ip6 nexthop @next_hops6 counter name "steered" goto right',
    _DROP,
)

_PATH_CHECK = ("iifname @checked ip daddr != @spared4 fib saddr . iif oif missing drop",)

_PATH_DIRECT = {
    # Before the translation is undone the destination may still be this node's own; the client is the one that asked.
    Match.CONNTRACK: tuple(f"ct original {ip} saddr @direct{v} accept" for v, ip in _IP.items()),
    Match.SOURCE: tuple(f"{ip} daddr @direct{v} accept" for v, ip in _IP.items()),
}

_TRANSIT = tuple(
    # Another node steered its pod to us before we know of it: it must not leave with our own address, one of those that
    # the Node object names or what a masquerade takes, one of the interface.
    f"meta nfproto ipv{v} iifname @node_interfaces ct original {ip} saddr @pod_networks{v} "
    f"{own} {ip} daddr != @inside{v} ct status ! dnat {_DROP}"
    for v, ip in _IP.items()
    for own in (f"{ip} saddr @node_addresses{v}", "fib saddr . oif type local")
)


def _translate_snat(firewall: Firewall) -> list[str]:
    flags = " fully-random" if firewall.source_ports == "random" else ""
    return [f"snat {ip} to {ip} saddr map @snat{v}{flags}" for v, ip in _IP.items()]


def _filter(key: str, field: str, verdict: str, *, restricted: bool) -> list[str]:
    rules = [f"{ip} {field} @exclude{v}_f{key} {verdict}" for v, ip in _IP.items()]
    return rules + [f"{ip} {field} != @only{v}_f{key} {verdict}" for v, ip in _IP.items() if restricted]


def _pod_rules(pod: EgressPod, firewall: Firewall) -> list[str]:
    """Connections that were found to be egress stay so, until they are forgotten; others are judged, and labelled with
    their first packet. `prerouting` lets no confirmed connection come here without the label: the label, which costs
    more to look at, need not be asked for again."""
    verdict = _verdict(pod, firewall)
    chosen = [f"jump filter_f{pod.filter}"] if pod.filter else []
    label = f"ct status ! confirmed ct label set {CONNTRACK_LABEL}"
    return [f"ct status confirmed {verdict}", "jump judge", *chosen, label, verdict]


def _verdict(pod: EgressPod, firewall: Firewall) -> str:
    match pod.treatment:
        case Treatment.STEER | Treatment.SNAT:
            assert pod.slot
            return f"{_set_mark(pod.slot, firewall)} accept"
        case Treatment.HOLD if firewall.hold == "reject":
            return 'counter name "held" reject with icmpx admin-prohibited'
        case Treatment.HOLD:
            return 'counter name "held" drop'
        case Treatment.ELSEWHERE:
            return _DROP


def _path_rules(match: Match, slot: Slot, path: ReturnPath, firewall: Firewall) -> list[str]:
    condition = [f"meta mark != {path.mark:#010x} accept"] if match is Match.SOURCE and path.mark is not None else []
    return [*condition, *_PATH_DIRECT[match], _set_mark(slot, firewall)]


def _unmark(firewall: Firewall) -> str:
    """The mark has done its work. A tunnel hands it on to the packet that it makes of this one, which must find its own
    way."""
    return f"meta mark set meta mark & {~firewall.mark_mask & 0xFFFFFFFF:#010x}"


def _set_mark(slot: Slot, firewall: Firewall) -> str:
    keep = ~firewall.mark_mask & 0xFFFFFFFF
    return f"meta mark set meta mark & {keep:#010x} | {firewall.mark(slot):#010x}"


# --- comments --------------------------------------------------------------------------------------------------------


def settings_note(firewall: Firewall) -> str:
    """The settings that no element shows, for the comments of `prerouting`."""
    invalid = int(firewall.drop_invalid_input)
    return f"{firewall.mark_mask:#x} {firewall.hold} {firewall.source_ports} {invalid}"


def _chain(rules: Iterable[str], *, hook: str = "", note: str = "") -> Chain:
    texts = tuple(rules)
    assert len(note) <= len(texts) * _NAME_CHUNK
    chunks = [note[i * _NAME_CHUNK : (i + 1) * _NAME_CHUNK] for i in range(len(texts))]
    comments = tuple(
        f"{hashlib.sha256(t.encode()).hexdigest()[:12]} {c}".rstrip() for t, c in zip(texts, chunks, strict=True)
    )
    return Chain(comments=comments, rules=texts, hook=hook)


def note_of(chain: Chain) -> str:
    """The note that was given to a chain, put together from its comments."""
    return "".join(comment.partition(" ")[2] for comment in chain.comments)


def _path_note(path: ReturnPath) -> str:
    return path.holder if path.mark is None else f"{path.holder} {path.mark:#x}"


# --- back into the program's terms -----------------------------------------------------------------------------------


def gateway_of(chain: str) -> tuple[Treatment, Slot] | None:
    """The treatment and slot of a pod chain that has a slot."""
    found = re.fullmatch(r"(steer|snat)_(\d+)(?:_f\w+)?", chain)
    return (Treatment(found[1]), Slot(int(found[2]))) if found else None


def pod_of(verdict: str, source: Address | None, *, local: bool) -> EgressPod | None:
    """The pod behind an element of the pod map; None when the verdict is not one of ours."""
    found = re.fullmatch(r"goto (steer|snat|hold|elsewhere)(?:_(\d+))?(?:_f(\w+))?", verdict)
    if not found:
        return None
    slot = Slot(int(found[2])) if found[2] else None
    return EgressPod(treatment=Treatment(found[1]), slot=slot, source=source, filter=found[3] or "", local=local)


def path_of(verdict: str) -> Slot | None:
    """The slot behind an element of a return path map; None when the verdict is not one of ours."""
    found = re.fullmatch(r"goto path_(?:conntrack|source)_(\d+)", verdict)
    return Slot(int(found[1])) if found else None
