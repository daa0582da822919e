"""A full or read-only disk loses nothing: good old files stay, with nothing beside them, and all is written later."""

from __future__ import annotations

import base64
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metaleg_node import files
from metaleg_node.configuration.options import Options
from metaleg_node.core.model import NodeName
from metaleg_node.core.problems import Code
from metaleg_node.daemon import status
from metaleg_node.daemon.cluster_source import ClusterSource
from metaleg_node.daemon.metrics import Metrics
from metaleg_node.daemon.notify import Notifier
from metaleg_node.daemon.telling import Facts, Teller
from metaleg_node.kernel.sysctl import Sysctls
from metaleg_node.lab.daemons import wait_until
from metaleg_node.sources import credentials, saved_state
from metaleg_node.sources.credentials import CredentialsError
from metaleg_node.sources.saved_state import FILE, SavedState
from tests.api.certificates import Authority
from tests.api.conftest import authority
from tests.api.harness import write_kubeconfig
from tests.disks import Disk, small_disk
from tests.kernel.test_sysctl import NAME, present
from tests.netns import Netns
from tests.patience import patient
from tests.unit.builders import config
from tests.unit.test_saved_state import example, told

__all__ = ["authority"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


TROUBLES: dict[str, tuple[Callable[[Disk], None], Callable[[Disk], None], int]] = {
    "full": (Disk.fill, Disk.empty, errno.ENOSPC),
    "full after a page": (lambda disk: disk.fill(free=4096), Disk.empty, errno.ENOSPC),
    "read-only": (Disk.lock, Disk.unlock, errno.EROFS),
}


@pytest.fixture(params=TROUBLES)
def trouble(request: pytest.FixtureRequest) -> tuple[Callable[[Disk], None], Callable[[Disk], None], int]:
    """What happens to the disk, how it ends, and the error number."""
    return TROUBLES[request.param]


Trouble = tuple[Callable[[Disk], None], Callable[[Disk], None], int]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(disk: Disk, trouble: Trouble, durable: bool) -> None:
    begin, end, number = trouble
    file = disk.path / "file"
    files.replace(file, b"old", mode=0o600)
    begin(disk)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.replace(file, b"n" * 20_000, mode=0o600, durable=durable)
    assert (file.read_bytes(), disk.names) == (b"old", ["file"])
    end(disk)
    files.replace(file, b"n" * 20_000, mode=0o600, durable=durable)
    assert (file.read_bytes(), disk.names) == (b"n" * 20_000, ["file"])


@pytest.mark.parametrize("name", ["full", "read-only"])
def test_no_sysctl_is_changed_that_could_not_be_put_back(disk: Disk, inside: Netns, name: str) -> None:
    begin, end, _ = TROUBLES[name]
    other = "net/ipv4/conf/v1/rp_filter"
    inside.run("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.v0.rp_filter=1")
    inside.run("sysctl", "-q", "-w", "net.ipv4.conf.v1.rp_filter=1")
    sysctls = Sysctls(disk.path)
    assert sysctls.set({NAME: "2"}) == [None]
    begin(disk)
    (refused,) = sysctls.set({other: "2"})
    assert "no sysctl is changed unless it can be put back" in str(refused)
    assert (present(inside), present(inside, other)) == ("2", "1")
    assert (sysctls.remembered(), disk.names) == ({NAME: "1"}, ["sysctls.json"])
    end(disk)
    assert sysctls.set({other: "2"}) == [None]
    assert sysctls.remembered() == {NAME: "1", other: "1"}


def test_the_last_known_state_stays_and_the_new_one_is_saved_later(
    disk: Disk, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end, _ = trouble
    monkeypatch.setattr(saved_state, "RETRY_SECONDS", 0.05)
    problems: list[str] = []
    saved = SavedState(disk.path, settle=0.0, changed=lambda: problems.append(saved.problem))
    saved.start()
    (service, *_), many = example(), range(100)
    old = told([service])
    new = told({**service, "metadata": {**service["metadata"], "name": f"relay-{number}"}} for number in many)
    assert len(b"".join(new.raw())) > 4096
    saved.offer(old)
    assert wait_until(saved.exists, patient(5))
    begin(disk)
    saved.offer(new)
    assert wait_until(lambda: bool(problems), patient(5))
    assert "the last known state cannot be saved: " in problems[0]
    loaded = SavedState(disk.path).load()
    assert loaded
    assert (loaded.state, disk.names) == (old.snapshot(), [FILE])
    end(disk)
    assert wait_until(lambda: problems[-1] == "", patient(5))
    assert len(problems) == 2, "told when it begins and when it ends"
    loaded = SavedState(disk.path).load()
    assert loaded
    assert (loaded.state, disk.names) == (new.snapshot(), [FILE])
    saved.stop()


def test_what_cannot_be_saved_is_a_problem_of_the_source(tmp_path: Path) -> None:
    source = ClusterSource(config(f'[cluster]\nkubeconfig = "{tmp_path}/none"'), tmp_path, lambda: None)
    assert list(source.problems) == []
    assert source._saver
    source._saver.problem = "no room"
    (problem,) = source.problems
    assert (problem.code, problem.text) == (Code.SAVED_STATE, "no room")


@pytest.mark.parametrize("name", ["full", "read-only"])
def test_a_status_that_could_not_be_written_is_known_to_be_old(disk: Disk, tmp_path: Path, name: str) -> None:
    begin, end, _ = TROUBLES[name]
    settings = config('[cluster]\nstate_file = "/nowhere"')
    options = Options(config_file=tmp_path / "config.toml", runtime_dir=disk.path, state_dir=tmp_path)
    source = ClusterSource(settings, tmp_path, lambda: None)
    teller = Teller(options, Metrics(version="0", traffic=dict), Notifier({}))
    facts = Facts(config=settings, node=NodeName("a"), plan=None, outcome=None, complete=False)
    teller.publish(facts, source)
    before = (disk.path / "status.json").read_bytes()
    begin(disk)
    teller.publish(facts, source)
    at = (disk.path / "status.json").stat().st_mtime
    teller.alive()
    assert not teller.written
    assert (disk.path / "status.json").stat().st_mtime == at, "no sign of life for what is old"
    assert ((disk.path / "status.json").read_bytes(), disk.names) == (before, ["status.json"])
    # On a read-only disk not even the time can be set: that file grows old by itself.
    assert (at == 0) == (name == "full")
    end(disk)
    teller.publish(facts, source)
    assert teller.written
    assert status.silence(disk.path) < patient(5)


@pytest.mark.parametrize("name", ["full", "read-only"])
def test_no_room_for_the_keys_of_a_kubeconfig_is_one_clear_error(
    disk: Disk, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begin, end, _ = TROUBLES[name]
    certificate, key = authority.issue("reader")
    inline = {
        f"client-{what}-data": base64.b64encode(file.read_bytes()).decode()
        for what, file in (("certificate", certificate), ("key", key))
    }
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", user=inline)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    begin(disk)
    with pytest.raises(CredentialsError, match="temporary files for its keys cannot be written"):
        credentials.load(str(kubeconfig))
    assert disk.names == []
    end(disk)
    credentials.load(str(kubeconfig))
    assert disk.names == []
