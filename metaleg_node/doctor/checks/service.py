"""ML-5xx: this program's files and its service."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from metaleg_node.core.egress import new_pods
from metaleg_node.daemon import lock
from metaleg_node.doctor.diagnosis import Finding
from metaleg_node.doctor.facts import Facts
from metaleg_node.doctor.host_files import true
from metaleg_node.sources import cni_results

_UNIT = "metaleg-node.service"
_NET_ADMIN = 12
"""CAP_NET_ADMIN, linux/capability.h."""
_KUBELETS = (
    "kubelet.service",
    "k3s.service",
    "k3s-agent.service",
    "rke2-server.service",
    "rke2-agent.service",
    "k0scontroller.service",
    "k0sworker.service",
    "snap.microk8s.daemon-kubelite.service",
)
_NO_EXEC = 8
"""ST_NOEXEC, statvfs(3)."""
_PREDECESSORS = {"METALEG-": "metaleg", "NMANAGER_": "network-node-manager"}
"""Chains by what they begin with."""
_PROGRAMS = {
    "metaleg-agent": "metaleg",
    "metallb-node-route-agent": "metallb-node-route-agent",
    "network-node-manager": "network-node-manager",
}
"""What stands in their command lines."""
_OF_METALEG = 0x00F00000
_OF_ROUTE_AGENT = 20


def cni_results_missing(facts: Facts) -> Iterator[Finding]:
    """506"""
    path = facts.config.egress.cni_socket
    if new_pods.is_on(facts.config) and not cni_results.read(path).live:
        yield Finding(
            seen=f'egress.new_pods is "hold", and nobody tells of CNI\'s results at {path}',
            follows="New pods are held only while an egress pod starts here, and until the API tells their addresses: "
            "seconds, where a container has a postStart hook or starts beside a slow one.",
            mend="systemctl enable --now metaleg-node-cni; journalctl -u metaleg-node-cni; or set egress.cni_socket",
        )


def directories(facts: Facts) -> Iterator[Finding]:
    """501"""
    options = facts.options
    for path, what in ((options.state_dir, "the last known state"), (options.runtime_dir, "what it does, for status,")):
        if complaint := _unwritable(path):
            yield Finding(
                seen=f"{path} {complaint}",
                follows=f"The service cannot keep {what} there.",
                mend=f"make room or mount it writable; chown metaleg-node: {path}",
            )
    holder = lock.holder_of()
    if holder and holder.is_stranger:
        yield Finding(
            seen=lock.complaint(holder),
            follows="The service does not start: it takes this for another one of its kind.",
            mend=f"kill {holder.pid}" if holder.pid else "find it with `ss -xap`, and end it",
        )


def _unwritable(path: Path) -> str:
    try:
        disk = os.statvfs(path)
    except FileNotFoundError:
        return ""  # It is made at the start.
    if disk.f_flag & os.ST_RDONLY:
        return "is on a file system that is mounted read-only"
    return "is on a file system without room" if disk.f_blocks and not disk.f_bavail else ""


def unit(facts: Facts) -> Iterator[Finding]:
    """502"""
    for file, text in _breaking(facts):
        yield Finding(
            seen=f"{file}: {text}",
            follows="The service cannot see or change this host's network.",
            mend=f"systemctl edit {_UNIT}: take that line away; systemctl restart {_UNIT}",
        )
    holder = lock.holder_of()
    if holder and holder.pid and not holder.is_stranger:
        status = Path(f"/proc/{holder.pid}/status").read_text()
        found = re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)
        if found and not int(found[1], 16) >> _NET_ADMIN & 1:
            yield Finding(
                seen=f"process {holder.pid}, which runs metaleg-node, has no CAP_NET_ADMIN (CapEff {found[1]})",
                follows="It can change nothing in the kernel.",
                mend=f"start it by systemd: systemctl restart {_UNIT}; look at its drop-ins: systemctl cat {_UNIT}",
            )


def _breaking(facts: Facts) -> Iterator[tuple[str, str]]:
    capabilities: tuple[str, str] | None = None
    for file, key, value in facts.files.unit_settings(_UNIT, "Service"):
        if (key in ("PrivateNetwork", "PrivateUsers") and true(value)) or (key == "ProcSubset" and value == "pid"):
            yield file, f"{key}={value}"
        elif key == "CapabilityBoundingSet":
            # Several add up, an empty one begins anew (systemd.exec(5)).
            before = capabilities[1] if capabilities and value else ""
            capabilities = file, f"{before} {value}".strip()
    if capabilities and not capabilities[1].startswith("~") and "CAP_NET_ADMIN" not in capabilities[1]:
        yield capabilities[0], f"CapabilityBoundingSet={capabilities[1]}, without CAP_NET_ADMIN"


def order(facts: Facts) -> Iterator[Finding]:
    """503"""
    if not facts.files.unit(_UNIT):
        return
    before: set[str] = set()
    for _, key, value in facts.files.unit_settings(_UNIT, "Unit"):
        if key == "Before":
            before = before | {*value.split()} if value else set()
    for kubelet in _KUBELETS:
        if facts.files.unit(kubelet) and kubelet not in before:
            yield Finding(
                seen=f"there is {kubelet}, and {_UNIT} has no Before= it",
                follows="At boot pods may run before their rules are there, and leave with the node's address.",
                mend=f"mkdir -p /etc/systemd/system/{_UNIT}.d; printf '[Unit]\\nBefore={kubelet}\\n' > "
                f"/etc/systemd/system/{_UNIT}.d/order.conf; systemctl daemon-reload",
            )


def hooks(facts: Facts) -> Iterator[Finding]:
    """504"""
    for script in _scripts(facts):
        with script.open("rb") as opened:
            begin = opened.readline(256)
        words = begin[2:].split() if begin.startswith(b"#!") else []
        if words and not os.path.exists(words[0]):
            text = f"{script} begins with #!{words[0].decode(errors='replace')}, which is not installed"
        elif os.statvfs(script).f_flag & _NO_EXEC:
            text = f"{script} is on a file system that is mounted noexec"
        else:
            continue
        yield Finding(
            seen=text,
            follows="The hook cannot be started, whatever its rights.",
            mend="install that program, or put the hook elsewhere, as in /etc/metaleg-node/hooks",
        )


def _scripts(facts: Facts) -> Iterator[Path]:
    """The hooks that there are; what is wrong with how they are named is for `check`."""
    for name in (facts.config.hooks.pre, facts.config.hooks.post):
        path = Path(name)
        found = sorted(path.iterdir()) if name and path.is_dir() else [path] if name else []
        yield from (one for one in found if one.is_file() and one.stat().st_mode & stat.S_IXUSR)


def predecessors(facts: Facts) -> Iterator[Finding]:
    """505"""
    left: dict[str, str] = {}
    for chain in facts.chains:
        for begin, program in _PREDECESSORS.items():
            if chain.name.startswith(begin):
                left.setdefault(program, f"chain {chain.name} in table {chain.table}")
    for rule in sorted(facts.others.rules):
        if rule.mask == _OF_METALEG:
            left.setdefault("metaleg", f"the rule {rule.text}")
        elif rule.table == _OF_ROUTE_AGENT:
            left.setdefault("metallb-node-route-agent", f"the rule {rule.text}")
    running = _running()
    for program in sorted({*left, *running}):
        runs = f"process {running[program]} runs" if program in running else ""
        yield Finding(
            seen=f"{program}: {', '.join(filter(None, (runs, left.get(program))))}",
            follows="Two programs do the same to the same packets, or what one left does; whose address counts is "
            "nobody's decision.",
            mend="docs/migration.md has the order in which to end it, and what removes what it left",
        )


def _running() -> dict[str, int]:
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")[:2]
        except OSError:
            continue
        names = {os.path.basename(word.decode(errors="replace")) for word in words}
        for name in names & _PROGRAMS.keys():
            found.setdefault(_PROGRAMS[name], int(folder.name))
    return found
