"""Policy rules and routes: what the kernel holds of ours and in our tables, the way to change it, and the interfaces,
addresses and routes of this host that decisions rest on.

Dumps of routes are filtered by the kernel: a node may have many thousands of routes of others.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from itertools import groupby
from types import TracebackType
from typing import NamedTuple, Self

from metaleg_node.core.compare import diff
from metaleg_node.core.explain.situation import Lookup, Way
from metaleg_node.core.model import FAMILIES, MAIN_TABLE, ROUTE_PROTOCOL, Address, Family, Link, Network, Route, Routing
from metaleg_node.core.others import PolicyRule
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink import interfaces, programs, routes, rtnetlink, rules
from metaleg_node.kernel.netlink.socket import NETLINK_ROUTE, Message, NetlinkSocket, Request

_OF_ADDRESSES = (2, 9, 16)
"""RTPROT_KERNEL, RTPROT_RA, RTPROT_DHCP: who routes an address's own network to its interface. systemd-networkd and
dhcpcd do so in the kernel's place (`noprefixroute`). What a route of anybody else leads to, such as a VPN's halves of
the whole Internet, need not be near."""
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ESRCH, errno.EOPNOTSUPP}
"""What a route lookup answers: nothing found, the reject route types (ip-route(8)), or a kernel without IPv6."""
_FOREIGN = diff.DeleteForeignRoute | diff.DeleteForeignRule
_DONE, _THERE, _GONE = {0}, {0, errno.EEXIST}, {0, errno.ENOENT, errno.ESRCH}
"""What the kernel answers to a change that was made or was not needed."""


class Hop(NamedTuple):
    """The way to an address: the interface, whether no router is in between, the next hop where it is of the same
    family, and whether the route puts packets into others."""

    interface: str
    direct: bool
    gateway: Address | None
    encapsulates: bool


class RoutingControl:
    """Rules and routes of the network namespace of the thread that calls `open`; for that thread alone.

    Every method but `close` raises KernelError when the kernel refuses or does not answer.
    """

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE)
        self._own = NetlinkSocket(NETLINK_ROUTE)
        self._ports: frozenset[int] = frozenset()
        self._seen: dict[tuple[int, str], bool] = {}

    def open(self) -> None:
        """Opens the netlink sockets."""
        self._netlink.open()
        self._own.open()
        self._ports = frozenset({self._own.port})

    def close(self) -> None:
        """Closes the sockets; closing twice is fine."""
        self._ports = frozenset()
        self._netlink.close()
        self._own.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def port_ids(self) -> frozenset[int]:
        """What notifications carry as port id in their header when they tell of our own changes; empty when closed.
        May be read by any thread.

        What happens to foreign items is not among them: the kernel compares less than it tells, so that a request to
        delete one may hit a rule or route of ours that was added meanwhile. Whoever listens should look again."""
        return self._ports

    # --- observing ---

    def observe(self, tables: Collection[int]) -> Routing:
        """Our rules and routes wherever they are, and what others have put into or pointed at `tables`.

        Metrics are as the kernel keeps them (an IPv6 route added with 0 has 1024), next hops are sorted, and the
        weight of a single next hop is 1, because the kernel keeps none.
        """
        our_rules, our_routes, foreign_rules, foreign_routes = set(), set(), set(), set()
        for body in self._rules():
            if rule := rules.read_rule(body):
                our_rules.add(rule)
            elif rules.concerns(body, tables):
                foreign_rules.add(rules.foreign_rule(body))
        name_of = cache(rtnetlink.interface_name)
        for body in self._routes(tables):
            if route := routes.read_route(body, name_of):
                our_routes.add(route)
            else:
                foreign_routes.add(routes.foreign_route(body, name_of))
        return Routing(
            rules=frozenset(our_rules),
            routes=frozenset(our_routes),
            foreign_rules=frozenset(foreign_rules),
            foreign_routes=frozenset(foreign_routes),
        )

    def foreign_rules(self, tables: Collection[int]) -> frozenset[PolicyRule]:
        """The rules of others that lead elsewhere than into `tables`."""
        return frozenset(rules.policy_rule(body) for body in self._rules() if not rules.concerns(body, tables))

    def addresses(self) -> frozenset[Address]:
        """All addresses of the namespace's interfaces."""
        return self.numbering()[0]

    def numbering(self) -> tuple[frozenset[Address], frozenset[int]]:
        """All addresses of the namespace's interfaces, and the indexes of those interfaces that have one of IPv4."""
        bodies = self._netlink.listing(rtnetlink.GETADDR, interfaces.dump_body(), "list the addresses")
        addresses = frozenset(address for body in bodies if (address := interfaces.read_address(body)))
        return addresses, frozenset(filter(None, map(interfaces.read_numbered, bodies)))

    def addresses_of(self, names: Collection[str]) -> dict[str, frozenset[Address]]:
        """The addresses of each of the interfaces that exist."""
        found: dict[str, frozenset[Address]] = {}
        for name in names:
            try:
                number = socket.if_nametoindex(name)
            except OSError:
                continue
            requests = (interfaces.dump_body(rtnetlink.SOCKET_FAMILY[family], number) for family in FAMILIES)
            what = f"list the addresses of {name}"
            bodies = (body for one in requests for body in self._netlink.listing(rtnetlink.GETADDR, one, what))
            found[name] = frozenset(address for body in bodies if (address := interfaces.read_address(body)))
        return found

    def devices(self) -> tuple[interfaces.Device, ...]:
        """All interfaces of the namespace."""
        bodies = self._netlink.listing(rtnetlink.GETLINK, interfaces.list_body(), "list the interfaces")
        return tuple(map(interfaces.read_device, bodies))

    def programs(self, devices: Iterable[interfaces.Device]) -> dict[str, frozenset[str]]:
        """The names of the eBPF programs that traffic control has on interfaces; only of interfaces that have any."""
        found = {device.name: frozenset(self._programs(device.number)) for device in devices}
        return {name: names for name, names in found.items() if names}

    def _programs(self, interface: int) -> Iterator[str]:
        for parent in (programs.INGRESS, programs.EGRESS):
            body = programs.list_body(interface, parent)
            for one in self._netlink.listing(programs.GETTFILTER, body, "list the filters of an interface"):
                if name := programs.read_program(one):
                    yield name

    def defaults(self, table: int) -> tuple[routes.Default, ...]:
        """The default routes of a table, of both families."""
        bodies = (body for family in FAMILIES for body in self._dump_routes(family, table=table))
        return tuple(found for body in bodies for found in routes.read_defaults(body, rtnetlink.interface_name))

    def connected(self) -> frozenset[Network]:
        """The networks that this host's own addresses lie in, as the main table has them, whether the kernel put them
        there or who learned of them by router advertisement or DHCP."""
        found = set()
        for family in FAMILIES:
            for protocol in _OF_ADDRESSES:
                for body in self._dump_routes(family, table=MAIN_TABLE, protocol=protocol):
                    if network := routes.read_connected(body):
                        found.add(network)
        return frozenset(found)

    def links(self, names: Collection[str]) -> dict[str, Link]:
        """Those of the interfaces that exist."""
        found: dict[str, Link] = {}
        answers = self._netlink.ask(rtnetlink.GETLINK, map(interfaces.get_link_body, names), "look at interfaces")
        for name, answer in zip(names, answers, strict=True):
            if answer.code == errno.ENODEV:
                continue
            if answer.code:
                raise answer.refusal(f"look at interface {name}")
            link = interfaces.read_link(answer.body)
            asked = interfaces.dump_body(socket.AF_INET, link.interface)
            numbered = self._netlink.listing(rtnetlink.GETADDR, asked, f"list the IPv4 addresses of {name}")
            found[name] = Link(
                up=link.up,
                has_ipv4=bool(numbered),
                takes_ipv6=link.takes_ipv6,
                vrf=rtnetlink.interface_name(link.vrf) if link.vrf else "",
            )
        return found

    def lookup(self, addresses: Collection[Address]) -> tuple[dict[Address, str], frozenset[Address]]:
        """The interface through which an unmarked packet of this host leaves to each address, and which addresses
        need no router in between. Local and unreachable addresses are left out."""
        found = self.ways(addresses)
        return {a: way.interface for a, way in found.items()}, frozenset(a for a, way in found.items() if way.direct)

    def ways(self, addresses: Collection[Address]) -> dict[Address, Hop]:
        """How an unmarked packet of this host leaves to each address. Local and unreachable addresses are left out."""
        ways: dict[Address, Hop] = {}
        name_of = cache(rtnetlink.interface_name)
        answers = self._netlink.ask(rtnetlink.GETROUTE, map(routes.get_body, addresses), "look up routes")
        for address, answer in zip(addresses, answers, strict=True):
            if answer.code and answer.code not in _NO_ROUTE:
                raise answer.refusal(f"look up the route to {address}")
            if not answer.code and (found := routes.read_lookup(answer.body)):
                ways[address] = Hop(name_of(found.interface), found.direct, found.gateway, found.encapsulates)
        return ways

    def kinds(self, names: Collection[str]) -> dict[str, interfaces.Kind]:
        """What each of the interfaces is that exist."""
        answers = self._netlink.ask(rtnetlink.GETLINK, map(interfaces.get_link_body, names), "look at interfaces")
        return {n: interfaces.read_kind(one.body) for n, one in zip(names, answers, strict=True) if not one.code}

    def tunnels(self) -> frozenset[str]:
        """The names of all tunnels of IP. An interface stays what it is, so only those that are new are looked at."""
        try:
            present = frozenset(socket.if_nameindex())
        except OSError as error:
            raise KernelError(f"cannot list the interfaces: {error.strerror}") from error
        new = present - self._seen.keys()
        kinds = self.kinds([name for _, name in new])
        # One that is gone meanwhile, or has another name, is looked at again.
        found = {one: interfaces.is_ip_tunnel(kinds[one[1]].kind) for one in new if one[1] in kinds}
        self._seen = {one: tunnel for one, tunnel in (self._seen | found).items() if one in present}
        return frozenset(name for (_, name), tunnel in self._seen.items() if tunnel)

    def way(self, question: Lookup) -> Way:
        """Where the kernel would send such a packet."""
        try:
            interface = socket.if_nametoindex(question.interface) if question.interface else 0
        except OSError:
            return Way(refusal=f"there is no interface {question.interface}")
        body = routes.way_body(question, interface)
        (answer,) = self._netlink.ask(rtnetlink.GETROUTE, [body], "look up a route")
        if answer.code:
            return Way(refusal=f"no way: {os.strerror(answer.code)} (errno {answer.code})")
        return routes.read_way(answer.body, rtnetlink.interface_name)

    def _rules(self) -> Iterator[bytes]:
        for family in FAMILIES:
            request = rules.dump_body(rtnetlink.SOCKET_FAMILY[family])
            yield from self._netlink.listing(rtnetlink.GETRULE, request, f"list the IPv{family} rules")

    def _routes(self, tables: Collection[int]) -> Iterator[bytes]:
        """Routes with our protocol number in any table, and all others in `tables`."""
        for family in FAMILIES:
            yield from self._dump_routes(family, protocol=ROUTE_PROTOCOL)
            for table in tables:
                yield from (body for body in self._dump_routes(family, table=table) if not routes.is_ours(body))

    def _dump_routes(self, family: Family, *, table: int = 0, protocol: int = 0) -> list[bytes]:
        request = routes.dump_body(family, table=table, protocol=protocol)
        return self._netlink.listing(rtnetlink.GETROUTE, request, f"list the IPv{family} routes")

    # --- changing ---

    def change(self, operations: Iterable[diff.RoutingOperation]) -> list[KernelError | None]:
        """Carries out operations in their order, many in one request, and tells of each why it failed, None for done.

        A route replaces in one step the one with the same table, destination and metric, whoever's; it is deleted by
        these and its type. What is there already, or gone, is fine. To the kernel a rule with "not" is the same: such a
        foreign rule must be deleted before.
        """
        done: list[KernelError | None] = []
        for foreign, some in groupby(operations, key=lambda operation: isinstance(operation, _FOREIGN)):
            done += _change(self._netlink if foreign else self._own, some)
        return done


