"""iptables as the packet filter: what is peculiar to it, and what others do beside it."""

from __future__ import annotations

import dataclasses
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from metaleg_node.core.compare import diff
from metaleg_node.core.firewall.egress import Egress, EgressPod, Treatment
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import DestinationFilter, Slot
from metaleg_node.core.node_state import NodeState
from metaleg_node.kernel import packet_filters, process
from metaleg_node.kernel.iptables.backend import Iptables
from metaleg_node.kernel.nftables.backend import Nftables
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import carry_out, cleanup_plan
from tests.firewalls import FIREWALLS, FULL, addresses, but, networks
from tests.kernel.packet_net import BASE, IPTABLES, LB, NODE, POD, SNAT, STEER, Net, packet_net, without_legacy_programs
from tests.netns import Netns

PROGRAMS = {4: "iptables-legacy", 6: "ip6tables-legacy"}
ALL = networks("0.0.0.0/0")
HOLDS_THE_LOCK = """\
touch {file}; mount --bind {file} /run/xtables.lock || exit
flock /run/xtables.lock sleep 5 &
while flock --nonblock /run/xtables.lock true; do :; done
exec {python} -c 'from tests.firewalls import FULL; from metaleg_node.kernel.iptables.backend import Iptables
Iptables().put(FULL); view = Iptables().observe(); assert (view.firewall, view.damage) == (FULL, ())'
"""


@pytest.fixture
def here(netns: Netns) -> Iterator[Netns]:
    with netns.inside():
        yield netns


@pytest.fixture
def net(netns: Netns) -> Iterator[Net]:
    with packet_net(netns, IPTABLES) as made:
        yield made


def saved(where: Netns) -> str:
    """All rules of both families and all sets, without counters, times and sizes."""
    rules = "".join(where.run(f"{program}-save").stdout for program in PROGRAMS.values())
    listed = re.sub(r"^#.*\n|\[\d+:\d+\]", "", rules, flags=re.MULTILINE) + where.run("ipset", "save").stdout
    return re.sub(r" (hashsize|initval|timeout) \S+", "", listed)


# --- what others do --------------------------------------------------------------------------------------------------

INSERTED = {
    "before us": "-t nat -I POSTROUTING -s 10.0.0.0/8 -j MASQUERADE",
    "after us": "-t nat -A PREROUTING -d 192.0.2.9 -j DNAT --to 192.0.2.10",
    "a second way in": "-t mangle -A INPUT -j METALEG-NODE-FORWARD",
    "into our chain": "-t mangle -I METALEG-NODE-FORWARD -j ACCEPT",
    "a chain that is called as ours are": "-t mangle -N METALEG-NODE-OTHER",
    "the way in taken away": "-t mangle -F POSTROUTING",
}


@pytest.mark.parametrize("program", PROGRAMS.values())
@pytest.mark.parametrize("what", INSERTED)
def test_what_others_insert_or_flush_is_seen_and_put_right_and_theirs_stays(
    here: Netns, what: str, program: str
) -> None:
    ours = Iptables()
    ours.put(FULL)
    before = saved(here)
    rule = INSERTED[what]
    if program == PROGRAMS[6]:
        rule = rule.replace("10.0.0.0/8", "fd00::/8").replace("192.0.2.", "2001:db8::")
    here.run(program, "-w", *rule.split())
    assert ours.changed()
    (one,) = ours.observe().damage
    assert one.reason == "somebody changed it"
    ours.put(FULL)
    ours.forget()
    assert ours.observe().damage == ()
    theirs = {line for line in saved(here).splitlines() if "METALEG-NODE" not in line} - set(before.splitlines())
    assert len(theirs) == (1 if what in ("before us", "after us") else 0), theirs


