"""Egress pods in nftables.

A packet of an egress pod meets, in order: `prerouting` (one look-up by source address tells the number of the pod's
chain, one by that number leads there; the chain lets pass what is no egress and marks or drops the rest), routing by
the mark, `postrouting` (source translation before anybody else's) and the guard (after everybody's translation: a
marked packet with any other source or next hop than it should have is dropped). Other packets of established
connections cost four comparisons and no look-up.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter

from metaleg_node.core.firewall.egress import Egress, EgressPod, Treatment
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.transit import Transit
from metaleg_node.core.increments import Evolving
from metaleg_node.core.model import CONNTRACK_LABEL, Address, DestinationFilter, Holder, Slot
from metaleg_node.kernel.elements import HOLDER, address_of, has_slot
from metaleg_node.kernel.nftables.table import (
    DROP,
    IP,
    TABLE,
    Chain,
    Piece,
    Set,
    Table,
    address_set,
    base,
    by_mark,
    chain,
    interface_set,
    network_set,
    number,
    numbers,
    set_mark,
)

_FIRST, _LAST = 0x6D000000, 0x6DFFFFFF
"""Numbers of chains; nobody's packets have such priorities."""
_MOVED_SECONDS = 30
"""How long the former gateway may still send answers: until it, and the router, know of the change."""


def render(egress: Egress, firewall: Firewall) -> Piece:
    """Its sets and chains. Where there is nothing to look for no packet comes to them."""
    frame = _frame(egress, firewall)
    return replace(frame, sets={**frame.sets, **_pod_sets(egress)})


def render_again(egress: Egress, firewall: Firewall, before: Egress, piece: Piece) -> Piece:
    """The same, given what was rendered before: pods that come and go cost what they are."""
    same = replace(egress, pods={}) == replace(before, pods={}) and egress.treatments == before.treatments
    frame = piece if same else _frame(egress, firewall)
    had, has = (one.sets["chains"].elements for one in (piece, frame))
    if any(had[key] != has[key] for key in had.keys() & has.keys()):
        # Two chains want one number.
        return render(egress, firewall)
    return replace(frame, sets={**frame.sets, **dict(_pod_sets_again(egress, before, piece))})


def _frame(egress: Egress, firewall: Firewall) -> Piece:
    """All but the maps of pods."""
    slots = {(pod.treatment, pod.slot) for pod in egress.treatments if pod.slot}
    marks = {firewall.mark(slot): treatment for treatment, slot in sorted(slots)}
    transit = firewall.part(Transit)
    hooked = bool(egress.pods or egress.sources or transit.pod_networks)
    return Piece(
        sets={
            "chains": Set(
                key_type="classid",
                value_type="verdict",
                elements={text: f"goto {name}" for name, text in _numbers(egress.treatments).items()},
            ),
            "translate": by_mark({mark: f"translate_{t}" for mark, t in marks.items()}),
            "tunnels": interface_set(egress.tunnels),
            "served": Set(key_type="inet_service", elements=dict.fromkeys(map(number, sorted(egress.served)))),
            **_sets(egress),
        },
        chains={
            "prerouting": chain(
                _prerouting(transit), hook=base("filter", "prerouting", -90) if hooked else "", note=_settings(egress)
            ),
            "stray": chain(_STRAY),
            "early": chain(_EARLY),
            "forgotten": chain([DROP]),
            "judge": chain(_JUDGE),
            "postrouting": chain(
                [f"meta mark & {firewall.mark_mask:#010x} vmap @translate"],
                hook=base("nat", "postrouting", 90) if hooked else "",
            ),
            "translate_snat": chain(_translate_snat(egress)),
            "translate_steer": chain(_TRANSLATE_STEER),
            "guard_snat": chain(_GUARD_SNAT),
            "guard_steer": chain(_GUARD_STEER),
            **_filters(egress),
            **_pod_chains(egress, firewall),
        },
        marked={mark: f"guard_{t}" for mark, t in marks.items()},
    )


def _sets(egress: Egress) -> dict[str, Set]:
    sets: dict[str, Set] = {}
    for version in IP:
        sets[f"moved{version}"] = Set(key_type=f"ipv{version}_addr", elements={}, timeout=True)
        sets[f"sources{version}"] = _address_set(version, egress.sources)
        sets[f"next_hops{version}"] = _address_set(version, egress.next_hops)
        sets[f"inside{version}"] = _network_set(version, egress.inside)
        for key, destinations in egress.filters.items():
            sets[f"exclude{version}_f{key}"] = _network_set(version, destinations.exclude)
            sets[f"only{version}_f{key}"] = _network_set(version, destinations.only)
    return sets


