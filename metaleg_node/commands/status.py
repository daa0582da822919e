"""`status`: what the running service tells."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from metaleg_node.commands.command import Command, general_options, json_option
from metaleg_node.daemon import lock, status


def _run(arguments: argparse.Namespace) -> int:
    document = status.read(general_options(arguments).runtime_dir)
    holder = lock.holder_of()
    if document is None or holder is None or holder.pid != document["pid"]:
        print(_silence(document, holder))
        return 3
    if arguments.json:
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


COMMAND = Command(
    name="status",
    run=_run,
    summary="show what the running service does",
    description="Shows what the running service does: Services, gateways, return paths, the last reconcile, and "
    "all that does not work.",
    statuses="0 when it is healthy, 1 when it is not, 3 when it does not run",
    options=json_option,
)
