"""`check`: whether what people wrote is good: the configuration with the files that it names, and the objects of the
cluster. What the host and the cluster are like is for `doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from metaleg_node.commands.command import EX_CONFIG, Command, general_options, print_problems
from metaleg_node.configuration import options as configuration
from metaleg_node.configuration.config import Config, ConfigError
from metaleg_node.core import external_ip
from metaleg_node.core.egress import new_pods, survey
from metaleg_node.core.model import ClusterState, ObjectRef
from metaleg_node.core.problems import Code, Problem, fails
from metaleg_node.core.return_path import wanted as pools
from metaleg_node.daemon import report
from metaleg_node.reconcile import hooks
from metaleg_node.sources import once, state_file
from metaleg_node.text import counted


def _run(arguments: argparse.Namespace) -> int:
    options = general_options(arguments)
    try:
        config = options.load()
    except ConfigError as error:
        problems = configuration.problems(error)
    else:
        problems = configuration.former_keys(config)
        if not arguments.files:
            problems += _beyond_files(config)
    print_problems(problems)
    if fails("check", problems):
        return EX_CONFIG
    print(f"{options.config_file}: good")
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--files",
        action="store_true",
        help="look at the configuration's files alone, not at hooks and the cluster",
    )


def _beyond_files(config: Config) -> tuple[Problem, ...]:
    return *_hook_problems(config), *_source_problems(config)


def _hook_problems(config: Config) -> tuple[Problem, ...]:
    settings = {"hooks.pre": config.hooks.pre, "hooks.post": config.hooks.post}
    return tuple(
        Problem(code=Code.HOOK, subject=config.origin.file(key), text=complaint)
        for key, hook in settings.items()
        for complaint in hooks.complaints(hook, key=key)
    )


def _source_problems(config: Config) -> tuple[Problem, ...]:
    """What is wrong with the state file or the access to the API, as a whole or with what the state holds."""
    cluster, problems = once.read(config)
    if problems:
        return tuple(Problem(code=Code.SOURCE, text=text) for text in problems)
    return tuple(_placed(_state_problems(cluster, config), config))


def _placed(problems: tuple[Problem, ...], config: Config) -> Iterator[Problem]:
    """With the file and line of the object that a problem is of, where there is a state file."""
    settings = config.cluster
    places: dict[ObjectRef, str] = {}
    if settings.state_file and problems:
        # Somebody may replace it meanwhile.
        with suppress(state_file.StateFileError):
            places = state_file.places(Path(settings.state_file), state_file.configmap_of(config))
    by_name = {str(ref): place for ref, place in places.items()}
    for one in problems:
        place = by_name.get(one.subject)
        yield replace(one, subject=f"{place}: {one.subject}") if place else one


def _state_problems(cluster: ClusterState, config: Config) -> tuple[Problem, ...]:
    """What this node could mend or would not do; prints what the state holds."""
    me = configuration.node_name(config)
    early = new_pods.completed(cluster, config, me)
    surveyed, wanted = survey.take(early, config), pools.read(cluster, config, me)
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
        *new_pods.read(early, surveyed, config, me).contribution.problems,
        *(problem for path in wanted.paths for problem in path.problems),
        *report.rejections((*cluster.rejections, *surveyed.rejections, *wanted.rejections, *external.rejections)),
    )


COMMAND = Command(
    name="check",
    run=_run,
    summary="validate the configuration and the state file, or the access to the API",
    description="Validates what people wrote: the configuration, the hooks, and the objects in the state file or the "
    "API; prints every problem, and what the cluster's state holds. What the host and the cluster are like "
    "is for doctor.",
    options=_add_options,
    statuses=f"0 when all is good, {EX_CONFIG} when there are problems",
)
