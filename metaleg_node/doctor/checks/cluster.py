"""ML-4xx: the cluster, and the access to it."""

from __future__ import annotations

import base64
import binascii
import json
import ssl
import time
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from metaleg_node.core.cluster_networks import cluster_networks
from metaleg_node.core.model import AnnouncedBy, NodeName
from metaleg_node.core.networks import Membership
from metaleg_node.doctor.diagnosis import Finding
from metaleg_node.doctor.facts import Facts
from metaleg_node.kernel import process
from metaleg_node.text import counted

_SOON = 14 * 86400
"""Seconds before an end that is told."""
_SKEW = 30
_EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
_READABLE_BY_ALL = 0o007
_SHOWN = 3


def kubeconfig(facts: Facts) -> Iterator[Finding]:
    """401"""
    if facts.kubeconfig is None:
        return
    file, details = facts.kubeconfig
    mode = file.stat().st_mode
    if mode & _READABLE_BY_ALL:
        yield Finding(
            seen=f"{file} has the mode {mode & 0o777:o}",
            follows="Every user of this host can read the credentials.",
            mend=f"chgrp metaleg-node {file}; chmod 640 {file}",
        )
    ends = [("the token", _end_of_token(details.token)), ("the client certificate", _end_of(details.certificate))]
    for what, end in ends:
        if end is not None and end - time.time() < _SOON:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end))
            yield Finding(
                seen=f"{what} in {file} {'ended' if end < time.time() else 'ends'} {when}",
                follows="The API takes it no longer then: this node goes on with the state that it knows, and learns "
                "nothing new.",
                mend="metaleg-node kubeconfig --admin ADMIN-KUBECONFIG makes one that does not end",
            )
    yield from _by_service(facts, details.server)


def _by_service(facts: Facts, server: str) -> Iterator[Finding]:
    try:
        host = ip_address(urlsplit(server).hostname or "")
    except ValueError:
        return
    state = facts.known.state
    services = [net for cidr in state.service_cidrs for net in cidr.networks] if state else []
    if any(host in net for net in (*services, *facts.config.cluster.service_cidrs)):
        yield Finding(
            seen=f"the server of the kubeconfig, {server}, is a Service's address",
            follows="It is reached only once kube-proxy works on this node, and not while that is repaired.",
            mend="name an address of the API that is no Service's: kubectl get endpointslices -n default",
        )


def _end_of_token(token: str) -> float | None:
    """The claim `exp` of a JSON web token (RFC 7519), which is not verified here; None for any other token."""
    parts = token.split(".")
    try:
        end = json.loads(base64.urlsafe_b64decode(parts[1] + "==")).get("exp")
    except (IndexError, ValueError, AttributeError, binascii.Error):
        return None
    return float(end) if isinstance(end, int | float) else None


def _end_of(certificate: bytes) -> float | None:
    if not certificate:
        return None
    done = process.run(["openssl", "x509", "-noout", "-enddate"], stdin=certificate.decode("ascii", "replace"))
    told = done.stdout.strip().removeprefix("notAfter=")
    return float(ssl.cert_time_to_seconds(told)) if done.returncode == 0 else None


def rights(facts: Facts) -> Iterator[Finding]:
    """402"""
    if facts.review is None:
        return
    if facts.review.missing and not facts.review.incomplete:
        yield Finding(
            seen=f"the service account may not {'; '.join(facts.review.missing)}",
            follows="What needs these objects does not work.",
            mend="kubectl apply -f /usr/share/doc/metaleg-node/examples/rbac.yaml",
        )
    for excess in facts.review.excess:
        yield Finding(
            seen=f"the service account may also {excess}",
            follows="It needs to read some kinds of objects, and nothing else: who gets hold of this node's kubeconfig "
            "can do that, too.",
            mend="make an account of its own: metaleg-node kubeconfig --admin ADMIN-KUBECONFIG",
        )


def node_name(facts: Facts) -> Iterator[Finding]:
    """403"""
    nodes = {node.name: node for node in facts.cluster.nodes}
    if facts.me not in nodes:
        names = ", ".join(sorted(nodes)[:_SHOWN]) or "none"
        yield Finding(
            seen=f"this node is {facts.me}, and the cluster's nodes are {names}{', …' if len(nodes) > _SHOWN else ''}",
            follows="Nothing is decided for this node: no egress, no return path by nodeSelectors.",
            mend="set node.name to this node's name in `kubectl get nodes`",
        )
    elif (internal := nodes[facts.me].internal_ips) and not set(internal) & facts.addresses:
        yield Finding(
            seen=f"the InternalIP of node {facts.me} is {internal[0]}, and no interface of this host has it",
            follows="Other nodes send this node's share of the egress to another host, or to none; or this host takes "
            "another node's place.",
            mend="set node.name to the name of this host's own node, or correct the kubelet's --node-ip",
        )


