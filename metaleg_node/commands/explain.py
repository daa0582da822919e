"""`explain`: why an address leaves as it does, or does not."""

from __future__ import annotations

import argparse
import json
import sys

from metaleg_node.commands.command import Command, Failure, UsageError, configured, json_option
from metaleg_node.commands.explain_text import State, document, render
from metaleg_node.configuration.config import Config
from metaleg_node.configuration.options import Options
from metaleg_node.core.explain.explanation import explain
from metaleg_node.core.explain.targets import TargetError, asked
from metaleg_node.core.model import ClusterState
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import Reconciler
from metaleg_node.sources import once


def _run(arguments: argparse.Namespace) -> int:
    try:
        to = asked(arguments.target, arguments.to)
    except TargetError as error:
        raise UsageError(str(error)) from error
    options, config = configured(arguments)
    try:
        cluster, state = read_state(options, config)
        with Machine(options.state_dir, config.firewall.backend) as machine:
            situation = Reconciler(machine, config).situation(cluster)
            answers = explain(arguments.target, to, situation)
    except TargetError as error:
        raise Failure(str(error)) from error
    if arguments.json:
        told = document(arguments.target, arguments.to, situation, answers, state)
        print(json.dumps(told, indent=2))
    else:
        if state["problem"]:
            print(f"! {state['problem']}; going by the state of {state['since']}", file=sys.stderr)
        print(render(answers, situation))
    return 0 if all(answer.ok for answer in answers) else 1


def read_state(options: Options, config: Config) -> tuple[ClusterState, State]:
    """The cluster's state, the last known one where the API does not answer. Raises Failure."""
    known = once.known(config, options.state_dir)
    if known.state is None:
        raise Failure(known.problem)
    return known.state, State(place=known.place, since=known.since or None, problem=known.problem)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="namespace/pod, namespace/service, or an address: a pod's, a LoadBalancer's, a pool's, a node's",
    )
    parser.add_argument(
        "--to", metavar="ADDRESS", help="the other end, or ADDRESS:PORT/PROTOCOL; default: any outside the cluster"
    )
    json_option(parser)


COMMAND = Command(
    name="explain",
    run=_run,
    summary="why an address leaves as it does, or does not",
    description="Explains how what a pod sends leaves the cluster: which rule decides on which node, which node "
    "translates, which source the outside sees, and why not when not; and how replies from a LoadBalancer address "
    "leave. It decides as the service does, compares with what the kernel of this node holds, and changes nothing. "
    "While the API does not answer it goes by the state that the service saved last.",
    statuses="0 when it goes as wanted, 1 when it does not, or when that cannot be told",
    options=_options,
)
