"""Much trouble in little time: everything that goes wrong in weeks, several times a second, all at once.

New flows of egress pods never stop meanwhile, and the record of every packet that reached the server judges. What
somebody flushes is left out of that judgement, and happens between the rounds: until the repair, some milliseconds
later, the kernel knows nothing that could hold a packet back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from metaleg_node.lab import objects
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.plan import NODES, LabService
from tests.api import faults
from tests.e2e.api_lab import ApiLab, api_lab
from tests.e2e.interpreters import held, telling
from tests.e2e.scenario import NODE1, NODE2, NODE3, Flows, egress_service, expect, texts
from tests.lab.lab import Lab
from tests.patience import patient

ROUNDS = 3
ROUND_TROUBLES = 33
"""Each kind three times."""
GROWTH = {"threads": 0, "descriptors": 2, "blocks": 2000, "native": 1 << 19}
"""What may come to a daemon after the first round: less than 1 % of its blocks, and about as much other memory as the
connections of its watches have."""
SETTLED = patient(60.0)
"""Seconds within which all is well again after the last trouble; the longest back-off is half of it."""


class Trouble:
    """What may happen; each method is one kind of it."""

    def __init__(self, api: ApiLab, seed: int) -> None:
        self.api = api
        self.lab = api.lab
        self.chance = random.Random(seed)
        self.flows = Flows(self.lab, self.lab.services["web"].pods)
        self._deck: list[Callable[[Trouble], None]] = []

    def happen(self) -> None:
        """One kind of trouble; each comes once before any comes again."""
        if not self._deck:
            self._deck = list(_KINDS)
            self.chance.shuffle(self._deck)
        self._deck.pop()(self)
        self.go_on(300)

    def go_on(self, most: int) -> None:
        """Leaves all as it is for a while, and for no longer than it takes to begin so many flows."""
        self.flows.go_on(self.chance.randint(0, most))

    def gateway_moves(self) -> None:
        self.api.failover("web", self.chance.choice(NODES))

    def nobody_announces(self) -> None:
        self.api.failover("web", None)

    def pods_come_and_go(self) -> None:
        candidates = [self.lab.pod(NODE1, 2), self.lab.pod(NODE2, 2), self.lab.pod(NODE3, 1), self.lab.pod(NODE3, 2)]
        pods = tuple(self.chance.sample(candidates, self.chance.randint(0, 4)))
        self.lab.services["other"] = replace(self.lab.services["other"], pods=pods)
        self.api.publish()

    def node_turns_unready(self) -> None:
        self.api.server.put(objects.node(self.chance.choice(NODES), ready=False))

    def watches_break(self) -> None:
        self.api.server.break_connections()

    def history_is_lost(self) -> None:
        self.api.server.compact()
        self.api.server.break_connections()

    def api_dies_and_returns(self) -> None:
        self.api.server.down()
        self.api.failover("web", self.chance.choice(NODES))
        self.go_on(1000)
        self.api.server.up()

    def api_talks_nonsense(self) -> None:
        fault = self.chance.choice(
            [
                faults.html(200),
                faults.html(502),
                faults.cuts_connection,
                faults.truncates,
                faults.answers(500, "InternalError"),
                faults.answers(429, "TooManyRequests", headers={"Retry-After": "1"}),
                faults.answers(410, "Expired"),
                faults.streams(b"{"),
                faults.streams(),
            ]
        )
        self.api.server.inject(fault, when=lambda _: True, times=self.chance.randint(1, 12))
        self.api.server.break_connections()

    def daemon_is_killed(self) -> None:
        daemon = self.lab.daemons[self.chance.choice((NODE1, NODE3))]
        daemon.kill()
        self.go_on(300)
        daemon.start()

    def somebody_flushes(self) -> None:
        node = self.chance.choice(NODES)
        self.lab.namespace(node).run("nft", "flush", "ruleset")
        for family in (4, 6):
            self.lab.namespace(node).run("ip", f"-{family}", "rule", "flush", "proto", "201")
        assert wait_until(lambda: self.lab.daemons[node].command("plan").returncode == 0, SETTLED, pause=0.2), node.name


_KINDS: tuple[Callable[[Trouble], None], ...] = (
    Trouble.gateway_moves,
    Trouble.gateway_moves,
    Trouble.pods_come_and_go,
    Trouble.pods_come_and_go,
    Trouble.nobody_announces,
    Trouble.node_turns_unready,
    Trouble.watches_break,
    Trouble.history_is_lost,
    Trouble.api_dies_and_returns,
    Trouble.api_talks_nonsense,
    Trouble.daemon_is_killed,
)


@pytest.fixture
def api(lab: Lab, tmp_path: Path) -> Iterator[ApiLab]:
    """Daemons that follow the API; node2's can be asked what it holds."""
    with api_lab(lab, tmp_path) as api:
        other = LabService(name="other", number=1, pods=(lab.pod(NODE3, 1),), gateway=NODE1)
        api.set_services(egress_service(lab), other)
        api.start_daemons((NODE1, NODE3))
        api.start_daemons((NODE2,), telling(tmp_path))
        yield api


def settle(api: ApiLab) -> None:
    """Ends all trouble and waits until every daemon is content."""
    api.server.heal()
    api.failover("web", NODE2)
    for node in NODES:
        well = wait_until(lambda node=node: not api.lab.daemons[node].status().get("problems", ["x"]), SETTLED, 0.05)  # type: ignore[misc]
        assert well, f"{node.name}: {api.lab.daemons[node].status()['problems']}"
    for pod in api.lab.services["web"].pods:
        expect(api.lab, pod, texts(api.lab.services["web"].addresses), SETTLED)


@pytest.mark.timeout(300)
def test_weeks_of_trouble_in_a_minute_leave_no_trace(api: ApiLab, tmp_path: Path) -> None:
    lab, trouble, survivor = api.lab, Trouble(api, seed=3), api.lab.daemons[NODE2]
    sizes: list[dict[str, int]] = []
    for _ in range(ROUNDS):
        lab.reset_seen()
        with Flows(lab, lab.services["web"].pods) as trouble.flows:
            for _ in range(ROUND_TROUBLES):
                trouble.happen()
            settle(api)
        assert lab.seen() == set(lab.services["web"].addresses.values())
        assert set(trouble.flows.answers) - {"none"} == texts(lab.services["web"].addresses)
        trouble.somebody_flushes()
        sizes.append(held(tmp_path, survivor.process_id, SETTLED))

    def is_no_larger() -> bool:
        # At one moment it may be about to read what nft lists.
        sizes.append(held(tmp_path, survivor.process_id, SETTLED))
        return all(sizes[-1][name] - sizes[0][name] <= limit for name, limit in GROWTH.items())

    assert wait_until(is_no_larger, SETTLED, pause=1.0), sizes
    for node in NODES:
        done = lab.daemons[node].command("plan")
        assert done.returncode == 0, f"{node.name}: {done.stdout}"
