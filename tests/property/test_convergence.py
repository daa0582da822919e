"""From any state to any state, interrupted anywhere, in the order that lets nothing leak."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from metaleg_node.core.assembly import Desired
from metaleg_node.core.compare import diff
from metaleg_node.core.egress import survey
from metaleg_node.core.firewall.egress import EgressPod, Treatment
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import (
    AnnouncedBy,
    ClusterState,
    ForeignItem,
    Host,
    NextHop,
    NodeName,
    Route,
    RouteType,
    Routing,
    Rule,
    ServicePort,
    Slot,
)
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.objects.annotations import EXCLUDE as EXCLUDE_ANNOTATION
from metaleg_node.core.objects.annotations import ONLY as ONLY_ANNOTATION
from metaleg_node.core.routes import UNREACHABLE_METRIC
from tests.fake_kernel import FakeKernel, holds, in_place_of
from tests.firewalls import EXCEPT, MASK, RESTRICTED, E, R, flat, wall
from tests.unit.builders import (
    A,
    announced,
    assembled,
    cluster,
    config,
    endpoint,
    endpoint_slice,
    host,
    node,
    service,
)

T = TypeVar("T", Route, Rule)

NODES = ("a", "b", "c", "d")
SYSCTLS = {f"net/ipv4/conf/{name}/rp_filter": "1" for name in ("eth0", "vx0")}

# --- clusters --------------------------------------------------------------------------------------------------------

SERVICES = ("web", "api", "mail")
ANNOTATIONS = st.sampled_from(
    [{}, {EXCLUDE_ANNOTATION: "10.0.0.0/8"}, {ONLY_ANNOTATION: "8.0.0.0/8,2000::/3"}, {ONLY_ANNOTATION: "x"}]
)
PORTS = st.builds(ServicePort, protocol=st.sampled_from(["TCP", "UDP"]), port=st.sampled_from([25, 53]))
INGRESS = st.sampled_from(
    [(), ("192.0.2.200",), ("192.0.2.201", "2001:db8:1::201"), ("2001:db8:1::200",), ("10.0.0.1",)]
)
TIMES = st.sampled_from(["2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z", ""])


@st.composite
def clusters(draw: st.DrawFn) -> ClusterState:
    """Up to three Services on four nodes, with whatever their objects may say."""
    names = draw(st.lists(st.sampled_from(SERVICES), unique=True))
    pods = st.builds(
        lambda at, n, version, told: endpoint(
            f"10.244.{NODES.index(at) + 1}.{n}" if version == 4 else f"fd00:10:244:{NODES.index(at) + 1}::{n}",
            node=at if told else None,
        ),
        st.sampled_from(NODES),
        st.integers(2, 5),
        st.sampled_from([4, 6]),
        st.booleans(),
    )
    says = st.builds(
        announced,
        st.sampled_from([*NODES, "unknown"]),
        service=st.sampled_from(SERVICES),
        since=TIMES,
        source=st.sampled_from(AnnouncedBy),
    )
    return cluster(
        services=[
            service(name, created=draw(TIMES), ingress=draw(INGRESS), annotations=draw(ANNOTATIONS)) for name in names
        ],
        slices=[
            endpoint_slice(*draw(st.lists(pods, max_size=4)), service=name, ports=draw(st.lists(PORTS, max_size=2)))
            for name in names
        ],
        announcements=draw(st.lists(says, max_size=5)),
        nodes=[node(name, ready=draw(st.booleans())) for name in NODES if name == "a" or draw(st.booleans())],
    )


CONFIGS = st.sampled_from(
    [
        config(text)
        for text in (
            "",
            "[egress]\nlocal_endpoints_only = false",
            '[egress]\nwhen_unavailable = "allow"',
            '[egress]\nwhen_unavailable = "drop"',
            "[egress]\nenabled = false",
            "[firewall]\nmark_mask = 0x1",
            "[firewall]\nroute_table_base = 7000\nrule_priority = 90",
        )
    ]
)
HOSTS = st.sampled_from(["all", "off-link", "none"])


def decided(state: ClusterState, settings_: object, kind: str, held: Mapping[Slot, str]) -> Desired:
    """What node a should do, as the daemon would work it out."""
    surveyed = survey.take(state, settings_)  # type: ignore[arg-type]
    here = host(surveyed, A)
    here = {"all": here, "off-link": dataclasses.replace(here, on_link=frozenset()), "none": Host()}[kind]
    here = dataclasses.replace(here, rp_filter={"all": 1, "eth0": 1})
    return assembled(surveyed, settings_, A, here, held)  # type: ignore[arg-type]


DECISIONS = st.tuples(clusters(), CONFIGS, HOSTS)

# --- arbitrary states ------------------------------------------------------------------------------------------------

SLOTS = st.integers(1, 5).map(Slot)
ADDRESSES = st.sampled_from([ip_address(f"10.244.1.{n}") for n in range(2, 8)] + [ip_address("fd00:10:244:1::2")])
TREATED = st.one_of(
    st.builds(EgressPod, treatment=st.just(Treatment.STEER), slot=SLOTS, filter=st.sampled_from(["", R, E])),
    st.builds(EgressPod, treatment=st.sampled_from([Treatment.HOLD, Treatment.ELSEWHERE])),
    st.builds(
        EgressPod,
        treatment=st.just(Treatment.SNAT),
        slot=SLOTS,
        source=st.sampled_from([ip_address("192.0.2.200"), ip_address("192.0.2.201")]),
    ),
)


@st.composite
def sound_states(draw: st.DrawFn) -> NodeState:
    """A state in which all that is steered has its way, as this program leaves it, with any numbers."""
    drawn = draw(st.dictionaries(ADDRESSES, TREATED, max_size=6))
    pods = {a: pod for a, pod in drawn.items() if pod.source is None or pod.source.version == a.version}
    base, mask = draw(st.sampled_from([1000000, 7000])), draw(st.sampled_from([MASK, 0x7]))
    used = {(pod.slot, a.version) for a, pod in pods.items() if pod.treatment is Treatment.STEER and pod.slot}
    routes, rules = set(), set()
    for slot, version in used:
        everywhere = ip_network("0.0.0.0/0" if version == 4 else "::/0")
        hop = NextHop(gateway=ip_address("10.0.0.2" if version == 4 else "fd00::2"), interface="eth0")
        metric = 0 if version == 4 else 1024
        if draw(st.booleans()):
            routes.add(Route(table=base + slot, destination=everywhere, metric=metric, next_hops=(hop,)))
        routes.add(
            Route(
                table=base + slot,
                destination=everywhere,
                metric=UNREACHABLE_METRIC,
                type=RouteType.UNREACHABLE,
            )
        )
        mark = Firewall(mark_mask=mask).mark(slot)
        rules.add(Rule(family=version, priority=4700, table=base + slot, mark=mark, mask=mask))
    keys = {pod.filter for pod in pods.values() if pod.filter}
    firewall = wall(
        mark_mask=mask,
        pods=pods,
        gateways={pod.slot: NodeName(f"g{pod.slot}") for pod in pods.values() if pod.slot},
        sources=frozenset(pod.source for pod in pods.values() if pod.source),
        inside=frozenset(draw(st.sets(st.sampled_from([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])))),
        served=frozenset(draw(st.sets(st.sampled_from([53, 65535])))),
        filters={key: {R: RESTRICTED, E: EXCEPT}[key] for key in keys},
        hold=draw(st.sampled_from(["reject", "drop"])),
    )
    foreign = st.frozensets(st.builds(ForeignItem, text=st.sampled_from("xyz"), raw=st.just(())))
    routing = Routing(
        rules=frozenset(rules), routes=frozenset(routes), foreign_rules=draw(foreign), foreign_routes=draw(foreign)
    )
    return NodeState(routing=routing, firewall=draw(st.sampled_from([firewall, firewall, None])))


@st.composite
def broken_states(draw: st.DrawFn) -> NodeState:
    """A state of which others have taken any part, or put something in its place or beside it."""
    whole = draw(sound_states())
    some = draw(st.booleans())
    rules, foreign_rules = _broken(draw, whole.routing.rules)
    routes, foreign_routes = _broken(draw, whole.routing.routes)
    beside = frozenset(
        dataclasses.replace(r, type=RouteType.THROW, next_hops=())
        for r in sorted(routes, key=str)
        if draw(st.booleans())
    )
    routing = Routing(
        rules=rules,
        routes=routes | beside,
        foreign_rules=whole.routing.foreign_rules | foreign_rules,
        foreign_routes=whole.routing.foreign_routes | foreign_routes,
    )
    return dataclasses.replace(whole, routing=routing, firewall=whole.firewall if some else None)


def _broken(draw: st.DrawFn, items: frozenset[T]) -> tuple[frozenset[T], frozenset[ForeignItem]]:
    """Those that are left, and what stands in the place of others."""
    fates = {item: draw(st.sampled_from(["left", "taken", "replaced"])) for item in sorted(items, key=str)}
    replaced = (in_place_of(item) for item, fate in fates.items() if fate == "replaced")
    return frozenset(item for item, fate in fates.items() if fate == "left"), frozenset(replaced)


def targets(state: NodeState) -> NodeState:
    """What can be wished for: no foreign items."""
    routing = dataclasses.replace(state.routing, foreign_rules=frozenset(), foreign_routes=frozenset())
    return dataclasses.replace(state, routing=routing)


def plan(kernel: FakeKernel, desired: NodeState, *damage: str) -> tuple[diff.Step, ...]:
    found = tuple(diff.Damage(what=what) for what in damage)
    return diff.steps(kernel.observe(desired), desired, why=str, damage=found)


def assert_converges(kernel: FakeKernel, desired: NodeState) -> None:
    kernel.run(plan(kernel, desired))
    assert holds(kernel, desired)
    assert plan(kernel, desired) == ()


# --- properties ------------------------------------------------------------------------------------------------------


@given(before=broken_states(), after=sound_states().map(targets))
@settings(deadline=None)
def test_any_state_turns_into_any_other_and_then_nothing_is_planned(before: NodeState, after: NodeState) -> None:
    assert_converges(FakeKernel(before, sysctls=SYSCTLS), after)


@given(before=sound_states(), after=sound_states().map(targets), data=st.data())
@settings(deadline=None)
def test_an_interrupted_plan_is_safe_at_each_cut_and_converges_from_there(
    before: NodeState, after: NodeState, data: st.DataObject
) -> None:
    kernel = FakeKernel(before, sysctls=SYSCTLS)
    assert kernel.leaks() == []
    for step in plan(kernel, after):
        kernel.run([step])
        assert kernel.leaks() == []
        if data.draw(st.booleans(), label="cut here"):
            assert_converges(kernel.copy(), after)


@given(before=sound_states(), after=sound_states().map(targets))
@settings(deadline=None)
def test_the_connections_of_pods_that_leave_are_always_looked_at(before: NodeState, after: NodeState) -> None:
    leaving = (flat(before.firewall).pods.keys() if before.firewall else set()) - (
        flat(after.firewall).pods.keys() if after.firewall else set()
    )
    operations = [step.operation for step in plan(FakeKernel(before, sysctls=SYSCTLS), after)]
    swept = [o.addresses for o in operations if isinstance(o, diff.SweepFlows)]
    assert not leaving or any(addresses is None or leaving <= addresses for addresses in swept)


@given(first=DECISIONS, second=DECISIONS)
@settings(deadline=None)
def test_any_cluster_follows_any_other_without_a_leak(
    first: tuple[ClusterState, object, str], second: tuple[ClusterState, object, str]
) -> None:
    kernel = FakeKernel(NodeState(), sysctls=SYSCTLS)
    held: Mapping[Slot, str] = {}
    for state, settings_, kind in (first, second, first):
        wanted = decided(state, settings_, kind, held).state
        for step in plan(kernel, wanted):
            kernel.run([step])
            assert kernel.leaks() == []
        assert holds(kernel, wanted)
        held = flat(wanted.firewall).gateways if wanted.firewall else {}
        assert decided(state, settings_, kind, held).state == wanted, "deciding twice gives the same"


@given(first=DECISIONS, second=clusters())
@settings(deadline=None)
def test_slots_are_sticky_and_belong_to_one_node_each(
    first: tuple[ClusterState, object, str], second: ClusterState
) -> None:
    state, settings_, kind = first
    before = decided(state, settings_, kind, {}).state.firewall
    held = flat(before).gateways if before else {}
    after = decided(second, settings_, kind, held).state.firewall
    names = list(flat(after).gateways.values()) if after else []
    assert len(set(names)) == len(names)
    for slot, name in (flat(after).gateways if after else {}).items():
        if name in held.values():
            assert held.get(slot) == name


@given(DECISIONS)
@settings(deadline=None)
def test_every_claimed_pod_has_a_treatment_that_can_be_carried_out(one: tuple[ClusterState, object, str]) -> None:
    state, settings_, kind = one
    desired = decided(state, settings_, kind, {})
    if desired.state.firewall is None:
        return
    firewall = flat(desired.state.firewall)
    hops = {hop.gateway for route in desired.state.routing.routes for hop in route.next_hops}
    assert firewall.next_hops == hops
    for address, pod in firewall.pods.items():
        assert (pod.slot in firewall.gateways) == (pod.treatment in (Treatment.STEER, Treatment.SNAT))
        assert (pod.source is not None) == (pod.treatment is Treatment.SNAT)
        assert pod.source is None or (pod.source in firewall.sources and pod.source.version == address.version)
        assert not pod.filter or pod.filter in firewall.filters
    for report in desired.services:
        for claimed in report.service.pods:
            missing = report.obstacle and settings_.egress.when_unavailable == "allow"  # type: ignore[attr-defined]
            assert (claimed.address in firewall.pods) == (not missing)
