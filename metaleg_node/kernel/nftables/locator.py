"""Where our table decides what explanations tell: found in the table as it is rendered."""

from __future__ import annotations

import re

from metaleg_node.core.firewall.egress import Egress, Treatment
from metaleg_node.core.firewall.external_ip import VirtualServer
from metaleg_node.core.firewall.part import Firewall
from metaleg_node.core.model import Address, Match, Slot
from metaleg_node.kernel.elements import network_of
from metaleg_node.kernel.nftables.layout import render
from metaleg_node.kernel.nftables.parts.external_ip import element_of
from metaleg_node.kernel.nftables.table import TABLE


class TableLocator:
    """A Locator."""

    def __init__(self, firewall: Firewall) -> None:
        self._firewall = firewall
        self._table = render(firewall)

    def pod(self, address: Address) -> str:
        name = f"pods{address.version}"
        number = self._table.elements(name).get(str(address))
        chain = self._table.elements("chains").get(number or "")
        return self._with(name, str(address)) + (f" ({chain})" if chain else "")

    def destination(self, address: Address, key: str) -> str:
        version = address.version
        inside, excluded, only = f"inside{version}", f"exclude{version}_f{key}", f"only{version}_f{key}"
        if element := self._containing(excluded, address):
            return self._with(excluded, element)
        element = self._containing(inside, address)
        if not element and only in self._table.sets and self._table.elements(only):
            return self._with(only, self._containing(only, address))
        return self._asking("judge", f"@{inside}", element)

    def source(self, address: Address) -> str:
        pod = self._firewall.part(Egress).pods.get(address)
        if pod and pod.treatment is Treatment.STEER:
            return self._asking("translate_steer", "snat ip to" if address.version == 4 else "snat ip6 to")
        return self._with(f"snat{address.version}", str(address))

    def new_pod(self, address: Address) -> str:
        name = f"pod_networks{address.version}"
        return self._asking("new_pods", f"@{name}", self._containing(name, address))

    def reply(self, address: Address, match: Match) -> str:
        name = f"path_{match}{address.version}"
        return self._with(name, self._containing(name, address))

    def router(self, slot: Slot) -> str:
        chain = f"path_router_{slot}"
        for name in (name for name in self._table.sets if name.startswith("path_back_")):
            for key, verdict in self._table.elements(name).items():
                if verdict == f"goto {chain}":
                    return self._with(name, key)
        return ""

    def external(self, server: VirtualServer) -> str:
        return self._with(f"external_targets{server.address.version}", element_of(server))

    def _containing(self, name: str, address: Address) -> str:
        """The element of a set of networks that an address is in; empty where there is none."""
        for element in self._table.elements(name):
            network = network_of(element)
            if network and address in network:
                return element
        return ""

    def _with(self, name: str, element: str) -> str:
        """The first rule that asks a set, and the element."""
        return next((told for chain in self._table.chains if (told := self._asking(chain, f"@{name}", element))), "")

    def _asking(self, chain: str, what: str, element: str = "") -> str:
        """The first rule of a chain that has these words, and the element of the set that it asks."""
        rules = self._table.chains[chain].rules if chain in self._table.chains else ()
        rule = next((rule for rule in rules if re.search(rf"{what}(?!\w)", rule)), "")
        if not rule:
            return ""
        where = f"table {TABLE}, chain {chain}: {rule}"
        if not what.startswith("@"):
            return where
        if not element:
            return f"{where} (no such element)"
        value = self._table.elements(what[1:]).get(element)
        return f"{where}, element {element}{f' : {value}' if value else ''}"
