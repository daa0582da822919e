"""Fixtures of the end-to-end tests: a lab for each scenario, and the daemons' logs beside every failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from metaleg_node.lab.plan import NODES, LabService
from tests.e2e.scenario import egress_service
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab without daemons: CNI and kube-proxy in iptables-legacy, so that a flush of nftables hits only ours."""
    with Lab(LabOptions(flavour=Flavour.IPTABLES_LEGACY, forward_drop=True)) as lab:
        yield lab


@pytest.fixture
def running(lab: Lab) -> Lab:
    """The same with one egress Service (pods on node1 and node2, gateway node2) and a daemon on every node."""
    lab.set_services(egress_service(lab))
    lab.start_daemons()
    lab.reset_seen()
    return lab


@pytest.fixture
def web(running: Lab) -> LabService:
    """The egress Service of `running`."""
    return running.services["web"]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    outcome = yield
    report = outcome.get_result()
    labs = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Lab)]
    if report.failed and labs:
        for node in NODES:
            report.sections.append((f"metaleg-node on {node.name}", labs[0].daemons[node].log()))
