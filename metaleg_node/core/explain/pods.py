"""What a pod sends: whether it is egress, which node translates it, and which source the outside sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.egress.requests import Obstacle
from metaleg_node.core.egress.transport import Way
from metaleg_node.core.explain.answer import Answer, Place, Step, Verdict
from metaleg_node.core.explain.destinations import step as destination_step
from metaleg_node.core.explain.destinations import why_it_stays
from metaleg_node.core.explain.routes import Marked, hop_problems, host_problems, look_at, routing
from metaleg_node.core.explain.situation import Situation
from metaleg_node.core.explain.targets import Destination, PodTarget
from metaleg_node.core.firewall.egress import Egress, EgressPod, Treatment
from metaleg_node.core.firewall.new_pods import NewPods
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Address, Flow, Node, NodeName, Slot
from metaleg_node.core.networks import Membership
from metaleg_node.core.problems import Code, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pod:
    """A pod, its Service's decision, and the nodes that have to do with it."""

    target: PodTarget
    to: Destination | None
    situation: Situation
    decision: ServiceDecision | None
    node: NodeName | None
    """Where it runs, as far as that is known."""

    @property
    def address(self) -> Address:
        return self.target.address

    @property
    def local(self) -> bool:
        here = self.decision.here if self.decision else ()
        return self.address in here or self.node == self.situation.me

    @property
    def gateway(self) -> NodeName | None:
        gateway = self.decision.service.gateway if self.decision else None
        return gateway.node.name if gateway else None

    @property
    def obstacle(self) -> Obstacle | None:
        """What keeps it from leaving. Of what only one node sees, this node's part counts where it has one."""
        if self.decision is None:
            return None
        mine = self.local or self.gateway == self.situation.me
        return self.decision.obstacle if mine else self.decision.service.obstacle

    @property
    def treated(self) -> EgressPod | None:
        """How this node treats it."""
        return self.situation.wanted(Egress).pods.get(self.address)

    def marked(self, slot: Slot) -> Marked:
        """Its packets, once they are marked."""
        return Marked(slot=slot, family=self.address.version, source=self.address, to=self.to)

    @property
    def subject(self) -> str:
        where = f"{self.address} on {self.node}" if self.node else f"{self.address}"
        return f"{self.target.name} ({where})" if self.target.name else where

    @property
    def going(self) -> str:
        return f"{self.subject} to {self.to}" if self.to else self.subject


def explain(target: PodTarget, to: Destination | None, situation: Situation) -> Answer:
    """The answer about one address of a pod."""
    decision = situation.desired.owners.get(target.address)
    told = [pod.node for pod in decision.service.pods if pod.address == target.address] if decision else []
    told += [endpoint.node for _, endpoint in target.named_by]
    node = next(filter(None, told), None) or _node_of(target.address, situation.survey.nodes)
    pod = _Pod(target=target, to=to, situation=situation, decision=decision, node=node)
    if situation.gap:
        return Answer(subject=pod.subject, verdict=Verdict.UNDECIDED, text=f"{pod.going}: undecided: {situation.gap}")
    if decision is None:
        return _not_egress(pod)
    stays = why_it_stays(to, decision.service, situation)
    if stays:
        text = f"{pod.going}: is no egress traffic, so nothing is done to it: {stays}"
        return _answer(pod, decision, Verdict.UNTOUCHED, text, [_at_pod(pod, decision, stays)])
    if pod.obstacle:
        return _unavailable(pod, decision, pod.obstacle)
    source, gateway = decision.service.source, pod.gateway
    if pod.to:
        text = f"{pod.going}: leaves through {gateway} with source {source}"
    else:
        text = f"{pod.subject}: what it sends out of the cluster leaves through {gateway} with source {source}"
    return _answer(pod, decision, Verdict.LEAVES, text, [*_places(pod, decision)])


# --- whose it is -----------------------------------------------------------------------------------------------------


def _node_of(address: Address, nodes: Mapping[NodeName, Node]) -> NodeName | None:
    return next((name for name, node in nodes.items() if address in Membership(node.pod_cidrs)), None)


def _not_egress(pod: _Pod) -> Answer:
    situation, address = pod.situation, pod.address
    new = situation.wanted(NewPods)
    if pod.local and new.here and address not in new.plain:
        return _new(pod)
    slices = {one.ref for one, _ in pod.target.named_by}
    refused = [r for r in situation.survey.rejections if r.ref in slices and r.reason.startswith(f"{address} ")]
    steps = [Step(name="owner", text=_no_owner(pod))]
    if pod.local:
        text = "left alone: it leaves as the CNI and other programs have it"
        kernel = situation.kernel.holds(lambda f: address not in f.part(Egress).pods)
        steps.append(Step(name="treatment", text=text, kernel=kernel))
    places = (Place(node=pod.node or "?", role=_role(pod, pod.node), steps=tuple(steps), asked=pod.local),)
    text = f"{pod.going}: is no egress pod, so nothing is done to what it sends: {_no_owner(pod)}"
    if refused:
        why = Problem(code=Code.OBJECT_NOT_USED, subject=str(refused[0].ref), text=refused[0].reason)
        return Answer(subject=pod.subject, verdict=Verdict.UNAVAILABLE, text=text, places=places, why_not=why)
    return Answer(subject=pod.subject, verdict=Verdict.UNTOUCHED, text=text, places=places)


