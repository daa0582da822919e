"""Following packets live, by nf_tables' own tracing.

A table of its own sets `nftrace` for the packets that are asked for, before everybody else's chains, and looks at them
once more after all. It belongs to one process of nft (flag `owner`, nft(8)), whose standard input is ours: when this
process ends, whatever the reason, nft reads the end of its input, ends, and the kernel takes the table away.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from metaleg_node.core.explain.following import Followed, Meeting, Outcome, Traced
from metaleg_node.kernel import process
from metaleg_node.kernel.errors import KernelError, refusal
from metaleg_node.kernel.netlink.rtnetlink import interface_name
from metaleg_node.kernel.netlink.socket import NETLINK_NETFILTER, messages, subscribed
from metaleg_node.kernel.nftables import trace_events
from metaleg_node.kernel.nftables.table import FAMILY, IP, TABLE
from metaleg_node.kernel.nftables.trace_events import Event
from metaleg_node.kernel.nftables.trace_words import words

PREFIX = f"{FAMILY} metaleg_trace_"
_RATE = "limit rate 10/second burst 10 packets"
_SET_UP_SECONDS = 10.0
_SILENCE = 1.0
"""Seconds after which a packet of which nothing more is heard has got lost between two hooks."""
_DATAGRAM = 1 << 16
_NOT_TCP = {
    4: ("meta l4proto != tcp",),
    # Without looking for neighbours, as every node does.
    6: ("meta l4proto != { tcp, icmpv6 }", "icmpv6 type echo-request"),
}
_FIRST, _LAST = -301, 2147483647
"""Before `raw`, and after all."""


class Tracer:
    """A context manager: packets are traced inside the `with` block, in this process's network namespace. Entering
    raises KernelError."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._table = f"{PREFIX}{os.getpid()}"
        self._nft: process.Fed | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self._socket = subscribed(NETLINK_NETFILTER, (trace_events.GROUP,), "traces")
        try:
            self._own_table()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self._socket:
            self._socket.close()
        if self._nft:
            self._nft.close()

    def _own_table(self) -> None:
        checked = process.run(["nft", "-c", "-f", "-"], stdin=self._script())
        if checked.returncode:
            raise KernelError(f"nft refused the table for tracing: {checked.stderr.strip()[:300]}")
        self._nft = process.Fed(["nft", "-i"])
        self._nft.write(self._script())
        deadline = time.monotonic() + _SET_UP_SECONDS
        while process.run(["nft", "list", "table", *self._table.split()]).returncode:
            if self._nft.ended or time.monotonic() > deadline:
                raise KernelError("nft took no table with the flag owner: tracing needs Linux 5.12")

    def _script(self) -> str:
        """On one line: nft reads its input line by line."""
        to = self._traced.to
        rules = []
        for address in self._traced.addresses:
            which = f"{IP[address.version]} saddr {address}"
            which += f" {IP[address.version]} daddr {to.address}" if to else ""
            if to and to.port:
                rules.append(f"{which} {to.protocol} dport {to.port} {_RATE} meta nftrace set 1")
                continue
            # Of TCP just what begins a connection: it would else be all that a busy pod sends.
            rules.append(f"{which} tcp flags & (syn | ack) == syn {_RATE} meta nftrace set 1")
            rules += [f"{which} {rest} {_RATE} meta nftrace set 1" for rest in _NOT_TCP[address.version]]
        chains = [
            f"chain begin {{ type filter hook prerouting priority {_FIRST}; {'; '.join(rules)}; }}",
            *(
                f"chain {name} {{ type filter hook {hook} priority {_LAST}; continue; }}"
                for name, hook in ((_ROUTED, "prerouting"), (_OUT, "postrouting"), (_IN, "input"))
            ),
        ]
        return f"table {self._table} {{ flags owner; {'; '.join(chains)}; }}\n"

    # --- what comes ---

    def follow(self, seconds: float) -> Iterator[Followed]:
        """Each packet whose way has ended, for so many seconds."""
        under_way: list[list[Event]] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            heard = False
            for event in self._events(min(_SILENCE, left)):
                heard = True
                events = self._of(event, under_way)
                if events is None:
                    continue
                events.append(event)
                if self._is_last(event):
                    under_way.remove(events)
                    yield self._story(events)
            if not heard:
                yield from map(self._story, under_way)
                under_way.clear()
        yield from map(self._story, under_way)

    def _of(self, event: Event, under_way: list[list[Event]]) -> list[Event] | None:
        """The events of the same packet. In the next hook it has another id, but still its number and ends, of which
        the latest tell what it looks like after a translation."""
        for events in reversed(under_way):
            if event.id == events[-1].id:
                return events
        if event.table == self._table and event.chain == _BEGIN:
            under_way.append([])
            return under_way[-1]
        for events in under_way:
            latest = next((one for one in reversed(events) if one.packet), None)
            if latest and (latest.packet, latest.number) == (event.packet, event.number):
                return events
        return None

    def _events(self, timeout: float) -> Iterator[Event]:
        assert self._socket
        self._socket.settimeout(max(timeout, 0.01))
        try:
            data = self._socket.recv(_DATAGRAM)
        except TimeoutError:
            return
        except OSError as error:
            raise refusal("read traces", error.errno or 0) from error
        for message in messages(data):
            if message.kind == trace_events.KIND:
                yield trace_events.read(message.body)

    def _is_last(self, event: Event) -> bool:
        if event.verdict == "drop":
            return True
        return event.table == self._table and event.chain in (_OUT, _IN) and event.verdict == "continue"

    def _story(self, events: list[Event]) -> Followed:
        last = events[-1]
        first = next((event for event in events if event.packet), last)
        came = f", in by {interface_name(first.iif)}" if first.iif else ""
        outcome, text = self._end(last)
        return Followed(
            packet=f"{first.packet}{came}", meetings=tuple(self._meetings(events)), outcome=outcome, text=text
        )

    def _meetings(self, events: list[Event]) -> Iterator[Meeting]:
        for event in events:
            place = f"table {event.table}, chain {event.chain}"
            if event.table == TABLE:
                if text := words(event):
                    yield Meeting(place=place, text=text)
            elif event.table != self._table and event.verdict in ("accept", "drop"):
                yield Meeting(place=place, text=event.verdict + (" by its policy" if event.policy else ""))

    def _end(self, last: Event) -> tuple[Outcome, str]:
        if last.verdict == "drop":
            return Outcome.DROPPED, f"dropped in table {last.table}, chain {last.chain}"
        if last.table == self._table and last.chain == _OUT:
            return Outcome.LEFT, f"leaves by {interface_name(last.oif)} with source {last.source}"
        if last.table == self._table and last.chain == _IN:
            return Outcome.DELIVERED, "is for this host itself"
        where = f"after table {last.table}, chain {last.chain}" if last.table != self._table else "at once"
        return Outcome.LOST, (
            f"lost {where}: routing (`ip route get`), rp_filter, or xtables-legacy (iptables-legacy-save) dropped it"
        )


_BEGIN, _ROUTED, _OUT, _IN = "begin", "routed", "out", "in"
