"""What EndpointSlices claim for their Services, as far as it may be claimed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from metaleg_node.core.cluster_networks import NEVER_EGRESS, ClusterNetworks
from metaleg_node.core.increments import exchanged
from metaleg_node.core.model import Address, Endpoint, EndpointSlice, NodeName, ObjectRef, Pod, Rejection
from metaleg_node.core.networks import Membership


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAddress:
    """One address that a Service's EndpointSlices name, and the node of its pod where the slice tells it."""

    address: Address
    node: NodeName | None
    pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What one Service's slices claim: `pods` has the first claim to each address, `twice` those that are claimed more
    than once. `refused` tells what is not taken; `served` are the ports on which the endpoints take datagrams."""

    slices: tuple[EndpointSlice, ...] = ()
    pods: Mapping[Address, PodAddress]
    twice: Set[Address] = frozenset()
    refused: tuple[Rejection, ...] = ()
    served: frozenset[int] = frozenset()


class Checks:
    """What a Service may claim: a real pod's own addresses, so that no tenant can redirect another's traffic."""

    def __init__(self, networks: ClusterNetworks, pods: tuple[Pod, ...]) -> None:
        self._pods = pods
        self._pod_networks = Membership(networks.pods)
        host_network = {a for pod in pods if pod.host_network for a in pod.addresses}
        self._host_addresses = networks.node_addresses | host_network
        # A slice may tell the address of a starting pod before the Pod does.
        self._addresses_of = {pod.ref: pod.addresses for pod in pods if pod.addresses or pod.ended or pod.ending}
        # The API tells this node's Pods alone.
        self._nodes_with_pods = {pod.node for pod in pods}
        # Several: a pod that has ended keeps its address in the Pod object, while another pod has it.
        self._pods_with: dict[Address, set[ObjectRef]] = defaultdict(set)
        for pod in pods:
            for address in pod.addresses:
                self._pods_with[address].add(pod.ref)

    def with_pods(self, networks: ClusterNetworks, pods: tuple[Pod, ...]) -> tuple[Checks, Iterable[Pod] | None]:
        """The checks with these Pods, and the Pods by which they differ; None: anything may."""
        if pods is self._pods:
            return self, ()
        found = Checks(networks, pods)
        same = (found._host_addresses, found._nodes_with_pods) == (self._host_addresses, self._nodes_with_pods)
        gone, came = exchanged(self._pods, pods)
        return found, (*gone, *came) if same else None

    def read(self, slices: tuple[EndpointSlice, ...]) -> Claimed:
        """What the slices of one Service claim."""
        pods: dict[Address, PodAddress] = {}
        twice: set[Address] = set()
        refused: list[Rejection] = []
        for one in slices:
            for _, pod, problem in self.claims(one):
                if problem:
                    refused.append(Rejection(ref=one.ref, reason=problem))
                elif pods.setdefault(pod.address, pod) is not pod:
                    twice.add(pod.address)
        served = frozenset(p.port for one in slices for p in one.ports if p.protocol in ("UDP", "SCTP"))
        return Claimed(slices=slices, pods=pods, twice=twice, refused=tuple(refused), served=served)

    def claims(self, endpoint_slice: EndpointSlice) -> Iterator[tuple[Endpoint, PodAddress, str]]:
        """Each address of the slice with the reason why it is not taken, empty for one that is."""
        namespace = endpoint_slice.ref.namespace
        for endpoint in endpoint_slice.endpoints:
            target = endpoint.target
            of_pod = target is not None and target.kind == "Pod" and target.namespace == namespace
            for address in endpoint.addresses:
                pod = PodAddress(address=address, node=endpoint.node, pod=target.name if target and of_pod else "")
                problem = self._problem(address, target, endpoint_slice, of_pod=of_pod)
                yield endpoint, pod, problem or self._taken(address, endpoint, namespace)

    def _taken(self, address: Address, endpoint: Endpoint, namespace: str) -> str:
        """Why an address is not the endpoint's, where the Pods are known: whoever may write an EndpointSlice can claim
        in it what he likes, and that Kubernetes manages it, too. Kubernetes' own names the Pod of each endpoint."""
        pods, target = self._pods_with.get(address, set()), endpoint.target
        if not pods:
            elsewhere = endpoint.node is not None and endpoint.node not in self._nodes_with_pods
            unclaimed = self._nodes_with_pods and not target and not elsewhere
            return f"{address} is the address of no Pod, and the slice names none" if unclaimed else ""
        rightly = target in pods if target else any(pod.namespace == namespace for pod in pods)
        return "" if rightly else f"{address} is the address of {min(pods)}"

    def _problem(
        self, address: Address, target: ObjectRef | None, endpoint_slice: EndpointSlice, *, of_pod: bool
    ) -> str:
        if target and not of_pod:
            return f"{address} is said to be of {target}, which is no pod of this namespace"
        if not (of_pod or endpoint_slice.controlled):
            made = "mirrors an Endpoints object that somebody wrote" if endpoint_slice.mirrored else ""
            return f"{address} has no targetRef to a pod, and the slice {made or 'is not managed by Kubernetes'}"
        if target and address not in self._addresses_of.get(target, (address,)):
            return f"{address} is not an address of {target}"
        if address in self._host_addresses:
            return f"{address} is a node's address; pods of the host network have no egress of their own"
        if address not in self._pod_networks:
            return f"{address} is in no pod network (Node spec.podCIDRs, cluster.pod_cidrs)"
        return ""


class Sources:
    """Which addresses are LoadBalancers': those that are nobody else's."""

    def __init__(self, networks: ClusterNetworks) -> None:
        self._node_addresses = networks.node_addresses
        self._pod_networks = Membership(networks.pods)
        self._never_egress = Membership(NEVER_EGRESS)

    def wrong(self, address: Address, cluster_ips: Set[Address]) -> str:
        """Why a Service's pods cannot leave with an address, empty where they can. `cluster_ips` are all Services'."""
        if address in self._node_addresses:
            return "is a node's own"
        if address in self._pod_networks:
            return "is in a pod network"
        if address in cluster_ips:
            return "is a Service's cluster IP"
        return "is no host's address" if address in self._never_egress else ""
