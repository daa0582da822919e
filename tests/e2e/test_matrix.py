"""Every kind of cluster that the program must live in: who leaves with which source, and who must notice nothing.

The combinations cover each masquerade, transport, attachment, rp_filter and FORWARD policy, not their full product.
Each builds its lab once; the cluster's own traffic is recorded before a daemon runs and compared afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.plan import SERVER_PORT, SERVICE_PORT, LabNode, LabPod, LabService
from tests.e2e.scenario import NODE1, NODE2, NODE3, PROTOCOLS, egress_service, foreign, ours, sources, texts
from tests.lab.lab import Lab
from tests.lab.plan import Attachment, Flavour, LabOptions, PodTransport

KINDS = (
    LabOptions(flavour=Flavour.IPTABLES_NFT, rp_filter=1, forward_drop=True),
    LabOptions(flavour=Flavour.IPTABLES_NFT, transport=PodTransport.VXLAN, attachment=Attachment.ROUTED, rp_filter=2),
    LabOptions(flavour=Flavour.IPTABLES_LEGACY, transport=PodTransport.VXLAN, rp_filter=1, forward_drop=True),
    LabOptions(flavour=Flavour.IPTABLES_LEGACY, attachment=Attachment.ROUTED, rp_filter=0),
    LabOptions(flavour=Flavour.NFT, transport=PodTransport.VXLAN, rp_filter=0, forward_drop=True),
    LabOptions(flavour=Flavour.NFT, masquerade=False, attachment=Attachment.ROUTED, rp_filter=1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A lab with daemons, and what its machines saw of each other before and after they started."""

    lab: Lab
    before: dict[str, str]
    after: dict[str, str]
    foreign_before: dict[LabNode, dict[str, str]]


@pytest.fixture(
    scope="module",
    params=KINDS,
    ids=lambda o: f"{o.flavour}-{o.transport}-{o.attachment}-rp{o.rp_filter}{'-drop' if o.forward_drop else ''}",
)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Lab(request.param) as lab:
        local = LabService(name="near", number=1, pods=(lab.pod(NODE2),), gateway=NODE2, labelled=False, local=True)
        cluster = LabService(name="far", number=2, pods=(lab.pod(NODE1),), gateway=NODE3, labelled=False)
        lab.set_services(egress_service(lab), local, cluster)
        foreign_before = {node: foreign(lab, node) for node in (NODE1, NODE2, NODE3)}
        before = dict(inner_traffic(lab))
        lab.start_daemons()
        lab.reset_seen()
        yield Scene(lab=lab, before=before, after=dict(inner_traffic(lab)), foreign_before=foreign_before)


def inner_traffic(lab: Lab) -> Iterator[tuple[str, str]]:
    """Who answers whom with which source seen, for all traffic that is no egress."""
    pods = (lab.pod(NODE1), lab.pod(NODE2), lab.pod(NODE3), lab.pod(NODE1, 2))
    for family in FAMILIES:
        for client in (*pods, NODE1, NODE2):
            yield from _as_client(lab, client, family)
        for service in lab.services.values():
            targets = [(service.addresses[family], SERVICE_PORT)]
            targets += [(n.addresses[family], service.node_port) for n in (NODE1, NODE2) if not service.local]
            targets += [(NODE2.addresses[family], service.node_port)] if service.local else []
            for target in targets:
                for protocol in ("tcp", "udp"):
                    answer = lab.ask("outside", protocol, family, to=target)
                    several = len(service.pods) > 1 and answer.source
                    text = "one of the pods answered" if several else f"{answer} {answer.by}"
                    yield f"{protocol} outside -> {service.name} {target}", text


def _as_client(lab: Lab, client: LabPod | LabNode, family: Family) -> Iterator[tuple[str, str]]:
    for pod in (lab.pod(NODE1), lab.pod(NODE2, 2), lab.pod(NODE3)):
        if pod != client:
            target = (pod.addresses[family], SERVER_PORT)
            yield f"{client.name} -> {pod.name} v{family}", str(lab.ask(client, "tcp", family, to=target))
            yield f"{client.name} -> {pod.name} udp v{family}", str(lab.ask(client, "udp", family, to=target))
    for service in lab.services.values():
        several = len(service.pods) > 1
        for protocol in ("tcp", "udp") if several else ("tcp",):
            for address in (service.cluster_ips[family], service.addresses[family]):
                answer = lab.ask(client, protocol, family, to=(address, SERVICE_PORT))
                # The client may be the pod that is chosen, too; then its source is its node's.
                text = "one of the pods answered" if several and answer.source else f"{answer} {answer.by}"
                yield f"{client.name} -> {service.name} {address} {protocol}", text


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_F17_F19_F20_F21_F23_egress_pods_leave_with_the_load_balancer_address(
    scene: Scene, protocol: str, family: Family
) -> None:
    lab = scene.lab
    expected = str(lab.services["web"].addresses[family])
    seen = {pod.name: lab.source_seen(pod, protocol, family) for pod in lab.services["web"].pods}
    assert seen == dict.fromkeys(seen, expected)


def test_other_pods_leave_with_their_nodes_addresses_as_before(scene: Scene) -> None:
    masquerade = scene.lab.options.masquerade
    for node in (NODE1, NODE2, NODE3):
        expected = texts(node.addresses) if masquerade else {"timeout"}
        assert sources(scene.lab, scene.lab.pod(node, 2), 1.0 if masquerade else 0.1) == expected


def test_F16_nodes_leave_with_their_own_addresses(scene: Scene) -> None:
    for node in (NODE1, NODE2, NODE3):
        assert sources(scene.lab, node) == texts(node.addresses)


def test_F12_F15_S7_traffic_inside_the_cluster_and_inbound_is_as_before(scene: Scene) -> None:
    assert scene.after == scene.before
    assert not [line for line in scene.before.items() if "timeout" in line[1]]


def test_every_daemon_is_healthy(scene: Scene) -> None:
    problems = {node.name: daemon.status()["problems"] for node, daemon in scene.lab.daemons.items()}
    assert problems == {"node1": [], "node2": [], "node3": []}


def test_F31_what_belongs_to_others_is_untouched_also_by_a_cleanup(scene: Scene) -> None:
    lab = scene.lab
    for node, daemon in lab.daemons.items():
        assert foreign(lab, node) == scene.foreign_before[node]
        assert any(ours(lab, node).values())
        daemon.stop()
        for _ in range(2):
            done = daemon.command("cleanup")
            assert done.returncode == 0, done.stderr
        assert not any(ours(lab, node).values())
        assert foreign(lab, node) == scene.foreign_before[node]
        strict = lab.namespace(node).run("sysctl", "-n", "net.ipv4.conf.eth0.rp_filter").strip()
        assert strict == str(lab.options.rp_filter)
