"""The command line: reads arguments, calls the part that does the work, turns the result into an exit status."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, get_args

import metaleg_node
from metaleg_node.configuration import config as configuration
from metaleg_node.configuration import file as config_file
from metaleg_node.configuration.config import Config, ConfigError
from metaleg_node.core.egress import survey
from metaleg_node.core.model import ClusterState
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.daemon import lock, report, status
from metaleg_node.daemon import log as logs
from metaleg_node.daemon.service import Options, Service
from metaleg_node.import_env.reading import load as load_environment
from metaleg_node.import_env.translation import Environment, translate
from metaleg_node.kernel.errors import KernelError
from metaleg_node.reconcile import hooks
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import (
    IncompleteError,
    Plan,
    Reconciler,
    carry_out,
    cleanup_plan,
    log_changes,
    node_name,
)
from metaleg_node.sources import access_rights, once
from metaleg_node.sources.saved_state import SavedState
from metaleg_node.text import counted

EX_USAGE = 64
EX_CONFIG = 78
DEFAULT_CONFIG = Path("/etc/metaleg-node/config.toml")
DEFAULT_RUNTIME_DIR = "/run/metaleg-node"
DEFAULT_STATE_DIR = "/var/lib/metaleg-node"
RUNTIME_DIRECTORY, STATE_DIRECTORY = "RUNTIME_DIRECTORY", "STATE_DIRECTORY"
"""The variables in which systemd gives the directories (systemd.exec(5))."""


log = logging.getLogger(__name__)


class Failure(Exception):  # noqa: N818 - it carries an exit status, not a program error
    """Ends the command with a message and an exit status."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ConfigError as error:
        logs.complain(map(str, error.problems))
        return EX_CONFIG
    except Failure as error:
        logs.complain([str(error)])
        return error.code
    except (lock.AlreadyRunning, IncompleteError, KernelError, status.StatusError) as error:
        logs.complain([str(error)])
        return 1
    except OSError as error:
        # The reader of our output is gone, or the disk is full; nothing is left to say there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            logs.complain([f"metaleg-node: {error}"])
        return 1
    return code


# --- commands --------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    watch = config_file.Watch(options.config)
    settings, config = _settings(options)
    _need_source(config, settings)
    for key in configuration.not_yet_effective(config):
        log.warning("%s: %s has no effect in this version", settings.config_file, key)
    with lock.single_instance():
        Service(settings, config, watch).run()
    return 0


def _apply(options: argparse.Namespace) -> int:
    settings, config = _settings(options)
    cluster = _cluster(config)
    with lock.single_instance(), Machine(settings.state_dir) as machine:
        reconciler = Reconciler(machine, config)
        plan = reconciler.plan(cluster)
        _print_problems(plan)
        log_changes(plan.changes)
        if not _hooks(config, plan, "pre") and config.hooks.pre_failure == "abort":
            raise Failure("hooks.pre failed and hooks.pre_failure is abort: nothing was changed")
        if config.hooks.pre:
            plan = reconciler.plan_again(plan, cluster)
        outcome = reconciler.apply(plan).followed_by(reconciler.sweep_all(plan))
        _hooks(config, plan, "post", result="ok" if outcome.ok else "failed")
    print(f"{_counted(plan, 'change')}, {len(outcome.problems)} failed")
    return 0 if outcome.ok else 1


def _plan(options: argparse.Namespace) -> int:
    settings, config = _settings(options)
    cluster = _cluster(config)
    with Machine(settings.state_dir) as machine:
        plan = Reconciler(machine, config).plan(cluster)
        paths = report.paths(plan, config)
    _print_problems(plan)
    if options.json:
        print(report.plan_json(plan.changes, paths), end="")
    else:
        print(*(f"{status.paths_table(paths)}\n",) if paths else (), sep="", end="\n" if paths else "")
        print(*plan.changes, _counted(plan, "change") if plan.changes else "nothing to do", sep="\n")
    return 2 if plan.changes else 0


