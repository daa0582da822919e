"""What commands share: how one is described and fails, its options, the configuration and the cluster's state."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from metaleg_node import terminal
from metaleg_node.configuration.config import Config, LogLevel
from metaleg_node.configuration.options import Options
from metaleg_node.core.model import ClusterState
from metaleg_node.core.problems import Problem
from metaleg_node.daemon import log as logs
from metaleg_node.sources import once
from metaleg_node.text import printable

EX_CONFIG = 78
DEFAULT_CONFIG = Path("/etc/metaleg-node/config.toml")
DEFAULT_RUNTIME_DIR = "/run/metaleg-node"
DEFAULT_STATE_DIR = "/var/lib/metaleg-node"
RUNTIME_DIRECTORY, STATE_DIRECTORY = "RUNTIME_DIRECTORY", "STATE_DIRECTORY"
"""The variables in which systemd gives the directories (systemd.exec(5))."""


class Failure(Exception):  # noqa: N818 - it is told to the user, and is no program error
    """Ends the command with a message and exit status 1."""


class UsageError(Exception):
    """Ends the command as wrong arguments do, which argparse cannot tell by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a command is called, does and returns; `options` adds its own to its parser."""

    name: str
    run: Callable[[argparse.Namespace], int]
    summary: str
    description: str
    statuses: str
    options: Callable[[argparse.ArgumentParser], object] = lambda _: None


def json_option(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_general_options(parser: argparse.ArgumentParser) -> None:
    """What every command takes, before it and after it."""
    directory = "default: what systemd gives in {}, else {}"
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"configuration; default: {DEFAULT_CONFIG}"
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="DIR",
        help=f"for what lasts until the service stops; {directory.format(RUNTIME_DIRECTORY, DEFAULT_RUNTIME_DIR)}",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help=f"for what outlasts a boot; {directory.format(STATE_DIRECTORY, DEFAULT_STATE_DIR)}",
    )
    parser.add_argument(
        "--color",
        choices=terminal.CHOICES,
        default="auto",
        help="colour words: auto is on a terminal, unless the variable NO_COLOR is set",
    )
    parser.add_argument("--log-level", choices=get_args(LogLevel), help="instead of log.level")


def take_general_options(parser: argparse.ArgumentParser) -> None:
    """Lets a command's parser take them, too; what is not given there stays as it was given before the command."""
    general = argparse.ArgumentParser(add_help=False)
    add_general_options(general)
    for action in general._actions:
        action.default = action.help = argparse.SUPPRESS
        parser._add_action(action)


def general_options(arguments: argparse.Namespace) -> Options:
    """What was given before the command, or after it."""
    return Options(
        config_file=arguments.config,
        runtime_dir=_directory(arguments.runtime_dir, RUNTIME_DIRECTORY, DEFAULT_RUNTIME_DIR),
        state_dir=_directory(arguments.state_dir, STATE_DIRECTORY, DEFAULT_STATE_DIR),
        log_level=arguments.log_level,
    )


def _directory(given: Path | None, variable: str, default: str) -> Path:
    """The option, else what systemd gives, where several directories are separated by colons."""
    return given or Path(os.environ.get(variable, "").partition(":")[0] or default)


def configured(arguments: argparse.Namespace) -> tuple[Options, Config]:
    """The options with the configuration, for a command that works with it; sets the log up. Raises ConfigError."""
    options = general_options(arguments)
    config = options.load()
    logs.setup(level=config.log.level, form=config.log.format)
    return options, config


def read_cluster(config: Config) -> ClusterState:
    """The cluster's state, for commands that look once. Raises Failure."""
    cluster, problems = once.read(config)
    if problems:
        raise Failure(problems[0])
    return cluster


def print_problems(problems: Iterable[Problem]) -> None:
    """On standard error, beside what the command prints."""
    for problem in problems:
        print(terminal.wrapped(f"! {printable(problem.line)}", rest="    "), file=sys.stderr)
