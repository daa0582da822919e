"""A control group for each container: two that are started from one group would share what is below it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_JOIN = 'for group in $GROUPS_TO_JOIN; do echo $$ >"$group/cgroup.procs" || exit; done; exec "$@"'


@contextmanager
def own_group() -> Iterator[list[str]]:
    """What a command line begins with that shall run in a group of its own, which goes when the block ends."""
    name = f"metaleg-test-{uuid.uuid4().hex[:8]}"
    groups = [parent / name for parent in _parents()]
    for group in groups:
        group.mkdir()
    try:
        yield ["env", f"GROUPS_TO_JOIN={' '.join(map(str, groups))}", "sh", "-c", _JOIN, "-"]
    finally:
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(folder)


def _parents() -> Iterator[Path]:
    """Its group in each hierarchy that systemd works with: version 2 of cgroups(7), and the one named systemd."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, hierarchy, path = line.split(":", 2)
        if hierarchy == "name=systemd":
            yield _MOUNT / "systemd" / path.lstrip("/")
        elif not hierarchy:
            unified = _MOUNT / "unified"
            yield (unified if unified.is_dir() else _MOUNT) / path.lstrip("/")
