"""What is inside the cluster: the networks of pods, nodes and Services, as the cluster's objects and the configuration
tell them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network

from metaleg_node.configuration.config import Config
from metaleg_node.core.model import Address, ClusterState, Network
from metaleg_node.core.networks import merged

NEVER_EGRESS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network, RFC 791
        "127.0.0.0/8",  # loopback, RFC 1122
        "169.254.0.0/16",  # link-local, RFC 3927
        "224.0.0.0/4",  # multicast, RFC 5771
        "255.255.255.255/32",  # limited broadcast, RFC 919
        "::/128",  # unspecified, RFC 4291
        "::1/128",  # loopback, RFC 4291
        "fe80::/10",  # link-local, RFC 4291
        "ff00::/8",  # multicast, RFC 4291
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNetworks:
    """The networks that decide what is inside the cluster. `hosts` are the pods and the nodes, in the fewest networks;
    `inside` are the cluster's and those destinations that the configuration excludes from egress."""

    pods: frozenset[Network]
    hosts: frozenset[Network]
    cluster: frozenset[Network]
    inside: frozenset[Network]
    node_addresses: frozenset[Address]


def cluster_networks(cluster: ClusterState, config: Config) -> ClusterNetworks:
    """The networks of one state of the cluster."""
    return _networks(
        pods=(*(net for node in cluster.nodes for net in node.pod_cidrs), *config.cluster.pod_cidrs),
        nodes=tuple(a for node in cluster.nodes for a in (*node.addresses, *node.internal_ips)),
        services=(*config.cluster.service_cidrs, *(net for cidr in cluster.service_cidrs for net in cidr.networks)),
        cluster_ips=tuple(a for service in cluster.services for a in service.cluster_ips),
        excluded=config.egress.exclude_cidrs,
    )


@lru_cache(2)
def _networks(
    *,
    pods: tuple[Network, ...],
    nodes: tuple[Address, ...],
    services: tuple[Network, ...],
    cluster_ips: tuple[Address, ...],
    excluded: tuple[Network, ...],
) -> ClusterNetworks:
    """Remembered: a pod that comes or goes changes none of it, and working it out was a third of a decision."""
    pod_networks = merged(pods)
    hosts = merged([*pod_networks, *map(ip_network, nodes)])
    own = merged([*NEVER_EGRESS, *hosts, *services, *map(ip_network, cluster_ips)])
    return ClusterNetworks(
        pods=pod_networks,
        hosts=hosts,
        cluster=own,
        inside=merged([*own, *excluded]) if excluded else own,
        node_addresses=frozenset(nodes),
    )
