"""Replies leave by the way the request came: to a client that the nodes' default gateway cannot reach."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.outside import ADDRESS_FAMILY
from metaleg_node.lab.plan import NODE_NETWORK, SERVER_PORT, SERVICE_PORT, LabService
from tests.e2e import second_way
from tests.e2e.path_scene import ALL, NONE, Scene, reaches_node, scene, status_of
from tests.e2e.scenario import NODE1, NODE2, SECOND, SETTLED, foreign, ours, sources, texts
from tests.e2e.second_way import (
    BOTH_POOLS,
    CLIENT,
    L2_PATH,
    OTHER_ROUTER2,
    POOL_NETWORK,
    ROUTER2,
    TWO_ROUTERS,
    SecondWay,
    l2,
)
from tests.lab import probes
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions
from tests.lab.server import Server
from tests.patience import patient


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def plain(stack: ExitStack) -> Scene:
    return scene(stack, LabOptions(flavour=Flavour.IPTABLES_LEGACY, forward_drop=True))


# --- behind kube-proxy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", Flavour)
def test_R9_replies_leave_by_the_way_the_request_came(stack: ExitStack, flavour: Flavour) -> None:
    here = scene(stack, LabOptions(flavour=flavour, forward_drop=True))
    here.settle(NONE, 0)
    before = here.inside()
    assert not any(error for key, error in before.items() if key.startswith("local pod"))
    others = foreign(here.lab, NODE1)
    here.lab.start_daemons(l2(TWO_ROUTERS, match=["conntrack"]))
    here.settle(ALL)
    # Clients inside the cluster, on other nodes and on the nodes' LAN are answered as before.
    assert here.inside() == before
    assert foreign(here.lab, NODE1) == others
    assert here.lab.daemons[NODE1].command("plan").stdout.endswith("\nnothing to do\n")
    here.lab.daemons[NODE1].stop()
    assert here.lab.daemons[NODE1].command("cleanup").returncode == 0
    here.settle(NONE, patient(1))
    assert not any(ours(here.lab, NODE1).values())


@pytest.mark.parametrize("match", [["conntrack"], ["conntrack", "source"]], ids="+".join)
def test_a_client_inside_the_paths_own_network_is_answered_wherever_the_backend_runs(
    stack: ExitStack, match: list[str]
) -> None:
    """Its requests have a source of the path, and a destination inside the cluster only after DNAT."""
    here = scene(stack, LabOptions(flavour=Flavour.IPTABLES_LEGACY), host=NODE2)
    path = {**L2_PATH, "pools": [], "cidrs": [str(n) for n in POOL_NETWORK.values()]}
    here.lab.start_daemons(l2(path, match=match))
    router = here.second.machine("router2")
    wanted = [address for service in here.services for address in service.addresses.values()]
    assert [str(a) for a in wanted if probes.tcp(router, a, SERVICE_PORT, patient(1.0)).error] == []


def test_neighbours_whose_prefix_came_by_router_advertisement_are_answered_directly(plain: Scene) -> None:
    """systemd-networkd sets the address without its route, and routes the prefix by itself."""
    lab, address = plain.lab, plain.services[1].addresses[6]
    router = lab.namespace("router")
    router.ip(["address add fd00:aa::1/64 dev eth0 nodad", f"route add {address} via fd00:aa::11 src fd00:aa::1"])
    lab.namespace(NODE1).ip(
        [
            "address add fd00:aa::11/64 dev eth0 noprefixroute nodad",
            "route add fd00:aa::/64 dev eth0 proto ra metric 100",
        ]
    )
    assert not probes.tcp(router, address, SERVICE_PORT, patient(1.0)).error
    lab.start_daemons(l2())
    plain.settle(ALL)
    assert not probes.tcp(router, address, SERVICE_PORT, patient(1.0)).error


def test_source_alone_does_not_work_behind_DNAT(plain: Scene) -> None:
    plain.lab.start_daemons(l2(match=["source"]))
    plain.settle(NONE, patient(1))


# --- addresses of the node itself ------------------------------------------------------------------------------------


def _reaches_client(here: Scene, source: LabService, family: Family) -> bool:
    """Whether a program on node1 that binds itself to the Service's address gets an answer of the client."""
    with here.lab.namespace(NODE1).socket(ADDRESS_FAMILY[family], socket.SOCK_STREAM) as sock:
        sock.settimeout(patient(0.5))
        try:
            sock.bind((str(source.addresses[family]), 0))
            sock.connect((str(CLIENT[family]), SERVER_PORT))
            sock.sendall(b"hello\n")
            return sock.recv(100).split()[0].decode() == str(source.addresses[family])
        except OSError:
            return False


