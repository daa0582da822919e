"""Rules and routes that others changed are repaired by one plan, on the real kernel; ip(8) plays everybody else."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from metaleg_node.core.compare import diff
from metaleg_node.core.model import FAMILIES, Family, NextHop, Route, RouteType, Routing, Rule
from metaleg_node.core.node_state import NodeState
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import carry_out
from tests.netns import Netns

TABLE = 1000001
WORST = 4278198272
MARK, MASK = 0x1000000, 0x3F000000


def _wanted(family: Family) -> tuple[Rule, tuple[Route, ...]]:
    everywhere, gateway, pods = (
        ("0.0.0.0/0", "10.9.0.2", "10.244.1.0/24") if family == 4 else ("::/0", "fd09::2", "fd44:1::/64")
    )
    metric = 0 if family == 4 else 1024
    hop = NextHop(gateway=ip_address(gateway), interface="v0")
    routes = (
        Route(table=TABLE, destination=ip_network(everywhere), metric=metric, next_hops=(hop,)),
        Route(table=TABLE, destination=ip_network(everywhere), metric=WORST, type=RouteType.UNREACHABLE),
        Route(table=TABLE, destination=ip_network(pods), metric=metric, type=RouteType.THROW),
    )
    return Rule(family=family, priority=4700, table=TABLE, mark=MARK, mask=MASK), routes


WANTED = Routing(
    rules=frozenset(_wanted(family)[0] for family in FAMILIES),
    routes=frozenset(route for family in FAMILIES for route in _wanted(family)[1]),
)
OURS6 = f"default via fd09::2 dev v0 metric 1024 proto 201 table {TABLE}"
OURS4 = f"default via 10.9.0.2 dev v0 proto 201 table {TABLE}"
RULE = f"fwmark {MARK:#x}/{MASK:#x} lookup {TABLE} priority 4700"

DAMAGES: dict[str, tuple[str, ...]] = {
    "v6 route given a source": (f"-6 route replace {OURS6} src fd09::1",),
    "v6 route given an mtu": (f"-6 route replace {OURS6} mtu 1300",),
    "v6 route made a nexthop object's": (
        "nexthop add id 5 via fd09::2 dev v0",
        f"-6 route replace default nhid 5 metric 1024 proto 201 table {TABLE}",
    ),
    "v6 blackhole in place of the unreachable route": (
        f"-6 route replace blackhole default metric {WORST} proto 201 table {TABLE}",
    ),
    "v6 route taken over by another protocol": (f"-6 route replace {OURS6.replace('201', 'static')}",),
    "v4 route given a source": (f"route replace {OURS4} src 10.9.0.1",),
    "v4 route given a locked mtu": (f"route replace {OURS4} mtu lock 1300",),
    "v4 route made a nexthop object's": (
        "nexthop add id 6 via 10.9.0.2 dev v0",
        f"route replace default nhid 6 proto 201 table {TABLE}",
    ),
    "v4 blackhole in place of the unreachable route": (
        f"route replace blackhole default metric {WORST} proto 201 table {TABLE}",
    ),
    "v4 blackhole in place of a throw route": (f"route replace blackhole 10.244.1.0/24 proto 201 table {TABLE}",),
    "v4 second route before ours": (f"route prepend default via 10.9.0.70 dev v0 proto 201 table {TABLE}",),
    "v4 second route after ours": (f"route append default via 10.9.0.70 dev v0 proto 201 table {TABLE}",),
    "v4 many routes around ours": (
        f"route prepend default via 10.9.0.70 dev v0 proto 201 table {TABLE}",
        f"route prepend default dev v0 scope link proto 201 table {TABLE}",
        f"route append default via 10.9.0.2 dev v0 onlink proto 201 table {TABLE}",
        f"route append unreachable default proto 201 table {TABLE}",
        f"route append default proto 201 table {TABLE} nexthop via 10.9.0.70 nexthop via 10.9.0.71",
    ),
    "v4 two others in the place of ours": (
        f"route replace default via 10.9.0.70 dev v0 proto 201 table {TABLE}",
        f"route append default via 10.9.0.71 dev v0 proto 201 table {TABLE}",
    ),
    "v4 a way on before the unreachable route": (
        f"route prepend throw default metric {WORST} proto 201 table {TABLE}",
    ),
    "v6 second route beside ours": (f"-6 route append default dev v0 metric 1024 proto 201 table {TABLE}",),
    "v6 second hop beside ours": (f"-6 route append default via fd09::70 dev v0 metric 1024 proto 201 table {TABLE}",),
    "v4 rule turned round": (f"rule delete {RULE}", f"rule add not {RULE} proto 201"),
    "v6 rule turned round": (f"-6 rule delete {RULE}", f"-6 rule add not {RULE} proto 201"),
    "v4 rule of another protocol": (f"rule delete {RULE}", f"rule add {RULE} proto static"),
}


@pytest.fixture
def machine(inside: Netns, tmp_path: Path) -> Iterator[Machine]:
    assert inside
    with Machine(tmp_path) as opened:
        _repair(opened)
        yield opened


def _repair(machine: Machine, wanted: Routing = WANTED) -> tuple[diff.Step, ...]:
    """One plan, carried out as the daemon does it."""
    before = NodeState(routing=machine.routing({TABLE}))
    steps = diff.steps(before, NodeState(routing=wanted), why=str)
    assert carry_out(machine, steps).problems == ()
    return steps


@pytest.mark.parametrize("name", DAMAGES)
def test_one_plan_repairs_the_damage_and_the_next_finds_nothing_to_do(
    machine: Machine, inside: Netns, name: str
) -> None:
    assert machine.routing({TABLE}) == WANTED
    for command in DAMAGES[name]:
        inside.run("ip", *command.split())
    assert diff.changes(_repair(machine)), "the damage was not seen"
    assert machine.routing({TABLE}) == WANTED
    assert _repair(machine) == ()


@pytest.mark.parametrize("name", DAMAGES)
def test_whatever_the_damage_all_of_it_can_be_removed(machine: Machine, inside: Netns, name: str) -> None:
    for command in DAMAGES[name]:
        inside.run("ip", *command.split())
    _repair(machine, Routing())
    assert machine.routing({TABLE}) == Routing()
