"""`demo`: the program at work in a throw-away network."""

from __future__ import annotations

import argparse

from metaleg_node.commands.command import Command


def _run(_arguments: argparse.Namespace) -> int:
    # Only the demo needs the lab, and nobody else should pay for loading it.
    from metaleg_node.lab.demo import demo  # noqa: PLC0415

    return demo()


COMMAND = Command(
    name="demo",
    run=_run,
    summary="show it all in a throw-away network",
    description="Builds a throw-away network of namespaces, runs the program on each of its nodes, and shows which "
    "source address a server outside sees. The host's own network is not touched. It has to be run as root.",
    statuses="0 when everything was as it should be, 1 when not",
)
