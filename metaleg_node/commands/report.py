"""`report`: an archive for a bug report."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from metaleg_node import files
from metaleg_node.commands import report_parts
from metaleg_node.commands.command import Command, Failure, general_options
from metaleg_node.commands.report_parts import Scene
from metaleg_node.configuration.config import Config, ConfigError
from metaleg_node.configuration.options import node_name
from metaleg_node.redaction import NAMED, redacted
from metaleg_node.sources import secrets

_FOLDER = "metaleg-node-report"
_README = """\
What `metaleg-node report` saw, each in a file of its own. Taken out, as far as they could be known: tokens, keys,
passwords, and what the kubeconfig and the files that it names contain. Not in it: the cluster's objects, hooks, and
anybody's environment. Names and addresses of Services, pods and nodes are in it: look at it before you give it away.
"""


def _run(arguments: argparse.Namespace) -> int:
    options = general_options(arguments)
    try:
        scene = Scene(options=options, config=options.load())
    except ConfigError as error:
        scene = Scene(options=options, config=Config(), wrong="\n".join(map(str, error.problems)))
    path: Path = arguments.file or Path(f"{_FOLDER}-{node_name(scene.config)}-{time.strftime('%Y%m%dT%H%M%S')}.tar.gz")
    if not path.parent.is_dir():
        raise Failure(f"cannot write {path}: there is no directory {path.parent}; make it, or name a file elsewhere")
    known = frozenset(_secrets(scene))
    contents = {"README.txt": _README}
    for name, text, wrong in report_parts.written(scene):
        contents[name] = redacted(text, known)
        if wrong:
            print(f"! {name}: {redacted(wrong, known)}", file=sys.stderr)
    try:
        files.replace(path, _archive(contents), mode=0o600)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}; name a file elsewhere") from error
    print(f"{path}: look at it before you give it away: names and addresses are in it")
    return 0


def _secrets(scene: Scene) -> Iterator[str]:
    """Of the kubeconfig, or of those that a wrong configuration names, and what in our own environment is called like a
    secret."""
    for file in report_parts.kubeconfigs(scene):
        yield from secrets.of_kubeconfig(file)
    yield from (value for name, value in os.environ.items() if NAMED.fullmatch(name))


def _archive(contents: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in contents.items():
            content = text.encode(errors="replace")
            member = tarfile.TarInfo(f"{_FOLDER}/{name}")
            member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


COMMAND = Command(
    name="report",
    run=_run,
    summary="write an archive for a bug report, without secrets",
    description="Writes an archive with what somebody needs who is to find a fault: versions, settings, status, plan, "
    "what doctor finds, "
    "our part of the packet filter, our rules and routes, the last lines of the log. Tokens, keys, passwords and what "
    "the kubeconfig contains are taken out; names and addresses are not. What cannot be seen is told in its place.",
    statuses="0 when it is written, 1 when not",
    options=lambda parser: parser.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", help="default: a name with node and time, in this directory"
    ),
)
