"""`cleanup`: takes away everything of ours."""

from __future__ import annotations

import argparse
import sys

from metaleg_node.commands.command import Command, general_options, print_problems
from metaleg_node.configuration import file as config_file
from metaleg_node.configuration.config import Config, ConfigError
from metaleg_node.daemon import lock
from metaleg_node.daemon import log as logs
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import carry_out, cleanup_plan, log_changes
from metaleg_node.text import counted


def _run(arguments: argparse.Namespace) -> int:
    options = general_options(arguments)
    try:
        config = config_file.load(options.config_file)
    except ConfigError as error:
        print(*error.problems, "cleaning up all the same", sep="\n", file=sys.stderr)
        config = Config()
    logs.setup(level=config.log.level, form=config.log.format)
    with lock.single_instance(), Machine(options.state_dir, config.firewall.backend) as machine:
        machine.use_what_holds()
        plan = cleanup_plan(machine)
        print_problems(plan.problems)
        log_changes(plan.changes)
        outcome = carry_out(machine, plan.steps)
    print(f"{counted(len(plan.changes), 'object')} removed or put back" if plan.changes else "nothing to clean up")
    return 0 if outcome.ok and not plan.problems else 1


COMMAND = Command(
    name="cleanup",
    run=_run,
    summary="remove everything of ours from the kernel",
    description="Removes everything of ours from the kernel, and puts back the sysctls that we changed. It needs "
    "neither the cluster nor a valid configuration. The service has to be stopped before.",
    statuses="0 when all is gone, 1 when something could not be removed",
)
