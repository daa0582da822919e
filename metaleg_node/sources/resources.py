"""Which parts of the Kubernetes API each feature needs: the one table that watches, rights and tests follow.

A feature that needs more adds a line here. API groups, plural names and field selectors are those of
https://kubernetes.io/docs/reference/kubernetes-api/ and https://metallb.io/apis/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from metaleg_node.configuration.config import BgpSettings, ClusterSettings, Config, EgressSettings, ReturnPathSettings
from metaleg_node.configuration.options import node_name
from metaleg_node.core.egress import new_pods
from metaleg_node.core.model import AnnouncedBy

METALLB: Final = "metallb.io"
PODS: Final = "Pod"
"""The subject of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object as the API serves it. `group` is empty for the core group, `namespace` for all namespaces;
    `name` is set where only the object of that name is needed."""

    kind: str
    plural: str
    group: str = ""
    version: str = "v1"
    namespace: str = ""
    name: str = ""
    label_selector: str = ""
    field_selector: str = ""
    forgotten: bool = False
    """Kubernetes deletes these by itself after some time; what they said still holds (Events: kube-apiserver's
    --event-ttl, an hour)."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """Where it is listed and watched."""
        root = f"/apis/{self.group}" if self.group else "/api"
        scope = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{root}/{self.version}{scope}/{self.plural}"

    @property
    def selectors(self) -> dict[str, str]:
        """Query parameters that make the server send only what is needed. A right that is restricted by resourceNames
        allows a list or a watch only with the field selector for the name."""
        by_field = f"metadata.name={self.name}" if self.name else self.field_selector
        both = {"labelSelector": self.label_selector, "fieldSelector": by_field}
        return {name: value for name, value in both.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Something to know from the API: the first of `choices` that the server has. `optional`: it may have none."""

    name: str
    choices: tuple[Resource, ...]
    optional: bool = False


def subjects(config: Config) -> tuple[Subject, ...]:
    """What the features that are switched on need, each thing once."""
    return tuple({subject.name: subject for feature in _FEATURES for subject in feature(config)}.values())


def all_resources(metallb_namespace: str, metallb_configmap: str) -> tuple[Resource, ...]:
    """Whatever any configuration may need, each kind once: what the service account must be allowed to read."""
    base = Config(
        cluster=replace(ClusterSettings(), metallb_namespace=metallb_namespace, metallb_configmap=metallb_configmap),
        return_path=replace(ReturnPathSettings(), bgp=replace(BgpSettings(), enabled=True)),
    )
    found: dict[tuple[str, str], Resource] = {}
    for source in AnnouncedBy:
        config = replace(base, egress=replace(EgressSettings(), gateway_source=(source,)))
        for subject in subjects(config):
            found.update({(one.group, one.plural): one for one in subject.choices})
    return tuple(found.values())


def _egress(config: Config) -> Iterator[Subject]:
    if not config.egress.enabled:
        return
    # EndpointSlices carry the labels of their Service.
    labelled = f"{config.egress.label}=true"
    yield _needed(Resource(kind="Service", plural="services", label_selector=labelled))
    yield _needed(
        Resource(kind="EndpointSlice", plural="endpointslices", group="discovery.k8s.io", label_selector=labelled)
    )
    yield from _networks()
    if new_pods.is_on(config):
        yield _needed(Resource(kind=PODS, plural="pods", field_selector=f"spec.nodeName={node_name(config)}"))
    yield from _announcements(config.egress.gateway_source, config.cluster.metallb_namespace)


def _networks() -> Iterator[Subject]:
    """What tells the nodes with their labels, and what lies inside the cluster."""
    yield _needed(Resource(kind="Node", plural="nodes"))
    cidrs = Resource(kind="ServiceCIDR", plural="servicecidrs", group="networking.k8s.io")
    yield Subject(name="ServiceCIDR", choices=(cidrs, replace(cidrs, version="v1beta1")), optional=True)


def _announcements(wanted: tuple[AnnouncedBy, ...], namespace: str) -> Iterator[Subject]:
    events = Resource(
        kind="Event",
        plural="events",
        field_selector="involvedObject.kind=Service,reason=nodeAssigned",
        forgotten=True,
    )
    of_layer_2 = (_metallb("ServiceL2Status", "servicel2statuses", namespace),)
    # MetalLB tells by Events what its status objects tell better; they are read where those do not exist.
    fallback = (events,) if AnnouncedBy.EVENTS in wanted else ()
    if AnnouncedBy.L2_STATUS in wanted:
        yield Subject(name="ServiceL2Status", choices=(*of_layer_2, *fallback), optional=True)
    elif fallback:
        yield Subject(name="Event", choices=fallback)
    if AnnouncedBy.BGP_STATUS in wanted:
        of_bgp = (_metallb("ServiceBGPStatus", "servicebgpstatuses", namespace),)
        yield Subject(name="ServiceBGPStatus", choices=of_bgp, optional=True)


def _return_path(config: Config) -> Iterator[Subject]:
    by_bgp, paths = config.return_path.bgp.enabled, config.return_path.l2
    if not by_bgp and not paths:
        return
    yield from _networks()
    if by_bgp or any(path.pools for path in paths):
        yield from _pools(config.cluster, by_bgp)


def _pools(cluster: ClusterSettings, by_bgp: bool) -> Iterator[Subject]:
    """Pools, and for BGP what announces them and to whom; MetalLB's old configuration has all of it."""
    namespace = cluster.metallb_namespace
    old = Resource(kind="ConfigMap", plural="configmaps", namespace=namespace, name=cluster.metallb_configmap)
    if cluster.metallb_config == "configmap":
        yield _needed(old)
        return
    pools = _metallb("IPAddressPool", "ipaddresspools", namespace)
    fallback = (old,) if cluster.metallb_config == "auto" else ()
    yield Subject(name=pools.kind, choices=(pools, *fallback), optional=True)
    if by_bgp:
        peers = _metallb("BGPPeer", "bgppeers", namespace)
        yield Subject(name=peers.kind, choices=(replace(peers, version="v1beta2"), peers), optional=True)
        advertisements = _metallb("BGPAdvertisement", "bgpadvertisements", namespace)
        yield Subject(name=advertisements.kind, choices=(advertisements,), optional=True)


def _external_ip(config: Config) -> Iterator[Subject]:
    """All Services that may have an address from outside, but for those that egress asks for already."""
    if not config.external_ip.enabled:
        return
    others = f"{config.egress.label}!=true" if config.egress.enabled else ""
    services = Resource(kind="Service", plural="services", label_selector=others)
    # Only newer servers select by this field; an older one refuses.
    by_type = () if config.external_ip.external_ips else (replace(services, field_selector="spec.type=LoadBalancer"),)
    yield Subject(name="other Services", choices=(*by_type, services))
    yield from _networks()


_FEATURES: Final[tuple[Callable[[Config], Iterator[Subject]], ...]] = (_egress, _return_path, _external_ip)


def _needed(resource: Resource) -> Subject:
    return Subject(name=resource.kind, choices=(resource,))


def _metallb(kind: str, plural: str, namespace: str) -> Resource:
    return Resource(kind=kind, plural=plural, group=METALLB, version="v1beta1", namespace=namespace)
