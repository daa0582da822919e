"""MetalLB's pools, peers and advertisements from the API: what is asked for, which of them exist, and what failures
cost."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from metaleg_node.configuration.config import Config, parse
from metaleg_node.core.model import NodeName
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.sources.resources import subjects
from tests.api import faults
from tests.api.faults import a_watch
from tests.api.harness import Harness, eventually, node
from tests.api.server import ApiServer, Object

ONLY_PATHS = "egress.enabled = false\n"
BGP = ONLY_PATHS + "return_path.bgp.enabled = true\n"
L2 = ONLY_PATHS + '[[return_path.l2]]\nname = "p"\ninterface = "eth1"\n'
CRDS = (
    "metallb.io/v1beta1/ipaddresspools",
    "metallb.io/v1beta2/bgppeers",
    "metallb.io/v1beta1/bgpadvertisements",
)
NETWORKS = ["Node", "ServiceCIDR"]
EGRESS = ["Service", "EndpointSlice", *NETWORKS, "ServiceL2Status", "ServiceBGPStatus"]


def following(harness: Harness, text: str) -> Harness:
    """The source with this configuration and the server's kubeconfig."""
    return harness.configured(parse(f'cluster.kubeconfig = "{harness.config.cluster.kubeconfig}"\n{text}', file="F"))


def metallb(kind: str, name: str, spec: dict[str, Any], version: str = "v1beta1") -> Object:
    metadata = {"name": name, "namespace": "metallb-system"}
    return {"apiVersion": f"metallb.io/{version}", "kind": kind, "metadata": metadata, "spec": spec}


def pool(name: str, *addresses: str) -> Object:
    return metallb("IPAddressPool", name, {"addresses": list(addresses)})


def peer(name: str, address: str, version: str = "v1beta2", **spec: Any) -> Object:
    return metallb("BGPPeer", name, {"peerAddress": address, "peerASN": 1, "myASN": 2, **spec}, version)


def advertisement(name: str = "all", **spec: Any) -> Object:
    return metallb("BGPAdvertisement", name, spec)


def configmap(text: object, name: str = "config", namespace: str = "metallb-system") -> Object:
    data = {"config": text if isinstance(text, str) else yaml.safe_dump(text)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def old(*peers: str, protocol: str = "bgp") -> Object:
    """MetalLB's old configuration: a pool and these peers."""
    pools_ = [{"name": "old", "protocol": protocol, "addresses": ["198.51.100.0/24"]}]
    return configmap({"peers": [{"peer-address": address} for address in peers], "address-pools": pools_})


def result(harness: Harness) -> tuple[set[str], set[str]]:
    """The networks of the BGP path of worker-1, and its next hops."""
    (path,) = pools.read(harness.store.snapshot(), harness.config, NodeName("worker-1")).paths
    return set(map(str, path.networks)), {str(router.address) for router in path.routers}


def asked(server: ApiServer) -> set[str]:
    return {one.plural for one in server.asked}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", EGRESS),
        (ONLY_PATHS, []),
        (BGP, [*NETWORKS, "IPAddressPool", "BGPPeer", "BGPAdvertisement"]),
        ("return_path.bgp.enabled = true", [*EGRESS, "IPAddressPool", "BGPPeer", "BGPAdvertisement"]),
        (L2 + 'cidrs = ["192.0.2.0/24"]', NETWORKS),
        (L2 + 'pools = ["p"]', [*NETWORKS, "IPAddressPool"]),
        (BGP + 'cluster.metallb_config = "configmap"', [*NETWORKS, "ConfigMap"]),
    ],
)
def test_each_feature_asks_for_what_it_needs(text: str, names: list[str]) -> None:
    assert [subject.name for subject in subjects(parse(text, file="F"))] == names