def _cleanup(options: argparse.Namespace) -> int:
    settings = _options(options)
    try:
        config = config_file.load(settings.config_file)
    except ConfigError as error:
        print(*error.problems, "cleaning up all the same", sep="\n", file=sys.stderr)
        config = Config()
    logs.setup(level=config.log.level, form=config.log.format)
    with lock.single_instance(), Machine(settings.state_dir) as machine:
        plan = cleanup_plan(machine)
        _print_problems(plan)
        log_changes(plan.changes)
        outcome = carry_out(machine, plan.steps)
    print(f"{_counted(plan, 'object')} removed or put back" if plan.changes else "nothing to clean up")
    return 0 if outcome.ok and not plan.problems else 1


def _check(options: argparse.Namespace) -> int:
    settings = _options(options)
    try:
        config = settings.load()
    except ConfigError as error:
        problems = list(map(str, error.problems))
    else:
        for key in configuration.not_yet_effective(config):
            print(f"{settings.config_file}: {key}: accepted, but without effect in this version")
        problems = _state_problems(config)
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    if not problems:
        print(f"{settings.config_file}: good")
    return EX_CONFIG if problems else 0


def _status(options: argparse.Namespace) -> int:
    document = status.read(_options(options).runtime_dir)
    holder = lock.holder_of()
    if document is None or holder is None or holder.pid != document["pid"]:
        print(_silence(document, holder))
        return 3
    report.refresh(document["paths"])
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        print(status.render(document, datetime.now(UTC)), end="")
    return 0 if document["healthy"] else 1


def _silence(document: status.StatusDocument | None, holder: lock.Holder | None) -> str:
    """Why there is nothing to show, or only what another process left."""
    if not lock.is_held():
        return "metaleg-node is not running"
    if holder is None:
        return "metaleg-node is not running: its lock is held by a process that does not answer; `ss -xap` names it"
    if holder.is_stranger:
        return f"metaleg-node is not running: {lock.complaint(holder)}"
    if document is None:
        return f"metaleg-node runs, but has not told anything yet, or has another --runtime-dir ({holder})"
    left = f"the status that is there is of process {document['pid']}"
    return f"metaleg-node is not running, or just begins: {holder} has its lock, {left}"


