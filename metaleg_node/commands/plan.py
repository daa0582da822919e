"""`plan`: what `apply` would do."""

from __future__ import annotations

import argparse
import json

from metaleg_node import terminal
from metaleg_node.commands.command import Command, configured, json_option, print_problems, read_cluster
from metaleg_node.core.changes import Action, Change
from metaleg_node.core.problems import Problem
from metaleg_node.daemon import report, status
from metaleg_node.reconcile.documents import HookDocument, hook_document
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Plan, Reconciler
from metaleg_node.text import counted


def _run(arguments: argparse.Namespace) -> int:
    options, config = configured(arguments)
    cluster = read_cluster(config)
    with Machine(options.state_dir, config.firewall.backend) as machine:
        plan = Reconciler(machine, config).plan(cluster)
    paths, problems = report.paths(plan, config), list(report.problems(plan))
    print_problems(problems)
    if arguments.json:
        print(json.dumps(_document(plan, paths, problems), indent=2))
    else:
        print(*(f"{status.paths_table(paths)}\n",) if paths else (), sep="", end="\n" if paths else "")
        print(*map(_line, plan.changes), _count(len(plan.changes)), sep="\n")
    return 2 if plan.changes else 0


class PlanDocument(HookDocument):
    """What `plan --json` prints; `problems` are all that the plan meets."""

    paths: list[status.PathStatus]
    problems: list[status.ProblemStatus]


def _document(plan: Plan, paths: list[status.PathStatus], problems: list[Problem]) -> PlanDocument:
    changes = hook_document(plan.changes)["changes"]
    return PlanDocument(version=1, changes=changes, paths=paths, problems=report.problem_list(problems))


_LIKE = {Action.ADD: "yes", Action.REMOVE: "no", Action.CHANGE: "warning"}
"""The words in whose colours the signs are."""


def _line(change: Change) -> str:
    lines = terminal.wrapped(str(change), rest="    ")
    return terminal.paint(change.action, like=_LIKE[change.action]) + lines[len(change.action) :]


def _count(changes: int) -> str:
    return counted(changes, "change") if changes else "nothing to do"


COMMAND = Command(
    name="plan",
    run=_run,
    summary="show what apply would change, and why",
    description="Shows what apply would add (+), change (~) and remove (-), each with its reason, and changes nothing.",
    statuses="0 when there is nothing to do, 2 when there are changes, 1 after an error",
    options=json_option,
)
