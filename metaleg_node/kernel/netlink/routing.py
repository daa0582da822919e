"""Policy rules and routes: what the kernel holds of ours and in our tables, and the way to change it.

Changes go through one pyroute2 object, used by one thread; what the library does differently between its versions stays
in this module, `rule_messages` and `route_messages`. Dumps of routes are filtered by the kernel (a node may have many
thousands of routes of others) and read on bytes (it may have thousands of ours).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection, Iterable
from functools import cache, partial
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from metaleg_node.core.model import (
    FAMILIES,
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    Address,
    Family,
    ForeignItem,
    Link,
    Network,
    Route,
    Routing,
    Rule,
)
from metaleg_node.kernel.errors import KernelError, refusal
from metaleg_node.kernel.netlink.routes import (
    delete_route_body,
    dump_body,
    foreign_route,
    get_route_body,
    hops_request,
    interface_name,
    is_ours,
    read_connected,
    read_lookup,
    read_route,
    route_request,
)
from metaleg_node.kernel.netlink.rules import (
    SOCKET_FAMILY,
    Message,
    delete_rule_body,
    foreign_rule,
    read_rule,
    rule_request,
    rule_table,
)
from metaleg_node.kernel.netlink.socket import (
    NETLINK_ROUTE,
    NLMSG_ERROR,
    InterruptedDumpError,
    NetlinkSocket,
    error_code,
)

_RTM_DELROUTE, _RTM_GETROUTE, _RTM_DELRULE = 25, 26, 33
_UP = 1
"""IFF_UP (linux/if.h)."""
_OF_ADDRESSES = (2, 9, 16)
"""RTPROT_KERNEL, RTPROT_RA, RTPROT_DHCP: who routes an address's own network to its interface. systemd-networkd and
dhcpcd do so in the kernel's place (`noprefixroute`). What a route of anybody else leads to, such as a VPN's halves of
the whole Internet, need not be near."""
_DUMP_INTERRUPTED = 0x10
_DUMP_ATTEMPTS = 10
_EMPTY = {errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT}
"""A dump's refusal that means "nothing there": no such table, or a kernel without IPv6."""
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ESRCH, errno.EOPNOTSUPP}
"""What a route lookup answers: nothing found, the reject route types (ip-route(8)), or a kernel without IPv6."""
_LOOKUPS = 100
"""Route look-ups that go to the kernel at once; a large cluster has thousands of node addresses."""


