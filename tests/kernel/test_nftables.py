"""The nftables backend on the real kernel: what is written is what is read, and only our table is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import metaleg_node
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import NodeName, Slot
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.nftables import backend as nftables
from metaleg_node.kernel.nftables.layout import Renderer, render
from metaleg_node.kernel.nftables.parts import egress
from metaleg_node.kernel.nftables.script import transactions
from tests.firewalls import FIREWALLS, FULL, STEER, but, flat
from tests.netns import Netns
from tests.property.test_convergence import sound_states

TABLE = "inet metaleg_node"
FOREIGN = """\
table inet foreign {
    set friends { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
    counter seen { packets 0 bytes 0 }
    chain metaleg_node {
        type filter hook prerouting priority dstnat + 10; policy accept;
        ip saddr @friends counter name "seen" comment "not ours"
    }
}
table ip metaleg_node {
    map pods4 { type ipv4_addr : verdict; elements = { 10.244.1.2 : drop } }
    chain prerouting { ip saddr vmap @pods4; }
}
"""


@pytest.fixture
def here(netns: Netns) -> Iterator[Netns]:
    """The test itself is in the namespace."""
    with netns.inside():
        yield netns


def put(firewall: Firewall | None) -> int:
    """One apply from what is there; tells whether there was a transaction."""
    return nftables.apply(nftables.observe(), firewall)[1]


def assert_holds(firewall: Firewall) -> None:
    seen = nftables.observe()
    assert seen.firewall == firewall
    assert nftables.damage(seen) == ()
    assert transactions(seen.table, render(firewall)) == ()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", FIREWALLS)
def test_what_is_written_is_what_is_read(name: str) -> None:
    assert put(FIREWALLS[name])
    assert_holds(FIREWALLS[name])


@pytest.mark.parametrize("name", FIREWALLS)
def test_a_second_apply_makes_no_transaction(here: Netns, name: str) -> None:
    put(FIREWALLS[name])
    before = here.run("nft", "-a", "list", "ruleset").stdout
    assert not put(FIREWALLS[name])
    assert here.run("nft", "-a", "list", "ruleset").stdout == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("first", FIREWALLS)
def test_any_firewall_turns_into_any_other_and_back(first: str) -> None:
    names = list(FIREWALLS)
    put(FIREWALLS[first])
    for second in names[names.index(first) + 1 :]:
        for name in (second, first):
            put(FIREWALLS[name])
            assert_holds(FIREWALLS[name])


@pytest.mark.usefixtures("here")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(sound_states().map(lambda state: state.firewall), min_size=1, max_size=3))
def test_any_walk_through_firewalls_ends_where_it_should(walk: list[Firewall | None]) -> None:
    for firewall in walk:
        put(firewall)
        seen = nftables.observe()
        assert seen.firewall == firewall
        assert nftables.damage(seen) == ()


@pytest.mark.usefixtures("here")
def test_what_apply_returns_is_as_good_as_a_look() -> None:
    known = nftables.ABSENT
    for firewall in FIREWALLS.values():
        known, committed = nftables.apply(known, firewall)
        assert committed
        assert_holds(firewall)


@pytest.mark.usefixtures("here")
def test_nothing_is_observed_where_there_is_no_table() -> None:
    assert nftables.observe() == nftables.ABSENT
    assert nftables.damage(nftables.ABSENT) == ()
    assert nftables.counters() == {}


def test_removing_takes_the_table_away_and_twice_is_fine(here: Netns) -> None:
    put(FULL)
    assert put(None)
    assert "metaleg_node" not in here.run("nft", "list", "tables").stdout
    assert not put(None)


def test_other_tables_stay_byte_identical(here: Netns) -> None:
    here.run("nft", "-f", "-", stdin=FOREIGN)
    before = here.run("nft", "-a", "list", "ruleset").stdout
    for firewall in (*FIREWALLS.values(), None):
        put(firewall)
        tables = here.run("nft", "-a", "list", "ruleset").stdout.partition(f"table {TABLE}")[0]
        assert tables == before


@pytest.mark.usefixtures("here")
def test_counters_are_read() -> None:
    put(FULL)
    assert nftables.counters() == dict.fromkeys(("steered", "translated", "held", "dropped", "unknown"), (0, 0))


@pytest.mark.usefixtures("here")
def test_a_refused_change_leaves_everything_and_names_the_reason() -> None:
    put(FULL)
    wrong = but(FULL, pods={**flat(FULL).pods, ip_address("10.244.1.77"): dataclasses.replace(STEER, filter="gone")})
    with pytest.raises(KernelError, match=r"nft refused the change of table inet metaleg_node: /dev/stdin:\d+"):
        put(wrong)
    assert_holds(FULL)


HOSTILE = {
    **{
        f"interface {name}": but(FULL, node_interfaces=frozenset({name}))
        for name in ('a"b', "eth*", "a;b", "a\nb", "$x", "a\\b")
    },
    "zone of an address": but(FULL, sources=frozenset({IPv6Address("2001:db8::1%x }; flush ruleset")})),
    "zone of a network": but(FULL, inside=frozenset({IPv6Network("2001:db8::%x }\nflush ruleset\n/64")})),
    "node name": but(FULL, gateways={Slot(1): NodeName('x"; flush ruleset; #')}),
    "line in a node name": but(FULL, gateways={Slot(1): NodeName("x\nflush ruleset")}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_text_that_means_something_to_nft_does_not_get_there(here: Netns, name: str) -> None:
    here.run("nft", "-f", "-", stdin=FOREIGN)
    before = here.run("nft", "list", "ruleset").stdout
    with pytest.raises(KernelError, match="is not passed to nft"):
        put(HOSTILE[name])
    assert here.run("nft", "list", "ruleset").stdout == before


@pytest.mark.usefixtures("here")
def test_chains_that_want_one_number_get_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "_wanted_number", lambda _: 0x6DFFFFFF)
    renderer = Renderer()
    for wanted in (FULL, *FIREWALLS.values()):
        nftables.apply(nftables.observe(), wanted, renderer=renderer)
        assert_holds(wanted)
        numbers = render(wanted).elements("chains")
        assert len(set(numbers.values())) == len(numbers)


# --- what others do to our table -------------------------------------------------------------------------------------


def _used(chain: str) -> str:
    """Adds a chain, with a number that an element has."""
    lines = (
        f"add chain {{t}} {chain}",
        f"add element {{t}} chains {{{{ 6d00:1 : goto {chain} }}}}",
        "add element {t} pods4 {{ 10.244.1.99 : 6d00:1 }}",
    )
    return "\n".join(lines)


NUMBERS = {str(verdict).partition(" ")[2]: key for key, verdict in render(FULL).elements("chains").items()}
"""Of the chains that packets are sent to by a pod's address."""
FOREIGN_CHANGES = {
    "rule added": "add rule {t} prerouting counter accept",
    "rule inserted in front": "insert rule {t} judge accept",
    "rule with a long comment added": 'add rule {t} steer_1 counter comment "' + "a b" * 40 + '"',
    "rules with long comments added": "\n".join(
        f'add rule {{t}} {chain} counter comment "x {"y" * 120}"'
        for chain in ("snat_2", "snat_2_f{E}")
        for _ in range(5)
    ),
    "rules with nothing left of a note": 'flush chain {t} steer_1\nadd rule {t} steer_1 drop comment "x \'$;{{"',
    "chain flushed": "flush chain {t} guard",
    "note flushed": "flush chain {t} prerouting",
    "pod chain flushed": "flush chain {t} steer_1",
    "element added": "add element {t} pods4 {{ 10.244.1.99 : {n[hold]} }}",
    "element with a number that no chain has": "add element {t} pods4 {{ 10.244.1.99 : 6d00:1 }}",
    "element with a number like none of ours": "add element {t} pods4 {{ 10.244.1.99 : 1:1 }}",
    "element with another verdict": "add element {t} chains {{ 6d00:1 : drop }}",
    "element with a jump": "add element {t} chains {{ 6d00:1 : jump judge }}",
    "number of another chain": (
        "delete element {t} chains {{ {n[hold]} }}\nadd element {t} chains {{ {n[hold]} : goto stray }}"
    ),
    "element changed": "delete element {t} pods4 {{ 10.244.1.2 }}\nadd element {t} pods4 {{ 10.244.1.2 : {n[hold]} }}",
    "element deleted": "delete element {t} pods4 {{ 10.244.1.2 }}",
    "element with a comment": 'add element {t} sources4 {{ 192.0.2.99 comment "mine" }}',
    "map element with a comment": 'add element {t} pods4 {{ 10.244.1.99 comment "mine" : {n[hold]} }}',
    "element for a mark": "add element {t} guard_marks {{ 0x07000000 : goto guard_steer }}",
    "element for an interface": 'add element {t} node_interfaces {{ "dummy7" }}',
    "source address changed": (
        "delete element {t} snat4 {{ 10.244.1.5 }}\nadd element {t} snat4 {{ 10.244.1.5 : 203.0.113.9 }}"
    ),
    "source address deleted": "delete element {t} snat4 {{ 10.244.1.5 }}",
    "source address of a steered pod": "add element {t} snat4 {{ 10.244.1.2 : 203.0.113.9 }}",
    "network added": "add element {t} inside4 {{ 203.0.113.0/24 }}",
    "range added": "add element {t} inside4 {{ 203.0.113.5-203.0.113.77 }}",
    "network deleted": "delete element {t} inside4 {{ 10.96.0.0/12 }}",
    "network of a filter deleted": "delete element {t} exclude4_f{E} {{ 192.168.0.0/24 }}",
    "set flushed": "flush set {t} inside4",
    "map flushed": "flush map {t} pods4",
    "gateway unknown": "delete element {t} guard_marks {{ 0x01000000 }}",
    "set added": "add set {t} more {{ type ipv4_addr; }}\nadd element {t} more {{ 10.0.0.1 }}",
    "map added": "add map {t} more {{ type ipv4_addr : ipv4_addr; }}\nadd element {t} more {{ 10.0.0.1 : 10.0.0.2 }}",
    "concatenated set added": "add set {t} more {{ type ipv4_addr . inet_service; flags interval; }}",
    "timeout set added": "add set {t} more {{ type ipv4_addr; flags timeout; }}",
    "quota added": "add quota {t} much {{ over 25 mbytes }}",
    "limit added": "add limit {t} much {{ rate 400/minute }}",
    "ct timeout added": "add ct timeout {t} much {{ protocol tcp; policy = {{ established : 100 }}; }}",
    "counter added": "add counter {t} more",
    "chain added": "add chain {t} more\nadd rule {t} more counter",
    "chain added and used": _used("more"),
    "chain that looks like ours": _used("steer_99"),
    "chain with too large a slot": _used("steer_999"),
    "chain without a slot": _used("steer"),
    "chain of an unknown filter": _used("hold_fabc"),
    "filter chain added": "add chain {t} filter_fabc",
    "base chain added": "add chain {t} more {{ type filter hook forward priority 0; policy drop; }}",
    "policy changed": "add chain {t} prerouting {{ policy drop; }}",
    "table flushed": "flush table {t}",
    "everything flushed": "flush ruleset",
    "table emptied": "delete table {t}\nadd table {t}",
    "hook priority changed": (
        "delete table {t}\nadd table {t}\nadd chain {t} guard {{ type filter hook postrouting priority 5; }}"
    ),
    "counter deleted": "delete table {t}\nadd table {t}\nadd counter {t} steered",
    "set of another type": "delete table {t}\nadd table {t}\nadd set {t} sources4 {{ type inet_service; }}",
    "table asleep": "add table {t} {{ flags dormant; }}",
}


@pytest.mark.parametrize("change", FOREIGN_CHANGES)
def test_what_others_change_is_seen_and_one_apply_repairs_it(here: Netns, change: str) -> None:
    put(FULL)
    key = next(key for key, value in flat(FULL).filters.items() if not value.only)
    here.run("nft", "-f", "-", stdin=FOREIGN_CHANGES[change].format(t=TABLE, E=key, n=NUMBERS) + "\n")
    seen = nftables.observe()
    harm = nftables.damage(seen)
    assert harm or seen.firewall != FULL, "the change goes unnoticed"
    assert put(FULL)
    assert_holds(FULL)


def test_what_is_new_comes_before_and_what_is_old_goes_after_what_packets_meet() -> None:
    without, restricted = render(but(FULL, filters={}, pods={})), render(FULL)
    new, changed = transactions(without, restricted)
    assert "add rule inet metaleg_node steer_1 " in new
    assert "add element inet metaleg_node exclude4_f" in new
    assert "add element inet metaleg_node pods4 " not in new
    assert "add element inet metaleg_node pods4 " in changed
    assert "add rule" not in changed
    changed, gone = transactions(restricted, without)
    assert "delete element inet metaleg_node pods4 " in changed
    assert "delete chain inet metaleg_node steer_1\n" in gone
    assert {line.split()[0] for line in gone.splitlines()} == {"flush", "delete"}


@pytest.mark.usefixtures("here")
def test_after_an_upgrade_our_own_new_text_is_nobody_elses_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(metaleg_node, "__version__", "0.0.9")
        put(FULL)
    found = nftables.damage(nftables.observe())
    assert [one.what for one in found] == ["chain about"]
    assert found[0].reason == f"version 0.0.9 of metaleg-node made it, this is {metaleg_node.__version__}"
    assert put(FULL)
    assert_holds(FULL)


def test_a_table_that_does_not_say_who_made_it_is_made_anew(here: Netns) -> None:
    put(FULL)
    here.run("nft", f"flush chain {TABLE} about")
    (found,) = nftables.damage(nftables.observe())
    assert found.reason == "another version of metaleg-node, or somebody, made it"
    assert put(FULL)
    assert_holds(FULL)


@pytest.mark.parametrize("change", FOREIGN_CHANGES)
def test_a_damaged_table_can_be_removed(here: Netns, change: str) -> None:
    put(FULL)
    key = next(key for key, value in flat(FULL).filters.items() if not value.only)
    here.run("nft", "-f", "-", stdin=FOREIGN_CHANGES[change].format(t=TABLE, E=key, n=NUMBERS) + "\n")
    put(None)
    assert nftables.observe() == nftables.ABSENT


def test_its_version_is_what_nft_tells(inside: Netns) -> None:
    (word, version) = inside.run("nft", "--version").stdout.split()[:2]
    assert (word, version) == ("nftables", f"v{nftables.Nftables().versions()['nft']}")