@pytest.mark.parametrize("match", ["source", "conntrack", "rules"])
def test_a_program_bound_to_an_address_of_the_pool_on_loopback(plain: Scene, match: str) -> None:
    plain.lab.set_services()
    service = LabService(name="lo", number=7, pods=(), gateway=None, labelled=False)
    node = plain.lab.namespace(NODE1)
    node.ip([f"address add {a} dev lo{' nodad' if f == 6 else ''}" for f, a in service.addresses.items()])
    plain.second.announce(service, NODE1)
    local, remote = Server(), Server()
    local.listen(node, "lo", SERVICE_PORT)
    remote.listen(plain.second.machine("client"), "client", SERVER_PORT)
    try:
        local.start()
        remote.start()
        assert not any(_reaches_client(plain, service, f) for f in FAMILIES)
        plain.write(BOTH_POOLS)
        plain.lab.start_daemons(l2(match=[match]))
        assert all(plain.second.ask(service, "tcp", f).source == str(CLIENT[f]) for f in FAMILIES)
        # What the node begins itself is no reply: only its source tells.
        assert [_reaches_client(plain, service, f) for f in FAMILIES] == [match != "conntrack"] * 2
    finally:
        local.stop()
        remote.stop()


@pytest.mark.parametrize("match", ["source", "conntrack", "rules"])
def test_forwarded_packets_that_have_the_source_before_they_are_routed(stack: ExitStack, match: str) -> None:
    plain = scene(stack, LabOptions(flavour=Flavour.IPTABLES_LEGACY))
    plain.serve_from_a_pod()
    plain.write(BOTH_POOLS)
    assert plain.answers_from_a_pod() == [False, False]
    plain.lab.start_daemons(l2(match=[match]))
    assert plain.answers_from_a_pod() == [True, True]


# --- layer 2 ---------------------------------------------------------------------------------------------------------


def test_a_pool_that_holds_the_nodes_addresses_takes_nothing_that_nodes_send(lab: Lab) -> None:
    nobody = [str(network[250]) for network in NODE_NETWORK.values()]
    cidrs = [str(network) for network in NODE_NETWORK.values()]
    lab.set_services()
    lab.start_daemons(l2({"name": "wide", "interface": "eth0", "cidrs": cidrs, "gateways": nobody}))
    for node in (NODE1, NODE2):
        assert sources(lab, node) == texts(node.addresses)
        told = [one["text"] for one in lab.daemons[node].status()["problems"] if one["code"] == "path-overlap"]
        assert len(told) == 6
        assert (
            f"{NODE1.addresses[4]} is the address of Node node1, but cidrs ({cidrs[0]}) holds it; it is left out"
            in told
        )


def test_case_2_a_pool_without_a_router_gets_its_connected_route(plain: Scene) -> None:
    service = plain.services[1]

    def neighbour_is_answered() -> list[bool]:
        asked = (
            probes.tcp(plain.second.machine("router2"), service.addresses[f], SERVICE_PORT, patient(0.5))
            for f in FAMILIES
        )
        return [not answer.error for answer in asked]

    assert neighbour_is_answered() == [False, False]
    plain.lab.start_daemons(
        l2({**L2_PATH, "gateways": [], "pools": [], "cidrs": [str(n) for n in POOL_NETWORK.values()]})
    )
    assert neighbour_is_answered() == [True, True]
    table = plain.lab.namespace(NODE1).run("ip", "route", "show", "table", "main", "proto", "201")
    assert table.split() == ["192.0.2.0/24", "dev", "eth1", "scope", "link", "metric", "4700"]


