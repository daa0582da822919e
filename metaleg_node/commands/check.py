"""`check`: whether the configuration, the cluster's state and this machine are good."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

from metaleg_node.commands.command import EX_CONFIG, Command, general_options, print_problems
from metaleg_node.configuration import options as configuration
from metaleg_node.configuration.config import Config, ConfigError, not_yet_effective
from metaleg_node.core import external_ip, tried
from metaleg_node.core.egress import survey
from metaleg_node.core.model import ClusterState
from metaleg_node.core.problems import Code, Problem, fails
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.daemon import report
from metaleg_node.kernel.errors import KernelError
from metaleg_node.reconcile import hooks
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler, node_name
from metaleg_node.sources import once
from metaleg_node.text import counted


def _run(arguments: argparse.Namespace) -> int:
    options = general_options(arguments)
    try:
        config = options.load()
    except ConfigError as error:
        problems = configuration.problems(error)
    else:
        for key in not_yet_effective(config):
            print(f"{config.origin.file(key)}: {key}: accepted, but without effect in this version")
        problems = configuration.former_keys(config)
        if not arguments.files:
            problems += _beyond_files(config, options.state_dir)
    print_problems(problems)
    if fails("check", problems):
        return EX_CONFIG
    print(f"{options.config_file}: good")
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--files",
        action="store_true",
        help="look at the configuration's files alone, not at hooks, cluster and machine",
    )


def _beyond_files(config: Config, state_dir: Path) -> tuple[Problem, ...]:
    if hint := pools.unseen((name for _, name in socket.if_nameindex()), config):
        print(f"return_path.match: {hint}")
    return *_versions(state_dir), *_hook_problems(config), *_source_problems(config, state_dir)


def _versions(state_dir: Path) -> tuple[Problem, ...]:
    """Where this machine is older than what was tried. It may be another one than the node."""
    try:
        return tuple(tried.problems(Machine(state_dir).versions()))
    except KernelError as error:
        return (Problem(code=Code.UNTRIED, text=str(error)),)


def _hook_problems(config: Config) -> tuple[Problem, ...]:
    settings = {"hooks.pre": config.hooks.pre, "hooks.post": config.hooks.post}
    found = ((key, complaint) for key, hook in settings.items() for complaint in hooks.complaints(hook, key=key))
    return tuple(Problem(code=Code.HOOK, subject=key, text=complaint) for key, complaint in found)


def _source_problems(config: Config, state_dir: Path) -> tuple[Problem, ...]:
    """What is wrong with the state file or the access to the API, as a whole or with what the state holds."""
    cluster, problems = once.read(config)
    if problems:
        return tuple(Problem(code=Code.SOURCE, text=text) for text in problems)
    return *_state_problems(cluster, config), *_host_problems(cluster, config, state_dir)


def _state_problems(cluster: ClusterState, config: Config) -> tuple[Problem, ...]:
    """What this node could mend or would not do; prints what the state holds."""
    me = node_name(config)
    surveyed, wanted = survey.take(cluster, config), pools.read(cluster, config, me)
    names = {service.service.ref for service in surveyed.services}
    pods = sum(len(service.pods) for service in surveyed.services)
    labelled = f"{counted(len(names), 'Service')} with the label, {counted(pods, 'pod address')}"
    place = config.cluster.state_file or "Kubernetes API"
    print(f"{place}: {counted(len(cluster.nodes), 'node')}, {labelled}; this node is {me}")
    for path in wanted.paths:
        networks, hops = counted(len(path.networks), "network"), counted(len(path.routers), "next hop")
        print(f"return path {path.name}: {networks}, {hops}")
    external = external_ip.read(cluster, config)
    if config.external_ip.enabled:
        print(f"External-IP: {counted(len(external.addresses), 'address')} of Services")
    gap = surveyed.gap(me)
    return (
        *((Problem(code=Code.INCOMPLETE_STATE, text=gap),) if gap else ()),
        *(problem for one in surveyed.services for problem in one.problems(one.obstacle)),
        *(problem for path in wanted.paths for problem in path.problems),
        *report.rejections((*cluster.rejections, *surveyed.rejections, *wanted.rejections, *external.rejections)),
    )


def _host_problems(cluster: ClusterState, config: Config, state_dir: Path) -> tuple[Problem, ...]:
    """What this machine lacks, where it is a node of the cluster."""
    if node_name(config) not in {node.name for node in cluster.nodes}:
        return ()
    try:
        with Machine(state_dir) as machine:
            reconciler = Reconciler(machine, config)
            # Other programs' packet filters can only be read by who may change them.
            collisions = reconciler.collisions() if os.geteuid() == 0 else ()
            return *reconciler.preconditions(cluster), *collisions
    except KernelError as error:
        return (Problem(code=Code.KERNEL, text=str(error)),)


COMMAND = Command(
    name="check",
    run=_run,
    summary="validate the configuration and the state file, or the access to the API",
    description="Validates the configuration and the state file, or the access to the API, and judges this machine "
    "where it is a node of that cluster; prints every problem, and what the cluster's state holds.",
    options=_add_options,
    statuses=f"0 when all is good, {EX_CONFIG} when there are problems",
)
