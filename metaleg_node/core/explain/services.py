"""What a Service asks for and gets: egress of its pods, the way of its replies, External-IP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from metaleg_node.core.changes import listed
from metaleg_node.core.egress.node import ServiceDecision
from metaleg_node.core.explain.addresses import replies
from metaleg_node.core.explain.answer import Answer, Place, Step, Verdict
from metaleg_node.core.explain.destinations import step as destination_step
from metaleg_node.core.explain.destinations import why_it_stays
from metaleg_node.core.explain.routes import Marked, hop_problems, host_problems, look_at, routing
from metaleg_node.core.explain.situation import Situation
from metaleg_node.core.explain.targets import Destination, ServiceTarget
from metaleg_node.core.external_ip import ExternalAddress
from metaleg_node.core.firewall.egress import Egress
from metaleg_node.core.firewall.external_ip import ExternalIp
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Address
from metaleg_node.core.problems import Problem
from metaleg_node.text import counted


def explain(target: ServiceTarget, to: Destination | None, situation: Situation) -> Iterator[Answer]:
    """One answer for each family that the Service has pods or an address in."""
    service = target.service
    name = f"{service.ref.namespace}/{service.ref.name}"
    if situation.gap:
        yield Answer(subject=name, verdict=Verdict.UNDECIDED, text=f"{name}: undecided: {situation.gap}")
        return
    decisions = [one for one in situation.desired.services if one.service.service.ref == service.ref]
    if target.address:
        decisions = [one for one in decisions if one.service.family == target.address.version]
    if to:
        decisions = [one for one in decisions if one.service.family == to.address.version]
    for decision in decisions:
        yield _with_egress(decision, target, to, situation)
    if not decisions:
        yield _without(target, name, to, situation)


def _with_egress(
    decision: ServiceDecision, target: ServiceTarget, to: Destination | None, situation: Situation
) -> Answer:
    service, obstacle = decision.service, decision.obstacle
    subject = f"{service.service.ref.namespace}/{service.service.ref.name} (IPv{service.family})"
    address = target.address or service.source
    where = [Place(node="the cluster", role="the same on every node", steps=tuple(_asked(decision)), asked=False)]
    stays = why_it_stays(to, service, situation)
    here = [*_here(decision, to, situation, stays), *_inward(service.service.ref, address, situation)]
    here += replies(address, to, situation).steps if address else ()
    where.append(Place(node=situation.me, role=_role(decision, situation), steps=tuple(here)))
    if stays:
        text = f"{subject}: what its pods send to {to} is no egress traffic, so nothing is done to it: {stays}"
        return Answer(subject=subject, verdict=Verdict.UNTOUCHED, text=text, places=tuple(where))
    if obstacle:
        what = situation.config.egress.when_unavailable
        then = "leave with their nodes' own addresses" if what == "allow" else f"are held ({what})"
        text = f"{subject}: its pods cannot leave, and {then}: {obstacle.code.meaning}"
        why = Problem(code=obstacle.code, subject=str(service.service.ref), text=obstacle.detail)
    else:
        assert service.gateway
        pods = f"{counted(decision.pods, 'pod address')} {'leaves' if decision.pods == 1 else 'leave'}"
        text = f"{subject}: {pods} through {service.gateway.node.name} with source {service.source}"
        why = None
    if not obstacle and target.address not in (None, service.source):
        text += f", its first address, not with {target.address}"
    return Answer(
        subject=subject,
        verdict=Verdict.UNAVAILABLE if obstacle else Verdict.LEAVES,
        text=text,
        source=None if obstacle else service.source,
        gateway=service.gateway.node.name if service.gateway else "",
        places=tuple(where),
        why_not=why,
        look_at=look_at(obstacle.code, service.service.ref, situation) if obstacle else "",
        problems=() if obstacle else tuple(_problems(decision, to, situation)),
    )


def _without(target: ServiceTarget, name: str, to: Destination | None, situation: Situation) -> Answer:
    """A Service that asks for no egress may still have a return path, or External-IP."""
    service, label = target.service, situation.config.egress.label
    address = target.address or next(iter(service.ingress), None)
    why = "egress.enabled is false" if not situation.config.egress.enabled else f"it has not the label {label}=true"
    steps = [Step(name="egress", text=f"none: {why}"), *_inward(service.ref, address, situation)]
    back = replies(address, to, situation) if address else None
    steps += back.steps if back else ()
    text = f"{name}: no egress is asked for: {why}"
    return Answer(
        subject=name,
        verdict=back.verdict if back else Verdict.UNTOUCHED,
        text=f"{text}; {back.text}" if back else text,
        places=(Place(node=situation.me, role="this node", steps=tuple(steps)),),
        why_not=back.why_not if back else None,
        problems=back.problems if back else (),
    )


def _asked(decision: ServiceDecision) -> Iterator[Step]:
    service = decision.service
    yield Step(name="source", text=str(service.source or "none"))
    yield Step(name="gateway", text=service.gateway.why if service.gateway else "none")
    nodes = Counter(pod.node or "a node that no slice names" for pod in service.pods)
    spread = ", ".join(f"{number} on {node}" for node, number in sorted(nodes.items()))
    yield Step(name="pods", text=spread or "none")
    if service.filter.exclude:
        yield Step(name="except", text=listed(service.filter.exclude))
    if service.filter.only:
        yield Step(name="only to", text=listed(service.filter.only))


def _role(decision: ServiceDecision, situation: Situation) -> str:
    gateway = decision.service.gateway
    return "this node, the gateway" if gateway and gateway.node.name == situation.me else "this node"


def _here(decision: ServiceDecision, to: Destination | None, situation: Situation, stays: str) -> Iterator[Step]:
    """How this node treats the Service's pods, and whether they may mean the destination at all."""
    want = situation.wanted(Egress)
    if to:
        asked = any(True for _ in decision.treated())
        yield destination_step(to, decision.service, situation, asked=asked)
    if stays:
        return
    for addresses, treated in decision.treated():
        some = frozenset(addresses)
        mark = f", mark {situation.mark(treated.slot)}" if treated.slot else ""
        whose = "of this node" if treated.local else "of other nodes"
        yield Step(
            name="treatment",
            text=f"{counted(len(some), 'pod address')} {whose}: {want.describe(treated)}{mark}",
            rule=situation.kernel.locator.pod(min(some, key=int)),
            kernel=situation.kernel.holds(lambda have, some=some: _same_pods(have, want, some)),  # type: ignore[misc]
        )
    if packet := _sample(decision, to, situation):
        yield from routing(packet, situation)


