"""The last known state: a valid state file that says the same, written whole, late and only when something changed."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaleg_node import files
from metaleg_node.core.model import ClusterState
from metaleg_node.sources.api_watch import translate
from metaleg_node.sources.resources import Resource
from metaleg_node.sources.saved_state import FILE, SavedState
from metaleg_node.sources.state_file import DEFAULT_CONFIGMAP
from metaleg_node.sources.store import Store
from tests.patience import patient

Raw = dict[str, Any]
CONFIGMAP = ("metallb", "bgp")
EXAMPLES = Path(__file__).resolve().parents[2] / "etc" / "metaleg-node" / "examples"


def objects(file: Path) -> list[Raw]:
    """What a file holds, as the API would have it."""
    documents = [one for one in yaml.safe_load_all(file.read_text()) if one]
    return [one for one in documents if "kind" in one]


def told(raws: Iterable[Raw]) -> Store:
    """A store that was filled as the API fills it."""
    store = Store(lambda: None)
    for number, raw in enumerate(raws):
        group, _, version = raw["apiVersion"].rpartition("/")
        resource = Resource(kind=raw["kind"], plural="any", group=group, version=version)
        store.put("API", number, translate(resource, raw)[1])
    return store


def example() -> list[Raw]:
    metadata = {"namespace": "mail", "name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"}
    labels = {"metallb.io/service-namespace": "mail", "metallb.io/service-name": "relay"}
    return [
        *objects(EXAMPLES / "several-services.yaml"),
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n", "hostNetwork": True}},
        {
            "apiVersion": "metallb.io/v1beta1",
            "kind": "ServiceBGPStatus",
            "metadata": {**metadata, "labels": labels},
            "status": {"node": "worker-1"},
        },
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": metadata,
            "involvedObject": {"kind": "Service", "namespace": "mail", "name": "relay"},
            "reason": "nodeAssigned",
            "message": 'announcing from node "worker-1"',
            "eventTime": "2024-01-01T00:00:00.123456Z",
        },
    ]


def old_configuration() -> list[Raw]:
    raws = objects(EXAMPLES / "metallb-old-configuration.yaml")
    (config_map,) = (one for one in raws if one["kind"] == "ConfigMap")
    config_map["metadata"] |= {"namespace": CONFIGMAP[0], "name": CONFIGMAP[1]}
    return raws


def written(directory: Path, *states: Iterable[Raw]) -> Path:
    saved = SavedState(directory, settle=0.0)
    saved.start()
    for raws in states:
        saved.offer(told(raws))
    saved.stop()
    return directory / FILE


def loaded(directory: Path) -> ClusterState:
    saved = SavedState(directory, CONFIGMAP).load()
    assert saved is not None
    return saved.state


@pytest.mark.parametrize("raws", [example(), old_configuration(), *map(objects, EXAMPLES.glob("*.yaml"))])
def test_what_is_saved_reads_as_the_same(tmp_path: Path, raws: list[Raw]) -> None:
    state = told(raws).snapshot()
    assert len(state.services) > 0 or len(state.pools) == 1
    written(tmp_path, raws)
    saved = SavedState(tmp_path, CONFIGMAP if raws == old_configuration() else DEFAULT_CONFIGMAP).load()
    assert saved is not None
    assert saved.state == state


def test_what_nobody_reads_is_not_saved(tmp_path: Path) -> None:
    raws = example()
    for raw in raws:
        raw["metadata"] |= {"managedFields": [{"manager": "x" * 1000}], "annotations": {"other": "x" * 1000}}
    assert "xxx" not in written(tmp_path, raws).read_text()


def test_what_is_refused_is_saved_too_and_told_again(tmp_path: Path) -> None:
    raw = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "b"}, "spec": {"type": "Odd"}}
    written(tmp_path, [raw])
    assert loaded(tmp_path) == told([raw]).snapshot()
    assert "Odd" in loaded(tmp_path).rejections[0].reason


def test_the_file_is_yaml_for_us_alone_and_loads_as_what_was_offered(tmp_path: Path) -> None:
    file = written(tmp_path / "lib", example())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert yaml.safe_load(file.read_text())["kind"] == "List"
    saved = SavedState(tmp_path / "lib").load()
    assert saved is not None
    assert saved.state == told(example()).snapshot()
    assert saved.time[:4].isdigit()
    assert os.listdir(tmp_path / "lib") == [FILE]


def test_metallbs_old_configuration_is_saved_as_its_config_map(tmp_path: Path) -> None:
    written(tmp_path, old_configuration())
    assert loaded(tmp_path) == told(old_configuration()).snapshot()
    (made,) = (one for one in yaml.safe_load((tmp_path / FILE).read_text())["items"] if one["kind"] == "ConfigMap")
    assert (made["metadata"]["namespace"], made["metadata"]["name"]) == CONFIGMAP


def test_the_same_state_is_not_written_again(tmp_path: Path) -> None:
    file = written(tmp_path, example())
    before = file.stat()
    written(tmp_path, example())
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    written(tmp_path, [])
    assert file.stat().st_ino != before.st_ino


def test_changes_are_gathered_before_they_are_written(tmp_path: Path) -> None:
    saved = SavedState(tmp_path, settle=60.0)
    saved.start()
    saved.offer(told([]))
    saved.offer(told(example()))
    assert not saved.exists()
    saved.stop()
    assert loaded(tmp_path) == told(example()).snapshot()


def test_after_a_write_that_took_long_the_next_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    replaced = threading.Semaphore(0)

    def replace(*_: object, **__: object) -> None:
        time.sleep(0.02)
        times.append(time.monotonic())
        replaced.release()

    monkeypatch.setattr(files, "replace", replace)
    saved = SavedState(tmp_path, settle=0.0)
    saved.start()
    for raws in (example()[:1], example()):
        saved.offer(told(raws))
        assert replaced.acquire(timeout=patient(10))
    saved.stop()
    first, second = times
    assert second - first >= 1.0


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
    services = [one for one in example() if one["kind"] == "Service"]
    many = [
        {**one, "metadata": {**one["metadata"], "name": f"{one['metadata']['name']}-{number}"}}
        for number in range(500)
        for one in services
    ]
    written(tmp_path, many)
    began = time.process_time()
    saved = SavedState(tmp_path).load()
    assert saved is not None
    assert len(saved.state.services) == len(many)
    assert time.process_time() - began < 2.0
