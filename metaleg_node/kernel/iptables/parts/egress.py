"""Egress pods in iptables.

The nat table is the only one after other people's translation of destinations and before routing, and the first packet
of a connection alone comes to it: so `JUDGE`, the last rule of its PREROUTING, judges that packet, labels the
connection and marks the packet. Later packets find the label in mangle PREROUTING, where one look-up sets the mark.
What must not leave is stopped in FORWARD, or by the guard in mangle POSTROUTING, before anybody translates a source.
`TRANSLATE`, the first rule of nat POSTROUTING, binds the connection to its source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from metaleg_node.core.firewall.egress import Egress, EgressPod, Treatment
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.transit import Transit
from metaleg_node.core.model import CONNTRACK_LABEL, FAMILIES, Address, DestinationFilter, Family, Holder, Slot
from metaleg_node.kernel.elements import HOLDER, address_of, has_slot
from metaleg_node.kernel.iptables.ruleset import (
    Hook,
    Piece,
    Rule,
    Ruleset,
    Set,
    address_behind,
    address_set,
    drop,
    expiring_set,
    goto,
    jump,
    key_behind,
    mark_map,
    marked,
    network_set,
    numbers,
    port_set,
    set_mark,
    set_name,
    set_of_address,
    set_of_key,
    unless,
    when,
)

_MOVED_SECONDS = 30
"""How long the former gateway may still send answers: until it, and the router, know of the change."""
LABELLED = f"-m connlabel --label {CONNTRACK_LABEL}"
"""The connection began as egress traffic."""
_UNLABELLED = f"-m connlabel ! --label {CONNTRACK_LABEL}"
_LABEL = f"{LABELLED} --set"
_CONFIRMED = "-m conntrack --ctstatus CONFIRMED"
_UNTRACKED = "-m conntrack --ctstate INVALID,UNTRACKED"
_BEGINS = "-p tcp -m tcp --tcp-flags SYN,ACK SYN"
_TRANSLATED = "-m conntrack --ctstate DNAT"
_NO_OUTSIDE = {4: "LOCAL,BROADCAST,ANYCAST,MULTICAST", 6: "LOCAL,ANYCAST,MULTICAST"}
_ICMP = {4: "icmp", 6: "ipv6-icmp"}
_REFUSE = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}
_ITSELF = {4: "0.0.0.0/0", 6: "::/0"}
"""NETMAP puts nothing of this in place of the source."""
_FILTER_PODS, _EXCLUDE, _ONLY, _SOURCE = "p", "x", "o", "s"
_FILTERED = "filtered"
"""The pods that have a filter; with the number of groups and a group's own behind it, those of that group."""


def render(egress: Egress, firewall: Firewall, family: Family) -> Piece:
    """Its sets and chains for one family."""
    own = {slot for pod in egress.pods.values() if pod.treatment is Treatment.SNAT and (slot := pod.slot)}
    steered = {slot for pod in egress.pods.values() if pod.treatment is Treatment.STEER and (slot := pod.slot)}
    guard = [Rule(f"{marked(firewall.mark(slot), firewall)} {goto('OWN')}") for slot in sorted(own)]
    guard += [Rule(f"{marked(firewall.mark(slot), firewall)} {goto('STEERED')}") for slot in sorted(steered - own)]
    sources = sorted({pod.source for pod in egress.pods.values() if pod.source and pod.source.version == family})
    return Piece(
        sets=_sets(egress, firewall, family),
        chains={
            ("mangle", "PREROUTING"): _prerouting(family),
            ("mangle", "KNOWN"): [_map(family)],
            ("mangle", "UNKNOWN"): _unknown(egress, firewall, family),
            ("nat", "JUDGE"): _judge(egress, firewall, family),
            ("mangle", "FORWARD"): _forward(family),
            ("mangle", "STRAY"): _STRAY,
            ("mangle", "EARLY"): _early(egress, firewall, family),
            ("mangle", "OUTWARD"): _outward(egress, firewall, own, family),
            ("filter", "HOLD"): list(_held(egress, family)),
            ("mangle", "OWN"): _own(firewall, family),
            ("mangle", "STEERED"): [
                drop("-m conntrack --ctstate SNAT"),
                Rule("", "steered"),
                f"{_CONFIRMED} {set_mark(0, firewall)}",
                f"{_UNTRACKED} {set_mark(0, firewall)}",
            ],
            ("nat", "TRANSLATE"): [
                f"{marked(0, firewall)} -j RETURN",
                *(f"{marked(firewall.mark(slot), firewall)} {goto('SOURCE')}" for slot in sorted(own)),
                set_mark(0, firewall),
                # Translating a source to itself changes nothing but binds the connection: no later masquerade applies.
                f"-j NETMAP --to {_ITSELF[family]}",
            ],
            ("nat", "SOURCE"): _source(sources, egress, firewall, family),
            **_filter_chains(egress, firewall, family),
        },
        hooks=_HOOKS if egress.pods or egress.sources or firewall.part(Transit).pod_networks else {},
        guard=tuple(guard),
        notes=_notes(egress),
    )


