"""The values that the whole program speaks in.

Three families of frozen values: what the cluster says (`ClusterState`), what this host is like (`Host`), and the rules
and routes that the kernel of this node holds or should hold (`Routing`; for the packet filter see `core.firewall`).
Nothing here reads, writes or decides.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, NewType

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Family = Literal[4, 6]
"""An IP version, as `Address.version` tells it."""
FAMILIES: tuple[Family, ...] = (4, 6)

NodeName = NewType("NodeName", str)
Slot = NewType("Slot", int)
"""1..63: which value under the mark mask, and which routing table, a holder has on this node."""


class HolderKind(enum.StrEnum):
    """What slots are for; the values stand before the name in the packet filter's comments."""

    NODE = ""
    """A gateway: a node that traffic is steered to, this node itself included."""
    PATH = "path"
    """A return path."""
    EXIT = "egress"
    """The way out of egress traffic that leaves by a return path."""
    ROUTER = "router"
    """A next hop of a return path: answers to what came by it leave by it alone."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Holder:
    """Who has a slot. Its text is what plan, status and the packet filter's comments call it; no node's name has a
    colon."""

    kind: HolderKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.kind else self.name

    @classmethod
    def read(cls, text: str) -> Holder:
        """The holder with this text."""
        kind, colon, name = text.partition(":")
        known = colon and kind in set(HolderKind)
        return cls(kind=HolderKind(kind), name=name) if known else cls(kind=HolderKind.NODE, name=text)


MAIN_TABLE = 254
"""RT_TABLE_MAIN (linux/rtnetlink.h)."""
ROUTE_PROTOCOL = 201
"""Our number in the `proto` field of routes and rules (rtnetlink(7)); free in iproute2's rt_protos."""

CONNTRACK_LABEL = 91
"""The bit of the conntrack label that says: this connection began as egress traffic of ours (0-127)."""


# --- what the cluster says -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ObjectRef:
    """Names one Kubernetes object; `namespace` is empty for cluster-wide kinds."""

    kind: str
    namespace: str = ""
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """One port of a Service; `protocol` is TCP, UDP or SCTP."""

    protocol: str
    port: int