def test_elements_that_others_change_are_put_right(here: Netns) -> None:
    ours = Iptables()
    ours.put(FULL)
    before = saved(here)
    here.run("ipset", "del", "metaleg4-pods", "10.244.1.2")
    here.run("ipset", "add", "-exist", "metaleg4-pods", "10.244.1.3", "skbmark", "0x3/0x3f000000")
    here.run("ipset", "add", "metaleg4-inside", "203.0.113.0/24")
    here.run("ipset", "create", "metaleg4-unknown", "hash:ip")
    assert ours.changed()
    assert ours.observe().firewall != FULL
    ours.put(FULL)
    assert sorted(saved(here).splitlines()) == sorted(before.splitlines())


def test_rules_of_others_do_not_make_us_write(here: Netns) -> None:
    ours = Iptables()
    ours.put(FULL)
    for program in PROGRAMS.values():
        here.run(program, "-w", "-A", "FORWARD", "-j", "ACCEPT")
        here.run(program, "-w", "-t", "nat", "-I", "OUTPUT", "-j", "ACCEPT")
    assert not ours.changed()


def test_the_lock_of_others_is_waited_for(here: Netns, tmp_path: Path) -> None:
    """A file of its own stands for the lock of the whole machine; ip-netns(8) has a mount namespace."""
    script = HOLDS_THE_LOCK.format(file=tmp_path / "lock", python=sys.executable)
    started = time.monotonic()
    here.run("sh", "-c", script)
    assert time.monotonic() - started > 4


@pytest.mark.parametrize("name", ["full", "routers", "external-ips", "63-slots"])
def test_the_programs_made_of_nf_tables_do_as_well(here: Netns, name: str) -> None:
    """Others' rules among ours are seen, and all of ours goes."""
    with without_legacy_programs():
        ours = Iptables(watch_seconds=0)
        ours.put(FIREWALLS[name])
        ours.forget()
        assert (ours.observe().firewall, ours.observe().damage) == (FIREWALLS[name], ())
        here.run("iptables-nft", "-t", "mangle", "-I", "POSTROUTING", "-j", "ACCEPT")
        assert ours.changed()
        assert len(ours.observe().damage) == 1
        ours.put(FIREWALLS[name])
        ours.forget()
        assert ours.observe().damage == ()
        ours.put(None)
        assert not ours.present()
        assert "METALEG" not in here.run("nft", "list", "ruleset").stdout
    assert "METALEG" not in saved(here)


# --- what is peculiar ------------------------------------------------------------------------------------------------


def test_the_time_of_suspicion_begins_anew_with_each_change(net: Net) -> None:
    net.put(dataclasses.replace(STEER, local=True))
    net.node.run("ipset", "add", "metaleg4-moved", POD, "timeout", "5")
    net.put(dataclasses.replace(SNAT, local=True))
    (left,) = re.findall(rf"add metaleg4-moved {POD} timeout (\d+)", net.node.run("ipset", "save").stdout)
    assert int(left) > 20


def test_a_masquerade_in_front_of_us_carries_no_connection(net: Net) -> None:
    """Its first packet is translated by then, and cannot be stopped; nothing else of it leaves."""
    net.put(SNAT)
    net.iptables("-t nat -I POSTROUTING -s 10.244.0.0/16 -j MASQUERADE")
    server, sender = net.server(), net.open(net.pod, POD)
    assert net.seen(server, sender) == [NODE]
    assert net.seen(server, sender) == []
    assert net.counted("dropped") == 1


@pytest.mark.parametrize("pod", [STEER, SNAT], ids=["steered", "translated"])
@pytest.mark.parametrize("flushed", ["-t nat -F PREROUTING", "-t nat -I PREROUTING -j ACCEPT"])
def test_connections_that_nobody_judged_do_not_leave(net: Net, pod: EgressPod, flushed: str) -> None:
    net.put(pod)
    net.iptables(flushed)
    assert net.seen(net.server(), net.open(net.pod, POD)) == []
    assert net.counted("dropped") == 1