_HOOKS: Mapping[tuple[str, str], Hook] = {
    ("mangle", "PREROUTING"): Hook(chain="PREROUTING"),
    ("nat", "JUDGE"): Hook(chain="PREROUTING", last=True),
    ("mangle", "FORWARD"): Hook(chain="FORWARD"),
    ("filter", "HOLD"): Hook(chain="FORWARD"),
    ("nat", "TRANSLATE"): Hook(chain="POSTROUTING"),
}


def _sets(egress: Egress, firewall: Firewall, family: Family) -> dict[str, Set]:
    pods = {a: pod for a, pod in egress.pods.items() if a.version == family}

    def those(treatment: Treatment) -> Set:
        return address_set(family, (a for a, pod in pods.items() if pod.treatment is treatment))

    sets = {
        "held": those(Treatment.HOLD),
        "waiting": those(Treatment.WAIT),
        "elsewhere": those(Treatment.ELSEWHERE),
        "local": address_set(family, (a for a, pod in pods.items() if pod.local)),
        "moved": expiring_set(family, _MOVED_SECONDS),
        "sources": address_set(family, egress.sources),
        "inside": network_set(family, egress.inside),
        "served": port_set(egress.served),
        "pods": mark_map(family, {a: _mark_text(pod, firewall) for a, pod in pods.items()}),
    }
    for slot in {pod.slot for pod in pods.values() if pod.slot}:
        sets[f"slot-{slot}"] = address_set(family, (a for a, pod in pods.items() if pod.slot == slot))
    found = {set_name(family, name): one for name, one in sets.items()}
    for source in {pod.source for pod in pods.values() if pod.source}:
        some = address_set(family, (a for a, pod in pods.items() if pod.source == source))
        found[set_of_address(family, _SOURCE, source)] = some
    return found | _filter_sets(egress, family)


def _filter_sets(egress: Egress, family: Family) -> dict[str, Set]:
    found: dict[str, Set] = {}
    pods = _filtered(egress, family)
    for key, destinations in egress.filters.items():
        found[set_of_key(family, _FILTER_PODS, key)] = address_set(family, pods[key])
        found[set_of_key(family, _EXCLUDE, key)] = network_set(family, destinations.exclude)
        if destinations.only:
            found[set_of_key(family, _ONLY, key)] = network_set(family, destinations.only)
    groups = {name: [pod for key in keys for pod in pods[key]] for name, keys in _groups(egress).items()}
    if groups:
        groups[_FILTERED] = [pod for some in groups.values() for pod in some]
    return found | {set_name(family, name): address_set(family, some) for name, some in groups.items()}


