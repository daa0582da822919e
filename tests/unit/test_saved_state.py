"""The last known state: a valid state file that says the same, written whole, late and only when something changed."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from metaleg_node.core.model import AnnouncedBy, Announcement, ClusterState, NodeName, ObjectRef, Pod
from metaleg_node.core.objects import export
from metaleg_node.core.objects.manifests import merge
from metaleg_node.sources import state_file
from metaleg_node.sources.documents import translate
from metaleg_node.sources.saved_state import FILE, SavedState
from metaleg_node.sources.store import Store

CONFIGMAP = ("metallb", "bgp")
EXAMPLES = Path(__file__).resolve().parents[2] / "etc" / "metaleg-node" / "examples"


def state_of(file: Path) -> ClusterState:
    loaded = state_file.load(file)
    store = Store(lambda: None)
    store.replace_all("example", loaded.objects)
    return store.snapshot()


def example() -> ClusterState:
    state = state_of(EXAMPLES / "several-services.yaml")
    pod = Pod(
        ref=ObjectRef(kind="Pod", namespace="mail", name="p"), node=NodeName("n"), host_network=True, addresses=()
    )
    told = [
        Announcement(
            ref=ObjectRef(kind=kind, namespace="mail", name="x"),
            source=source,
            service=("mail", "relay"),
            node=NodeName("worker-1"),
            since=since,
        )
        for kind, source, since in (
            ("ServiceBGPStatus", AnnouncedBy.BGP_STATUS, "2024-01-01T00:00:00Z"),
            ("Event", AnnouncedBy.EVENTS, "2024-01-01T00:00:00.123456Z"),
        )
    ]
    return replace(state, pods=(pod,), announcements=(*state.announcements, *told))


def written(directory: Path, *states: ClusterState) -> Path:
    saved = SavedState(directory, settle=0.0)
    saved.start()
    for state in states:
        saved.offer(state)
    saved.stop()
    return directory / FILE


@pytest.mark.parametrize("state", [example(), *map(state_of, EXAMPLES.glob("*.yaml"))])
def test_what_is_exported_reads_as_the_same(state: ClusterState) -> None:
    assert len(state.services) > 0 or {len(state.peers), len(state.pools)} == {2}
    parsed = merge(translate(one, CONFIGMAP) for one in export.objects(state, CONFIGMAP))
    store = Store(lambda: None)
    store.replace_all("again", parsed.objects, parsed.rejections)
    assert store.snapshot() == state


def test_the_file_is_yaml_for_us_alone_and_loads_as_what_was_offered(tmp_path: Path) -> None:
    file = written(tmp_path / "lib", example())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert yaml.safe_load(file.read_text())["kind"] == "List"
    saved = SavedState(tmp_path / "lib").load()
    assert saved is not None
    assert saved.state == example()
    assert saved.time[:4].isdigit()
    assert os.listdir(tmp_path / "lib") == [FILE]


def test_metallbs_old_configuration_is_saved_as_its_config_map(tmp_path: Path) -> None:
    state = state_of(EXAMPLES / "metallb-old-configuration.yaml")
    saved = SavedState(tmp_path, CONFIGMAP, settle=0.0)
    saved.start()
    saved.offer(state)
    saved.stop()
    again = saved.load()
    assert again is not None
    assert again.state == state
    (made,) = (one for one in yaml.safe_load((tmp_path / FILE).read_text())["items"] if one["kind"] == "ConfigMap")
    assert (made["metadata"]["namespace"], made["metadata"]["name"]) == CONFIGMAP


def test_the_same_state_is_not_written_again(tmp_path: Path) -> None:
    file = written(tmp_path, example())
    before = file.stat()
    written(tmp_path, replace(example()))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    written(tmp_path, ClusterState())
    assert file.stat().st_ino != before.st_ino


def test_changes_are_gathered_before_they_are_written(tmp_path: Path) -> None:
    saved = SavedState(tmp_path, settle=60.0)
    saved.start()
    saved.offer(ClusterState())
    saved.offer(example())
    assert not saved.exists()
    saved.stop()
    loaded = saved.load()
    assert loaded is not None
    assert loaded.state == example()


def test_what_cannot_be_used_is_told_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert SavedState(tmp_path).load() is None
    assert not caplog.messages
    (tmp_path / FILE).write_text("{")
    assert SavedState(tmp_path).load() is None
    assert "the last known state cannot be used" in caplog.text
    assert (tmp_path / FILE).read_text() == "{"


def test_a_directory_that_cannot_be_written_is_told_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lib").write_text("a file")
    written(tmp_path / "lib", example())
    assert "cannot be saved" in caplog.text


def test_a_symbolic_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f".{FILE}.tmp").symlink_to(precious)
    written(tmp_path, example())
    assert precious.read_text() == "mine"


def test_a_large_state_loads_fast(tmp_path: Path) -> None:
    many = example()
    services = tuple(
        replace(service, ref=replace(service.ref, name=f"{service.ref.name}-{number}"))
        for number in range(500)
        for service in many.services
    )
    written(tmp_path, replace(many, services=services))
    began = time.monotonic()
    saved = SavedState(tmp_path).load()
    assert saved is not None
    assert len(saved.state.services) == len(services)
    assert time.monotonic() - began < 2.0
