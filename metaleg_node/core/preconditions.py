"""What must be so on the host that nothing here sets: forwarding, and reverse-path filters that are left alone.

Only what is needed now is judged: a node that steers, translates and answers nothing may be as it likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from metaleg_node.configuration.config import Config
from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.firewall.egress import Treatment
from metaleg_node.core.model import FAMILIES, Address, Family, Host, NodeName
from metaleg_node.core.problems import Code, Problem
from metaleg_node.core.return_path.node import PathDecision
from metaleg_node.core.return_path.paths import rp_filter

CODES = frozenset({Code.FORWARDING_OFF, Code.RP_FILTER})
_ALL = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
_STRICT = 1


def judge(
    services: Sequence[ServiceDecision],
    paths: Sequence[PathDecision],
    *,
    survey: Survey,
    config: Config,
    me: NodeName,
    host: Host,
) -> tuple[Problem, ...]:
    """What this host lacks for these decisions."""
    return (
        *(found for family in FAMILIES for found in _forwarding(family, services, paths, host)),
        *_reverse_path(services, survey, config, me, host),
        *_reverse_path_of_paths(paths, host),
    )


# --- forwarding ------------------------------------------------------------------------------------------------------


def _forwarding(
    family: Family, services: Iterable[ServiceDecision], paths: Iterable[PathDecision], host: Host
) -> Iterator[Problem]:
    used = [str(one.service.service.ref) for one in services if one.service.family == family and _works_here(one)]
    used += [f"return path {one.path.wanted.name}" for one in paths if one.slot is not None and family in one.path.hops]
    if not used:
        return
    entered = {name for address, name in host.interfaces.items() if address.version == family}
    off = sorted(name for name in entered or {"all"} if (family, name) in host.not_forwarding)
    if not off:
        return
    one_by_one = ", ".join(f"net.ipv{family}.conf.{name}.forwarding" for name in off)
    where = _ALL[family] if (family, "all") in host.not_forwarding else one_by_one
    more = f" and {len(used) - 1} more" if len(used) > 1 else ""
    text = f"IPv{family} forwarding is off ({where} is 0), which {used[0]}{more} needs: set it to 1 in /etc/sysctl.d"
    yield Problem(code=Code.FORWARDING_OFF, subject="host", text=text)


def _works_here(one: ServiceDecision) -> bool:
    treatments = {pod.treatment for pod in (one.local, one.elsewhere) if pod}
    return bool(treatments & {Treatment.STEER, Treatment.SNAT})


# --- reverse-path filters --------------------------------------------------------------------------------------------


def _strict(name: str, host: Host) -> bool:
    """The larger of `all` and the interface's own value counts (ip-sysctl, rp_filter)."""
    return max(host.rp_filter.get("all", 0), host.rp_filter.get(name, 0)) == _STRICT


def _reverse_path(
    services: Iterable[ServiceDecision], survey: Survey, config: Config, me: NodeName, host: Host
) -> Iterator[Problem]:
    """Where pods are reached by another interface than their nodes, such as a tunnel's: pods' packets come to the
    gateway by the nodes' interface and would go back by the tunnel, and answers come to the pods' node by the tunnel
    and would go back by the default route."""
    if config.host.rp_filter == "loose":
        return
    dropping: dict[str, str] = {}
    for one in services:
        if one.service.family != 4 or not _works_here(one) or not one.service.gateway:
            continue
        gateway = one.service.gateway.node.name
        peers = {gateway} if gateway != me else {pod.node for pod in one.service.pods if pod.node}
        for peer in peers - {me}:
            node, tunnel = _interfaces(peer, survey, host)
            entered = node if gateway == me else tunnel
            if node and tunnel and node != tunnel and _strict(entered, host):
                dropping.setdefault(entered, str(one.service.service.ref))
    for name, used in sorted(dropping.items()):
        yield _problem(f"host.rp_filter = {config.host.rp_filter!r} leaves it so", name, f"packets of {used}")


def _interfaces(peer: NodeName, survey: Survey, host: Host) -> tuple[str, str]:
    """By which a node and its pods are reached; empty where that is not known."""
    node = survey.nodes.get(peer)
    if node is None:
        return "", ""
    inside = (address for net in node.pod_cidrs for address in (net[min(1, net.num_addresses - 1)],))
    return _by(node.internal_ips, host), _by(inside, host)


def _by(addresses: Iterable[Address], host: Host) -> str:
    return next((host.interfaces[a] for a in addresses if a.version == 4 and a in host.interfaces), "")


def _reverse_path_of_paths(paths: Iterable[PathDecision], host: Host) -> Iterator[Problem]:
    """Requests come in where the path goes out, and would go back by the main table."""
    for one in paths:
        path = one.path
        if 4 in path.hops and rp_filter(path.wanted, host) == "keep" and _strict(path.interface, host):
            name = path.wanted.name
            yield _problem(f'rp_filter = "keep" of return path {name} leaves it so', path.interface, "its requests")


def _problem(why: str, interface: str, what: str) -> Problem:
    text = f"rp_filter is strict on {interface}, so the kernel drops {what} there; {why}: choose loose, or set it to 2"
    return Problem(code=Code.RP_FILTER, subject="host", text=text)
