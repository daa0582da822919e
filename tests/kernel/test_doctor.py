"""Each check of `doctor` finds its fault where there is one, made for real, and nothing before."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct

import pytest

from tests.kernel.patient import Case, Patient, service

SERVICE = service("web", pods={"10.244.1.5": "a", "10.244.2.5": "b"}, announced_by="b")
OTHER = "nft add table inet other; nft 'add chain inet other c { type %s; }'; nft 'add rule inet other c %s'"
OFF = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no"
FLOWTABLE = "nft 'add table inet x'; nft 'add flowtable inet x f { hook ingress priority 0; devices = { v0 }; }'"
LOCAL = (
    "iptables-nft -t nat -N KUBE-SVC-A; iptables-nft -t nat -N KUBE-EXT-A; "
    "iptables-nft -t nat -A KUBE-EXT-A -m addrtype --src-type LOCAL -j KUBE-SVC-A"
)
NFT_LOCAL = """nft -f - <<'END'
table ip kube-proxy {
  chain service-A { }
  chain mark-for-masquerade { meta mark set meta mark | 0x4000; }
  chain external-A {
    %s
    fib saddr type local jump mark-for-masquerade comment "masquerade local traffic"
    fib saddr type local goto service-A comment "route local traffic"
  }
}
END"""

CASES = (
    Case(
        code="ML-105",
        before=["iptables-nft -A INPUT -j ACCEPT"],
        fault=["iptables-legacy -A INPUT -j ACCEPT"],
        says="legacy table filter",
    ),
    Case(code="ML-108", fault=["sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0"], says="tcp_loose is 0"),
    Case(
        code="ML-109",
        fault=[OTHER % ("filter hook prerouting priority raw", "ip saddr 10.244.0.0/16 notrack")],
        says="nftables table inet other chain c",
    ),
    Case(
        code="ML-109",
        fault=["iptables-nft -t raw -A PREROUTING -j CT --notrack"],
        says="iptables-nft table raw chain PREROUTING",
    ),
    Case(code="ML-201", fault=["sysctl -qw net.ipv4.ip_forward=0"], says="net.ipv4.ip_forward is 0"),
    Case(
        code="ML-201",
        fault=["sysctl -qw net.ipv6.conf.all.forwarding=0"],
        says="net.ipv6.conf.all.forwarding is 0",
    ),
    Case(
        code="ML-202",
        before=[
            "ip link add tunnel type veth peer name x0; ip link set tunnel up; ip route add 10.244.2.0/24 dev tunnel"
        ],
        settings='[host]\nrp_filter = "keep"',
        objects=SERVICE,
        fault=["sysctl -qw net.ipv4.conf.tunnel.rp_filter=1"],
        says="rp_filter is strict on tunnel",
    ),
    Case(
        code="ML-203",
        files={"etc/sysctl.d/50-hard.conf": "net.ipv4.conf.all.rp_filter = 1"},
        says="/etc/sysctl.d/50-hard.conf sets",
    ),
    Case(
        code="ML-203",
        files={"usr/lib/sysctl.d/50-x.conf": "-net.ipv4.conf.v*.rp_filter=1\n"},
        says="net.ipv4.conf.v*.rp_filter to 1",
    ),
    Case(
        code="ML-205",
        before=["sysctl -qw net.ipv6.conf.v0.accept_ra=1"],
        fault=["ip -6 route add default via fe80::1 dev v0 proto ra expires 600"],
        says="net.ipv6.conf.v0.accept_ra is 1",
    ),
    Case(code="ML-206", fault=["iptables-nft -P FORWARD DROP"], says="table filter chain FORWARD"),
    Case(
        code="ML-207",
        before=[
            "ip route add default via 10.9.0.254",
            "sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.v0.send_redirects=0",
        ],
        objects=service("web", pods={"10.9.0.77": "b"}, announced_by="a"),
        settings='pod_cidrs = ["10.9.0.64/26"]',
        fault=["sysctl -qw net.ipv4.conf.v0.send_redirects=1"],
        says="by v0",
    ),
    Case(
        code="ML-208",
        needs=["bridge", "br_netfilter"],
        fault=[
            "ip link add br0 type bridge; ip link set v0 master br0; ip link set br0 up",
            "ip address flush dev v0; ip address add 10.9.0.1/24 dev br0",
            "sysctl -qw net.bridge.bridge-nf-call-iptables=1",
        ],
        says="reached by the bridge br0",
    ),
    Case(
        code="ML-209",
        before=["ip link add pod0 type veth peer name pod1"],
        fault=["ip link set v0 mtu 1450"],
        says="v0, by which nodes are reached, of 1450",
    ),
    Case(
        code="ML-210",
        fault=["sysctl -qw net.ipv4.conf.v0.src_valid_mark=1"],
        says="net.ipv4.conf.v0.src_valid_mark",
    ),
    Case(code="ML-211", fault=["ip link add kube-ipvs0 type veth peer name x0"], says="arp_ignore is not 1"),
    Case(
        code="ML-212",
        objects=SERVICE,
        fault=["sysctl -qw net.ipv4.conf.v0.forwarding=0"],
        says="net.ipv4.conf.v0.forwarding is 0",
    ),
    Case(
        code="ML-301",
        fault=["ip rule add priority 100 fwmark 0x1000000/0xff000000 lookup 100"],
        says="priority 100",
    ),
    Case(code="ML-302", fault=["ip rule add priority 4750 lookup 100"], says="has a priority of ours"),
    Case(
        code="ML-303",
        before=[
            "ip rule add priority 100 lookup 100",
            "ip rule add priority 90 from 10.9.0.7 lookup 101",
            "ip route add default via 10.9.0.9 table 101",
        ],
        fault=["ip route add default via 10.9.0.9 table 100"],
        says="table 100 has a default route by v0",
    ),
    Case(
        code="ML-303",
        before=["ip rule add priority 100 lookup main suppress_prefixlength 0"],
        fault=["ip rule add priority 101 not fwmark 0xca6c lookup 51820", "ip route add default dev v0 table 51820"],
        says="table 51820",
    ),
    Case(
        code="ML-304",
        files={"run/systemd/netif/links/2": "", "etc/systemd/networkd.conf": "[Network]\nManageForeignRoutes=no\n"},
        says="ManageForeignRoutingPolicyRules on (no file sets it",
    ),
    Case(
        code="ML-304",
        files={
            "run/systemd/netif/links/2": "",
            "etc/systemd/networkd.conf.d/a.conf": OFF,
            "etc/systemd/networkd.conf.d/b.conf": "[Network]\nManageForeignRoutes=yes",
        },
        says="/etc/systemd/networkd.conf.d/b.conf",
    ),
    Case(
        code="ML-305",
        files={
            "etc/nftables.conf": "#!/usr/sbin/nft -f\nflush ruleset\n",
            "etc/systemd/system/sysinit.target.wants/nftables.service": "",
        },
        says="flush ruleset",
    ),
    Case(
        code="ML-305",
        files={
            "run/firewalld/x": "",
            "etc/firewalld/firewalld.conf": "FirewallBackend=iptables\nFlushAllOnReload=yes\n",
        },
        says="firewalld runs",
    ),
    Case(
        code="ML-306",
        settings='[[return_path.l2]]\nname = "p"\ncidrs = ["192.0.2.0/24"]\ninterface = "v0"',
        files={"run/NetworkManager/devices/@v0": "[device]\nmanaged=true\n"},
        says="v0, of return path p",
    ),
    Case(code="ML-307", fault=["ip link add bpfin.cali type veth peer name x0"], says="Calico"),
    Case(
        code="ML-307",
        before=["ip link add cilium_host type veth peer name x0"],
        files_before={"run/cilium/state/globals/node_config.h": "#define ENABLE_IPV4 1\n"},
        files={"run/cilium/state/globals/node_config.h": "#define ENABLE_IPV4 1\n#define ENABLE_HOST_ROUTING 1\n"},
        says="there is the interface cilium_host: Cilium",
    ),
    Case(code="ML-308", fault=["iptables-legacy -t nat -N KUBE-VIP-EGRESS"], says="kube-vip"),
    Case(code="ML-308", fault=[OTHER % ("nat hook postrouting priority 50", "masquerade")], says="at priority 50"),
    Case(code="ML-308", fault=["iptables-nft -t nat -N EGRESSGATEWAY-SNAT-EIP"], says="spidernet"),
    Case(
        code="ML-309",
        before=["ip link add kube-ipvs0 type veth peer name x0"],
        settings="[external_ip]\nenabled = true",
        fault=["ip link delete kube-ipvs0"],
        says="no interface kube-ipvs0",
    ),
    Case(
        code="ML-310",
        before=[f"{LOCAL}; iptables-nft -t nat -I KUBE-EXT-A -s 10.244.0.0/16 -j KUBE-SVC-A"],
        fault=["iptables-nft -t nat -D KUBE-EXT-A 1"],
        says="chain KUBE-EXT-A",
    ),
    Case(
        code="ML-310",
        before=[
            f"{LOCAL}; iptables-nft -t nat -I KUBE-EXT-A -s 10.244.0.0/16 -j KUBE-SVC-A".replace("-nft", "-legacy")
        ],
        fault=["iptables-legacy -t nat -D KUBE-EXT-A 1"],
        says="table iptables-legacy nat chain KUBE-EXT-A",
    ),
    Case(
        code="ML-310",
        before=[NFT_LOCAL % "ip saddr 10.244.0.0/16 goto service-A"],
        fault=["nft delete table ip kube-proxy", NFT_LOCAL % ""],
        says="chain external-A",
    ),
    Case(code="ML-311", needs=["nf_flow_table", "nf_flow_table_inet"], fault=[FLOWTABLE], says="flowtable inet x f"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_fault_is_found_and_nothing_before(patient: Patient, case: Case) -> None:
    patient.suffers(case)


# --- eBPF ------------------------------------------------------------------------------------------------------------

SYS_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _SCHED_CLS = 5, 3
PASS = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
"""r0 = 0; exit: TC_ACT_OK."""


def loaded() -> int:
    """The file descriptor of an eBPF program for traffic control that lets every packet pass (bpf(2))."""
    instructions, licence, number = ctypes.create_string_buffer(PASS), ctypes.create_string_buffer(b"GPL"), 2
    attributes = struct.pack("=IIQQ", _SCHED_CLS, number, ctypes.addressof(instructions), ctypes.addressof(licence))
    what = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.syscall(SYS_BPF[platform.machine()], _PROG_LOAD, what, len(what))
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    return descriptor


def test_programs_that_carry_packets_are_told_by_their_names(patient: Patient) -> None:
    # The virtual machines, which run other tests of this file, lack it.
    pyroute2 = pytest.importorskip("pyroute2")
    patient.run("tc qdisc add dev v0 clsact")
    program, number = loaded(), socket.if_nametoindex("v0")
    try:
        with pyroute2.IPRoute() as ip:
            for name in ("watches", "cil_from_netdev"):
                assert patient.found("ML-307") == []
                where = {"parent": 0xFFFFFFF2, "prio": 1 + len(name), "protocol": 0x0003}
                ip.tc("add-filter", "bpf", number, fd=program, name=name, classid=1, direct_action=True, **where)
    finally:
        os.close(program)
    (finding,) = patient.found("ML-307")
    assert finding.seen == ("the eBPF program cil_from_netdev is on the interface v0: Cilium carries packets here")
