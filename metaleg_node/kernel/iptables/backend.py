"""The packet filter by iptables: chains whose names begin with METALEG-NODE-, and sets named metaleg4 and metaleg6.

iptables tells nobody of a change, so all of it is read back and compared: when there is a reason to look, and once a
second while somebody watches.
"""

from __future__ import annotations

import re
import time
from collections import Counter as Sums
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import metaleg_node
from metaleg_node.core.compare.diff import Damage
from metaleg_node.core.explain.locator import Locator
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import FAMILIES, Family
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.iptables import listing, tools
from metaleg_node.kernel.iptables.layout import ABOUT, also, maker, render, understand
from metaleg_node.kernel.iptables.locator import RulesetLocator
from metaleg_node.kernel.iptables.ruleset import ALWAYS_COUNTED, CHAINS, OWN_SET, RAW_SET, Ruleset, Set, read_notes
from metaleg_node.kernel.iptables.script import differ, entrances, grow, misplaced, rebuilds, rules, shrink
from metaleg_node.kernel.packet_filter import LABELS, Counter, View

_PLAIN_INTERFACE = re.compile(r"[-A-Za-z0-9_.@+]{0,14}[-A-Za-z0-9_.@]")
"""Names that iptables takes as they are; one that ends in + means all that begin so."""
_NOTHING = Ruleset()
_WATCH_SECONDS = 1.0
_SELDOM = 4
"""Of large rulesets: the time from one look to the next is this times what a look takes, where that is more."""
_NEEDED = {
    "connection tracking": ("mangle", "-m conntrack --ctstatus CONFIRMED --ctdir ORIGINAL"),
    LABELS: ("mangle", "-m connlabel --label 91 --set"),
    "kinds of addresses": ("nat", "-m addrtype --dst-type LOCAL"),
    "marks": ("mangle", "-m mark --mark 0x1/0x1 -j MARK --set-xmark 0x0/0x1"),
    "reject": ("filter", "-j REJECT --reject-with icmp-admin-prohibited"),
    "address translation": ("nat", "-j NETMAP --to 0.0.0.0/0"),
}
"""What our rules are made of, each with a table and a rule that needs it; sets are tried by making them."""
_TABLES = ("mangle", "nat", "filter")
_COUNTING = ("mangle", "filter")
"""The tables with rules that count."""


class Iptables:
    """A PacketFilter, of the network namespace that this process is in. `watch_seconds` is the time from one look of a
    watcher to the next."""

    place = "iptables chains METALEG-NODE-*"
    limits = (
        "the packet filter is iptables: next hops and the source of a connection's first packet are not checked, "
        "what others change is back after a second or two, and more is otherwise than with nftables, see iptables.md"
    )

    def __init__(self, *, watch_seconds: float = _WATCH_SECONDS) -> None:
        self._watch_seconds = watch_seconds
        self._seen: Ruleset | None = None
        self._firewall: Firewall | None = None
        self._damage: tuple[Damage, ...] = ()
        """Of what was seen: told until it is put right, whoever looks first."""
        self._rendered = _NOTHING
        """What makes what was seen; the same but for damage."""
        self._looks = 0
        """How often it was looked at or written to; odd while that is being done."""

    def observe(self) -> View:
        if self._seen is not None:
            return View(firewall=self._firewall, damage=self._damage)
        self._looks += 1
        try:
            return self._look()
        finally:
            self._looks += 1

    def _look(self) -> View:
        seen = read()
        self._firewall = understand(seen) if seen else None
        self._rendered = render(self._firewall) if self._firewall else _NOTHING
        self._damage = tuple(damage(seen, self._rendered)) if self._firewall else ()
        self._seen = seen
        return View(firewall=self._firewall, damage=self._damage)

    def put(self, firewall: Firewall | None) -> None:
        after = render(firewall) if firewall else _NOTHING
        self._looks += 1
        try:
            # What others changed since the last look is told by nothing: the difference is to what there is now.
            self._seen, before = None, read()
            had = understand(before) if before else None
            apply(before, after, also(had, firewall) if had and firewall else ())
            now = read()
            # Otherwise others changed something meanwhile, and the next look must be a real one.
            if not any(differences(now, after)):
                self._seen, self._firewall, self._rendered, self._damage = now, firewall, after, ()
        finally:
            self._looks += 1

    def present(self) -> bool:
        # Sets alone are asked for: to list an iptables table is to make it.
        try:
            return tools.has_sets(OWN_SET)
        except KernelError:
            return False

    def changed(self) -> bool:
        if self._seen is not None and _same(read(), self._seen, self._rendered):
            return False
        self._seen = None
        return True

    def forget(self) -> None:
        self._seen = None

    @contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        due = 0.0
        told: tuple[int, Ruleset | None] = (0, _NOTHING)

        def disturbed() -> bool:
            nonlocal due, told
            looks, known, ours, now = self._looks, self._seen, self._rendered, time.monotonic()
            if now < due or looks % 2:
                return False
            # Where nothing is known, others were at work while it was last written.
            found = None if known is None else read()
            took = time.monotonic() - now
            due = now + took + self._watch_seconds * max(1, took * _SELDOM)
            same = found is not None and known is not None and _same(found, known, ours)
            if self._looks != looks or same or told == (looks, found):
                return False
            told = looks, found
            return True

        yield disturbed

    def counters(self) -> Mapping[str, Counter]:
        if not self.present():
            return {}
        sums: dict[str, Sums[str]] = defaultdict(Sums, {name: Sums() for name in ALWAYS_COUNTED})
        for family in FAMILIES:
            for table in _COUNTING:
                for name, counter in listing.counted(tools.save(family, table, counters=True)):
                    sums[name].update(packets=counter.packets, size=counter.size)
        return {name: Counter(some["packets"], some["size"]) for name, some in sums.items()}

    def versions(self) -> Mapping[str, str]:
        return tools.versions()

    def locator(self, firewall: Firewall) -> Locator:
        return RulesetLocator(firewall)

    def lacking(self) -> Mapping[str, str]:
        found = {name: tools.complaint(4, table, rule) for name, (table, rule) in _NEEDED.items()}
        return {name: words for name, words in found.items() if words}

    def listing(self) -> str:
        """Of the rules, those of ours and those that lead to ours; others' belong to others."""
        sets = tools.save_sets()
        rules = (line for v in FAMILIES for line in _lines(v, listing.sets(sets)) if CHAINS in line or line[:1] == "*")
        ours = (line for line in sets if OWN_SET.fullmatch(line.split(" ", 2)[1]))
        return "".join(f"{line}\n" for line in (*rules, *ours))

    def unnameable(self, interfaces: Iterable[str]) -> frozenset[str]:
        return frozenset(name for name in interfaces if not _PLAIN_INTERFACE.fullmatch(name))