def _new(pod: _Pod) -> Answer:
    """It is not known yet whether it is an egress pod."""
    address = pod.address
    text = "is not known yet, so what it sends outside is dropped until it is (egress.new_pods)"

    def held(firewall: Firewall) -> bool:
        part = firewall.part(NewPods)
        return part.here and address not in part.plain | part.claimed

    kernel = pod.situation.kernel
    step = Step(name="treatment", text=text, rule=kernel.locator.new_pod(address), kernel=kernel.holds(held))
    places = (Place(node=pod.node or "?", role=_role(pod, pod.node), steps=(step,), asked=True),)
    return Answer(subject=pod.subject, verdict=Verdict.UNAVAILABLE, text=f"{pod.going}: {text}", places=places)


def _no_owner(pod: _Pod) -> str:
    settings = pod.situation.config.egress
    if not settings.enabled:
        return "egress.enabled is false"
    names = {(one.ref.namespace, one.service) for one, _ in pod.target.named_by}
    having = [s for s in pod.situation.cluster.services if (s.ref.namespace, s.ref.name) in names]
    labelled = [s for s in having if s.labels.get(settings.label) == "true"]
    if labelled:
        return f"{labelled[0].ref} has the label, but its claim on the address does not count"
    if having:
        return f"{having[0].ref} has it, but not the label {settings.label}=true"
    return f"no Service with the label {settings.label}=true has it"


# --- which node does what --------------------------------------------------------------------------------------------


def _role(pod: _Pod, node: NodeName | None) -> str:
    words = ["this node" if node == pod.situation.me else ""]
    words += ["the gateway" if node and node == pod.gateway else ""]
    words += ["not asked" if node != pod.situation.me else ""]
    return ", ".join(filter(None, words))


def _places(pod: _Pod, decision: ServiceDecision) -> Iterator[Place]:
    yield _at_pod(pod, decision)
    if pod.gateway and pod.node != pod.gateway:
        yield _at_gateway(pod, decision)
    me = pod.situation.me
    if me not in (pod.node, pod.gateway) and pod.treated:
        yield Place(node=me, role="this node", steps=(_treatment(pod, pod.treated),))


def _at_pod(pod: _Pod, decision: ServiceDecision, stays: str = "") -> Place:
    asked = pod.local and pod.treated is not None
    steps = [_owner(pod, decision), destination_step(pod.to, decision.service, pod.situation, asked=asked)]
    if not stays:
        steps += _handling(pod) if pod.local else [_foreseen(pod, decision)]
    if not stays and pod.gateway and pod.gateway == pod.node and not pod.obstacle:
        steps += [_announced(decision), _answers(pod, decision)]
    return Place(node=pod.node or "?", role=_role(pod, pod.node), steps=tuple(steps), asked=pod.local)


def _at_gateway(pod: _Pod, decision: ServiceDecision) -> Place:
    here = pod.gateway == pod.situation.me
    steps = [_announced(decision)]
    steps += _handling(pod) if here else [Step(name="source", text=f"becomes {decision.service.source}")]
    steps.append(_answers(pod, decision))
    return Place(node=pod.gateway or "?", role=_role(pod, pod.gateway), steps=tuple(steps), asked=here)


def _owner(pod: _Pod, decision: ServiceDecision) -> Step:
    """The Service, and the slice by which it has the pod."""
    ref = decision.service.service.ref
    for one, endpoint in pod.target.named_by:
        if (one.ref.namespace, one.service) == (ref.namespace, ref.name):
            state = "terminating" if endpoint.terminating else "ready" if endpoint.ready else "not ready"
            return Step(name="owner", text=f"{ref}, by {one.ref} ({state})")
    return Step(name="owner", text=str(ref))


def _announced(decision: ServiceDecision) -> Step:
    gateway = decision.service.gateway
    return Step(name="gateway", text=gateway.why if gateway else "none")


def _foreseen(pod: _Pod, decision: ServiceDecision) -> Step:
    """What another node does with its pod."""
    if pod.obstacle:
        return Step(name="treatment", text=f"is held there: {pod.situation.wanted(Egress).hold}")
    if pod.gateway == pod.node:
        return Step(name="source", text=f"becomes {decision.service.source}")
    return Step(name="treatment", text=f"steered to {pod.gateway} with its own source")


