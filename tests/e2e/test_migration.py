"""docs/migration.md and its scripts, word by word: no packet with a wrong source, no answer lost, nothing left."""

from __future__ import annotations

import re
import socket
import textwrap
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from metaleg_node.core.model import FAMILIES
from metaleg_node.import_env.translation import Environment, translate
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import NODES, SERVER, SERVER_PORT, LabNode, LabService
from tests.e2e import old_rules, second_way
from tests.e2e.scenario import (
    NODE1,
    NODE3,
    SETTLED,
    Flows,
    egress_service,
    expect,
    expect_no_way_out,
    foreign,
    ours,
    sources,
    texts,
)
from tests.e2e.second_way import L2_PATH, POOL_NETWORK, ROUTER2, SecondWay, l2
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions
from tests.lab.probes import open_tcp
from tests.lab.server import Server
from tests.netns import Netns

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "migration.md"
SCRIPTS = ROOT / "etc" / "metaleg-node" / "examples"


def commands(heading: str) -> str:
    """The first block of commands below a heading of the document."""
    _, _, below = DOCUMENT.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    block = re.search(r"^( *)```sh\n(.*?)^\1```$", below, re.MULTILINE | re.DOTALL)
    assert block, heading
    return textwrap.dedent(block[2])


def carry_out(here: Namespace, script: str) -> None:
    """Not every command succeeds, nor should it: what counts is what the kernel holds afterwards."""
    here.run("bash", "-c", f"{script}\ntrue")


def imported(environment: dict[str, str]) -> dict[str, Any]:
    """What `import-env` makes of an environment, for a daemon of the lab."""
    return tomllib.loads(translate(Environment(variables=environment), file="F").text)


class Old:
    """A lab with an egress Service, and its ExitStack."""

    def __init__(self, stack: ExitStack, flavour: Flavour) -> None:
        self.stack = stack
        self.lab = stack.enter_context(Lab(LabOptions(flavour=flavour, forward_drop=True)))
        self.lab.set_services(egress_service(self.lab))
        for node in NODES:
            old_rules.make_mangle(self.lab, node)

    @property
    def web(self) -> LabService:
        return self.lab.services["web"]

    def start(self, node: LabNode, config: dict[str, Any]) -> None:
        daemon = self.lab.daemons[node]
        daemon.configure(config)
        self.stack.callback(daemon.kill)
        daemon.start()
        daemon.wait_ready()

    def connect(self) -> list[socket.socket]:
        """An established connection of each pod in each family."""
        found = []
        for pod in self.web.pods:
            for family in FAMILIES:
                connection = open_tcp(self.lab.namespace(pod), SERVER[family], SERVER_PORT, SETTLED)
                found.append(self.stack.enter_context(connection))
        return found

    @contextmanager
    def judged(self, connections: list[socket.socket]) -> Iterator[None]:
        """Flows of the pods while the block runs; then nothing but the LoadBalancer's addresses may have come out, and
        the connections must live."""
        wanted = texts(self.web.addresses)
        self.lab.reset_seen()
        with Flows(self.lab, self.web.pods) as flows:
            yield
            for pod in self.web.pods:
                expect(self.lab, pod, wanted)
            assert {source_of(connection) for connection in connections} == wanted
        assert self.lab.seen() == set(self.web.addresses.values())
        lost = flows.answers.pop("none", 0)
        assert set(flows.answers) == wanted
        assert lost < flows.answers.total() / 50, "no interruption"


def source_of(connection: socket.socket) -> str:
    """What the server sees of an established connection."""
    connection.sendall(b"still there?\n")
    return connection.recv(2048).split()[0].decode()


@pytest.fixture
def old(flavour: Flavour) -> Iterator[Old]:
    with ExitStack() as stack:
        yield Old(stack, flavour)


EITHER = pytest.mark.parametrize("flavour", [Flavour.IPTABLES_NFT, Flavour.IPTABLES_LEGACY])


# --- metaleg ---------------------------------------------------------------------------------------------------------

METALEG = {"METALLB_NAMESPACE": "metallb-system", "FIREWALL_MASK": "0x00F00000", "ROUTE_TABLE_ID_OFFSET": "100000"}


def leftovers_of_metaleg(lab: Lab) -> str:
    return f'tools="{old_rules.tools(lab)}" bash {SCRIPTS / "remove-metaleg.sh"}'


