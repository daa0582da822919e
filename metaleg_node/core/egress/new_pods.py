"""Pods that EndpointSlices do not name yet: held until it is known whether they are egress pods (egress.new_pods).

A pod's first packet leaves before any EndpointSlice names its address. What tells it earlier is the Pod, which is bound
to this node and has its labels before anything of it starts, and CNI's result, which is written before its first
container starts. `completed` puts both into the cluster's state, so that everything else is decided as ever; `read`
says whose packets are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from metaleg_node.configuration.config import Config
from metaleg_node.core.contribution import Contribution
from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.firewall.new_pods import NewPods
from metaleg_node.core.model import (
    Address,
    Attachment,
    ClusterState,
    CniResults,
    Endpoint,
    EndpointSlice,
    NodeName,
    ObjectRef,
    Pod,
    Service,
)
from metaleg_node.core.objects.annotations import NEW_PODS
from metaleg_node.core.problems import Code, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """The hold on this node. `by_cni`: CNI's results tell pods early; `waiting` are the egress pods of this node
    that have no address yet, `unknown` the addresses of CNI's results whose Pod is not known."""

    held: bool = False
    by_cni: bool = False
    here: bool = False
    waiting: tuple[ObjectRef, ...] = ()
    unknown: frozenset[Address] = frozenset()
    contribution: Contribution = field(default_factory=Contribution)


def is_on(config: Config) -> bool:
    """Whether new pods are held at all."""
    return config.egress.enabled and config.egress.new_pods == "hold"


# --- what is known early ---------------------------------------------------------------------------------------------


def completed(cluster: ClusterState, config: Config, me: NodeName) -> ClusterState:
    """The state with what CNI's results and this node's Pods tell: their true addresses, and an EndpointSlice for each
    Service whose egress they have, as Kubernetes will make it."""
    if not is_on(config):
        return cluster
    results = _results(cluster)
    here = {pod.ref: pod for pod in cluster.pods if _is_here(pod, me)}
    of = _latest(results, here.values())
    known = {ref: replace(pod, addresses=_addresses(pod, of, results)) for ref, pod in here.items()}
    early = tuple(
        _slice(service, pod, me)
        for service, pod in _selected(cluster.services, known.values(), config)
        if pod.addresses
    )
    return replace(
        cluster,
        pods=tuple(known.get(pod.ref, pod) for pod in cluster.pods),
        endpoint_slices=(*(_left(one, of) for one in cluster.endpoint_slices), *early),
    )


def _results(cluster: ClusterState) -> CniResults:
    return cluster.cni[0] if cluster.cni else CniResults()


def _is_here(pod: Pod, me: NodeName) -> bool:
    return pod.node == me and not pod.host_network and not pod.ended


def _is_of(attachment: Attachment, pod: Pod) -> bool:
    """A Pod made anew may have the name of one that is gone (StatefulSets)."""
    same = (attachment.namespace, attachment.name) == (pod.ref.namespace, pod.ref.name)
    return same and (not attachment.uid or not pod.uid or attachment.uid == pod.uid)


def _latest(results: CniResults, pods: Iterable[Pod]) -> dict[Address, Attachment]:
    """Whose each address is: that of the latest result. While none are told, those of pods that are gone say
    nothing."""
    names = {(pod.ref.namespace, pod.ref.name): pod for pod in pods}

    def counts(one: Attachment) -> bool:
        pod = names.get((one.namespace, one.name))
        return results.live or (pod is not None and _is_of(one, pod))

    return {address: one for one in results.attachments if counts(one) for address in one.addresses}


def _addresses(pod: Pod, of: Mapping[Address, Attachment], results: CniResults) -> tuple[Address, ...]:
    """What CNI gave a pod comes before what its status tells, which is late at both ends. A Pod that was deleted, and
    has no result any more, has given its address back."""
    given = tuple(address for address, one in of.items() if _is_of(one, pod))
    if given:
        return given
    if results.live and pod.ending:
        return ()
    return tuple(address for address in pod.addresses if address not in of)


