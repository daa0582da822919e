"""This node's kernel as one thing: observed as a `NodeState`, changed step by step.

The only place that knows which module of `kernel` carries out which operation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from metaleg_node.core.compare import diff
from metaleg_node.core.explain.following import Traced
from metaleg_node.core.explain.situation import Lookup, Way
from metaleg_node.core.model import FAMILIES, Address, Family, Flow, Host, NextHop, Questions, Routing
from metaleg_node.core.others import Others, PolicyRule
from metaleg_node.core.problems import Code, Problem
from metaleg_node.kernel import other_filters
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink import conntrack, neighbours
from metaleg_node.kernel.netlink.interfaces import Device
from metaleg_node.kernel.netlink.routes import Default
from metaleg_node.kernel.netlink.routing import RoutingControl
from metaleg_node.kernel.packet_filter import Counter, PacketFilter
from metaleg_node.kernel.packet_filters import Backend, Tracer, chosen, tracer
from metaleg_node.kernel.sysctl import Sysctls
from metaleg_node.reconcile.sweeper import Sweeper, forget_connections

log = logging.getLogger(__name__)


class Machine:
    """The kernel of the network namespace that this process runs in. Used by one thread."""

    packet_filter: PacketFilter
    """The one that does the work."""

    def __init__(self, state_dir: Path, backend: Backend = "auto") -> None:
        self.use(backend)
        self._routing = RoutingControl()
        self._sysctls = Sysctls(state_dir)
        self.sweeper: Sweeper | None = None
        """Looks through the connections beside everything else; without it that is done in its turn."""
        self._watched: frozenset[bytes] = frozenset()
        self.problems: tuple[Problem, ...] = ()
        """What was wrong at the last look, though it could be taken."""

    def __enter__(self) -> Self:
        self._routing.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._routing.close()

    def use(self, backend: Backend) -> None:
        """Lets this packet filter do the work from now on."""
        self.packet_filter, self._former = chosen(backend)
        self._look_for_former = True

    @property
    def former(self) -> str:
        """What people know the other packet filter by, while it still holds anything of ours."""
        if self._look_for_former and not self._former.present():
            self._look_for_former = False
        return self._former.place if self._look_for_former else ""

    def use_what_holds(self) -> None:
        """Lets the other packet filter do the work if it alone holds anything of ours."""
        if self.former and not self.packet_filter.present():
            self.packet_filter, self._former = self._former, self.packet_filter

    @property
    def own_ports(self) -> Collection[int]:
        """The netlink port ids of our own rtnetlink writes."""
        return self._routing.port_ids

    def versions(self) -> dict[str, str]:
        """The kernel's, under "Linux", and those of programs by their names. Raises KernelError."""
        return {"Linux": os.uname().release, **self.packet_filter.versions()}

    def watched(self) -> frozenset[bytes]:
        """The packed addresses of the next hops that were last asked about; for any thread."""
        return self._watched

    # --- observing ---------------------------------------------------------------------------------------------------

    def routing(self, tables: Collection[int]) -> Routing:
        """Our rules and routes, and what others put into `tables`. Raises KernelError."""
        return self._routing.observe(tables)

    def host(self, questions: Questions) -> Host:
        """The facts that were asked for. Raises KernelError."""
        ways = self._routing.ways(questions.addresses)
        interfaces = {address: way.interface for address, way in ways.items()}
        kinds = self._routing.kinds({*interfaces.values()})
        addresses, numbered = self._routing.numbering()
        unnumbered = frozenset(name for name, found in kinds.items() if found.interface not in numbered)
        tunnels = self._routing.tunnels()
        names = {*interfaces.values(), *questions.links}
        # Told before they are looked at, so that no news is missed.
        self._watched = frozenset(address.packed for address, _ in questions.next_hops)
        hops = [(address, name or interfaces.get(address, "")) for address, name in questions.next_hops]
        originals = self._originals()
        return Host(
            addresses=addresses,
            interfaces=interfaces,
            on_link=frozenset(address for address, way in ways.items() if way.direct),
            gateways={address: way.gateway for address, way in ways.items() if way.gateway},
            encapsulated=frozenset(address for address, way in ways.items() if way.encapsulates),
            kinds={name: found.kind for name, found in kinds.items() if found.kind},
            remotes={name: found.remote for name, found in kinds.items() if found.remote},
            tunnels=tunnels,
            unnumbered=unnumbered,
            rp_filter=self._rp_filter({*names}, questions, originals, unnumbered),
            arp=self._settings("all", ("arp_ignore", "arp_announce"), originals) if questions.arp else {},
            links=self._routing.links(questions.links),
            connected=self._routing.connected() if questions.connected else frozenset(),
            not_forwarding=self._not_forwarding({"all", *interfaces.values()}),
            unnameable=self.packet_filter.unnameable(names | tunnels),
            addresses_of=self._routing.addresses_of(questions.addresses_of),
            link_addresses=neighbours.link_addresses(hops),
        )

    def others(self, tables: Collection[int]) -> Others:
        """What other programs do; `tables` are ours alone. Takes some programs' time. Raises KernelError."""
        routing, filters = self._routing.observe(tables), other_filters.look()
        return Others(
            rules=self._routing.foreign_rules(tables),
            items=routing.foreign_rules | routing.foreign_routes,
            marks=filters.marks,
            closed=filters.closed,
            untracked=filters.untracked,
        )

    def way(self, question: Lookup) -> Way:
        """Where the kernel would send such a packet. Raises KernelError."""
        return self._routing.way(question)

    def trace(self, traced: Traced) -> Tracer:
        """Follows packets, in a `with` block. Raises KernelError where the packet filter in use cannot."""
        return tracer(self.packet_filter, traced)

    def flows(self, address: Address) -> list[Flow] | None:
        """The connections that begin at or go to an address; None where that may not be seen."""
        try:
            return conntrack.flows({address})
        except KernelError as error:
            log.debug("conntrack: %s", error)
            return None

    def lookup(self, addresses: Collection[Address]) -> tuple[dict[Address, str], frozenset[Address]]:
        """By which interface unmarked packets of this host leave to each of the addresses, where they do, and which
        need no router in between. Raises KernelError."""
        return self._routing.lookup(addresses)

    def devices(self) -> tuple[Device, ...]:
        """All interfaces. Raises KernelError."""
        return self._routing.devices()

    def programs(self, devices: Iterable[Device]) -> dict[str, frozenset[str]]:
        """The names of the eBPF programs that traffic control has on interfaces. Raises KernelError."""
        return self._routing.programs(devices)

    def defaults(self, table: int) -> tuple[Default, ...]:
        """The default routes of a table. Raises KernelError."""
        return self._routing.defaults(table)

    def foreign_rules(self, tables: Collection[int]) -> frozenset[PolicyRule]:
        """The rules of others that lead elsewhere than into `tables`. Raises KernelError."""
        return self._routing.foreign_rules(tables)

    def neighbours(self, hops: Iterable[NextHop]) -> dict[NextHop, str]:
        """What the neighbour tables say of each next hop, see `neighbours.states`. Nothing rests on it, so it is
        "unknown" where they cannot be read."""
        asked = {hop: (hop.gateway, hop.interface) for hop in hops if hop.gateway}
        try:
            states = neighbours.states(asked.values()) if asked else {}
        except KernelError as error:
            log.warning("next hops without their state: %s", error)
            states = {}
        return {hop: states.get(key, neighbours.UNKNOWN) for hop, key in asked.items()}

    def seek(self, hops: Iterable[NextHop]) -> None:
        """Looks for next hops of which the neighbour tables tell nothing. What comes of it is told by these."""
        try:
            neighbours.seek([(hop.gateway, hop.interface) for hop in hops if hop.gateway])
        except KernelError as error:
            log.warning("next hops are not looked for: %s", error)

    def passed(self) -> Mapping[str, Counter]:
        """The packet filter's counters, none where they cannot be read."""
        try:
            return self.packet_filter.counters()
        except KernelError as error:
            log.warning("status without the packet filter's counters: %s", error)
            return {}

    def _rp_filter(
        self, names: set[str], questions: Questions, originals: Mapping[str, str], unnumbered: Collection[str]
    ) -> dict[str, int]:
        everywhere = self._settings("all", ("rp_filter",), originals).get("rp_filter", 0)
        if questions.all_rp_filters or (unnumbered and everywhere):
            names |= self._sysctls.rp_filter().keys()
        found = {name: self._settings(name, ("rp_filter",), originals) for name in {"all", *names}}
        return {name: values["rp_filter"] for name, values in found.items() if values}

    def _not_forwarding(self, names: Iterable[str]) -> frozenset[tuple[Family, str]]:
        paths = {f"net/ipv{family}/conf/{name}/forwarding": (family, name) for family in FAMILIES for name in names}
        return frozenset(paths[path] for path, value in self._sysctls.read(paths).items() if value == "0")

    def _settings(self, interface: str, keys: Iterable[str], originals: Mapping[str, str]) -> dict[str, int]:
        """IPv4 settings of an interface, as the operator has them."""
        paths = {f"net/ipv4/conf/{interface}/{key}": key for key in keys}
        present = self._sysctls.read(paths)
        return {key: int(originals.get(path, present[path])) for path, key in paths.items() if path in present}

    def sysctls(self, wanted: Iterable[str]) -> dict[str, str]:
        """The present values of the wanted sysctls and of those that are as we changed them."""
        return self._sysctls.read({*wanted, *self._originals()})

    def _originals(self) -> Mapping[str, str]:
        """What the operator had set, where it is as we changed it: decisions must not rest on our own doing.

        An unreadable record must not keep the rest from working; `set` refuses until it is mended.
        """
        try:
            originals = self._sysctls.remembered()
        except KernelError as error:
            self.problems = (Problem(code=Code.SYSCTL_RECORD, text=str(error)),)
            return {}
        self.problems = ()
        return originals

    # --- acting ------------------------------------------------------------------------------------------------------

    def carry_out(self, operations: Sequence[diff.Operation]) -> list[int | KernelError]:
        """Does one thing, or any number of one kind in one go: sysctls set, sysctls put back,
        routes and rules changed. Tells of each how many conntrack entries it deleted, or why it failed."""
        try:
            match operations:
                case [diff.PutFirewall(firewall=firewall)]:
                    self.packet_filter.put(firewall)
                case [diff.DropFormerFirewall()]:
                    self._former.put(None)
                case [diff.SweepFlows() as sweep]:
                    return [self._sweep(sweep)]
                case [diff.SetSysctl(), *_]:
                    wanted = {one.name: one.value for one in operations if isinstance(one, diff.SetSysctl)}
                    return [error or 0 for error in self._sysctls.set(wanted)]
                case [diff.RestoreSysctl(), *_]:
                    names = [one.name for one in operations if isinstance(one, diff.RestoreSysctl)]
                    return [error or 0 for error in self._sysctls.restore(names)]
                case _:
                    routing = [one for one in operations if isinstance(one, diff.RoutingOperation)]
                    return [error or 0 for error in self._routing.change(routing)]
        except KernelError as error:
            return [error] * len(operations)
        return [0]

    def prune(self) -> None:
        """Forgets the sysctls of interfaces that are gone, and those that others changed. Raises KernelError."""
        if not self.problems:
            self._sysctls.prune()

    def _sweep(self, sweep: diff.SweepFlows) -> int:
        """What can wait is left to `sweeper`, where there is one."""
        if self.sweeper is None:
            return forget_connections(sweep, self._routing)
        if not sweep.awaited:
            self.sweeper.ask(sweep)
            return 0
        # It looks at everything, and with the latest firewall.
        self.sweeper.forget()
        return forget_connections(sweep, self._routing)
