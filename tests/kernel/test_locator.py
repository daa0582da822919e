"""The rules and elements that explanations name are there, in the real packet filters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from itertools import pairwise

from metaleg_node.core.explain.locator import Locator
from metaleg_node.core.firewall.egress import Egress, Treatment
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import MARKING
from metaleg_node.kernel.iptables.backend import Iptables
from metaleg_node.kernel.nftables.backend import Nftables
from tests.firewalls import EXTERNAL, PATHS, ROUTER_SLOTS, TARGETS, E, R, but
from tests.netns import Netns

WHOLE = but(PATHS, targets=TARGETS, clients=EXTERNAL.part(Egress).inside, held=True, here=True)
DESTINATIONS = {
    "10.244.7.7": ("", "inside"),
    "fd00:10:96::1": ("", "inside"),
    "198.51.100.10": ("", "no element"),
    "10.0.0.9": (R, "exclude"),
    "10.9.9.9": (R, "exclude"),
    "8.8.8.8": (R, "only"),
    "1.1.1.1": (R, "no element"),
    "192.168.2.7": (E, "exclude"),
}


def questions(ask: Locator, firewall: Firewall) -> Iterator[tuple[str, str]]:
    """What is asked, and where it is said to be."""
    for address, pod in firewall.part(Egress).pods.items():
        yield f"pod {address}", ask.pod(address)
        if pod.treatment in (Treatment.STEER, Treatment.SNAT):
            yield f"source {address}", ask.source(address)
    for text, (key, _) in DESTINATIONS.items():
        yield f"destination {text}", ask.destination(ip_address(text), key)
    for match in MARKING:
        for text in ("198.51.100.77", "192.0.2.130", "2001:db8:51::7"):
            yield f"{match} {text}", ask.reply(ip_address(text), match)
    for server in TARGETS:
        yield f"external {server}", ask.external(server)
    yield "new", ask.new_pod(ip_address("10.244.1.99"))


TABLE = re.compile(
    r"table inet metaleg_node, chain (?P<chain>\w+): (?P<rule>[^,(]+?)"
    r"(?P<none> \(no such element\))?(, element (?P<element>.+?)( : (?P<value>.+?))?"
    r"( \((?P<behind>goto \w+)\))?)?"
)
XTABLES = re.compile(
    r"(?P<program>ip6?tables) table (?P<table>\w+), chain (?P<chain>[-\w]+): (?P<rule>.+?)"
    r"(?P<none> \(no such element\))?(, element (?P<element>\S+))?"
)


def test_nft_lists_the_rules_and_has_the_elements(netns: Netns) -> None:
    firewall = but(WHOLE, routers=ROUTER_SLOTS)
    with netns.inside():
        ours = Nftables()
        ours.put(firewall)
        locator = ours.locator(firewall)
        told = dict(questions(locator, firewall)) | {f"router {slot}": locator.router(slot) for slot in ROUTER_SLOTS}
        absent = [name for name, where in told.items() if not where]
        assert absent == ["router 8", "router 11"], "one is not there, the other is the same machine as 10"
        for name, where in told.items():
            if where:
                _is_in_nft(netns, name, where)
    _destinations(told, {"inside": "@inside", "exclude": "@exclude", "only": "@only", "no element": "(no such element"})


def _is_in_nft(netns: Netns, name: str, where: str) -> None:
    found = TABLE.fullmatch(where)
    assert found, f"{name}: {where}"
    listed = netns.run("nft", "list", "chain", "inet", "metaleg_node", found["chain"]).stdout
    (asked,) = re.findall(r"@\w+", found["rule"]) or [""]
    assert (asked or found["rule"]) in listed, f"{name}: {where}"
    if found["element"]:
        # nft 1.0.6 does not find a network that it has as an interval, but each address of it.
        element = f"{{ {found['element'].partition('/')[0]} }}"
        got = netns.run("nft", "get", "element", "inet", "metaleg_node", asked[1:], element).stdout
        last = (found["value"] or "").rsplit(maxsplit=1)
        assert all(word in got for word in last), f"{name}: {where}: {got}"
        if found["behind"]:
            got = netns.run("nft", "get", "element", "inet", "metaleg_node", "chains", f"{{ {found['value']} }}").stdout
            assert f"{found['value']} : {found['behind']}" in got
    else:
        assert found["none"] or not asked, f"{name}: {where}"


def test_iptables_lists_the_rules_and_ipset_has_the_elements(netns: Netns) -> None:
    firewall = but(WHOLE, routers=ROUTER_SLOTS)
    with netns.inside():
        ours = Iptables()
        ours.put(firewall)
        locator = ours.locator(firewall)
        told = dict(questions(locator, firewall)) | {f"router {slot}": locator.router(slot) for slot in ROUTER_SLOTS}
        absent = [name for name, where in told.items() if not where]
        assert absent == ["router 8", "router 11"], "one is not there, the other is the same machine as 10"
        for name, where in told.items():
            if where:
                _is_in_iptables(netns, name, where)
    named = {"inside": "-inside ", "exclude": "metaleg4x", "only": "metaleg4o", "no element": "(no such element"}
    _destinations(told, named)


def _is_in_iptables(netns: Netns, name: str, where: str) -> None:
    found = XTABLES.fullmatch(where)
    assert found, f"{name}: {where}"
    listed = netns.run(f"{found['program']}-legacy", "-t", found["table"], "-S", found["chain"]).stdout
    words = found["rule"].split()
    # Of a pod with a filter, the set of such pods comes first.
    asked = next((set_ for word, set_ in reversed([*pairwise(words)]) if word == "--match-set"), "")
    known = asked or next(word for word in words if re.search(r"[.:]|NETMAP|ROUTER", word))
    assert known in listed, f"{name}: {where}"
    if found["element"]:
        netns.run("ipset", "test", asked, found["element"])
    else:
        # A virtual server has a rule of its own; its set is of the pods that may use it.
        assert found["none"] or not asked or "--dport" in words, f"{name}: {where}"


def _destinations(told: Mapping[str, str], words: Mapping[str, str]) -> None:
    for text, (_, where) in DESTINATIONS.items():
        assert words[where] in told[f"destination {text}"], told[f"destination {text}"]
