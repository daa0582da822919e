"""Clusters of any size as Kubernetes objects, and the files that a daemon needs to work in one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import yaml

FIRST_POD = IPv4Address("10.244.0.0")
FIRST_LOAD_BALANCER = IPv4Address("198.18.0.0")
OTHER_PODS = IPv4Address("10.245.0.0")
"""Pods of the same node that are behind no Service."""
_FIRST_NODE = IPv4Address("192.168.10.11")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`services` labelled Services with `pods` pods behind each.

    Service n has its pods on node `n % pod_nodes + 1` and is announced by node `n % gateways + first_gateway`. Pod p
    (counted through all Services) has the address 10.244.0.0 + p.
    """

    services: int
    pods: int = 10
    nodes: int = 2
    pod_nodes: int = 1
    gateways: int = 1
    first_gateway: int = 1

    def objects(self) -> Iterator[Object]:
        """All objects, as `kubectl get -o yaml` prints them."""
        yield from (self._node(number) for number in range(1, self.nodes + 1))
        yield _object("networking.k8s.io/v1", "ServiceCIDR", "kubernetes", spec={"cidrs": ["10.96.0.0/12"]})
        for number in range(self.services):
            yield from self.service(number, gateway=number % self.gateways + self.first_gateway)

    def service(self, number: int, *, gateway: int) -> Iterator[Object]:
        """A Service's three objects."""
        name = f"service-{number}"
        yield _object(
            *("v1", "Service", name, "bench"),
            labels={"metaleg.de/rewriteSrcIP": "true"},
            spec={
                "type": "LoadBalancer",
                "clusterIPs": [str(IPv4Address("10.96.0.1") + number)],
                "ports": [dict(_PORT)],
            },
            status={"loadBalancer": {"ingress": [{"ip": str(FIRST_LOAD_BALANCER + number)}]}},
        )
        endpoints = [self._endpoint(number, index) for index in range(self.pods)]
        made = _object("discovery.k8s.io/v1", "EndpointSlice", f"{name}-1", "bench", labels=_slice_labels(name))
        yield made | {"addressType": "IPv4", "endpoints": endpoints}
        labels = {"metallb.io/service-name": name, "metallb.io/service-namespace": "bench"}
        status = {"node": f"node{gateway}", "serviceName": name, "serviceNamespace": "bench"}
        yield _object(
            *("metallb.io/v1beta1", "ServiceL2Status", f"l2-{number}", "metallb-system"), labels=labels, status=status
        )

    def pod(self, number: int, index: int) -> IPv4Address:
        return FIRST_POD + number * self.pods + index

    def _endpoint(self, number: int, index: int) -> Object:
        return {
            "addresses": [str(self.pod(number, index))],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node{number % self.pod_nodes + 1}",
            "targetRef": {"kind": "Pod", "name": f"pod-{number}-{index}", "namespace": "bench"},
        }

    def _node(self, number: int) -> Object:
        cidr = "10.244.0.0/15" if number == 1 else f"10.246.{number}.0/24"
        addresses = [{"type": "InternalIP", "address": str(_FIRST_NODE + number - 1)}]
        conditions = [{"type": "Ready", "status": "True"}]
        return _object(
            *("v1", "Node", f"node{number}"),
            spec={"podCIDRs": [cidr]},
            status={"addresses": addresses, "conditions": conditions},
        )


_PORT = {"name": "smtp", "protocol": "TCP", "port": 25, "targetPort": 2525}


def documents(objects: Iterator[Object]) -> str:
    """YAML documents, one for each object."""
    return _yaml(list(objects), many=True)


def one_list(objects: Iterator[Object]) -> str:
    """A single `kind: List`, as `kubectl get -o yaml` prints several objects."""
    return _yaml([{"apiVersion": "v1", "kind": "List", "items": list(objects)}], many=False)


def _yaml(documents: list[Object], *, many: bool) -> str:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    if many:
        return str(yaml.dump_all(documents, sort_keys=False, Dumper=dumper, explicit_start=True))
    return str(yaml.dump(documents[0], sort_keys=False, Dumper=dumper))


def _slice_labels(service: str) -> dict[str, str]:
    managed = "endpointslice-controller.k8s.io"
    return {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": managed}


def _object(version: str, kind: str, name: str, namespace: str = "", **parts: Any) -> Object:
    metadata: Object = {"name": name, "creationTimestamp": "2024-01-01T00:00:00Z"}
    if namespace:
        metadata["namespace"] = namespace
    if labels := parts.pop("labels", None):
        metadata["labels"] = labels
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **parts}
