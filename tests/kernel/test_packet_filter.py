"""What every packet filter must do, the fake one of other tests included: the same suite for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from metaleg_node.kernel.iptables.backend import Iptables
from metaleg_node.kernel.nftables.backend import Nftables
from metaleg_node.kernel.packet_filter import Counter, PacketFilter
from tests.fake_kernel import FakePacketFilter
from tests.firewalls import FIREWALLS, FULL, but
from tests.netns import Netns


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A packet filter, and what somebody else may do to it and beside it."""

    ours: PacketFilter
    damage: Callable[[], object]
    remove: Callable[[], object]
    beside: Callable[[], object]


@pytest.fixture(params=["nftables", "iptables", "fake"])
def case(request: pytest.FixtureRequest, netns: Netns) -> Iterator[Case]:
    with netns.inside():
        yield _case(request.param, netns)


def _case(name: str, netns: Netns) -> Case:
    if name == "fake":
        fake = FakePacketFilter()
        return Case(ours=fake, damage=fake.be_damaged, remove=fake.be_removed, beside=lambda: None)
    if name == "iptables":
        return Case(
            ours=Iptables(watch_seconds=0),
            damage=lambda: netns.run("iptables-legacy", "-t", "mangle", "-F", "METALEG-NODE-GUARD"),
            remove=lambda: netns.run("sh", "-c", REMOVE_IPTABLES),
            beside=lambda: netns.run("iptables-legacy", "-A", "FORWARD", "-s", "192.0.2.77", "-j", "ACCEPT"),
        )
    return Case(
        ours=Nftables(),
        damage=lambda: netns.run("nft", "flush chain inet metaleg_node guard"),
        remove=lambda: netns.run("nft", "flush ruleset"),
        beside=lambda: netns.run("nft", "add table inet other"),
    )


REMOVE_IPTABLES = """\
for program in iptables-legacy ip6tables-legacy; do
    for table in raw filter mangle nat; do $program -t $table -F && $program -t $table -X; done
done
ipset destroy
"""


@pytest.mark.parametrize("name", FIREWALLS)
def test_what_is_put_is_what_is_observed(case: Case, name: str) -> None:
    case.ours.put(FIREWALLS[name])
    for _ in range(2):
        view = case.ours.observe()
        assert (view.firewall, view.damage) == (FIREWALLS[name], ())
        case.ours.forget()


def test_nothing_is_there_before_and_after(case: Case) -> None:
    assert case.ours.observe().firewall is None
    assert case.ours.counters() == {}
    case.ours.put(FULL)
    case.ours.put(None)
    case.ours.forget()
    assert case.ours.observe().firewall is None


def test_putting_what_is_there_is_fine(case: Case) -> None:
    for _ in range(2):
        case.ours.put(FULL)
        assert not case.ours.changed()
    case.ours.put(None)
    case.ours.put(None)


def test_a_look_is_believed_until_something_changes(case: Case) -> None:
    case.ours.put(FULL)
    case.ours.observe()
    assert not case.ours.changed()
    case.beside()
    case.ours.changed()
    assert case.ours.observe().firewall == FULL
    assert not case.ours.changed()
    case.remove()
    assert case.ours.changed()
    assert case.ours.observe().firewall is None


def test_damage_is_seen_told_and_put_right_by_putting_the_same_again(case: Case) -> None:
    case.ours.put(FULL)
    case.damage()
    assert case.ours.changed()
    view = case.ours.observe()
    assert view.damage
    assert all(one.what and one.reason == "somebody changed it" for one in view.damage)
    assert case.ours.present()
    assert case.ours.observe() == view, "until it is put right, whoever looked first"
    case.ours.put(FULL)
    assert case.ours.observe().damage == ()
    case.ours.forget()
    assert case.ours.observe().damage == ()


def test_a_change_that_others_made_before_ours_does_not_stay(case: Case) -> None:
    case.ours.put(FULL)
    case.ours.observe()
    case.remove()
    case.ours.changed()
    case.ours.put(but(FULL, hold="drop"))
    case.ours.forget()
    assert case.ours.observe().firewall == but(FULL, hold="drop")


def test_what_others_may_have_changed_is_told_once(case: Case) -> None:
    case.ours.put(FULL)
    with case.ours.watched() as disturbed:
        assert not disturbed()
        case.beside()
        assert not disturbed()
        case.damage()
        assert [disturbed(), disturbed()] == [True, False]
        assert case.ours.changed()
        case.ours.observe()
        case.ours.put(FULL)
        assert not disturbed()
        case.remove()
        assert disturbed()


def test_who_knows_nothing_of_what_was_written_is_told_to_look(case: Case) -> None:
    """As after others were at work in the same moment: without a look it would stay as it is."""
    case.ours.put(FULL)
    with case.ours.watched() as disturbed:
        assert not disturbed()
        case.ours.forget()
        assert [disturbed(), disturbed()] == [True, False]
        case.ours.observe()
        assert not disturbed()


def test_counters_begin_at_nothing(case: Case) -> None:
    case.ours.put(FULL)
    assert case.ours.counters() == dict.fromkeys(("steered", "translated", "held", "dropped", "unknown"), Counter(0, 0))


def test_interfaces_that_cannot_be_named_are_told(case: Case) -> None:
    assert case.ours.unnameable(["eth0", "a b", 'x"y', "bond0.100"]) == {"a b", 'x"y'}


def test_people_know_it_by_a_name(case: Case) -> None:
    assert case.ours.place