def _filtered(egress: Egress, family: Family) -> dict[str, list[Address]]:
    """The pods of each filter."""
    found: dict[str, list[Address]] = {key: [] for key in egress.filters}
    for address, pod in egress.pods.items():
        if pod.filter and address.version == family:
            found[pod.filter].append(address)
    return found


def _groups(egress: Egress) -> dict[str, list[str]]:
    """The filters in groups, of which there are about as many as filters in each: a packet is compared with the groups,
    and then with the filters of its own. Another number of groups has other names: no pod is ever in a group of one
    division while the rules are those of another."""
    number = 1 << len(egress.filters).bit_length() // 2
    found: dict[str, list[str]] = {}
    for key in sorted(egress.filters):
        found.setdefault(f"{_FILTERED}-{number}-{int(key, 16) % number}", []).append(key)
    return found


def source_set(source: Address) -> str:
    """The set of the pods that leave with an address."""
    return set_of_address(source.version, _SOURCE, source)


def filter_sets(family: Family, key: str) -> tuple[str, str]:
    """The sets of the destinations that a filter excludes, and of those that it is only for."""
    return set_of_key(family, _EXCLUDE, key), set_of_key(family, _ONLY, key)


def filter_chain(egress: Egress, key: str) -> str:
    """The chain of the table nat that looks at a filter."""
    (group,) = (name for name, keys in _groups(egress).items() if key in keys)
    return _chain_of("FILTERS", group)


def _mark_text(pod: EgressPod, firewall: Firewall) -> str:
    """What is held or another node's gets no mark: the guard lets nothing out that has the label and none."""
    return f"skbmark {firewall.mark(pod.slot) if pod.slot else 0:#x}/{firewall.mark_mask:#x}"


def _map(family: Family) -> str:
    return f"-j SET --map-set {set_name(family, 'pods')} src --map-mark"


def _prerouting(family: Family) -> list[Rule | str]:
    return [
        # Most packets end here, before any look-up: replies, and confirmed connections without the label, which are no
        # egress or began before the Service opted in.
        "-m conntrack --ctdir REPLY -j RETURN",
        f"{_CONFIRMED} {_UNLABELLED} -j RETURN",
        f"{_CONFIRMED} {when(set_name(family, 'pods'), 'src')} {goto('KNOWN')}",
        # It began as egress traffic of a pod that is none any more, and is still bound to the source that it had: it
        # must not leave before its entry is forgotten.
        drop(_CONFIRMED),
        f"{_UNTRACKED} {when(set_name(family, 'pods'), 'src')} {jump('UNKNOWN')}",
    ]


def _judged(egress: Egress, firewall: Firewall, family: Family) -> Iterator[str]:
    """What is no egress is left alone."""
    yield f"{when(set_name(family, 'inside'), 'dst')} -j RETURN"
    yield from _unless_filtered("FILTERS", "src", egress, firewall, family)


def _unless_filtered(chain: str, pod: str, egress: Egress, firewall: Firewall, family: Family) -> Iterator[str]:
    """As RETURN where the pod's filter lets it not count. The mark carries what the filter says: nothing else needs it
    at these places."""
    if egress.filters:
        yield set_mark(0, firewall)
        yield f"{when(set_name(family, _FILTERED), pod)} {jump(chain)}"
        yield f"{marked(_spared(firewall), firewall)} {goto('UNMARK')}"


def _spared(firewall: Firewall) -> int:
    """The mark of what a filter lets not count."""
    return firewall.mark_mask


_FILTER_CHAINS = (
    ("nat", "FILTERS", "src", "dst"),
    ("mangle", "FILTERS", "src", "dst"),
    ("mangle", "BACK", "dst", "src"),
)
"""Where they are looked at, and on which side of a packet the pod is, and the other end."""


