"""What explanations follow from: a state of the cluster, this node's decisions, and what its kernel holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from metaleg_node.configuration.config import Config
from metaleg_node.core.assembly import Desired
from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.explain.answer import Held
from metaleg_node.core.explain.locator import Locator
from metaleg_node.core.firewall.part import Firewall, Part
from metaleg_node.core.model import Address, ClusterState, Flow, NextHop, NodeName, Route, Routing, Rule

P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A question for a route, as ip-route(8) `get` asks it: by `interface` the packet came in, empty for one of this
    host itself; `mark` 0: none."""

    destination: Address
    source: Address | None = None
    interface: str = ""
    mark: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The kernel's answer: the table that led to it, and the next hop. `refusal` says why there is none."""

    table: int = 0
    hop: NextHop | None = None
    refusal: str = ""

    def __str__(self) -> str:
        if self.hop is None:
            return self.refusal
        via = f"via {self.hop.gateway} " if self.hop.gateway else ""
        return f"{via}dev {self.hop.interface}, table {self.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What the kernel of this node holds. `unread` says why the packet filter could not be looked at, empty when it
    was; `damage` names what of it others changed; `locator` finds in it the rules that hold what is decided. `way`
    looks a route up; `flows` tells the connections of an address, None where that is not allowed."""

    routing: Routing = field(default_factory=Routing)
    firewall: Firewall | None = None
    unread: str = ""
    damage: Collection[str] = ()
    locator: Locator
    way: Callable[[Lookup], Way]
    flows: Callable[[Address], Iterable[Flow] | None]
    neighbours: Mapping[NextHop, str] = field(default_factory=dict)

    def holds(self, same: Callable[[Firewall], bool]) -> Held:
        """Whether the packet filter is such that `same` is true of it."""
        if self.unread:
            return Held.UNKNOWN
        firewall = self.firewall or Firewall(mark_mask=0)
        return Held.SAME if same(firewall) and not self.damage else Held.DIFFERS

    def has(self, item: Rule | Route) -> Held:
        """Whether it has this rule or route."""
        return Held.SAME if item in self.routing.rules or item in self.routing.routes else Held.DIFFERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All of it. `gap` says why nothing is decided, empty when it is."""

    cluster: ClusterState
    config: Config
    me: NodeName
    survey: Survey
    desired: Desired
    kernel: Kernel
    gap: str = ""

    def wanted(self, kind: type[P]) -> P:
        """A part of the packet filter, as decided."""
        firewall = self.desired.state.firewall
        return firewall.part(kind) if firewall else kind()

    def mark(self, slot: int) -> str:
        """A slot's mark, in hexadecimal."""
        mask = self.config.firewall.mark_mask
        return f"{slot * (mask & -mask):#010x}"