_OF_PODS = (("pods", "classid"), ("snat", "ipv{}_addr"), ("local_pods", "classid"))
"""The maps by pod address, with the types of their values, in the order of `_words`. They have numbers of chains, not
verdicts: of those the kernel looks at each, and at the chain behind it, whenever one is added (nft_chain_validate)."""


def _pod_sets(egress: Egress) -> dict[str, Set]:
    numbers_of = _numbers(egress.treatments)
    words = {pod: _words(pod, numbers_of) for pod in egress.treatments}
    sets: dict[str, Set] = {}
    for version in IP:
        told = [(str(address), words[pod]) for address, pod in egress.pods.items() if address.version == version]
        for place, (name, kind) in enumerate(_OF_PODS):
            elements = {key: said[place] for key, said in told if said[place]}
            sets[f"{name}{version}"] = Set(
                key_type=f"ipv{version}_addr", value_type=kind.format(version), elements=Evolving(elements)
            )
    return sets


def _pod_sets_again(egress: Egress, before: Egress, piece: Piece) -> Iterator[tuple[str, Set]]:
    moved, numbers_of = egress.moved(before), _numbers(egress.treatments)
    for version in IP:
        found = {str(a): egress.pods.get(a) for a in moved if a.version == version}
        words = {key: _words(pod, numbers_of) if pod else None for key, pod in found.items()}
        for place, (name, _) in enumerate(_OF_PODS):
            had = piece.sets[f"{name}{version}"]
            put = {key: said[place] for key, said in words.items() if said and said[place]}
            assert isinstance(had.elements, Evolving)
            yield f"{name}{version}", replace(had, elements=had.elements.changed(put, words.keys() - put.keys()))


def _words(pod: EgressPod, numbers_of: Mapping[str, str]) -> tuple[str, str, str]:
    """What the maps say of a pod: its chain, the address it leaves with, and the chain of what comes to it out of
    connections that nobody knows; empty for what it has not."""
    forgotten = numbers_of[_forgotten(pod)] if pod.local else ""
    return numbers_of[chain_of(pod)], str(pod.source) if pod.source else "", forgotten


def _numbers(treatments: Iterable[EgressPod]) -> dict[str, str]:
    """The numbers of the chains that packets are sent to by the address of a pod: the same for a name at any time,
    unless two want the same one."""
    found: dict[int, str] = {}
    for name in sorted({name for pod in treatments for name in (chain_of(pod), _forgotten(pod))}):
        wanted = _wanted_number(name)
        while wanted in found or not wanted & 0xFFFF:
            wanted = wanted + 1 if wanted < _LAST else _FIRST
        found[wanted] = name
    return {name: f"{wanted >> 16:x}:{wanted & 0xFFFF:x}" for wanted, name in found.items()}


@lru_cache(1 << 12)
def _wanted_number(name: str) -> int:
    return _FIRST | int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")


# Remembered: a change does not cost what stays.
_address_set = lru_cache(1 << 4)(address_set)
_network_set = lru_cache(1 << 9)(network_set)


def _by_pod(field: str, name: str) -> Iterator[str]:
    """To the chain of the pod that has the packet's address in this field. The packet's priority keeps the number from
    one look-up to the next: that of a packet from a pod is 0 (____dev_forward_skb), and a forwarded one gets another by
    its TOS later (ip_forward)."""
    yield from (f"meta priority set {ip} {field} map @{name}{v}" for v, ip in IP.items())
    yield "meta priority vmap @chains"
    # The number is of the generation before, the map of the next.
    yield f"meta priority {_FIRST >> 16:x}:0-{_LAST >> 16:x}:ffff {DROP}"


_RESTORE = "meta priority set none"


