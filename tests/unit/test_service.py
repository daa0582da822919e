"""What the service tells of itself when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaleg_node.configuration import file as config_file
from metaleg_node.configuration.options import Options
from metaleg_node.daemon.service import Service
from tests.unit.builders import config


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
