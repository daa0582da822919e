"""The egress of pods, as the packet filter has it."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from metaleg_node.core.changes import Action, Change, Kind, between, change, listed
from metaleg_node.core.firewall.part import Numbers, Part, collection, option
from metaleg_node.core.increments import Evolving
from metaleg_node.core.model import Address, DestinationFilter, Holder, HolderKind, Network, Slot


class Treatment(enum.StrEnum):
    """What this node does with the outward traffic of an egress pod."""

    STEER = "steer"
    """Mark it for the gateway's table; it leaves this node un-NATed."""
    SNAT = "snat"
    """This node is the gateway: the LoadBalancer address becomes the source."""
    HOLD = "hold"
    """No way out now: `when_unavailable`."""
    WAIT = "wait"
    """The way out went just now: dropped, so that attempts to connect are repeated and do not fail."""
    ELSEWHERE = "elsewhere"
    """Another node's pod, for which this node is not the gateway: dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPod:
    """One address of a pod and its treatment. `slot` is set for STEER and SNAT, `source` for SNAT; `filter` names a
    `DestinationFilter`, empty for none; `local` pods run on this node."""

    treatment: Treatment
    slot: Slot | None = None
    source: Address | None = None
    filter: str = ""
    local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress(Part):
    """Egress pods and what their packets meet.

    `gateways` tells who has each slot; `sources` are the LoadBalancer addresses that this node translates to;
    `next_hops` are the addresses that steered packets may be handed to, and `tunnels` the interfaces by which they may
    leave without one; `inside` are the destinations that are never egress; `served` are the ports on which egress pods
    take datagrams (UDP, SCTP) from anybody.
    """

    pods: Mapping[Address, EgressPod] = field(default_factory=dict)
    gateways: Mapping[Slot, Holder] = field(default_factory=dict)
    filters: Mapping[str, DestinationFilter] = field(default_factory=dict)
    hold: str = option("reject", "held packets")
    source_ports: str = option("preserve", "source ports")
    sources: frozenset[Address] = frozenset()
    inside: frozenset[Network] = collection("inside the cluster")
    served: frozenset[int] = collection("ports that take datagrams")
    next_hops: frozenset[Address] = collection("next hops")
    tunnels: frozenset[str] = collection("tunnels")

    @property
    def holders(self) -> Mapping[Slot, Holder]:
        return self.gateways

    @property
    def treatments(self) -> Collection[EgressPod]:
        """Each that a pod has, once."""
        return (self.pods.distinct() if isinstance(self.pods, Evolving) else Counter(self.pods.values())).keys()

    def moved(self, before: Egress) -> set[Address]:
        """The pod addresses that are treated otherwise than before, or no longer at all."""
        pods = self.pods if isinstance(self.pods, Evolving) else Evolving(self.pods)
        return pods.difference(before.pods)

    def told(self, before: Egress, numbers: Numbers) -> Iterator[Change]:
        yield from self._pods(before, numbers)
        for slot in sorted({*before.gateways, *self.gateways}):
            old, new = before.gateways.get(slot), self.gateways.get(slot)
            if old != new:
                mark = numbers.mark(slot, before=new is None)
                holder = new or old
                assert holder
                kind: Kind = "exit" if holder.kind is HolderKind.EXIT else "gateway"
                yield change(between(old, new), kind, f"{holder} has slot {slot}, mark {mark}")
        for key in sorted({*before.filters, *self.filters}):
            was, will = before.filters.get(key), self.filters.get(key)
            if was != will:
                yield change(between(was, will), "destinations", _in_words(will or was or DestinationFilter()))

    def _pods(self, before: Egress, numbers: Numbers) -> Iterator[Change]:
        for address in sorted(self.moved(before), key=lambda a: (a.version, int(a))):
            old, new = before.pods.get(address), self.pods.get(address)
            if new is None:
                assert old
                text = f"{address} {before.describe(old)}"
                yield change(Action.REMOVE, "pod", text, "no longer an egress pod")
            else:
                was = f"; until now it {before.describe(old)}" if old else ""
                yield change(between(old, new), "pod", f"{address} {self.describe(new)}", numbers.why(address) + was)

    def describe(self, pod: EgressPod) -> str:
        """What happens to a pod's outward traffic on this node, in words."""
        some = " (its destinations are restricted)" if pod.filter else ""
        match pod.treatment:
            case Treatment.STEER:
                name = self.gateways.get(pod.slot, "?") if pod.slot else "?"
                return f"leaves through {name}, slot {pod.slot}{some}"
            case Treatment.SNAT:
                return f"leaves here as {pod.source}{some}"
            case Treatment.HOLD:
                return f"is held: {self.hold}{some}"
            case Treatment.WAIT:
                return f"waits for a gateway: dropped{some}"
            case Treatment.ELSEWHERE:
                return f"is another node's: dropped if it comes here{some}"


def _in_words(destinations: DestinationFilter) -> str:
    texts = [f"except {listed(destinations.exclude)}"] if destinations.exclude else []
    return " ".join([*texts, *([f"only {listed(destinations.only)}"] if destinations.only else [])])
