"""Checks of `doctor` about the cluster, this program's files, egress and return paths find their faults, and nothing
before."""

from __future__ import annotations

import http.server
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from metaleg_node.daemon import lock
from metaleg_node.lab.daemons import wait_until
from tests.disks import small_disk
from tests.kernel.patient import Case, Object, Patient, node, service
from tests.netns import Netns, execute
from tests.patience import patient as patiently
from tools.generate import ROOT

PODS = {"10.244.1.5": "a", "10.244.2.5": "b"}
SERVICE = service("web", pods=PODS, announced_by="b")
EXCLUDED = {"node.kubernetes.io/exclude-from-external-load-balancers": ""}
READY = {"type": "Ready", "status": "True"}
UNIT = {"lib/systemd/system/metaleg-node.service": (ROOT / "systemd/metaleg-node.service").read_text()}
DROP_IN = "etc/systemd/system/metaleg-node.service.d/local.conf"
PATH = '[[return_path.l2]]\nname = "p"\ncidrs = ["192.0.2.0/24"]\ninterface = "vlan0"\ngateways = ["192.0.2.1"]\n'
VLAN = "ip link add vlan0 type veth peer name x0; ip link set vlan0 up; ip link set x0 up"
BGP = "[return_path.bgp]\nenabled = true"


def metallb(kind: str, name: str, version: str = "v1beta1", **spec: Any) -> Object:
    metadata = {"name": name, "namespace": "metallb-system"}
    return {"apiVersion": f"metallb.io/{version}", "kind": kind, "metadata": metadata, "spec": spec}


def event(name: str, by: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.1", "namespace": "shop"},
        "involvedObject": {"kind": "Service", "namespace": "shop", "name": name},
        "reason": "nodeAssigned",
        "message": f'announcing from node "{by}" with protocol "layer2"',
        "lastTimestamp": "2024-02-01T00:00:00Z",
    }


def labelled(name: str) -> Object:
    found = node(name)
    return {**found, "metadata": {"name": name, "labels": EXCLUDED}}


def second_status() -> Object:
    found = SERVICE[2]
    return {**found, "metadata": {**found["metadata"], "name": "l2-old"}, "status": {"node": "a"}}


