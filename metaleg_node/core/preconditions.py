"""What must be so on the host that nothing here sets: forwarding, and reverse-path filters that are left alone.

Only what is needed now is judged: a node that steers, translates and answers nothing may be as it likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from metaleg_node.configuration.config import Config
from metaleg_node.core import reverse_path
from metaleg_node.core.egress import transport
from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.firewall.egress import Treatment
from metaleg_node.core.model import FAMILIES, Address, Family, Host, NodeName
from metaleg_node.core.problems import Code, Problem
from metaleg_node.core.return_path.node import PathDecision
from metaleg_node.core.return_path.paths import rp_filter

CODES = frozenset({Code.FORWARDING_OFF, Code.RP_FILTER})
_ALL = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


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
    entered = {name for address, name in host.interfaces.items() if address.version == family}
    off = sorted(name for name in entered or {"all"} if (family, name) in host.not_forwarding)
    if not off:
        return
    used = [str(one.service.service.ref) for one in services if one.service.family == family and _works_here(one)]
    used += [f"return path {one.path.wanted.name}" for one in paths if one.slot is not None and family in one.path.hops]
    if not used:
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


def _reverse_path(
    services: Iterable[ServiceDecision], survey: Survey, config: Config, me: NodeName, host: Host
) -> Iterator[Problem]:
    """Where pods are reached by another interface than their nodes, such as a tunnel's: pods' packets come to the
    gateway by the nodes' interface and would go back by the tunnel, unless they took that, too, and answers come to the
    pods' node by the tunnel and would go back by the default route."""
    if config.host.rp_filter == "loose":
        return
    dropping: dict[str, tuple[str, str]] = {}
    for one in services:
        if one.service.family != 4 or not _works_here(one) or not one.service.gateway:
            continue
        gateway = one.service.gateway.node.name
        peers = {gateway} if gateway != me else {pod.node for pod in one.service.pods if pod.node}
        for peer in peers - {me}:
            node, tunnel = _interfaces(peer, survey, host)
            entered = node if gateway == me else tunnel
            if gateway == me and _by_tunnel(peer, survey, config, host):
                continue
            how = _dropping(entered, host)
            if node and tunnel and node != tunnel and how:
                dropping.setdefault(entered, (how, str(one.service.service.ref)))
    for name, (how, used) in sorted(dropping.items()):
        yield _problem(how, f"host.rp_filter = {config.host.rp_filter!r} leaves it so", name, f"packets of {used}")


def _dropping(name: str, host: Host) -> str:
    """What the filter of an interface is that drops what comes by another way than answers would go; empty if it does
    not."""
    if reverse_path.is_strict(name, host):
        return "strict"
    return "loose, which without an IPv4 address is strict," if reverse_path.is_useless_when_loose(name, host) else ""


def _by_tunnel(peer: NodeName, survey: Survey, config: Config, host: Host) -> bool:
    """Whether a node's pods come by the way that leads back to them: it goes by the same settings as this one."""
    node = survey.nodes.get(peer)
    way = transport.find(node, 4, host, config.egress.transport) if node else None
    return isinstance(way, transport.Way) and way.transport == "pod-network"


def _interfaces(peer: NodeName, survey: Survey, host: Host) -> tuple[str, str]:
    """By which a node and its pods are reached; empty where that is not known."""
    node = survey.nodes.get(peer)
    if node is None:
        return "", ""
    return _by(node.internal_ips, host), _by(transport.pod_addresses(node), host)


def _by(addresses: Iterable[Address], host: Host) -> str:
    return next((host.interfaces[a] for a in addresses if a.version == 4 and a in host.interfaces), "")


def _reverse_path_of_paths(paths: Iterable[PathDecision], host: Host) -> Iterator[Problem]:
    """Requests come in where the path goes out, and would go back by the main table."""
    for one in paths:
        path = one.path
        if 4 in path.hops and rp_filter(path.wanted, host) == "keep" and reverse_path.is_strict(path.interface, host):
            name = path.wanted.name
            yield _problem(
                "strict", f'rp_filter = "keep" of return path {name} leaves it so', path.interface, "its requests"
            )


def _problem(how: str, why: str, interface: str, what: str) -> Problem:
    mend = "choose loose, or set it to 2" if how == "strict" else "choose loose, or set it and that of all to 0"
    text = f"rp_filter is {how} on {interface}, so the kernel drops {what} there; {why}: {mend}"
    return Problem(code=Code.RP_FILTER, subject="host", text=text)
