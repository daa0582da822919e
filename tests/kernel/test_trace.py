"""Packets that are followed: what is told is what happened to them, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from metaleg_node.core.explain.following import Followed, Outcome, Traced
from metaleg_node.core.explain.targets import Destination
from metaleg_node.core.firewall.egress import EgressPod, Treatment
from metaleg_node.core.firewall.return_paths import PathRouter, ReturnPath
from metaleg_node.core.model import Holder, Match, Slot
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.nftables import trace_words
from metaleg_node.kernel.nftables.layout import render
from metaleg_node.kernel.nftables.trace import PREFIX, Tracer
from metaleg_node.lab.daemons import wait_until
from tests.firewalls import FIREWALLS, networks
from tests.kernel.packet_net import (
    HOLD,
    LB,
    NEAR,
    NODE,
    PLAIN,
    POD,
    POD6,
    PORT,
    SNAT,
    STEER,
    WEB,
    WEB6,
    Net,
    packet_net,
)
from tests.netns import Netns
from tests.patience import patient

ELSEWHERE = EgressPod(treatment=Treatment.ELSEWHERE)


@pytest.fixture
def net(netns: Netns) -> Iterator[Net]:
    with packet_net(netns) as net:
        yield net


def traced(*texts: str, to: str = "", port: int = 0) -> Traced:
    end = Destination(address=ip_address(to), port=port, protocol="udp" if port else "") if to else None
    return Traced(addresses=[ip_address(text) for text in texts], to=end)


def first(net: Net, *sent: tuple[str, str], what: Traced | None = None) -> Followed:
    """What is told first of datagrams from one address to another."""
    with Tracer(what or traced(POD, POD6)) as tracer:
        for source, to in sent:
            net.open(net.pod, source).sendto(b"x", (to, PORT))
        return next(tracer.follow(patient(10)))


WAYS: dict[str, tuple[EgressPod | None, str, str, Outcome, str, str]] = {
    "steered": (STEER, POD, WEB, Outcome.LEFT, f"leaves by eth0 with source {POD}", "egress: marked for its gateway"),
    "steered, IPv6": (STEER, POD6, WEB6, Outcome.LEFT, f"leaves by eth0 with source {POD6}", "bound to its own source"),
    "translated": (SNAT, POD, WEB, Outcome.LEFT, f"leaves by eth0 with source {LB}", "translated to the LoadBalancer"),
    "no egress pod": (None, POD, WEB, Outcome.LEFT, f"leaves by eth0 with source {NODE}", "accept"),
    "inside": (STEER, POD, NEAR, Outcome.LEFT, f"leaves by eth0 with source {NODE}", "no egress: its destination is"),
    "to the node": (STEER, POD, NODE, Outcome.DELIVERED, "is for this host itself", "no egress: its destination is"),
    "held": (HOLD, POD, WEB, Outcome.DROPPED, "table inet metaleg_node, chain hold", "held: there is no way out now"),
    "elsewhere": (ELSEWHERE, POD, WEB, Outcome.DROPPED, "chain elsewhere", "dropped: this node is not its gateway"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_packets_way_is_told_in_words_with_its_end(net: Net, way: str) -> None:
    treated, source, to, outcome, end, words = WAYS[way]
    net.put(treated)
    told = first(net, (source, to))
    assert told.packet.startswith(f"udp {source} port ")
    assert f" to {to} port {PORT}, in by pod0" in told.packet
    assert (told.outcome, end in told.text) == (outcome, True)
    assert any(meeting.text.startswith(words) for meeting in told.meetings), told.meetings
    masquerade = [meeting for meeting in told.meetings if meeting.place == "table inet cni, chain post"]
    assert bool(masquerade) == (way in ("no egress pod", "inside")), "chains of others are told by their names"


def test_an_answer_that_leaves_by_the_router_of_its_request_is_told(net: Net) -> None:
    link = net.world.run("cat", "/sys/class/net/eth0/address").stdout.strip()
    path = ReturnPath(holder=Holder.read("path:p"), networks=networks("192.0.2.0/24"))
    router = PathRouter(holder=Holder.read("router:p:r"), path=Slot(3), family=4, interface="eth0", link_address=link)
    net.put_all(paths={Slot(3): path}, routers={Slot(5): router}, match=frozenset({Match.CONNTRACK}))
    rules = f"chain pre {{ type nat hook prerouting priority dstnat; ip daddr {LB} dnat to {POD}; }}"
    net.node.run("nft", "-f", "-", stdin=f"table ip proxy {{ {rules}\n}}\n")
    server, client = net.open(net.pod, POD, port=PORT), net.open(net.world, WEB)
    with Tracer(traced(POD)) as tracer:
        client.sendto(b"question", (LB, PORT))
        server.sendto(b"answer", server.recvfrom(9)[1])
        told = next(tracer.follow(patient(10)))
    assert "a reply: marked for the router that brought its request" in {meeting.text for meeting in told.meetings}
    assert told.text == f"leaves by eth0 with source {LB}"


def test_what_routing_drops_is_told_as_lost(net: Net) -> None:
    net.put(STEER)
    net.node.run("ip", "route", "replace", "unreachable", "default", "table", "1000001")
    told = first(net, (POD, WEB))
    assert told.outcome is Outcome.LOST
    assert "routing" in told.text


def test_a_translated_destination_does_not_lose_the_packet(net: Net) -> None:
    rules = f"chain pre {{ type nat hook prerouting priority dstnat; ip daddr {WEB} udp dport {PORT} dnat to {NEAR}; }}"
    net.node.run("nft", "-f", "-", stdin=f"table ip proxy {{ {rules}\n}}\n")
    net.put(STEER)
    told = first(net, (POD, WEB))
    assert (told.outcome, told.text) == (Outcome.LEFT, f"leaves by eth0 with source {NODE}")


def test_only_what_is_asked_for_is_followed_and_no_flood(net: Net) -> None:
    net.put(STEER)
    assert f" to {NEAR} " in first(net, (PLAIN, WEB), (POD, WEB), (POD, NEAR), what=traced(POD, to=NEAR)).packet
    assert first(net, (POD, WEB), what=traced(POD, to=WEB, port=PORT)).outcome is Outcome.LEFT
    with Tracer(traced(POD)) as tracer:
        sender = net.open(net.pod, POD)
        for _ in range(500):
            sender.sendto(b"x", (WEB, PORT))
        assert 10 <= len([*tracer.follow(1.5)]) <= 40


def test_of_tcp_only_what_begins_a_connection_is_followed(net: Net) -> None:
    net.put(STEER)
    server, client = net.server(socket.SOCK_STREAM), net.open(net.pod, POD, kind=socket.SOCK_STREAM)
    with Tracer(traced(POD)) as tracer:
        client.connect((WEB, PORT))
        with server.accept()[0] as connection:
            client.sendall(b"x" * 100_000)
            assert connection.recv(10)
        (told,) = tracer.follow(1.5)
    assert told.packet.startswith(f"tcp {POD} port ")


# --- nothing stays ---------------------------------------------------------------------------------------------------


def tables(net: Net) -> list[str]:
    listed = net.node.run("nft", "list", "tables").stdout.splitlines()
    return [line for line in listed if line.startswith(f"table {PREFIX}")]


def test_the_table_is_gone_after_the_block_and_after_an_error_in_it(net: Net) -> None:
    seen = []

    def fail() -> None:
        with Tracer(traced(POD)):
            seen.extend(tables(net))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(seen) == 1
    assert tables(net) == []


@contextmanager
def tracing(net: Net) -> Iterator[subprocess.Popen[str]]:
    """The command, once it says that it waits."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config, ExitStack() as stack:
        print("# as it comes", file=config, flush=True)
        argv = [sys.executable, "-m", "metaleg_node", "--config", config.name, "trace", POD, "--seconds", "600"]
        command = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        assert command.stdout
        assert command.stdout.readline().startswith(f"waiting 600 s for what {POD} sends")
        assert tables(net) == [f"table {PREFIX}{command.pid}"]
        yield command
    assert wait_until(lambda: tables(net) == [], patient(10))


