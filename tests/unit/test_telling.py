"""What the service tells of itself when it cannot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from metaleg_node.configuration.options import Options
from metaleg_node.core.model import NodeName
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon.cluster_source import ClusterSource
from metaleg_node.daemon.metrics import Metrics
from metaleg_node.daemon.notify import Notifier
from metaleg_node.daemon.telling import Facts, Teller
from tests.unit.builders import config


def test_a_status_file_that_cannot_be_written_is_told_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = config('[cluster]\nstate_file = "/nowhere"')
    options = Options(config_file=tmp_path / "config.toml", runtime_dir=tmp_path / "run", state_dir=tmp_path)
    source = ClusterSource(settings, tmp_path, lambda: None)
    teller = Teller(options, Metrics(version="0", traffic=dict), Notifier({}))
    facts = Facts(config=settings, node=NodeName("a"), plan=None, outcome=None, complete=False)
    (tmp_path / "run").touch()
    for _ in range(3):
        teller.publish(facts, source)
    assert caplog.text.count("cannot write") == 1
    (tmp_path / "run").unlink()
    for _ in range(2):
        teller.publish(facts, source)
    assert caplog.text.count("solved: cannot write") == 1
    assert (tmp_path / "run" / "status.json").exists()


def test_the_log_level_of_a_problem_is_its_severity(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    settings = config('[cluster]\nstate_file = "/nowhere"')
    options = Options(config_file=tmp_path / "config.toml", runtime_dir=tmp_path / "run", state_dir=tmp_path)
    teller = Teller(options, Metrics(version="0", traffic=dict), Notifier({}))
    teller.problems_of["test"] = tuple(
        Problem(code=code, text=code) for code in (Code.NO_EFFECT, Code.NO_ADDRESS, Code.KERNEL)
    )
    facts = Facts(config=settings, node=NodeName("a"), plan=None, outcome=None, complete=False)
    teller.publish(facts, ClusterSource(settings, tmp_path, lambda: None))
    told = {record.message.partition(" ")[0]: record.levelname for record in caplog.records}
    assert told == {"no-effect": "INFO", "no-address": "WARNING", "kernel": "ERROR"}


def test_what_happens_meanwhile_is_told_together_when_the_pause_is_over(tmp_path: Path) -> None:
    settings = config('[cluster]\nstate_file = "/nowhere"')
    options = Options(config_file=tmp_path / "config.toml", runtime_dir=tmp_path / "run", state_dir=tmp_path)
    source = ClusterSource(settings, tmp_path, lambda: None)

    def told() -> str:
        return str(json.loads((tmp_path / "run" / "status.json").read_text())["node"])

    teller = Teller(options, Metrics(version="0", traffic=dict), Notifier({}), pause=3600)
    a, b, c = (
        Facts(config=settings, node=NodeName(name), plan=None, outcome=None, complete=False) for name in ("a", "b", "c")
    )
    for facts in (a, b):
        teller.publish(facts, source, at_once=False)
    assert 0 < teller.catch_up() <= 3600
    assert told() == "a"
    teller.publish(c, source)
    assert told() == "c"
    assert teller.catch_up() == math.inf, "nothing is left"
    soon = Teller(options, Metrics(version="0", traffic=dict), Notifier({}), pause=1e-9)
    for facts in (a, b):
        soon.publish(facts, source, at_once=False)
    while soon.catch_up() < math.inf:
        pass
    assert told() == "b"
