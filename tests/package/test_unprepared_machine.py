"""`./dev` on a machine that is not prepared for it."""

from __future__ import annotations

from tests.package.unprepared import Running


def test_dev_brings_what_it_needs(dev_on_an_unprepared_machine: Running) -> None:
    status = dev_on_an_unprepared_machine.process.wait()
    output = dev_on_an_unprepared_machine.log.read_text()
    assert status == 0, output[-6000:]
    assert "\ndist/metaleg-node_" in output