def _same_pods(have: Firewall, want: Egress, addresses: frozenset[Address]) -> bool:
    egress = have.part(Egress)
    return all(egress.pods.get(address) == want.pods.get(address) for address in addresses)


def _sample(decision: ServiceDecision, to: Destination | None, situation: Situation) -> Marked | None:
    """A packet of a pod that this node steers or translates, its own pods first."""
    pods = situation.wanted(Egress).pods
    told = (*sorted(decision.here, key=int), *(pod.address for pod in decision.service.pods))
    for address in told:
        if address in pods and (slot := pods[address].slot):
            return Marked(slot=slot, family=decision.service.family, source=address, to=to)
    return None


def _problems(decision: ServiceDecision, to: Destination | None, situation: Situation) -> Iterator[Problem]:
    if packet := _sample(decision, to, situation):
        yield from host_problems(situation)
        yield from hop_problems(packet, situation)


# --- External-IP -----------------------------------------------------------------------------------------------------


def _inward(service: object, address: Address | None, situation: Situation) -> Iterator[Step]:
    """How this node and its pods reach the address, where External-IP is on."""
    for one in situation.desired.external:
        if one.service == service and address in (None, one.address):
            yield _external(one, situation)


def _external(one: ExternalAddress, situation: Situation) -> Step:
    if one.obstacle:
        return Step(name="External-IP", text=f"left to kube-proxy: {one.obstacle}")
    want = situation.wanted(ExternalIp)

    def same(have: Firewall) -> bool:
        targets = have.part(ExternalIp).targets
        return all(targets.get(server) == want.targets.get(server) for server in one.servers)

    text = f"pods and this host reach {one.address} by the ClusterIP {one.cluster_ip}"
    rule = "; ".join(filter(None, map(situation.kernel.locator.external, one.servers)))
    return Step(name="External-IP", text=text, rule=rule, kernel=situation.kernel.holds(same))
