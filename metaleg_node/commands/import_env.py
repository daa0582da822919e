"""`import-env`: what a replaced program's variables mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from metaleg_node.commands.command import EX_CONFIG, Command
from metaleg_node.configuration.config import ConfigError
from metaleg_node.import_env.reading import load
from metaleg_node.import_env.translation import Environment, translate


def _run(arguments: argparse.Namespace) -> int:
    environment = load(arguments.file) if arguments.file else Environment(variables=os.environ)
    translated = translate(environment, file=str(arguments.file or "environment"))
    print(translated.text, end="", flush=True)
    if translated.problems:
        raise ConfigError(translated.problems)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="NAME=value lines or a manifest; default: the variables in the environment",
    )


COMMAND = Command(
    name="import-env",
    run=_run,
    summary="print the configuration that a replaced program's variables mean",
    description="Reads the environment variables of metaleg, metallb-node-route-agent or network-node-manager, and "
    "prints the configuration that means the same. What cannot be understood is left out and told at the end.",
    statuses=f"0 when all is printed, {EX_CONFIG} when a variable cannot be understood",
    options=_options,
)
