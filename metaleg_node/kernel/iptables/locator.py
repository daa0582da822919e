"""Where our chains decide what explanations tell: found in the chains and sets as they are rendered."""

from __future__ import annotations

from metaleg_node.core.firewall.egress import Egress, Treatment
from metaleg_node.core.firewall.external_ip import VirtualServer
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.firewall.return_paths import ReturnPaths
from metaleg_node.core.model import Address, Family, Match, Slot
from metaleg_node.kernel.elements import network_of
from metaleg_node.kernel.iptables.layout import render
from metaleg_node.kernel.iptables.parts import egress, external_ip, return_paths
from metaleg_node.kernel.iptables.ruleset import CHAINS, Place, goto, set_name

_PROGRAMS = {4: "iptables", 6: "ip6tables"}


class RulesetLocator:
    """A Locator."""

    def __init__(self, firewall: Firewall) -> None:
        self._firewall = firewall
        self._ruleset = render(firewall)

    def pod(self, address: Address) -> str:
        pod = self._firewall.part(Egress).pods.get(address)
        if pod is None:
            return ""
        match pod.treatment:
            case Treatment.STEER | Treatment.SNAT:
                table, chain, name = "nat", "JUDGE", f"slot-{pod.slot}"
            case Treatment.HOLD:
                table, chain, name = "filter", "HOLD", "held"
            case Treatment.WAIT:
                table, chain, name = "filter", "HOLD", "waiting"
            case Treatment.ELSEWHERE:
                table, chain, name = "mangle", "FORWARD", "elsewhere"
        return self._in_set(address, table, chain, set_name(address.version, name), str(address))

    def destination(self, address: Address, key: str) -> str:
        family = address.version
        inside = set_name(family, "inside")
        excluded, only = egress.filter_sets(family, key) if key else ("", "")
        name = next((name for name in (excluded, inside) if self._containing(name, address)), "")
        if not name:
            name = only if only in self._ruleset.sets else inside
        chain = "JUDGE" if name == inside else egress.filter_chain(self._firewall.part(Egress), key)
        return self._in_set(address, "nat", chain, name, self._containing(name, address))

    def source(self, address: Address) -> str:
        pod = self._firewall.part(Egress).pods.get(address)
        if pod and pod.source:
            return self._in_set(address, "nat", "SOURCE", egress.source_set(pod.source), str(address))
        return self._rule(address.version, "nat", "TRANSLATE", "-j NETMAP")

    def new_pod(self, address: Address) -> str:
        name = set_name(address.version, "pod-networks")
        return self._in_set(address, "mangle", "NEW-PODS", name, self._containing(name, address))

    def reply(self, address: Address, match: Match) -> str:
        paths = self._firewall.part(ReturnPaths).paths
        for slot, network in ((slot, network) for slot, path in paths.items() for network in path.networks):
            if address in network and match is Match.CONNTRACK:
                return self._rule(address.version, "mangle", "PATHS", return_paths.replies_of(network))
            if address in network:
                name = set_name(address.version, f"path-{slot}")
                return self._in_set(address, "mangle", "SOURCES-IN", name, self._containing(name, address))
        return ""

    def router(self, slot: Slot) -> str:
        part = self._firewall.part(ReturnPaths)
        router = part.routers[slot]
        for chain in (f"PATH-{router.path}", f"SOURCE-{router.path}"):
            if found := self._rule(router.family, "mangle", chain, goto(f"ROUTER-{slot}")):
                return found
        return ""

    def external(self, server: VirtualServer) -> str:
        return self._rule(server.address.version, "nat", "EXTERNAL-PODS", external_ip.match_of(server))

    def _containing(self, name: str, address: Address) -> str:
        """The element of a set of networks that an address is in; empty where there is none."""
        for element in self._ruleset.elements(name):
            network = network_of(element)
            if network and address in network:
                return element
        return ""

    def _in_set(self, address: Address, table: str, chain: str, name: str, element: str) -> str:
        """The first rule of a chain that asks a set, and the element."""
        rule = self._rule(address.version, table, chain, f"--match-set {name}")
        return rule and f"{rule}, element {element}" if element else rule and f"{rule} (no such element)"

    def _rule(self, family: Family, table: str, chain: str, words: str) -> str:
        """The first rule of a chain that has these words."""
        place = Place(family, table, CHAINS + chain)
        rules = self._ruleset.chains[place].rules if place in self._ruleset.chains else ()
        found = next((rule.text for rule in rules if f" {words} " in f" {rule.text} "), "")
        return f"{_PROGRAMS[place.family]} table {table}, chain {place.chain}: {found}" if found else ""
