"""`kubeconfig`: the service account and its credentials."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from metaleg_node.commands.command import Command, Failure
from metaleg_node.configuration.config import ClusterSettings
from metaleg_node.sources import access_rights


def _run(arguments: argparse.Namespace) -> int:
    """Says what it is about to do and asks on standard error, so that standard output is the kubeconfig alone."""
    from metaleg_node.sources import service_account  # noqa: PLC0415 - only users of the API pay for its client

    wanted = access_rights.objects(
        arguments.metallb_namespace, arguments.metallb_configmap, arguments.namespace, events=arguments.events
    )
    try:
        print(service_account.announcement(arguments.admin, arguments.context, wanted), file=sys.stderr)
        if not arguments.yes:
            print("go on? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                raise Failure("nothing was changed")
        print(service_account.make(arguments.admin, arguments.context, wanted), end="")
    except service_account.Error as error:
        raise Failure(str(error)) from error
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    cluster, namespace = ClusterSettings(), access_rights.NAMESPACE
    parser.add_argument("--admin", type=Path, required=True, metavar="FILE", help="an administrator's kubeconfig")
    parser.add_argument("--context", default="", metavar="NAME", help="context of it; default: its current one")
    parser.add_argument(
        "--namespace", default=namespace, metavar="NAME", help=f"of the service account; default: {namespace}"
    )
    parser.add_argument(
        "--metallb-namespace",
        default=cluster.metallb_namespace,
        metavar="NAME",
        help=f"where MetalLB runs; default: {cluster.metallb_namespace}",
    )
    parser.add_argument(
        "--metallb-configmap",
        default=cluster.metallb_configmap,
        metavar="NAME",
        help=f"ConfigMap of MetalLB before 0.13; default: {cluster.metallb_configmap}",
    )
    parser.add_argument("--events", action="store_true", help="also the right to write Events, for cluster.events")
    parser.add_argument("--yes", action="store_true", help="do not ask")


COMMAND = Command(
    name="kubeconfig",
    run=_run,
    summary="make the service account; print the kubeconfig for it",
    description="Makes a service account that may read what is needed and nothing else, after it has told what "
    "will be made and asked, tries a kubeconfig for it, and prints that. Running it again changes nothing.",
    statuses="0 when the kubeconfig is printed, 1 when not",
    options=_options,
)