class _Order(NamedTuple):
    """A request, what it does to what, and the errnos that are as good as done."""

    verb: str
    subject: object
    fine: Collection[int]
    request: Request

    def error(self, answer: Message) -> KernelError | None:
        """Why it was refused."""
        return None if answer.code in self.fine else answer.refusal(f"{self.verb} {self.subject}")


def _change(netlink: NetlinkSocket, operations: Iterable[diff.RoutingOperation]) -> list[KernelError | None]:
    orders = [*map(_order, operations)]
    requests = (order.request for order in orders if isinstance(order, _Order))
    answers = iter(netlink.change(requests, "change rules and routes"))
    return [order.error(next(answers)) if isinstance(order, _Order) else order for order in orders]


def _order(operation: diff.RoutingOperation) -> _Order | KernelError:
    match operation:
        case diff.PutRoute(route=route):
            return _put(route)
        case diff.DeleteRoute(route=route):
            return _Order("delete the route", route, _GONE, Request(rtnetlink.DELROUTE, routes.delete_body(route)))
        case diff.DeleteForeignRoute(item=item):
            request = Request(rtnetlink.DELROUTE, routes.delete_foreign_body(item))
            return _Order("delete the foreign route", item.text, _GONE, request)
        case diff.AddRule(rule=rule):
            request = Request(rtnetlink.NEWRULE, rules.rule_body(rule), rtnetlink.ADD)
            return _Order("add the rule", rule, _THERE, request)
        case diff.DeleteRule(rule=rule):
            return _Order("delete the rule", rule, _GONE, Request(rtnetlink.DELRULE, rules.rule_body(rule)))
        case diff.DeleteForeignRule(item=item):
            return _Order(
                "delete the foreign rule", item.text, _GONE, Request(rtnetlink.DELRULE, rtnetlink.message_in(item))
            )


def _put(route: Route) -> _Order | KernelError:
    try:
        body = routes.put_body(route, socket.if_nametoindex)
    except OSError:
        missing = ", ".join(sorted({hop.interface for hop in route.next_hops}))
        return KernelError(f"cannot set the route {route}: there is no interface {missing}", code=errno.ENODEV)
    return _Order("set the route", route, _DONE, Request(rtnetlink.NEWROUTE, body, rtnetlink.REPLACE))
