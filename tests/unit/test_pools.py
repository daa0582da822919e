"""Which networks and next hops return paths are asked to have, from MetalLB's objects and the configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from metaleg_node.core.model import AddressPool, Advertisement, BGPPeer, ClusterState, Node, NodeName
from metaleg_node.core.objects.manifests import parse
from metaleg_node.core.problems import Code
from metaleg_node.core.return_path import wanted as pools
from tests.unit.builders import A, config

BGP = "[return_path.bgp]\nenabled = true\n"


def an_object(kind: str, name: str, spec: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    version = "v1beta2" if kind == "BGPPeer" else "v1beta1"
    metadata = {"name": name, "namespace": "metallb-system", "labels": dict(labels or {})}
    return {"apiVersion": f"metallb.io/{version}", "kind": kind, "metadata": metadata, "spec": dict(spec)}


def pool(name: str, *addresses: str, **labels: str) -> dict[str, Any]:
    return an_object("IPAddressPool", name, {"addresses": list(addresses)}, labels)


def advertise(name: str = "all", **spec: Any) -> dict[str, Any]:
    return an_object("BGPAdvertisement", name, spec)


def peer(name: str, address: str | None, labels: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return an_object("BGPPeer", name, ({"peerAddress": address} if address else {}) | spec, labels)


def a_node(**labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "labels": labels}}


def cluster(*raws: dict[str, Any]) -> ClusterState:
    found = [one for raw in raws for one in parse(raw).objects]
    return ClusterState(
        nodes=tuple(one for one in found if isinstance(one, Node)),
        pools=tuple(one for one in found if isinstance(one, AddressPool)),
        advertisements=tuple(one for one in found if isinstance(one, Advertisement)),
        peers=tuple(one for one in found if isinstance(one, BGPPeer)),
    )


def read(*raws: dict[str, Any], text: str = BGP, me: NodeName = A) -> pools.WantedPaths:
    return pools.read(cluster(*raws), config(text), me)


def networks(found: pools.WantedPaths, index: int = 0) -> list[str]:
    return sorted(map(str, found.paths[index].networks))


def hops(found: pools.WantedPaths, index: int = 0) -> dict[str, int]:
    return {str(gateway.address): gateway.weight for gateway in found.paths[index].routers}


# --- whose objects ---

OLD = {
    "peers": [{"peer-address": "10.0.0.9"}],
    "address-pools": [{"name": "old", "protocol": "bgp", "addresses": ["198.51.100.0/28"]}],
}
CUSTOM = (pool("new", "192.0.2.0/28"), advertise(), peer("p", "10.0.0.1"))


@pytest.mark.parametrize(
    ("mode", "objects", "expected"),
    [
        ("auto", (OLD, *CUSTOM), (["192.0.2.0/28"], {"10.0.0.1"})),
        ("crds", (OLD, *CUSTOM), (["192.0.2.0/28"], {"10.0.0.1"})),
        ("configmap", (OLD, *CUSTOM), (["198.51.100.0/28"], {"10.0.0.9"})),
        ("auto", (OLD,), (["198.51.100.0/28"], {"10.0.0.9"})),
        ("auto", CUSTOM, (["192.0.2.0/28"], {"10.0.0.1"})),
        ("crds", (OLD,), ([], set())),
        ("configmap", CUSTOM, ([], set())),
    ],
)
def test_either_custom_resources_or_the_old_configuration_counts(
    mode: str, objects: Sequence[dict[str, Any]], expected: tuple[list[str], set[str]]
) -> None:
    found = read(*objects, text=f'cluster.metallb_config = "{mode}"\n{BGP}')
    assert (networks(found), set(hops(found))) == expected
    unused = {rejection.ref.kind for rejection in found.rejections}
    assert unused <= {"AddressPool", "BGPPeer", "IPAddressPool", "BGPAdvertisement"}
    assert bool(unused) == (len(objects) == 4 or not expected[0])
    assert all(f"(cluster.metallb_config is {mode})" in rejection.reason for rejection in found.rejections)


def test_what_is_not_in_metallbs_namespace_does_not_count_and_is_told() -> None:
    strangers = [dict(one, metadata={**one["metadata"], "namespace": "tenant"}) for one in CUSTOM]
    strangers[2]["spec"] = {"peerAddress": "10.0.0.66"}
    found = read(*CUSTOM, *strangers)
    assert (networks(found), set(hops(found))) == (["192.0.2.0/28"], {"10.0.0.1"})
    assert {str(rejection.ref) for rejection in found.rejections} == {
        "IPAddressPool tenant/new",
        "BGPAdvertisement tenant/all",
        "BGPPeer tenant/p",
    }
    assert all("is not in MetalLB's namespace metallb-system" in r.reason for r in found.rejections)


# --- which pools -----------------------------------------------------------------------------------------------------

POOLS = (
    pool("plain", "192.0.2.0/28"),
    pool("gold", "192.0.2.16/28", tier="gold", zone="a"),
    pool("silver", "192.0.2.32/28", tier="silver"),
)


def matching(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


SELECTIONS: dict[str, tuple[Sequence[dict[str, Any]], list[str]]] = {
    "N1 neither names nor selectors: all": ([{}], ["plain", "gold", "silver"]),
    "N1 empty lists: all": ([{"ipAddressPools": [], "ipAddressPoolSelectors": []}], ["plain", "gold", "silver"]),
    "by name": ([{"ipAddressPools": ["plain", "gone"]}], ["plain"]),
    "by label": ([{"ipAddressPoolSelectors": [{"matchLabels": {"tier": "gold"}}]}], ["gold"]),
    "all labels of one selector": ([{"ipAddressPoolSelectors": [{"matchLabels": {"tier": "gold", "zone": "b"}}]}], []),
    "In": ([{"ipAddressPoolSelectors": [matching("tier", "In", "gold", "silver")]}], ["gold", "silver"]),
    "NotIn also selects where the label is absent": (
        [{"ipAddressPoolSelectors": [matching("tier", "NotIn", "gold")]}],
        ["plain", "silver"],
    ),
    "Exists": ([{"ipAddressPoolSelectors": [matching("zone", "Exists")]}], ["gold"]),
    "DoesNotExist": ([{"ipAddressPoolSelectors": [matching("tier", "DoesNotExist")]}], ["plain"]),
    "several selectors are alternatives": (
        [{"ipAddressPoolSelectors": [matching("zone", "Exists"), {"matchLabels": {"tier": "silver"}}]}],
        ["gold", "silver"],
    ),
    "an empty selector selects everything": ([{"ipAddressPoolSelectors": [{}]}], ["plain", "gold", "silver"]),
    "names and selectors together": (
        [{"ipAddressPools": ["plain"], "ipAddressPoolSelectors": [matching("zone", "Exists")]}],
        ["plain", "gold"],
    ),
    "several advertisements": ([{"ipAddressPools": ["plain"]}, {"ipAddressPools": ["silver"]}], ["plain", "silver"]),
    "no advertisement": ([], []),
}
OF_POOL = {"plain": "192.0.2.0/28", "gold": "192.0.2.16/28", "silver": "192.0.2.32/28"}


@pytest.mark.parametrize("name", SELECTIONS)
def test_which_pools_are_announced_by_BGP(name: str) -> None:
    specs, wanted = SELECTIONS[name]
    found = read(*POOLS, *(advertise(f"a{i}", **spec) for i, spec in enumerate(specs)))
    addresses = {str(address) for network in found.paths[0].networks for address in network}
    assert addresses == {str(a) for n in wanted for a in ip_network(OF_POOL[n])}


def test_layer_2_advertisements_are_not_BGP() -> None:
    assert networks(read(*POOLS, an_object("L2Advertisement", "l2", {}))) == []


def test_overlapping_pools_are_merged_and_ranges_become_exactly_their_networks() -> None:
    found = read(pool("a", "192.0.2.0-192.0.2.9"), pool("b", "192.0.2.8/30", "2001:db8::/127"), advertise())
    assert networks(found) == ["192.0.2.0/29", "192.0.2.8/30", "2001:db8::/127"]


OLD = {
    "peers": [
        {"peer-address": "10.0.0.1", "peer-asn": 1, "my-asn": 2},
        {"peer-address": "10.0.0.2", "node-selectors": [{"match-labels": {"rack": "r2"}}]},
        {"peer-address": "fd00::1", "node-selectors": [{"match-expressions": [{"key": "rack", "operator": "Exists"}]}]},
    ],
    "address-pools": [
        {"name": "bgp", "protocol": "bgp", "addresses": ["192.0.2.0/24"]},
        {"name": "l2", "protocol": "layer2", "addresses": ["198.51.100.0/24"]},
    ],
}


def test_the_old_configuration_names_the_protocol_with_each_pool() -> None:
    found = read(OLD, a_node(rack="r1"))
    assert networks(found) == ["192.0.2.0/24"]
    assert hops(found) == {"10.0.0.1": 100, "fd00::1": 100}


# --- which peers -----------------------------------------------------------------------------------------------------

PEERS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "no selectors: every node": (peer("p", "10.0.0.1"), {"10.0.0.1": 100}),
    "an empty list of selectors: every node": (peer("p", "10.0.0.1", nodeSelectors=[]), {"10.0.0.1": 100}),
    "this node": (peer("p", "10.0.0.1", nodeSelectors=[{"matchLabels": {"rack": "r1"}}]), {"10.0.0.1": 100}),
    "another node": (peer("p", "10.0.0.1", nodeSelectors=[{"matchLabels": {"rack": "r2"}}]), {}),
    "one of two selectors": (
        peer("p", "10.0.0.1", nodeSelectors=[{"matchLabels": {"rack": "r2"}}, matching("rack", "In", "r1")]),
        {"10.0.0.1": 100},
    ),
    "N2 IPv6": (peer("p", "fd00::1"), {"fd00::1": 100}),
    "enabled by label": (peer("p", "10.0.0.1", {pools.ENABLED: "true"}), {"10.0.0.1": 100}),
    "disabled by 0": (peer("p", "10.0.0.1", {pools.ENABLED: "0"}), {}),
    "disabled by false": (peer("p", "10.0.0.1", {pools.ENABLED: "False"}), {}),
    "disabled by no": (peer("p", "10.0.0.1", {pools.ENABLED: "no"}), {}),
    "another address": (peer("p", "10.0.0.1", {pools.ADDRESS: "10.0.0.9"}), {"10.0.0.9": 100}),
    "an address outside of its VRF": (peer("p", "10.0.0.1", {pools.ADDRESS: "10.0.0.9"}, vrf="red"), {"10.0.0.9": 100}),
    "N3 an address for an unnumbered peer": (peer("p", None, {pools.ADDRESS: "10.0.0.9"}), {"10.0.0.9": 100}),
    "least weight": (peer("p", "10.0.0.1", {pools.WEIGHT: "1"}), {"10.0.0.1": 1}),
    "greatest weight": (peer("p", "10.0.0.1", {pools.WEIGHT: "256"}), {"10.0.0.1": 256}),
}


@pytest.mark.parametrize("name", PEERS)
def test_which_peers_are_next_hops(name: str) -> None:
    raw, wanted = PEERS[name]
    found = read(raw, a_node(rack="r1"), *POOLS, advertise())
    assert hops(found) == wanted
    assert found.rejections == ()


BAD_PEERS: dict[str, tuple[dict[str, Any], dict[str, int], str]] = {
    "in a VRF": (peer("p", "10.0.0.1", vrf="red"), {}, "is a peer in VRF red (spec.vrf)"),
    "N3 unnumbered": (peer("p", None, interface="eth1"), {}, "has no address (unnumbered)"),
    "a refused address": (peer("p", "fe80::1"), {}, "its spec.peerAddress cannot be used, so it is no next hop"),
    "weight 0": (peer("p", "10.0.0.1", {pools.WEIGHT: "0"}), {"10.0.0.1": 100}, "'0' is not a number from 1 to 256"),
    "weight 257": (peer("p", "10.0.0.1", {pools.WEIGHT: "257"}), {"10.0.0.1": 100}, "'257' is not a number"),
    "weight in words": (peer("p", "10.0.0.1", {pools.WEIGHT: "much"}), {"10.0.0.1": 100}, "has the weight 100"),
    "address of nobody": (peer("p", "10.0.0.1", {pools.ADDRESS: "gateway"}), {}, "'gateway' is not an IP address"),
}


@pytest.mark.parametrize("name", BAD_PEERS)
def test_a_peer_that_is_not_as_it_should_be_is_told(name: str) -> None:
    raw, wanted, reason = BAD_PEERS[name]
    found = read(raw, *POOLS, advertise())
    assert hops(found) == wanted
    assert [str(r.ref) for r in found.rejections] == ["BGPPeer metallb-system/p"]
    assert reason in found.rejections[0].reason


def test_an_advertisement_to_some_peers_only_is_told_and_no_problem() -> None:
    (told,) = read(peer("p", "10.0.0.1"), *POOLS, advertise(peers=["p"])).rejections
    assert (str(told.ref), told.harmless) == ("BGPAdvertisement metallb-system/all", True)
    assert "spec.peers is not looked at" in told.reason


def test_objects_of_another_namespace_are_told_with_what_to_do() -> None:
    (told,) = read(peer("p", "10.0.0.1"), text='cluster.metallb_namespace = "lb"\n' + BGP).rejections
    assert told.reason.endswith("; where MetalLB runs in metallb-system, set that")


def test_N4_the_configured_weight_counts_where_no_label_says_otherwise() -> None:
    found = read(peer("p", "10.0.0.1"), peer("q", "10.0.0.2", {pools.WEIGHT: "7"}), text=f"{BGP}peer_weight = 30\n")
    assert hops(found) == {"10.0.0.1": 30, "10.0.0.2": 7}


def test_two_peers_with_one_address_are_one_next_hop() -> None:
    found = read(peer("q", "10.0.0.1", {pools.WEIGHT: "9"}), peer("p", "10.0.0.1", {pools.WEIGHT: "3"}))
    assert hops(found) == {"10.0.0.1": 3}


def test_without_BGP_there_is_no_path_of_it() -> None:
    assert read(*POOLS, advertise(), peer("p", "10.0.0.1"), text="").paths == ()


# --- layer 2 ---------------------------------------------------------------------------------------------------------

L2 = """
[[return_path.l2]]
name = "one"
interface = "eth1"
gateways = ["10.1.0.1", "fd01::1"]
pools = ["gold"]
cidrs = ["198.51.100.0/24", "2001:db8::/64"]
[[return_path.l2]]
name = "two"
interface = "eth2"
gateways = ["10.2.0.1"]
pools = ["silver", "gold", "none"]
[[return_path.l2]]
name = "three"
interface = "eth3"
cidrs = ["198.51.100.0/25"]
"""


def test_a_path_has_its_pools_and_networks() -> None:
    found = read(*POOLS, text=L2)
    assert networks(found) == ["192.0.2.16/28", "198.51.100.0/24", "2001:db8::/64"]
    assert found.paths[0].owned == found.paths[0].networks
    assert hops(found) == {"10.1.0.1": 1, "fd01::1": 1}
    assert [str(path.holder) for path in found.paths] == ["path:one", "path:two", "path:three"]


@pytest.mark.parametrize("name", ["Public_Pool", "p.1", "9-A", "x" * 253])
def test_a_pool_of_the_old_configuration_is_found_by_whatever_name_it_has(name: str) -> None:
    old = {"address-pools": [{"name": name, "protocol": "layer2", "addresses": ["192.0.2.0/24"]}]}
    text = f'[[return_path.l2]]\nname = "one"\ninterface = "eth1"\npools = ["{name}"]\n'
    assert networks(read(old, text=text)) == ["192.0.2.0/24"]


def test_an_address_belongs_to_the_first_path_and_a_pool_that_is_not_there_is_told() -> None:
    two = read(*POOLS, text=L2).paths[1]
    assert sorted(map(str, two.networks)) == ["192.0.2.16/28", "192.0.2.32/28"]
    assert list(map(str, two.owned)) == ["192.0.2.32/28"]
    assert two.notes == (
        "there is no IPAddressPool none",
        "some of its addresses belong to a path before it, which takes their replies",
    )


def test_a_path_without_a_gateway_takes_no_replies() -> None:
    three = read(*POOLS, text=L2).paths[2]
    assert three.owned == frozenset()
    assert three.notes == ()


def test_a_family_without_a_gateway_stays_free_for_others() -> None:
    text = L2.replace(', "fd01::1"', "") + '[[return_path.l2]]\nname = "six"\ninterface = "eth6"\n'
    found = read(*POOLS, text=text + 'gateways = ["fd06::1"]\ncidrs = ["2001:db8::/64"]\n')
    assert list(map(str, found.paths[3].owned)) == ["2001:db8::/64"]


HINTS = {
    "no path": ("", ["cilium_host"], False),
    "no Cilium": (BGP, ["eth0", "lxc1"], False),
    "Cilium": (BGP, ["eth0", "cilium_net", "cilium_host"], True),
    "known by rules": (f'[return_path]\nmatch = ["rules"]\n{BGP}', ["cilium_host"], False),
}


@pytest.mark.parametrize("name", HINTS)
def test_a_hint_where_packets_may_pass_netfilter_by(name: str) -> None:
    text, interfaces, hint = HINTS[name]
    found = pools.unseen(interfaces, config(text))
    assert ("interface cilium_host says that Cilium is here" in found) == hint
    assert bool(found) == hint


# --- what is inside the cluster --------------------------------------------------------------------------------------

GATEWAY = '[[return_path.l2]]\nname = "one"\ninterface = "eth1"\npools = ["p"]\ngateways = ["10.1.0.1"]\n'
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "a", "labels": {}},
    "spec": {"podCIDRs": ["10.244.1.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]},
}
HELD: dict[str, tuple[str, str, list[str], str]] = {
    "a node's address in a pool": (
        GATEWAY,
        "192.0.2.0/29",
        ["192.0.2.0/31", "192.0.2.3/32", "192.0.2.4/30"],
        "192.0.2.2 is the address of Node a, but IPAddressPool metallb-system/p holds it; it is left out",
    ),
    "a node's address in a pool of BGP": (
        BGP,
        "192.0.2.2-192.0.2.3",
        ["192.0.2.3/32"],
        "192.0.2.2 is the address of Node a, but IPAddressPool metallb-system/p holds it; it is left out",
    ),
    "a pod network in a pool": (
        GATEWAY,
        "10.244.0.0/23",
        ["10.244.0.0/24"],
        "10.244.1.0/24 is a pod network of Node a, but IPAddressPool metallb-system/p holds it; it is left out",
    ),
    "a pool in a pod network": (
        GATEWAY,
        "10.244.1.7-10.244.2.0",
        ["10.244.2.0/32"],
        "10.244.1.0/24 is a pod network of Node a, but IPAddressPool metallb-system/p holds it; it is left out",
    ),
    "a pod network of the configuration in cidrs": (
        GATEWAY.replace('pools = ["p"]', 'cidrs = ["172.16.0.0/15"]') + 'cluster.pod_cidrs = ["172.17.0.0/16"]',
        "192.0.2.100/32",
        ["172.16.0.0/16"],
        "172.17.0.0/16 is a pod network of cluster.pod_cidrs, but cidrs (172.16.0.0/15) holds it; it is left out",
    ),
    "a Service network": (
        GATEWAY + 'cluster.service_cidrs = ["10.96.0.0/30"]',
        "10.96.0.0/29",
        ["10.96.0.4/30"],
        "10.96.0.0/30 is a Service network of cluster.service_cidrs, but IPAddressPool metallb-system/p holds it; "
        "it is left out",
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_no_path_takes_what_nodes_and_pods_send(name: str) -> None:
    text, addresses, owned, told = HELD[name]
    text = "\n".join(sorted(text.splitlines(), key=lambda line: not line.startswith("cluster.")))
    raws = [pool("p", addresses), advertise(), peer("x", "10.9.9.9"), NODE]
    (path,) = read(*raws, text=text).paths
    assert sorted(map(str, path.owned)) == owned
    (problem,) = path.problems
    assert (problem.code, problem.text) == (Code.PATH_OVERLAP, told)
    assert problem.subject == f"return path {path.name}"


def test_a_path_without_a_gateway_takes_nothing_that_nodes_send() -> None:
    without = GATEWAY.replace('gateways = ["10.1.0.1"]\n', "")
    (path,) = read(pool("p", "192.0.2.0/29"), NODE, text=without).paths
    assert not [*path.problems]
    assert sorted(map(str, path.on_link)) == ["192.0.2.0/29"], "a node may be on the path's link"


def test_pods_are_on_no_paths_link() -> None:
    without = GATEWAY.replace('gateways = ["10.1.0.1"]\n', "")
    (path,) = read(pool("p", "10.244.0.0/23"), NODE, text=without).paths
    assert sorted(map(str, path.on_link)) == ["10.244.0.0/24"]
    assert [one.code for one in path.problems] == [Code.PATH_OVERLAP]


def test_of_many_addresses_of_the_cluster_only_some_are_named() -> None:
    nodes = []
    for number in range(1, 101):
        raw = copy.deepcopy(NODE)
        raw["metadata"] = {"name": f"n{number}", "labels": {}}
        raw["status"] = {"addresses": [{"type": "InternalIP", "address": f"192.0.2.{number}"}]}
        raw["spec"] = {}
        nodes.append(raw)
    (path,) = read(pool("p", "192.0.2.0/24"), *nodes, text=GATEWAY).paths
    assert sum(network.num_addresses for network in path.owned) == 156
    told = [problem.text for problem in path.problems]
    assert len(told) == 11
    assert told[-1] == "and 90 more addresses and networks of the cluster"