@pytest.mark.parametrize(("pod", "source"), [(STEER, POD), (SNAT, LB)], ids=["steered", "translated"])
def test_a_flush_of_mangle_is_seen_and_what_was_open_goes_on_after_it(net: Net, pod: EgressPod, source: str) -> None:
    net.put(pod)
    server, sender = net.server(), net.open(net.pod, POD)
    assert net.seen(server, sender) == [source]
    with net.filter.watched() as disturbed:
        assert not disturbed()
        net.iptables("-t mangle -F")
        net.iptables("-t mangle -X")
        assert disturbed()
    assert net.filter.changed()
    assert net.filter.observe().damage
    net.put(pod)
    assert net.seen(server, sender, net.open(net.pod, POD)) == [source, source]


@pytest.mark.parametrize(("pod", "seen"), [(STEER, []), (SNAT, [LB])], ids=["steered", "translated"])
def test_a_service_with_an_endpoint_outside_leads_out_where_its_gateway_is(
    net: Net, pod: EgressPod, seen: list[str]
) -> None:
    net.put(pod, inside=BASE.part(Egress).inside | networks("10.96.0.0/12"))
    net.iptables("-t nat -I PREROUTING -d 10.96.0.10 -j DNAT --to-destination 203.0.113.7")
    server, sender = net.server(), net.open(net.pod, POD)
    for _ in range(2):
        sender.sendto(b"x", ("10.96.0.10", 5000))
        assert net.seen(server) == seen


def test_a_thousand_services(net: Net) -> None:
    """A thousand addresses of this gateway: a rule for each, which only the first packet of a connection meets."""
    many = {
        ip_address(f"10.244.{n // 250 + 2}.{n % 250 + 1}"): EgressPod(
            treatment=Treatment.SNAT, slot=Slot(1), source=ip_address(f"198.18.{n // 250}.{n % 250 + 1}")
        )
        for n in range(1000)
    }
    net.put(SNAT)
    few = rules_of(net.node)
    sources = frozenset(pod.source for pod in many.values() if pod.source) | addresses(LB)
    firewall = but(BASE, pods={ip_address(POD): SNAT, **many}, sources=sources)
    net.filter.put(firewall)
    assert rules_of(net.node) - few == Counter({"METALEG-NODE-SOURCE": 1000})
    assert net.seen(net.server(), net.open(net.pod, POD)) == [LB]
    net.filter.forget()
    assert net.filter.observe().firewall == firewall
    net.put(SNAT)
    assert rules_of(net.node) == few


def test_many_filters(net: Net) -> None:
    """Each pod with destinations of its own: a packet meets few of their rules, and one of a pod without any meets
    none; pods and packets of another do not matter."""
    mine, another = (DestinationFilter(**{f: networks("203.0.113.0/24")}) for f in ("exclude", "only"))
    many = [DestinationFilter(exclude=networks(f"10.{n // 256}.{n % 256}.0/24"), only=ALL) for n in range(250)]
    filters = {one.key: one for one in (mine, another, *many)}
    others = {
        ip_address(f"10.244.{n // 250 + 2}.{n % 250 + 1}"): dataclasses.replace(STEER, filter=key)
        for n, key in enumerate(filters)
    }
    net.put(SNAT)
    few = rules_of(net.node)
    server = net.server()
    for key, seen in ((mine.key, NODE), (another.key, LB), ("", LB)):
        pods = {**others, ip_address(POD): dataclasses.replace(SNAT, filter=key)}
        net.put_all(pods=pods, filters=filters)
        assert net.seen(server, net.open(net.pod, POD)) == [seen]
    own = rules_of(net.node) - few
    assert own.pop("METALEG-NODE-JUDGE") == 3
    assert own["METALEG-NODE-FILTERS"] == 2 * 16, "in two tables"
    assert max(n for name, n in own.items() if name.startswith("METALEG-NODE-FILTERS-")) <= 2 * 2 * 32
    net.filter.forget()
    assert net.filter.observe().firewall == but(BASE, pods=pods, filters=filters)