def pod_networks(facts: Facts) -> Iterator[Finding]:
    """404"""
    networks = cluster_networks(facts.cluster, facts.config)
    mend = "set cluster.pod_cidrs to the pod networks of the CNI, with Calico: kubectl get ippools -o wide"
    if not networks.pods:
        yield Finding(
            seen="no Node has spec.podCIDRs, and cluster.pod_cidrs is empty",
            follows="No pod network is known: no egress, and pods get no answers from return paths.",
            mend=mend,
        )
        return
    pods, hosts = Membership(networks.pods), {pod.ref for pod in facts.cluster.pods if pod.host_network}
    stray = sorted(
        {
            f"{address} ({endpoint.target.namespace}/{endpoint.target.name})"
            for one in facts.cluster.endpoint_slices
            for endpoint in one.endpoints
            if endpoint.target and endpoint.target.kind == "Pod" and endpoint.target not in hosts
            for address in endpoint.addresses
            if address not in pods and address not in networks.node_addresses
        }
    )
    if stray:
        yield Finding(
            seen=f"{counted(len(stray), 'pod address')} in no known pod network, such as {', '.join(stray[:_SHOWN])}",
            follows="They get no egress: an address outside is not taken for a pod's.",
            mend=mend,
        )


def clock(facts: Facts) -> Iterator[Finding]:
    """405"""
    if facts.review and abs(ahead := facts.review.ahead) > _SKEW:
        yield Finding(
            seen=f"this host's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the API server's",
            follows="Tokens and certificates count as ended or as not yet begun, and times in the log mislead.",
            mend="timedatectl set-ntp true; timedatectl timesync-status",
        )


def only_events(facts: Facts) -> Iterator[Finding]:
    """406"""
    told = facts.cluster.announcements
    if told and all(one.source is AnnouncedBy.EVENTS for one in told):
        yield Finding(
            seen="MetalLB tells who announces an address by Events alone: there is no ServiceL2Status or "
            "ServiceBGPStatus",
            follows="Kubernetes deletes Events after an hour: a node that starts later does not learn the gateway of a "
            "Service that has not moved since.",
            mend="use a MetalLB that has them: kubectl get crd servicel2statuses.metallb.io",
        )


def several_statuses(facts: Facts) -> Iterator[Finding]:
    """410"""
    nodes: dict[tuple[str, str], set[NodeName]] = defaultdict(set)
    for one in facts.cluster.announcements:
        if one.source is AnnouncedBy.L2_STATUS:
            nodes[one.service].add(one.node)
    for (namespace, name), some in sorted(nodes.items()):
        if len(some) > 1:
            yield Finding(
                seen=f"ServiceL2Status objects name {' and '.join(sorted(some))} as announcing {namespace}/{name}",
                follows="One is left over, as of a node that died, or two speakers both answer ARP. The newest of a "
                "node that is ready counts.",
                mend="kubectl -n metallb-system get servicel2statuses; restart the speaker that has lost the address",
            )


def excluded(facts: Facts) -> Iterator[Finding]:
    """407"""
    nodes = [node for node in facts.cluster.nodes if _EXCLUDED in node.labels]
    announcing = {one.node for one in facts.cluster.announcements}
    for node in nodes:
        if node.name in announcing or len(nodes) == len(facts.cluster.nodes):
            what = "is said to announce addresses" if node.name in announcing else "and all others are so"
            yield Finding(
                seen=f"node {node.name} has the label {_EXCLUDED}, {what}",
                follows="MetalLB announces nothing from such a node (0.13.8 and newer): labelled Services lose their "
                "gateway.",
                mend=f"kubectl label node {node.name} {_EXCLUDED}-",
            )


def network_unavailable(facts: Facts) -> Iterator[Finding]:
    """408"""
    for node in facts.cluster.nodes:
        if node.network_unavailable:
            yield Finding(
                seen=f"node {node.name} has the condition NetworkUnavailable",
                follows="MetalLB announces nothing from it, and its CNI is not ready: pods there have no network.",
                mend=f"kubectl describe node {node.name}; look at the CNI's pod there",
            )


def api(facts: Facts) -> Iterator[Finding]:
    """409"""
    if facts.known.problem:
        of_api = "look at the address in the kubeconfig, at firewalls on the way, and at the API server itself"
        went = f"what follows goes by the state of {facts.known.since}" if facts.known.since else "nothing is known"
        yield Finding(
            seen=f"{facts.known.problem}; {went}",
            follows="This node keeps what it has in its kernel, and learns nothing new.",
            mend="mend that file, or have it written anew" if facts.config.cluster.state_file else of_api,
        )
