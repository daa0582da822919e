"""Hears what others do to our rules, routes, firewall table and rp_filter, so that it is repaired within a second.

A hint says where to look, not what happened: whoever gets one observes again. It is therefore fine to hint too often,
never to miss a change. What the kernel tells is filtered by hand, on bytes, because a node may see thousands of
foreign changes a second; taking each apart whole would cost a core.

Rtnetlink notifications carry the port id of the socket that caused them, which tells our own changes; those that the
kernel makes by itself carry 0. nf_tables packs the notifications of one transaction together, whatever their tables
(nft_commit_notify), so every message of a datagram counts, not only the first.

Of the sysctls that concern us the kernel tells only rp_filter, when it changes (devinet_conf_proc), not arp_ignore
and arp_announce. Who wrote it is not told: a write of our own is followed by one more look, which finds nothing to do.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Self

from metaleg_node.core.model import MAIN_TABLE
from metaleg_node.kernel.errors import refusal
from metaleg_node.kernel.netlink import routes, rtnetlink, rules
from metaleg_node.kernel.netlink.socket import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    Message,
    NetlinkSocket,
    attributes,
    messages,
)

log = logging.getLogger(__name__)

_ROUTE_GROUPS = (1, 5, 7, 8, 9, 11, 19, 24)
"""RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE, _IPV4_NETCONF."""
_NFTABLES_GROUP = 7
_NETCONF_SIZE, _NETCONFA_RP_FILTER = 4, 3

_INET = 1
_NFGEN_SIZE, _NFTA_TABLE, _GET_GENERATION, _GENERATION_ID = 4, 1, 0x0A10, 1
_TABLE = b"metaleg_node\0"

_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33
_BUFFER = 8 << 20
"""Bytes of notifications that may wait; 20,000 set elements take a quarter of it."""
_DATAGRAM = 1 << 16
_DRAIN = 500
"""Datagrams read before hints are given, so that a flood does not delay them."""


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
    """rp_filter of an interface, of `all` or of `default`; also told for our own writes."""
    FIREWALL = "firewall"
    """Our nf_tables table; also told for our own commits, which `generation` tells apart."""
    OVERFLOW = "overflow"
    """Notifications about anything but the firewall were lost: look at all of them."""


class Monitor:
    """A thread that calls `wake` with hints about the network namespace of the thread that called `start`.

    `tables` are our routing tables; `own_ports` tells the port ids of the sockets that make our own changes. `wake` is
    called from the monitor's thread, at most once for each kind of hint in a burst, and must not raise.
    """

    def __init__(
        self,
        wake: Callable[[Hint], None],
        *,
        tables: Collection[int],
        own_ports: Callable[[], Collection[int]],
    ) -> None:
        self._wake = wake
        self._tables = frozenset(tables)
        self._own_ports = own_ports
        self._thread: threading.Thread | None = None
        self._stopping = -1

    def start(self) -> None:
        """Subscribes, then starts the thread: what happens after the return is heard. Raises KernelError."""
        with contextlib.ExitStack() as opened:
            route = opened.enter_context(_subscribe(NETLINK_ROUTE, _ROUTE_GROUPS))
            firewall = opened.enter_context(_subscribe(NETLINK_NETFILTER, (_NFTABLES_GROUP,)))
            self._stopping = os.eventfd(0)
            self._thread = threading.Thread(target=self._run, args=(route, firewall), name="monitor", daemon=True)
            self._thread.start()
            opened.pop_all()

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

    def _run(self, route: socket.socket, firewall: socket.socket) -> None:
        poll = select.poll()
        for descriptor in (self._stopping, route.fileno(), firewall.fileno()):
            poll.register(descriptor, select.POLLIN)
        with route, firewall:
            while True:
                ready = {descriptor for descriptor, _ in poll.poll()}
                if self._stopping in ready:
                    return
                try:
                    self._run_once(route, firewall)
                except Exception:
                    # A deaf monitor would go unnoticed; looking at everything again is always right.
                    log.exception("the kernel monitor met something unexpected")
                    self._wake(Hint.OVERFLOW)
                    self._wake(Hint.FIREWALL)

    def _run_once(self, route: socket.socket, firewall: socket.socket) -> None:
        hints = {hint for data in _drain(route) for hint in self._about_routing(data)}
        hints |= {hint for data in _drain(firewall) for hint in _about_firewall(data)}
        for hint in sorted(hints):
            self._wake(hint)

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
        elif message.kind == rtnetlink.NEWNETCONF and _NETCONFA_RP_FILTER in attributes(message.body, _NETCONF_SIZE):
            yield Hint.SYSCTLS

    def _about_route(self, body: bytes) -> Iterator[Hint]:
        table = routes.table(body)
        if table is None:
            return
        if routes.is_ours(body) or table in self._tables:
            yield Hint.ROUTES
        elif table == MAIN_TABLE:
            yield Hint.LINKS


def generation() -> int:
    """The number of the ruleset's generation in this network namespace: it grows with every nf_tables transaction,
    of any table, that changes something. Raises KernelError."""
    what = "read the nf_tables generation"
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        (answer,) = netlink.ask(_GET_GENERATION, [bytes(_NFGEN_SIZE)], what)
    if answer.code:
        raise answer.refusal(what)
    return int.from_bytes(attributes(answer.body, _NFGEN_SIZE)[_GENERATION_ID], "big")


def _subscribe(protocol: int, groups: Collection[int]) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        # Without the capability the buffer keeps the system's size; an overflow is only one more hint.
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise refusal("listen to the kernel's notifications", error.errno or 0) from error
    return sock


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


def _about_firewall(data: bytes | None) -> Iterator[Hint]:
    if data is None or (_TABLE in data and any(_is_our_table(message.body) for message in messages(data))):
        yield Hint.FIREWALL


def _is_our_table(body: bytes) -> bool:
    """The table's name is the first attribute of every message but those about generations."""
    return body[:1] == bytes([_INET]) and attributes(body, _NFGEN_SIZE).get(_NFTA_TABLE) == _TABLE