def _prerouting(transit: Transit) -> Iterator[str]:
    yield from (
        # Most packets end here, before any look-up: replies, and confirmed connections without the label, which are no
        # egress or began before the Service opted in. The cheaper question comes first. `accept` ends only our own base
        # chain: other people's chains still see the packet.
        "ct direction reply accept",
        f"ct status confirmed ct label ! {CONNTRACK_LABEL} accept",
        *_by_pod("saddr", "pods"),
        # It began as egress traffic of a pod that is none any more, and is still bound to the source that it had: it
        # must not leave before its entry is forgotten.
        f"ct label {CONNTRACK_LABEL} {DROP}",
        "ip daddr @answered4 jump stray",
        "ip6 daddr @answered6 jump stray",
    )
    lost = ", invalid : jump lost" if transit != Transit() else ""
    yield f"ct state vmap {{ new : jump early{lost} }}"


_STRAY = (
    # Answers to connections that this node does not know: it is the new gateway, whether it has heard of that yet or
    # not. A conntrack entry made of one would take the very port that the connection needs, once its pod sends again
    # and is translated here. Without one (an answer to a TCP handshake) the packet would go back to the router, and to
    # and fro until its hop limit ends.
    "fib daddr type local return",
    "ct status dnat return",
    # A client of the Service. It may have no pod to answer, and then somebody else refuses the client.
    "tcp flags & (syn | ack) == syn return",
    f"ct state new,invalid {DROP}",
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
    *(f"{ip} daddr @moved{v} {DROP}" for v, ip in IP.items()),
    "meta l4proto { udp, sctp } th dport @served return",
    *_by_pod("daddr", "local_pods"),
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
    'ip saddr @sources4 counter name "translated" goto harmless',
    'ip6 saddr @sources6 counter name "translated" goto harmless',
    DROP,
)

_GUARD_STEER = (
    f"ct status snat {DROP}",
    'rt ip nexthop @next_hops4 counter name "steered" goto harmless',
    'rt ip6 nexthop @next_hops6 counter name "steered" goto harmless',
    'oifname @tunnels counter name "steered" goto harmless',
    DROP,
)


def _translate_snat(egress: Egress) -> list[str]:
    flags = " fully-random" if egress.source_ports == "random" else ""
    return [f"snat {ip} to {ip} saddr map @snat{v}{flags}" for v, ip in IP.items()]


def _filters(egress: Egress) -> dict[str, Chain]:
    chains = {}
    for key, destinations in egress.filters.items():
        restricted = bool(destinations.only)
        chains[f"filter_f{key}"] = chain(_filter(key, "daddr", "accept", restricted=restricted))
        back = _filter(key, "saddr", "return", restricted=restricted)
        chains[f"forgotten_f{key}"] = chain([_RESTORE, *back, "goto forgotten"])
    return chains


def _filter(key: str, field: str, verdict: str, *, restricted: bool) -> list[str]:
    rules = [f"{ip} {field} @exclude{v}_f{key} {verdict}" for v, ip in IP.items()]
    return rules + [f"{ip} {field} != @only{v}_f{key} {verdict}" for v, ip in IP.items() if restricted]


def _pod_chains(egress: Egress, firewall: Firewall) -> dict[str, Chain]:
    chains: dict[str, Chain] = {}
    for name, pod in sorted({chain_of(pod): pod for pod in egress.treatments}.items(), key=itemgetter(0)):
        holder = str(egress.gateways.get(pod.slot, "")) if pod.slot else ""
        chains[name] = chain(_pod_rules(pod, egress, firewall), note=holder)
    return chains


def _pod_rules(pod: EgressPod, egress: Egress, firewall: Firewall) -> list[str]:
    """Connections that were found to be egress stay so, until they are forgotten; others are judged, and labelled with
    their first packet. `prerouting` lets no confirmed connection come here without the label: the label, which costs
    more to look at, need not be asked for again."""
    verdict = _verdict(pod, egress, firewall)
    chosen = [f"jump filter_f{pod.filter}"] if pod.filter else []
    label = f"ct status ! confirmed ct label set {CONNTRACK_LABEL}"
    return [_RESTORE, f"ct status confirmed {verdict}", "jump judge", *chosen, label, verdict]


def _verdict(pod: EgressPod, egress: Egress, firewall: Firewall) -> str:
    match pod.treatment:
        case Treatment.STEER | Treatment.SNAT:
            assert pod.slot
            return f"{set_mark(pod.slot, firewall)} accept"
        case Treatment.HOLD if egress.hold == "reject":
            return 'counter name "held" reject with icmpx admin-prohibited'
        case Treatment.HOLD | Treatment.WAIT:
            return 'counter name "held" drop'
        case Treatment.ELSEWHERE:
            return DROP


