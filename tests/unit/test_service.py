"""What the loop counts and remembers of a reconcile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from metaleg_node.configuration import file as config_file
from metaleg_node.configuration.options import Options
from metaleg_node.core import assembly as desired
from metaleg_node.core.changes import Action, Change
from metaleg_node.core.compare import diff
from metaleg_node.core.problems import Code, Problem
from metaleg_node.daemon.service import Service
from metaleg_node.reconcile.reconciler import Outcome, Plan, Reconciler
from tests.unit.builders import config

REFUSED = Outcome(problems=(Problem(code=Code.KERNEL, text="cannot set the route"),))


class Answering:
    """Stands where the reconciler does, and plans the same repair until that went well."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes)

    def apply(self, _plan: Plan, _beat: Callable[[], object], *, sweep: bool) -> Outcome:  # noqa: ARG002
        return self._outcomes.pop(0)


def made(directory: Path) -> Service:
    """A service that has not begun, with its status file in the directory `run`."""
    options = Options(config_file=directory / "config.toml", runtime_dir=directory / "run", state_dir=directory)
    return Service(options, config('[cluster]\nstate_file = "/nowhere"'), config_file.Watch(options.config_file))


def test_a_status_file_that_cannot_be_written_is_told_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    service = made(tmp_path)
    (tmp_path / "run").touch()
    for _ in range(3):
        service._publish()
    assert caplog.text.count("cannot write") == 1
    (tmp_path / "run").unlink()
    for _ in range(2):
        service._publish()
    assert caplog.text.count("solved: cannot write") == 1
    assert (tmp_path / "run" / "status.json").exists()


def test_a_repair_is_counted_once_it_went_well_however_often_it_is_tried(tmp_path: Path) -> None:
    service = made(tmp_path)
    change = Change(action=Action.CHANGE, kind="route", text="default", reason="")
    step = diff.Step(operation=diff.RestoreSysctl(name="x"), changes=(change,))
    plan = Plan(desired=desired.Desired(), steps=(step,))
    service._reconciler = cast(Reconciler, Answering(Outcome(), REFUSED, REFUSED, Outcome()))
    counted = []
    for _ in range(4):
        service._apply(plan, "kernel changed")
        counted.append(service._repaired.get("route", 0))
    assert counted == [0, 0, 0, 1]
