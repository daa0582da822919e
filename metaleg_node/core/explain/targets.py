"""What is asked about: TARGET and --to of the command line, found in a state of the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.model import Address, ClusterState, Endpoint, EndpointSlice, Node, ObjectRef, Service
from metaleg_node.core.networks import Membership, parse_address

_NAME = re.compile(r"[^/\s]+/[^/\s]+")
_PORT = re.compile(r"(?P<address>.+):(?P<port>\d{1,5})/(?P<protocol>tcp|udp|sctp)", re.IGNORECASE)


class TargetError(Exception):
    """What is asked about cannot be understood or found; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where to. `port` 0: any; `protocol` is tcp, udp or sctp, empty for any."""

    address: Address
    port: int = 0
    protocol: str = ""

    def __str__(self) -> str:
        if not self.port:
            return str(self.address)
        where = f"[{self.address}]" if self.address.version == 6 else f"{self.address}"
        return f"{where}:{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTarget:
    """One address of a pod, and what EndpointSlices tell of it. `name` is namespace/pod, empty where nobody tells."""

    address: Address
    name: str = ""
    named_by: tuple[tuple[EndpointSlice, Endpoint], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTarget:
    """A Service, or (`address` set) one of its addresses."""

    service: Service
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTarget:
    """An address of a node."""

    node: Node
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTarget:
    """An address of a pool or a return path that no Service has. `pools` names them."""

    address: Address
    pools: tuple[str, ...]


Target = PodTarget | ServiceTarget | NodeTarget | PoolTarget


def destination(text: str) -> Destination:
    """ADDRESS or ADDRESS:PORT/PROTOCOL, an IPv6 address with a port in brackets. Raises TargetError."""
    found = _PORT.fullmatch(text)
    host = found["address"] if found else text
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    port = int(found["port"]) if found else 0
    address = _address(bare)
    if address is None or port > 0xFFFF or (found and (not port or (address.version == 6 and bare == host))):
        raise TargetError(
            f"--to {text!r} is neither ADDRESS nor ADDRESS:PORT/PROTOCOL, such as 198.51.100.10:443/tcp or "
            "[2001:db8::10]:53/udp"
        )
    return Destination(address=address, port=port, protocol=found["protocol"].lower() if found else "")


def asked(text: str, to: str | None) -> Destination | None:
    """Reads both ends of a question, as far as they mean anything whatever the cluster holds. Raises TargetError."""
    end, address = destination(to) if to else None, _address(text)
    if address is None and not _NAME.fullmatch(text):
        raise TargetError(f"{text!r} is neither an address nor namespace/name")
    if address and end and address.version != end.address.version:
        raise TargetError(f"{text} is no address of the family of {end.address}")
    return end


def find(text: str, cluster: ClusterState, survey: Survey, path_networks: Membership) -> tuple[Target, ...]:
    """What a text that `asked` has taken may mean: a Service and a pod may have one name. Raises TargetError."""
    if "/" in text:
        namespace, _, name = text.partition("/")
        found = (*_services(namespace, name, cluster), *_pods(namespace, name, cluster))
        if not found:
            raise TargetError(
                f"there is no Service {text}, and no EndpointSlice or Pod that tells of a pod {text}; of the API only "
                "Services with the label, and their EndpointSlices, are read: ask for the pod's address"
            )
        return found
    return _of_address(parse_address(text), cluster, survey, path_networks)


def _of_address(
    address: Address, cluster: ClusterState, survey: Survey, path_networks: Membership
) -> tuple[Target, ...]:
    for node in cluster.nodes:
        if address in (*node.internal_ips, *node.addresses):
            return (NodeTarget(node=node, address=address),)
    if address in Membership(survey.networks.pods):
        return (_pod(address, cluster),)
    services = [one for one in cluster.services if address in one.ingress]
    if services:
        return tuple(ServiceTarget(service=one, address=address) for one in services)
    pools = tuple(str(pool.ref) for pool in cluster.pools if any(_within(address, one) for one in pool.ranges))
    if pools or address in path_networks:
        return (PoolTarget(address=address, pools=pools),)
    for service in cluster.services:
        if address in service.cluster_ips:
            raise TargetError(f"{address} is a ClusterIP: ask for {service.ref.namespace}/{service.ref.name}")
    raise TargetError(
        f"{address} is no address of a node, a pod network, a Service or a pool that is known here; pods outside of "
        "spec.podCIDRs need cluster.pod_cidrs"
    )


def _within(address: Address, span: tuple[Address, Address]) -> bool:
    return span[0].version == address.version and int(span[0]) <= int(address) <= int(span[1])


def _services(namespace: str, name: str, cluster: ClusterState) -> Iterator[Target]:
    for service in cluster.services:
        if (service.ref.namespace, service.ref.name) == (namespace, name):
            yield ServiceTarget(service=service)


def pod_addresses(text: str, cluster: ClusterState) -> tuple[Address, ...]:
    """The addresses of namespace/pod, as Pods and EndpointSlices tell them. Raises TargetError."""
    namespace, _, name = text.partition("/")
    found = _addresses_of(namespace, name, cluster)
    if not found:
        raise TargetError(f"no EndpointSlice or Pod tells of a pod {text}; give its address")
    return found


def _addresses_of(namespace: str, name: str, cluster: ClusterState) -> tuple[Address, ...]:
    ref = ObjectRef(kind="Pod", namespace=namespace, name=name)
    told = [address for pod in cluster.pods if pod.ref == ref for address in pod.addresses]
    named = (endpoint for one in cluster.endpoint_slices for endpoint in one.endpoints if endpoint.target == ref)
    told += [address for endpoint in named for address in endpoint.addresses]
    return tuple(sorted(dict.fromkeys(told), key=lambda a: (a.version, int(a))))


def _pods(namespace: str, name: str, cluster: ClusterState) -> Iterator[Target]:
    for address in _addresses_of(namespace, name, cluster):
        node = next((one for one in cluster.nodes if address in (*one.internal_ips, *one.addresses)), None)
        yield NodeTarget(node=node, address=address) if node else _pod(address, cluster, f"{namespace}/{name}")


def _pod(address: Address, cluster: ClusterState, name: str = "") -> PodTarget:
    named_by = tuple(_naming(address, cluster.endpoint_slices))
    known = [pod.ref for pod in cluster.pods if address in pod.addresses]
    known += [endpoint.target for _, endpoint in named_by if endpoint.target]
    return PodTarget(
        address=address,
        name=name or next((f"{ref.namespace}/{ref.name}" for ref in known if ref.kind == "Pod"), ""),
        named_by=named_by,
    )


def _naming(address: Address, slices: Iterable[EndpointSlice]) -> Iterator[tuple[EndpointSlice, Endpoint]]:
    return ((one, endpoint) for one in slices for endpoint in one.endpoints if address in endpoint.addresses)


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        return None