@pytest.mark.parametrize(
    ("mode", "kinds"), [("auto", ["IPAddressPool", "ConfigMap"]), ("crds", ["IPAddressPool"]), ("configmap", [])]
)
def test_where_pools_are_configured_can_be_told(mode: str, kinds: list[str]) -> None:
    config: Config = parse(f'{BGP}cluster.metallb_config = "{mode}"', file="F")
    found = {subject.name: [choice.kind for choice in subject.choices] for subject in subjects(config)}
    assert found.get("IPAddressPool", []) == kinds


def test_pools_peers_and_advertisements_are_listed_and_watched(server: ApiServer, harness: Harness) -> None:
    labels: dict[str, Any] = {"nodeSelectors": [{"matchLabels": {"zone": "a"}}]}
    worker = node("worker-1")
    worker["metadata"]["labels"] = {"zone": "a"}
    server.put(worker, pool("a", "192.0.2.0/24"), peer("r1", "10.0.0.1", **labels), advertisement(ipAddressPools=["a"]))
    following(harness, BGP).loaded()
    assert result(harness) == ({"192.0.2.0/24"}, {"10.0.0.1"})
    harness.wait(lambda: sum(one.is_watch for one in server.asked) == 5)
    assert asked(server) == {"nodes", "servicecidrs", "ipaddresspools", "bgppeers", "bgpadvertisements"}
    assert all("/namespaces/metallb-system/" in one.path for one in server.asked if "metallb.io" in one.path)
    server.put(peer("r2", "10.0.0.2", **labels), pool("b", "2001:db8::/64"), advertisement(ipAddressPools=["a", "b"]))
    both = {"192.0.2.0/24", "2001:db8::/64"}
    harness.wait(lambda: result(harness) == (both, {"10.0.0.1", "10.0.0.2"}))
    server.delete(peer("r1", "10.0.0.1"))
    harness.wait(lambda: result(harness) == (both, {"10.0.0.2"}))
    worker["metadata"]["labels"] = {"zone": "b"}
    server.put({**worker, "metadata": {"name": "worker-1", "labels": {"zone": "b"}}})
    harness.wait(lambda: result(harness) == (both, set()))
    assert len([one for one in server.asked if not one.is_watch]) == 5


def test_where_the_custom_resources_do_not_exist_the_config_map_counts(server: ApiServer, harness: Harness) -> None:
    for name in CRDS:
        server.serve_resource(name, served=False)
    server.put(old("10.0.0.1"), configmap("peers: [{peer-address: 10.9.9.9}]", name="other"))
    server.put(configmap("peers: [{peer-address: 10.9.9.9}]", namespace="default"))
    following(harness, BGP).loaded()
    assert result(harness) == ({"198.51.100.0/24"}, {"10.0.0.1"})
    queries = [one for one in server.asked if one.plural == "configmaps"]
    assert {one.query["fieldSelector"] for one in queries} == {"metadata.name=config"}
    assert {one.path for one in queries} == {"/api/v1/namespaces/metallb-system/configmaps"}
    server.put(old("10.0.0.1", "10.0.0.2"))
    harness.wait(lambda: result(harness)[1] == {"10.0.0.1", "10.0.0.2"})
    server.delete(old())
    harness.wait(lambda: result(harness) == (set(), set()))
    assert not harness.store.problems


def test_custom_resources_that_come_later_take_the_place_of_the_config_map(server: ApiServer, harness: Harness) -> None:
    for name in CRDS:
        server.serve_resource(name, served=False)
    server.put(old("10.0.0.1"))
    following(harness, BGP).loaded()
    for name in CRDS:
        server.serve_resource(name, served=True)
    server.put(pool("a", "192.0.2.0/24"), peer("r1", "10.0.0.7"), advertisement())
    harness.wait(lambda: result(harness) == ({"192.0.2.0/24"}, {"10.0.0.7"}))


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("auto", ({"192.0.2.0/24"}, {"10.0.0.7"})),
        ("crds", ({"192.0.2.0/24"}, {"10.0.0.7"})),
        ("configmap", ({"198.51.100.0/24"}, {"10.0.0.1"})),
    ],
)
def test_where_both_exist_the_configuration_says_which_counts(
    server: ApiServer, harness: Harness, mode: str, wanted: tuple[set[str], set[str]]
) -> None:
    server.put(old("10.0.0.1"), pool("a", "192.0.2.0/24"), peer("r1", "10.0.0.7"), advertisement())
    following(harness, f'{BGP}cluster.metallb_config = "{mode}"').loaded()
    assert result(harness) == wanted
    assert ("configmaps" in asked(server)) == (mode == "configmap")


