"""The checks made, for commands: `doctor`, and reports."""

from __future__ import annotations

from pathlib import Path

from metaleg_node.configuration.config import Config
from metaleg_node.configuration.options import Options
from metaleg_node.doctor import diagnosis
from metaleg_node.doctor.diagnosis import Check, Diagnosis
from metaleg_node.doctor.facts import Facts
from metaleg_node.doctor.table import CHECKS
from metaleg_node.reconcile.machine import Machine


def chosen(only: str) -> tuple[Check, ...]:
    """The checks whose code begins so; all for an empty text."""
    return tuple(diagnosis.chosen(CHECKS, only))


def examine(config: Config, options: Options, *, only: str = "", root: Path = Path("/")) -> Diagnosis:
    """Makes the chosen checks, less those of `doctor.ignore`. Files of other programs are those below `root`."""
    with Machine(options.state_dir, config.firewall.backend) as machine:
        facts = Facts(config, options, machine, root)
        return diagnosis.diagnose(chosen(only), facts, config.doctor.ignore)
