"""`plan`: what `apply` would do."""

from __future__ import annotations

import argparse
import json

from metaleg_node.commands.command import Command, configured, json_option, print_problems, read_cluster
from metaleg_node.daemon import report, status
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler
from metaleg_node.text import counted


def _run(arguments: argparse.Namespace) -> int:
    options, config = configured(arguments)
    cluster = read_cluster(config)
    with Machine(options.state_dir) as machine:
        plan = Reconciler(machine, config).plan(cluster)
    paths = report.paths(plan, config)
    print_problems(report.problems(plan))
    if arguments.json:
        print(json.dumps(plan.document | ({"paths": paths} if paths else {}), indent=2))
    else:
        print(*(f"{status.paths_table(paths)}\n",) if paths else (), sep="", end="\n" if paths else "")
        print(*plan.changes, counted(len(plan.changes), "change") if plan.changes else "nothing to do", sep="\n")
    return 2 if plan.changes else 0


COMMAND = Command(
    name="plan",
    run=_run,
    summary="show what apply would change, and why",
    description="Shows what apply would add (+), change (~) and remove (-), each with its reason, and changes nothing.",
    statuses="0 when there is nothing to do, 2 when there are changes, 1 after an error",
    options=json_option,
)
