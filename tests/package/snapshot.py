"""What a node is like: its files, and what its kernel holds. Two of them are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.e2e.scenario import NODE1, foreign, ours
from tests.package.node import Node

_SYSCTLS = ("net/ipv4/conf", "net/ipv6/conf", "net/netfilter")
_OTHERS = re.compile(
    "/(proc|sys|dev|tmp|srv/cluster|run/systemd|var/(cache|log|tmp|lib/(apt|dpkg|systemd)))/|/run/agetty.reload$"
)
"""Files that come and go without us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`files` by path; `kernel` by what it is, as text."""

    files: frozenset[str]
    kernel: dict[str, str]

    @classmethod
    def of(cls, node: Node) -> Self:
        found = node.container.run("find", "/", "/run", "-xdev").stdout.splitlines()
        return cls(files=frozenset(path for path in found if not _OTHERS.match(path)), kernel=_kernel(node))


def _kernel(node: Node) -> dict[str, str]:
    view = {f"foreign {key}": text for key, text in foreign(node.lab, NODE1).items()}
    view |= {f"ours {key}": text for key, text in ours(node.lab, NODE1).items()}
    with node.lab.namespace(NODE1).inside():
        for folder in _SYSCTLS:
            for path in sorted(Path("/proc/sys", folder).rglob("*")):
                if path.is_file() and path.stat().st_mode & 0o200 and "secret" not in path.name:
                    view[str(path)] = path.read_text()
    return view