def _kubeconfig(options: argparse.Namespace) -> int:
    """Says what it is about to do and asks on standard error, so that standard output is the kubeconfig alone."""
    from metaleg_node.sources import service_account  # noqa: PLC0415 - only users of the API pay for its client

    try:
        print(service_account.announcement(options.admin, options.context, _objects(options)), file=sys.stderr)
        if not options.yes:
            print("go on? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                raise Failure("nothing was changed")
        print(service_account.make(options.admin, options.context, _objects(options)), end="")
    except service_account.Error as error:
        raise Failure(str(error)) from error
    return 0


def _objects(options: argparse.Namespace) -> list[access_rights.Object]:
    return access_rights.objects(options.metallb_namespace, options.metallb_configmap, options.namespace)


def _import_env(options: argparse.Namespace) -> int:
    environment = load_environment(options.file) if options.file else Environment(variables=os.environ)
    print(translate(environment, file=str(options.file or "environment")), end="")
    return 0


def _demo(options: argparse.Namespace) -> int:
    # Only the demo needs the lab, and nobody else should pay for loading it.
    from metaleg_node.lab.demo import demo  # noqa: PLC0415

    del options
    return demo()


# --- what commands share ---------------------------------------------------------------------------------------------


def _options(options: argparse.Namespace) -> Options:
    return Options(
        config_file=options.config,
        runtime_dir=_directory(options.runtime_dir, RUNTIME_DIRECTORY, DEFAULT_RUNTIME_DIR),
        state_dir=_directory(options.state_dir, STATE_DIRECTORY, DEFAULT_STATE_DIR),
        log_level=options.log_level,
    )


def _directory(given: Path | None, variable: str, default: str) -> Path:
    """The option, else what systemd gives, where several directories are separated by colons."""
    return given or Path(os.environ.get(variable, "").partition(":")[0] or default)


def _settings(options: argparse.Namespace) -> tuple[Options, Config]:
    """The configuration for a command that works with it; sets the log up. Raises ConfigError."""
    settings = _options(options)
    config = settings.load()
    logs.setup(level=config.log.level, form=config.log.format)
    return settings, config


def _need_source(config: Config, settings: Options) -> None:
    """Without credentials, and with nothing known from before, there is nothing that the service could do. Otherwise it
    works with what it knows, and takes the credentials as soon as they are there. Raises ConfigError."""
    if config.cluster.state_file:
        return
    from metaleg_node.sources import kubernetes_api  # noqa: PLC0415 - only users of the API pay for its client

    problem = kubernetes_api.credentials_problem(config.cluster)
    if problem and not SavedState(settings.state_dir).exists():
        file = str(settings.config_file)
        raise ConfigError((configuration.Problem(file=file, key="cluster.kubeconfig", message=problem),))


def _cluster(config: Config) -> ClusterState:
    """The cluster's state, for commands that look once. Raises Failure."""
    cluster, problems = once.read(config)
    if problems:
        raise Failure(problems[0])
    return cluster


def _state_problems(config: Config) -> list[str]:
    """What is wrong with the state file or the access to the API, as a whole or object by object; prints what the state
    holds and which Services do not work."""
    cluster, problems = once.read(config)
    if problems:
        return list(problems)
    surveyed = survey.take(cluster, config)
    for service in surveyed.services:
        if service.obstacle:
            print(f"{service.service.ref} (IPv{service.family}) has no egress: {service.obstacle.detail}")
    names = {service.service.ref for service in surveyed.services}
    pods = sum(len(service.pods) for service in surveyed.services)
    labelled = f"{counted(len(names), 'Service')} with the label, {counted(pods, 'pod address')}"
    place = config.cluster.state_file or "Kubernetes API"
    print(f"{place}: {counted(len(cluster.nodes), 'node')}, {labelled}; this node is {node_name(config)}")
    wanted = pools.read(cluster, config, node_name(config))
    for path in wanted.paths:
        networks, hops = counted(len(path.networks), "network"), counted(len(path.routers), "next hop")
        print(f"return path {path.name}: {networks}, {hops}")
        print(*(f"return path {path.name}: {note}\n" for note in path.notes), sep="", end="")
    rejected = (*cluster.rejections, *surveyed.rejections, *wanted.rejections)
    gap = surveyed.gap(node_name(config))
    return [*([gap] if gap else []), *(f"{place}: {r.ref}: {r.reason}" for r in rejected)]


def _print_problems(plan: Plan) -> None:
    for problem in report.problems(plan):
        print(f"! {problem}", file=sys.stderr)


def _counted(plan: Plan, noun: str) -> str:
    return counted(len(plan.changes), noun)


def _hooks(config: Config, plan: Plan, kind: hooks.Kind, result: str = "") -> bool:
    """Whether all scripts went well; prints what is wrong with the others."""
    failed = report.run_hooks(config, plan, kind, reason="apply", beat=lambda: math.inf, result=result)
    print(*failed, sep="\n", end="\n" if failed else "", file=sys.stderr)
    return not failed


# --- arguments -------------------------------------------------------------------------------------------------------


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
    _general_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for command in _COMMANDS:
        made = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=f"Exit status: {command.statuses}.",
        )
        made.set_defaults(run=command.run)
        command.options(made)
    return parser


def _general_options(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--log-level", choices=get_args(configuration.LogLevel), help="instead of log.level")


def _no_options(_command: argparse.ArgumentParser) -> None:
    pass


def _json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def _import_env_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="NAME=value lines or a manifest; default: the variables in the environment",
    )


