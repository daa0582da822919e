"""What the kernel takes to exchange one element of a map by pod address: with verdicts as values, and with numbers from
which a small map leads to chains, as our table has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address

from bench.cluster import FIRST_POD
from bench.node import nodes
from bench.results import Figure
from metaleg_node.kernel.nftables.nft import Nft

_SIZES = (1_000, 10_000, 50_000)
_CHAINS = 20
_EXCHANGES = 20
_RULES = "ct status confirmed accept; jump judge; ct status ! confirmed ct label set 91; accept;"


def measure(rounds: int) -> list[Figure]:
    """Milliseconds of a transaction that takes one element away and adds another."""
    layouts: dict[str, tuple[str, Callable[[int], str], str]] = {
        "verdicts": ("verdict", lambda n: f"goto c{n % _CHAINS}", "ip saddr vmap @pods"),
        "numbers": (
            "classid",
            lambda n: f"1:{n % _CHAINS + 1:x}",
            "meta priority set ip saddr map @pods; meta priority vmap @chains",
        ),
    }
    figures = []
    for size in _SIZES:
        for name, (kind, value, rule) in layouts.items():
            with nodes(["bench"], 1) as spaces, spaces["bench"].inside():
                times = _exchanges(kind, value, rule, size, rounds * _EXCHANGES)
            figures.append(Figure(name=f"{size:,} pods, {name}", unit="ms", values=tuple(times)))
    return figures


def _exchanges(kind: str, value: Callable[[int], str], rule: str, size: int, count: int) -> list[float]:
    chains = "".join(f"chain c{number} {{ {_RULES} }}\n" for number in range(_CHAINS))
    leads = ", ".join(f"1:{number + 1:x} : goto c{number}" for number in range(_CHAINS))
    pods = ",\n".join(f"{FIRST_POD + number} : {value(number)}" for number in range(size))
    nft = Nft()
    complaint = nft.complaint(
        f"table inet bench {{\nchain judge {{ fib daddr type local accept; ip daddr 10.0.0.0/8 accept; }}\n{chains}"
        f"map chains {{ type classid : verdict; elements = {{ {leads} }} }}\n"
        f"map pods {{ type ipv4_addr : {kind}; elements = {{ {pods} }} }}\n"
        f"chain prerouting {{ type filter hook prerouting priority -90; {rule}; }}\n}}\n"
    )
    assert complaint is None, complaint
    times = []
    for number in range(count):
        old, new = FIRST_POD + number, IPv4Address("10.250.0.0") + number
        began = time.monotonic()
        nft.complaint(
            f"delete element inet bench pods {{ {old} }}\nadd element inet bench pods {{ {new} : {value(number)} }}\n"
        )
        times.append((time.monotonic() - began) * 1000)
    return times
