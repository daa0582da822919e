"""LoadBalancer addresses that pods and this host reach by the Service's ClusterIP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from metaleg_node.core.changes import Action, Change, between, change, listed
from metaleg_node.core.firewall.part import Numbers, Part, collection
from metaleg_node.core.model import Address, Network, short_name


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServer:
    """Where a Service is reached, as IPVS names it: `protocol` is TCP, UDP or SCTP."""

    address: Address
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.address} {self.protocol} {self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a connection goes to instead. `sources` are the networks, of the address' family, whose pods may come so,
    empty: all may; `host` tells whether this host may."""

    cluster_ip: Address
    sources: frozenset[Network] = frozenset()
    host: bool = True
    key: str = field(init=False, compare=False)
    """A short name of its sources, the same for the same networks; empty where all may come."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", short_name(",".join(sorted(map(str, self.sources)))))

    def __str__(self) -> str:
        some = f" for {listed(self.sources)}" if self.sources else ""
        return f"{self.cluster_ip}{some}{'' if self.host else ', not for this host'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalIp(Part):
    """New connections to a virtual server of `targets` go to its target, from pods in `clients` and from this
    host. What comes from this host is masqueraded, or gets the bits `masquerade_mark` where that is not 0."""

    targets: Mapping[VirtualServer, Target] = field(default_factory=dict)
    clients: frozenset[Network] = collection("External-IP for pods of")
    masquerade_mark: int = 0

    def moved(self, before: ExternalIp) -> frozenset[VirtualServer]:
        """The virtual servers that lead elsewhere than before, or begin or cease to."""
        return frozenset(server for server, _ in before.targets.items() ^ self.targets.items())

    def told(self, before: ExternalIp, numbers: Numbers) -> Iterator[Change]:
        del numbers
        if before.masquerade_mark != self.masquerade_mark:
            text, was = (_masquerade(part.masquerade_mark) for part in (self, before))
            yield change(Action.CHANGE, "firewall", text, f"was: {was}")
        for server in sorted(self.moved(before), key=lambda s: (s.address.version, int(s.address), s.protocol, s.port)):
            old, new = before.targets.get(server), self.targets.get(server)
            was = f"was {old}" if old and new else ""
            yield change(between(old, new), "external-ip", f"{server} to {new or old}", was)


def _masquerade(mark: int) -> str:
    return f"External-IP of this host: {f'mark {mark:#x}' if mark else 'masqueraded'}"