def chain_of(pod: EgressPod) -> str:
    """The chain that a pod's packets go to: treatment, slot and filter, as far as there are any."""
    slot = f"_{pod.slot}" if pod.slot else ""
    return f"{pod.treatment}{slot}" + (f"_f{pod.filter}" if pod.filter else "")


def _forgotten(pod: EgressPod) -> str:
    """The chain for what comes to a pod of this node out of connections that nobody knows."""
    return "forgotten" + (f"_f{pod.filter}" if pod.filter else "")


def _settings(egress: Egress) -> str:
    """The settings that no element shows."""
    return f"{egress.hold} {egress.source_ports}"


# --- changing --------------------------------------------------------------------------------------------------------


def also(before: Egress, after: Egress) -> Iterator[str]:
    """For a while answers to the connections that these pods had until now make no new entries; see `_EARLY`."""
    for address in sorted((address for address in after.moved(before) if address in before.pods), key=str):
        old, new = before.pods[address], after.pods.get(address)
        bound = old.local and old.treatment in (Treatment.STEER, Treatment.SNAT)
        if bound and (new is None or (new.treatment, new.source) != (old.treatment, old.source)):
            name = f"moved{address.version}"
            fresh = f"add element {TABLE} {name} {{ {address} timeout {_MOVED_SECONDS}s }}"
            # An element that is there keeps its old time limit; it must go for the new one, and exist to go.
            yield from (fresh, f"delete element {TABLE} {name} {{ {address} }}", fresh)


# --- reading back ----------------------------------------------------------------------------------------------------


def understand(table: Table, mask: int) -> Egress:
    """What the table means, always something that can be rendered: what cannot be understood is left out."""
    if "prerouting" not in table.chains:
        return Egress()
    note = re.fullmatch(r"(reject|drop) (preserve|random)", table.note("prerouting"))
    keys = {name.partition("_f")[2] for name in table.chains if name.startswith("filter_f")}
    filters = {
        key: DestinationFilter(exclude=table.networks("exclude", f"_f{key}"), only=table.networks("only", f"_f{key}"))
        for key in keys
    }
    return Egress(
        pods=dict(_pods(table, mask, keys)),
        gateways=dict(_gateways(table)),
        filters=filters,
        hold=note[1] if note else "reject",
        source_ports=note[2] if note else "preserve",
        sources=table.addresses("sources"),
        inside=table.networks("inside"),
        served=frozenset(numbers(table.elements("served"))),
        next_hops=table.addresses("next_hops"),
        tunnels=frozenset(table.elements("tunnels")),
    )


def _pods(table: Table, mask: int, filters: set[str]) -> Iterator[tuple[Address, EgressPod]]:
    chains = table.elements("chains")
    for version in IP:
        sources = table.elements(f"snat{version}")
        local = table.elements(f"local_pods{version}")
        for key, number_of in table.elements(f"pods{version}").items():
            source = sources.get(key)
            if address := address_of(key):
                verdict = chains.get(number_of or "")
                pod = _pod(verdict or "", address_of(source) if source else None, local=key in local)
                if pod and _is_sound(pod, mask, filters):
                    yield address, pod


def _pod(verdict: str, source: Address | None, *, local: bool) -> EgressPod | None:
    """The pod behind the chain that its packets go to; None when that is not one of ours."""
    found = re.fullmatch(r"goto (steer|snat|hold|wait|elsewhere)(?:_(\d+))?(?:_f(\w+))?", verdict)
    if not found:
        return None
    slot = Slot(int(found[2])) if found[2] else None
    return EgressPod(treatment=Treatment(found[1]), slot=slot, source=source, filter=found[3] or "", local=local)


def _is_sound(pod: EgressPod, mask: int, filters: set[str]) -> bool:
    """Whether there can be such a pod: with a slot if its treatment needs one, and with a filter that exists."""
    if pod.filter and pod.filter not in filters:
        return False
    if pod.treatment not in (Treatment.STEER, Treatment.SNAT):
        return pod.slot is None
    return pod.slot is not None and has_slot(pod.slot, mask)


def _gateways(table: Table) -> Iterator[tuple[Slot, Holder]]:
    for name in table.chains:
        found = re.fullmatch(r"(?:steer|snat)_(\d+)(?:_f\w+)?", name)
        if found and HOLDER.fullmatch(table.note(name)):
            yield Slot(int(found[1])), Holder.read(table.note(name))
