"""Hears what others do to our rules, routes, firewall table and rp_filter, so that it is repaired within a second.

A hint says where to look, not what happened: whoever gets one observes again. It is therefore fine to hint too often,
never to miss a change. What the kernel tells is filtered by hand, on bytes, because a node may see thousands of
foreign changes a second; taking each apart whole would cost a core.

Rtnetlink notifications carry the port id of the socket that caused them, which tells our own changes; those that the
kernel makes by itself carry 0. The packet filter is asked a few times a second instead: who listens to nf_tables makes
everybody's commits expensive.

Of the sysctls that concern us the kernel tells rp_filter and forwarding, when they change (devinet_conf_proc), not
arp_ignore and arp_announce. Who wrote it is not told: a write of our own is followed by one more look, which finds
nothing to do.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Self

from metaleg_node.core.model import MAIN_TABLE
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink import neighbours, routes, rtnetlink, rules
from metaleg_node.kernel.netlink.socket import (
    NETLINK_ROUTE,
    Message,
    attributes,
    messages,
    subscribed,
)

log = logging.getLogger(__name__)

_ROUTE_GROUPS = (1, 5, 7, 8, 9, 11, 19, 24, 25)
"""RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE, _IPV4_NETCONF,
_IPV6_NETCONF."""
_NEIGHBOUR_GROUP = 3
"""RTNLGRP_NEIGH."""
_NETCONF_SIZE, _NETCONFA_FORWARDING, _NETCONFA_RP_FILTER = 4, 2, 3

_DATAGRAM = 1 << 16
_DRAIN = 500
"""Datagrams read before hints are given, so that a flood does not delay them."""
_POLL_SECONDS = 0.2
"""From one question about the packet filter to the next: what others break there is to be back within a second."""


class Hint(enum.StrEnum):
    """What should be looked at again."""

    ROUTES = "routes"
    """A route of ours or one in our tables."""
    RULES = "rules"
    """A rule of ours, or one that points at our tables."""
    LINKS = "links"
    """An interface, or a route of the main table: next hops may have moved, and a lost link takes IPv4 routes away
    without a word."""
    ADDRESSES = "addresses"
    """An address of this host."""
    SYSCTLS = "sysctls"
    """rp_filter or forwarding of an interface, of `all` or of `default`; also told for our own writes."""
    NEIGHBOURS = "neighbours"
    """A next hop is there, has another link-layer address, or fails."""
    FIREWALL = "firewall"
    """The packet filter; what we write there ourselves is not told."""
    OVERFLOW = "overflow"
    """Notifications about anything but the firewall were lost: look at all of them."""


class Monitor:
    """A thread that calls `wake` with hints about the network namespace of the thread that called `start`.

    `tables` are our routing tables; `own_ports` tells the port ids of the sockets that make our own changes.
    `disturbed` is asked whether others may have changed the packet filter; `next_hops` tells the packed addresses of
    the neighbours that matter, None: none ever does. All are called from the
    monitor's thread, `wake` at most once for each kind of hint in a burst; it must not raise.
    """

    def __init__(
        self,
        wake: Callable[[Hint], None],
        *,
        tables: Collection[int],
        own_ports: Callable[[], Collection[int]],
        disturbed: Callable[[], bool],
        next_hops: Callable[[], Collection[bytes]] | None = None,
    ) -> None:
        self._wake = wake
        self._tables = frozenset(tables)
        self._own_ports = own_ports
        self._disturbed = disturbed
        self._next_hops = next_hops
        self._link_addresses: dict[tuple[int, bytes], bytes] = {}
        self._ask_at = 0.0
        self._thread: threading.Thread | None = None
        self._stopping = -1

    def start(self) -> None:
        """Subscribes, then starts the thread: what happens after the return is heard. Raises KernelError."""
        more = () if self._next_hops is None else (_NEIGHBOUR_GROUP,)
        route = subscribed(NETLINK_ROUTE, (*_ROUTE_GROUPS, *more), "the kernel's notifications")
        route.setblocking(False)
        self._ask_at = time.monotonic() + _POLL_SECONDS
        self._stopping = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, args=(route,), name="monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and closes its sockets; stopping twice is fine."""
        if self._thread is None:
            return
        os.eventfd_write(self._stopping, 1)
        self._thread.join()
        os.close(self._stopping)
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self, route: socket.socket) -> None:
        poll = select.poll()
        for descriptor in (self._stopping, route.fileno()):
            poll.register(descriptor, select.POLLIN)
        with route:
            while True:
                wait = max(0.0, self._ask_at - time.monotonic())
                ready = {descriptor for descriptor, _ in poll.poll(wait * 1000)}
                if self._stopping in ready:
                    return
                try:
                    self._run_once(route)
                except Exception:
                    # A deaf monitor would go unnoticed; looking at everything again is always right.
                    log.exception("the kernel monitor met something unexpected")
                    self._wake(Hint.OVERFLOW)
                    self._wake(Hint.FIREWALL)

    def _run_once(self, route: socket.socket) -> None:
        hints = {hint for data in _drain(route) for hint in self._about_routing(data)}
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _POLL_SECONDS
            hints |= set(self._about_firewall())
        for hint in sorted(hints):
            self._wake(hint)

    def _about_firewall(self) -> Iterator[Hint]:
        try:
            if self._disturbed():
                yield Hint.FIREWALL
        except KernelError as error:
            # What changes meanwhile is told when it answers again.
            log.debug("the packet filter does not answer: %s", error)

    def _about_routing(self, data: bytes | None) -> Iterator[Hint]:
        if data is None:
            yield Hint.OVERFLOW
            return
        own = self._own_ports()
        for message in messages(data):
            if message.port == 0 or message.port not in own:
                yield from self._classify(message)

    def _classify(self, message: Message) -> Iterator[Hint]:
        if message.kind in (rtnetlink.NEWLINK, rtnetlink.DELLINK):
            yield Hint.LINKS
        elif message.kind in (rtnetlink.NEWADDR, rtnetlink.DELADDR):
            yield Hint.ADDRESSES
        elif message.kind in (rtnetlink.NEWRULE, rtnetlink.DELRULE):
            if rules.concerns(message.body, self._tables):
                yield Hint.RULES
        elif message.kind in (rtnetlink.NEWROUTE, rtnetlink.DELROUTE):
            yield from self._about_route(message.body)
        elif message.kind == rtnetlink.NEWNETCONF:
            if attributes(message.body, _NETCONF_SIZE).keys() & {_NETCONFA_FORWARDING, _NETCONFA_RP_FILTER}:
                yield Hint.SYSCTLS
        elif message.kind in (rtnetlink.NEWNEIGH, rtnetlink.DELNEIGH):
            yield from self._about_neighbour(neighbours.read_news(message))

    def _about_neighbour(self, news: neighbours.News) -> Iterator[Hint]:
        """Of most news only the state is new: an entry grows old, or is confirmed."""
        if self._next_hops is None or news.address not in self._next_hops():
            return
        key = news.interface, news.address
        if self._link_addresses.get(key) != news.link_address:
            self._link_addresses[key] = news.link_address
            yield Hint.NEIGHBOURS

    def _about_route(self, body: bytes) -> Iterator[Hint]:
        table = routes.table(body)
        if table is None:
            return
        if routes.is_ours(body) or table in self._tables:
            yield Hint.ROUTES
        elif table == MAIN_TABLE:
            yield Hint.LINKS


def _drain(sock: socket.socket) -> Iterator[bytes | None]:
    """The datagrams that wait; None where some were lost (netlink(7), ENOBUFS)."""
    for _ in range(_DRAIN):
        try:
            yield sock.recv(_DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None
