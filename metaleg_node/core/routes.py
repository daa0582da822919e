"""The routes and rules that features have in common: a mark, the rule for it, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network

from metaleg_node.configuration.config import FirewallSettings
from metaleg_node.core.model import Family, Network, NextHop, Route, RouteType, Rule, Slot
from metaleg_node.core.slots import mark_of

UNREACHABLE_METRIC = 4278198272
"""0xff000000 + 8192: worse than any route that a lost link could leave behind."""
DEFAULT_METRIC: Mapping[Family, int] = {4: 0, 6: 1024}
"""Metrics as the kernel reads them back: IPv6 has no metric 0 (linux/ipv6_route.h, IP6_RT_PRIO_USER)."""
EVERYWHERE: Mapping[Family, Network] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def mark_rule(family: Family, slot: Slot, settings: FirewallSettings, *, table: int, priority: int) -> Rule:
    """The rule that leads the mark of a slot to a table."""
    mask = settings.mark_mask
    return Rule(family=family, priority=priority, table=table, mark=mark_of(slot, mask), mask=mask)


def leading(family: Family, table: int, hops: tuple[NextHop, ...], destination: Network | None = None) -> Route:
    """The route of a table to its next hops; `destination` None: everywhere."""
    return Route(
        table=table, destination=destination or EVERYWHERE[family], metric=DEFAULT_METRIC[family], next_hops=hops
    )


def closing(family: Family, table: int) -> Route:
    """What ends a table, so that a packet which finds no way in it takes none of another table."""
    return Route(table=table, destination=EVERYWHERE[family], type=RouteType.UNREACHABLE, metric=UNREACHABLE_METRIC)


def thrown(rules: Iterable[Rule], networks: Iterable[Network]) -> Iterator[Route]:
    """In the table of each rule: these networks are where the main table says. No packet to them has a mark, but a
    reverse-path filter may look for the way back by the mark of a packet (ip-sysctl, src_valid_mark), and would find
    another interface than theirs."""
    found = tuple(networks)
    for rule in rules:
        for network in found:
            if network.version == rule.family:
                metric = DEFAULT_METRIC[rule.family]
                yield Route(table=rule.table, destination=network, type=RouteType.THROW, metric=metric)