def read() -> Ruleset:
    """All that is there of ours; there are no rules without sets. Raises KernelError."""
    sets = listing.sets(tools.save_sets())
    families = [listing.Rules(family, _lines(family, sets)) for family in FAMILIES] if sets else []
    chains = {place: chain for one in families for place, chain in one.chains.items()}
    return Ruleset(
        sets=sets,
        chains=chains,
        jumps={place: jumps for one in families for place, jumps in one.jumps.items()},
        calls={place: calls for one in families for place, calls in one.calls.items()},
        notes=read_notes(chains.get(ABOUT)),
    )


def _lines(family: Family, sets: Mapping[str, Set]) -> Iterator[str]:
    """Of the tables that we use; of raw only where we do, since to list it is to make it."""
    yield from (line for table in _TABLES for line in tools.save(family, table))
    if RAW_SET in sets:
        yield from tools.save(family, "raw")


def _same(one: Ruleset, other: Ruleset, ours: Ruleset) -> bool:
    """Whether two looks differ by nothing but rules of others that are in nobody's way."""
    displaced = ({place for place in entrances(here, ours) if misplaced(place, here, ours)} for here in (one, other))
    return replace(one, jumps={}) == replace(other, jumps={}) and next(displaced) == next(displaced)


def damage(here: Ruleset, ours: Ruleset) -> Iterator[Damage]:
    """The chains and sets that are not as this program makes them for what they mean, and the places from which ours
    are entered: others changed them, or another version made them."""
    version = maker(here)
    if not version:
        yield Damage(what=Iptables.place, reason="another version of metaleg-node, or somebody, made them")
        return
    for name in differences(here, ours):
        if version == metaleg_node.__version__:
            yield Damage(what=name)
        else:
            reason = f"version {version} of metaleg-node made it, this is {metaleg_node.__version__}"
            yield Damage(what=name, reason=reason)


def differences(here: Ruleset, ours: Ruleset) -> Iterator[str]:
    """In which chains, sets and places what was observed is not as it was rendered."""
    for place in sorted({*here.chains, *ours.chains}):
        if differ(place, here, ours):
            yield f"chain {place.chain} of table {place.table}, IPv{place.family}"
    yield from (f"set {n}" for n in sorted({*here.sets, *ours.sets}) if here.sets.get(n) != ours.sets.get(n))
    for place in sorted(entrances(here, ours)):
        if misplaced(place, here, ours):
            yield f"the way from {place.chain} of table {place.table}, IPv{place.family}, into our chains"


def apply(before: Ruleset, after: Ruleset, moved: Iterable[str] = ()) -> None:
    """Makes the kernel hold `after`, given what was observed; `moved` are further elements. Raises KernelError; what is
    there then may be a part of both, which lets no packet out that neither lets out."""
    if rebuilds(before, after):
        apply(before, _NOTHING)
        before = _NOTHING
    tools.restore_sets([*grow(before, after), *moved])
    for family, script in rules(before, after).items():
        tools.restore(family, script)
    tools.restore_sets(shrink(before, after))