def _treatment(pod: _Pod, treated: EgressPod) -> Step:
    """What this node does, and whether its packet filter says so."""
    situation, address = pod.situation, pod.address
    want = situation.wanted(Egress)
    holder = want.gateways.get(treated.slot) if treated.slot else None

    def same(have: Firewall) -> bool:
        egress = have.part(Egress)
        slot = egress.pods.get(address)
        return slot == treated and (not treated.slot or egress.gateways.get(treated.slot) == holder)

    mark = f", mark {situation.mark(treated.slot)}" if treated.slot else ""
    return Step(
        name="treatment",
        text=f"{want.describe(treated)}{mark}",
        rule=situation.kernel.locator.pod(address),
        kernel=situation.kernel.holds(same),
    )


def _handling(pod: _Pod) -> list[Step]:
    """What this node does with the pod's packets, step by step."""
    treated = pod.treated
    if treated is None:
        text = "left alone, as egress.when_unavailable asks" if pod.obstacle else "left alone"
        kernel = pod.situation.kernel.holds(lambda f: pod.address not in f.part(Egress).pods)
        return [Step(name="treatment", text=text, kernel=kernel)]
    decides = _treatment(pod, treated)
    if not treated.slot:
        return [decides]
    stays = f"stays {pod.address} on this node, whatever others masquerade"
    text = stays if treated.treatment is Treatment.STEER else f"becomes {treated.source}"
    rule = pod.situation.kernel.locator.source(pod.address)
    source = Step(name="source", text=text, rule=rule, kernel=decides.kernel)
    way = pod.decision.way if pod.decision else None
    by_pods = isinstance(way, Way) and way.transport == "pod-network"
    carried = [Step(name="transport", text=f"{pod.gateway} is reached {way}")] if by_pods else []
    return [decides, *carried, *routing(pod.marked(treated.slot), pod.situation), source]


def _answers(pod: _Pod, decision: ServiceDecision) -> Step:
    way = "" if pod.gateway == pod.node else ", through the pod network"
    text = f"come to {decision.service.source} at {pod.gateway}, and go back to {pod.address}{way}"
    return Step(name="answers", text=text)


# --- the whole -------------------------------------------------------------------------------------------------------


def _unavailable(pod: _Pod, decision: ServiceDecision, obstacle: Obstacle) -> Answer:
    what = pod.situation.config.egress.when_unavailable
    then = "it leaves with the node's own address" if what == "allow" else f"it is held ({what})"
    text = f"{pod.going}: cannot leave, and {then}: {obstacle.code.meaning}"
    return _answer(pod, decision, Verdict.UNAVAILABLE, text, [_at_pod(pod, decision)])


def _answer(
    pod: _Pod,
    decision: ServiceDecision,
    verdict: Verdict,
    text: str,
    places: Iterable[Place],
) -> Answer:
    obstacle = pod.obstacle if verdict is Verdict.UNAVAILABLE else None
    mine = verdict is Verdict.LEAVES and pod.situation.me in (pod.node, pod.gateway)
    return Answer(
        subject=pod.subject,
        verdict=verdict,
        text=text,
        source=decision.service.source if verdict is Verdict.LEAVES else None,
        gateway=pod.gateway or "",
        places=tuple(places),
        why_not=Problem(code=obstacle.code, subject=str(decision.service.service.ref), text=obstacle.detail)
        if obstacle
        else None,
        look_at=look_at(obstacle.code, decision.service.service.ref, pod.situation) if obstacle else "",
        problems=tuple(_problems(pod)) if mine else (),
        connections=_connections(pod),
    )


def _problems(pod: _Pod) -> Iterator[Problem]:
    yield from host_problems(pod.situation)
    if pod.treated and pod.treated.slot:
        yield from hop_problems(pod.marked(pod.treated.slot), pod.situation)


_SHOWN = 5


def _connections(pod: _Pod) -> tuple[str, ...]:
    """What the kernel of this node already tracks between the two ends: that is decided no more."""
    if pod.to is None or not (pod.local or pod.gateway == pod.situation.me):
        return ()
    flows = pod.situation.kernel.flows(pod.address)
    if flows is None:
        return ("cannot be seen: reading conntrack needs CAP_NET_ADMIN",)
    found = [_bound(flow) for flow in flows if flow.source == pod.address and _is_to(flow, pod.to)]
    rest = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return (*found[:_SHOWN], *rest)


def _is_to(flow: Flow, to: Destination) -> bool:
    if to.address not in (flow.destination, flow.reply_source):
        return False
    return not to.port or (flow.protocol, dict(flow.ports).get("dport")) == (to.protocol, str(to.port))


def _bound(flow: Flow) -> str:
    ports = " ".join(f"{name} {value}" for name, value in flow.ports)
    source = flow.reply_destination
    seen = f"its source stays {source} here" if source == flow.source else f"its source becomes {source}"
    since = "" if flow.ours else "; it began before this was decided, or is no egress traffic, and keeps that"
    return f"{flow.protocol} {ports}: {seen}{since}"
