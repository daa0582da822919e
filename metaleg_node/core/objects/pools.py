"""MetalLB's pools, advertisements and peers, as custom resources and as entries of its configuration before 0.13. Field
names are those of https://metallb.io/apis/."""

from __future__ import annotations

from metaleg_node.core.model import Address, AddressPool, Advertisement, BGPPeer
from metaleg_node.core.objects.fields import Reader, UnusableError, names, selectors, show


def pool(reader: Reader) -> AddressPool:
    """An IPAddressPool."""
    return AddressPool(ref=reader.ref, labels=reader.labels(), ranges=reader.ranges("spec.addresses"))


def advertisement(reader: Reader) -> Advertisement:
    """A BGPAdvertisement or L2Advertisement."""
    return Advertisement(
        ref=reader.ref,
        pools=names(reader, "spec.ipAddressPools"),
        pool_selectors=selectors(reader, "spec.ipAddressPoolSelectors"),
        peers=reader.value("spec.peers") not in (None, []),
    )


def peer(reader: Reader) -> BGPPeer:
    """A BGPPeer of any version."""
    return BGPPeer(
        ref=reader.ref,
        labels=reader.labels(),
        address=_peer_address(reader, "spec.peerAddress"),
        has_address=reader.value("spec.peerAddress") not in (None, ""),
        node_selectors=selectors(reader, "spec.nodeSelectors"),
        vrf=reader.text("spec.vrf"),
    )


def _peer_address(reader: Reader, path: str) -> Address | None:
    value = reader.value(path)
    return None if value in (None, "") else reader.address(value, path)


def old_peer(reader: Reader) -> BGPPeer:
    """An entry of `peers`."""
    return BGPPeer(
        ref=reader.ref,
        labels={},
        address=_peer_address(reader, "peer-address"),
        has_address=reader.value("peer-address") not in (None, ""),
        node_selectors=selectors(reader, "node-selectors", "match-labels", "match-expressions"),
    )


def old_pool(reader: Reader) -> AddressPool:
    """An entry of `address-pools`. Raises UnusableError."""
    protocol = reader.text("protocol")
    if protocol not in ("layer2", "bgp"):
        raise UnusableError(f"protocol: {show(protocol)} is not layer2 or bgp")
    return AddressPool(ref=reader.ref, labels={}, ranges=reader.ranges("addresses"), protocol=protocol)
