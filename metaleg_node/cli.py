"""The command line: reads arguments, calls the command, turns the result into an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NoReturn

import metaleg_node
from metaleg_node import terminal
from metaleg_node.commands.command import (
    EX_CONFIG,
    Command,
    Failure,
    UsageError,
    add_general_options,
    take_general_options,
)
from metaleg_node.configuration.config import ConfigError
from metaleg_node.daemon import lock, status
from metaleg_node.daemon import log as logs
from metaleg_node.kernel.errors import KernelError
from metaleg_node.reconcile.reconciler import IncompleteError

EX_USAGE = 64

_COMMANDS = (
    "run",
    "apply",
    "plan",
    "cleanup",
    "check",
    "status",
    "explain",
    "doctor",
    "trace",
    "report",
    "cni_results",
    "kubeconfig",
    "import_env",
    "demo",
)
"""Their modules, in the order of --help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options = parser().parse_args(arguments)
    terminal.setup(options.color)
    try:
        code: int = options.run(options)
    except UsageError as error:
        # It exits as argparse does.
        options.misuse(str(error))
        raise
    except ConfigError as error:
        logs.complain(map(str, error.problems))
        return EX_CONFIG
    except (Failure, lock.AlreadyRunning, IncompleteError, KernelError, status.StatusError) as error:
        logs.complain([str(error)])
        return 1
    except OSError as error:
        # The reader of our output is gone, or the disk is full; nothing is left to say there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            logs.complain([f"metaleg-node: {error}"])
        return 1
    return code


class _Parser(argparse.ArgumentParser):
    """argparse, with the exit status that sysexits(3) has for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line, with all that --help tells; manual page and completion are made of it."""
    parser = _Parser(
        prog="metaleg-node",
        description="Makes the kernel of a bare-metal Kubernetes node hold the rules for egress with LoadBalancer "
        "addresses, and for return paths of MetalLB's pools.",
        epilog=f"Exit status: 0 when all went well, 1 when not, {EX_USAGE} after wrong usage, {EX_CONFIG} when a "
        "command needs the configuration and it is wrong. Some commands have others, which they tell of.",
    )
    parser.add_argument("--version", action="version", version=f"metaleg-node {metaleg_node.__version__}")
    add_general_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for command in _commands():
        made = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=f"Exit status: {command.statuses}. What `metaleg-node --help` lists may stand here, too.",
        )
        take_general_options(made)
        made.set_defaults(run=command.run, misuse=made.error)
        command.options(made)
    return parser


def _commands() -> Iterator[Command]:
    for name in _COMMANDS:
        yield import_module(f"metaleg_node.commands.{name}").COMMAND
