"""What others remove or change in our table, rules, routes and sysctls is back within a second, and counted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from metaleg_node.kernel import process
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import LabNode
from tests.e2e.scenario import NODE1, NODE2, SECOND, SETTLED, egress_service, expect, foreign, ours, texts
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions

TABLE = "inet metaleg_node"


def _nft(*commands: str) -> Callable[[Lab, LabNode], None]:
    return lambda lab, node: void(lab.namespace(node).run("nft", "-f", "-", stdin="\n".join(commands)))


def _ip(*commands: str) -> Callable[[Lab, LabNode], None]:
    return lambda lab, node: void([lab.namespace(node).run("ip", *command.split()) for command in commands])


def _sysctl(*settings: str) -> Callable[[Lab, LabNode], None]:
    return lambda lab, node: void(lab.namespace(node).run("sysctl", "-q", "-w", *settings))


def void(_: object) -> None:
    """Drops a result."""


def _delete_a_rule(lab: Lab, node: LabNode) -> None:
    listing = lab.namespace(node).run("nft", "-a", "list", "chain", *TABLE.split(), "postrouting")
    (line,) = [line for line in listing.splitlines() if "vmap" in line]
    handle = line.split()[-1]
    lab.namespace(node).run("nft", "delete", "rule", *TABLE.split(), "postrouting", "handle", handle)


POD, POD6 = "10.244.1.2", "fd00:244:0:1::2"
DAMAGES: dict[str, tuple[LabNode, Callable[[Lab, LabNode], None]]] = {
    "F41 flush of the whole ruleset on the pod's node": (NODE1, _nft("flush ruleset")),
    "F41 flush of the whole ruleset on the gateway": (NODE2, _nft("flush ruleset")),
    "our table deleted": (NODE1, _nft(f"delete table {TABLE}")),
    "our table flushed of its rules": (NODE2, _nft(f"flush table {TABLE}")),
    "a rule deleted": (NODE2, _delete_a_rule),
    "a rule put in front": (NODE1, _nft(f"insert rule {TABLE} prerouting accept")),
    "a pod deleted from the map": (NODE1, _nft(f"delete element {TABLE} pods4 {{ {POD} }}")),
    "a pod sent to another chain": (
        NODE1,
        _nft(f"delete element {TABLE} pods4 {{ {POD} }}", f"add element {TABLE} pods4 {{ {POD} : 6d00:1 }}"),
    ),
    "a pod translated to another address": (
        NODE2,
        _nft(f"delete element {TABLE} snat4 {{ {POD} }}", f"add element {TABLE} snat4 {{ {POD} : 192.0.2.9 }}"),
    ),
    "F14 an element added to the networks inside": (NODE1, _nft(f"add element {TABLE} inside4 {{ 198.51.100.0/24 }}")),
    "F40 the IPv4 rule deleted": (NODE1, _ip("-4 rule delete priority 4700")),
    "F40 the IPv6 rule deleted": (NODE1, _ip("-6 rule delete priority 4700")),
    "F40 every rule of ours flushed": (NODE1, _ip("-4 rule flush proto 201", "-6 rule flush proto 201")),
    "the IPv4 route deleted": (NODE1, _ip("-4 route delete default via 192.168.10.12 table 1000001")),
    "the IPv6 route deleted": (NODE1, _ip("-6 route delete default via fd00:10::12 table 1000001")),
    "the unreachable route deleted": (
        NODE1,
        _ip("-4 route delete unreachable default metric 4278198272 table 1000001"),
    ),
    "the whole table flushed": (NODE1, _ip("-4 route flush table 1000001", "-6 route flush table 1000001")),
    "the route led elsewhere": (NODE1, _ip("-4 route replace default via 192.168.10.13 table 1000001 proto 201")),
    "the IPv6 route given a source": (
        NODE1,
        _ip("-6 route replace default via fd00:10::12 dev eth0 metric 1024 proto 201 table 1000001 src fd00:10::11"),
    ),
    "the unreachable IPv6 route made a blackhole": (
        NODE1,
        _ip("-6 route replace blackhole default metric 4278198272 table 1000001 proto 201"),
    ),
    "a second IPv4 route before ours": (
        NODE1,
        _ip("route prepend default via 192.168.10.13 dev eth0 proto 201 table 1000001"),
    ),
    "a second IPv4 route after ours": (
        NODE1,
        _ip("route append default via 192.168.10.13 dev eth0 proto 201 table 1000001"),
    ),
    "a foreign route in our table": (NODE1, _ip("route add 198.51.100.0/24 via 192.168.10.1 table 1000001")),
    "strict rp_filter on the pod's node": (NODE1, _sysctl("net.ipv4.conf.eth0.rp_filter=1")),
    "strict rp_filter on the gateway": (NODE2, _sysctl("net.ipv4.conf.eth0.rp_filter=1")),
    "every rp_filter as sysctl --system sets it": (
        NODE1,
        _sysctl(*(f"net.ipv4.conf.{name}.rp_filter=1" for name in ("all", "default", "eth0"))),
    ),
}


@pytest.fixture(scope="module")
def mended() -> Iterator[Lab]:
    """One lab for all damages, since each is repaired. The settings are those of `running`, but reverse paths are
    checked strictly, so that there is a sysctl to change."""
    with Lab(LabOptions(flavour=Flavour.IPTABLES_LEGACY, forward_drop=True, rp_filter=1)) as lab:
        lab.set_services(egress_service(lab))
        lab.start_daemons()
        yield lab


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_repaired_within_a_second_and_counted(mended: Lab, name: str) -> None:
    node, damage = DAMAGES[name]
    counted = _repairs(mended, node)
    before = _seen(mended, node)
    damage(mended, node)
    began = time.monotonic()
    repaired = wait_until(lambda: _seen(mended, node) == before, SETTLED)
    taken = time.monotonic() - began
    assert repaired, _difference(before, _seen(mended, node))
    assert taken < SECOND, f"took {taken:.2f} s"
    web = mended.services["web"]
    for pod in web.pods:
        expect(mended, pod, texts(web.addresses))
    assert wait_until(lambda: _repairs(mended, node) > counted, SETTLED)


def test_nobody_listens_to_nf_tables(mended: Lab) -> None:
    """A listener makes every commit of everybody on the host allocate memory for each element of a set."""
    sockets = [line.split() for line in mended.namespace(NODE1).run("cat", "/proc/net/netlink").splitlines()[1:]]
    assert {protocol for _, protocol, *_ in sockets} >= {"0", "12"}, "the daemon has none of its sockets"
    assert not any(protocol == "12" and int(groups, 16) & 1 << 6 for _, protocol, _, groups, *_ in sockets)


def test_our_own_write_of_a_sysctl_makes_us_look_once_more_and_not_again(mended: Lab) -> None:
    before, times = _seen(mended, NODE1), set[str]()
    _, damage = DAMAGES["strict rp_filter on the pod's node"]
    damage(mended, NODE1)
    assert wait_until(lambda: _seen(mended, NODE1) == before, SETTLED)

    def restless() -> bool:
        times.add(mended.daemons[NODE1].status()["last_reconcile"]["time"])
        return len(times) > 3

    assert not wait_until(restless, SECOND), "it does not come to rest"


def _seen(lab: Lab, node: LabNode) -> tuple[dict[str, str], ...]:
    """What is ours, what is not, and the sysctls that may be either's."""
    strictness = lab.namespace(node).run("sysctl", "-a", "-r", r"^net\.ipv4\.conf\..*\.rp_filter$")
    return ours(lab, node), foreign(lab, node), {"rp_filter": strictness}


