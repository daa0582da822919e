"""Small clusters for tests: three nodes a, b and c, one Service `web` in namespace `shop`, pods 10.244.N.x."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from metaleg_node.configuration.config import Config, parse
from metaleg_node.core.assembly import Desired, assemble
from metaleg_node.core.egress import node as egress
from metaleg_node.core.egress import survey
from metaleg_node.core.egress.new_pods import Starting
from metaleg_node.core.external_ip import WantedAddresses
from metaleg_node.core.model import (
    Address,
    AnnouncedBy,
    Announcement,
    ClusterState,
    Endpoint,
    EndpointSlice,
    Holder,
    Host,
    Network,
    Node,
    NodeName,
    ObjectRef,
    Pod,
    Service,
    ServicePort,
    Slot,
)
from metaleg_node.core.objects.annotations import destinations
from metaleg_node.core.return_path.wanted import WantedPaths
from metaleg_node.kernel.nftables.backend import Nftables

A, B, C = NodeName("a"), NodeName("b"), NodeName("c")
LABEL = {"metaleg.de/rewriteSrcIP": "true"}
LB4, LB6 = "192.0.2.200", "2001:db8:1::200"


def addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    return tuple(map(ip_address, texts))


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


def config(text: str = "") -> Config:
    return parse(text, file="test.toml")


def node(
    name: str,
    *,
    ready: bool = True,
    ips: Sequence[str] | None = None,
    pods: Sequence[str] | None = None,
    others: Sequence[str] = (),
) -> Node:
    """Node a has 10.0.0.1, fd00::1 and the pod networks 10.244.1.0/24, fd00:10:244:1::/64; b the next, and so on."""
    number = ord(name[0]) - ord("a") + 1
    internal = addresses((f"10.0.0.{number}", f"fd00::{number}") if ips is None else ips)
    return Node(
        ref=ObjectRef(kind="Node", name=name),
        labels={},
        internal_ips=internal,
        addresses=(*internal, *addresses(others)),
        pod_cidrs=networks((f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64") if pods is None else pods),
        ready=ready,
    )


def service(
    name: str = "web",
    *,
    namespace: str = "shop",
    created: str = "2024-01-01T00:00:00Z",
    ingress: Sequence[str] = (LB4,),
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] = LABEL,
    type: str = "LoadBalancer",  # noqa: A002
    cluster_ips: Sequence[str] = (),
) -> Service:
    return Service(
        ref=ObjectRef(kind="Service", namespace=namespace, name=name),
        created=created,
        type=type,
        labels=labels,
        annotations=annotations or {},
        destinations=destinations(annotations or {}),
        cluster_ips=addresses(cluster_ips),
        external_ips=(),
        ingress=addresses(ingress),
        ports=(ServicePort(protocol="TCP", port=80),),
    )


def endpoint(
    *texts: str,
    node: str | None = None,
    kind: str | None = "Pod",
    namespace: str = "shop",
    name: str = "web-0",
    conditions: Mapping[str, bool] | None = None,
) -> Endpoint:
    """`kind` None: no targetRef."""
    target = ObjectRef(kind=kind, namespace=namespace, name=name) if kind else None
    return Endpoint(
        addresses=addresses(texts), node=NodeName(node) if node else None, target=target, **(conditions or {})
    )


def endpoint_slice(
    *endpoints: Endpoint,
    service: str = "web",
    namespace: str = "shop",
    controlled: bool = True,
    ports: Sequence[ServicePort] = (),
) -> EndpointSlice:
    return EndpointSlice(
        ref=ObjectRef(kind="EndpointSlice", namespace=namespace, name=f"{service}-x"),
        service=service,
        controlled=controlled,
        endpoints=endpoints,
        ports=tuple(ports),
    )


def announced(
    by: str,
    *,
    service: str = "web",
    namespace: str = "shop",
    since: str = "2024-01-01T00:00:00Z",
    source: AnnouncedBy = AnnouncedBy.L2_STATUS,
) -> Announcement:
    kinds = {AnnouncedBy.L2_STATUS: "ServiceL2Status", AnnouncedBy.BGP_STATUS: "ServiceBGPStatus"}
    place = namespace if source is AnnouncedBy.EVENTS else "metallb-system"
    return Announcement(
        ref=ObjectRef(kind=kinds.get(source, "Event"), namespace=place, name=f"{source}-{by}"),
        source=source,
        service=(namespace, service),
        node=NodeName(by),
        since=since,
    )


def host_pod(*texts: str) -> Pod:
    ref = ObjectRef(kind="Pod", namespace="shop", name="host")
    return Pod(ref=ref, node=A, host_network=True, addresses=addresses(texts))


def pod(name: str, *texts: str, namespace: str = "shop") -> Pod:
    ref = ObjectRef(kind="Pod", namespace=namespace, name=name)
    return Pod(ref=ref, node=A, host_network=False, addresses=addresses(texts))


def cluster(
    *,
    services: Sequence[Service] | None = None,
    slices: Sequence[EndpointSlice] | None = None,
    announcements: Sequence[Announcement] | None = None,
    nodes: Sequence[Node] | None = None,
    pods: Sequence[Pod] = (),
) -> ClusterState:
    """By default: Service `web` with pods on a (10.244.1.5) and b (10.244.2.5), announced by c."""
    return ClusterState(
        services=(service(),) if services is None else tuple(services),
        endpoint_slices=(
            (endpoint_slice(endpoint("10.244.1.5", node="a"), endpoint("10.244.2.5", node="b")),)
            if slices is None
            else tuple(slices)
        ),
        announcements=(announced("c"),) if announcements is None else tuple(announcements),
        nodes=(node("a"), node("b"), node("c")) if nodes is None else tuple(nodes),
        pods=tuple(pods),
    )


DUAL = cluster(
    services=[service(ingress=(LB4, LB6))],
    slices=[
        endpoint_slice(endpoint("10.244.1.5", node="a"), endpoint("10.244.2.5", node="b")),
        endpoint_slice(endpoint("fd00:10:244:1::5", node="a"), endpoint("fd00:10:244:2::5", node="b")),
    ],
)
"""The default cluster in both families."""


def host(survey_: survey.Survey, me: NodeName, *, interface: str = "eth0", off_link: Iterable[str] = ()) -> Host:
    """A host that reaches all nodes of the cluster through one interface; all are its neighbours but `off_link`."""
    wanted = egress.questions(survey_, me).addresses
    far = set(addresses(off_link))
    internal = {a for n in survey_.nodes.values() for a in n.internal_ips}
    return Host(
        interfaces=dict.fromkeys(wanted, interface),
        on_link=frozenset(a for a in wanted if a in internal and a not in far),
        unnameable=Nftables().unnameable([interface]),
    )


def assembled(
    surveyed: survey.Survey,
    settings: Config,
    me: NodeName,
    here: Host,
    held: Mapping[Slot, str] | None = None,
    *,
    paths: WantedPaths | None = None,
    external: WantedAddresses | None = None,
    starting: Starting | None = None,
) -> Desired:
    """What node `me` should do; `held` are holders by their names."""
    holders = {slot: Holder.read(name) for slot, name in (held or {}).items()}
    inward = external or WantedAddresses()
    return assemble(
        surveyed,
        paths or WantedPaths(),
        settings,
        me,
        here,
        external=inward,
        held=lambda _: holders,
        starting=starting or Starting(),
    )


def decide(state: ClusterState, me: NodeName, text: str = "", *, held: Mapping[Slot, str] | None = None) -> Desired:
    """What node `me` should do, with a host that reaches everything."""
    settings = config(text)
    surveyed = survey.take(state, settings)
    return assembled(surveyed, settings, me, host(surveyed, me), held)
