"""What iptables and ipset hold of ours as a value, and the words that all of its parts are made of.

Each rule carries a comment that begins with a digest of its text: that is how a later look tells whether a rule is
still the one that was put there, whatever form this or that version of iptables saves it in. What no rule and no set
shows stands in the comments of a chain that no packet comes to: the notes.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import FAMILIES, Address, Family, Network
from metaleg_node.kernel.elements import address_of, network_of, network_text

CHAINS = "METALEG-NODE-"
"""What the names of our chains begin with; a name has at most 28 characters (XT_EXTENSION_MAXNAMELEN)."""
OWN_SET = re.compile(r"metaleg[46]([-A-Za-z])([-\w]{0,22})")
"""Names of our sets, of at most 31 characters (IPSET_MAXNAMELEN): after the family a name of this program, or a letter
and what stands for an address or for networks that tenants name."""
RAW_SET = "metaleg4-spared"
"""The set that the rules of the table raw ask."""
COMMENT = "metaleg-node"
"""The comment of the rules that enter our chains."""
HALVES = {"0.0.0.0/0": ("0.0.0.0/1", "128.0.0.0/1"), "::/0": ("::/1", "8000::/1")}
ALWAYS_COUNTED = ("steered", "translated", "held", "dropped", "unknown")
COUNTERS = re.compile(rf"{'|'.join(ALWAYS_COUNTED)}|(?:requests|answers)_\d+")
"""Names of what rules count for."""

_CHUNK = 180
"""A comment holds 255 bytes; longer notes are spread over several."""


class Place(NamedTuple):
    """A chain: of which family, in which table."""

    family: Family
    table: str
    chain: str


class Rule(NamedTuple):
    """What follows the chain's name in iptables-save(8); `counter` is a name of COUNTERS, or empty."""

    text: str
    counter: str = ""

    @property
    def comment(self) -> str:
        """Its digest, and what it counts for."""
        return f"{hashlib.sha256(self.text.encode()).hexdigest()[:12]} {self.counter}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """From which chain of the system a chain of ours is entered: by its first rule, or by its last."""

    chain: str
    last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain of ours. Comments stand beside the rules, one each; as observed only the comments are known."""

    comments: tuple[str, ...]
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A set with the values of its elements, empty where it has none; both in ipset's own spelling. `options` stand
    behind the type when it is made. The elements of one with a timeout come and go by themselves and are no part of
    what it should be."""

    kind: str
    elements: Mapping[str, str] = field(default_factory=dict)
    options: str = ""

    @property
    def timeout(self) -> bool:
        return "timeout" in self.options

    @property
    def header(self) -> tuple[str, str]:
        """What cannot be changed without making the set anew."""
        return self.kind, self.options


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one part adds for one family. `hooks` are for chains of this piece; `guard` are rules of the chain that
    looks at marked packets before they leave; `notes` are told for the first family alone."""

    sets: Mapping[str, Set] = field(default_factory=dict)
    chains: Mapping[tuple[str, str], Iterable[Rule | str]] = field(default_factory=dict)
    hooks: Mapping[tuple[str, str], Hook] = field(default_factory=dict)
    guard: tuple[Rule, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


Jumps = tuple[str, ...]
"""What the rules of a chain of the system are: names of our chains, OTHERS for any number of other people's, STRANGE
for one that leads to ours in another way than this program writes it."""
OTHERS, STRANGE = "", "?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """All of ours, as it should be or as it is. `first` and `last` are the chains of ours that a chain of the system
    must enter at its beginning and its end. As observed, `jumps` has what there is, and `calls` the rules of all
    chains but ours that lead into ours, as iptables-save writes them."""

    sets: Mapping[str, Set] = field(default_factory=dict)
    chains: Mapping[Place, Chain] = field(default_factory=dict)
    first: Mapping[Place, Jumps] = field(default_factory=dict)
    last: Mapping[Place, Jumps] = field(default_factory=dict)
    jumps: Mapping[Place, Jumps] = field(default_factory=dict)
    calls: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sets or self.chains or self.calls)

    def entered(self, place: Place) -> tuple[Jumps, Jumps]:
        """The chains of ours that a chain of the system enters first and last, as it should be."""
        return self.first.get(place, ()), self.last.get(place, ())

    def elements(self, name: str) -> Mapping[str, str]:
        """Those of a set, none where there is no such set."""
        return self.sets[name].elements if name in self.sets else {}

    def addresses(self, name: str) -> frozenset[Address]:
        """The elements of the sets of this name for both families."""
        found = (address_of(key) for v in FAMILIES for key in self.elements(set_name(v, name)))
        return frozenset(filter(None, found))

    def networks(self, name: str) -> frozenset[Network]:
        """The elements of the sets of this name for both families."""
        return frozenset(net for v in FAMILIES for net in self.networks_of(set_name(v, name)))

    def networks_of(self, name: str) -> frozenset[Network]:
        """The elements of one set."""
        return frozenset(filter(None, map(network_of, self.elements(name))))


def fits(jumps: Jumps, first: Jumps, last: Jumps) -> bool:
    """Whether a chain of the system enters ours where it should."""
    return jumps in ((*first, *last), (*first, OTHERS, *last))


# --- making ----------------------------------------------------------------------------------------------------------


def chain(rules: Iterable[Rule | str]) -> Chain:
    """A chain of these rules."""
    made = tuple(rule if isinstance(rule, Rule) else Rule(rule) for rule in rules)
    return Chain(comments=tuple(rule.comment for rule in made), rules=made)


def notes_chain(notes: Mapping[str, str]) -> Chain:
    """The chain whose comments say what else there is to know."""
    comments = [
        f"{key} {value[start : start + _CHUNK]}"
        for key, value in notes.items()
        for start in range(0, len(value), _CHUNK)
    ]
    return Chain(comments=tuple(comments), rules=tuple(Rule("-j RETURN") for _ in comments))


def read_notes(chain: Chain | None) -> dict[str, str]:
    """What the comments of that chain say."""
    found: dict[str, str] = {}
    for comment in chain.comments if chain else ():
        key, _, text = comment.partition(" ")
        found[key] = found.get(key, "") + text
    return found


def set_name(family: Family, name: str) -> str:
    """A set by its name in this program."""
    return f"metaleg{family}-{name}"


def set_of_address(family: Family, letter: str, address: Address) -> str:
    """A set that stands for an address."""
    return f"metaleg{family}{letter}{_short(address.packed)}"


def set_of_key(family: Family, letter: str, key: str) -> str:
    """A set that stands for the key of networks that tenants name, 32 hexadecimal digits."""
    return f"metaleg{family}{letter}{_short(bytes.fromhex(key))}"


def behind(name: str, letter: str) -> bytes | None:
    """The bytes that such a set stands for; None for another set."""
    found = OWN_SET.fullmatch(name)
    if not found or found[1] != letter:
        return None
    try:
        return urlsafe_b64decode(found[2] + "=" * (-len(found[2]) % 4))
    except ValueError:
        return None


def key_behind(name: str, letter: str) -> str:
    """The key that such a set stands for; empty for another set."""
    found = behind(name, letter)
    return found.hex() if found is not None and len(found) == 16 else ""


def address_behind(name: str, letter: str) -> Address | None:
    """The address that such a set stands for; None for another set."""
    packed = behind(name, letter)
    return ip_address(packed) if packed is not None and len(packed) in (4, 16) else None


def _short(value: bytes) -> str:
    return urlsafe_b64encode(value).decode().rstrip("=")


def address_set(family: Family, addresses: Iterable[Address]) -> Set:
    """A set of those addresses that are of this family."""
    return Set(kind=f"hash:ip family {_INET[family]}", elements=_members(a for a in addresses if a.version == family))


def mark_map(family: Family, marks: Mapping[Address, str]) -> Set:
    """A map from addresses of this family to marks with their masks."""
    return Set(
        kind=f"hash:ip family {_INET[family]}", options="skbinfo", elements={str(a): m for a, m in marks.items()}
    )


def expiring_set(family: Family, seconds: int) -> Set:
    """A set of addresses that are forgotten after a time."""
    return Set(kind=f"hash:ip family {_INET[family]}", options=f"timeout {seconds}")


def network_set(family: Family, networks: Iterable[Network]) -> Set:
    """A set of those networks that are of this family."""
    elements = dict.fromkeys((network_text(n) for n in networks if n.version == family), "")
    return Set(kind=f"hash:net family {_INET[family]}", elements=elements)


def server_set(family: Family, servers: Mapping[str, str]) -> Set:
    """A set of addresses with protocol and port, each with a comment."""
    elements = {server: f'comment "{text}"' for server, text in servers.items()}
    return Set(kind=f"hash:ip,port family {_INET[family]}", options="comment", elements=elements)


def port_set(ports: Iterable[int]) -> Set:
    """A set of ports, whatever the protocol."""
    return Set(kind="bitmap:port range 0-65535", elements=_members(sorted(ports)))


_INET = {4: "inet", 6: "inet6"}


def _members(items: Iterable[object]) -> dict[str, str]:
    return dict.fromkeys(map(str, items), "")


# --- rules -----------------------------------------------------------------------------------------------------------


def when(name: str, side: str) -> str:
    """The packet's "src" or "dst" is in a set."""
    return f"-m set --match-set {name} {side}"


def unless(name: str, side: str) -> str:
    """The packet's "src" or "dst" is not in a set."""
    return f"-m set ! --match-set {name} {side}"


def drop(condition: str) -> Rule:
    """Drops, and counts it."""
    return Rule(f"{condition} -j DROP".strip(), "dropped")


def goto(chain: str) -> str:
    """Goes on in a chain of ours, and does not come back to this one."""
    return f"-g {CHAINS}{chain}"


def jump(chain: str) -> str:
    """Goes on in a chain of ours, and comes back."""
    return f"-j {CHAINS}{chain}"


def marked(value: int, firewall: Firewall, *, inverted: bool = False) -> str:
    """The bits of the mark that are ours have this value, or do not."""
    return f"-m mark {'! ' if inverted else ''}--mark {value:#x}/{firewall.mark_mask:#x}"


def set_mark(value: int, firewall: Firewall) -> str:
    """Sets the bits of the mark that are ours and leaves other people's alone."""
    return f"-j MARK --set-xmark {value:#x}/{firewall.mark_mask:#x}"


# --- reading back ----------------------------------------------------------------------------------------------------


def numbers(elements: Iterable[str]) -> Iterator[int]:
    """The ports that elements are."""
    return (int(key) for key in elements if key.isdecimal() and 0 < int(key) <= 0xFFFF)
