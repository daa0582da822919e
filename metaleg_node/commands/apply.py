"""`apply`: one reconcile."""

from __future__ import annotations

import argparse

from metaleg_node.commands.command import Command, configured, print_problems, read_cluster
from metaleg_node.daemon import lock, report
from metaleg_node.reconcile import sequence
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler
from metaleg_node.text import counted


def _run(arguments: argparse.Namespace) -> int:
    options, config = configured(arguments)
    cluster = read_cluster(config)
    with lock.single_instance(), Machine(options.state_dir, config.firewall.backend) as machine:
        reconciler = Reconciler(machine, config)
        plan = reconciler.plan(cluster)
        print_problems(report.problems(plan))
        _, outcome = sequence.follow(
            reconciler,
            config,
            plan,
            reason="apply",
            cluster=lambda: cluster,
            hooked=lambda _, problems: print_problems(problems),
        )
    print(f"{counted(sum(outcome.done.values()), 'change')}, {len(outcome.problems)} failed")
    return 0 if outcome.ok else 1


COMMAND = Command(
    name="apply",
    run=_run,
    summary="reconcile once",
    description="Reads the state of the cluster, changes the kernel accordingly, and runs the hooks.",
    statuses="0 when all is done, 1 when something could not be applied",
)