def test_an_interface_without_IPv6_leaves_the_path_its_IPv4(plain: Scene) -> None:
    plain.lab.namespace(NODE1).sysctl({"ipv6/conf/eth1/disable_ipv6": 1})
    plain.lab.start_daemons(l2({**L2_PATH, "gateways": [str(ROUTER2[4])]}))
    plain.settle({(p, f): f == 4 for p, f in ALL})
    assert "IPv6 is turned off on interface eth1" in status_of(plain, NODE1)["reason"]
    assert plain.lab.daemons[NODE1].command("plan").stdout.endswith("\nnothing to do\n")


def test_several_gateways_share_the_traffic(plain: Scene) -> None:
    gateways = [str(a) for f in FAMILIES for a in (ROUTER2[f], OTHER_ROUTER2[f])]
    plain.lab.start_daemons(l2({**L2_PATH, "gateways": gateways}))
    plain.settle(ALL)
    for f in FAMILIES:
        shown = plain.lab.namespace(NODE1).run("ip", f"-{f}", "route", "show", "table", "1000001", "default")
        assert shown.count("nexthop via") == 2


def test_a_link_local_router_stays_one_when_another_interface_gets_its_address(plain: Scene) -> None:
    plain.second.machine("router2").ip(["address add fe80::1/64 dev lan nodad"])
    plain.lab.start_daemons(l2({**L2_PATH, "gateways": [str(ROUTER2[4]), "fe80::1"]}))
    plain.settle(ALL)
    node = plain.lab.namespace(NODE1)
    node.ip(["link add docker0 up type bridge", "address add fe80::1/64 dev docker0 nodad"])
    # The daemon has looked again once it knows of the next change.
    node.ip(["link set eth1 down"])
    assert wait_until(lambda: status_of(plain, NODE1)["reason"] == "interface eth1 is down", SETTLED)
    node.ip(["link set eth1 up"])
    plain.settle(ALL)


def test_an_interface_that_appears_goes_down_comes_up_and_goes_away(plain: Scene) -> None:
    plain.second.pull_out(NODE1)
    plain.lab.start_daemons(l2())
    assert "there is no interface eth1" in status_of(plain, NODE1)["reason"]
    plain.second.plug_in(NODE1)
    for service in plain.services:
        plain.second.announce(service, NODE1)
    plain.settle(ALL)
    # It was down for a moment when it appeared, too, and the status is told some time after what it tells of.
    assert wait_until(lambda: status_of(plain, NODE1)["state"] == "active", SETTLED)
    node = plain.lab.namespace(NODE1)
    node.ip(["link set eth1 down"])
    assert wait_until(lambda: status_of(plain, NODE1)["reason"] == "interface eth1 is down", SETTLED)
    assert not node.run("ip", "route", "show", "table", "all", "proto", "201")
    node.ip(["link set eth1 up"])
    plain.settle(ALL)
    plain.second.pull_out(NODE1)
    assert wait_until(lambda: "there is no interface" in status_of(plain, NODE1)["reason"], SETTLED)


def test_N5_two_pools_on_two_interfaces_have_each_their_own_router(stack: ExitStack, plain: Scene) -> None:
    """Both routers, and both clients, even have the same addresses."""
    second = plain.second
    third = stack.enter_context(SecondWay(plain.lab, "eth2"))
    cluster, local, host = plain.services
    for service in (local, host):
        third.announce(service, NODE1)
    pools = [
        second_way.pool("one", [f"{cluster.addresses[f]}-{cluster.addresses[f]}" for f in FAMILIES]),
        second_way.pool("two", [f"{local.addresses[f]}-{host.addresses[f]}" for f in FAMILIES]),
    ]
    plain.write(pools)
    paths = (
        {**L2_PATH, "name": "one", "pools": ["one"]},
        {**L2_PATH, "name": "two", "pools": ["two"], "interface": "eth2"},
    )
    plain.lab.start_daemons(l2(*paths))
    assert [second.answers(cluster), second.answers(local, 0.3)] == [ALL, NONE]
    assert [third.answers(local), third.answers(host)] == [ALL, ALL]


