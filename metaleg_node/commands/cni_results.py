"""`cni-results`: what metaleg-node-cni.service runs beside the service."""

from __future__ import annotations

import argparse
from pathlib import Path

from metaleg_node.commands.command import Command
from metaleg_node.configuration.config import EgressSettings
from metaleg_node.daemon import log as logs
from metaleg_node.sources import cni_files


def _run(arguments: argparse.Namespace) -> int:
    # The unit sees no configuration.
    logs.setup(level=arguments.log_level or "info", form="auto")
    cni_files.serve(arguments.directory, arguments.socket)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory",
        type=Path,
        default=cni_files.DIRECTORY,
        metavar="DIR",
        help=f"where libcni keeps its results; default: {cni_files.DIRECTORY}",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=Path(EgressSettings().cni_socket),
        metavar="PATH",
        help=f"where to listen, which is egress.cni_socket to the service; default: {EgressSettings().cni_socket}",
    )


COMMAND = Command(
    name="cni-results",
    run=_run,
    summary="tell the service of new pods; what metaleg-node-cni.service runs",
    description="Reads CNI's results, which only root may, and tells the service over a Unix socket which pod has "
    "which address, for egress.new_pods. Needs no network and no capability.",
    statuses="0 when stopped, 1 when it cannot listen",
    options=_add_options,
)
