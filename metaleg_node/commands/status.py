"""`status`: what the running service tells."""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from metaleg_node import terminal
from metaleg_node.commands.command import Command, general_options, json_option
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon import lock, report, status

_NOT_RUNNING = 3
_PAUSE = 1.0
"""Seconds from one look to the next: as often as the service gives a sign of life."""


def _run(arguments: argparse.Namespace) -> int:
    text, code = _look(arguments)
    if not arguments.watch:
        print(text)
        return code
    with suppress(KeyboardInterrupt):
        while True:
            print(terminal.page(text), flush=True)
            time.sleep(_PAUSE)
            text, code = _look(arguments)
    return code


def _look(arguments: argparse.Namespace) -> tuple[str, int]:
    """What there is to print now, and the exit status."""
    runtime_dir = general_options(arguments).runtime_dir
    document = status.read(runtime_dir)
    holder = lock.holder_of()
    silence = status.silence(runtime_dir)
    if document is None or holder is None or holder.pid != document["pid"]:
        text, code = _nothing(document, holder, runtime_dir, silence)
        nothing = status.NothingTold(version=1, running=code != _NOT_RUNNING, healthy=False, reason=text)
        return json.dumps(nothing, indent=2) if arguments.json else terminal.wrapped(text), code
    if doubt := _doubt(document["pid"], runtime_dir, silence):
        problem = Problem(code=Code.STATUS_FILE, text=doubt)
        document["problems"] = [*report.problem_list([problem]), *document["problems"]]
        document["healthy"] = False
    text = json.dumps(document, indent=2) if arguments.json else status.render(document, datetime.now(UTC))
    return text.rstrip("\n"), 0 if document["healthy"] else 1


def _doubt(pid: int, runtime_dir: Path, silence: float) -> str:
    """Why what the service told last may hold no longer; empty when it holds."""
    if _is_stopped(pid):
        return (
            f"process {pid} is stopped by a signal, and this is what it told before: `kill -CONT {pid}` lets it go on"
        )
    if math.isinf(silence):
        return f"the service cannot write what it does into {runtime_dir}, and this is older: its log tells why"
    if silence > status.SILENT_SECONDS:
        return (
            f"the service has given no sign of life for {silence:.0f} s, and this is what it told before: it is stuck, "
            f"kept waiting by the kernel, or cannot write into {runtime_dir}; its log may tell more"
        )
    return ""


def _is_stopped(pid: int) -> bool:
    """By SIGSTOP or a debugger (proc_pid_stat(5)); False where that cannot be seen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def _nothing(
    document: status.StatusDocument | None, holder: lock.Holder | None, runtime_dir: Path, silence: float
) -> tuple[str, int]:
    """Why there is nothing to show, or only what another process left; and the exit status."""
    if not lock.is_held():
        return "metaleg-node is not running", _NOT_RUNNING
    if holder is None:
        return "metaleg-node is stuck or stopped: the process with its lock does not answer; `ss -xap` names it", 1
    if holder.is_stranger:
        return f"metaleg-node is not running: {lock.complaint(holder)}", _NOT_RUNNING
    if document is None or math.isinf(silence):
        return (
            f"metaleg-node runs ({holder}), but tells nothing in {runtime_dir}: it just begins, cannot write there, "
            "which its log tells, or has another --runtime-dir",
            1,
        )
    left = f"the status that is there is of process {document['pid']}"
    return f"metaleg-node is not running, or just begins: {holder} has its lock, {left}", _NOT_RUNNING


def _options(parser: argparse.ArgumentParser) -> None:
    json_option(parser)
    parser.add_argument("--watch", action="store_true", help="show it anew each second, until Ctrl-C")


COMMAND = Command(
    name="status",
    run=_run,
    summary="show what the running service does",
    description="Shows what the running service does: Services, gateways, return paths, the last reconcile, and "
    "all that does not work.",
    statuses="0 when it is healthy, 1 when it is not or gives no sign of life, 3 when it does not run",
    options=_options,
)
