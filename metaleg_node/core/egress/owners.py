"""Whose the addresses are that EndpointSlices name: worked out for all Services, or anew for those that a change
concerns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from metaleg_node.core.cluster_networks import ClusterNetworks
from metaleg_node.core.egress.claims import Checks, Claimed, PodAddress
from metaleg_node.core.egress.requests import Key, Named, Request, Settled, settled
from metaleg_node.core.increments import Evolving, exchanged
from metaleg_node.core.model import Address, ClusterState, EndpointSlice, Pod

_NOTHING = Claimed(pods={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """`endpoint_slices` are all there are, `slices` the same by Service. `claimants` tells for each address which
    Services name it, twice for one that does so more than once; `settled` who has those that are named more than
    once."""

    checks: Checks | None = None
    endpoint_slices: tuple[EndpointSlice, ...] = ()
    slices: Mapping[Key, tuple[EndpointSlice, ...]] = field(default_factory=dict)
    claimed: Mapping[Key, Claimed] = field(default_factory=dict)
    claimants: Evolving[Address, tuple[Key, ...]] = field(default_factory=Evolving)
    settled: Mapping[Address, Settled] = field(default_factory=dict)

    def pods(self, key: Key) -> tuple[PodAddress, ...]:
        """Those of one Service."""
        found = self.claimed[key].pods
        if not self.settled or self.settled.keys().isdisjoint(found):
            return tuple(found.values())
        mine = (
            pod if address not in self.settled else won.pod if (won := self.settled[address]).owner == key else None
            for address, pod in found.items()
        )
        return tuple(pod for pod in mine if pod)


class Requests(NamedTuple):
    """What all Services ask for, which of them ask for something else than before, and which are gone since."""

    by_service: Mapping[Key, Request]
    altered: Set[Key]
    gone: Set[Key]


def owners(
    cluster: ClusterState, networks: ClusterNetworks, requests: Requests, before: Owners | None
) -> tuple[Owners, set[Key]]:
    """Whose the addresses are, and the Services that may have other pods than `before`, which rests on the same pod
    networks and nodes."""
    was = before or Owners()
    slices, suspects = _by_service(cluster.endpoint_slices, was)
    if was.checks is None:
        checks, suspects = Checks(networks, cluster.pods), set(requests.by_service)
    else:
        checks, pods = was.checks.with_pods(networks, cluster.pods)
        suspects |= requests.by_service.keys() if pods is None else _concerned(pods, slices, was)
    suspects |= {key for key in requests.altered if key not in was.claimed}
    return _Settling(was, checks, slices, requests).settle(cluster.endpoint_slices, suspects)


def _by_service(
    now: tuple[EndpointSlice, ...], was: Owners
) -> tuple[Mapping[Key, tuple[EndpointSlice, ...]], set[Key]]:
    """The slices of each Service, in order, and the Services that have others than before."""
    gone, came = exchanged(was.endpoint_slices, now)
    if not (gone or came):
        return was.slices, set()
    changed = {_key(one) for one in (*gone, *came)}
    groups = dict(was.slices)
    anew = defaultdict(list)
    if all(len({one.ref for one in some}) == len(some) for some in (gone, came)):
        places = {one.ref: one for one in came}
        stale = set(map(id, gone))
        for key in changed:
            for one in groups.get(key, ()):
                one_now = one if id(one) not in stale else places.pop(one.ref, None)
                if one_now is not None:
                    anew[_key(one_now)].append(one_now)
        for one in places.values():
            anew[_key(one)].append(one)
    else:
        for one in now:
            if (key := _key(one)) in changed:
                anew[key].append(one)
    for key in changed:
        groups[key] = tuple(anew[key])
        if not anew[key]:
            del groups[key]
    return groups, changed


def _key(one: EndpointSlice) -> Key:
    return one.ref.namespace, one.service


def _concerned(pods: Iterable[Pod], slices: Mapping[Key, tuple[EndpointSlice, ...]], was: Owners) -> set[Key]:
    """The Services whose slices say something that depends on one of these Pods."""
    changed = tuple(pods)
    if not changed:
        return set()
    found = {key for pod in changed for address in pod.addresses for key in was.claimants.get(address, ())}
    found |= {key for key, claimed in was.claimed.items() if claimed.refused}
    names: dict[str, set[str]] = defaultdict(set)
    for pod in changed:
        names[pod.ref.namespace].add(pod.ref.name)
    for key, some in slices.items():
        if key[0] in names and key in was.claimed:
            wanted = names[key[0]]
            if any(e.target is not None and e.target.name in wanted for one in some for e in one.endpoints):
                found.add(key)
    return found


class _Settling:
    """One change of owners."""

    def __init__(
        self, was: Owners, checks: Checks, slices: Mapping[Key, tuple[EndpointSlice, ...]], requests: Requests
    ) -> None:
        self._was = was
        self._checks = checks
        self._slices = slices
        self._requests = requests
        self._claimed = dict(was.claimed)
        self._put: dict[Address, tuple[Key, ...]] = {}
        self._named: dict[Key, dict[Address, list[Named]]] = {}

    def settle(self, all_slices: tuple[EndpointSlice, ...], suspects: set[Key]) -> tuple[Owners, set[Key]]:
        was, requests = self._was, self._requests
        changed = {key for key in suspects if key in requests.by_service}
        contested: set[Address] = set()
        for key in (*changed, *requests.gone):
            contested |= self._read(key)
        for key in requests.altered:
            contested |= was.settled.keys() & self._claimed.get(key, _NOTHING).pods.keys()
        empty = [address for address, keys in self._put.items() if not keys]
        claimants = was.claimants.changed({a: keys for a, keys in self._put.items() if keys}, empty)
        found = dict(was.settled) if contested else was.settled
        for address in contested:
            keys = claimants.get(address, ())
            changed.update(key for key in (*keys, *was.claimants.get(address, ())) if key in requests.by_service)
            if len(keys) > 1:
                found[address] = settled(self._all_named(address, keys))  # type: ignore[index]
            else:
                found.pop(address, None)  # type: ignore[attr-defined]
        now = Owners(
            checks=self._checks,
            endpoint_slices=all_slices,
            slices=self._slices,
            claimed=self._claimed,
            claimants=claimants,
            settled=found,
        )
        return now, changed

    def _read(self, key: Key) -> set[Address]:
        """Looks at what a Service's slices claim, none if it is gone. Returns the addresses whose owner that may
        change: those that others claim, too, before or now."""
        old = self._claimed.pop(key, _NOTHING)
        new = _NOTHING
        if key in self._requests.by_service:
            new = self._claimed[key] = self._checks.read(self._slices.get(key, ()))
        contested = set()
        once, twice = (key,), (key, key)
        for address in {**old.pods, **new.pods}:
            before = self._put.get(address)
            before = self._was.claimants.get(address, ()) if before is None else before
            mine = () if address not in new.pods else twice if address in new.twice else once
            others = tuple(one for one in before if one != key)
            now = others + mine if others else mine
            if now != before:
                self._put[address] = now
            if len(now) > 1 or len(before) > 1:
                contested.add(address)
        return contested

    def _all_named(self, address: Address, keys: Collection[Key]) -> list[Named]:
        """All claims to an address, the older Services' first."""
        requests = self._requests.by_service
        by_age = sorted(set(keys), key=lambda key: (requests[key].service.created, key))
        return [named for key in by_age for named in self._named_by(key).get(address, ())]

    def _named_by(self, key: Key) -> Mapping[Address, list[Named]]:
        """What one Service claims, read once for all addresses that others claim, too."""
        if key not in self._named:
            found: dict[Address, list[Named]] = defaultdict(list)
            for one in self._claimed[key].slices:
                for endpoint, pod, problem in self._checks.claims(one):
                    if not problem:
                        found[pod.address].append(Named(self._requests.by_service[key], one.ref, endpoint, pod))
            self._named[key] = found
        return self._named[key]
