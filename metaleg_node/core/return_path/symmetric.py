"""Answers that go back through the very router that brought the request, where a path has several.

Each next hop has a slot, by which a connection remembers it: a mark and a routing table that leads to this one alone,
and to all of them should it go before anybody can decide anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from metaleg_node.configuration.config import Config
from metaleg_node.core.firewall.return_paths import PathRouter
from metaleg_node.core.model import Holder, HolderKind, Host, Network, NextHop, Route, Slot
from metaleg_node.core.problems import Code, Problem
from metaleg_node.core.return_path.paths import Path
from metaleg_node.core.routes import EVERYWHERE, leading
from metaleg_node.core.slots import SPARE_METRIC, Claim, Granted

Routers = Mapping[NextHop, Slot]
"""The slots of a path's next hops."""


def claims(found: Iterable[Path]) -> tuple[Claim, ...]:
    """A slot for each next hop that answers may have to leave by alone."""
    return tuple(
        Claim(holder=_holder(path, hop), gateways=frozenset({hop.gateway}), closed=False, spare=True)
        for path in found
        for hop in path.told_apart
        if hop.gateway
    )


def granted_to(path: Path, granted: Granted) -> dict[NextHop, Slot]:
    """Those of the path's next hops that got a slot."""
    holders = {hop: _holder(path, hop) for hop in path.told_apart}
    return {hop: granted[holder] for hop, holder in holders.items() if holder in granted}


def _holder(path: Path, hop: NextHop) -> Holder:
    """No path's name has a colon but that of the BGP peers, which begins with one."""
    return Holder(kind=HolderKind.ROUTER, name=f"{path.wanted.holder.name}:{hop.gateway}")


def problems(path: Path, routers: Routers) -> Iterator[Problem]:
    """Of next hops that are not told apart, though they should be."""
    subject = f"return path {path.wanted.name}"
    lacking = [str(hop.gateway) for hop in path.told_apart if hop not in routers]
    if lacking:
        text = (
            f"no mark is left for {', '.join(lacking)}: all values under firewall.mark_mask are taken; answers to what "
            "comes by there leave by any next hop"
        )
        yield Problem(code=Code.NOT_SYMMETRIC, subject=subject, text=text)


def routes(path: Path, routers: Routers, config: Config, destination: Network | None) -> Iterator[Route]:
    """The tables of a path's next hops. The kernel takes a route away with its link, long before anybody decides anew:
    then all next hops of the path are left."""
    for hop, slot in routers.items():
        assert hop.gateway
        family, table = hop.gateway.version, config.firewall.route_table_base + slot
        yield leading(family, table, (replace(hop, weight=1),), destination)
        yield Route(
            table=table,
            destination=destination or EVERYWHERE[family],
            metric=SPARE_METRIC,
            next_hops=path.hops[family],
        )


def in_firewall(path: Path, slot: Slot, routers: Routers, host: Host) -> dict[Slot, PathRouter]:
    """How the packet filter knows what came by each next hop of the path with this slot."""
    return {
        own: PathRouter(
            holder=_holder(path, hop),
            path=slot,
            family=hop.gateway.version,
            interface=hop.interface,
            link_address=host.link_addresses.get((hop.gateway, hop.interface), ""),
        )
        for hop, own in routers.items()
        if hop.gateway
    }
