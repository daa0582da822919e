"""All that this node's kernel should hold: where the features are put together.

Each feature tells its claims; slots are handed out once; each feature contributes its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import is_

from metaleg_node.configuration.config import Config
from metaleg_node.core import external_ip, host_settings, preconditions, slots
from metaleg_node.core.contribution import Contribution
from metaleg_node.core.egress import node as egress
from metaleg_node.core.egress.new_pods import Starting
from metaleg_node.core.egress.survey import Survey
from metaleg_node.core.exits import ExitOf
from metaleg_node.core.external_ip import ExternalAddress, WantedAddresses
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import MAIN_TABLE, Address, Holder, Host, NodeName, Questions, Rejection, Routing, Slot
from metaleg_node.core.node_state import NodeState
from metaleg_node.core.problems import Code, Problem
from metaleg_node.core.return_path import node as return_path
from metaleg_node.core.return_path import paths, symmetric
from metaleg_node.core.return_path.wanted import PathKind, WantedPaths
from metaleg_node.core.slots import Claim

Held = Mapping[Slot, Holder]
"""Who has which slot now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a decision was worked out from, for the next one to build upon: `asked` are the facts that return paths and
    External-IP rest on."""

    asked: tuple[object, ...]
    host: Host
    found: tuple[paths.Path, ...]
    exit_of: ExitOf
    egress: egress.Decided
    back: return_path.Decided
    inward: external_ip.Decided
    own: Contribution
    lacking: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What this node's kernel should hold, and what there is to say about it. `owners` tells for each pod address what
    was decided about it; `tables` are ours alone. `work` is what the next decision can build upon."""

    state: NodeState = field(default_factory=NodeState)
    services: tuple[egress.ServiceDecision, ...] = ()
    owners: Mapping[Address, egress.ServiceDecision] = field(default_factory=dict)
    paths: tuple[return_path.PathDecision, ...] = ()
    external: tuple[ExternalAddress, ...] = ()
    starting: Starting = field(default_factory=Starting)
    rejections: tuple[Rejection, ...] = ()
    problems: tuple[Problem, ...] = ()
    tables: frozenset[int] = frozenset()
    work: _Work | None = field(default=None, compare=False, repr=False)


def questions(
    survey: Survey, wanted: WantedPaths, external: WantedAddresses, config: Config, me: NodeName
) -> Questions:
    """What `assemble` needs to know of the host."""
    own = external_ip.questions(external).with_(Questions(arp=config.host.strict_arp))
    return egress.questions(survey, me).with_(paths.questions(wanted.paths)).with_(own)


def assemble(
    survey: Survey,
    wanted: WantedPaths,
    config: Config,
    me: NodeName,
    host: Host,
    *,
    external: WantedAddresses,
    held: Callable[[Iterable[Claim]], Held],
    starting: Starting = Starting(),  # noqa: B008 - it is frozen
    before: Desired | None = None,
) -> Desired:
    """This node's part of everything. `held` tells which slots the kernel gives to which of these claims now. What
    `before` found for objects that are still the very same is taken from there: the result is equal in any case."""
    asked = (wanted, external, config, me, survey.networks, survey.nodes.get(me))
    was = before.work if before else None
    if was and not (all(map(is_, asked, was.asked)) and was.host == host):
        was = None
    found = was.found if was else paths.find(wanted.paths, config, host, survey.networks.cluster)
    exit_of = was.exit_of if was else return_path.exits(found)
    undecided = egress.look(survey, config, me, host, exit_of, before=was.egress.undecided if was else None)
    granted = _granted(found, undecided.claims, config, held)
    out = egress.decide(undecided, granted, was.egress if was else None)
    if was and was.egress.granted == granted:
        back, inward, own = was.back, was.inward, was.own
    else:
        back = return_path.decide(found, granted, asked=wanted, config=config, host=host, networks=survey.networks)
        inward = external_ip.decide(external, config.external_ip, survey.nodes.get(me), host, survey.networks)
        own = host_settings.decide(config.host, host)
    parts = (out.contribution, starting.contribution, back.contribution, inward.contribution, own)
    state = _state(parts, config)
    # Where reverse-path filters are loose it does not matter where pods are.
    same = was and back is was.back and out.shared is was.egress.shared and config.host.rp_filter == "loose"
    if not (was and same):
        lacking = preconditions.judge(out.services, back.paths, survey=survey, config=config, me=me, host=host)
    else:
        lacking = was.lacking
    return Desired(
        state=state,
        services=out.services,
        owners=out.owners,
        paths=back.paths,
        external=inward.addresses,
        starting=starting,
        rejections=tuple(rejection for part in parts for rejection in part.rejections),
        problems=(*(problem for part in parts for problem in part.problems), *lacking, *_gaps(back.paths, survey, me)),
        tables=frozenset({route.table for route in state.routing.routes} | back.tables) - {MAIN_TABLE},
        work=_Work(
            asked=asked,
            host=host,
            found=found,
            exit_of=exit_of,
            egress=out,
            back=back,
            inward=inward,
            own=own,
            lacking=lacking,
        ),
    )


def _granted(
    found: tuple[paths.Path, ...], of_egress: Iterable[Claim], config: Config, held: Callable[[Iterable[Claim]], Held]
) -> slots.Granted:
    claims = (*return_path.claims(found, config), *of_egress)
    routers = symmetric.claims(found)
    return slots.assign(
        held((*claims, *routers)),
        [claim.holder for claim in claims],
        yielding=[claim.holder for claim in routers],
        slots=slots.count(config.firewall.mark_mask),
    )


def _state(contributions: Iterable[Contribution], config: Config) -> NodeState:
    found = tuple(contributions)
    firewall = Firewall(mark_mask=config.firewall.mark_mask, parts=tuple(part for one in found for part in one.parts))
    sysctls: dict[str, str] = {}
    for one in found:
        sysctls |= {name: _together(sysctls.get(name, value), value) for name, value in one.sysctls.items()}
    return NodeState(
        routing=Routing(
            rules=frozenset(rule for one in found for rule in one.rules),
            routes=frozenset(route for one in found for route in one.routes),
        ),
        firewall=firewall if firewall.parts else None,
        sysctls=sysctls,
    )


def _together(one: str, other: str) -> str:
    """What two features want of one sysctl, of which only rp_filter is wanted by several: what one turns off is off,
    else the looser value counts, the larger."""
    return "0" if "0" in (one, other) else max(one, other)


def _gaps(found: Iterable[return_path.PathDecision], survey: Survey, me: NodeName) -> Iterable[Problem]:
    """What the cluster's state does not tell, though return paths need it."""
    present = tuple(found)
    if any(one.slot is not None for one in present) and not survey.networks.pods:
        text = "no pod network is known, so pods get no answers from these pools; set cluster.pod_cidrs"
        yield Problem(code=Code.INCOMPLETE_STATE, subject="return paths", text=text)
    if any(one.path.wanted.kind is PathKind.BGP for one in present) and survey.nodes and me not in survey.nodes:
        text = f"no Node is called {me}, so no peer's nodeSelectors select it; set node.name"
        yield Problem(code=Code.INCOMPLETE_STATE, subject="return path bgp", text=text)