STRICT = LabOptions(flavour=Flavour.IPTABLES_LEGACY, rp_filter=1)
"""The nodes check the reverse path strictly, on all interfaces and by `all`."""


def rp_filters(scene_: Scene) -> dict[str, str]:
    listing = scene_.lab.namespace(NODE1).run("sysctl", "-a", "-r", r"^net\.ipv4\.conf\..*\.rp_filter$")
    return {line.split(".")[3]: line.split()[-1] for line in listing.splitlines()}


RP_FILTERS = {
    "keep": {},
    "loose": {"eth1": "2"},
    # The loopback interface had no value of its own.
    "off": {"all": "0", "eth1": "0", "lo": "1"},
    "filter": {"all": "0", "eth1": "0", "lo": "1"},
}


@pytest.mark.parametrize("mode", RP_FILTERS)
def test_F17_F18_strict_reverse_path_filtering(stack: ExitStack, mode: str) -> None:
    strict = scene(stack, STRICT, addresses=mode == "loose")
    before = rp_filters(strict)
    assert [name for name, value in before.items() if value != "1"] == ["lo"]
    strict.lab.start_daemons(l2({**L2_PATH, "rp_filter": mode}))
    works = mode != "keep"
    strict.settle({(p, f): f == 6 or works for p, f in ALL})
    assert rp_filters(strict) == before | RP_FILTERS[mode]
    if works:
        assert reaches_node(strict) == (mode != "filter")
        # As wg-quick and Tailscale set it.
        strict.lab.namespace(NODE1).sysctl({"ipv4/conf/all/src_valid_mark": 1})
        strict.settle(ALL)
    strict.lab.daemons[NODE1].stop()
    strict.lab.daemons[NODE1].command("cleanup")
    assert rp_filters(strict) == before


RPFILTER = """\
table inet firewalld {
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        iifname "eth1" accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
}
"""
"""As firewalld's IPv6_rpfilter, with an exception for the path's interface."""


@pytest.mark.parametrize("filter_by", ["src_valid_mark", "firewalld"])
def test_F18_backends_in_another_nodes_host_network_pass_a_filter_that_goes_by_marks(
    stack: ExitStack, filter_by: str
) -> None:
    here = scene(stack, STRICT, host=NODE2)
    here.lab.start_daemons(l2({**L2_PATH, "rp_filter": "off"}))
    here.settle(ALL)
    node = here.lab.namespace(NODE1)
    if filter_by == "firewalld":
        node.run("nft", "-f", "-", stdin=RPFILTER)
    else:
        node.sysctl({"ipv4/conf/all/src_valid_mark": 1})
    assert here.answers(0.5) == {service.name: ALL for service in here.services}


def test_F17_loose_is_not_enough_on_an_interface_without_an_address_and_status_says_so(stack: ExitStack) -> None:
    strict = scene(stack, STRICT)
    strict.lab.start_daemons(l2({**L2_PATH, "rp_filter": "loose"}))
    strict.settle({(p, f): f == 6 for p, f in ALL})
    assert "has no IPv4 address" in status_of(strict, NODE1)["reason"]


def test_interfaces_without_a_value_of_their_own_keep_what_all_gave_them(stack: ExitStack) -> None:
    here = scene(stack, LabOptions(flavour=Flavour.IPTABLES_LEGACY))
    here.lab.namespace(NODE1).sysctl({"ipv4/conf/all/rp_filter": 1})
    before = rp_filters(here)
    here.lab.start_daemons(l2({**L2_PATH, "rp_filter": "off"}))
    now = rp_filters(here)
    assert {name for name, value in now.items() if value == "0"} == {"all", "eth1"}
    assert now["default"] == "1"
    here.lab.daemons[NODE1].stop()
    here.lab.daemons[NODE1].command("cleanup")
    assert rp_filters(here) == before


