"""What the cluster's objects may do while the daemons run, judged by the source that the server sees."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab import objects
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import SERVER, SERVER_PORT, LabNode, LabService
from tests.e2e.scenario import (
    NODE1,
    NODE2,
    NODE3,
    SETTLED,
    egress_service,
    expect,
    ours,
    sources,
    texts,
)
from tests.lab.lab import Lab
from tests.lab.probes import open_tcp


def test_F2_the_ready_and_newest_of_several_announcements_wins(running: Lab, web: LabService) -> None:
    running.announce(replace(web, gateway=NODE3))
    stale = objects.l2_status(web, NODE1, 3000, name="l2-stale")
    newest = objects.l2_status(web, NODE3, 2000, name="l2-newest")
    others = [o for o in running.cluster_objects() if o["metadata"]["name"] != "node1"]
    running.write_state([*others, objects.node(NODE1, ready=False), stale, newest])
    for pod in web.pods:
        expect(running, pod, texts(web.addresses))
    # The former gateway gave the same address.
    assert wait_until(lambda: _gateways(running) == {"node3"}, SETTLED), _gateways(running)


def _gateways(lab: Lab) -> set[str]:
    return {service["gateway"] for service in lab.daemons[NODE1].status()["services"]}


def test_F27_F28_addresses_that_leave_a_service_lose_its_source_and_new_ones_gain_it(
    running: Lab, web: LabService
) -> None:
    old, new = running.pod(NODE1), running.pod(NODE1, 2)
    running.set_services(replace(web, pods=(new,)))
    expect(running, new, texts(web.addresses))
    expect(running, old, texts(NODE1.addresses))
    assert sources(running, old) == texts(NODE1.addresses)


def test_F30_a_terminating_pod_keeps_its_source_until_it_is_gone(running: Lab, web: LabService) -> None:
    # A second Service in the same file tells when it has been taken.
    extra = LabService(name="extra", number=1, pods=(running.pod(NODE1, 2),), gateway=NODE2)
    running.services["extra"] = extra
    running.announce(extra)
    content = running.cluster_objects()
    for item in content:
        for endpoint in item.get("endpoints", ()):
            endpoint["conditions"] = {"ready": False, "serving": False, "terminating": True}
    running.write_state(content)
    expect(running, running.pod(NODE1, 2), texts(extra.addresses))
    assert sources(running, running.pod(NODE1)) == texts(web.addresses)


@pytest.mark.parametrize("how", ["label", "service"])
def test_F31_without_the_label_or_the_service_nothing_of_it_is_left(running: Lab, web: LabService, how: str) -> None:
    running.set_services(*([replace(web, labelled=False)] if how == "label" else []))
    for pod in web.pods:
        expect(running, pod, texts(pod.node.addresses))
        assert sources(running, pod) == texts(pod.node.addresses)
    for node in running.daemons:
        assert wait_until(lambda node=node: _is_clear(running, node), SETTLED)  # type: ignore[misc]


def _is_clear(lab: Lab, node: LabNode) -> bool:
    """Whether a node holds nothing of the Service any more; rules go after the packet filter's part."""
    found = ours(lab, node)
    return "192.0.2.200" not in str(found) and found["rule 4"] == ""


def test_S6_a_service_of_one_family_leaves_the_other_family_closed(running: Lab, web: LabService) -> None:
    running.set_services(replace(web, families=(4,)))
    four_only = [o for o in running.cluster_objects() if o["kind"] != "EndpointSlice"]
    running.write_state([*four_only, *objects.endpoint_slices(web)])
    assert wait_until(lambda: _states(running) == {(4, "active"), (6, "unavailable")}, SETTLED)
    pod = running.pod(NODE1)
    assert running.source_seen(pod, "udp", 6, 0.3) in {"prohibited", "unreachable"}
    assert running.source_seen(pod, "tcp", 4) == str(web.addresses[4])


def _states(lab: Lab) -> set[tuple[int, str]]:
    """How the Services stand by family, as node1's daemon tells."""
    return {(service["family"], service["state"]) for service in lab.daemons[NODE1].status()["services"]}


