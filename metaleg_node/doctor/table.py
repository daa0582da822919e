"""All checks. A code is never given to another check, also when its own has gone; docs/doctor.md has a heading for
each."""

from __future__ import annotations

from metaleg_node.core.problems import Severity
from metaleg_node.doctor.checks import cluster, egress, forwarding, kernel, programs, return_path, service
from metaleg_node.doctor.diagnosis import Check

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

_ROWS = (
    # The kernel, and the programs that speak to it.
    (101, _NOTE, "the kernel or nft is older than those that were tried", kernel.untried),
    (102, _ERROR, "nft cannot be run", kernel.nft),
    (103, _ERROR, "nft cannot list what others wrote", kernel.listing),
    (104, _ERROR, "the kernel or nft lacks what our table is made of", kernel.expressions),
    (105, _WARNING, "two kinds of iptables are in use", kernel.legacy),
    (106, _ERROR, "the kernel has no connection labels", kernel.labels),
    (107, _WARNING, "conntrack is full or loses entries", kernel.conntrack_room),
    (108, _WARNING, "TCP connections survive no failover", kernel.pick_up),
    (109, _WARNING, "packets are kept from conntrack", kernel.untracked),
    # Forwarding and filters.
    (201, _ERROR, "this host does not forward", forwarding.forwarding),
    (202, _ERROR, "a strict reverse-path filter drops our packets", forwarding.strict),
    (203, _WARNING, "a file sets a strict reverse-path filter", forwarding.strict_files),
    (204, _WARNING, "reverse-path filters drop packets now", forwarding.reverse_path_drops),
    (205, _WARNING, "the IPv6 default route will end", forwarding.advertisements),
    (206, _WARNING, "forwarded packets are dropped by another program", forwarding.forward_drop),
    (207, _WARNING, "this gateway sends redirects", forwarding.redirects),
    (208, _WARNING, "a bridge's packets meet the packet filter", forwarding.bridge_filter),
    (209, _WARNING, "pods' packets are larger than the way to the gateway", forwarding.mtu),
    (210, _NOTE, "reverse-path filters go by marks", forwarding.marks_count),
    (211, _WARNING, "every node answers for every LoadBalancer address", forwarding.ipvs_arp),
    (212, _ERROR, "an interface that packets enter by does not forward", forwarding.one_interface),
    # Other programs.
    (301, _WARNING, "another program uses our mark bits", programs.marks),
    (302, _WARNING, "another program uses our rule priorities or routing tables", programs.numbers),
    (303, _ERROR, "a rule before ours takes all that is steered", programs.rules_before),
    (304, _WARNING, "systemd-networkd will remove our rules and routes", programs.networkd),
    (305, _WARNING, "a reload of a firewall takes everybody's rules", programs.flushes),
    (306, _WARNING, "NetworkManager manages an interface of a path or of pods", programs.network_manager),
    (307, _WARNING, "eBPF carries packets past the packet filter", programs.bpf),
    (308, _WARNING, "another program chooses source addresses", programs.other_translation),
    (309, _WARNING, "External-IP is on where kube-proxy has no IPVS", programs.ipvs),
    (310, _WARNING, "kube-proxy does not know which packets are of pods", programs.local_detector),
    (311, _WARNING, "flowtables lead packets past our chains", programs.flowtables),
    # The cluster and the access to it.
    (401, _WARNING, "the kubeconfig ends, may be read by all, or names a Service", cluster.kubeconfig),
    (402, _WARNING, "the service account has other rights than it needs", cluster.rights),
    (403, _ERROR, "this host is not the node that it is taken for", cluster.node_name),
    (404, _WARNING, "pods are in no known pod network", cluster.pod_networks),
    (405, _WARNING, "the clock is wrong", cluster.clock),
    (406, _NOTE, "MetalLB tells of its announcements by Events alone", cluster.only_events),
    (407, _WARNING, "MetalLB may not announce from a node", cluster.excluded),
    (408, _WARNING, "the network of a node is not ready", cluster.network_unavailable),
    (409, _ERROR, "the cluster's state cannot be read", cluster.api),
    (410, _WARNING, "two nodes are said to announce one Service", cluster.several_statuses),
    # Files and the service.
    (501, _ERROR, "the service cannot write its files, or cannot start", service.directories),
    (502, _ERROR, "the service may not do what it must", service.unit),
    (503, _WARNING, "the service begins after the kubelet", service.order),
    (504, _ERROR, "a hook cannot be started here", service.hooks),
    (505, _WARNING, "a replaced program runs or has left something", service.predecessors),
    (506, _WARNING, "nobody tells of CNI's results, though new pods are held", service.cni_results_missing),
    # Egress.
    (601, _ERROR, "a gateway is no neighbour", egress.far_gateway),
    (602, _ERROR, "a LoadBalancer address of another node is on this host", egress.local_addresses),
    (603, _NOTE, "a labelled Service has no pods", egress.nobody_serves),
    (604, _ERROR, "a node with egress pods does not run metaleg-node", egress.nodes_without),
    (605, _WARNING, "a gateway has no endpoint of its Service", egress.gateway_will_move),
    (606, _ERROR, "a gateway does not answer", egress.silent_gateway),
    (607, _ERROR, "two hosts answer for a LoadBalancer address", egress.duplicates),
    # Return paths.
    (701, _ERROR, "the interface of a return path drops requests", return_path.without_address),
    (702, _ERROR, "a return path has no interface", return_path.no_interface),
    (703, _WARNING, "pools overlap", return_path.pools),
    (704, _NOTE, "the kernel does not use several routers well", return_path.multipath),
)

_LATE = frozenset({107, 204})
"""Those that look at how counters grow."""

CHECKS = tuple(
    Check(code=f"ML-{code}", severity=severity, title=title, look=look, late=code in _LATE)
    for code, severity, title, look in _ROWS
)
"""In the order of their codes."""