def _filter_chains(egress: Egress, firewall: Firewall, family: Family) -> dict[tuple[str, str], list[str]]:
    if not egress.filters:
        return {}
    chains = {("nat", "UNMARK"): [set_mark(0, firewall)]}
    pods = _filtered(egress, family)
    groups = {name: [key for key in keys if pods[key]] for name, keys in _groups(egress).items()}
    for table, chain, pod, other in _FILTER_CHAINS:
        own = {name: _chain_of(chain, name) for name, keys in groups.items() if keys}
        chains[table, chain] = [f"{when(set_name(family, name), pod)} {jump(called)}" for name, called in own.items()]
        for name, called in own.items():
            chains[table, called] = list(_filters(groups[name], egress, family, pod, other))
        chains[table, "SPARE"] = [set_mark(_spared(firewall), firewall)]
    return chains


def _chain_of(chain: str, group: str) -> str:
    return f"{chain}-{group.rpartition('-')[2]}"


def _filters(keys: Iterable[str], egress: Egress, family: Family, pod: str, other: str) -> Iterator[str]:
    for key in keys:
        some = when(set_of_key(family, _FILTER_PODS, key), pod)
        yield f"{some} {when(set_of_key(family, _EXCLUDE, key), other)} {goto('SPARE')}"
        if egress.filters[key].only:
            yield f"{some} {unless(set_of_key(family, _ONLY, key), other)} {goto('SPARE')}"


def _not_outside(family: Family) -> str:
    return f"-m addrtype --dst-type {_NO_OUTSIDE[family]} -j RETURN"


def _unknown(egress: Egress, firewall: Firewall, family: Family) -> list[Rule | str]:
    """Packets of pods that belong to no connection: nobody translates their destination, and no nat table sees them."""
    return [
        _not_outside(family),
        *_judged(egress, firewall, family),
        *(Rule(f"{when(set_name(family, name), 'src')} -j DROP", "held") for name in ("held", "waiting")),
        drop(when(set_name(family, "elsewhere"), "src")),
        _map(family),
    ]


def _judge(egress: Egress, firewall: Firewall, family: Family) -> list[str]:
    slots = sorted({pod.slot for a, pod in egress.pods.items() if pod.slot and a.version == family})
    return [
        f"{unless(set_name(family, 'pods'), 'src')} -j RETURN",
        _not_outside(family),
        *_judged(egress, firewall, family),
        _LABEL,
        *(f"{when(set_name(family, f'slot-{n}'), 'src')} {set_mark(firewall.mark(n), firewall)}" for n in slots),
    ]


def _forward(family: Family) -> list[Rule | str]:
    return [
        "-m conntrack --ctdir REPLY -j RETURN",
        drop(f"{LABELLED} {when(set_name(family, 'elsewhere'), 'src')}"),
        f"{_CONFIRMED} -j RETURN",
        f"{when(set_name(family, 'answered'), 'dst')} {jump('STRAY')}",
        f"-m conntrack --ctstate NEW {jump('EARLY')}",
        f"-m conntrack --ctstate NEW {_UNLABELLED} {when(set_name(family, 'pods'), 'src')} {goto('OUTWARD')}",
    ]


_STRAY = (
    # Answers to connections that this node does not know: it is the new gateway, whether it has heard of that yet or
    # not. A conntrack entry made of one would take the very port that the connection needs, once its pod sends again
    # and is translated here. Without one (an answer to a TCP handshake) the packet would go back to the router, and to
    # and fro until its hop limit ends.
    f"{_TRANSLATED} -j RETURN",
    # A client of the Service. It may have no pod to answer, and then somebody else refuses the client.
    f"{_BEGINS} -j RETURN",
    drop("-m conntrack --ctstate NEW,INVALID"),
)


