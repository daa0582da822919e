"""An nftables table as a value, and the words that all of its parts are made of.

Each rule carries a comment that begins with a digest of its text: that is how a later look tells whether a rule is
still the one that was put there, whatever form this or that version of nft lists it in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Address, Network, Slot
from metaleg_node.kernel.elements import address_of, network_of, network_text

FAMILY = "inet"
NAME = "metaleg_node"
TABLE = f"{FAMILY} {NAME}"
COUNTERS = ("steered", "translated", "held", "dropped", "unknown")
DROP = 'counter name "dropped" drop'
IP = {4: "ip", 6: "ip6"}

_NAME_CHUNK = 100
"""A comment holds 128 bytes; node names (up to 253) are spread over the comments of their chain's rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A set (`value_type` empty, all values None) or a map; keys and values in nft's own spelling. The elements of one
    with `timeout` come and go by themselves and are no part of what the table should be."""

    key_type: str
    elements: Mapping[str, str | None]
    value_type: str = ""
    interval: bool = False
    timeout: bool = False

    @property
    def header(self) -> tuple[str, str, bool, bool]:
        """What cannot be changed without making the set anew."""
        return self.key_type, self.value_type, self.interval, self.timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain; `hook` is its base chain declaration, empty for a regular one. Comments stand beside the rules, one
    each; as observed only the comments are known."""

    comments: tuple[str, ...]
    rules: tuple[str, ...] = ()
    hook: str = ""

    @property
    def note(self) -> str:
        """The note that was given to the chain, put together from its comments."""
        return "".join(comment.partition(" ")[2] for comment in self.comments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one part adds to the table. `counters` are named; `guard` are rules of the chain of that name, after
    everybody's translation; `marked` tells for the marks of this part's slots in which chain they are judged there."""

    sets: Mapping[str, Set] = field(default_factory=dict)
    chains: Mapping[str, Chain] = field(default_factory=dict)
    counters: frozenset[str] = frozenset()
    guard: tuple[str, ...] = ()
    marked: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The table as it should be or as it is. `strange` is what else was found in it, which this program never puts
    there: it goes only with the whole table."""

    sets: Mapping[str, Set]
    chains: Mapping[str, Chain]
    counters: frozenset[str] = frozenset(COUNTERS)
    strange: frozenset[str] = frozenset()

    def elements(self, name: str) -> Mapping[str, str | None]:
        """Those of a set, none where there is no such set."""
        return self.sets[name].elements if name in self.sets else {}

    def note(self, chain: str) -> str:
        """That of a chain, empty where there is no such chain."""
        return self.chains[chain].note if chain in self.chains else ""

    def addresses(self, name: str) -> frozenset[Address]:
        """The elements of the sets of this name for both families."""
        return frozenset(filter(None, (address_of(key) for v in IP for key in self.elements(f"{name}{v}"))))

    def networks(self, name: str, suffix: str = "") -> frozenset[Network]:
        """The elements of the sets of this name for both families."""
        return frozenset(net for v in IP for net in self.networks_of(f"{name}{v}{suffix}"))

    def networks_of(self, name: str) -> frozenset[Network]:
        """The elements of one set."""
        return frozenset(filter(None, map(network_of, self.elements(name))))


# --- making ----------------------------------------------------------------------------------------------------------


def chain(rules: Iterable[str], *, hook: str = "", note: str = "") -> Chain:
    """A chain of these rules, with a note for who reads it back."""
    texts = tuple(rules)
    assert len(note) <= len(texts) * _NAME_CHUNK
    chunks = [note[i * _NAME_CHUNK : (i + 1) * _NAME_CHUNK] for i in range(len(texts))]
    comments = tuple(
        f"{hashlib.sha256(t.encode()).hexdigest()[:12]} {c}".rstrip() for t, c in zip(texts, chunks, strict=True)
    )
    return Chain(comments=comments, rules=texts, hook=hook)


def base(kind: str, hook: str, priority: int) -> str:
    """The declaration of a base chain."""
    return f"type {kind} hook {hook} priority {priority}; policy accept;"


def address_set(version: int, addresses: Iterable[Address]) -> Set:
    """A set of those addresses that are of this family."""
    elements = dict.fromkeys(str(a) for a in addresses if a.version == version)
    return Set(key_type=f"ipv{version}_addr", elements=elements)


def network_set(version: int, networks: Iterable[Network]) -> Set:
    """A set of those networks that are of this family."""
    elements = dict.fromkeys(network_text(n) for n in networks if n.version == version)
    return Set(key_type=f"ipv{version}_addr", elements=elements, interval=True)


def interface_set(names: Iterable[str]) -> Set:
    """A set of interfaces by name."""
    return Set(key_type="ifname", elements=dict.fromkeys(sorted(names)))


def by_mark(chains: Mapping[int, str]) -> Set:
    """A map that sends each mark to its chain."""
    verdicts: dict[str, str | None] = {number(mark): f"goto {chain}" for mark, chain in sorted(chains.items())}
    return Set(key_type="mark", value_type="verdict", elements=verdicts)


def number(value: int) -> str:
    """A mark or a port, as numbers are read back."""
    return f"{value:#010x}"


def unmark(firewall: Firewall) -> str:
    """The mark has done its work. A tunnel hands it on to the packet that it makes of this one, which must find its own
    way."""
    return f"meta mark set meta mark & {~firewall.mark_mask & 0xFFFFFFFF:#010x}"


def set_mark(slot: Slot, firewall: Firewall) -> str:
    """Marks a packet for a slot and leaves other people's bits alone."""
    keep = ~firewall.mark_mask & 0xFFFFFFFF
    return f"meta mark set meta mark & {keep:#010x} | {firewall.mark(slot):#010x}"


# --- reading back ----------------------------------------------------------------------------------------------------


def numbers(elements: Iterable[str]) -> Iterator[int]:
    """The ports that elements are."""
    found = (int(key, 16) for key in elements if key.startswith("0x"))
    return (value for value in found if 0 < value <= 0xFFFF)
