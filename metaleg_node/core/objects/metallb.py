"""Which of MetalLB's objects count: those that MetalLB itself goes by, or writes.

The API is asked for no others, and Kubernetes takes an Event only into the namespace of what it is about; a state file
may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from metaleg_node.configuration.config import Config
from metaleg_node.core.model import (
    AddressPool,
    Advertisement,
    AnnouncedBy,
    Announcement,
    BGPPeer,
    ClusterState,
    Rejection,
)

T = TypeVar("T", AddressPool, Advertisement, Announcement, BGPPeer)


def announcements(cluster: ClusterState, config: Config) -> tuple[tuple[Announcement, ...], list[Rejection]]:
    """What tells who announces a Service: MetalLB's status objects, and Events beside their Service."""
    rejections: list[Rejection] = []

    def why_not(one: Announcement) -> str:
        if one.source is not AnnouncedBy.EVENTS:
            return _elsewhere(one, config)
        return (
            "" if one.ref.namespace == one.service[0] else f"is not in the namespace of Service {'/'.join(one.service)}"
        )

    return _used(cluster.announcements, why_not, rejections), rejections


def configuration(cluster: ClusterState, config: Config) -> tuple[ClusterState, list[Rejection]]:
    """The state with just those pools, advertisements and peers that count: either MetalLB's custom resources or its
    old configuration, whose entries have no namespace."""
    which = config.cluster.metallb_config
    places = {pool.ref.namespace for pool in cluster.pools}
    custom = which == "crds" or (which == "auto" and (config.cluster.metallb_namespace in places or "" not in places))
    form = "custom resources are" if custom else "old configuration is"
    rejections: list[Rejection] = []

    def why_not(one: AddressPool | Advertisement | BGPPeer) -> str:
        elsewhere = _elsewhere(one, config) if one.ref.namespace else ""
        if elsewhere or bool(one.ref.namespace) is custom:
            return elsewhere
        return f"is not used, since MetalLB's {form} (cluster.metallb_config is {which})"

    kept = replace(
        cluster,
        pools=_used(cluster.pools, why_not, rejections),
        advertisements=_used(cluster.advertisements, why_not, rejections),
        peers=_used(cluster.peers, why_not, rejections),
    )
    return kept, rejections


def _elsewhere(one: AddressPool | Advertisement | Announcement | BGPPeer, config: Config) -> str:
    namespace = config.cluster.metallb_namespace
    if one.ref.namespace == namespace:
        return ""
    known = f"is not in MetalLB's namespace {namespace} (cluster.metallb_namespace)"
    return f"{known}; where MetalLB runs in {one.ref.namespace}, set that" if one.ref.namespace else known


def _used(objects: Iterable[T], why_not: Callable[[T], str], rejections: list[Rejection]) -> tuple[T, ...]:
    kept = []
    for one in objects:
        if reason := why_not(one):
            rejections.append(Rejection(ref=one.ref, reason=reason))
        else:
            kept.append(one)
    return tuple(kept)