PEERS = [
    metallb("BGPPeer", "one", "v1beta2", peerAddress="10.9.0.2", myASN=1, peerASN=2),
    metallb("BGPPeer", "two", "v1beta2", peerAddress="10.9.0.3", myASN=1, peerASN=2),
    metallb("IPAddressPool", "public", addresses=["203.0.113.0/25"]),
    metallb("BGPAdvertisement", "all"),
]
FAR = node("b", addresses=[{"type": "InternalIP", "address": "10.99.0.2"}])
CASES = (
    Case(code="ML-403", then_nodes=[node("b")], says="this node is a, and the cluster's nodes are b"),
    Case(code="ML-403", fault=["ip address flush dev v0"], says="the InternalIP of node a is 10.9.0.1"),
    Case(code="ML-404", then_nodes=[{**node("a"), "spec": {}}], says="no Node has spec.podCIDRs"),
    Case(
        code="ML-404",
        objects=SERVICE,
        then=service("web", pods={"172.30.0.5": "b"}, announced_by="b"),
        says="1 pod address in no known pod network, such as 172.30.0.5 (shop/web-b)",
    ),
    Case(code="ML-406", objects=SERVICE, then=[*SERVICE[:2], event("web", "b")], says="by Events alone"),
    Case(code="ML-407", objects=SERVICE, then_nodes=[node("a"), labelled("b")], says="node b has the label"),
    Case(code="ML-407", then_nodes=[labelled("a"), labelled("b")], says="and all others are so"),
    Case(
        code="ML-408",
        then_nodes=[node("a"), node("b", conditions=[READY, {"type": "NetworkUnavailable", "status": "True"}])],
        says="node b has the condition NetworkUnavailable",
    ),
    Case(code="ML-410", objects=SERVICE, then=[*SERVICE, second_status()], says="a and b as announcing shop/web"),
    Case(
        code="ML-502",
        files_before={**UNIT, DROP_IN: "[Service]\nNice=5\n"},
        files={DROP_IN: "[Service]\nPrivateUsers=yes\n"},
        says=f"/{DROP_IN}: PrivateUsers=yes",
    ),
    Case(
        code="ML-502",
        files_before={**UNIT, DROP_IN: "[Service]\nCapabilityBoundingSet=CAP_NET_RAW\n"},
        files={DROP_IN: "[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet=CAP_NET_RAW\n"},
        says="CapabilityBoundingSet=CAP_NET_RAW, without CAP_NET_ADMIN",
    ),
    Case(code="ML-502", files_before=UNIT, files={DROP_IN: "[Service]\nProcSubset=pid"}, says="ProcSubset=pid"),
    Case(
        code="ML-503",
        files_before={**UNIT, "lib/systemd/system/kubelet.service": ""},
        files={"etc/systemd/system/k0sworker.service": ""},
        says="there is k0sworker.service",
    ),
    Case(code="ML-505", fault=["iptables-nft -t nat -N METALEG-SNAT"], says="metaleg: chain METALEG-SNAT"),
    Case(code="ML-505", fault=["iptables-nft -t nat -N NMANAGER_OUTPUT"], says="network-node-manager: chain NMANAGER"),
    Case(code="ML-505", fault=["ip rule add fwmark 0x200000/0xf00000 lookup 100001"], says="metaleg: the rule"),
    Case(code="ML-505", fault=["ip rule add lookup 20"], says="metallb-node-route-agent: the rule"),
    Case(
        code="ML-601",
        before=["ip route add default via 10.9.0.254"],
        objects=SERVICE,
        then_nodes=[node("a"), FAR],
        says="Service shop/web (IPv4)",
    ),
    Case(code="ML-602", objects=SERVICE, fault=["ip address add 192.0.2.200/32 dev v0"], says="192.0.2.200 of Service"),
    Case(code="ML-603", objects=SERVICE, then=service("web", pods={}, announced_by="b"), says="no pods with IPv4"),
    Case(
        code="ML-605",
        objects=service("web", pods=PODS, announced_by="b", externalTrafficPolicy="Local"),
        then=service("web", pods={"10.244.1.5": "a"}, announced_by="b", externalTrafficPolicy="Local"),
        says="its gateway b has no endpoint",
    ),
    Case(
        code="ML-606",
        objects=SERVICE,
        fault=["ip neigh change 10.9.0.2 dev v0 nud failed"],
        says="the gateway 10.9.0.2 on v0 does not answer (neighbour failed)",
    ),
    Case(
        code="ML-701",
        settings=f'{PATH}rp_filter = "loose"',
        before=[VLAN, "sysctl -qw net.ipv4.conf.vlan0.rp_filter=1", "ip address add 192.0.2.2/24 dev vlan0"],
        fault=["ip address flush dev vlan0"],
        says="interface vlan0 has no IPv4 address",
    ),
    Case(code="ML-702", settings=PATH, before=[VLAN], fault=["ip link delete vlan0"], says="by vlan0, and there is no"),
    Case(
        code="ML-703",
        objects=[metallb("IPAddressPool", "one", addresses=["203.0.113.0/25"])],
        then=[
            metallb("IPAddressPool", "one", addresses=["203.0.113.0/25"]),
            metallb("IPAddressPool", "two", addresses=["203.0.113.100-203.0.113.130"]),
        ],
        says="the pools one and two have addresses in common",
    ),
    Case(
        code="ML-703",
        then=[metallb("IPAddressPool", "one", addresses=["10.244.2.128-10.244.3.1"])],
        says="the pool one has addresses of pods, nodes or Services",
    ),
    Case(
        code="ML-704",
        settings=BGP,
        before=["sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv4.fib_multipath_use_neigh=1"],
        objects=PEERS,
        fault=["sysctl -qw net.ipv4.fib_multipath_use_neigh=0"],
        says="net.ipv4.fib_multipath_use_neigh is 0",
    ),
    Case(
        code="ML-704",
        settings=BGP,
        before=["sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv4.fib_multipath_use_neigh=1"],
        objects=PEERS,
        fault=["sysctl -qw net.ipv4.fib_multipath_hash_policy=0"],
        says="net.ipv4.fib_multipath_hash_policy is 0",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_fault_is_found_and_nothing_before(patient: Patient, case: Case) -> None:
    patient.suffers(case)


def test_a_broken_state_file_is_told(patient: Patient) -> None:
    assert patient.found("ML-409") == []
    patient.state.write_text("kind: [")
    (finding,) = patient.found("ML-409")
    assert str(patient.state) in finding.seen
    assert "nothing is known" in finding.seen


def test_a_healthy_host_has_nothing_and_is_looked_at_within_two_seconds(patient: Patient) -> None:
    patient.know(*SERVICE)
    begin = time.monotonic()
    found = patient.examined()
    assert time.monotonic() - begin < patiently(2.0)
    assert found.findings == ()
    assert [check.code for check, _ in found.unseen] == ["ML-604"]
    assert len(found.passed) > 50


def test_nothing_is_changed(patient: Patient, netns: Netns) -> None:
    def all_of_it() -> tuple[str, ...]:
        commands = (
            "nft list ruleset",
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "sysctl -ar ^net",
            "ip neigh",
        )
        volatile = ("random", "nf_conntrack_count", "bytes")
        texts = (netns.run(*command.split()).stdout for command in commands)
        return tuple("\n".join(s for s in text.splitlines() if not any(v in s for v in volatile)) for text in texts)

    patient.know(*SERVICE)
    before, files = all_of_it(), sorted(patient.root.parent.rglob("*"))
    patient.examined()
    assert all_of_it() == before
    assert sorted(patient.root.parent.rglob("*")) == files


# --- this program's files --------------------------------------------------------------------------------------------


def test_directories_that_cannot_be_written_are_told(patient: Patient) -> None:
    with small_disk(patient.options.state_dir) as disk:
        assert patient.found("ML-501") == []
        disk.fill(0)
        (finding,) = patient.found("ML-501")
        assert finding.seen == f"{patient.options.state_dir} is on a file system without room"
        disk.empty()
        assert patient.found("ML-501") == []
        disk.lock()
        (finding,) = patient.found("ML-501")
        assert finding.seen == f"{patient.options.state_dir} is on a file system that is mounted read-only"


HOLD = f"""
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind("\\0{lock.NAME}")
s.listen()
sys.stdin.read()
"""


@contextmanager
def held(netns: Netns, *options: str) -> Iterator[None]:
    """Somebody holds the lock."""
    command = ["ip", "netns", "exec", netns.name, "setpriv", *options, sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            assert wait_until(lambda: lock.holder_of() is not None, patiently(10))
            yield
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(patiently(10))


def test_a_stranger_that_holds_the_lock_is_told(patient: Patient, netns: Netns) -> None:
    with held(netns, "--reuid", "0"):
        assert patient.found("ML-501") == []
    with held(netns, "--reuid", "65534"):
        (finding,) = patient.found("ML-501")
    assert "uid 65534" in finding.seen


def test_a_service_without_its_capability_is_told(patient: Patient, netns: Netns) -> None:
    with held(netns, "--reuid", "0"):
        assert patient.found("ML-502") == []
    with held(netns, "--bounding-set", "-net_admin"):
        (finding,) = patient.found("ML-502")
    assert "has no CAP_NET_ADMIN" in finding.seen


def test_a_hook_that_cannot_be_started_is_told(patient: Patient, tmp_path: Path) -> None:
    with small_disk(tmp_path / "hooks"):
        hook = tmp_path / "hooks" / "hook"
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
        patient.configure(f'[hooks]\npre = "{hook}"\npost = "{hook.parent}"')
        assert patient.found("ML-504") == []
        execute("mount", "-o", "remount,noexec", str(hook.parent))
        assert "is mounted noexec" in patient.found("ML-504")[0].seen
        execute("mount", "-o", "remount,exec", str(hook.parent))
        hook.write_text("#!/usr/bin/lua9\n")
        assert "begins with #!/usr/bin/lua9, which is not installed" in patient.found("ML-504")[0].seen


def test_a_missing_unit_for_new_pods_is_told(patient: Patient, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    assert patient.found("ML-506") == []
    patient.configure(f'[egress]\nnew_pods = "hold"\ncni_socket = "{place}"')
    (finding,) = patient.found("ML-506")
    assert str(place) in finding.seen
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen()
        teller = threading.Thread(target=lambda: _tell(listening))
        teller.start()
        assert patient.found("ML-506") == []
        teller.join()


def _tell(listening: socket.socket) -> None:
    """That there is no attachment."""
    connection, _ = listening.accept()
    with connection:
        connection.sendall(b"[]\n")


def test_a_predecessor_that_runs_is_told(patient: Patient) -> None:
    assert patient.found("ML-505") == []
    with subprocess.Popen(["metaleg-agent"], executable="/bin/cat", stdin=subprocess.PIPE) as process:
        (finding,) = patient.found("ML-505")
        assert process.stdin
        process.stdin.close()
    assert finding.seen == f"metaleg: process {process.pid} runs"


# --- egress ----------------------------------------------------------------------------------------------------------


class Quiet(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def test_a_node_with_egress_pods_that_does_not_answer_is_told(patient: Patient) -> None:
    patient.run("ip address add 10.9.0.2/32 dev lo")
    patient.know(*SERVICE)
    diagnosis = patient.examined("ML-604")
    ((_, reason),) = diagnosis.unseen
    assert "cannot be known" in reason
    with http.server.ThreadingHTTPServer(("10.9.0.2", 0), Quiet) as server:
        patient.configure(f'[health]\nlisten = "0.0.0.0:{server.server_port}"')
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert patient.found("ML-604") == []
        server.shutdown()
        thread.join()
    (finding,) = patient.found("ML-604")
    assert finding.seen.startswith("node b has pods of labelled Services")


@contextmanager
def answering(interface: str, macs: Sequence[bytes]) -> Iterator[None]:
    """Hosts on a link with these hardware addresses, each with the address that it is asked for by ARP."""
    ended = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as link:
        link.bind((interface, 0x0806))
        link.settimeout(0.1)

        def answer() -> None:
            while not ended.is_set():
                try:
                    frame = link.recv(256)
                except TimeoutError:
                    continue
                operation, asker, target = struct.unpack_from("!H6s", frame, 20)[0], frame[22:28], frame[38:42]
                for mac in macs if operation == 1 else ():
                    head = asker + mac + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2)
                    link.send(head + mac + target + asker + bytes(4))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def advertising(interface: str, macs: Sequence[bytes], address: IPv6Address) -> Iterator[None]:
    """The same for an address of IPv6, and solicitations with a hardware address in them, as MetalLB wants them."""
    ended = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD)) as link:
        link.bind((interface, 0x86DD))
        link.settimeout(0.1)

        def answer() -> None:
            while not ended.is_set():
                try:
                    frame = link.recv(256)
                except TimeoutError:
                    continue
                if frame[20] != 58 or frame[54] != 135 or frame[62:78] != address.packed or frame[78:80] != b"\1\1":
                    continue
                asker = frame[22:38]
                for mac in macs:
                    body = struct.pack("!I", 0x60000000) + address.packed + b"\2\1" + mac
                    said = struct.pack("!BBH", 136, 0, checksum(address.packed, asker, b"\x88\0\0\0" + body)) + body
                    head = struct.pack("!IHBB", 0x60000000, len(said), 58, 255) + address.packed + asker
                    link.send(frame[80:86] + mac + b"\x86\xdd" + head + said)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def checksum(source: bytes, destination: bytes, message: bytes) -> int:
    """Of ICMPv6 (RFC 4443, 2.3)."""
    whole = source + destination + struct.pack("!II", len(message), 58) + message
    total: int = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_two_hosts_with_one_ipv6_load_balancer_address_are_told(patient: Patient) -> None:
    patient.run("until ip -6 address show dev v0 scope link | grep -q 'fe80.*scope link *$'; do :; done")
    address = IPv6Address("fd09::200")
    nodes = [node("a"), node("b")]
    for number, one in enumerate(nodes):
        one["spec"]["podCIDRs"].append(f"fd00:244:{number}::/64")
    objects = service("web", pods={"fd00:244:0::5": "a"}, announced_by="b", address=str(address))
    objects[1]["addressType"] = "IPv6"
    patient.know(*objects, nodes=nodes)
    first, second = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x03"
    with advertising("v1", [first], address):
        assert patient.found("ML-607") == []
    with advertising("v1", [first, second], address):
        (finding,) = patient.found("ML-607")
    assert finding.seen == (
        "02:00:00:00:00:02 and 02:00:00:00:00:03 answer neighbour solicitations for fd09::200 on v0"
    )


def test_two_hosts_with_one_load_balancer_address_are_told(patient: Patient) -> None:
    patient.know(*service("web", pods=PODS, announced_by="b", address="10.9.0.200"))
    first, second = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x03"
    with answering("v1", [first]):
        assert patient.found("ML-607") == []
    with answering("v1", [first, second]):
        (finding,) = patient.found("ML-607")
    assert finding.seen == "02:00:00:00:00:02 and 02:00:00:00:00:03 answer ARP for 10.9.0.200 on v0"