def short_name(text: str) -> str:
    """A name for something that tenants write, such that nobody finds another text of the same name; empty for an empty
    text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32] if text else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationFilter:
    """Destinations that stay as they are, and (when not empty) the only ones that count. `key` is a short name, the
    same for the same networks; empty for a filter that lets everything count."""

    exclude: frozenset[Network] = frozenset()
    only: frozenset[Network] = frozenset()
    key: str = field(init=False, compare=False, default="")

    def __post_init__(self) -> None:
        if self.exclude or self.only:
            text = ";".join(",".join(sorted(map(str, nets))) for nets in (self.exclude, self.only))
            object.__setattr__(self, "key", short_name(text))

    @property
    def size(self) -> int:
        """How many networks it names."""
        return len(self.exclude) + len(self.only)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service; `created` is its creationTimestamp in RFC 3339 form, which sorts as text. `selector` are the labels of
    its pods; empty: it selects none by itself. `destinations` is what its
    annotations of ours mean, or what is wrong with them. `traffic_policy` is its externalTrafficPolicy, Local or
    Cluster; `proxied` are the ingress addresses whose ipMode is Proxy; `source_ranges` are its
    loadBalancerSourceRanges, empty where all may come, None where they cannot be understood."""

    ref: ObjectRef
    created: str
    type: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    destinations: DestinationFilter | str = field(default=DestinationFilter(), compare=False)
    cluster_ips: tuple[Address, ...]
    external_ips: tuple[Address, ...]
    ingress: tuple[Address, ...]
    ports: tuple[ServicePort, ...]
    traffic_policy: str = "Cluster"
    proxied: frozenset[Address] = frozenset()
    source_ranges: tuple[Network, ...] | None = ()
    selector: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint of a slice: its addresses, the node it runs on and the object behind it, where the slice tells.
    `ready`, `serving` and `terminating` are its conditions."""

    addresses: tuple[Address, ...]
    node: NodeName | None
    target: ObjectRef | None
    ready: bool = True
    serving: bool = True
    terminating: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSlice:
    """An EndpointSlice; `service` is the value of the label kubernetes.io/service-name, `controlled` tells that
    Kubernetes' own controller manages it (label endpointslice.kubernetes.io/managed-by), `mirrored` that it is made
    from an Endpoints object that somebody wrote; `ports` are those on which the endpoints listen."""

    ref: ObjectRef
    service: str
    controlled: bool
    endpoints: tuple[Endpoint, ...]
    mirrored: bool = False
    ports: tuple[ServicePort, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A Node; `addresses` are all its addresses, `internal_ips` those of type InternalIP among them; `ready` and
    `network_unavailable` are its conditions."""

    ref: ObjectRef
    labels: Mapping[str, str]
    internal_ips: tuple[Address, ...]
    addresses: tuple[Address, ...]
    pod_cidrs: tuple[Network, ...]
    ready: bool
    network_unavailable: bool = False

    @property
    def name(self) -> NodeName:
        return NodeName(self.ref.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A Pod; `addresses` are its status.podIPs, none once it has `ended`; `ending`: somebody deleted it."""

    ref: ObjectRef
    node: NodeName | None
    host_network: bool
    addresses: tuple[Address, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    uid: str = ""
    ending: bool = False
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A pod's attachment to its network as CNI's result tells it, before the first container of the pod starts. `uid`
    is the Pod's, empty where the container runtime does not tell it; `since` is when it was written, in seconds since
    the epoch."""

    namespace: str
    name: str
    uid: str
    addresses: tuple[Address, ...]
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CniResults:
    """All attachments of this node's pods, oldest first. `live`: they are told as they change; else what was told last
    is all that is known."""

    attachments: tuple[Attachment, ...] = ()
    live: bool = False

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(kind="CNI results", name="of this node")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCIDR:
    """A ServiceCIDR (networking.k8s.io)."""

    ref: ObjectRef
    networks: tuple[Network, ...]


class AnnouncedBy(enum.StrEnum):
    """Where MetalLB said that a node announces a Service; the values of egress.gateway_source."""

    L2_STATUS = "l2-status"
    BGP_STATUS = "bgp-status"
    EVENTS = "events"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A node announces a Service's address: a ServiceL2Status, a ServiceBGPStatus or a `nodeAssigned` Event.

    `service` is (namespace, name); `since` is creationTimestamp, for an Event the last time it was seen.
    """

    ref: ObjectRef
    source: AnnouncedBy
    service: tuple[str, str]
    node: NodeName
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRequirement:
    """One requirement of a label selector; `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


LabelSelector = tuple[LabelRequirement, ...]
"""All requirements must hold; the empty selector selects everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPool:
    """An IPAddressPool, or an `address-pools` entry of MetalLB's old configuration (then `protocol` is set).

    `ranges` are inclusive (first, last) pairs of one family each.
    """

    ref: ObjectRef
    labels: Mapping[str, str]
    ranges: tuple[tuple[Address, Address], ...]
    protocol: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """A BGPAdvertisement or L2Advertisement: which pools it announces; `peers`: only to some peers."""

    ref: ObjectRef
    pools: tuple[str, ...]
    pool_selectors: tuple[LabelSelector, ...]
    peers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BGPPeer:
    """A BGPPeer of any version, or a `peers` entry of the old configuration. `has_address`: there is
    one, even if it is none that can be used. `vrf` is the VRF of the session; empty:
    none."""

    ref: ObjectRef
    labels: Mapping[str, str]
    address: Address | None
    has_address: bool = True
    node_selectors: tuple[LabelSelector, ...]
    vrf: str = ""


ClusterObject = (
    Service
    | EndpointSlice
    | Node
    | Pod
    | CniResults
    | ServiceCIDR
    | Announcement
    | AddressPool
    | Advertisement
    | BGPPeer
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An object, or a part of one, that is not used, and why. Never a reason to stop. `harmless`: few miss it."""

    ref: ObjectRef
    reason: str
    harmless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """One complete snapshot of what the cluster says. `cni` is what CNI's results of this node say beside it, once at
    most; `pods_sure`: no Pod is missing, as far as Pods are read, and none has changed since."""

    services: tuple[Service, ...] = ()
    endpoint_slices: tuple[EndpointSlice, ...] = ()
    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    service_cidrs: tuple[ServiceCIDR, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    pools: tuple[AddressPool, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    peers: tuple[BGPPeer, ...] = ()
    cni: tuple[CniResults, ...] = ()
    pods_sure: bool = True
    rejections: tuple[Rejection, ...] = ()


# --- what this host is like ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface that exists: whether it is up (IFF_UP, netdevice(7)), whether it has an IPv4 address, whether IPv6
    is not turned off there (ip-sysctl, disable_ipv6), and the VRF device that it belongs to, empty for none."""

    up: bool
    has_ipv4: bool
    takes_ipv6: bool = True
    vrf: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The facts of this machine that decisions need, read from the kernel before each decision.

    `interfaces` tells for each address that was asked about through which interface the main table reaches it, if
    it does; `on_link` are those among them that need no router in between, and `gateways` has the next hops of the
    rest, as far as these are of the same family; the routes to `encapsulated` put packets into others. `kinds`
    tells of those interfaces that are made by software what they are (ip-link(8)), and `remotes` has the other ends
    of those that are tunnels of IP and have but one; `tunnels` are all tunnels of IP, whatever leads there.
    `unnumbered` are those without an IPv4 address. `rp_filter` are the values of net.ipv4.conf.NAME.rp_filter (0, 1
    or 2), `all` included, and `arp` those of net.ipv4.conf.all.arp_ignore and arp_announce, where somebody asked.
    `links` has the interfaces that were asked about and exist; `connected` are the networks that this host's own
    addresses lie in. `not_forwarding` tells for which families no packet is forwarded that enters by one of the
    interfaces in `interfaces`, and `all` where that is 0 (ip-sysctl, forwarding). `unnameable` are those of these
    interfaces that the packet filter cannot name. `addresses_of` has the addresses of those interfaces whose
    addresses were asked for, and which exist. `link_addresses` has the link-layer addresses (aa:bb:cc:dd:ee:ff) of
    the next hops that were asked for, by address and interface, as far as they are known and the neighbour has not
    failed.
    """

    addresses: frozenset[Address] = frozenset()
    interfaces: Mapping[Address, str] = field(default_factory=dict)
    on_link: frozenset[Address] = frozenset()
    gateways: Mapping[Address, Address] = field(default_factory=dict)
    encapsulated: frozenset[Address] = frozenset()
    kinds: Mapping[str, str] = field(default_factory=dict)
    remotes: Mapping[str, Address] = field(default_factory=dict)
    tunnels: frozenset[str] = frozenset()
    unnumbered: frozenset[str] = frozenset()
    rp_filter: Mapping[str, int] = field(default_factory=dict)
    arp: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    connected: frozenset[Network] = frozenset()
    not_forwarding: frozenset[tuple[Family, str]] = frozenset()
    unnameable: frozenset[str] = frozenset()
    addresses_of: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    link_addresses: Mapping[tuple[Address, str], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a decision needs to know of the host, see `Host`: about these addresses and interfaces, and about more only
    where it costs something to find out. `next_hops` are (address, interface), the interface empty where the main
    table tells it."""

    addresses: frozenset[Address] = frozenset()
    links: frozenset[str] = frozenset()
    all_rp_filters: bool = False
    arp: bool = False
    connected: bool = False
    addresses_of: frozenset[str] = frozenset()
    next_hops: frozenset[tuple[Address, str]] = frozenset()

    def with_(self, other: Questions) -> Questions:
        """Both together."""
        return Questions(
            addresses=self.addresses | other.addresses,
            links=self.links | other.links,
            all_rp_filters=self.all_rp_filters or other.all_rp_filters,
            arp=self.arp or other.arp,
            connected=self.connected or other.connected,
            addresses_of=self.addresses_of | other.addresses_of,
            next_hops=self.next_hops | other.next_hops,
        )


# --- what the kernel of this node holds ------------------------------------------------------------------------------


class RouteType(enum.StrEnum):
    """Route types as in ip-route(8)."""

    UNICAST = "unicast"
    UNREACHABLE = "unreachable"
    THROW = "throw"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class NextHop:
    """One next hop of a route; `weight` 1-256. `onlink`: the gateway is taken to be on the interface's link, whatever
    addresses the interface has."""

    gateway: Address | None
    interface: str
    weight: int = 1
    onlink: bool = False


RouteKey = tuple[int, Network, int]
"""Table, destination and metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of ours. The kernel knows a route by (table, destination, metric); an IPv6 metric of 0 becomes 1024."""

    table: int
    destination: Network
    type: RouteType = RouteType.UNICAST
    metric: int
    next_hops: tuple[NextHop, ...] = ()

    @property
    def key(self) -> RouteKey:
        return self.table, self.destination, self.metric

    def __str__(self) -> str:
        default = self.destination.prefixlen == 0
        words = [] if self.type is RouteType.UNICAST else [self.type.value]
        words.append(
            f"default ({'IPv4' if self.destination.version == 4 else 'IPv6'})" if default else str(self.destination)
        )
        for hop in self.next_hops:
            words += ["via", str(hop.gateway)] if hop.gateway else []
            words += ["dev", hop.interface]
            words += ["weight", str(hop.weight)] if hop.weight != 1 else []
            words += ["onlink"] if hop.onlink else []
        words += ["metric", str(self.metric)] if self.metric else []
        return " ".join([*words, "table", str(self.table)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy rule of ours, as in ip-rule(8). `mark` None: no fwmark condition."""

    family: Family
    priority: int
    table: int
    mark: int | None = None
    mask: int | None = None
    source: Network | None = None
    destination: Network | None = None

    def __str__(self) -> str:
        words = ["IPv4" if self.family == 4 else "IPv6", "priority", str(self.priority)]
        words += ["from", str(self.source)] if self.source else []
        words += ["to", str(self.destination)] if self.destination else []
        words += ["fwmark", f"{self.mark:#x}/{self.mask:#x}"] if self.mark is not None else []
        return " ".join([*words, "lookup", str(self.table)])


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignItem:
    """A rule or route of somebody else in a table that is ours alone; `raw` is what the kernel needs to delete it."""

    text: str
    raw: tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Our rules and routes; as observed also what others put into our tables."""

    rules: frozenset[Rule] = frozenset()
    routes: frozenset[Route] = frozenset()
    foreign_rules: frozenset[ForeignItem] = frozenset()
    foreign_routes: frozenset[ForeignItem] = frozenset()


class Match(enum.StrEnum):
    """How packets of a return path are known; the values of return_path.match."""

    CONNTRACK = "conntrack"
    """Replies of connections whose original destination lies in the path's networks."""
    SOURCE = "source"
    """Packets whose source lies in the path's networks before they are routed."""
    RULES = "rules"
    """The same, asked by policy rules: also of packets that never pass the packet filter."""


MARKING = frozenset({Match.CONNTRACK, Match.SOURCE})
"""Those that are matched in the packet filter, which marks."""


# --- conntrack -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One conntrack entry. `protocol` is the name that conntrack(8) prints; `ports` are its original direction's
    further words (sport, dport; or type, code, id), as printed; `reply_*` are those of the reply direction, so
    `reply_source` is the true destination and `reply_destination` the source that the outside sees. `ours` tells that
    the label CONNTRACK_LABEL is set; `zone` separates tables with equal tuples (CT zones of some CNIs)."""

    family: Family
    protocol: str
    source: Address
    destination: Address
    ports: tuple[tuple[str, str], ...]
    reply_source: Address
    reply_destination: Address
    ours: bool
    zone: int = 0
