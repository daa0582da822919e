"""What explain says is what happens: the source that it names is the one that the server outside sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.kernel import process
from metaleg_node.lab.plan import NODES, SERVER, SERVER_PORT, LabNode, LabPod, LabService
from tests.e2e.path_scene import scene
from tests.e2e.scenario import NODE1, NODE2, SETTLED, egress_service
from tests.e2e.second_way import CLIENT, l2
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Each node has applied once, and no daemon runs."""
    with Lab(LabOptions(flavour=Flavour.IPTABLES_LEGACY)) as lab:
        lab.set_services(
            egress_service(lab),
            LabService(name="plain", number=1, pods=(lab.pod(NODE1, 2),), gateway=None, labelled=False),
        )
        for node in NODES:
            lab.daemons[node].configure({})
            apply(lab, node)
        yield lab


def apply(lab: Lab, node: LabNode) -> None:
    assert lab.daemons[node].command("apply").returncode == 0


def explain(lab: Lab, node: LabNode, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit status and the answers."""
    done = lab.daemons[node].command("explain", *words, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["answers"]


def held(answer: dict[str, Any]) -> dict[str, str]:
    """What is told of the kernel, by step."""
    return {step["name"]: step["kernel"] for one in answer["nodes"] for step in one["steps"] if step["kernel"]}


def server(family: Family) -> str:
    return f"{SERVER[family]}" if family == 4 else f"[{SERVER[6]}]"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", [1, 2], ids=["steered", "on the gateway"])
def test_the_source_that_explain_names_is_the_one_that_the_server_sees(lab: Lab, family: Family, number: int) -> None:
    pod = LabPod(node=LabNode(number=number), number=1)
    seen = lab.source_seen(pod, "tcp", family)
    for node in NODES:
        code, (answer,) = explain(lab, node, str(pod.addresses[family]), "--to", f"{server(family)}:{SERVER_PORT}/tcp")
        assert (code, answer["verdict"], answer["kernel"]) == (0, "leaves", "same")
        assert (answer["source"], answer["gateway"]) == (seen, NODE2.name)
        if node == pod.node:
            (bound,) = answer["connections"]
            assert f"its source becomes {seen}" in bound if pod.node == NODE2 else "its source stays" in bound


def test_a_pod_of_a_service_without_the_label_leaves_with_the_nodes_address(lab: Lab) -> None:
    code, answers = explain(lab, NODE1, "default/pod1-2")
    assert (code, {answer["verdict"] for answer in answers}) == (0, {"untouched"})
    assert all("Service default/plain has it, but not the label" in answer["text"] for answer in answers)
    assert lab.source_seen(lab.pod(NODE1, 2)) == str(NODE1.addresses[4])


DRIFT = {
    "the table": ("nft flush ruleset", {"treatment", "source", "way"}),
    "a chain": ("nft flush chain inet metaleg_node steer_1", {"destination", "treatment", "source"}),
    "the rule": ("ip -4 rule flush proto 201", {"rule", "way"}),
    "the route": ("ip -4 route replace default via 192.168.10.13 table 1000001 proto 201", {"route", "way"}),
    "a rule before ours": ("ip rule add priority 100 from 10.244.1.0/24 lookup main", {"way"}),
}


@pytest.mark.parametrize("name", DRIFT)
def test_what_the_kernel_holds_otherwise_is_told(lab: Lab, name: str) -> None:
    command, wanted = DRIFT[name]
    words = (str(lab.pod(NODE1).addresses[4]), "--to", str(SERVER[4]))
    lab.namespace(NODE1).run(*command.split())
    code, (answer,) = explain(lab, NODE1, *words)
    if name == "a rule before ours":
        lab.namespace(NODE1).run(*command.replace("add", "delete").split())
    apply(lab, NODE1)
    assert (code, answer["verdict"], answer["kernel"]) == (1, "leaves", "differs")
    differing = {name for name, told in held(answer).items() if told == "differs"}
    # Without the table the way is still there: only nobody marks for it.
    assert differing == wanted - ({"way"} if name == "the table" else set())
    assert "not what the kernel of this node holds" in answer["text"]
    code, (answer,) = explain(lab, NODE1, *words)
    assert (code, answer["kernel"]) == (0, "same")


def test_who_may_not_look_into_the_packet_filter_is_told_the_rest(lab: Lab) -> None:
    daemon = lab.daemons[NODE1]
    for path in (daemon.config_file.parent, *daemon.config_file.parent.parents):
        if path.stat().st_uid == os.getuid() and path.name.startswith("metaleg-lab-"):
            path.chmod(0o755)
    argv = daemon._argv("explain", "default/web", "--json")
    nobody = [process.find("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
    at = argv.index(daemon.python)
    done = process.run([argv[0].rsplit("/", 1)[-1], *argv[1:at], *nobody, *argv[at:]])
    answers = json.loads(done.stdout)["answers"]
    assert done.returncode == 1
    assert {answer["verdict"] for answer in answers} == {"leaves"}
    assert {answer["kernel"] for answer in answers} == {"?"}
    assert {held(answer)["rule"] for answer in answers} == {"same"}


def test_a_service_and_its_failover_are_told(lab: Lab) -> None:
    code, answers = explain(lab, NODE1, "default/web")
    assert (code, [answer["gateway"] for answer in answers]) == (0, [NODE2.name, NODE2.name])
    lab.failover("web", None)
    code, answers = explain(lab, NODE1, "default/web")
    lab.failover("web", NODE2)
    assert (code, {answer["why_not"]["code"] for answer in answers}) == (1, {"no-gateway"})
    assert all(answer["look_at"].startswith("kubectl ") for answer in answers)
    assert explain(lab, NODE1, "default/web")[0] == 0


def test_people_get_the_answer_first_and_a_mistake_in_one_line(lab: Lab) -> None:
    daemon = lab.daemons[NODE1]
    done = daemon.command("explain", "10.244.1.2", "--to", str(SERVER[4]))
    first, *rest = done.stdout.splitlines()
    assert first == (
        f"default/pod1-1 (10.244.1.2 on node1) to {SERVER[4]}: leaves through node2 with source 192.0.2.200"
    )
    assert rest[0] == "  node1, this node"
    for words in (["203.0.113.77"], ["default/nobody"]):
        done = daemon.command("explain", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_trace_follows_a_pod_by_its_name_up_to_the_source_that_leaves(lab: Lab) -> None:
    argv = lab.daemons[NODE2]._argv("trace", "default/pod1-1", "--to", f"{SERVER[4]}:{SERVER_PORT}/tcp")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        assert command.stdout.readline().startswith("waiting 30 s for what 10.244.1.2 sends")
        seen = lab.source_seen(lab.pod(NODE1))
        lines = iter(command.stdout.readline, f"  => leaves by eth0 with source {seen}\n")
        assert any(line.startswith("  translated to the LoadBalancer address") for line in lines)
        command.send_signal(signal.SIGINT)
        assert command.wait(SETTLED) == 0


def test_replies_by_a_return_path_are_told_as_they_go() -> None:
    with ExitStack() as stack:
        here = scene(stack, LabOptions(flavour=Flavour.IPTABLES_LEGACY))
        daemon, address = here.lab.daemons[NODE1], here.services[0].addresses
        daemon.configure(l2(match=["conntrack"]))
        apply(here.lab, NODE1)
        for family in FAMILIES:
            words = (str(address[family]), "--to", str(CLIENT[family]))
            code, (answer,) = explain(here.lab, NODE1, *words)
            assert (code, answer["verdict"], answer["kernel"]) == (0, "returns", "same")
            assert held(answer) == dict.fromkeys(("match", "rule", "route", "way"), "same")
        here.lab.namespace(NODE1).ip(["link set eth1 down"])
        code, (answer,) = explain(here.lab, NODE1, str(address[4]))
        assert (code, answer["why_not"]["text"]) == (1, "interface eth1 is down")