def test_kill_9_leaves_nothing_in_the_kernel(net: Net) -> None:
    with tracing(net) as command:
        command.kill()
    assert command.returncode == -signal.SIGKILL


def test_two_trace_side_by_side_and_an_interrupt_ends_one_in_order(net: Net) -> None:
    net.put(STEER)
    with tracing(net) as command:
        assert first(net, (POD, WEB)).outcome is Outcome.LEFT
        assert command.stdout
        lines = [command.stdout.readline() for _ in range(3)]
        assert lines[0].startswith(f"udp {POD} port ")
        while not command.stdout.readline().startswith("  => leaves by eth0"):
            pass
        command.send_signal(signal.SIGINT)
        assert command.wait(patient(10)) == 0


def test_without_the_right_to_it_is_refused_in_one_sentence(net: Net) -> None:
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            with Tracer(traced(POD)):
                os._exit(1)
        except KernelError as error:
            os._exit(0 if "\n" not in str(error) else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tables(net) == []


def test_every_chain_that_has_words_is_one_of_ours() -> None:
    """Or they would be told of nothing, once a chain has another name."""
    chains = {name for firewall in FIREWALLS.values() for name in render(firewall).chains}
    missing = [name for name, _ in trace_words._WORDS if not any(c == name or c.startswith(f"{name}_") for c in chains)]
    assert missing == []
    # Those of no end of their own.
    unsaid = {"path_prerouting", "path_output", "path_prerouting_source", "path_output_source", "path_replies"}
    named = [name for name, _ in trace_words._WORDS]
    paths = {c for c in chains - unsaid if c.startswith("path_")}
    assert [c for c in sorted(paths) if not any(c == name or c.startswith(f"{name}_") for name in named)] == []