def test_with_crds_only_a_config_map_is_never_asked_for(server: ApiServer, harness: Harness) -> None:
    for name in CRDS:
        server.serve_resource(name, served=False)
    server.put(old("10.0.0.1"))
    following(harness, BGP + 'cluster.metallb_config = "crds"').loaded()
    assert result(harness) == (set(), set())
    assert "configmaps" not in asked(server)


def test_peers_of_the_older_version_are_read_where_the_newer_is_not_served(server: ApiServer, harness: Harness) -> None:
    server.serve_resource("metallb.io/v1beta2/bgppeers", served=False)
    server.serve_resource("metallb.io/v1beta1/bgppeers", served=True)
    server.put(pool("a", "192.0.2.0/24"), advertisement(), peer("r1", "10.0.0.1", "v1beta1"))
    following(harness, BGP).loaded()
    assert result(harness)[1] == {"10.0.0.1"}
    server.put(peer("r2", "10.0.0.2", "v1beta1"))
    harness.wait(lambda: result(harness)[1] == {"10.0.0.1", "10.0.0.2"})


BREAKS = {
    "cut off": faults.streams(close=True),
    "expired": faults.answers(410, "Expired"),
    "refused": faults.answers(403, "Forbidden"),
    "not found": faults.answers(404, "NotFound"),
    "error": faults.answers(500, "InternalError"),
    "a proxy's page": faults.html(502),
    "reset": faults.cuts_connection,
}


@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("plural", ["ipaddresspools", "bgppeers", "bgpadvertisements", "configmaps"])
def test_F37_R28_an_aborted_watch_empties_nothing(server: ApiServer, harness: Harness, kind: str, plural: str) -> None:
    server.put(pool("a", "198.51.100.0/24"), peer("r1", "10.0.0.1"), advertisement(), old("10.0.0.1"))
    following(harness, BGP + f'cluster.metallb_config = "{"configmap" if plural == "configmaps" else "crds"}"').loaded()
    seen = []
    harness.observe = lambda: seen.append(result(harness))
    watches = sum(one.is_watch and one.plural == plural for one in server.asked)
    server.inject(BREAKS[kind], when=a_watch(plural), times=3)
    server.break_connections()
    assert eventually(lambda: sum(one.is_watch and one.plural == plural for one in server.asked) > watches + 3)
    server.heal()
    harness.wait_well()
    assert all(one == ({"198.51.100.0/24"}, {"10.0.0.1"}) for one in [*seen, result(harness)])
    # It still follows.
    server.put(peer("r2", "10.0.0.2"), old("10.0.0.1", "10.0.0.2"))
    if plural in ("bgppeers", "configmaps"):
        harness.wait(lambda: result(harness)[1] == {"10.0.0.1", "10.0.0.2"})


@pytest.mark.parametrize(
    ("spoiled", "told"), [("peers: [", "line 2"), ("hello", "no Kubernetes object"), ("peers: 5", "peers")]
)
def test_a_config_map_that_cannot_be_read_is_told(server: ApiServer, harness: Harness, spoiled: str, told: str) -> None:
    server.put(old("10.0.0.1"))
    following(harness, BGP + 'cluster.metallb_config = "configmap"').loaded()
    server.put(configmap(spoiled))
    harness.wait(lambda: bool(harness.store.snapshot().rejections))
    assert told in harness.store.snapshot().rejections[0].reason
    server.put(old("10.0.0.2"))
    harness.wait(lambda: result(harness) == ({"198.51.100.0/24"}, {"10.0.0.2"}))
    assert not harness.store.snapshot().rejections