def rules_of(where: Netns) -> Counter[str]:
    """How many rules each of our IPv4 chains has."""
    return Counter(re.findall(r"^-A (METALEG-\S+)", where.run("iptables-legacy-save").stdout, flags=re.MULTILINE))


# --- one packet filter after another ---------------------------------------------------------------------------------

WAYS = [("nftables", "iptables"), ("iptables", "nftables")]
FOUND = {"nftables": Nftables, "iptables": Iptables}


def change_over(machine: Machine, before: Firewall | None, after: Firewall | None) -> list[str]:
    steps = diff.steps(NodeState(firewall=before), NodeState(firewall=after), why=str, former=machine.former)
    done = carry_out(machine, steps)
    assert done.ok, done.problems
    return [str(line) for line in diff.changes(steps)]


@pytest.mark.parametrize(("one", "other"), WAYS)
@pytest.mark.parametrize("pod", [STEER, SNAT], ids=["steered", "translated"])
def test_connections_live_on_when_the_packet_filter_changes(
    net: Net, tmp_path: Path, one: packet_filters.Backend, other: packet_filters.Backend, pod: EgressPod
) -> None:
    firewall = but(BASE, pods={ip_address(POD): pod})
    source = str(pod.source or POD)
    server, client = net.server(socket.SOCK_STREAM), net.open(net.pod, POD, kind=socket.SOCK_STREAM)
    datagrams = net.open(net.world, "203.0.113.7", port=5000)
    with Machine(tmp_path, one) as machine:
        change_over(machine, None, firewall)
        client.connect(server.getsockname())
        accepted, (seen, _) = server.accept()
        net.stack.enter_context(accepted)
        assert seen == source
        machine.use(other)
        assert machine.packet_filter.observe().firewall is None
        told = change_over(machine, None, firewall)
        assert any("another packet filter is in use" in line for line in told)
        client.send(b"question")
        assert accepted.recv(9) == b"question"
        accepted.send(b"answer")
        assert client.recv(9) == b"answer"
        assert net.seen(datagrams, net.open(net.pod, POD)) == [source]
        assert not machine.former
    assert FOUND[one]().observe().firewall is None
    assert FOUND[other]().observe().firewall == firewall


@pytest.mark.parametrize(("one", "other"), WAYS)
def test_cleanup_leaves_nothing_of_either(
    here: Netns, tmp_path: Path, one: packet_filters.Backend, other: packet_filters.Backend
) -> None:
    """Whichever is chosen, and where both hold something."""
    before = saved(here)
    for held in ([one], [one, other]):
        for name in held:
            FOUND[name]().put(FULL)
        with Machine(tmp_path, other) as machine:
            machine.use_what_holds()
            assert carry_out(machine, cleanup_plan(machine).steps).ok
        assert not here.run("nft", "list", "ruleset").stdout
        assert lines(saved(here)) - lines(before) == set()


def lines(text: str) -> set[str]:
    """Those that are about more than the tables and chains of the system, which stay once they were looked at."""
    return {line for line in text.splitlines() if not re.match(r"\*|:[A-Z]+ ACCEPT|COMMIT", line)}


# --- which one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "kind"),
    [
        (["nft", "iptables-restore", "ip6tables-restore", "ipset"], Nftables),
        (["iptables-restore", "ip6tables-restore", "ipset"], Iptables),
        (["iptables-restore", "ip6tables-restore"], Nftables),
        ([], Nftables),
    ],
)
def test_iptables_is_chosen_where_there_is_no_nftables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], kind: type
) -> None:
    for name in there:
        (tmp_path / name).symlink_to(process.find("true"))
    monkeypatch.setattr(process, "SEARCH_PATH", str(tmp_path))
    assert isinstance(packet_filters.chosen("auto")[0], kind)
    assert isinstance(packet_filters.chosen("iptables")[0], Iptables)
    assert isinstance(packet_filters.chosen("nftables")[0], Nftables)