class RoutingControl:
    """Rules and routes of the network namespace of the thread that calls `open`; for that thread alone.

    Every method but `close` raises KernelError when the kernel refuses.
    """

    def __init__(self) -> None:
        self._ipr: Any = None
        self._ports: frozenset[int] = frozenset()
        self._raw = NetlinkSocket(NETLINK_ROUTE)

    def open(self) -> None:
        """Opens the netlink sockets."""
        self._raw.open()
        self._ipr = _attempt("open a netlink socket", partial(IPRoute, strict_check=True, ext_ack=True))
        # The kernel gives the socket its port id at the first message.
        complete_dump("list the IPv4 rules", partial(self._ipr.get_rules, family=SOCKET_FAMILY[4]))
        self._ports = frozenset({int(self._ipr.getsockname()[0])})

    def close(self) -> None:
        """Closes the sockets; closing twice is fine."""
        self._ports = frozenset()
        self._raw.close()
        if self._ipr is not None:
            self._ipr.close()
            self._ipr = None

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
        rules: set[Rule] = set()
        routes: set[Route] = set()
        foreign_rules: set[ForeignItem] = set()
        foreign_routes: set[ForeignItem] = set()
        for message in self._rules():
            rule = read_rule(message)
            if rule is not None:
                rules.add(rule)
            elif message.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL or rule_table(message) in tables:
                foreign_rules.add(foreign_rule(message))
        name_of = cache(interface_name)
        for body in self._routes(tables):
            route = read_route(body, name_of)
            if route is not None:
                routes.add(route)
            else:
                foreign_routes.add(foreign_route(body, name_of))
        return Routing(
            rules=frozenset(rules),
            routes=frozenset(routes),
            foreign_rules=frozenset(foreign_rules),
            foreign_routes=frozenset(foreign_routes),
        )

    def addresses(self) -> frozenset[Address]:
        """All addresses of the namespace's interfaces."""
        found = set()
        for family in FAMILIES:
            request = partial(self._ipr.get_addr, family=SOCKET_FAMILY[family])
            for message in complete_dump(f"list the IPv{family} addresses", request):
                # On a point-to-point link IFA_ADDRESS is the peer's (linux/if_addr.h).
                found.add(ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")))
        return frozenset(found)

    def connected(self) -> frozenset[Network]:
        """The networks that this host's own addresses lie in, as the main table has them, whether the kernel put them
        there or who learned of them by router advertisement or DHCP."""
        found = set()
        for family in FAMILIES:
            for protocol in _OF_ADDRESSES:
                for body in self._dump_routes(family, table=MAIN_TABLE, protocol=protocol):
                    if network := read_connected(body):
                        found.add(network)
        return frozenset(found)

    def links(self, names: Collection[str]) -> dict[str, Link]:
        """Those of the interfaces that exist."""
        found: dict[str, Link] = {}
        if not names:
            return found
        addressed = partial(self._ipr.get_addr, family=SOCKET_FAMILY[4])
        numbered = {int(message["index"]) for message in complete_dump("list the IPv4 addresses", addressed)}
        for name in names:
            try:
                index = socket.if_nametoindex(name)
            except OSError:
                continue
            request = partial(self._ipr.link, "get", index=index)
            for message in _attempt(f"look at interface {name}", request, fine=(errno.ENODEV,)) or ():
                up = bool(message["flags"] & _UP)
                found[name] = Link(up=up, has_ipv4=index in numbered, takes_ipv6=_takes_ipv6(message))
        return found

    def lookup(self, addresses: Iterable[Address]) -> tuple[dict[Address, str], frozenset[Address]]:
        """The interface through which an unmarked packet of this host leaves to each address, and which addresses
        need no router in between. Local and unreachable addresses are left out."""
        interfaces: dict[Address, str] = {}
        on_link: set[Address] = set()
        waiting = list(addresses)
        name_of = cache(interface_name)
        for start in range(0, len(waiting), _LOOKUPS):
            batch = waiting[start : start + _LOOKUPS]
            answers = self._raw.ask_all(_RTM_GETROUTE, list(map(get_route_body, batch)), "look up routes")
            for address, answer in zip(batch, answers, strict=True):
                if answer.kind == NLMSG_ERROR:
                    if error_code(answer) not in _NO_ROUTE:
                        raise refusal(f"look up the route to {address}", error_code(answer))
                elif found := read_lookup(answer.body):
                    interfaces[address] = name_of(found.interface)
                    if found.direct:
                        on_link.add(address)
        return interfaces, frozenset(on_link)

    # --- changing ---

    def put_route(self, route: Route) -> None:
        """Adds a route, or replaces in one step the one with the same table, destination and metric, whoever's."""
        what = f"set the route {route}"
        try:
            hops = hops_request(route)
        except OSError as error:
            missing = ", ".join(sorted({hop.interface for hop in route.next_hops}))
            raise KernelError(f"cannot {what}: there is no interface {missing}", code=errno.ENODEV) from error
        _attempt(what, partial(self._ipr.route, "replace", **route_request(route), **hops))

    def delete_route(self, route: Route) -> None:
        """Deletes the route of ours with this table, destination and metric; one that is gone is fine."""
        what = f"delete the route {route}"
        # RT_SCOPE_NOWHERE matches a route of any scope; the library's default only those with a gateway.
        request = partial(self._ipr.route, "del", scope="nowhere", **route_request(route))
        _attempt(what, request, fine=(errno.ESRCH, errno.ENOENT))

    def add_rule(self, rule: Rule) -> None:
        """Adds a rule; one that exists already is fine. To the kernel a rule with "not" is the same: such a foreign
        rule must be deleted before."""
        _attempt(f"add the rule {rule}", partial(self._ipr.rule, "add", **rule_request(rule)), fine=(errno.EEXIST,))

    def delete_rule(self, rule: Rule) -> None:
        """Deletes a rule of ours; one that is gone is fine."""
        _attempt(f"delete the rule {rule}", partial(self._ipr.rule, "del", **rule_request(rule)), fine=(errno.ENOENT,))

    def delete_foreign_rule(self, item: ForeignItem) -> None:
        """Deletes a rule that `observe` told as foreign; one that is gone is fine."""
        self._take_back(_RTM_DELRULE, delete_rule_body(item), f"rule {item.text}")

    def delete_foreign_route(self, item: ForeignItem) -> None:
        """Deletes a route that `observe` told as foreign; one that is gone is fine."""
        self._take_back(_RTM_DELROUTE, delete_route_body(item), f"route {item.text}")

    # --- messages ---

    def _take_back(self, kind: int, body: bytes, item: str) -> None:
        what = f"delete the foreign {item}"
        (code,) = self._raw.change(kind, [body], what)
        if code not in (0, errno.ENOENT, errno.ESRCH):
            raise refusal(what, code)

    def _rules(self) -> Iterable[Message]:
        for family in FAMILIES:
            request = partial(self._ipr.get_rules, family=SOCKET_FAMILY[family])
            yield from complete_dump(f"list the IPv{family} rules", request)

    def _routes(self, tables: Collection[int]) -> Iterable[bytes]:
        """Routes with our protocol number in any table, and all others in `tables`."""
        for family in FAMILIES:
            yield from self._dump_routes(family, protocol=ROUTE_PROTOCOL)
            for table in tables:
                yield from (body for body in self._dump_routes(family, table=table) if not is_ours(body))

    def _dump_routes(self, family: Family, *, table: int = 0, protocol: int = 0) -> list[bytes]:
        """The messages of routes, asked for again while they change; see `complete_dump`."""
        what, request = f"list the IPv{family} routes", dump_body(family, table=table, protocol=protocol)
        for _ in range(_DUMP_ATTEMPTS):
            try:
                return [message.body for message in self._raw.dump(_RTM_GETROUTE, request, what, whole=True)]
            except InterruptedDumpError:
                continue
            except KernelError as error:
                if error.code in _EMPTY:
                    return []
                raise
        raise _kept_changing(what)


def complete_dump(what: str, request: Callable[[], Iterable[Message]]) -> list[Message]:
    """The answer to a dump request, asked again while the table changes underneath (NLM_F_DUMP_INTR): such an answer
    may lack entries. pyroute2 0.7 raises then, 0.9 hands it over. Raises KernelError."""
    for _ in range(_DUMP_ATTEMPTS):
        try:
            answer = list(request())
        except NetlinkDumpInterrupted:
            continue
        except NetlinkError as error:
            if error.code in _EMPTY:
                return []
            raise _refusal(what, error) from error
        except OSError as error:
            raise refusal(what, error.errno or 0) from error
        if not any(message["header"]["flags"] & _DUMP_INTERRUPTED for message in answer):
            return answer
    raise _kept_changing(what)


def _kept_changing(what: str) -> KernelError:
    return KernelError(f"cannot {what}: they kept changing during {_DUMP_ATTEMPTS} attempts", code=errno.EINTR)


def _takes_ipv6(message: Message) -> bool:
    """Whether a route of IPv6 may lead to an interface; without settings of IPv6 it has none at all."""
    settings: Any = message
    for name in ("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_CONF"):
        settings = settings.get_attr(name)
        if settings is None:
            return False
    return not settings["disable_ipv6"]


def _attempt(what: str, request: Callable[[], Any], fine: Collection[int] = ()) -> Any:
    """The answer to a request, None when it is refused with one of the errnos in `fine`. Raises KernelError."""
    try:
        return request()
    except NetlinkError as error:
        if error.code in fine:
            return None
        raise _refusal(what, error) from error
    except OSError as error:
        raise refusal(what, error.errno or 0) from error


def _refusal(what: str, error: Any) -> KernelError:
    return refusal(what, int(error.code), str(error.args[1]) if len(error.args) > 1 else "")
