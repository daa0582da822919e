"""The lab's cluster as Kubernetes objects, and the state file that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from metaleg_node import files
from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.plan import NODES, SERVER_PORT, SERVICE_NETWORK, SERVICE_PORT, LabNode, LabService

NAMESPACE = "default"
_CREATED = "2024-01-01T00:00:00Z"

Object = dict[str, Any]
"""A Kubernetes object as in the API reference (kubernetes.io/docs/reference/kubernetes-api)."""


def cluster(services: Iterable[LabService], announced: int) -> list[Object]:
    """All objects. `announced` (0-3599) becomes the minute and second at which the gateways were announced."""
    objects = [node(n) for n in NODES]
    cidrs = [str(network) for network in SERVICE_NETWORK.values()]
    objects.append(_object("networking.k8s.io/v1", "ServiceCIDR", "kubernetes", spec={"cidrs": cidrs}))
    for s in services:
        objects += [service(s), *endpoint_slices(s)]
        if s.gateway:
            objects.append(l2_status(s, s.gateway, announced))
    return objects


def node(n: LabNode, *, ready: bool = True) -> Object:
    spec = {"podCIDRs": [str(network) for network in n.pod_networks.values()]}
    addresses = [{"type": "InternalIP", "address": str(a)} for a in n.addresses.values()]
    conditions = [{"type": "Ready", "status": str(ready)}]
    return _object("v1", "Node", n.name, spec=spec, status={"addresses": addresses, "conditions": conditions})


def service(s: LabService) -> Object:
    """With the label that asks for egress, where the service asks."""
    labels = {"metaleg.de/rewriteSrcIP": "true"} if s.labelled else {}
    ports = [
        {"name": p.lower(), "protocol": p, "port": SERVICE_PORT, "targetPort": SERVER_PORT, "nodePort": s.node_port}
        for p in ("TCP", "UDP")
    ]
    spec = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local" if s.local else "Cluster",
        "clusterIPs": [str(a) for a in s.cluster_ips.values()],
        "ipFamilies": [f"IPv{f}" for f in s.families],
        "ports": ports,
    }
    if s.source_ranges:
        spec["loadBalancerSourceRanges"] = [str(network) for network in s.source_ranges.values()]
    status = {"loadBalancer": {"ingress": [{"ip": str(a)} for a in s.addresses.values()]}}
    made = _object("v1", "Service", s.name, NAMESPACE, labels=labels, spec=spec, status=status)
    if s.annotations:
        made["metadata"]["annotations"] = dict(s.annotations)
    return made


def endpoint_slices(s: LabService) -> Iterator[Object]:
    labels = {
        "kubernetes.io/service-name": s.name,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    for family in FAMILIES:
        if family in s.families:
            made = _object("discovery.k8s.io/v1", "EndpointSlice", f"{s.name}-v{family}", NAMESPACE, labels=labels)
            ports = [{"name": p.lower(), "protocol": p, "port": SERVER_PORT} for p in ("TCP", "UDP")]
            yield made | {"addressType": f"IPv{family}", "endpoints": list(_endpoints(s, family)), "ports": ports}


def l2_status(s: LabService, gateway: LabNode, announced: int, name: str = "") -> Object:
    """MetalLB's word that a node announces a Service (metallb.io/v1beta1, ServiceL2Status)."""
    labels = {
        "metallb.io/service-name": s.name,
        "metallb.io/service-namespace": NAMESPACE,
        "metallb.io/node": gateway.name,
    }
    status = {"node": gateway.name, "serviceName": s.name, "serviceNamespace": NAMESPACE}
    made = _object(
        "metallb.io/v1beta1", "ServiceL2Status", name or f"l2-{s.name}", "metallb-system", labels=labels, status=status
    )
    made["metadata"]["creationTimestamp"] = f"2024-01-02T00:{announced // 60:02}:{announced % 60:02}Z"
    return made


def dump(objects: Iterable[Object]) -> bytes:
    """The objects as YAML documents, as `kubectl get -o yaml` prints them."""
    text: str = yaml.dump_all(objects, sort_keys=False, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))
    return text.encode()


def replace_file(path: Path, content: bytes) -> None:
    """Puts a whole new file in the place of another: a reader sees the old one or the new one."""
    files.replace(path, content, mode=0o644, durable=False)


def _endpoints(s: LabService, family: Family) -> Iterator[Object]:
    for pod in s.pods:
        yield {
            "addresses": [str(pod.addresses[family])],
            "conditions": {"ready": True},
            "nodeName": pod.node.name,
            "targetRef": {"kind": "Pod", "name": pod.name, "namespace": NAMESPACE},
        }


def _object(version: str, kind: str, name: str, namespace: str = "", **parts: Any) -> Object:
    metadata: Object = {"name": name, "creationTimestamp": _CREATED}
    if namespace:
        metadata["namespace"] = namespace
    if labels := parts.pop("labels", None):
        metadata["labels"] = labels
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **parts}
