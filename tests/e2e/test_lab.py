"""The lab must be a fair imitation before anything is judged in it: what it shows without a daemon, its clean-up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import pytest

from metaleg_node.core.model import FAMILIES
from metaleg_node.lab import namespaces
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import SERVER, SERVER_PORT, SERVICE_PORT, LabService
from tests.e2e.scenario import NODE1, NODE2, NODE3, PROTOCOLS, Flows, egress_service, sources, texts
from tests.lab.lab import Lab
from tests.lab.plan import Attachment, Flavour, LabOptions, PodTransport
from tests.netns import execute

KINDS = (
    LabOptions(flavour=Flavour.IPTABLES_NFT, forward_drop=True, rp_filter=1),
    LabOptions(flavour=Flavour.IPTABLES_LEGACY, attachment=Attachment.ROUTED, transport=PodTransport.VXLAN),
    LabOptions(flavour=Flavour.NFT, transport=PodTransport.VXLAN, forward_drop=True, rp_filter=1),
)


def _names() -> set[str]:
    listed = execute("ip", "netns", "list").stdout.splitlines()
    return {line.split()[0] for line in listed if line.startswith(f"{namespaces.PREFIX}-{os.getpid()}-")}


@pytest.mark.parametrize("options", KINDS, ids=lambda o: f"{o.flavour}-{o.transport}-{o.attachment}")
def test_without_a_daemon_the_cluster_works_and_pods_leave_with_their_nodes_addresses(options: LabOptions) -> None:
    with Lab(options) as lab:
        cluster = LabService(name="all", number=0, pods=(lab.pod(NODE1),), gateway=NODE3)
        local = LabService(name="near", number=1, pods=(lab.pod(NODE2),), gateway=NODE2, local=True)
        lab.set_services(cluster, local)
        assert sources(lab, lab.pod(NODE1)) == texts(NODE1.addresses)
        assert sources(lab, NODE2) == texts(NODE2.addresses)
        for family in FAMILIES:
            near, far = lab.pod(NODE1).addresses[family], lab.pod(NODE3, 2)
            assert lab.ask(far, "tcp", family, to=(near, SERVER_PORT)).source == str(far.addresses[family])
            for service in (cluster, local):
                (pod,) = service.pods
                for target in (service.cluster_ips[family], service.addresses[family]):
                    assert lab.ask(far, "udp", family, to=(target, SERVICE_PORT)).by == pod.name
            inbound = lab.ask("outside", "tcp", family, to=(local.addresses[family], SERVICE_PORT))
            assert (inbound.by, inbound.source) == (lab.pod(NODE2).name, str(SERVER[family]))
            node_port = lab.ask("outside", "tcp", family, to=(NODE2.addresses[family], cluster.node_port))
            assert node_port.by == lab.pod(NODE1).name
    assert _names() == set()


def test_the_record_of_sources_shows_every_protocol_and_forgets_on_request(lab: Lab) -> None:
    lab.set_services(egress_service(lab))
    for protocol in PROTOCOLS:
        lab.reset_seen()
        assert lab.seen() == set()
        lab.ask(lab.pod(NODE1), protocol, 4)
        lab.ask(lab.pod(NODE1), protocol, 6)
        assert lab.seen() == set(NODE1.addresses.values())


def test_the_record_of_sources_shows_a_packet_with_an_address_of_no_machine(lab: Lab) -> None:
    lab.namespace(NODE1).run("iptables-legacy", "-t", "nat", "-F", "POSTROUTING")
    lab.ask(lab.pod(NODE1), "udp", 4, timeout=0.1)
    assert lab.seen() == {lab.pod(NODE1).addresses[4]}


def test_flows_reach_the_server_from_every_pod_and_family(lab: Lab) -> None:
    pods = (lab.pod(NODE1), lab.pod(NODE3))
    with Flows(lab, pods) as flows:
        assert wait_until(lambda: len(flows.answers.keys() - {"none"}) == 4, 5)
    assert lab.server.echo_source(b"", 0) in (*NODE1.addresses.values(), *NODE3.addresses.values())
    assert set(flows.answers) - {"none"} == texts(NODE1.addresses) | texts(NODE3.addresses)


def test_a_pulled_cable_cuts_a_node_off_until_it_is_plugged_in_again(lab: Lab) -> None:
    lab.plug(NODE1, connected=False)
    assert lab.source_seen(NODE1, "udp", 4, 0.1) in {"timeout", "unreachable"}
    lab.plug(NODE1, connected=True)
    assert lab.source_seen(NODE1, "tcp", 4, 5) == str(NODE1.addresses[4])


def _break_off_in_the_middle() -> subprocess.Popen[bytes]:
    with contextlib.suppress(ZeroDivisionError), Lab(LabOptions(flavour=Flavour.NFT)) as lab:
        with lab.namespace(NODE1).inside():
            sleeper = subprocess.Popen(["sleep", "60"])
        _ = 1 / 0
    return sleeper


def test_a_lab_that_breaks_off_leaves_nothing_and_kills_what_runs_in_it() -> None:
    sleeper = _break_off_in_the_middle()
    assert sleeper.wait(5) == -signal.SIGKILL
    assert _names() == set()


def test_namespaces_of_a_dead_process_are_removed_and_those_of_a_living_one_kept() -> None:
    dead = execute("sh", "-c", "echo $$").stdout.strip()
    stale, kept = (f"{namespaces.PREFIX}-{owner}-0-node1" for owner in (dead, os.getpid()))
    namespaces.create([stale, kept])
    try:
        namespaces.remove_stale()
        listed = execute("ip", "netns", "list").stdout
        assert stale not in listed
        assert kept in listed
    finally:
        namespaces.remove([stale, kept])


def test_a_command_that_fails_names_the_namespace_and_the_complaint(lab: Lab) -> None:
    with pytest.raises(Exception, match=r"node1: `ip -batch -` ended with .*nonsense"):
        lab.namespace(NODE1).ip(["nonsense"])


def test_entering_a_namespace_that_is_gone_names_it() -> None:
    with pytest.raises(OSError, match="mlab-0-0-nowhere"), Namespace(name="mlab-0-0-nowhere").inside():
        pass