def _left(one: EndpointSlice, of: Mapping[Address, Attachment]) -> EndpointSlice:
    """Less what CNI has given another pod since: that one's Pod may not be known yet. The same object if that is
    nothing."""
    if not any(address in of for endpoint in one.endpoints for address in endpoint.addresses):
        return one
    endpoints = (
        replace(endpoint, addresses=tuple(a for a in endpoint.addresses if not _is_anothers(a, endpoint.target, of)))
        for endpoint in one.endpoints
    )
    found = tuple(endpoint for endpoint in endpoints if endpoint.addresses)
    return one if found == one.endpoints else replace(one, endpoints=found)


def _is_anothers(address: Address, target: ObjectRef | None, of: Mapping[Address, Attachment]) -> bool:
    given = of.get(address)
    return bool(given and target and (given.namespace, given.name) != (target.namespace, target.name))


def _selected(services: Iterable[Service], pods: Iterable[Pod], config: Config) -> Iterator[tuple[Service, Pod]]:
    """The pods that are held for a Service, with it."""
    asking = [
        one
        for one in services
        if one.labels.get(config.egress.label) == "true" and one.selector and one.annotations.get(NEW_PODS) != "allow"
    ]
    for pod in pods:
        if pod.ref.namespace not in config.egress.hold_exempt_namespaces:
            for service in asking:
                if service.ref.namespace == pod.ref.namespace and service.selector.items() <= pod.labels.items():
                    yield service, pod


def _slice(service: Service, pod: Pod, me: NodeName) -> EndpointSlice:
    """What an EndpointSlice of Kubernetes tells of the same pod comes first."""
    endpoint = Endpoint(
        addresses=pod.addresses, node=me, target=pod.ref, ready=False, serving=False, terminating=pod.ending
    )
    return EndpointSlice(ref=pod.ref, service=service.ref.name, controlled=True, endpoints=(endpoint,))


# --- whose packets are held ------------------------------------------------------------------------------------------


def read(cluster: ClusterState, survey: Survey, config: Config, me: NodeName) -> Starting:
    """The hold that follows from a state that is `completed`. Where no Service asks for egress there is none."""
    if not is_on(config) or not survey.services:
        return Starting()
    results = _results(cluster)
    here = [pod for pod in cluster.pods if _is_here(pod, me)]
    held = {pod.ref for _, pod in _selected(cluster.services, here, config)}
    waiting = tuple(sorted(pod.ref for pod in here if pod.ref in held and not pod.addresses and not pod.ending))
    of = _latest(results, here)
    exempt = {address for address, one in of.items() if one.namespace in config.egress.hold_exempt_namespaces}
    claimed = frozenset(pod.address for one in survey.services for pod in one.pods)
    plain = {address for pod in here if pod.ref not in held for address in pod.addresses} | exempt
    # Without CNI's results an address is told late: all are held, but only while one may be an egress pod's.
    holds = results.live or bool(waiting) or not cluster.pods_sure
    part = NewPods(held=True, here=holds, plain=frozenset(plain) - claimed, claimed=claimed)
    return Starting(
        held=True,
        by_cni=results.live,
        here=holds,
        waiting=waiting,
        unknown=frozenset(of.keys() - plain - claimed if results.live else ()),
        contribution=Contribution(parts=(part,), problems=tuple(_problems(cluster, results, config, me))),
    )


def _problems(cluster: ClusterState, results: CniResults, config: Config, me: NodeName) -> Iterator[Problem]:
    if not results.live:
        text = (
            "CNI's results are not told, so new pods are held only while an egress pod starts here, and until the API "
            "tells their addresses; start metaleg-node-cni.service"
        )
        yield Problem(code=Code.NEW_PODS_LATE, subject="egress.new_pods", text=text)
    if config.cluster.state_file and not any(pod.node == me for pod in cluster.pods):
        text = f"the state file has no Pod of node {me}, so no egress pod is known before an EndpointSlice names it"
        yield Problem(code=Code.NEW_PODS_UNKNOWN, subject="egress.new_pods", text=text)
