"""The packet filter by nftables: one table; what packets meet changes in one transaction.

Only `table inet metaleg_node` is ever read or written. It is remembered from one look to the next, since listing ten
thousand elements costs more than all the rest; the ruleset's generation tells when a look must be a real one.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import metaleg_node
from metaleg_node.core.compare.diff import Damage
from metaleg_node.core.explain.locator import Locator
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.kernel import process
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from metaleg_node.kernel.nftables import probe
from metaleg_node.kernel.nftables.layout import Renderer, also, maker, understand
from metaleg_node.kernel.nftables.listing import parse
from metaleg_node.kernel.nftables.locator import TableLocator
from metaleg_node.kernel.nftables.nft import Nft, by_program
from metaleg_node.kernel.nftables.script import differ, transactions
from metaleg_node.kernel.nftables.table import FAMILY, NAME, TABLE, Table
from metaleg_node.kernel.nftables.watch import Watch, generation
from metaleg_node.kernel.packet_filter import Counter, View

_PLAIN_INTERFACE = re.compile(r"[-A-Za-z0-9_.@+]{1,15}")
"""Names that nft takes as they are; Linux allows all but blanks, slashes and colons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was found: the table (None: there is none) and, as far as it can be understood, what it means."""

    table: Table | None
    firewall: Firewall | None


ABSENT = Observed(table=None, firewall=None)


class Nftables:
    """A PacketFilter, of the network namespace that this process is in."""

    place = f"table {TABLE}"
    limits = ""

    def __init__(self) -> None:
        self._seen: Observed | None = None
        self._damage: tuple[Damage, ...] = ()
        """Of what was seen: told until it is put right, whoever looks first."""
        self._generation: int | None = None
        self._busy = False
        self._renderer = Renderer()
        self._nft = Nft()
        # Kept open: to close one after a delete takes until the kernel is done with that.
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        weakref.finalize(self, self._netlink.close)

    def observe(self) -> View:
        if self._seen is not None:
            return View(firewall=self._seen.firewall, damage=self._damage)
        with self._at_work():
            before = self._now()
            seen = observe()
            self._generation, self._seen, self._damage = before, seen, damage(seen, self._renderer)
        return View(firewall=seen.firewall, damage=self._damage)

    def put(self, firewall: Firewall | None) -> None:
        if self._seen is None:
            self.observe()
        assert self._seen is not None
        with self._at_work():
            seen, known, self._seen = self._seen, self._generation, None
            before = self._now()
            written, committed = apply(seen, firewall, self._nft.complaint, self._renderer)
            # When somebody committed since the last look, or between our own commit and now, our idea of the table may
            # be wrong: the next look must be a real one.
            if before == known and self._now() == before + committed:
                self._generation, self._seen, self._damage = before + committed, written, ()

    def present(self) -> bool:
        try:
            return self.observe().firewall is not None
        except KernelError:
            return False

    def changed(self) -> bool:
        if self._seen is not None and self._generation == self._now():
            return False
        self._seen = None
        return True

    def forget(self) -> None:
        self._seen = None

    @contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        with NetlinkSocket(NETLINK_NETFILTER) as netlink:
            yield Watch(netlink, known=self._known, busy=lambda: self._busy, same=self._still_same).disturbed

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _now(self) -> int:
        self._netlink.open()
        return generation(self._netlink)

    def _known(self) -> int | None:
        """Called in another thread."""
        return self._generation if self._seen is not None else None

    def _still_same(self, known: int, now: int) -> None:
        """Called in another thread. If this one looks or writes meanwhile, the number is one that has passed, and the
        next look is a real one."""
        if self._generation == known:
            self._generation = now

    def counters(self) -> Mapping[str, Counter]:
        return counters()

    def versions(self) -> Mapping[str, str]:
        return {"nft": version()}

    def locator(self, firewall: Firewall) -> Locator:
        return TableLocator(firewall)

    def lacking(self) -> Mapping[str, str]:
        return probe.lacking()

    def listing(self) -> str:
        done = process.run(["nft", "list", "table", FAMILY, NAME])
        return done.stdout if not done.returncode else _complaint(done.stderr)

    def unnameable(self, interfaces: Iterable[str]) -> frozenset[str]:
        return frozenset(name for name in interfaces if not _PLAIN_INTERFACE.fullmatch(name))


def observe() -> Observed:
    """Reads our table. Raises KernelError."""
    done = process.run(["nft", "-j", "list", "table", FAMILY, NAME])
    if done.returncode:
        if "No such file or directory" in done.stderr:
            return ABSENT
        raise KernelError(f"cannot list table {TABLE}: {_complaint(done.stderr)}")
    try:
        table = parse(json.loads(done.stdout)["nftables"])
    except ValueError:
        # nft 1.0.6 prints rubbish for the flags of a table, which somebody else must have set.
        table = Table(sets={}, chains={}, strange=frozenset({"table that nft cannot list as JSON"}))
    return Observed(table=table, firewall=understand(table))


def damage(observed: Observed, renderer: Renderer | None = None) -> tuple[Damage, ...]:
    """The chains, sets and counters that are not as this program makes them for what the table means: others changed
    them, or another version made them."""
    if observed.table is None or observed.firewall is None:
        return ()
    here = observed.table
    version = maker(here)
    if not version:
        return (Damage(what=f"table {TABLE}", reason="another version of metaleg-node, or somebody, made it"),)
    ours = (renderer or Renderer()).render(observed.firewall)
    chains = sorted(n for n in {*here.chains, *ours.chains} if differ(here.chains.get(n), ours.chains.get(n)))
    sets = sorted(n for n in {*here.sets, *ours.sets} if here.sets.get(n) != ours.sets.get(n))
    names = (
        *(f"chain {n}" for n in chains),
        *(f"set {n}" for n in sets),
        *(f"counter {n}" for n in sorted(here.counters ^ ours.counters)),
        *sorted(here.strange),
    )
    if version != metaleg_node.__version__:
        reason = f"version {version} of metaleg-node made it, this is {metaleg_node.__version__}"
        return tuple(Damage(what=name, reason=reason) for name in names)
    return tuple(Damage(what=name) for name in names)


def apply(
    observed: Observed,
    desired: Firewall | None,
    carry_out: Callable[[str], str | None] = by_program,
    renderer: Renderer | None = None,
) -> tuple[Observed, int]:
    """Makes the kernel hold `desired`, given what was observed; see `transactions`. `carry_out` is given scripts and
    returns what is said against them.

    Returns what the kernel holds now, and how many transactions there were. Raises KernelError; what packets meet is
    then unchanged, unless the sets that were used until now could not be taken away.
    """
    after = (renderer or Renderer()).render(desired) if desired else None
    scripts = transactions(observed.table, after)
    moved = "".join(f"{line}\n" for line in also(observed.firewall, desired)) if observed.firewall and desired else ""
    for number, script in enumerate(scripts):
        complaint = carry_out(script + ("" if number else moved))
        if complaint is not None:
            raise KernelError(f"nft refused the change of table {TABLE}: {_complaint(complaint)}")
    return Observed(table=after, firewall=desired), len(scripts)


def counters() -> dict[str, Counter]:
    """Each of our counters; empty while there is no table. Raises KernelError."""
    done = process.run(["nft", "-j", "list", "counters", "table", FAMILY, NAME])
    if done.returncode:
        return {}
    found = (item.get("counter") for item in json.loads(done.stdout)["nftables"])
    return {
        c["name"]: Counter(c["packets"], c["bytes"])
        for c in found
        if c and c["table"] == NAME and c["family"] == FAMILY
    }


def version() -> str:
    """nft's. Raises KernelError."""
    told = process.run(["nft", "--version"]).stdout
    # nftables v1.0.6 (Lester Gooch #5)
    found = re.search(r"\bv(\d\S*)", told)
    if not found:
        raise KernelError(f"`nft --version` tells no version: {told.strip() or 'nothing at all'}")
    return found[1]


def _complaint(stderr: str) -> str:
    """The first complaint of nft, with the line it points at, or what capability is missing."""
    text = " ".join(line.strip() for line in stderr.strip().splitlines()[:2])[:500]
    if "Operation not permitted" in text:
        return "the capability CAP_NET_ADMIN is missing: run as root, or grant it to the service"
    return text or "no reason was given"