def test_rp_filter_that_others_set_back_is_off_again_within_a_second(stack: ExitStack) -> None:
    strict = scene(stack, STRICT)
    before = rp_filters(strict)
    strict.lab.start_daemons(l2({**L2_PATH, "rp_filter": "off"}))
    now = rp_filters(strict)
    assert now != before
    for name in ("all", "eth1"):
        strict.lab.namespace(NODE1).sysctl({f"ipv4/conf/{name}/rp_filter": 1})
        assert wait_until(lambda: rp_filters(strict) == now, SECOND)
    strict.lab.daemons[NODE1].stop()
    strict.lab.daemons[NODE1].command("cleanup")
    assert rp_filters(strict) == before


def test_rp_filter_that_the_operator_turns_off_meanwhile_stays_off(stack: ExitStack) -> None:
    here = scene(stack, LabOptions(flavour=Flavour.IPTABLES_LEGACY))
    namespace, daemon = here.lab.namespace(NODE1), here.lab.daemons[NODE1]
    namespace.sysctl({"ipv4/conf/eth1/rp_filter": 1})
    here.lab.start_daemons(l2({**L2_PATH, "rp_filter": "loose"}))
    assert rp_filters(here)["eth1"] == "2"
    namespace.sysctl({"ipv4/conf/eth1/rp_filter": 0})
    assert daemon.command("plan").stdout.endswith("\nnothing to do\n")
    daemon.stop()
    assert daemon.command("apply").returncode == 0
    assert rp_filters(here)["eth1"] == "0"
    assert daemon.command("cleanup").returncode == 0
    assert rp_filters(here)["eth1"] == "0"


def test_strict_arp_is_set_and_put_back(plain: Scene) -> None:
    def shown() -> list[str]:
        return (
            plain.lab.namespace(NODE1)
            .run("sysctl", "-n", "net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce")
            .split()
        )

    plain.lab.start_daemons({"host": {"strict_arp": True}})
    assert shown() == ["1", "2"]
    plain.lab.daemons[NODE1].stop()
    plain.lab.daemons[NODE1].command("cleanup")
    assert shown() == ["0", "0"]


# --- egress ----------------------------------------------------------------------------------------------------------


def test_egress_of_an_address_with_its_own_router_leaves_by_that_router(plain: Scene) -> None:
    lab = plain.lab
    web = LabService(name="web", number=0, pods=(lab.pod(NODE1), lab.pod(NODE2)), gateway=NODE1)
    lab.set_services(web)
    plain.write(BOTH_POOLS)
    remote = Server()
    remote.listen(plain.second.machine("client"), "client", SERVER_PORT)
    try:
        remote.start()
        lab.start_daemons(l2())
        for pod in web.pods:
            for f in FAMILIES:
                assert str(lab.ask(pod, "tcp", f, to=(CLIENT[f], SERVER_PORT))) == str(web.addresses[f])
                # The way outside is no longer by the first router.
                assert lab.source_seen(pod, "tcp", f, patient(0.3)) in ("timeout", "unreachable")
        lab.namespace(NODE1).ip(["link set eth1 down"])
        reason = "no-exit: return path public, by which it must leave: interface eth1 is down"
        assert wait_until(
            lambda: [s["reason"] for s in lab.daemons[NODE1].status()["services"]] == [reason] * 2, SETTLED
        )
        lab.reset_seen()
        for pod in web.pods:
            for f in FAMILIES:
                assert lab.source_seen(pod, "tcp", f, patient(0.3)) in ("timeout", "unreachable", "prohibited")
        assert lab.seen() & {*web.addresses.values(), *NODE1.addresses.values()} == set()
    finally:
        remote.stop()