def _repairs(lab: Lab, node: LabNode) -> int:
    return sum(lab.daemons[node].status()["repaired"].values())


def test_S2_repeated_damage_is_repaired_again_and_again(running: Lab) -> None:
    before = ours(running, NODE1)
    for _ in range(5):
        running.namespace(NODE1).run("nft", "flush", "ruleset")
        running.namespace(NODE1).run("ip", "rule", "flush", "proto", "201")
        assert wait_until(lambda: ours(running, NODE1) == before, SETTLED)


def test_a_repair_that_fails_at_first_is_counted_once(running: Lab) -> None:
    """A table with the flag `owner` belongs to one process (nft(8)), and is gone with it."""
    daemon, namespace, before = running.daemons[NODE1], running.namespace(NODE1), ours(running, NODE1)
    namespace.run("nft", "delete", "table", *TABLE.split())
    assert wait_until(lambda: daemon.status()["repaired"] != {}, SETTLED)
    once = daemon.status()["repaired"]
    with namespace.inside():
        owner = subprocess.Popen([process.find("nft"), "-i"], stdin=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdin
        owner.stdin.write(f"delete table {TABLE}; add table {TABLE} {{ flags owner; }}\n")
        owner.stdin.flush()
        refusal = "nft refused the change of table"
        assert wait_until(lambda: daemon.log().count(f"error: {refusal}") > 1, SETTLED), daemon.log()
        assert wait_until(lambda: refusal in str(daemon.status()["problems"]), SETTLED)
        assert daemon.status()["repaired"] == once
    assert wait_until(lambda: daemon.status()["problems"] == [], SETTLED)
    found = daemon.status()["repaired"]
    # A plan from when the table still had its owner, carried out when it was gone, repairs the flags, too.
    found["firewall"] -= found["firewall"] % 2
    assert found == {kind: 2 * count for kind, count in once.items()}
    assert ours(running, NODE1) == before


def test_what_others_do_elsewhere_is_left_alone(running: Lab) -> None:
    before = ours(running, NODE1)
    namespace = running.namespace(NODE1)
    for command in (
        "-4 rule add fwmark 0x1/0xff lookup 100 priority 4690",
        "-4 rule add to 203.0.113.0/24 lookup 100 priority 4700",
        "-6 rule add lookup 100 priority 4799",
        "-4 route add blackhole 203.0.113.0/24 table 100",
    ):
        namespace.run("ip", *command.split())
    namespace.run(
        "nft", "-f", "-", stdin="table inet other { chain c { type filter hook prerouting priority 0;\n }\n }"
    )
    added = foreign(running, NODE1)
    running.namespace(NODE1).run("nft", "delete", "table", *TABLE.split())
    assert wait_until(lambda: ours(running, NODE1) == before, SETTLED)
    assert foreign(running, NODE1) == added
    running.daemons[NODE1].stop()
    running.daemons[NODE1].command("cleanup")
    assert not any(ours(running, NODE1).values())
    assert foreign(running, NODE1) == added


def _difference(before: tuple[dict[str, str], ...], after: tuple[dict[str, str], ...]) -> str:
    pairs = [(b[key], a[key]) for b, a in zip(before, after, strict=True) for key in b if b[key] != a[key]]
    return "\n".join(f"--- before\n{b}\n--- now\n{a}" for b, a in pairs)
