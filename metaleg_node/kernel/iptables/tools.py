"""The programs that speak to the kernel: iptables, ip6tables and ipset.

Where both variants of iptables are installed the legacy one is taken: on a kernel without nf_tables, for which this
packet filter is, the other one does not work, whatever `iptables` is a link to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from metaleg_node.core.model import Family
from metaleg_node.kernel import process
from metaleg_node.kernel.errors import KernelError, MissingProgramError

_NAMES = {4: "iptables", 6: "ip6tables"}
_LOCK_SECONDS = "30"
"""How long another program may keep the lock of all that change iptables, /run/xtables.lock."""


def save(family: Family, table: str, *, counters: bool = False) -> list[str]:
    """The lines of iptables-save for one table, which is made if there is none so far: which ones there are, root alone
    may read. Raises KernelError."""
    return _listed([_program(family, "-save"), "-t", table, *(["-c"] if counters else [])])


def save_sets() -> list[str]:
    """The lines of `ipset save`. Raises KernelError."""
    return _listed(["ipset", "save"])


def has_sets(name: re.Pattern[str]) -> bool:
    """Whether there is a set of such a name. Raises KernelError."""
    return any(map(name.fullmatch, _listed(["ipset", "list", "-n"])))


def restore(family: Family, script: str) -> None:
    """Changes tables. Raises KernelError."""
    program = _program(family, "-restore")
    _change([program, "--noflush", "-w", _LOCK_SECONDS], script, "change of our chains")


def restore_sets(lines: Iterable[str]) -> None:
    """Changes sets. Raises KernelError."""
    if script := "".join(f"{line}\n" for line in lines):
        _change(["ipset", "-exist", "restore"], script, "change of our sets")


def complaint(family: Family, table: str, rule: str) -> str:
    """What is said against a rule that is tried and not put; empty for nothing. Raises KernelError."""
    script = f"*{table}\n:PROBE - [0:0]\n-A PROBE {rule}\nCOMMIT\n"
    done = process.run([_program(family, "-restore"), "--noflush", "--test", "-w", _LOCK_SECONDS], stdin=script)
    lacks = done.returncode or "not supported" in done.stderr
    return _complaint(done.stderr) if lacks else ""


def versions() -> dict[str, str]:
    """By the programs' names. Raises KernelError."""
    found = {}
    for name, program in (("iptables", _program(4, "")), ("ipset", "ipset")):
        # iptables v1.8.9 (legacy)
        told = re.search(r"\bv(\d\S*?),?\s", process.run([program, "--version"]).stdout)
        if not told:
            raise KernelError(f"`{program} --version` tells no version")
        found[name] = told[1]
    return found


def _program(family: Family, suffix: str) -> str:
    name = _NAMES[family]
    legacy = f"{name}-legacy{suffix}"
    try:
        process.find(legacy)
    except MissingProgramError:
        return f"{name}{suffix}"
    return legacy


def _listed(argv: list[str]) -> list[str]:
    done = process.run(argv)
    if done.returncode:
        raise KernelError(f"`{' '.join(argv)}` failed: {_complaint(done.stderr)}")
    return done.stdout.splitlines()


def _change(argv: list[str], script: str, what: str) -> None:
    done = process.run(argv, stdin=script)
    if done.returncode:
        raise KernelError(f"{argv[0]} refused the {what}: {_complaint(done.stderr)}")


def _complaint(stderr: str) -> str:
    """What the program says, or what capability is missing."""
    text = " ".join(line.strip() for line in stderr.strip().splitlines()[:3])[:500]
    if "Permission denied" in text or "Operation not permitted" in text:
        return f"{text} (run as root, or grant the service CAP_NET_ADMIN, CAP_NET_RAW and the file /run/xtables.lock)"
    return text or "no reason was given"