@pytest.mark.parametrize(
    ("flavour", "order"),
    [(Flavour.IPTABLES_NFT, NODES), (Flavour.IPTABLES_LEGACY, NODES[::-1])],
    ids=["the pod's node first", "the gateway first"],
)
def test_from_metaleg_node_by_node(old: Old, order: tuple[LabNode, ...]) -> None:
    lab = old.lab
    before = {node: foreign(lab, node) for node in NODES}
    old_rules.install_metaleg(lab, old.web)
    for pod in old.web.pods:
        assert sources(lab, pod) == texts(old.web.addresses)
    connections = old.connect()
    config = imported(METALEG)
    with old.judged(connections):
        for node in order:
            old.start(node, config)
            for pod in old.web.pods:
                assert sources(lab, pod) == texts(old.web.addresses), f"after the start on {node.name}"
    with old.judged(connections):
        for node in order:
            carry_out(lab.namespace(node), leftovers_of_metaleg(lab))
    assert {node: foreign(lab, node) for node in NODES} == before
    assert [lab.namespace(node).run("ipset", "list", "-n") for node in NODES] == [""] * len(NODES)


@pytest.mark.parametrize("flavour", [Flavour.IPTABLES_NFT])
def test_plan_beside_metaleg_only_adds_unless_numbers_collide(old: Old) -> None:
    old_rules.install_metaleg(old.lab, old.web)
    daemon = old.lab.daemons[NODE1]
    config = imported(METALEG)
    daemon.configure(config)
    lines = daemon.command("plan").stdout.splitlines()[:-1]
    assert lines
    assert [line for line in lines if not line.startswith("+")] == []
    daemon.configure({**config, "firewall": {"route_table_base": 100000}})
    removed = [line for line in daemon.command("plan").stdout.splitlines() if line.startswith("-")]
    assert [line.split()[1] for line in removed] == ["route"] * 4 + ["rule"] * 2


@EITHER
def test_back_to_metaleg(old: Old) -> None:
    lab = old.lab
    config = imported(METALEG)
    for node in NODES:
        old.start(node, config)
    connections = old.connect()
    with old.judged(connections):
        for node in NODES:
            assert lab.daemons[node].stop() == 0
        old_rules.install_metaleg(lab, old.web)
        # The kernel puts rules without a priority in front of all but the first.
        assert "\n4699:\tfrom all fwmark 0x200000/0xf00000" in lab.namespace(NODE1).run("ip", "rule")
        for node in NODES:
            rule, _, command = commands("### Going back").strip().rpartition("\n")
            assert command == "metaleg-node cleanup"
            carry_out(lab.namespace(node), rule.replace("iptables ip6tables", old_rules.tools(lab)))
            assert lab.daemons[node].command("cleanup").returncode == 0
            assert not any(ours(lab, node).values())
            for pod in old.web.pods:
                assert sources(lab, pod) == texts(old.web.addresses), f"after the cleanup on {node.name}"


@pytest.mark.parametrize("flavour", [Flavour.IPTABLES_NFT])
def test_a_rule_of_metaleg_that_is_late_costs_packets_but_shows_no_wrong_source(old: Old) -> None:
    lab = old.lab
    for node in NODES:
        old.start(node, imported(METALEG))
    old_rules.install_metaleg(lab, old.web)
    lab.reset_seen()
    with Flows(lab, old.web.pods):
        lab.failover("web", NODE3)
        expect_no_way_out(lab, lab.pod(NODE1))
        for node in NODES:
            carry_out(lab.namespace(node), leftovers_of_metaleg(lab))
        for pod in old.web.pods:
            expect(lab, pod, texts(old.web.addresses))
    assert lab.seen() == set(old.web.addresses.values())


# --- return paths ----------------------------------------------------------------------------------------------------


