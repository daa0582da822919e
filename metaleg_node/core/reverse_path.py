"""Reverse-path filters as packets need them that come in by another way than the kernel would send answers back."""

from __future__ import annotations

from collections.abc import Set

from metaleg_node.core.model import Host


def settings(host: Host, *, loose: Set[str] = frozenset(), off: Set[str] = frozenset()) -> dict[str, str]:
    """The sysctls that loosen the filter on some interfaces, where it is strict, and turn it off on others; none where
    all is so. `host` knows the filters of these, and of all interfaces where any is to be turned off though `all` is
    on.

    The larger of `all` and the interface's own value counts (ip-sysctl, rp_filter). So to turn it off on one
    interface `all` must be 0 too; every other interface, also a future one, then gets what `all` gave it.
    """
    everywhere = host.rp_filter.get("all", 0)
    values: dict[str, int] = {}
    for name, own in host.rp_filter.items():
        strictness = max(own, everywhere)
        if name in off or (off and name == "all"):
            values[name] = 0
        elif name in loose and strictness == 1:
            values[name] = 2
        elif off:
            values[name] = strictness
    return {f"net/ipv4/conf/{n}/rp_filter": str(v) for n, v in values.items() if v != host.rp_filter[n]}


def is_strict(name: str, host: Host) -> bool:
    """Whether an interface takes nothing that the kernel would answer by another."""
    return _strictness(name, host) == 1


def is_useless_when_loose(name: str, host: Host) -> bool:
    """Whether an interface without an IPv4 address filters: there loose is as strict as strict (fib_frontend.c,
    __fib_validate_source: "last_resort")."""
    return name in host.unnumbered and _strictness(name, host) > 0


def _strictness(name: str, host: Host) -> int:
    return max(host.rp_filter.get("all", 0), host.rp_filter.get(name, 0))
