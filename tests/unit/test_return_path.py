"""What this node does for the return paths that it is asked to have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from metaleg_node.configuration.config import Config
from metaleg_node.core import assembly as desired
from metaleg_node.core.compare import diff
from metaleg_node.core.egress import survey
from metaleg_node.core.external_ip import WantedAddresses
from metaleg_node.core.firewall.egress import Treatment
from metaleg_node.core.firewall.return_paths import ReturnPath
from metaleg_node.core.model import MARKING, ClusterState, Holder, Host, Link, Match, RouteType, Slot
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.problems import Code
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.core.routes import UNREACHABLE_METRIC
from metaleg_node.daemon import report
from metaleg_node.kernel.nftables.backend import Nftables
from metaleg_node.reconcile.reconciler import Plan
from tests.firewalls import flat
from tests.unit.builders import A, addresses, announced, assembled, config, endpoint, endpoint_slice, node, service
from tests.unit.builders import cluster as egress_cluster
from tests.unit.test_pools import BGP, advertise, peer, pool
from tests.unit.test_pools import cluster as metallb

UP = Link(up=True, has_ipv4=True)
HERE = Host(
    addresses=frozenset(addresses(["10.0.0.1", "fd00::1", "10.1.0.77"])),
    interfaces={ip_address(a): "eth0" for a in ("10.0.0.8", "10.0.0.9", "fd00::8", "172.16.0.1")},
    on_link=frozenset(addresses(["10.0.0.8", "10.0.0.9", "fd00::8"])),
    links={"eth1": UP, "eth2": UP},
    connected=frozenset({ip_network("10.0.0.0/24"), ip_network("fd00::/64")}),
)
L2 = """
[[return_path.l2]]
name = "one"
interface = "eth1"
gateways = ["10.1.0.1", "fd01::1"]
cidrs = ["192.0.2.0/24", "2001:db8::/64"]
"""
THROWN = ["throw 10.0.0.0/24", "throw 10.244.0.0/16", "throw fd00::/64 metric 1024"]
"""Pods, nodes and neighbours of HERE, in the table of each path."""
PEERING = metallb(
    pool("p", "198.51.100.0/24", "2001:db8:51::/64"),
    advertise(),
    peer("a", "10.0.0.8"),
    peer("b", "10.0.0.9", {pools.WEIGHT: "3"}),
    peer("c", "fd00::8"),
)


def decide(
    text: str = L2,
    state: ClusterState | None = None,
    host: Host = HERE,
    held: Mapping[Slot, str] | None = None,
) -> desired.Desired:
    known = "" if "[cluster]" in text else 'cluster.pod_cidrs = ["10.244.0.0/16"]\n'
    settings, state = config(known + text), state or ClusterState()
    surveyed = survey.take(state, settings)
    wanted = pools.read(state, settings, A)
    host = dataclasses.replace(host, unnameable=Nftables().unnameable(host.links))
    return assembled(surveyed, settings, A, host, held, paths=wanted)


def firewall(found: desired.Desired) -> Any:
    return flat(found.state.firewall)


def told(found: desired.Desired) -> tuple[str, ...]:
    return tuple(map(str, found.problems))


def routes(found: desired.Desired) -> list[str]:
    return sorted(map(str, found.state.routing.routes))


def rules(found: desired.Desired) -> list[str]:
    return sorted(map(str, found.state.routing.rules))


# --- layer 2 ---------------------------------------------------------------------------------------------------------


def test_a_path_with_gateways_has_a_table_a_rule_and_a_mark() -> None:
    found = decide()
    assert routes(found) == [
        "192.0.2.0/24 dev eth1 table 1000001",
        "2001:db8::/64 dev eth1 metric 1024 table 1000001",
        "default (IPv4) via 10.1.0.1 dev eth1 onlink table 1000001",
        "default (IPv6) via fd01::1 dev eth1 onlink metric 1024 table 1000001",
        *(f"{text} table 1000001" for text in THROWN),
    ]
    assert rules(found) == [
        "IPv4 priority 4710 fwmark 0x1000000/0x3f000000 lookup 1000001",
        "IPv6 priority 4710 fwmark 0x1000000/0x3f000000 lookup 1000001",
    ]
    networks = frozenset({ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")})
    assert firewall(found).paths == {Slot(1): ReturnPath(holder=Holder.read("path:one"), networks=networks)}
    assert firewall(found).match == MARKING
    assert told(found) == ()
    assert found.tables == {1000001}


def test_several_gateways_are_several_next_hops() -> None:
    found = decide(L2.replace('"fd01::1"', '"10.1.0.2"'))
    assert "default (IPv4) via 10.1.0.1 dev eth1 onlink via 10.1.0.2 dev eth1 onlink table 1000001" in routes(found)


def test_a_family_without_a_gateway_has_its_connected_route_in_the_main_table() -> None:
    found = decide(L2.replace(', "fd01::1"', ""))
    assert "2001:db8::/64 dev eth1 metric 4700 table 254" in routes(found)
    assert [rule.family for rule in found.state.routing.rules] == [4]
    assert [n.version for n in firewall(found).paths[Slot(1)].networks] == [4]
    assert 254 not in found.tables


def test_no_gateway_is_no_mark_at_all() -> None:
    found = decide(L2.replace('"10.1.0.1", "fd01::1"', ""))
    assert routes(found) == [
        "192.0.2.0/24 dev eth1 metric 4700 table 254",
        "2001:db8::/64 dev eth1 metric 4700 table 254",
    ]
    assert rules(found) == []
    assert firewall(found).paths == {}


def test_no_connected_route_where_none_is_wanted() -> None:
    found = routes(decide(f"{L2}connected_route = false\n"))
    assert [text.split()[0] for text in found] == ["default", "default", "throw", "throw", "throw"]


NEAR = """
[[return_path.l2]]
name = "near"
interface = "eth1"
cidrs = ["192.0.2.0/24", "2001:db8::/64"]
[[return_path.l2]]
name = "far"
interface = "eth2"
cidrs = ["192.0.2.0/24", "192.0.2.0/25", "2001:db8::/64", "203.0.113.0/24"]
"""


def test_a_network_without_a_gateway_goes_to_one_interface_that_of_the_first_path() -> None:
    text = NEAR.replace('"192.0.2.0/25", ', "")
    found = decide(text)
    assert routes(found) == [
        "192.0.2.0/24 dev eth1 metric 4700 table 254",
        "2001:db8::/64 dev eth1 metric 4700 table 254",
        "203.0.113.0/24 dev eth2 metric 4700 table 254",
    ]
    assert told(found) == (
        "return path far: 192.0.2.0/24 (and 1 more) is already routed to eth1 for path near; that stays so",
    )
    down = dataclasses.replace(HERE, links={**HERE.links, "eth1": Link(up=False, has_ipv4=True)})
    assert "192.0.2.0/24 dev eth2 metric 4700 table 254" in routes(decide(text, host=down))
    assert told(decide(text.replace("eth2", "eth1"))) == ()


@pytest.mark.parametrize("gateways", ['["10.1.0.1"]', "[]"])
def test_all_addresses_there_are_get_no_connected_route(gateways: str) -> None:
    halves = '["0.0.0.0/1", "128.0.0.0/1"]'
    found = decide(f'[[return_path.l2]]\nname = "x"\ninterface = "eth1"\ncidrs = {halves}\ngateways = {gateways}\n')
    assert [text for text in routes(found) if " dev " in text] == [
        "default (IPv4) via 10.1.0.1 dev eth1 onlink table 1000001"
    ] * ("10" in gateways)
    assert told(found) == ("return path x: its networks are all addresses there are, which get no connected route",)


OBSTACLES = {
    "an interface in a VRF": (
        dataclasses.replace(HERE, links={"eth1": dataclasses.replace(UP, vrf="red")}),
        "interface eth1 is in VRF red: requests that enter there are routed by the VRF's own table, which this program "
        "does not change; take it out of the VRF (ip link set eth1 nomaster)",
    ),
    "no interface": (dataclasses.replace(HERE, links={}), "there is no interface eth1; it begins when there is"),
    "interface down": (
        dataclasses.replace(HERE, links={"eth1": Link(up=False, has_ipv4=False)}),
        "interface eth1 is down",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_path_that_cannot_be_is_told_and_leaves_nothing(name: str) -> None:
    host, reason = OBSTACLES[name]
    found = decide(host=host)
    assert (routes(found), rules(found)) == ([], [])
    assert firewall(found).paths == {}
    assert told(found) == (f"return path one: {reason}",)
    assert found.paths[0].path.obstacle == reason


NO_IPV6 = dataclasses.replace(HERE, links={"eth1": Link(up=True, has_ipv4=True, takes_ipv6=False)})


@pytest.mark.parametrize("gateways", ['"10.1.0.1"', '"10.1.0.1", "fd01::1"'])
def test_an_interface_without_IPv6_gets_no_route_of_it(gateways: str) -> None:
    found = decide(L2.replace('"10.1.0.1", "fd01::1"', gateways), host=NO_IPV6)
    reason = "IPv6 is turned off on interface eth1 (disable_ipv6), so its IPv6 networks have no route there"
    assert told(found) == (f"return path one: {reason}",)
    assert not [text for text in routes(found) if "2001:db8" in text or "fd01::1" in text]
    assert [rule.family for rule in found.state.routing.rules] == [4]


def test_IPv6_networks_alone_cannot_be_on_an_interface_without_it() -> None:
    found = decide(L2.replace('"192.0.2.0/24", ', ""), host=NO_IPV6)
    assert told(found) == ("return path one: IPv6 is turned off on interface eth1 (disable_ipv6)",)
    assert (routes(found), rules(found)) == ([], [])


def test_a_path_whose_pools_are_not_there_yet() -> None:
    found = decide('[[return_path.l2]]\nname = "x"\ninterface = "eth1"\npools = ["gone"]\ngateways = ["10.1.0.1"]\n')
    assert told(found) == ("return path x: it has no network yet", "return path x: there is no IPAddressPool gone")
    assert routes(found) == []


def test_a_gateway_that_is_this_host_is_no_next_hop() -> None:
    found = decide(L2.replace("10.1.0.1", "10.1.0.77"))
    assert told(found) == ("return path one: gateway 10.1.0.77 is this host itself",)
    assert [rule.family for rule in found.state.routing.rules] == [6]


def test_a_path_with_no_gateway_but_this_host_does_nothing() -> None:
    found = decide(L2.replace('"10.1.0.1", "fd01::1"', '"10.1.0.77"'))
    assert told(found) == ("return path one: it has no gateway but this host itself",)
    assert (routes(found), rules(found)) == ([], [])


def test_gateways_of_a_family_that_the_networks_lack_are_told() -> None:
    found = decide(L2.replace('"10.1.0.1", ', "").replace(', "2001:db8::/64"', ""))
    reason = "no gateway is of its networks' family, so replies go by the main table"
    assert told(found) == (f"return path one: {reason}",)
    assert routes(found) == ["192.0.2.0/24 dev eth1 metric 4700 table 254"]


def test_a_link_local_router_is_not_this_host_though_another_interface_has_its_address() -> None:
    host = dataclasses.replace(HERE, addresses=HERE.addresses | {ip_address("fe80::1")})
    found = decide(L2.replace("fd01::1", "fe80::1"), host=host)
    assert told(found) == ()
    assert "default (IPv6) via fe80::1 dev eth1 onlink metric 1024 table 1000001" in routes(found)


def test_a_path_for_which_no_mark_is_left() -> None:
    two = L2.replace('"one"', '"two"').replace("192.0.2", "192.0.3").replace("2001:db8:", "2001:db9:")
    found = decide(f"{L2}{two}[firewall]\nmark_mask = 0x1\n")
    assert found.paths[1].slot is None
    assert told(found) == ("return path two: no mark is left for it: all values under firewall.mark_mask are taken",)


def test_slots_stay_with_their_holders() -> None:
    found = decide(held={Slot(7): "path:one"})
    assert list(firewall(found).paths) == [7]
    assert found.paths[0].table == 1000007


# --- destinations that stay on the main table ------------------------------------------------------------------------


def test_the_cluster_and_the_neighbours_stay_on_the_main_table() -> None:
    text = f'{L2}[return_path]\nexclude_cidrs = ["172.20.0.0/16"]\n[egress]\nexclude_cidrs = ["203.0.113.0/24"]\n'
    text = f'[cluster]\nservice_cidrs = ["10.96.0.0/16"]\n{text}'
    state = dataclasses.replace(egress_cluster(nodes=[node("a"), node("b", others=["192.168.7.7"])]), services=())
    direct = firewall(decide(text.replace(L2, "") + L2, state)).direct
    inside = ["10.244.1.5", "10.96.0.1", "192.168.7.7", "10.0.0.200", "fd00::77", "172.20.1.1", "127.0.0.1", "fe80::1"]
    assert [
        a for a in inside if not any(ip_address(a) in n for n in direct if n.version == ip_address(a).version)
    ] == []
    assert not any(ip_address("203.0.113.5") in n for n in direct if n.version == 4)


def test_unknown_pod_networks_are_told() -> None:
    found = decide(f"[cluster]\n{L2}")
    assert told(found) == (
        "return paths: no pod network is known, so pods get no answers from these pools; set cluster.pod_cidrs",
    )


# --- BGP -------------------------------------------------------------------------------------------------------------

BY_ANY = f"{BGP}symmetric = false\n"


def test_peers_share_the_traffic_by_their_weights() -> None:
    found = decide(BY_ANY, PEERING)
    assert routes(found) == [
        "default (IPv4) via 10.0.0.8 dev eth0 weight 100 via 10.0.0.9 dev eth0 weight 3 table 20",
        "default (IPv6) via fd00::8 dev eth0 metric 1024 table 20",
        *(f"{text} table 20" for text in THROWN),
    ]
    assert rules(found) == [
        "IPv4 priority 20 fwmark 0x1000000/0x3f000000 lookup 20",
        "IPv6 priority 20 fwmark 0x1000000/0x3f000000 lookup 20",
    ]
    assert found.tables == {20}


def test_N4_another_destination_table_priority_and_mark() -> None:
    more = 'table = 30\nrule_priority = 40\nrule_fwmark = 0x14\ndestination = "10.0.0.0/8"\n'
    found = decide(BY_ANY + more, PEERING)
    assert routes(found) == [
        "10.0.0.0/8 via 10.0.0.8 dev eth0 weight 100 via 10.0.0.9 dev eth0 weight 3 table 30",
        "throw 10.0.0.0/24 table 30",
        "throw 10.244.0.0/16 table 30",
    ]
    assert rules(found) == ["IPv4 priority 40 fwmark 0x1000000/0x3f000000 lookup 30"]
    assert firewall(found).paths[Slot(1)].mark == 0x14


@pytest.mark.parametrize("destination", ["10.244.0.0/16", "10.244.7.0/24", "10.0.0.0/24", "fd00::/64", "172.20.0.0/16"])
def test_a_destination_that_stays_on_the_main_table_is_told(destination: str) -> None:
    text = f'return_path.exclude_cidrs = ["172.16.0.0/12"]\n{BGP}destination = "{destination}"\n'
    found = decide(text, PEERING)
    reason = f"its destination {destination} always stays on the main table: see return_path.exclude_cidrs"
    assert told(found) == (f"return path bgp: {reason}",)
    assert (routes(found), rules(found)) == ([], [])


def test_N3_a_peer_behind_a_router_or_without_a_route_is_skipped_and_told() -> None:
    state = metallb(pool("p", "198.51.100.0/24"), advertise(), peer("a", "10.0.0.8"), peer("far", "172.16.0.1"))
    state = dataclasses.replace(state, peers=(*state.peers, *metallb(peer("lost", "172.30.0.1")).peers))
    found = decide(BGP, state)
    assert routes(found)[0] == "default (IPv4) via 10.0.0.8 dev eth0 table 20"
    assert len(found.state.routing.rules) == 1
    assert told(found) == (
        "return path bgp: BGPPeer metallb-system/far (172.16.0.1) is behind a router, so it is no next hop; "
        "a route reflector has the label metallb-nra/enabled=false",
        "return path bgp: this node has no route to BGPPeer metallb-system/lost (172.30.0.1), so it is no next hop",
    )


def test_networks_without_a_peer_of_their_family_are_told_but_are_no_problem() -> None:
    """They may well be announced over a session of the other family."""
    both = metallb(pool("p", "198.51.100.0/24", "2001:db8:51::/64"), advertise(), peer("a", "10.0.0.8"))
    found = decide(BGP, both)
    remark = "no next hop is for its IPv6 networks, so they have no path"
    assert (found.paths[0].path.remarks, found.problems) == ((remark,), ())
    assert [rule.family for rule in found.state.routing.rules] == [4]
    assert decide(f'{BGP}destination = "10.0.0.0/8"\n', both).paths[0].path.remarks == ()


def test_a_path_none_of_whose_networks_has_a_peer_does_nothing() -> None:
    found = decide(BGP, metallb(pool("p", "2001:db8:51::/64"), advertise(), peer("a", "10.0.0.8")))
    reason = "no BGP peer for its IPv6 networks is a neighbour"
    assert found.paths[0].path.obstacle == reason
    assert told(found) == (f"return path bgp: {reason}",)
    assert (routes(found), rules(found), found.paths[0].slot) == ([], [], None)


def test_no_peers_leave_nothing_but_the_table_stays_ours() -> None:
    found = decide(BGP, metallb(pool("p", "198.51.100.0/24"), advertise()))
    assert (routes(found), rules(found), found.problems) == ([], [], ())
    assert found.paths[0].path.obstacle == "no usable BGP peer selects this node"
    assert found.tables == {20}


def test_a_node_that_is_none_of_the_cluster_is_told_since_selectors_cannot_select_it() -> None:
    found = decide(BGP, dataclasses.replace(PEERING, nodes=(node("b"),)))
    assert told(found) == ("return path bgp: no Node is called a, so no peer's nodeSelectors select it; set node.name",)


def test_a_peer_alone_makes_no_path() -> None:
    assert decide(BGP, metallb(peer("a", "10.0.0.8"))).paths[0].path.obstacle == "no pool is announced by BGP"


def test_both_kinds_of_paths_have_their_own_marks() -> None:
    found = decide(L2 + BY_ANY, PEERING)
    assert {str(p.holder) for p in firewall(found).paths.values()} == {"path:one", "path::bgp"}
    assert found.tables == {1000001, 20}


def test_rules_ask_for_the_source_and_leave_the_cluster_to_the_main_table() -> None:
    found = decide(f'[return_path]\nmatch = ["rules"]\nexclude_cidrs = ["172.16.0.0/12"]\n{L2}')
    assert rules(found) == [
        "IPv4 priority 4710 from 192.0.2.0/24 lookup 1000001",
        "IPv6 priority 4710 from 2001:db8::/64 lookup 1000001",
    ]
    assert firewall(found).paths == {}
    thrown = [text for text in routes(found) if text.startswith("throw")]
    for network in ("10.244.0.0/16", "172.16.0.0/12"):
        assert any(network in text for text in thrown), thrown


def test_rules_and_marks_lead_to_one_table() -> None:
    text = f'[return_path]\nmatch = ["rules", "conntrack"]\n{BY_ANY}rule_fwmark = 5\n'
    found = decide(text, PEERING)
    assert firewall(found).match == {Match.CONNTRACK}
    led = [rule for rule in found.state.routing.rules if rule.family == 4]
    assert {rule.table for rule in led} == {20}
    assert {(str(rule.source), rule.mark, rule.mask) for rule in led if rule.source} == {
        ("198.51.100.0/24", 5, 0xFFFFFFFF)
    }
    assert [rule.source for rule in led].count(None) == 1


# --- sysctls ---------------------------------------------------------------------------------------------------------

RP = {"all": 1, "default": 1, "eth0": 1, "eth1": 1, "veth7": 2, "lo": 0}
SYSCTLS: dict[str, tuple[str, dict[str, int], dict[str, str]]] = {
    "keep": ("keep", RP, {}),
    "loose where it is strict": ("loose", RP, {"eth1": "2"}),
    "loose where it is off": ("loose", {"all": 0, "eth1": 0}, {}),
    "loose where it is loose": ("loose", {"all": 2, "eth1": 1}, {}),
    "off: all as well, and the others keep their strictness": ("off", RP, {"all": "0", "eth1": "0", "lo": "1"}),
    "off with all loose": (
        "off",
        {"all": 2, "default": 1, "eth0": 1, "eth1": 1},
        {"all": "0", "default": "2", "eth0": "2", "eth1": "0"},
    ),
    "off where all is off": ("off", {"all": 0, "default": 1, "eth0": 1, "eth1": 1}, {"eth1": "0"}),
    "auto with an address": ("auto", RP, {"eth1": "2"}),
    "filter is off too": ("filter", RP, {"all": "0", "eth1": "0", "lo": "1"}),
}


@pytest.mark.parametrize("name", SYSCTLS)
def test_F17_reverse_path_filtering(name: str) -> None:
    mode, present, wanted = SYSCTLS[name]
    found = decide(f'{L2}rp_filter = "{mode}"\n', host=dataclasses.replace(HERE, rp_filter=present))
    assert found.state.sysctls == {f"net/ipv4/conf/{i}/rp_filter": value for i, value in wanted.items()}


def test_all_is_turned_off_last_and_comes_back_first() -> None:
    host = dataclasses.replace(HERE, rp_filter=RP)
    after = decide(f'{L2}rp_filter = "off"\n', host=host).state
    before = NodeState(sysctls={f"net/ipv4/conf/{i}/rp_filter": str(v) for i, v in RP.items()})
    there = [s.operation for s in diff.steps(before, NodeState(sysctls=after.sysctls), why=lambda _: "")]
    names = [o.name.split("/")[3] for o in there if isinstance(o, diff.SetSysctl)]
    assert names == ["lo", "all", "eth1"]
    back = diff.steps(NodeState(sysctls=after.sysctls), NodeState(), why=lambda _: "")
    restored = [s.operation.name.split("/")[3] for s in back if isinstance(s.operation, diff.RestoreSysctl)]
    assert restored == ["all", "eth1", "lo"]


def test_the_filter_spares_the_pools_and_no_other_network() -> None:
    wall = firewall(decide(f'{L2}rp_filter = "filter"\n'))
    assert wall.checked == {"eth1"}
    assert wall.spared == {ip_network("192.0.2.0/24")}


@pytest.mark.parametrize(
    ("present", "checked"), [({"all": 1, "eth1": 2}, True), ({"all": 0, "eth1": 0}, False)], ids=["on", "off"]
)
def test_without_an_address_auto_is_filter_where_the_kernel_filters(present: dict[str, int], checked: bool) -> None:
    """Loose filtering drops there what strict filtering would."""
    link = dataclasses.replace(UP, has_ipv4=False)
    found = decide(L2, host=dataclasses.replace(HERE, links={"eth1": link}, rp_filter=present))
    assert firewall(found).checked == ({"eth1"} if checked else frozenset())
    wanted = {"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/eth1/rp_filter": "0"}
    assert found.state.sysctls == (wanted if checked else {})
    assert not told(found)


def test_an_interface_that_the_filter_cannot_name_is_told() -> None:
    host = dataclasses.replace(HERE, links={"e~1": UP}, rp_filter={"all": 1, "e~1": 1})
    found = decide(f'{L2.replace("eth1", "e~1")}rp_filter = "filter"\n', host=host)
    reason = 'the packet filter cannot name interface e~1: rp_filter = "filter" checks nothing there'
    assert told(found) == (f"return path one: {reason}",)
    assert firewall(found).checked == frozenset()


def test_an_interface_without_an_address_needs_more_than_loose() -> None:
    bare = dataclasses.replace(HERE, links={"eth1": Link(up=True, has_ipv4=False)}, rp_filter={"all": 0, "eth1": 2})
    loose = f'{L2}rp_filter = "loose"\n'
    assert "has no IPv4 address" in told(decide(loose, host=bare))[0]
    assert told(decide(f'{L2}rp_filter = "off"\n', host=bare)) == ()
    assert told(decide(loose, host=dataclasses.replace(bare, rp_filter={"all": 0, "eth1": 0}))) == ()


ARP = {
    "nothing set": ({"arp_ignore": 0, "arp_announce": 0}, {"arp_ignore": "1", "arp_announce": "2"}),
    "what is stricter stays": ({"arp_ignore": 2, "arp_announce": 1}, {"arp_announce": "2"}),
    "all set": ({"arp_ignore": 1, "arp_announce": 2}, {}),
}


@pytest.mark.parametrize("name", ARP)
def test_strict_arp(name: str) -> None:
    present, wanted = ARP[name]
    found = decide("host.strict_arp = true", host=dataclasses.replace(HERE, arp=present))
    assert found.state.sysctls == {f"net/ipv4/conf/all/{key}": value for key, value in wanted.items()}


def test_interfaces_of_peers_are_loosened_as_those_of_steered_traffic() -> None:
    host = dataclasses.replace(HERE, rp_filter={"all": 0, "eth0": 1})
    assert decide(BGP, PEERING, host).state.sysctls == {"net/ipv4/conf/eth0/rp_filter": "2"}
    assert decide(f'{BGP}[host]\nrp_filter = "keep"\n', PEERING, host).state.sysctls == {}


def questions(text: str) -> dict[str, Any]:
    settings: Config = config(text)
    wanted = pools.read(PEERING, settings, A)
    asked = desired.questions(survey.take(PEERING, settings), wanted, WantedAddresses(), settings, A)
    return {"addresses": len(asked.addresses), "links": set(asked.links), "all": asked.all_rp_filters}


def test_the_host_is_asked_only_what_is_needed() -> None:
    assert questions("") == {"addresses": 0, "links": set(), "all": False}
    assert questions(BGP) == {"addresses": 3, "links": set(), "all": False}
    assert questions(f'{L2}rp_filter = "off"\n') == {"addresses": 0, "links": {"eth1"}, "all": True}


# --- egress and return path together ---------------------------------------------------------------------------------

ANNOUNCED_HERE = egress_cluster(
    services=[service(ingress=["192.0.2.200"])],
    slices=[endpoint_slice(endpoint("10.244.1.5", node="a"), endpoint("10.244.2.5", node="b"))],
    announcements=[announced("a")],
)


def test_egress_of_an_address_with_its_own_router_leaves_by_that_router() -> None:
    found = decide(state=ANNOUNCED_HERE)
    wall = firewall(found)
    (slot,) = (slot for slot, name in wall.gateways.items() if name == "egress:one")
    assert {pod.slot for pod in wall.pods.values()} == {slot}
    assert {pod.treatment for pod in wall.pods.values()} == {Treatment.SNAT}
    table = 1000000 + slot
    assert f"IPv4 priority 4700 fwmark {wall.mark(slot):#x}/0x3f000000 lookup {table}" in rules(found)
    own = [text for text in routes(found) if text.endswith(f"table {table}")]
    assert f"default (IPv4) via 10.1.0.1 dev eth1 onlink table {table}" in own
    assert f"unreachable default (IPv4) metric {UNREACHABLE_METRIC} table {table}" in own
    assert wall.paths.keys() & wall.gateways.keys() == set()
    plan, settings = Plan(desired=found, steps=diff.steps(NodeState(), found.state, why=lambda _: "")), config()
    assert report.gateways(plan, settings) == [], "an exit is no gateway"
    (leaving,) = report.exits(plan, settings)
    assert (leaving["path"], leaving["slot"]) == ("one", slot)
    assert leaving["next_hops"] == {"4": "10.1.0.1 dev eth1", "6": "fd01::1 dev eth1"}
    assert f"+ exit egress:one has slot {slot}, mark {wall.mark(slot):#x}" in map(str, plan.changes)


def test_egress_is_held_while_the_path_of_its_address_does_not_work() -> None:
    found = decide(state=ANNOUNCED_HERE, host=dataclasses.replace(HERE, links={}))
    assert {pod.treatment for pod in firewall(found).pods.values()} == {Treatment.HOLD, Treatment.ELSEWHERE}
    obstacle = found.services[0].obstacle
    assert obstacle
    assert obstacle.code is Code.NO_EXIT
    assert "there is no interface eth1" in obstacle.detail


def test_egress_of_an_address_without_a_path_of_its_own_is_as_ever() -> None:
    found = decide(L2.replace("192.0.2.0/24", "203.0.113.0/24"), ANNOUNCED_HERE)
    assert set(firewall(found).gateways.values()) == {"a"}


@pytest.mark.parametrize(("gateway", "tables"), [("a", 4), ("b", 3)], ids=["it leaves here", "it is steered"])
def test_F18_in_each_table_of_a_mark_pods_are_where_the_main_table_says(gateway: str, tables: int) -> None:
    """In a path's table nodes and neighbours as well, but not in one of egress: there they may be outside."""
    pods = ["10.244.0.0/16", "10.97.0.0/24", "fd00:10:244::/56"]
    near = [*pods, "10.0.0.0/24", "fd00::/64", "172.31.0.5/32"]
    neighbour = ip_address("10.0.0.2")
    host = dataclasses.replace(
        HERE, interfaces={**HERE.interfaces, neighbour: "eth0"}, on_link=HERE.on_link | {neighbour}
    )
    nodes = (node("a"), node("b"), node("c", others=["172.31.0.5"]))
    state = dataclasses.replace(ANNOUNCED_HERE, announcements=(announced(gateway),), nodes=nodes)
    found = decide(f"[cluster]\npod_cidrs = {pods}\n{L2}", state, host)
    of_path = found.paths[0].table
    led = {(rule.table, rule.family) for rule in found.state.routing.rules}
    assert len(led) == tables
    thrown = {(r.table, r.destination) for r in found.state.routing.routes if r.type is RouteType.THROW}
    assert thrown == {
        (table, network)
        for table, family in led
        for network in map(ip_network, near if table == of_path else pods)
        if network.version == family
    }


def test_a_network_that_the_interface_has_an_address_in_stays_the_paths_own() -> None:
    host = dataclasses.replace(HERE, connected=HERE.connected | {ip_network("192.0.2.0/24")})
    found = decide(host=host)
    assert [text for text in routes(found) if "192.0.2" in text] == ["192.0.2.0/24 dev eth1 table 1000001"]
