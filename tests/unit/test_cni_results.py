"""CNI's results: read from libcni's files, told over a socket, and what counts after a boot without the API."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from metaleg_node.core.model import Attachment, ClusterState, CniResults
from metaleg_node.daemon.cluster_source import ClusterSource
from metaleg_node.lab.daemons import wait_until
from metaleg_node.sources import cni_results
from metaleg_node.sources.cni_files import Results
from metaleg_node.sources.cni_results import CniResultsSource
from metaleg_node.sources.store import Store
from tests.patience import patient
from tests.unit.builders import config
from tests.unit.test_new_pods import cached, given

TIMEOUT = patient(5.0)


def names(results: Results) -> list[str]:
    return [one.name for one in results.read()]


def test_files_come_change_and_go(tmp_path: Path) -> None:
    results, file = Results(tmp_path), tmp_path / "cni-1-eth0"
    assert names(results) == []
    text = json.dumps(cached())
    file.write_text(text[:40])
    assert names(results) == [], "libcni writes in place: half of it is none yet"
    file.write_text(text)
    assert names(results) == ["web-0"]
    file.write_text(text.replace("web-0", "web-1"))
    assert names(results) == ["web-1"]
    (tmp_path / "cni-1-lo").write_text(json.dumps(cached(ifName="lo")))
    (tmp_path / "empty").write_text("")
    (tmp_path / "link").symlink_to(file)
    assert names(results) == ["web-1"]
    file.unlink()
    assert names(results) == []


def test_files_from_before_the_boot_are_of_pods_that_are_gone(tmp_path: Path) -> None:
    file = tmp_path / "old"
    file.write_text(json.dumps(cached()))
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    os.utime(file, (booted - 60, booted - 60))
    assert names(Results(tmp_path)) == []


def test_a_directory_that_does_not_exist_yet_has_none(tmp_path: Path) -> None:
    assert names(Results(tmp_path / "later")) == []


@contextmanager
def telling(path: Path, *attachments: Attachment) -> Iterator[None]:
    """Somebody who tells everyone the same, and hangs up at the end."""
    path.unlink(missing_ok=True)
    ends: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def tell() -> None:
            while True:
                try:
                    ends.append(listener.accept()[0])
                except OSError:
                    return
                ends[-1].sendall(cni_results.line(attachments))

        thread = threading.Thread(target=tell)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for end in ends:
                end.close()


def test_what_was_told_last_stays_when_nobody_tells_any_more(tmp_path: Path) -> None:
    store, path, one = Store(lambda: None), tmp_path / "socket", given("web-0", "10.244.1.9")
    source = CniResultsSource(str(path), store)

    def told(wanted: CniResults) -> bool:
        return wait_until(lambda: store.snapshot().cni == (wanted,), TIMEOUT)

    with telling(path, one):
        source.start()
        try:
            assert told(CniResults(attachments=(one,), live=True))
        except BaseException:
            source.stop()
            raise
    try:
        assert told(CniResults(attachments=(one,)))
        with telling(path):
            assert told(CniResults(live=True))
    finally:
        source.stop()


def test_commands_ask_once(tmp_path: Path) -> None:
    one = given("web-0", "10.244.1.9")
    with telling(tmp_path / "socket", one):
        assert cni_results.read(str(tmp_path / "socket")) == CniResults(attachments=(one,), live=True)
    assert cni_results.read(str(tmp_path / "nobody")) == CniResults()


def test_a_state_file_is_waited_for_although_results_are_there(tmp_path: Path) -> None:
    """What is not read yet must not count as a cluster without Services."""
    file, came = tmp_path / "state.yaml", threading.Event()
    text = f'[cluster]\nstate_file = "{file}"\n[egress]\nnew_pods = "hold"\ncni_socket = "{tmp_path}/socket"\n'
    source = ClusterSource(config(text), tmp_path, came.set)
    with telling(tmp_path / "socket", given("web-0", "10.244.1.9")):
        source.start(patience=0.0)
        try:
            assert wait_until(lambda: any("state.yaml" in problem.text for problem in source.problems), TIMEOUT)
            assert came.wait(TIMEOUT)
            assert source.state() is None
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}
            file.write_text(yaml.dump(node))
            assert wait_until(lambda: (state := source.state()) is not None and bool(state.cni), TIMEOUT)
        finally:
            source.stop()


@pytest.mark.parametrize(("patience", "alive"), [(0.0, ["web-0"]), (0.001, ["db-0", "web-0"])], ids=["boot", "restart"])
def test_without_the_API_saved_pods_count_as_far_as_results_confirm_them(
    tmp_path: Path, patience: float, alive: list[str]
) -> None:
    """After a boot; where the kernel still holds what was decided before, they have kept their addresses."""
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"},
            "spec": {"nodeName": "a"},
            "status": {"podIPs": [{"ip": "10.244.1.7"}]},
        }
        for name in ("web-0", "db-0")
    ]
    (tmp_path / "cluster-state.yaml").write_text(yaml.dump_all(pods))
    text = f'[cluster]\nkubeconfig = "{tmp_path}/none"\n[egress]\nnew_pods = "hold"\ncni_socket = "{tmp_path}/socket"\n'
    source = ClusterSource(config(text), tmp_path, lambda: None)
    with telling(tmp_path / "socket", given("web-0", "10.244.1.9", uid="uid-web-0")):
        source.start(patience=patience)
        try:
            found: list[ClusterState] = []

            def known() -> bool:
                state = source.state()
                found[:] = [state] if state and state.cni and state.cni[0].live else []
                return bool(found)

            assert wait_until(known, TIMEOUT)
            assert source.state() is found[0], "the same state is the same object"
        finally:
            source.stop()
    assert sorted(pod.ref.name for pod in found[0].pods) == alive
    assert not found[0].pods_sure
