"""Which pods are held until it is known whose they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metaleg_node.core.egress import new_pods, survey
from metaleg_node.core.egress.new_pods import Starting
from metaleg_node.core.explain.answer import Held, Verdict
from metaleg_node.core.firewall.new_pods import NewPods
from metaleg_node.core.model import Attachment, ClusterState, CniResults, Pod, Service
from metaleg_node.core.objects import cni
from metaleg_node.core.problems import Code
from metaleg_node.sources import cni_results
from metaleg_node.sources.cni_results import ResultsError
from tests.unit.builders import LB4, A, addresses, cluster, config, endpoint, endpoint_slice, pod, service
from tests.unit.test_explain import ask, situation

HOLD = '[egress]\nnew_pods = "hold"\n'
WEB: Service = replace(service(), selector={"app": "web"})
SLICES = [endpoint_slice(endpoint("10.244.2.5", node="b", name="web-far"))]


def web(name: str = "web-0", *texts: str, uid: str = "", ending: bool = False) -> Pod:
    return replace(pod(name, *texts), labels={"app": "web", "tier": "x"}, uid=uid, ending=ending)


def given(name: str, *texts: str, uid: str = "", since: float = 1.0, namespace: str = "shop") -> Attachment:
    return Attachment(namespace=namespace, name=name, uid=uid, addresses=addresses(texts), since=since)


def state(*pods: Pod, cni: list[Attachment] | None = None, live: bool = True, of: Service = WEB) -> ClusterState:
    found = cluster(services=[of], slices=SLICES, pods=pods)
    return found if cni is None else replace(found, cni=(CniResults(attachments=tuple(cni), live=live),))


def starting(state: ClusterState, text: str = HOLD) -> tuple[Starting, NewPods]:
    early = new_pods.completed(state, config(text), A)
    found = new_pods.read(early, survey.take(early, config(text)), config(text), A)
    parts = [part for part in found.contribution.parts if isinstance(part, NewPods)]
    return found, parts[0] if parts else NewPods()


def known(state: ClusterState, text: str = HOLD) -> tuple[set[str], set[str]]:
    """The addresses without egress, and those of egress pods."""
    part = starting(state, text)[1]
    return set(map(str, part.plain)), set(map(str, part.claimed))


def test_by_default_nothing_is_held() -> None:
    assert starting(state(web(), cni=[given("web-0", "10.244.1.9")]), "") == (Starting(), NewPods())


def test_without_a_service_that_asks_for_egress_nothing_is_held() -> None:
    found = replace(state(web(), cni=[]), services=())
    assert starting(found) == (Starting(), NewPods())


CASES: dict[str, tuple[ClusterState, set[str], set[str]]] = {
    "CNI's result of a pod that the Service selects": (
        state(web(), cni=[given("web-0", "10.244.1.9")]),
        set(),
        {"10.244.1.9"},
    ),
    "of another": (state(pod("db-0"), cni=[given("db-0", "10.244.1.9")]), {"10.244.1.9"}, set()),
    "of one whose Pod is not known": (state(cni=[given("x", "10.244.1.9")]), set(), set()),
    "of an earlier Pod of the name": (
        state(web(uid="new"), cni=[given("web-0", "10.244.1.9", uid="old")]),
        set(),
        set(),
    ),
    "of the very Pod": (state(web(uid="new"), cni=[given("web-0", "10.244.1.9", uid="new")]), set(), {"10.244.1.9"}),
    "Pod status, where there is no result": (state(web("web-0", "10.244.1.9")), set(), {"10.244.1.9"}),
    "Pod status of another": (state(pod("db-0", "10.244.1.9")), {"10.244.1.9"}, set()),
    "an address that a plain pod had and an egress pod has": (
        state(pod("db-0", "10.244.1.9"), web(), cni=[given("web-0", "10.244.1.9")]),
        set(),
        {"10.244.1.9"},
    ),
    "an address that an egress pod had and a plain pod has": (
        state(
            web("web-0", "10.244.1.9"),
            pod("db-0"),
            cni=[given("db-0", "10.244.1.9", since=2), given("web-0", "10.244.1.9")][::-1],
        ),
        {"10.244.1.9"},
        set(),
    ),
    "an address that a plain pod had and one has whose Pod is not known": (
        state(pod("db-0", "10.244.1.9"), cni=[given("x", "10.244.1.9")]),
        set(),
        set(),
    ),
    "an address that a pod gave back": (state(replace(pod("db-0", "10.244.1.9"), ending=True), cni=[]), set(), set()),
    "a pod that ends and has its address still": (
        state(replace(pod("db-0", "10.244.1.9"), ending=True), cni=[given("db-0", "10.244.1.9")]),
        {"10.244.1.9"},
        set(),
    ),
    "a pod that ends, where nobody tells results": (
        state(replace(pod("db-0", "10.244.1.9"), ending=True)),
        {"10.244.1.9"},
        set(),
    ),
    "a result of a pod that is gone, told before the helper went": (
        state(pod("db-0", "10.244.1.9"), cni=[given("gone", "10.244.1.9")], live=False),
        {"10.244.1.9"},
        set(),
    ),
    "an exempt namespace": (state(cni=[given("dns", "10.244.1.9", namespace="kube-system")]), {"10.244.1.9"}, set()),
    "a Service whose new pods are allowed": (
        state(
            web(),
            cni=[given("web-0", "10.244.1.9")],
            of=replace(WEB, annotations={"metaleg.de/new-pods": "allow"}),
        ),
        {"10.244.1.9"},
        set(),
    ),
    "a pod of the host network": (
        state(replace(web(), host_network=True), cni=[given("web-0", "10.244.1.9")]),
        set(),
        set(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_an_address_is_known_as(name: str) -> None:
    found, plain, egress = CASES[name]
    assert known(found) == (plain, egress | {"10.244.2.5"})


def test_an_address_that_an_egress_pod_had_is_not_its_any_more_although_the_API_tells_of_nothing_yet() -> None:
    """Neither that the one has ended nor that there is another; its EndpointSlice names it, too."""
    before = state(web("web-0", "10.244.1.9"), cni=[given("web-0", "10.244.1.9")])
    slices = (*before.endpoint_slices, endpoint_slice(endpoint("10.244.1.9", node="a", name="web-0")))
    before = replace(before, endpoint_slices=slices)
    assert known(before) == (set(), {"10.244.1.9", "10.244.2.5"})
    after = replace(before, cni=(CniResults(attachments=(given("new", "10.244.1.9"),), live=True),))
    assert known(after) == (set(), {"10.244.2.5"})
    assert after.endpoint_slices[0] is new_pods.completed(after, config(HOLD), A).endpoint_slices[0]


def test_another_namespaces_pod_of_the_same_labels_is_none_of_the_service() -> None:
    other = replace(pod("web-0", namespace="other"), labels={"app": "web"})
    assert known(state(other, cni=[given("web-0", "10.244.1.9", namespace="other")]))[0] == {"10.244.1.9"}


def test_an_annotation_that_is_not_allow_is_told_and_holds() -> None:
    found = state(web(), cni=[], of=replace(WEB, annotations={"metaleg.de/new-pods": "pass"}))
    (told,) = survey.take(found, config(HOLD)).rejections
    assert told.reason == 'annotation metaleg.de/new-pods is "pass"; only "allow" counts'
    assert starting(found)[0].waiting


@pytest.mark.parametrize(
    ("found", "here"),
    [
        (state(web(), cni=[]), True),
        (state(cni=[]), True),
        (state(web()), True),
        (state(web("web-0", "10.244.1.9")), False),
        (state(pod("db-0")), False),
        (replace(state(web("web-0", "10.244.1.9")), pods_sure=False), True),
        (state(web("web-0", ending=True)), False),
        (state(replace(web(), ended=True)), False),
    ],
    ids=["results", "results, no pod", "one starts", "none starts", "another starts", "unsure", "ends", "has ended"],
)
def test_own_pods_are_held_by_results_or_while_an_egress_pod_starts(found: ClusterState, here: bool) -> None:
    told, part = starting(found)
    assert (told.here, part.here, part.held) == (here, here, True)


def test_what_is_told() -> None:
    told, _ = starting(state(web(), pod("db-0"), cni=[given("x", "10.244.1.9"), given("db-0", "10.244.1.8")]))
    assert [str(ref) for ref in told.waiting] == ["Pod shop/web-0"]
    assert set(map(str, told.unknown)) == {"10.244.1.9"}
    assert not told.contribution.problems
    assert [p.code for p in starting(state(web()))[0].contribution.problems] == [Code.NEW_PODS_LATE]


def test_a_state_file_without_pods_of_this_node_is_told() -> None:
    text = f'{HOLD}[cluster]\nstate_file = "/x"\n'
    codes = [p.code for p in starting(state(cni=[]), text)[0].contribution.problems]
    assert codes == [Code.NEW_PODS_UNKNOWN]


# --- hand-written slices ---------------------------------------------------------------------------------------------


def test_with_this_nodes_pods_known_a_slice_that_names_no_pod_cannot_claim_here_but_may_elsewhere() -> None:
    """Which pods other nodes have is not known."""
    slices = [
        endpoint_slice(endpoint("10.244.1.9", node="a", kind=None)),
        endpoint_slice(endpoint("10.244.2.9", node="b", kind=None)),
    ]
    found = survey.take(cluster(slices=slices, pods=[pod("db-0", "10.244.1.7")]), config())
    assert [str(p.address) for s in found.services for p in s.pods] == ["10.244.2.9"]


# --- CNI's results ---------------------------------------------------------------------------------------------------


def cached(**more: object) -> dict[str, object]:
    """As libcni writes it for containerd."""
    arguments = [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web-0"]]
    result = {"cniVersion": "1.0.0", "ips": [{"address": "10.244.1.9/24"}, {"address": "fd00:10:244:1::9/64"}]}
    return {"kind": "cniCacheV1", "ifName": "eth0", "cniArgs": arguments, "result": result, **more}


def test_a_result_is_read_and_told_and_understood() -> None:
    found = cni.read(cached(), since=1.5)
    assert found == given("web-0", "10.244.1.9", "fd00:10:244:1::9", since=1.5)
    assert cni_results.understood(cni_results.line([found])) == (found,)


@pytest.mark.parametrize("other", [{"ifName": "lo"}, {"ifName": "net1"}, {"kind": "x"}])
def test_other_networks_and_kinds_are_none(other: dict[str, object]) -> None:
    assert cni.read(cached(**other), since=0) is None


@pytest.mark.parametrize(
    "bad", [[], {**cached(), "cniArgs": [[[], 1], 7]}, {**cached(), "cniArgs": [["K8S_POD_NAME", "../x"]]}]
)
def test_what_names_no_pod_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"none|object"):
        cni.read(bad, since=0)


@pytest.mark.parametrize("bad", [b"", b"{}\n", b"[7]\n", b'[{"namespace":"x","name":"y","uid":"","since":NaN}]\n'])
def test_what_is_told_wrongly_is_not_understood(bad: bytes) -> None:
    with pytest.raises(ResultsError):
        cni_results.understood(bad)


# --- explained -------------------------------------------------------------------------------------------------------


def test_a_new_pod_is_held_until_it_is_known_and_then_leaves_before_an_EndpointSlice_names_it() -> None:
    new = state(cni=[given("web-9", "10.244.1.9")])
    held = ask(situation(new, text=HOLD), "10.244.1.9")
    assert (held.verdict, held.kernel) == (Verdict.UNAVAILABLE, Held.SAME)
    assert "is not known yet, so what it sends outside is dropped until it is" in held.sentence
    leaves = ask(situation(replace(new, pods=(web("web-9"),)), text=HOLD), "shop/web-9")
    assert (leaves.verdict, str(leaves.source)) == (Verdict.LEAVES, LB4)
