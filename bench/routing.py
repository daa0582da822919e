"""What it costs to look at a host with as many addresses as an IPVS cluster has Services, and to change many routes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network

from bench.node import LAN, PODS, nodes
from bench.results import Figure
from metaleg_node.core.compare.diff import AddRule, DeleteRoute, DeleteRule, PutRoute, RoutingOperation
from metaleg_node.core.model import NextHop, Route, Rule
from metaleg_node.kernel.netlink.routing import RoutingControl

_ADDRESSES, _CHANGES, _TABLE = 5000, 1000, 1000001
_HOP = NextHop(gateway=ip_address("192.168.10.1"), interface=LAN)
_ROUTES = [
    Route(table=_TABLE, destination=ip_network((0x64400000 + 64 * n, 28)), metric=10, next_hops=(_HOP,))
    for n in range(_CHANGES)
]
_RULES = [
    Rule(family=4, priority=4700, table=_TABLE, source=ip_network((0x64400000 + 64 * n, 28))) for n in range(_CHANGES)
]


def measure(rounds: int) -> list[Figure]:
    """Milliseconds in a namespace with the addresses; each list is put and deleted again."""
    with nodes(["host"], 0) as spaces:
        host = spaces["host"]
        host.ip(f"address add 10.{100 + (n >> 8)}.{n & 255}.1/32 dev {LAN}" for n in range(_ADDRESSES))
        with host.inside(), RoutingControl() as control:
            return [*_figures(control, rounds)]


def _figures(control: RoutingControl, rounds: int) -> Iterator[Figure]:
    assert len(control.addresses()) > _ADDRESSES
    yield _figure("5,000 addresses of this host", control.addresses, rounds, at_most=10)
    yield _figure("an interface beside them", lambda: control.links([PODS]), rounds)
    for name, there, gone in (
        ("routes", [PutRoute(route=one) for one in _ROUTES], [DeleteRoute(route=one) for one in _ROUTES]),
        ("rules", [AddRule(rule=one) for one in _RULES], [DeleteRule(rule=one) for one in _RULES]),
    ):
        taken = [(_timed(_changing(control, there)), _timed(_changing(control, gone))) for _ in range(rounds)]
        yield Figure(name=f"1,000 {name} put", unit="ms", values=tuple(put for put, _ in taken))
        yield Figure(name=f"1,000 {name} deleted", unit="ms", values=tuple(deleted for _, deleted in taken))


def _changing(control: RoutingControl, operations: Sequence[RoutingOperation]) -> Callable[[], object]:
    def change() -> None:
        assert not any(control.change(operations))

    return change


def _figure(name: str, look: Callable[[], object], rounds: int, at_most: float | None = None) -> Figure:
    return Figure(name=name, unit="ms", values=tuple(_timed(look) for _ in range(rounds)), at_most=at_most)


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return (time.monotonic() - started) * 1000
