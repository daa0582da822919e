"""The lab with kube-proxy in IPVS mode: every Service address is local on every node.

Like kube-proxy it binds all Service addresses to the dummy interface kube-ipvs0, which stays down, and makes a virtual
server of each; iptables only marks what shall be masqueraded (kubernetes.io, "Virtual IPs and Service Proxies").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from metaleg_node.core.model import FAMILIES, Address, Family
from metaleg_node.lab.plan import NODES, POD_NETWORK, SERVER_PORT, SERVICE_PORT, LabNode, LabPod, LabService
from tests.kernel_modules import needed
from tests.lab import cluster_rules
from tests.lab.lab import Lab
from tests.lab.plan import Attachment, Flavour, LabOptions

DEVICE = "kube-ipvs0"
_SWITCHES = {"tcp": "-t", "udp": "-u"}
"""ipvsadm's words for what the lab's Services serve."""
_SWITCH_OF = {**_SWITCHES, "sctp": "--sctp-service"}


class IpvsLab(Lab):
    """`conntrack` is net.ipv4.vs.conntrack: whether IPVS keeps conntrack entries of what it serves. kube-proxy sets it;
    without it nothing that IPVS serves is masqueraded. `falls_back`: where externalTrafficPolicy Local leaves a node
    without endpoints its address leads to all of them, as since kube-proxy 1.21."""

    def __init__(self, *, conntrack: bool = True, falls_back: bool = True) -> None:
        needed("ip_vs", "ip_vs_rr", "dummy")
        # Over a bridge a pod would answer its neighbour directly, past IPVS.
        options = LabOptions(flavour=Flavour.IPTABLES_LEGACY, attachment=Attachment.ROUTED, forward_drop=True)
        super().__init__(options)
        self._conntrack = conntrack
        self._falls_back = falls_back
        self._made: set[LabNode] = set()

    def apply_rules(self) -> None:
        for node in NODES:
            self._make_device(node)
            namespace = self.namespace(node)
            for family in FAMILIES:
                rules = _iptables(node, tuple(self.services.values()), self.options, family)
                namespace.run(f"{'iptables' if family == 4 else 'ip6tables'}-legacy-restore", "-w", "5", stdin=rules)
            services = tuple(self.services.values())
            namespace.ip([f"address flush dev {DEVICE}", *_addresses(services)])
            namespace.run("ipvsadm", "--clear")
            namespace.run("ipvsadm", "--restore", stdin="\n".join(self._virtual_servers(node, services)))

    def serve(self, node: LabNode, ends: Iterable[tuple[str, Address, int]], pods: tuple[LabPod, ...]) -> None:
        """Lets a node serve further protocols, addresses and ports, which lead to those pods."""
        served = tuple(ends)
        bound = dict.fromkeys(address for _, address, _ in served)
        self.namespace(node).ip(f"address replace {a} dev {DEVICE}{' nodad' * (a.version == 6)}" for a in bound)
        lines = [line for protocol, address, port in served for line in _virtual_server(protocol, address, pods, port)]
        self.namespace(node).run("ipvsadm", "--restore", stdin="\n".join(lines))

    def _virtual_servers(self, node: LabNode, services: tuple[LabService, ...]) -> Iterator[str]:
        """Input of `ipvsadm --restore`. With externalTrafficPolicy Local the address leads to the pods of this node."""
        for service in services:
            here = tuple(pod for pod in service.pods if pod.node == node)
            outside = here if service.local and (here or not self._falls_back) else service.pods
            for family in service.families:
                for protocol in _SWITCHES:
                    yield from _virtual_server(protocol, service.addresses[family], outside)
                    yield from _virtual_server(protocol, service.cluster_ips[family], service.pods)

    def _make_device(self, node: LabNode) -> None:
        if node in self._made:
            return
        self._made.add(node)
        namespace = self.namespace(node)
        namespace.ip([f"link add {DEVICE} type dummy"])
        # The last two are what MetalLB asks for beside IPVS (strictARP).
        namespace.sysctl(
            {
                "ipv4/vs/conntrack": int(self._conntrack),
                "ipv4/vs/conn_reuse_mode": 0,
                "ipv4/vs/expire_nodest_conn": 1,
                "ipv4/conf/all/arp_ignore": 1,
                "ipv4/conf/all/arp_announce": 2,
            }
        )


def _iptables(node: LabNode, services: tuple[LabService, ...], options: LabOptions, family: Family) -> str:
    """The rules of a node without Services, and in the nat table what IPVS mode has in addition."""
    nat, end, rest = cluster_rules.iptables(node, (), options, family).partition("COMMIT\n")
    added = [rule for s in services if family in s.families for rule in _masquerade(s, family)]
    rest, end_of_filter, _ = rest.rpartition("COMMIT")
    dropped = [rule for s in services if family in s.source_ranges for rule in _outside_ranges(s, family)]
    return "\n".join([nat.rstrip("\n"), *added, end + rest.rstrip("\n"), *dropped, f"{end_of_filter}\n"])


def _outside_ranges(service: LabService, family: Family) -> Iterator[str]:
    """kube-proxy's firewall of the address, in INPUT, before IPVS takes the packet."""
    for protocol in _SWITCHES:
        to = f"-d {service.addresses[family]} -p {protocol} --dport {SERVICE_PORT}"
        yield f"-A INPUT {to} ! -s {service.source_ranges[family]} -j DROP"


def _masquerade(service: LabService, family: Family) -> Iterator[str]:
    """What comes to the address from outside when any node may answer it, what comes to the ClusterIP from no pod, and
    a pod that asks itself."""
    for protocol in _SWITCHES:
        port = f"-p {protocol} --dport {SERVICE_PORT}"
        if not service.local:
            yield f"-A KUBE-SERVICES -d {service.addresses[family]} {port} -j KUBE-MARK-MASQ"
        yield f"-A KUBE-SERVICES ! -s {POD_NETWORK[family]} -d {service.cluster_ips[family]} {port} -j KUBE-MARK-MASQ"
        for pod in service.pods:
            itself = f"-s {pod.addresses[family]} -d {pod.addresses[family]} -p {protocol} --dport {SERVER_PORT}"
            yield f"-I KUBE-POSTROUTING 1 {itself} -j MASQUERADE"


def _addresses(services: tuple[LabService, ...]) -> Iterator[str]:
    for service in services:
        for family in service.families:
            for address in (service.addresses[family], service.cluster_ips[family]):
                yield f"address add {address} dev {DEVICE}{' nodad' if family == 6 else ''}"


def _virtual_server(
    protocol: str, address: Address, pods: tuple[LabPod, ...], port: int = SERVICE_PORT
) -> Iterator[str]:
    family: Family = 4 if address.version == 4 else 6
    server = f"{_SWITCH_OF[protocol]} {_endpoint(address, port)}"
    yield f"-A {server} -s rr"
    for pod in pods:
        yield f"-a {server} -r {_endpoint(pod.addresses[family], SERVER_PORT)} -m"


def _endpoint(address: Address, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
