"""Reads Services: how clients reach them, and what their ports are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from metaleg_node.core.model import Address, Service, ServicePort
from metaleg_node.core.objects.annotations import destinations
from metaleg_node.core.objects.fields import Reader, UnusableError, address_of, every_network, show

ANNOTATION_PREFIX: Final = "metaleg.de/"
"""Only annotations of our own are kept; others can be large, and none of them matters here."""

_TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")


def service(reader: Reader) -> Service:
    """Raises UnusableError."""
    kind = reader.text("spec.type") or "ClusterIP"
    if kind not in _TYPES:
        raise UnusableError(f"spec.type: {show(kind)} is not one of {', '.join(_TYPES)}")
    annotations = reader.annotations(ANNOTATION_PREFIX)
    return Service(
        ref=reader.ref,
        created=reader.timestamp("metadata.creationTimestamp"),
        type=kind,
        labels=reader.labels(),
        annotations=annotations,
        destinations=destinations(annotations),
        cluster_ips=_cluster_ips(reader),
        external_ips=reader.addresses(reader.items("spec.externalIPs"), "spec.externalIPs"),
        ingress=_ingress(reader),
        ports=tuple(ports(reader, reader.entries("spec.ports"))),
        traffic_policy=reader.text("spec.externalTrafficPolicy") or "Cluster",
        proxied=_proxied(reader),
        source_ranges=every_network(reader, "spec.loadBalancerSourceRanges"),
        selector=_selector(reader),
    )


def _selector(reader: Reader) -> dict[str, str]:
    """One that lost a label would select more than was asked for: a bad one selects nobody."""
    selector = {}
    for key, value in reader.mapping("spec.selector").items():
        if not isinstance(value, str):
            reader.reject(f"spec.selector[{key}]", value, "text")
            return {}
        selector[key] = value
    return selector


def _cluster_ips(reader: Reader) -> tuple[Address, ...]:
    """`None` stands for a headless Service; clusterIPs came with dual stack, clusterIP is its first entry."""
    path = "spec.clusterIPs" if reader.value("spec.clusterIPs") is not None else "spec.clusterIP"
    values = reader.items(path) if path == "spec.clusterIPs" else [reader.value(path)]
    return reader.addresses([value for value in values if value not in (None, "", "None")], path)


def _ingress(reader: Reader) -> tuple[Address, ...]:
    found: dict[Address, None] = {}
    for field, entry in reader.entries("status.loadBalancer.ingress"):
        value = entry.get("ip")
        if value in (None, "") and entry.get("hostname"):
            continue  # Some load balancers are known by name only.
        address = reader.address(value, f"{field}.ip")
        if address is not None:
            found[address] = None
    return tuple(found)


def _proxied(reader: Reader) -> frozenset[Address]:
    """The addresses that kube-proxy leaves to the load balancer."""
    found = (
        address_of(entry.get("ip"))
        for _, entry in reader.entries("status.loadBalancer.ingress")
        if entry.get("ipMode") == "Proxy"
    )
    return frozenset(address for address in found if not isinstance(address, str))


def ports(reader: Reader, entries: Iterable[tuple[str, Mapping[str, object]]]) -> Iterable[ServicePort]:
    """The good ones of a Service or an EndpointSlice."""
    for field, entry in entries:
        port, protocol = entry.get("port"), entry.get("protocol", "TCP")
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
            reader.reject(f"{field}.port", port, "a port number from 1 to 65535")
        elif not isinstance(protocol, str) or protocol not in _PROTOCOLS:
            reader.reject(f"{field}.protocol", protocol, "TCP, UDP or SCTP")
        else:
            yield ServicePort(protocol=protocol, port=port)
