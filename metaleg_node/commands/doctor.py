"""`doctor`: what is wrong with this host and its cluster."""

from __future__ import annotations

import argparse
import json

from metaleg_node.commands.command import Command, UsageError, configured, json_option
from metaleg_node.doctor import examination, text


def _run(arguments: argparse.Namespace) -> int:
    if not examination.chosen(arguments.only):
        raise UsageError(f"no check has a code that begins with {arguments.only}: docs/doctor.md has them all")
    options, config = configured(arguments)
    found = examination.examine(config, options, only=arguments.only)
    if arguments.json:
        print(json.dumps(text.document(found), indent=2))
    else:
        print(text.render(found, verbose=arguments.verbose))
    return 0 if found.healthy else 1


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", default="", metavar="CODE", help="make only the checks whose code begins so, such as ML-2 or ML-213"
    )
    parser.add_argument("--verbose", action="store_true", help="show what passed and what could not be told, too")
    json_option(parser)


COMMAND = Command(
    name="doctor",
    run=_run,
    summary="what is wrong with this host and its cluster, what follows, and what to do",
    description="Looks at the host and the cluster for what keeps this program from working, or will some day: the "
    "kernel, forwarding, other programs, credentials, the service itself. Each finding has a code, which is a heading "
    "of docs/doctor.md. It changes nothing and needs neither the service nor the API; as root it sees most.",
    statuses="0 when nothing worse than a note was found, 1 when something was",
    options=_options,
)
