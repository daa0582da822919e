"""Where a packet filter decides what explanations tell."""

from __future__ import annotations

from typing import Protocol

from metaleg_node.core.firewall.external_ip import VirtualServer
from metaleg_node.core.model import Address, Match, Slot


class Locator(Protocol):
    """Finds the rules that hold a decision, for people who look there: the chain, the rule in it and, where that asks a
    set, the element. Each answer is empty where there is no such rule."""

    def pod(self, address: Address) -> str:
        """What becomes of an egress pod's packets."""

    def destination(self, address: Address, key: str) -> str:
        """Whether a destination counts for pods with the filter `key` (empty: none)."""

    def source(self, address: Address) -> str:
        """With which source an egress pod's packets go on."""

    def new_pod(self, address: Address) -> str:
        """That a pod is not known yet."""

    def reply(self, address: Address, match: Match) -> str:
        """That replies from an address take a return path."""

    def router(self, slot: Slot) -> str:
        """That answers go back through the router with this slot."""

    def external(self, server: VirtualServer) -> str:
        """That a LoadBalancer address is reached by the ClusterIP."""
