"""What explain says, of decisions and of a kernel that holds them, holds others, or cannot be looked at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from metaleg_node.commands import explain_text
from metaleg_node.commands.explain_text import State
from metaleg_node.core import external_ip
from metaleg_node.core.assembly import Desired
from metaleg_node.core.egress import new_pods, survey
from metaleg_node.core.explain.answer import Answer, Held, Verdict
from metaleg_node.core.explain.explanation import explain
from metaleg_node.core.explain.situation import Kernel, Lookup, Situation, Way
from metaleg_node.core.explain.targets import Destination, TargetError, asked, destination
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.model import (
    AddressPool,
    ClusterState,
    Flow,
    Host,
    Link,
    NextHop,
    NodeName,
    ObjectRef,
    Routing,
)
from metaleg_node.core.problems import Code
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.kernel.nftables.locator import TableLocator
from tests.unit.builders import (
    DUAL,
    LB4,
    LB6,
    A,
    B,
    C,
    assembled,
    cluster,
    config,
    endpoint,
    endpoint_slice,
    host,
    host_pod,
    service,
)

SERVER = "198.51.100.10"
POD = "10.244.1.5"
NO_FIREWALL = Firewall(mark_mask=0)
HELD_ALL = Kernel(locator=TableLocator(NO_FIREWALL), way=lambda _: Way(), flows=lambda _: ())


def same_as(desired: Desired) -> Kernel:
    """A kernel that holds just what is decided, and finds each way by the table of the mark."""
    routing = desired.state.routing

    def way(question: Lookup) -> Way:
        tables = {rule.table for rule in routing.rules if rule.mark == question.mark}
        for route in sorted(routing.routes, key=lambda route: -route.destination.prefixlen):
            if route.table in tables and question.destination in route.destination and route.next_hops:
                return Way(table=route.table, hop=route.next_hops[0])
        return Way(table=254, hop=NextHop(gateway=ip_address("10.0.0.254"), interface="eth0"))

    firewall = desired.state.firewall
    locator = TableLocator(firewall or NO_FIREWALL)
    return dataclasses.replace(HELD_ALL, locator=locator, routing=routing, firewall=firewall, way=way)


def situation(
    state: ClusterState,
    me: NodeName = A,
    text: str = "",
    *,
    here: Host | None = None,
    kernel: Callable[[Kernel], Kernel] = lambda kernel: kernel,
) -> Situation:
    settings = config(text)
    state = new_pods.completed(state, settings, me)
    surveyed = survey.take(state, settings)
    starting = new_pods.read(state, surveyed, settings, me)
    gap = surveyed.gap(me)
    paths, external = pools.read(state, settings, me), external_ip.read(state, settings)
    facts = here or host(surveyed, me)
    desired = (
        Desired()
        if gap
        else assembled(surveyed, settings, me, facts, paths=paths, external=external, starting=starting)
    )
    return Situation(
        cluster=state,
        config=settings,
        me=me,
        survey=surveyed,
        desired=desired,
        kernel=kernel(same_as(desired)),
        gap=gap,
    )


def ask(around: Situation, target: str, to: str = "") -> Answer:
    (answer,) = explain(target, destination(to) if to else None, around)
    return answer


def steps(answer: Answer, name: str) -> list[tuple[str, str, Held | None]]:
    """Node, text and kernel of the steps with this name."""
    return [(p.node, s.text, s.kernel) for p in answer.places for s in p.steps if s.name == name]


# --- a pod, seen from every node -------------------------------------------------------------------------------------


@pytest.mark.parametrize("me", [A, B, C])
@pytest.mark.parametrize("to", ["", SERVER])
def test_every_node_gives_the_same_answer_about_a_pod(me: NodeName, to: str) -> None:
    answer = ask(situation(cluster(), me), POD, to)
    assert (answer.verdict, str(answer.source), answer.gateway, answer.ok) == (Verdict.LEAVES, LB4, "c", True)
    assert answer.sentence.endswith(f"leaves through c with source {LB4}")
    assert answer.sentence.startswith(f"shop/web-0 ({POD} on a)")
    assert [(place.node, place.asked) for place in answer.places] == [
        ("a", me == A),
        ("c", me == C),
        *([("b", True)] if me == B else []),
    ]
    assert answer.kernel is Held.SAME
    assert answer.places[0].steps[0].text == "Service shop/web, by EndpointSlice shop/web-x (ready)"
    assert steps(answer, "gateway") == [("c", "c announces it (ServiceL2Status metallb-system/l2-status-c)", None)]
    asked = {place.node for place in answer.places for step in place.steps if step.kernel}
    assert asked == {me}, "only of this node the kernel is told"


def test_the_steps_of_the_pods_node_name_mark_rule_and_route() -> None:
    answer = ask(situation(cluster()), POD, SERVER)
    assert [step.name for step in answer.places[0].steps] == [
        "owner",
        "destination",
        "treatment",
        "rule",
        "route",
        "way",
        "source",
    ]
    assert steps(answer, "treatment") == [("a", "leaves through c, slot 1, mark 0x01000000", Held.SAME)]
    assert steps(answer, "rule") == [("a", "IPv4 priority 4700 fwmark 0x1000000/0x3f000000 lookup 1000001", Held.SAME)]
    assert steps(answer, "route") == [("a", "default (IPv4) via 10.0.0.3 dev eth0 table 1000001", Held.SAME)]
    assert steps(answer, "way") == [("a", "the kernel says: via 10.0.0.3 dev eth0, table 1000001", Held.SAME)]


def test_a_pod_by_its_name_is_answered_in_each_family_and_to_one_end_in_its_own() -> None:
    answers = explain("shop/web-0", None, situation(DUAL, B))
    assert {str(answer.source) for answer in answers} == {LB4, LB6}
    assert len(answers) == 4, "all its addresses, on a and on b"
    assert {str(a.source) for a in explain("shop/web-0", destination("2001:db8:51::10"), situation(DUAL))} == {LB6}


# --- what stays ------------------------------------------------------------------------------------------------------

STAYS = {
    "another pod": ("10.244.3.9", "is in a pod network"),
    "a node": ("10.0.0.2", "is a node's address"),
    "a ClusterIP": ("10.96.0.7", "is the ClusterIP of Service shop/web"),
    "a Service network": ("10.97.0.1", "is in a Service network"),
    "a LoadBalancer address": (LB4, "which kube-proxy leads to a pod"),
    "a port of one": (f"{LB4}:80/tcp", "which kube-proxy leads to a pod"),
    "multicast": ("224.0.0.1", "is no address of a host outside"),
    "excluded": ("172.16.0.1", "is in egress.exclude_cidrs"),
    "excluded by annotation": ("203.0.113.9", "metaleg.de/exclude-cidrs of Service shop/web"),
    "not among the only ones": ("192.0.2.1", "is not in the annotation metaleg.de/only-cidrs"),
}
NARROW = cluster(
    services=[
        service(
            cluster_ips=["10.96.0.7"],
            annotations={"metaleg.de/exclude-cidrs": "203.0.113.0/24", "metaleg.de/only-cidrs": "198.51.100.0/24"},
        )
    ]
)
NARROWED = '[egress]\nexclude_cidrs = ["172.16.0.0/12"]\n[cluster]\nservice_cidrs = ["10.97.0.0/24"]\n'


@pytest.mark.parametrize("target", [POD, "shop/web"])
@pytest.mark.parametrize("name", STAYS)
def test_destinations_that_do_not_count_are_told_apart(name: str, target: str) -> None:
    to, why = STAYS[name]
    answer = ask(situation(NARROW, text=NARROWED), target, to)
    assert (answer.verdict, answer.ok, answer.source) == (Verdict.UNTOUCHED, True, None)
    assert why in answer.text
    assert steps(answer, "treatment") == []
    ((_, told, kernel),) = steps(answer, "destination")
    assert (why in told, kernel) == (True, Held.SAME)


@pytest.mark.parametrize("to", [SERVER, f"{SERVER}:443/tcp"])
def test_what_counts_by_the_annotations_leaves(to: str) -> None:
    assert ask(situation(NARROW, text=NARROWED), POD, to).verdict is Verdict.LEAVES
    assert ask(situation(NARROW, text=NARROWED), POD, f"{LB4}:81/tcp").verdict is Verdict.UNTOUCHED


# --- why not ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"), [("reject", "it is held (reject)"), ("allow", "it leaves with the node's own address")]
)
@pytest.mark.parametrize("me", [A, B])
def test_without_a_gateway_the_reason_and_where_to_look_are_told(me: NodeName, setting: str, words: str) -> None:
    around = situation(cluster(announcements=[]), me, f'[egress]\nwhen_unavailable = "{setting}"\n')
    answer = ask(around, POD, SERVER)
    assert (answer.verdict, answer.ok) == (Verdict.UNAVAILABLE, False)
    assert words in answer.text
    assert answer.why_not
    assert answer.why_not.code is Code.NO_GATEWAY
    assert answer.look_at == "kubectl -n metallb-system get servicel2statuses,servicebgpstatuses"


def test_what_only_one_node_sees_counts_on_that_node_alone() -> None:
    state = cluster()
    far = host(survey.take(state, config()), A, off_link=["10.0.0.3"])
    mine, other = (ask(situation(state, A, here=far), pod) for pod in (POD, "10.244.2.5"))
    assert mine.why_not
    assert mine.why_not.code is Code.OFF_LINK
    assert other.verdict is Verdict.LEAVES


NOT_EGRESS: dict[str, tuple[ClusterState, str, str, Verdict, str]] = {
    "nobody has it": (cluster(), "", "10.244.1.9", Verdict.UNTOUCHED, "no Service with the label"),
    "turned off": (cluster(), "egress.enabled = false", POD, Verdict.UNTOUCHED, "egress.enabled is false"),
    "no label": (
        cluster(services=[service(labels={})]),
        "",
        POD,
        Verdict.UNTOUCHED,
        "Service shop/web has it, but not the label metaleg.de/rewriteSrcIP=true",
    ),
    "a claim that does not count": (
        cluster(slices=[endpoint_slice(endpoint(POD, node="a", kind="Node"))]),
        "",
        POD,
        Verdict.UNAVAILABLE,
        "Service shop/web has the label, but its claim on the address does not count",
    ),
}


@pytest.mark.parametrize("name", NOT_EGRESS)
def test_a_pod_that_is_none_of_ours(name: str) -> None:
    state, text, pod, verdict, why = NOT_EGRESS[name]
    answer = ask(situation(state, text=text), pod, SERVER)
    assert answer.verdict is verdict
    assert why in answer.text
    assert (answer.why_not is not None) is (verdict is Verdict.UNAVAILABLE)


def test_nothing_is_decided_while_the_state_is_incomplete() -> None:
    for target in (POD, "shop/web"):
        answer = ask(situation(cluster(), NodeName("nobody")), target)
        assert (answer.verdict, answer.ok) == (Verdict.UNDECIDED, False)
        assert "no Node is called nobody" in answer.text


# --- the kernel ------------------------------------------------------------------------------------------------------


def without_pod(kernel: Kernel) -> Kernel:
    assert kernel.firewall
    egress = kernel.firewall.part(Egress)
    return dataclasses.replace(kernel, firewall=kernel.firewall.having(dataclasses.replace(egress, pods={})))


TREATED = {"treatment", "source"}
ELSEWHERE = Way(table=52, hop=NextHop(gateway=None, interface="tun0"))
KERNELS: dict[str, tuple[Callable[[Kernel], Kernel], Held, set[str]]] = {
    "the pod is missing": (without_pod, Held.DIFFERS, TREATED),
    "no table": (lambda k: dataclasses.replace(k, firewall=None), Held.DIFFERS, TREATED),
    "damaged": (lambda k: dataclasses.replace(k, damage=("a chain",)), Held.DIFFERS, {"destination", *TREATED}),
    "no rights": (lambda k: dataclasses.replace(k, unread="no"), Held.UNKNOWN, {"destination", *TREATED}),
    "no routing": (lambda k: dataclasses.replace(k, routing=Routing()), Held.DIFFERS, {"rule", "route"}),
    "a rule before ours": (lambda k: dataclasses.replace(k, way=lambda _: ELSEWHERE), Held.DIFFERS, {"way"}),
    "no way": (lambda k: dataclasses.replace(k, way=lambda _: Way(refusal="no")), Held.DIFFERS, {"way"}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_what_the_kernel_does_not_hold_is_told_step_by_step(name: str) -> None:
    change, worst, names = KERNELS[name]
    answer = ask(situation(cluster(), kernel=change), POD, SERVER)
    assert (answer.verdict, answer.kernel, answer.ok) == (Verdict.LEAVES, worst, False)
    assert {step.name for place in answer.places for step in place.steps if step.kernel is worst} == names
    assert answer.sentence != answer.text


def test_a_gateway_that_does_not_answer_is_a_problem_though_the_kernel_holds_all() -> None:
    hop = NextHop(gateway=ip_address("10.0.0.3"), interface="eth0")
    around = situation(cluster(), kernel=lambda k: dataclasses.replace(k, neighbours={hop: "failed"}))
    answer = ask(around, POD)
    assert (answer.kernel, answer.ok) == (Held.SAME, False)
    assert [problem.text for problem in answer.problems] == ["10.0.0.3 does not answer (neighbour failed)"]


def test_a_host_that_does_not_forward_is_a_problem() -> None:
    state = cluster()
    off = dataclasses.replace(
        host(survey.take(state, config()), A), not_forwarding=frozenset({(4, "all"), (4, "eth0")})
    )
    answer = ask(situation(state, here=off), POD)
    assert (answer.ok, [problem.code for problem in answer.problems]) == (False, [Code.FORWARDING_OFF])


def flow(*, ours: bool, source: str = POD, port: str = "443", to: str = SERVER) -> Flow:
    return Flow(
        family=4,
        protocol="tcp",
        source=ip_address(POD),
        destination=ip_address(to),
        ports=(("sport", "40000"), ("dport", port)),
        reply_source=ip_address(to),
        reply_destination=ip_address(source),
        ours=ours,
    )


@pytest.mark.parametrize(
    ("flows", "to", "told"),
    [
        ([flow(ours=True)], SERVER, ["tcp sport 40000 dport 443: its source stays 10.244.1.5 here"]),
        (
            [flow(ours=False, source="10.0.0.1")],
            f"{SERVER}:443/tcp",
            [
                "tcp sport 40000 dport 443: its source becomes 10.0.0.1; it began before this was decided, or is no "
                "egress traffic, and keeps that"
            ],
        ),
        ([flow(ours=True, port="80")], f"{SERVER}:443/tcp", []),
        ([flow(ours=True, to="203.0.113.1")], SERVER, []),
        (None, SERVER, ["cannot be seen: reading conntrack needs CAP_NET_ADMIN"]),
    ],
)
def test_connections_that_are_there_tell_what_they_are_bound_to(
    flows: Sequence[Flow] | None, to: str, told: list[str]
) -> None:
    around = situation(cluster(), kernel=lambda k: dataclasses.replace(k, flows=lambda _: flows))
    assert list(ask(around, POD, to).connections) == told


# --- Services and other addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["shop/web", LB4])
@pytest.mark.parametrize("me", [A, B, C])
def test_a_service_tells_its_pods_its_gateway_and_this_nodes_part(me: NodeName, target: str) -> None:
    answer = ask(situation(cluster(), me), target)
    assert answer.text == f"shop/web (IPv4): 2 pod addresses leave through c with source {LB4}"
    assert (answer.ok, answer.kernel) == (True, Held.SAME)
    assert [text for _, text, _ in steps(answer, "pods")] == ["1 on a, 1 on b"]
    assert {kernel for _, _, kernel in steps(answer, "treatment")} == {Held.SAME}
    assert len(steps(answer, "rule")) == (me != C)
    broken = ask(situation(cluster(), me, kernel=without_pod), target)
    assert (broken.kernel, broken.ok) == (Held.DIFFERS, False)


def test_a_service_of_two_families_has_an_answer_for_each_and_an_address_one_for_its_own() -> None:
    assert [str(one.source) for one in explain("shop/web", None, situation(DUAL))] == [LB4, LB6]
    assert [str(one.source) for one in explain(LB6, None, situation(DUAL))] == [LB6]


def test_a_second_address_of_a_service_is_not_what_its_pods_leave_with() -> None:
    state = cluster(services=[service(ingress=(LB4, "192.0.2.201"))])
    assert ask(situation(state), "192.0.2.201").text.endswith(f"{LB4}, its first address, not with 192.0.2.201")


PUBLIC = '[[return_path.l2]]\nname = "public"\ncidrs = ["192.0.2.0/24"]\ninterface = "eth1"\ngateways = ["10.1.0.1"]\n'
WITH_POOL = dataclasses.replace(
    cluster(services=[service(labels={})]),
    pools=(
        AddressPool(
            ref=ObjectRef(kind="IPAddressPool", name="p"),
            labels={},
            ranges=((ip_address("192.0.2.1"), ip_address("192.0.2.250")),),
        ),
    ),
)
LINKED = Host(links={"eth1": Link(up=True, has_ipv4=True)}, rp_filter={"all": 0, "eth1": 0})


@pytest.mark.parametrize(("target", "to"), [("192.0.2.7", ""), ("192.0.2.7", SERVER), (LB4, SERVER), ("shop/web", "")])
def test_replies_from_an_address_of_a_return_path(target: str, to: str) -> None:
    answer = ask(situation(WITH_POOL, text=PUBLIC, here=LINKED), target, to)
    assert (answer.verdict, answer.kernel, answer.ok) == (Verdict.RETURNS, Held.SAME, True)
    assert "replies leave by return path public: 10.1.0.1 dev eth1" in answer.text
    assert {kernel for name in ("match", "rule", "route") for *_, kernel in steps(answer, name)} == {Held.SAME}
    lost = situation(
        WITH_POOL, text=PUBLIC, here=LINKED, kernel=lambda k: dataclasses.replace(k, firewall=Firewall(mark_mask=1))
    )
    assert ask(lost, target, to).kernel is Held.DIFFERS


def test_answers_that_go_back_through_the_router_of_the_request() -> None:
    two = PUBLIC.replace('"10.1.0.1"', '"10.1.0.1", "10.1.0.2"')
    known = dataclasses.replace(LINKED, link_addresses={(ip_address("10.1.0.1"), "eth1"): "02:00:00:00:00:01"})
    answer = ask(situation(WITH_POOL, text=two, here=known), "192.0.2.7")
    assert (answer.verdict, answer.kernel, answer.ok) == (Verdict.RETURNS, Held.SAME, True)
    told = [step.text for place in answer.places for step in place.steps]
    first = told.index("answers to what came by 10.1.0.1 (02:00:00:00:00:01 on eth1) get mark 0x02000000")
    assert told[first + 1].endswith("lookup 1000002")
    assert told[first + 2].startswith("default (IPv4) via 10.1.0.1 dev eth1 onlink table 1000002")
    assert "10.1.0.2 on eth1 is not there now: answers to what came by it leave by any next hop" in told
    lost = situation(
        WITH_POOL,
        text=two,
        here=known,
        kernel=lambda k: dataclasses.replace(
            k, firewall=k.firewall and k.firewall.having(dataclasses.replace(k.firewall.part(ReturnPaths), routers={}))
        ),
    )
    assert ask(lost, "192.0.2.7").kernel is Held.DIFFERS


def test_replies_while_the_path_does_not_work_and_where_there_is_none() -> None:
    down = ask(situation(WITH_POOL, text=PUBLIC, here=Host()), "192.0.2.7")
    assert (down.verdict, down.ok) == (Verdict.UNAVAILABLE, False)
    assert down.why_not
    assert "there is no interface eth1" in down.why_not.text
    none = ask(situation(WITH_POOL), "192.0.2.7")
    assert (none.verdict, none.ok) == (Verdict.UNTOUCHED, True)
    assert "IPAddressPool p" in none.subject
    inside = ask(situation(WITH_POOL, text=PUBLIC, here=LINKED), "192.0.2.7", "10.0.0.2")
    assert inside.verdict is Verdict.UNTOUCHED
    assert "stay on the main table" in inside.text


def test_external_ip_of_a_service_is_told() -> None:
    text = '[external_ip]\nenabled = true\ntraffic_policies = ["Cluster"]\n'
    ipvs = frozenset(map(ip_address, (LB4, "10.96.0.7")))
    here = Host(addresses_of={"kube-ipvs0": ipvs})
    state = cluster(services=[service(labels={}, cluster_ips=["10.96.0.7"])])
    (told,) = steps(ask(situation(state, text=text, here=here), LB4), "External-IP")
    assert told == ("a", f"pods and this host reach {LB4} by the ClusterIP 10.96.0.7", Held.SAME)
    (left,) = steps(ask(situation(state, text=text), LB4), "External-IP")
    assert left[1].startswith("left to kube-proxy: there is no kube-ipvs0 here")


@pytest.mark.parametrize("target", ["10.0.0.1", "shop/host"])
def test_a_nodes_own_address_and_a_pod_of_its_host_network_are_never_egress(target: str) -> None:
    answer = ask(situation(cluster(pods=[host_pod("10.0.0.1")])), target)
    assert (answer.verdict, answer.ok) == (Verdict.UNTOUCHED, True)
    assert "10.0.0.1 is a's own" in answer.text


# --- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (SERVER, (SERVER, 0, "")),
        (f"{SERVER}:443/TCP", (SERVER, 443, "tcp")),
        ("2001:db8::1", ("2001:db8::1", 0, "")),
        ("[2001:db8::1]", ("2001:db8::1", 0, "")),
        ("[2001:db8::1]:53/udp", ("2001:db8::1", 53, "udp")),
    ],
)
def test_the_other_end(text: str, meant: tuple[str, int, str]) -> None:
    address, port, protocol = meant
    found = destination(text)
    assert found == Destination(address=ip_address(address), port=port, protocol=protocol)
    assert destination(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "x", "1.2.3", f"{SERVER}:443", f"{SERVER}:0/tcp", f"{SERVER}:99999/tcp", "2001:db8::1:53/udp", "a/b"]
)
def test_what_is_no_other_end_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="neither ADDRESS nor"):
        destination(text)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("shop/nobody", "there is no Service shop/nobody"),
        ("203.0.113.1", "is no address of a node, a pod network, a Service or a pool"),
        ("10.96.0.7", "is a ClusterIP: ask for shop/web"),
    ],
)
def test_what_is_not_found_is_told(target: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        explain(target, None, situation(NARROW))
    with pytest.raises(TargetError, match="has no address of the family"):
        explain("shop/web-0", destination("2001:db8::1"), situation(NARROW))


@pytest.mark.parametrize(
    ("target", "to", "words"),
    [
        ("nonsense", None, "neither an address nor namespace/name"),
        ("a/b/c", None, "neither an address nor namespace/name"),
        ("/web", None, "neither an address nor namespace/name"),
        ("shop/web", "x", "neither ADDRESS nor"),
        (POD, "2001:db8::1", "is no address of the family of 2001:db8::1"),
    ],
)
def test_what_can_mean_nothing_is_told_before_anything_is_read(target: str, to: str | None, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        asked(target, to)


# --- as it is printed ------------------------------------------------------------------------------------------------

STATE = State(place="a file", since=None, problem="")


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("target", [POD, "shop/web", "10.244.2.5"])
def test_text_fits_the_terminal_and_leaves_nothing_out(
    columns: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = situation(NARROW, text=NARROWED)
    answers = explain(target, destination(SERVER), around)
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = explain_text.render(answers, around)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = explain_text.render(answers, around)
    assert max(map(len, text.splitlines())) <= columns
    assert text.split() == whole.split()
    assert all(step.rule.split()[0] in text for a in answers for p in a.places for step in p.steps if step.rule)


def test_the_document_has_every_value_in_the_documented_form() -> None:
    around = situation(cluster(announcements=[]))
    told: Any = json.loads(json.dumps(explain_text.document(POD, None, around, explain(POD, None, around), STATE)))
    assert (told["version"], told["node"], told["target"], told["to"]) == (1, "a", POD, None)
    (answer,) = told["answers"]
    assert answer["why_not"]["code"] == "no-gateway"
    assert (answer["verdict"], answer["kernel"], answer["ok"]) == ("unavailable", "same", False)
    assert {step["kernel"] for place in answer["nodes"] for step in place["steps"]} == {"same", None}
