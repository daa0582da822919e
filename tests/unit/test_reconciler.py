"""How steps are carried out when some of them fail."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_network
from typing import cast

import pytest

from metaleg_node.core import diff
from metaleg_node.core.model import Firewall, Route, RouteType, Rule
from metaleg_node.daemon.machine import Machine
from metaleg_node.daemon.reconciler import carry_out
from metaleg_node.kernel.errors import KernelError
from tests.firewalls import FULL

ROUTE = Route(table=1000001, destination=ip_network("0.0.0.0/0"), type=RouteType.UNREACHABLE, metric=9)
RULE = Rule(family=4, priority=4700, table=1000001, mark=1 << 24, mask=FULL.mark_mask)


class Refusing:
    """Stands where the machine does, and refuses some kinds of operations."""

    def __init__(self, refused: Collection[type]) -> None:
        self._refused = tuple(refused)
        self.done: list[str] = []

    def carry_out(self, operation: diff.Operation) -> int:
        if isinstance(operation, self._refused):
            raise KernelError(f"no {type(operation).__name__}")
        self.done.append(type(operation).__name__)
        return 1

    def prune(self) -> None:
        """Nothing is remembered."""


STEPS = tuple(
    diff.Step(operation=operation)
    for operation in (
        diff.PutRoute(route=ROUTE),
        diff.AddRule(rule=RULE),
        diff.PutFirewall(firewall=FULL),
        diff.SweepFlows(firewall=Firewall(mark_mask=1), addresses=None),
        diff.DeleteRule(rule=RULE),
        diff.DeleteRoute(route=ROUTE),
    )
)


@pytest.mark.parametrize(
    ("refused", "done", "unswept"),
    [
        ((), ["PutRoute", "AddRule", "PutFirewall", "SweepFlows", "DeleteRule", "DeleteRoute"], False),
        ((diff.PutRoute,), ["AddRule", "PutFirewall", "SweepFlows", "DeleteRule", "DeleteRoute"], False),
        ((diff.PutFirewall,), ["PutRoute", "AddRule", "SweepFlows"], False),
        ((diff.SweepFlows,), ["PutRoute", "AddRule", "PutFirewall", "DeleteRule", "DeleteRoute"], True),
    ],
)
def test_a_step_that_fails_holds_back_only_what_would_open_a_leak(
    refused: Collection[type], done: list[str], unswept: bool
) -> None:
    machine = Refusing(refused)
    outcome = carry_out(cast(Machine, machine), STEPS)
    assert machine.done == done
    assert outcome.ok is not bool(refused)
    assert outcome.unswept is unswept
    assert outcome.flushed == len(done)
