"""What the kernel has counted, of the calling thread's network namespace."""

from __future__ import annotations

from pathlib import Path

from metaleg_node.kernel.errors import refusal

_NET = Path("/proc/thread-self/net")
_LOST = ("drop", "early_drop", "insert_failed")


def reverse_path_drops() -> int:
    """Packets that a reverse-path filter of IPv4 dropped (IPReversePathFilter, proc_net_netstat(5)). Raises
    KernelError."""
    lines = iter(_text("netstat").splitlines())
    for names in lines:
        values = next(lines, "")
        found = dict(zip(names.split(), values.split(), strict=False))
        if "IPReversePathFilter" in found:
            return int(found["IPReversePathFilter"])
    return 0


def conntrack_losses() -> int:
    """Packets or entries that conntrack dropped for want of room (drop, early_drop, insert_failed). Raises
    KernelError."""
    names, *rows = (line.split() for line in _text("stat/nf_conntrack").splitlines())
    return sum(int(row[names.index(name)], 16) for row in rows for name in _LOST)


def _text(name: str) -> str:
    try:
        return (_NET / name).read_text()
    except OSError as error:
        raise refusal(f"read {_NET / name}", error.errno or 0) from error