def _early(egress: Egress, firewall: Firewall, family: Family) -> list[Rule | str]:
    """Answers to connections of a pod that this node has forgotten, or never had: a gateway that was one until now may
    hand them to the wrong pod. An entry made of one would make the pod's own packets look like replies, which are left
    alone. A server's packet in the middle of a TCP connection is known by its flags, and conntrack makes no entry of an
    ICMP answer. A datagram tells nothing: only those to a port that the Services serve are taken, and even they not in
    the time just after the pod was treated differently."""
    return [
        f"{_TRANSLATED} -j RETURN",
        f"{when(set_name(family, 'inside'), 'src')} -j RETURN",
        f"-p {_ICMP[family]} -j RETURN",
        f"{_BEGINS} -j RETURN",
        drop(when(set_name(family, "moved"), "dst")),
        *(f"-p {protocol} {when(set_name(family, 'served'), 'dst')} -j RETURN" for protocol in ("udp", "sctp")),
        *_unless_filtered("BACK", "dst", egress, firewall, family),
        drop(when(set_name(family, "local"), "dst")),
    ]


def _outward(egress: Egress, firewall: Firewall, own: set[Slot], family: Family) -> list[Rule | str]:
    """What was not judged though it leaves. It may be for a Service's address that somebody translated to a destination
    outside the cluster. It has been routed already: here it can be translated, but to another gateway it cannot be
    steered any more. Without such a translation our rules are missing from the nat table, or somebody lets it end
    before them."""
    return [
        *_judged(egress, firewall, family),
        drop("-m conntrack ! --ctstate DNAT"),
        _LABEL,
        drop(when(set_name(family, "elsewhere"), "src")),
        *(f"{when(set_name(family, name), 'src')} -j RETURN" for name in ("held", "waiting")),
        _map(family),
        *(f"{marked(firewall.mark(slot), firewall)} -j RETURN" for slot in sorted(own)),
        drop(""),
    ]


def _held(egress: Egress, family: Family) -> Iterator[Rule]:
    refuse = f"REJECT --reject-with {_REFUSE[family]}" if egress.hold == "reject" else "DROP"
    for name, how in (("held", refuse), ("waiting", "DROP")):
        condition = f"{LABELLED} -m conntrack --ctdir ORIGINAL {when(set_name(family, name), 'src')}"
        yield Rule(f"{condition} -j {how}", "held")


def _own(firewall: Firewall, family: Family) -> list[Rule | str]:
    """A connection that was translated before ours came to it, by a masquerade in front of it, has one of this node's
    own addresses."""
    own = sorted(a for a in firewall.part(Transit).node_addresses if a.version == family)
    return [
        drop(_UNTRACKED),
        drop(f"{_CONFIRMED} -m conntrack ! --ctstate SNAT"),
        *(drop(f"{_CONFIRMED} -m conntrack --ctrepldst {address}") for address in own),
        Rule("", "translated"),
        f"{_CONFIRMED} {set_mark(0, firewall)}",
    ]


def _source(sources: list[Address], egress: Egress, firewall: Firewall, family: Family) -> list[str]:
    """One rule for each LoadBalancer address. A pod that just ceased to have one keeps its own, with which nobody
    answers it; the guard stops what it sends next."""
    flags = " --random-fully" if egress.source_ports == "random" else ""
    return [
        set_mark(0, firewall),
        *(
            f"{when(set_of_address(family, _SOURCE, source), 'src')} -j SNAT --to-source {source}{flags}"
            for source in sources
        ),
        f"-j NETMAP --to {_ITSELF[family]}",
    ]


def _notes(egress: Egress) -> dict[str, str]:
    """What no set shows."""
    gateways = {f"slot-{slot}": str(holder) for slot, holder in sorted(egress.gateways.items())}
    hops = ",".join(sorted(map(str, egress.next_hops)))
    tunnels = ",".join(sorted(egress.tunnels))
    return {"egress": f"{egress.hold} {egress.source_ports}", "next-hops": hops, "tunnels": tunnels, **gateways}


# --- changing --------------------------------------------------------------------------------------------------------