def _kubeconfig_options(command: argparse.ArgumentParser) -> None:
    cluster, namespace = configuration.ClusterSettings(), access_rights.NAMESPACE
    command.add_argument("--admin", type=Path, required=True, metavar="FILE", help="an administrator's kubeconfig")
    command.add_argument("--context", default="", metavar="NAME", help="context of it; default: its current one")
    command.add_argument(
        "--namespace", default=namespace, metavar="NAME", help=f"of the service account; default: {namespace}"
    )
    command.add_argument(
        "--metallb-namespace",
        default=cluster.metallb_namespace,
        metavar="NAME",
        help=f"where MetalLB runs; default: {cluster.metallb_namespace}",
    )
    command.add_argument(
        "--metallb-configmap",
        default=cluster.metallb_configmap,
        metavar="NAME",
        help=f"ConfigMap of MetalLB before 0.13; default: {cluster.metallb_configmap}",
    )
    command.add_argument("--yes", action="store_true", help="do not ask")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    """What a command is called, does and returns; `options` adds its own to its parser."""

    name: str
    run: Callable[[argparse.Namespace], int]
    summary: str
    description: str
    statuses: str
    options: Callable[[argparse.ArgumentParser], None] = _no_options


_COMMANDS = (
    _Command(
        name="run",
        run=_run,
        summary="reconcile until stopped; what systemd starts",
        description="Keeps the kernel as the configuration and the cluster ask for, until SIGTERM or SIGINT comes. "
        "What the kernel holds stays there then, so that a restart interrupts no traffic.",
        statuses="0 when stopped by a signal, 1 when it cannot work, for example since another one runs",
    ),
    _Command(
        name="apply",
        run=_apply,
        summary="reconcile once",
        description="Reads the state of the cluster, changes the kernel accordingly, and runs the hooks.",
        statuses="0 when all is done, 1 when something could not be applied",
    ),
    _Command(
        name="plan",
        run=_plan,
        summary="show what apply would change, and why",
        description="Shows what apply would add (+), change (~) and remove (-), each with its reason, and changes "
        "nothing.",
        statuses="0 when there is nothing to do, 2 when there are changes, 1 after an error",
        options=_json_option,
    ),
    _Command(
        name="cleanup",
        run=_cleanup,
        summary="remove everything of ours from the kernel",
        description="Removes everything of ours from the kernel, and puts back the sysctls that we changed. It needs "
        "neither the cluster nor a valid configuration. The service has to be stopped before.",
        statuses="0 when all is gone, 1 when something could not be removed",
    ),
    _Command(
        name="check",
        run=_check,
        summary="validate the configuration and the state file, or the access to the API",
        description="Validates the configuration and the state file, or the access to the API, prints every problem, "
        "and what the cluster's state holds.",
        statuses=f"0 when all is good, {EX_CONFIG} when there are problems",
    ),
    _Command(
        name="status",
        run=_status,
        summary="show what the running service does",
        description="Shows what the running service does: Services, gateways, return paths, the last reconcile, and "
        "all that does not work.",
        statuses="0 when it is healthy, 1 when it is not, 3 when it does not run",
        options=_json_option,
    ),
    _Command(
        name="kubeconfig",
        run=_kubeconfig,
        summary="make the service account; print the kubeconfig for it",
        description="Makes a service account that may read what is needed and nothing else, after it has told what "
        "will be made and asked, and prints a kubeconfig for it. Running it again changes nothing.",
        statuses="0 when the kubeconfig is printed, 1 when not",
        options=_kubeconfig_options,
    ),
    _Command(
        name="import-env",
        run=_import_env,
        summary="print the configuration that a replaced program's variables mean",
        description="Reads the environment variables of metaleg, metallb-node-route-agent or network-node-manager, and "
        "prints the configuration that means the same.",
        statuses=f"0 when it is printed, {EX_CONFIG} when a variable cannot be understood",
        options=_import_env_options,
    ),
    _Command(
        name="demo",
        run=_demo,
        summary="show it all in a throw-away network",
        description="Builds a throw-away network of namespaces, runs the program on each of its nodes, and shows which "
        "source address a server outside sees. The host's own network is not touched. It has to be run as root.",
        statuses="0 when everything was as it should be, 1 when not",
    ),
)
