"""What follows from the cluster's state for this node, from one state to the next: only what a change concerns is
worked out anew. From scratch is the definition, and what is known can be compared with it at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace

from metaleg_node.configuration.config import Config
from metaleg_node.core import assembly, external_ip
from metaleg_node.core.assembly import Desired, Held
from metaleg_node.core.egress import new_pods, survey
from metaleg_node.core.egress.requests import Recent
from metaleg_node.core.model import ClusterState, Host, NextHop, NodeName, Questions
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.core.slots import Claim
from metaleg_node.reconcile.patience import QUIET, Patience

_OF_EVENTS = {"endpoint_slices", "announcements", "pods", "pods_sure", "rejections"}
"""What changes all the time; neither return paths nor External-IP ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a decision rests on beside the cluster: the host, and who has which slot. `lost`: the packet filter does not
    tell that reliably."""

    host: Host
    held: Held
    lost: bool


@dataclass(slots=True, kw_only=True)
class Known:
    """What follows from one state of the cluster and what was so a moment ago: `recent` counts for the next survey,
    `lately` for this one. `early` is the state with what is known early of new pods, `decided` the last decision, of
    this state or of one before it."""

    cluster: ClusterState
    early: ClusterState
    recent: Recent
    lately: Recent
    survey: survey.Survey
    paths: pools.WantedPaths
    external: external_ip.WantedAddresses
    starting: new_pods.Starting
    questions: Questions
    decided: Desired | None = None
    facts: Facts | None = None


class Knowledge:
    """Of one node, with one configuration. `failed` tells which of some next hops are known not to answer."""

    def __init__(
        self,
        config: Config,
        me: NodeName,
        failed: Callable[[Iterable[NextHop]], Collection[NextHop]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._me = me
        self._failed = failed
        self._known: Known | None = None
        rejecting = config.egress.when_unavailable == "reject"
        self._patience = Patience(clock, grace=config.egress.gateway_grace, quiet=QUIET if rejecting else 0.0)

    @property
    def wait(self) -> float | None:
        """Seconds until the same state may mean something else, since a gateway is no longer awaited; None: never."""
        return self._patience.wait

    def forget(self) -> None:
        """Works everything out anew the next time."""
        self._known = None

    def of(self, cluster: ClusterState) -> Known:
        """What follows from a state."""
        recent, was = self._patience.recent, self._known
        if was and was.cluster is cluster and was.recent is recent:
            return was
        early = self._completed(cluster, was)
        found, lately = self._survey(early, recent, was)
        self._patience.look(found)
        same = was is not None and _same_but_events(was.cluster, cluster)
        paths = was.paths if was and same else pools.read(cluster, self._config, self._me)
        external = was.external if was and same else external_ip.read(cluster, self._config)
        asked = was is not None and same and was.survey.peers is found.peers
        self._known = Known(
            cluster=cluster,
            early=early,
            recent=self._patience.recent,
            lately=lately,
            survey=found,
            paths=paths,
            external=external,
            starting=new_pods.read(early, found, self._config, self._me),
            questions=was.questions
            if was and asked
            else assembly.questions(found, paths, external, self._config, self._me),
            decided=was.decided if was else None,
        )
        return self._known

    def decide(self, known: Known, facts: Facts, held: Callable[[Iterable[Claim]], Held]) -> Desired:
        """The same facts lead to the same decision, and most events change none: a route of others, for example."""
        if facts.lost or known.decided is None or known.facts != facts:
            known.decided = self._assembled(known, known.survey, facts.host, held, before=known.decided)
            known.facts = facts
        return known.decided

    def second_opinion(self) -> Callable[[], str] | None:
        """Something to call in any thread, which takes its time: it works out from scratch what was decided last, and
        returns how that differs; empty: it does not. None: there is nothing to compare."""
        known = self._known
        if not (known and known.decided and known.facts and not known.facts.lost):
            return None
        decided, facts = known.decided, known.facts

        def compared() -> str:
            fresh = survey.take(known.early, self._config, recent=known.lately)
            anew = self._assembled(known, fresh, facts.host, lambda _: facts.held)
            return _difference(decided, anew)

        return compared

    def _completed(self, cluster: ClusterState, was: Known | None) -> ClusterState:
        """What is known early stays the very same while what it rests on does."""
        if not new_pods.is_on(self._config):
            return cluster
        old = was.cluster if was else None
        if was and old and (cluster.pods is old.pods and cluster.services is old.services and cluster.cni is old.cni):
            early = was.early.endpoint_slices[len(old.endpoint_slices) :]
            return replace(cluster, pods=was.early.pods, endpoint_slices=(*cluster.endpoint_slices, *early))
        return new_pods.completed(cluster, self._config, self._me)

    def _survey(self, cluster: ClusterState, recent: Recent, was: Known | None) -> tuple[survey.Survey, Recent]:
        """A gateway that is away is not waited for where its node does not answer any more."""
        before = was.survey if was else None
        found = survey.take(cluster, self._config, recent=recent, before=before)
        away = {node.name: node for node in found.away}
        host = was.facts.host if away and was and was.facts else Host()
        hops = {
            NextHop(gateway=address, interface=host.interfaces[address]): name
            for name, node in away.items()
            for address in node.internal_ips
            if address in host.on_link
        }
        if lost := {hops[hop] for hop in self._failed(hops)}:
            recent = replace(recent, kept={ref: name for ref, name in recent.kept.items() if name not in lost})
            found = survey.take(cluster, self._config, recent=recent, before=found)
        return found, recent

    def _assembled(
        self,
        known: Known,
        surveyed: survey.Survey,
        host: Host,
        held: Callable[[Iterable[Claim]], Held],
        *,
        before: Desired | None = None,
    ) -> Desired:
        return assembly.assemble(
            surveyed,
            known.paths,
            self._config,
            self._me,
            host,
            external=known.external,
            held=held,
            starting=known.starting,
            before=before,
        )


def _same_but_events(one: ClusterState, other: ClusterState) -> bool:
    names = (field.name for field in fields(ClusterState) if field.name not in _OF_EVENTS)
    return all(getattr(one, name) is getattr(other, name) for name in names)


def _difference(known: Desired, anew: Desired) -> str:
    """What of this node's state is not as it should be, in words for a report of the fault."""
    have, want = known.state, anew.state
    parts: dict[str, tuple[object, object]] = {
        "rules": (have.routing.rules, want.routing.rules),
        "routes": (have.routing.routes, want.routing.routes),
        "sysctls": (have.sysctls, want.sysctls),
        "mark mask": (have.firewall and have.firewall.mark_mask, want.firewall and want.firewall.mark_mask),
    }
    kinds = {type(part) for one in (have, want) if one.firewall for part in one.firewall.parts}
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        parts[kind.__name__] = (have.firewall and have.firewall.part(kind), want.firewall and want.firewall.part(kind))
    return ", ".join(name for name, (one, other) in parts.items() if one != other)