def also(before: Egress, after: Egress) -> Iterator[str]:
    """For a while answers to the connections that these pods had until now make no new entries; see `_early`. Lines for
    ipset restore."""
    for address, old in before.pods.items():
        new = after.pods.get(address)
        bound = old.local and old.treatment in (Treatment.STEER, Treatment.SNAT)
        if bound and (new is None or (new.treatment, new.source) != (old.treatment, old.source)):
            family: Family = 4 if address.version == 4 else 6
            yield f"add {set_name(family, 'moved')} {address} timeout {_MOVED_SECONDS}"


# --- reading back ----------------------------------------------------------------------------------------------------


def understand(ruleset: Ruleset, mask: int) -> Egress:
    """What is held, always something that can be rendered: what cannot be understood is left out."""
    notes = ruleset.notes
    settings = re.fullmatch(r"(reject|drop) (preserve|random)", notes.get("egress", ""))
    if not settings:
        return Egress()
    filters = dict(_understood_filters(ruleset))
    hops = map(address_of, notes.get("next-hops", "").split(","))
    return Egress(
        pods=dict(_pods(ruleset, mask, filters)),
        gateways=dict(_gateways(notes)),
        filters=filters,
        hold=settings[1],
        source_ports=settings[2],
        sources=ruleset.addresses("sources"),
        inside=ruleset.networks("inside"),
        served=frozenset(numbers(ruleset.elements(set_name(4, "served")))),
        next_hops=frozenset(hop for hop in hops if hop),
        tunnels=frozenset(filter(None, notes.get("tunnels", "").split(","))),
    )


def _understood_filters(ruleset: Ruleset) -> Iterator[tuple[str, DestinationFilter]]:
    for key in sorted({key_behind(name, _EXCLUDE) for name in ruleset.sets} - {""}):
        yield (
            key,
            DestinationFilter(
                exclude=frozenset(n for v in FAMILIES for n in ruleset.networks_of(set_of_key(v, _EXCLUDE, key))),
                only=frozenset(n for v in FAMILIES for n in ruleset.networks_of(set_of_key(v, _ONLY, key))),
            ),
        )


def _pods(ruleset: Ruleset, mask: int, filters: Mapping[str, object]) -> Iterator[tuple[Address, EgressPod]]:
    sources = {
        pod: a for name in ruleset.sets if (a := address_behind(name, _SOURCE)) for pod in ruleset.elements(name)
    }
    for family in FAMILIES:
        chosen = {pod: key for key in filters for pod in ruleset.elements(set_of_key(family, _FILTER_PODS, key))}
        held, waiting, local = (ruleset.elements(set_name(family, name)) for name in ("held", "waiting", "local"))
        for text, value in ruleset.elements(set_name(family, "pods")).items():
            slot, address, source = _slot(value, mask), address_of(text), sources.get(text)
            if address is None or slot is None:
                continue
            treatment = Treatment.HOLD if text in held else Treatment.ELSEWHERE
            if text in waiting:
                treatment = Treatment.WAIT
            if slot:
                treatment = Treatment.SNAT if source else Treatment.STEER
            yield (
                address,
                EgressPod(
                    treatment=treatment,
                    slot=slot or None,
                    source=source if slot else None,
                    filter=chosen.get(text, ""),
                    local=text in local,
                ),
            )


def _slot(value: str, mask: int) -> Slot | None:
    """The slot whose mark an element has, 0 for none; None where it is not one of ours."""
    found = re.fullmatch(r"skbmark (0x[0-9a-f]+)/(0x[0-9a-f]+)", value)
    if not found or not mask or int(found[2], 16) != mask:
        return None
    slot = Slot(int(found[1], 16) // (mask & -mask))
    return slot if not slot or has_slot(slot, mask) else None


def _gateways(notes: Mapping[str, str]) -> Iterator[tuple[Slot, Holder]]:
    for key, name in notes.items():
        found = re.fullmatch(r"slot-(\d+)", key)
        if found and HOLDER.fullmatch(name):
            yield Slot(int(found[1])), Holder.read(name)
