"""What is done with a plan, by the service and by `apply`: the pre hook, a second look, the changes, the post hook."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable

from metaleg_node.configuration.config import Config
from metaleg_node.configuration.options import node_name
from metaleg_node.core.model import ClusterState
from metaleg_node.core.problems import Code, Problem
from metaleg_node.reconcile import hooks
from metaleg_node.reconcile.documents import hook_document
from metaleg_node.reconcile.reconciler import Outcome, Plan, Reconciler, log_changes

log = logging.getLogger(__name__)


def follow(
    reconciler: Reconciler,
    config: Config,
    plan: Plan,
    *,
    reason: str,
    cluster: Callable[[], ClusterState | None],
    hooked: Callable[[hooks.Kind, tuple[Problem, ...]], object],
    sweep: bool = True,
    beat: Callable[[], float] = lambda: math.inf,
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[Plan, Outcome]:
    """Carries a plan out. Returns the plan that was carried out, and what came of it; raises as `Reconciler.plan`.

    `cluster` gives the state for planning again after a pre hook, `hooked` is told what went wrong with each kind of
    hook, `sweep` asks for a look at all connections when all went well; `beat` and
    `stopping` are as in `hooks.run`: a stop before the changes leaves the kernel as it is.
    """

    def tell(kind: hooks.Kind, result: str = "") -> tuple[Problem, ...]:
        problems = _run_hooks(config, plan, kind, reason=reason, beat=beat, stopping=stopping, result=result)
        hooked(kind, problems)
        return problems

    log_changes(plan.changes)
    failed = tell("pre")
    if stopping():
        text = "the service stops: nothing was changed"
        return plan, Outcome(problems=(Problem(code=Code.HOOK, text=text),), undone=plan.changes)
    if failed and config.hooks.pre_failure == "abort":
        text = "hooks.pre failed and hooks.pre_failure is abort: nothing was changed"
        aborted = Problem(code=Code.HOOK, text=text)
        log.error("%s", aborted.line)
        return plan, Outcome(problems=(aborted,), undone=plan.changes)
    if config.hooks.pre and (state := cluster()):
        # It took its time: what others did and what the cluster said meanwhile counts.
        plan = reconciler.plan_again(plan, state)
    outcome = reconciler.apply(plan, beat, sweep=sweep)
    tell("post", "ok" if outcome.ok else "failed")
    return plan, outcome


def _run_hooks(
    config: Config,
    plan: Plan,
    kind: hooks.Kind,
    *,
    reason: str,
    beat: Callable[[], float],
    stopping: Callable[[], bool],
    result: str,
) -> tuple[Problem, ...]:
    results = hooks.run(
        config.hooks.pre if kind == "pre" else config.hooks.post,
        kind=kind,
        node=node_name(config),
        reason=reason,
        changes=len(plan.changes),
        plan_json=json.dumps(hook_document(plan.changes), indent=2).encode() + b"\n",
        timeout=config.hooks.timeout,
        beat=beat,
        stopping=stopping,
        result=result,
    )
    return tuple(Problem(code=Code.HOOK, subject=f"hooks.{kind}", text=hook.message) for hook in results if not hook.ok)
