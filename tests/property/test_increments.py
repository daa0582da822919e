"""Whatever happens one after the other: what was worked out from the changes is what comes out from scratch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metaleg_node.configuration.config import Config
from metaleg_node.core.compare import diff
from metaleg_node.core.egress import survey
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.increments import Evolving
from metaleg_node.core.model import ClusterState, EndpointSlice, NextHop, Slot
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.objects.annotations import EXCLUDE, ONLY
from metaleg_node.kernel.nftables.layout import Renderer, render
from metaleg_node.kernel.nftables.script import transactions
from metaleg_node.kernel.nftables.table import Table
from metaleg_node.reconcile.knowledge import Facts, Knowledge
from tests.unit.builders import A, announced, assembled, config, endpoint, endpoint_slice, host, node, pod, service

NODES, SERVICES = ("a", "b", "c"), ("web", "api", "mail", "dns")
ADDRESSES = ("10.244.1.5", "10.244.1.6", "10.244.2.5", "10.244.3.5", "fd00:10:244:1::5", "10.0.0.1")
CONDITIONS = st.fixed_dictionaries({"ready": st.booleans(), "terminating": st.booleans()})
CONFIGS = tuple(
    config(text)
    for text in (
        "",
        "[egress]\nlocal_endpoints_only = false",
        '[egress]\nwhen_unavailable = "allow"',
        '[egress]\ngateway_grace = "0"\nmax_networks = 2',
        "[firewall]\nmark_mask = 0x1",
        '[egress]\nnew_pods = "hold"\n[host]\nrp_filter = "keep"',
    )
)


def an_endpoint() -> st.SearchStrategy[Any]:
    return st.builds(
        lambda address, at, name, conditions: endpoint(address, node=at, name=name, conditions=conditions),
        st.sampled_from(ADDRESSES),
        st.sampled_from([None, *NODES]),
        st.sampled_from(["p", "q"]),
        CONDITIONS,
    )


def a_slice() -> st.SearchStrategy[EndpointSlice]:
    return st.builds(
        lambda name, endpoints, number: dataclasses.replace(
            one := endpoint_slice(*endpoints, service=name), ref=dataclasses.replace(one.ref, name=f"{name}-{number}")
        ),
        st.sampled_from(SERVICES),
        st.lists(an_endpoint(), max_size=3),
        st.integers(1, 2),
    )


A_SERVICE = st.builds(
    lambda name, created, ingress, annotations, label, ips: service(
        name,
        created=created,
        ingress=ingress,
        annotations=annotations,
        labels={"metaleg.de/rewriteSrcIP": label},
        cluster_ips=ips,
    ),
    st.sampled_from(SERVICES),
    st.sampled_from(["2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"]),
    st.sampled_from([(), ("192.0.2.201",), ("192.0.2.202", "2001:db8:1::202"), ("192.0.2.201", "192.0.2.203")]),
    st.sampled_from([{}, {EXCLUDE: "10.0.0.0/8"}, {ONLY: "8.0.0.0/8,2000::/3"}, {ONLY: "x"}]),
    st.sampled_from(["true", "true", "true", "false", "yes"]),
    st.sampled_from([(), ("10.96.0.1",), ("192.0.2.201",)]),
)
AN_ANNOUNCEMENT = st.builds(announced, st.sampled_from([*NODES, "z"]), service=st.sampled_from(SERVICES))
A_NODE = st.builds(
    lambda name, ready, others: node(name, ready=ready, others=others),
    st.sampled_from(NODES),
    st.booleans(),
    st.sampled_from([(), ("10.244.3.5",)]),
)
A_POD = st.builds(
    lambda name, addresses: pod(name, *addresses),
    st.sampled_from(["p", "q", "r"]),
    st.lists(st.sampled_from(ADDRESSES[:2]), max_size=1),
)
FIELDS: Mapping[str, st.SearchStrategy[Any]] = {
    "endpoint_slices": a_slice(),
    "services": A_SERVICE,
    "announcements": AN_ANNOUNCEMENT,
    "nodes": A_NODE,
    "pods": A_POD,
}


@dataclass
class Cluster:
    """The objects by kind and name; a kind of which nothing changes stays the very same value, as the store has it."""

    objects: dict[str, dict[object, Any]] = field(default_factory=lambda: {name: {} for name in FIELDS})
    state: ClusterState = field(default_factory=ClusterState)

    def put(self, name: str, one: Any) -> None:
        key = (one.service, one.ref) if name == "announcements" else one.ref
        self.objects[name][key] = one
        self._changed(name)

    def remove(self, name: str, number: int) -> None:
        if keys := [*self.objects[name]]:
            del self.objects[name][keys[number % len(keys)]]
            self._changed(name)

    def _changed(self, name: str) -> None:
        values: dict[str, Any] = {name: tuple(self.objects[name].values())}
        self.state = dataclasses.replace(self.state, **values)


Event = tuple[str, Any]
EVENTS: st.SearchStrategy[Event] = st.one_of(
    *(st.tuples(st.just(name), objects) for name, objects in FIELDS.items()),
    st.tuples(st.just("endpoint_slices"), a_slice()),
    st.tuples(st.just("remove"), st.tuples(st.sampled_from([*FIELDS]), st.integers(0, 9))),
    st.tuples(st.just("reload"), st.sampled_from(CONFIGS)),
    st.tuples(st.just("error"), st.just(None)),
    st.tuples(st.just("time"), st.sampled_from([0.5, 3.0, 11.0])),
    st.tuples(st.just("host"), st.sampled_from(["all", "off-link", "failed"])),
)
BEGIN: tuple[Event, ...] = (
    *(("nodes", node(name)) for name in NODES),
    ("services", service("web", ingress=("192.0.2.201",))),
    ("services", service("api", ingress=("192.0.2.202",), created="2024-06-01T00:00:00Z")),
    ("endpoint_slices", endpoint_slice(endpoint("10.244.1.5", node="a", name="p"), service="web")),
    ("endpoint_slices", endpoint_slice(endpoint("10.244.2.5", node="b", name="q"), service="api")),
    ("announcements", announced("b", service="web")),
    ("announcements", announced("a", service="api")),
)


class Node:
    """Node a, which follows one event after the other; and the same from scratch."""

    def __init__(self) -> None:
        self.cluster, self.kind, self.now = Cluster(), "all", 0.0
        self.before: tuple[NodeState, NodeState, Table | None, Table | None] = NodeState(), NodeState(), None, None
        self.held: Mapping[Slot, Any] = {}
        self.renderer = Renderer()
        self.use(CONFIGS[0])

    def use(self, settings_: Config) -> None:
        self.config = settings_
        self.knowledge = Knowledge(settings_, A, self._failed, lambda: self.now)

    def _failed(self, hops: Iterable[NextHop]) -> set[NextHop]:
        return set(hops) if self.kind == "failed" else set()

    def happens(self, event: Event) -> None:
        what, value = event
        if what == "reload":
            self.use(value)
        elif what == "time":
            self.now += value
        elif what == "host":
            self.kind = value
        elif what == "remove":
            self.cluster.remove(*value)
        elif what == "error":
            # The kernel could not be looked at.
            self.knowledge.of(self.cluster.state)
        else:
            self.cluster.put(what, value)

    def check(self) -> None:
        known = self.knowledge.of(self.cluster.state)
        fresh = survey.take(known.early, self.config, recent=known.lately)
        assert told(known.survey) == told(fresh)
        here = host(fresh, A, off_link=["10.0.0.2"] if self.kind == "off-link" else [])
        facts = Facts(host=dataclasses.replace(here, rp_filter={"all": 1, "eth0": 1}), held=self.held, lost=False)
        desired = self.knowledge.decide(known, facts, lambda _: facts.held)
        names = {slot: str(holder) for slot, holder in self.held.items()}
        anew = assembled(fresh, self.config, A, facts.host, names, starting=known.starting)
        assert desired.state == anew.state
        assert (desired.services, dict(desired.owners)) == (anew.services, dict(anew.owners))
        assert (desired.tables, Counter(desired.problems)) == (anew.tables, Counter(anew.problems))
        second = self.knowledge.second_opinion()
        assert second is not None
        assert second() == ""
        self._compare_changes(desired.state)

    def _compare_changes(self, state: NodeState) -> None:
        """What is written is the same, whether values know which earlier ones they came from or not."""
        plain, firewall = state, state.firewall
        if firewall:
            egress = firewall.part(Egress)
            plain = dataclasses.replace(
                state, firewall=firewall.having(dataclasses.replace(egress, pods=dict(egress.pods)))
            )
        tables = (
            self.renderer.render(firewall) if firewall else None,
            render(plain.firewall) if plain.firewall else None,
        )
        assert tables[0] == tables[1]
        before = self.before
        assert transactions(before[2], tables[0]) == transactions(before[3], tables[1])
        assert diff.steps(before[0], state, why=str) == diff.steps(before[1], plain, why=str)
        self.before = state, plain, *tables
        self.held = firewall.holders if firewall else {}


def told(found: survey.Survey) -> tuple[object, ...]:
    """All that a survey tells."""
    rejections = Counter((one.ref, one.reason) for one in found.rejections)
    return found.services, found.served, found.networks, found.nodes, rejections, found.peers, dict(found.announcers)


@given(st.lists(st.tuples(EVENTS, st.booleans()), min_size=1, max_size=12))
@settings(deadline=None)
def test_any_events_errors_and_reloads_lead_to_what_comes_out_from_scratch(events: list[tuple[Event, bool]]) -> None:
    here = Node()
    for event in BEGIN:
        here.happens(event)
    here.check()
    for event, acted_upon in events:
        here.happens(event)
        # Some events are gathered, and acted upon together.
        if acted_upon:
            here.check()
    here.check()


KEYS, VALUES = st.integers(0, 5), st.integers(0, 2)
CHANGES = st.lists(st.tuples(st.integers(0, 9), st.dictionaries(KEYS, VALUES), st.sets(KEYS)), min_size=1, max_size=60)


@given(CHANGES)
@settings(deadline=None)
def test_a_mapping_that_evolves_is_what_a_copy_would_be(changes: list[tuple[int, dict[int, int], set[int]]]) -> None:
    """From any of the former ones, which all stay as they were."""
    line: list[tuple[Evolving[int, int], dict[int, int]]] = [(Evolving({1: 1}), {1: 1})]
    for back, put, gone in changes:
        one, same = line[-1 - back % len(line)]
        line.append((one.changed(put, gone), {key: same[key] for key in same.keys() - gone} | put))
        now, expected = line[-1]
        assert now.distinct() == Counter(expected.values())
        for other, copy in line[-12:]:
            differing = {key for key in range(6) if expected.get(key) != copy.get(key)}
            assert now.difference(other) == other.difference(now) == now.difference(copy) == differing
            assert (now == other) is (expected == copy)
    for one, same in line:
        assert (len(one), [one.get(key) for key in range(6)]) == (len(same), [same.get(key) for key in range(6)])
    for one, same in line:
        assert dict(one) == same
