"""Whatever pools, peers and advertisements MetalLB has: the last known state says the same about them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from metaleg_node.configuration.config import BgpSettings, Config, ReturnPathSettings
from metaleg_node.core.model import (
    Address,
    AddressPool,
    Advertisement,
    BGPPeer,
    ClusterState,
    LabelRequirement,
    LabelSelector,
    NodeName,
    ObjectRef,
)
from metaleg_node.core.objects import export
from metaleg_node.core.objects.manifests import merge
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.sources.documents import translate
from metaleg_node.sources.store import Store

CONFIGMAP = ("metallb-system", "config")
NAMES = st.sampled_from(["a", "b.c", "0", "true"])
LABELS = st.dictionaries(st.sampled_from(["zone", "metallb-nra/weight", "metallb-nra/address"]), NAMES, max_size=2)
# Addresses that need no scope and are nobody's special ones.
ADDRESSES_V4 = st.integers(0x01000000, 0x09FFFFFF).map(IPv4Address)
ADDRESSES_V6 = st.integers(0x2001_0DB9 << 96, (0x2001_0DBA << 96) - 1).map(IPv6Address)
ADDRESSES: st.SearchStrategy[Address] = ADDRESSES_V4 | ADDRESSES_V6


def ranges() -> st.SearchStrategy[tuple[Address, Address]]:
    ordered = [st.tuples(one, one).map(lambda pair: (min(pair), max(pair))) for one in (ADDRESSES_V4, ADDRESSES_V6)]
    return st.one_of(*ordered)


def requirements() -> st.SearchStrategy[LabelRequirement]:
    listed = st.builds(
        LabelRequirement,
        key=NAMES,
        operator=st.sampled_from(["In", "NotIn"]),
        values=st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    )
    return listed | st.builds(LabelRequirement, key=NAMES, operator=st.sampled_from(["Exists", "DoesNotExist"]))


def selectors() -> st.SearchStrategy[tuple[LabelSelector, ...]]:
    return st.lists(st.lists(requirements(), max_size=3).map(tuple), max_size=2).map(tuple)


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    def refs(kind: str) -> list[ObjectRef]:
        return [ObjectRef(kind=kind, namespace="metallb-system", name=name) for name in sorted(draw(st.sets(NAMES)))]

    some_ranges = st.lists(ranges(), max_size=3).map(tuple)
    found = [AddressPool(ref=ref, labels=draw(LABELS), ranges=draw(some_ranges)) for ref in refs("IPAddressPool")]
    found += [
        AddressPool(
            ref=ObjectRef(kind="AddressPool", name=name),
            labels={},
            ranges=draw(some_ranges),
            protocol=draw(st.sampled_from(["bgp", "layer2"])),
        )
        for name in sorted(draw(st.sets(NAMES)))
    ]
    advertisements = [
        Advertisement(
            ref=ref,
            pools=tuple(draw(st.lists(NAMES, max_size=2))),
            pool_selectors=draw(selectors()),
            node_selectors=draw(selectors()),
        )
        for ref in refs(draw(st.sampled_from(["BGPAdvertisement", "L2Advertisement"])))
    ]
    address = st.none() | ADDRESSES
    peers = [
        BGPPeer(ref=ref, labels=draw(LABELS), address=draw(address), node_selectors=draw(selectors()))
        for ref in refs("BGPPeer")
    ]
    peers += [
        BGPPeer(
            ref=ObjectRef(kind="BGPPeer", name=f"peers[{index}]"),
            labels={},
            address=draw(address),
            node_selectors=draw(selectors()),
        )
        for index in range(draw(st.integers(0, 12)))
    ]
    return ClusterState(pools=tuple(found), advertisements=tuple(advertisements), peers=tuple(peers))


def again(state: ClusterState) -> ClusterState:
    parsed = merge(translate(one, CONFIGMAP) for one in export.objects(state, CONFIGMAP))
    store = Store(lambda: None)
    store.replace_all("again", parsed.objects, parsed.rejections)
    return store.snapshot()


@given(states())
def test_pools_peers_and_advertisements_read_as_they_were(state: ClusterState) -> None:
    found = again(state)
    assert found.rejections == ()
    for field in ("pools", "advertisements", "peers"):
        assert set(map(repr, getattr(found, field))) == set(map(repr, getattr(state, field)))
    config = Config(return_path=ReturnPathSettings(bgp=BgpSettings(enabled=True)))
    assert pools.read(found, config, NodeName("n")) == pools.read(state, config, NodeName("n"))