class OldWay:
    """A program on node1 that serves a LoadBalancer address of the node's own, as IPVS and host addresses have it, to a
    client whose answers must leave by eth1."""

    def __init__(self, stack: ExitStack) -> None:
        self.lab = stack.enter_context(Lab(LabOptions(flavour=Flavour.IPTABLES_NFT)))
        self.second = stack.enter_context(SecondWay(self.lab, addresses=True))
        self.service = LabService(name="host", number=0, pods=(), gateway=None, labelled=False)
        self.node = self.lab.namespace(NODE1)
        self.node.ip(f"address add {address} dev lo" for address in self.service.addresses.values())
        self.second.announce(self.service, NODE1)
        server = Server()
        stack.callback(server.stop)
        server.listen(self.node, "host", SERVER_PORT)
        server.start()
        peers = [second_way.peer(f"p-{f}", ROUTER2[f]) for f in FAMILIES]
        self.objects = [*second_way.BOTH_POOLS, second_way.advertisement("all"), *peers]
        self.lab.write_state([*self.lab.cluster_objects(), *self.objects])
        self.stack = stack

    def install(self, table: int, priority: str) -> None:
        """What metallb-node-route-agent or a person had put there: a rule for the pool, a table by the router."""
        for f in FAMILIES:
            self.node.ip([f"route add default via {ROUTER2[f]} dev eth1 table {table}"])
            rule = f"rule add from {POOL_NETWORK[f]} lookup {table} {priority}"
            self.node.run("ip", f"-{f}", *rule.split())

    def connect(self) -> list[socket.socket]:
        """A new connection of the client in each family. Raises OSError."""
        client = self.second.machine("client")
        return [open_tcp(client, self.service.addresses[f], SERVER_PORT, 1.0) for f in FAMILIES]

    @contextmanager
    def answered(self) -> Iterator[None]:
        """The client connects again and again while the block runs, and keeps its first connections: none may fail."""
        first, ending = self.connect(), threading.Event()
        failed: list[OSError] = []

        def ask() -> None:
            while not ending.is_set():
                try:
                    for connection in self.connect():
                        with connection:
                            source_of(connection)
                except OSError as error:
                    failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()
        assert failed == []
        for connection in first:
            with connection:
                assert source_of(connection) in map(str, second_way.CLIENT.values())

    def start(self, config: dict[str, Any]) -> None:
        daemon = self.lab.daemons[NODE1]
        daemon.configure(config)
        self.stack.callback(daemon.kill)
        daemon.start()
        daemon.wait_ready()


AGENT = {"TABLE_WEIGHT": "20", "RULE_PRIORITY": "20", "METALLB_USE_CRDS": "1"}
FROM_AGENT = ("## From metallb-node-route-agent", 20, "priority 20")
BY_HAND = ("## From routing written by hand", 100, "")


def beside_the_agent() -> dict[str, Any]:
    config = imported(AGENT)
    config["return_path"]["bgp"]["table"] = 21
    return config


@pytest.mark.parametrize(
    ("heading", "table", "priority", "config"),
    [(*FROM_AGENT, beside_the_agent()), (*BY_HAND, l2(L2_PATH))],
    ids=["metallb-node-route-agent", "by hand"],
)
def test_return_paths_without_losing_an_answer(heading: str, table: int, priority: str, config: dict[str, Any]) -> None:
    with ExitStack() as stack:
        way = OldWay(stack)
        before = foreign(way.lab, NODE1)
        way.install(table, priority)
        installed = foreign(way.lab, NODE1)
        with way.answered():
            way.start(config)
            assert foreign(way.lab, NODE1) == installed, "both are there"
            carry_out(way.node, commands(heading))
            assert foreign(way.lab, NODE1) == before, "only ours is there"
            # Now with its rules alone.
            for connection in way.connect():
                connection.close()
        with way.answered():
            assert way.lab.daemons[NODE1].stop() == 0
            way.install(table, priority)
            assert way.lab.daemons[NODE1].command("cleanup").returncode == 0
            assert not any(ours(way.lab, NODE1).values())


# --- network-node-manager --------------------------------------------------------------------------------------------


def test_nothing_of_network_node_manager_is_left(netns: Netns) -> None:
    def saved() -> str:
        texts = [netns.run(f"{tool}-save").stdout for tool in ("iptables", "ip6tables")]
        return re.sub(r"^#.*\n|\[\d+:\d+\]", "", "".join(texts), flags=re.MULTILINE)

    for family in FAMILIES:
        tool = "iptables-restore" if family == 4 else "ip6tables-restore"
        netns.run(tool, stdin=old_rules.EVERYBODYS)
    before = saved()
    for family in FAMILIES:
        tool = "iptables-restore" if family == 4 else "ip6tables-restore"
        netns.run(tool, "--noflush", stdin=old_rules.node_manager(family))
    assert "NMANAGER_EX_CLUS_OUTPUT" in saved()
    netns.run("bash", str(SCRIPTS / "remove-network-node-manager.sh"))
    assert saved() == before
