"""Which packet filter does the work: the one that is asked for, or the one that this host has.

Nothing is guessed from what other programs use. To ask for nf_tables is to have the kernel load it, as every call of
nft does; no module of iptables is loaded by a question.
"""

from __future__ import annotations

import errno
import logging
from typing import Literal

from metaleg_node.core.explain.following import Traced
from metaleg_node.kernel import process
from metaleg_node.kernel.errors import KernelError, MissingProgramError
from metaleg_node.kernel.iptables.backend import Iptables
from metaleg_node.kernel.nftables.backend import Nftables
from metaleg_node.kernel.nftables.trace import Tracer as Tracer  # noqa: PLC0414 - what `tracer` returns
from metaleg_node.kernel.nftables.watch import ask_generation
from metaleg_node.kernel.packet_filter import PacketFilter

log = logging.getLogger(__name__)

Backend = Literal["auto", "nftables", "iptables"]


def chosen(backend: Backend) -> tuple[PacketFilter, PacketFilter]:
    """The packet filter that does the work, and the one that does not. "auto" is nftables, but where the kernel has no
    nf_tables, or the program nft is missing, and iptables and ipset are there."""
    if backend == "auto":
        backend = "nftables"
        if (reason := why_no_nftables()) and _has_iptables():
            backend = "iptables"
            log.info("the packet filter is iptables: %s", reason)
    return (Iptables(), Nftables()) if backend == "iptables" else (Nftables(), Iptables())


def tracer(packet_filter: PacketFilter, traced: Traced) -> Tracer:
    """Follows packets, in a `with` block. Raises KernelError where the packet filter cannot."""
    if not isinstance(packet_filter, Nftables):
        raise KernelError(f"packets are followed by nftables alone, and the packet filter is {packet_filter.place}")
    return Tracer(traced)


def why_no_nftables() -> str:
    """Why this host has no nftables; empty where it has, or where that cannot be told."""
    try:
        process.find("nft")
        ask_generation()
    except MissingProgramError as error:
        return str(error)
    except KernelError as error:
        # Whoever may not ask can change nothing either.
        return "" if error.code == errno.EPERM else f"the kernel has no nf_tables: {error}"
    return ""


def _has_iptables() -> bool:
    try:
        for program in ("iptables-restore", "ip6tables-restore", "ipset"):
            process.find(program)
    except MissingProgramError:
        return False
    return True