def _older(made: dict[str, Any]) -> dict[str, Any]:
    made["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    return made


def test_an_older_headless_sibling_takes_no_pods(running: Lab, web: LabService) -> None:
    """Mail charts ship one, with the same labels."""
    sibling = replace(web, name="headless")
    made = _older(objects.service(sibling))
    made["spec"] = {"type": "ClusterIP", "clusterIPs": ["None"], "ports": made["spec"]["ports"]}
    made["status"] = {"loadBalancer": {}}
    running.write_state([*running.cluster_objects(), made, *objects.endpoint_slices(sibling)])
    assert wait_until(lambda: _states(running) >= {(4, "active"), (4, "unavailable")}, SETTLED)
    for pod in web.pods:
        assert sources(running, pod) == texts(web.addresses)


def test_a_pods_address_that_was_an_older_services_dying_pods_is_the_new_pods(running: Lab, web: LabService) -> None:
    old = replace(web, name="old", number=1, gateway=NODE3)
    running.announce(old)
    slices = [*objects.endpoint_slices(old)]
    for item in slices:
        for endpoint in item["endpoints"]:
            endpoint["conditions"] = {"ready": False, "serving": False, "terminating": True}
            endpoint["targetRef"]["name"] += "-old"
    status = objects.l2_status(old, NODE3, 10)
    running.write_state([*slices, *running.cluster_objects(), _older(objects.service(old)), status])
    assert wait_until(lambda: len(running.daemons[NODE1].status()["services"]) == 4, SETTLED)
    for pod in web.pods:
        assert sources(running, pod) == texts(web.addresses)


def test_S9_F16_node_addresses_and_foreign_pods_are_never_taken(running: Lab, web: LabService) -> None:
    content = running.cluster_objects()
    for item in content:
        if item["kind"] == "EndpointSlice":
            family: Family = 4 if item["addressType"] == "IPv4" else 6
            stolen = {"kind": "Pod", "name": "other", "namespace": "kube-system"}
            victim = {"addresses": [str(running.pod(NODE1, 2).addresses[family])], "targetRef": stolen}
            host = {"addresses": [str(NODE1.addresses[family])], "nodeName": "node1"}
            item["endpoints"] += [host, victim]
    running.write_state(content)
    assert wait_until(lambda: len(running.daemons[NODE1].status()["problems"]) == 4, SETTLED)
    # It is a tenant's doing: the node is well, and `check` tells who has to mend it.
    assert running.daemons[NODE1].command("status").returncode == 0
    checked = running.daemons[NODE1].command("check")
    assert (checked.returncode, checked.stderr.count("[object-not-used]")) == (78, 4)
    assert sources(running, NODE1) == texts(NODE1.addresses)
    assert sources(running, running.pod(NODE1, 2)) == texts(NODE1.addresses)
    assert sources(running, running.pod(NODE1)) == texts(web.addresses)


def test_F14_excluded_destinations_see_the_node_and_all_others_the_service(running: Lab, web: LabService) -> None:
    pod = running.pod(NODE1)
    excluded = ",".join(str(a) for a in SERVER.values())
    running.set_services(replace(web, annotations={"metaleg.de/exclude-cidrs": excluded}))
    expect(running, pod, texts(NODE1.addresses))
    running.set_services(replace(web, annotations={"metaleg.de/only-cidrs": "198.51.100.0/24,2001:db8:51::/64"}))
    expect(running, pod, texts(web.addresses))
    running.set_services(replace(web, annotations={"metaleg.de/only-cidrs": "203.0.113.0/24,2001:db8:9::/64"}))
    expect(running, pod, texts(NODE1.addresses))


@pytest.mark.parametrize(
    ("policy", "answers"),
    [
        ("reject", {"prohibited", "unreachable"}),
        ("drop", {"timeout"}),
        ("allow", texts(NODE1.addresses)),
    ],
)
def test_S5_without_a_gateway_only_outward_traffic_follows_the_policy(lab: Lab, policy: str, answers: set[str]) -> None:
    lab.set_services(egress_service(lab, gateway=None))
    lab.start_daemons({"egress": {"when_unavailable": policy}})
    pod, neighbour = lab.pod(NODE1), lab.pod(NODE2)
    assert {lab.source_seen(pod, "udp", family, 0.3) for family in FAMILIES} == answers
    for family in FAMILIES:
        inside = lab.ask(pod, "tcp", family, to=(neighbour.addresses[family], SERVER_PORT))
        assert inside.source == str(pod.addresses[family])


def test_S8_private_networks_are_destinations_like_any_other(lab: Lab) -> None:
    """The server gets a private address, too: RFC 1918 and RFC 4193 are not excluded by default."""
    lab.namespace("outside").ip(["address add 10.9.9.9/32 dev lo", "address add fd99::9/128 dev lo nodad"])
    lab.namespace("router").ip(["route add 10.9.9.9/32 via 198.51.100.10", "route add fd99::9/128 via 2001:db8:51::10"])
    lab.set_services(egress_service(lab))
    lab.start_daemons()
    web, pod = lab.services["web"], lab.pod(NODE1)
    for family, target in zip(FAMILIES, ("10.9.9.9", "fd99::9"), strict=True):
        answer = lab.ask(pod, "tcp", family, to=(ip_address(target), SERVER_PORT))
        assert answer.source == str(web.addresses[family])


def test_F44_the_marks_of_others_survive_steering(running: Lab, web: LabService) -> None:
    rules = """table inet other {
        chain before { type filter hook prerouting priority -140;
            iifname "cni0" meta mark set meta mark | 0x00000123
        }
        chain after { type filter hook postrouting priority 150;
            oifname "eth0" meta mark & 0xc0ffffff == 0x00000123 counter name "kept"
            oifname "eth0" meta mark & 0xc0ffffff != 0x00000123 ip saddr 10.244.1.2 counter name "lost"
        }
        counter kept { }
        counter lost { }
    }"""
    running.namespace(NODE1).run("nft", "-f", "-", stdin=rules)
    assert sources(running, running.pod(NODE1)) == texts(web.addresses)
    counters = running.namespace(NODE1).run("nft", "list", "counters", "table", "inet", "other")
    assert counters.count("packets 0 bytes 0") == 1
    assert "counter lost {\n\t\tpackets 0 bytes 0" in counters


@pytest.mark.parametrize("content", [b"", b"{", b"kind: [", b"\xff\xfe", b"kind: Service\nmetadata: {"])
def test_a_broken_state_file_changes_nothing_and_is_reported(running: Lab, web: LabService, content: bytes) -> None:
    before = ours(running, NODE1)
    objects.replace_file(running.daemons[NODE1].state_file, content)
    assert wait_until(lambda: running.daemons[NODE1].status()["problems"] != [], SETTLED)
    assert ours(running, NODE1) == before
    assert sources(running, running.pod(NODE1)) == texts(web.addresses)
    running.write_state()
    assert wait_until(lambda: running.daemons[NODE1].status()["problems"] == [], SETTLED)


def test_F34_what_is_known_stays_in_force_when_the_configuration_changes_while_it_cannot_be_read(
    running: Lab, web: LabService
) -> None:
    daemon = running.daemons[NODE1]
    objects.replace_file(daemon.state_file, b"kind: [")
    assert wait_until(lambda: daemon.status()["problems"] != [], SETTLED)
    daemon.configure({"log": {"level": "debug"}})
    daemon.reload()
    assert wait_until(lambda: "configuration read again: changed" in daemon.log(), SETTLED)
    running.namespace(NODE1).run("nft", "delete", "table", "inet", "metaleg_node")
    assert wait_until(lambda: daemon.status()["repaired"] != {}, SETTLED)
    expect(running, running.pod(NODE1), texts(web.addresses))


def test_a_node_that_is_not_in_the_state_changes_nothing_until_it_is(running: Lab, web: LabService) -> None:
    daemon = running.daemons[NODE1]
    before = ours(running, NODE1)
    daemon.configure({"node": {"name": "elsewhere"}})
    daemon.reload()
    assert wait_until(
        lambda: any("no Node is called elsewhere" in p["text"] for p in daemon.status()["problems"]), SETTLED
    )
    assert ours(running, NODE1) == before
    expect(running, running.pod(NODE1), texts(web.addresses))
    daemon.configure({})
    daemon.reload()
    assert wait_until(lambda: daemon.status()["problems"] == [], SETTLED)
    assert daemon.status()["node"] == NODE1.name


def test_a_second_instance_on_a_node_is_refused_and_says_why(running: Lab) -> None:
    done = running.daemons[NODE1].command("run")
    assert done.returncode == 1
    assert str(running.daemons[NODE1].process_id) in done.stderr
    assert running.daemons[NODE1].running


def test_a_plan_shows_what_apply_then_does(lab: Lab) -> None:
    lab.set_services(egress_service(lab))
    daemon = lab.daemons[NODE1]
    planned = daemon.command("plan")
    assert planned.returncode == 2
    assert "+ pod 10.244.1.2 leaves through node2" in planned.stdout
    assert not any(ours(lab, NODE1).values())
    assert daemon.command("apply").returncode == 0
    assert any(ours(lab, NODE1).values())
    assert daemon.command("plan").returncode == 0


def test_udp_flows_that_began_before_the_label_move_at_once_and_tcp_stays(lab: Lab) -> None:
    lab.set_services(replace(egress_service(lab), labelled=False))
    lab.start_daemons()
    web, pod = lab.services["web"], lab.pod(NODE1)
    with (
        open_tcp(lab.namespace(pod), SERVER[4], SERVER_PORT, 2) as tcp,
        lab.namespace(pod).socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.settimeout(0.3)
        udp.connect((str(SERVER[4]), SERVER_PORT))
        assert [_says(s) for s in (tcp, udp)] == [str(NODE1.addresses[4])] * 2
        lab.set_services(replace(web, labelled=True))
        expect(lab, pod, texts(web.addresses))
        assert wait_until(lambda: _says(udp) == str(web.addresses[4]), SETTLED)
        assert _says(tcp) == str(NODE1.addresses[4])


def _says(sock: socket.socket) -> str:
    """The source address that the server sees for a line on this socket."""
    try:
        sock.send(b"hello\n")
        return sock.recv(2048).split()[0].decode()
    except TimeoutError:
        return ""
