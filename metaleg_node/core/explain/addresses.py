"""Addresses that are no pod's: those of pools, whose replies may have a way of their own, and the nodes' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from metaleg_node.core.explain.answer import Answer, Held, Place, Step, Verdict
from metaleg_node.core.explain.routes import Marked, hop_problems, routing
from metaleg_node.core.explain.situation import Situation
from metaleg_node.core.explain.targets import Destination, NodeTarget, PoolTarget
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.model import Address, Match, Rule, Slot
from metaleg_node.core.networks import Membership
from metaleg_node.core.problems import Code, Problem
from metaleg_node.core.return_path.node import PathDecision

_MATCHED = {
    Match.CONNTRACK: "replies of connections that came to it",
    Match.SOURCE: "packets with it as their source",
    Match.RULES: "packets with it as their source, by rules",
}


def node(target: NodeTarget, situation: Situation) -> Answer:
    """A node's own address."""
    name, here = target.node.name, target.node.name == situation.me
    text = f"{target.address} is {name}'s own: what a node or a pod of its host network sends is never egress"
    step = Step(name="egress", text="none, and others' claims on the address do not count")
    place = Place(node=name, role="this node" if here else "not asked", steps=(step,), asked=here)
    return Answer(subject=str(target.address), verdict=Verdict.UNTOUCHED, text=text, places=(place,))


def pool(target: PoolTarget, to: Destination | None, situation: Situation) -> Answer:
    """An address that no Service has."""
    address = target.address
    of = f"in {', '.join(target.pools)}" if target.pools else "of a return path"
    subject = f"{address}, {of}, of no Service"
    if situation.gap:
        return Answer(subject=subject, verdict=Verdict.UNDECIDED, text=f"{subject}: undecided: {situation.gap}")
    back = replies(address, to, situation)
    place = Place(node=situation.me, role="this node", steps=back.steps)
    return Answer(
        subject=subject,
        verdict=back.verdict,
        text=f"{subject}: {back.text}",
        places=(place,),
        why_not=back.why_not,
        problems=back.problems,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """How replies from an address leave this node; see `Answer`."""

    verdict: Verdict
    text: str
    steps: tuple[Step, ...]
    why_not: Problem | None = None
    problems: tuple[Problem, ...] = ()


def replies(address: Address, to: Destination | None, situation: Situation) -> Replies:
    """How replies from an address leave this node: by a return path, or as everything does."""
    decision = _path_of(address, situation)
    if decision is None:
        text = "no return path is for it, so replies leave by the main table"
        return Replies(verdict=Verdict.UNTOUCHED, text=text, steps=(Step(name="replies", text=text),))
    path, name = decision.path, decision.path.wanted.name
    step = Step(name="path", text=f"{name} ({path.wanted.kind}{f', {path.interface}' if path.interface else ''})")
    if path.obstacle:
        why = Problem(code=Code.PATH_INACTIVE, subject=f"return path {name}", text=path.obstacle)
        text = f"return path {name} is not active, so replies leave by the main table: {path.obstacle}"
        return Replies(verdict=Verdict.UNAVAILABLE, text=text, steps=(step,), why_not=why)
    if decision.slot is None or address not in Membership(path.marked()):
        notes = "; ".join((*path.notes, *path.remarks)) or "it has no gateway for this address"
        text = f"return path {name} leads no replies from it, so they leave by the main table: {notes}"
        return Replies(verdict=Verdict.UNTOUCHED, text=text, steps=(step,))
    if to and to.address in Membership(situation.wanted(ReturnPaths).direct):
        text = f"replies to {to} stay on the main table: inside the cluster, a neighbour, or return_path.exclude_cidrs"
        return Replies(verdict=Verdict.UNTOUCHED, text=text, steps=(step, Step(name="client", text=text)))
    hops = ", ".join(f"{hop.gateway} dev {hop.interface}" for hop in path.hops.get(address.version, ()))
    packet = Marked(slot=decision.slot, family=address.version, to=to)
    return Replies(
        verdict=Verdict.RETURNS,
        text=f"replies leave by return path {name}: {hops}",
        steps=(
            step,
            *_matched(decision, address, situation),
            *_by_router(decision, address, to, situation),
            *routing(packet, situation),
        ),
        problems=tuple(hop_problems(packet, situation)),
    )


def _path_of(address: Address, situation: Situation) -> PathDecision | None:
    """The path that takes its replies; else the first that is for it."""
    paths = situation.desired.paths
    owning = (one for one in paths if address in Membership(one.path.wanted.owned))
    having = (one for one in paths if address in Membership(one.path.wanted.networks))
    return next(owning, None) or next(having, None)


def _matched(decision: PathDecision, address: Address, situation: Situation) -> Iterator[Step]:
    slot, locator = decision.slot, situation.kernel.locator
    assert slot is not None
    want = situation.wanted(ReturnPaths)

    def same(have: Firewall) -> bool:
        part = have.part(ReturnPaths)
        return (part.paths.get(slot), part.match, part.direct) == (want.paths.get(slot), want.match, want.direct)

    for match in situation.config.return_path.match:
        if match is Match.RULES:
            kernel, rule = _rules_held(decision, situation), _rule_of(address, decision, situation)
            yield Step(name="match", text=_MATCHED[match], rule=rule, kernel=kernel)
        else:
            text, rule = f"{_MATCHED[match]} get mark {situation.mark(slot)}", locator.reply(address, match)
            yield Step(name="match", text=text, rule=rule, kernel=situation.kernel.holds(same))


def _by_router(
    decision: PathDecision, address: Address, to: Destination | None, situation: Situation
) -> Iterator[Step]:
    """Of the next hops that answers go back through; what follows is for all other answers."""
    part = situation.wanted(ReturnPaths)
    for slot in decision.routers.values():
        router = part.routers.get(slot)
        if router is None or router.family != address.version:
            continue
        name = router.holder.name.partition(f"{decision.path.wanted.holder.name}:")[2]
        seen = f"{router.link_address} on {router.interface}"
        text = f"answers to what came by {name} ({seen}) get mark {situation.mark(slot)}"
        if not router.link_address:
            text = f"{name} on {router.interface} is not there now: answers to what came by it leave by any next hop"
        same = situation.kernel.holds(_has_router(slot, part))
        yield Step(name="router", text=text, rule=situation.kernel.locator.router(slot), kernel=same)
        if router.link_address:
            yield from routing(Marked(slot=slot, family=router.family, to=to), situation)


def _has_router(slot: Slot, wanted: ReturnPaths) -> Callable[[Firewall], bool]:
    return lambda have: have.part(ReturnPaths).routers.get(slot) == wanted.routers[slot]


def _rules(decision: PathDecision, situation: Situation) -> set[Rule]:
    return {rule for rule in situation.desired.state.routing.rules if rule.source and rule.table == decision.table}


def _rules_held(decision: PathDecision, situation: Situation) -> Held:
    return Held.SAME if _rules(decision, situation) <= situation.kernel.routing.rules else Held.DIFFERS


def _rule_of(address: Address, decision: PathDecision, situation: Situation) -> str:
    taking = (str(rule) for rule in _rules(decision, situation) if rule.source and address in rule.source)
    return next((f"rule {text}" for text in sorted(taking)), "")
