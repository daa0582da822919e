"""The status file and what `metaleg-node status` prints of it."""

import json
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metaleg_node.daemon import status
from tests.work import calls

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)

DOCUMENT: status.StatusDocument = {
    "version": 1,
    "running": True,
    "program": "0.1.0",
    "pid": 4711,
    "node": "node-a",
    "started": "2026-01-31T09:00:00Z",
    "config_file": "/etc/metaleg-node/config.toml",
    "healthy": False,
    "source": {
        "kind": "Kubernetes API",
        "place": "/etc/kubeconfig",
        "state": "stale",
        "since": "2026-01-31T10:00:00+00:00",
        "missing": ["Node"],
    },
    "last_reconcile": {
        "time": "2026-01-31T11:59:48Z",
        "reason": "state file changed",
        "seconds": 0.0123,
        "changes": 1,
        "result": "ok",
    },
    "services": [
        {
            "service": "mail/relay",
            "family": 4,
            "source": "192.0.2.200",
            "gateway": "node-b",
            "pods": 3,
            "state": "active",
            "reason": "",
        },
        {
            "service": "mail/relay",
            "family": 6,
            "source": None,
            "gateway": None,
            "pods": 3,
            "state": "unavailable",
            "reason": "no LoadBalancer address of this family",
        },
    ],
    "unlisted": {},
    "gateways": [
        {
            "node": "node-b",
            "slot": 1,
            "mark": "0x1000000",
            "table": 1000001,
            "next_hops": {"6": "fd00::2", "4": "10.0.0.2"},
            "transport": {"6": "direct", "4": "direct"},
        }
    ],
    "exits": [
        {
            "path": "public",
            "slot": 3,
            "mark": "0x03000000",
            "table": 1000003,
            "next_hops": {"4": "10.1.0.1 dev eth1"},
        }
    ],
    "paths": [
        {
            "name": "public",
            "kind": "l2",
            "state": "active",
            "reason": "",
            "slot": 2,
            "mark": "0x02000000",
            "table": 1000002,
            "interface": "eth1",
            "networks": ["10.0.0.0/25", "10.0.1.0/26", "10.0.2.9/32", "2001:db8:2::/64"],
            "next_hops": [
                {
                    "address": "192.0.2.1",
                    "interface": "eth1",
                    "weight": 1,
                    "neighbour": "reachable",
                    "slot": None,
                    "requests": None,
                    "answers": None,
                }
            ],
        },
        {
            "name": "local",
            "kind": "l2",
            "state": "inactive",
            "reason": "down",
            "slot": None,
            "mark": None,
            "table": None,
            "interface": "eth2",
            "networks": ["198.51.100.0/24"],
            "next_hops": [],
        },
    ],
    "external_ips": [
        {
            "service": "web/shop",
            "address": "192.0.2.210",
            "cluster_ip": "10.96.0.10",
            "state": "active",
            "reason": "",
        },
        {"service": "web/shop", "address": "2001:db8::1", "cluster_ip": None, "state": "inactive", "reason": "none"},
    ],
    "new_pods": None,
    "problems": [{"code": "listen", "severity": "error", "subject": "metrics.listen", "text": "in use"}],
    "repaired": {"rule": 2, "route": 0, "firewall": 1},
}

RENDERED = """\
metaleg-node:   0.1.0, process 4711
node:           node-a
configuration:  /etc/metaleg-node/config.toml
started:        2026-01-31T09:00:00Z (3 h ago)
healthy:        no
cluster state:  Kubernetes API (/etc/kubeconfig), stale, of 2026-01-31T10:00:00+00:00 (2 h ago), missing: Node
last reconcile: 2026-01-31T11:59:48Z (12 s ago): ok, 1 change in 0.012 s (state file changed)
repaired:       firewall 1, rule 2

SERVICE     FAMILY  SOURCE       GATEWAY  PODS  STATE        REASON
mail/relay  IPv4    192.0.2.200  node-b   3     active       -
mail/relay  IPv6    -            -        3     unavailable  no LoadBalancer address of this family

GATEWAY  SLOT  MARK       TABLE    NEXT HOPS
node-b   1     0x1000000  1000001  10.0.0.2, fd00::2

EGRESS BY PATH  SLOT  MARK        TABLE    NEXT HOPS
public          3     0x03000000  1000003  10.1.0.1 dev eth1

RETURN PATH  STATE     TABLE    NETWORKS                                          NEXT HOPS                     REASON
public       active    1000002  10.0.0.0/25, 10.0.1.0/26, 10.0.2.9/32 and 1 more  192.0.2.1 dev eth1 reachable  -
local        inactive  -        198.51.100.0/24                                   dev eth2                      down

EXTERNAL-IP  SERVICE   CLUSTERIP   STATE     REASON
192.0.2.210  web/shop  10.96.0.10  active    -
2001:db8::1  web/shop  -           inactive  none

Problems:
  error    metrics.listen: in use [listen]
"""


def test_the_whole_document_as_text() -> None:
    assert status.render(DOCUMENT, NOW) == RENDERED


def test_the_hold_of_new_pods_as_text() -> None:
    new: status.NewPodsStatus = {
        "source": "CNI results",
        "holding": True,
        "known": 3,
        "waiting": ["mail/relay-0"],
        "unknown": ["10.244.1.9"],
    }
    assert (
        "New pods: unknown ones are held; 3 pod addresses without egress are known by CNI results\n"
        "  waiting for an address: mail/relay-0\n"
        "  held: 10.244.1.9\n"
    ) in status.render({**DOCUMENT, "new_pods": new}, NOW)


def test_a_service_that_has_done_nothing_yet() -> None:
    empty: status.StatusDocument = {
        **DOCUMENT,
        "last_reconcile": None,
        "services": [],
        "gateways": [],
        "exits": [],
        "paths": [],
        "external_ips": [],
        "problems": [],
        "repaired": {},
    }
    text = status.render(empty, NOW)
    assert "last reconcile: none yet" in text
    assert text.endswith("repaired:       nothing\n")


@pytest.mark.parametrize(
    ("started", "age"),
    [
        ("2026-01-31T12:00:00Z", "(now)"),
        ("2026-01-31T12:00:30Z", "(now)"),
        ("2026-01-31T11:58:59+00:00", "(1 min ago)"),
        ("2026-01-28T11:00:00Z", "(3 d ago)"),
    ],
)
def test_ages_in_their_largest_unit(started: str, age: str) -> None:
    assert f"{started} {age}\n" in status.render({**DOCUMENT, "started": started}, NOW)


def test_problems_cannot_forge_lines() -> None:
    forged: status.ProblemStatus = {"code": "x", "severity": "error", "subject": "", "text": "a\nhealthy: yes"}
    assert status.render({**DOCUMENT, "problems": [forged]}, NOW).endswith("  a\\nhealthy: yes [x]\n")


def test_what_is_written_is_read_back_and_everybody_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        status.write(tmp_path / "run" / "metaleg-node", DOCUMENT)
    finally:
        os.umask(before)
    directory = tmp_path / "run" / "metaleg-node"
    assert status.read(directory) == DOCUMENT
    assert os.listdir(directory) == ["status.json"]
    assert (directory / "status.json").stat().st_mode & 0o777 == 0o644


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    status.write(tmp_path, DOCUMENT)
    with (tmp_path / "status.json").open() as reader:
        status.write(tmp_path, {**DOCUMENT, "pid": 1})
        assert json.load(reader)["pid"] == 4711


def test_entries_in_json_already_are_written_behind_the_documents_own(tmp_path: Path) -> None:
    first, *rest = DOCUMENT["services"]
    for own in ([], [first]):
        document: status.StatusDocument = {**DOCUMENT, "services": [*own]}
        status.write(tmp_path, document, [json.dumps(one) for one in rest])
        assert status.read(tmp_path) == {**DOCUMENT, "services": [*own, *rest]}
    status.write(tmp_path, {**DOCUMENT, "services": []})
    assert status.read(tmp_path) == {**DOCUMENT, "services": []}


def test_a_thousand_services_are_written_by_the_fast_encoder(tmp_path: Path) -> None:
    """It is not written in Python, and calls nothing that is."""
    document: status.StatusDocument = {**DOCUMENT, "services": DOCUMENT["services"][:1] * 1_000}
    assert calls(lambda: json.dumps(document, indent=1)) > 1_000
    assert calls(lambda: status.write(tmp_path, document)) < 100
    assert status.read(tmp_path) == document


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".status.json.tmp").write_text("x" * 100_000)
    status.write(tmp_path, DOCUMENT)
    assert os.listdir(tmp_path) == ["status.json"]
    assert status.read(tmp_path) == DOCUMENT


def test_no_file_means_not_running(tmp_path: Path) -> None:
    assert status.read(tmp_path) is None
    assert status.read(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[]", "another version"), (b"{}", "another version")],
)
def test_a_file_that_is_not_ours_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(status.StatusError, match=complaint) as error:
        status.read(tmp_path)
    assert str(tmp_path / "status.json") in str(error.value)


def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(status.StatusError, match=r"cannot write .*/file/run/status.json: Not a directory"):
        status.write(tmp_path / "file" / "run", DOCUMENT)
    (tmp_path / "status.json").mkdir()
    with pytest.raises(status.StatusError, match=r"cannot read .*/status.json: Is a directory"):
        status.read(tmp_path)


def test_services_that_are_not_listed_are_counted() -> None:
    document: status.StatusDocument = {**DOCUMENT, "unlisted": {"no-address": 4980, "no-gateway": 7}}
    assert "More Services are unavailable: no-address 4980, no-gateway 7\n" in status.render(document, NOW)
    assert "More Services" not in status.render(DOCUMENT, NOW)


def dated(directory: Path, seconds_ago: float) -> float:
    moment = time.time() - seconds_ago
    os.utime(directory / "status.json", (moment, moment))
    return status.silence(directory)


def test_the_files_time_is_the_sign_of_life(tmp_path: Path) -> None:
    assert status.silence(tmp_path) == math.inf
    status.write(tmp_path, DOCUMENT)
    content = (tmp_path / "status.json").read_bytes()
    assert status.silence(tmp_path) < 5
    for seconds_ago in (100, -100):
        assert 95 < dated(tmp_path, seconds_ago) < 105
    status.touch(tmp_path)
    assert status.silence(tmp_path) < 5
    status.disown(tmp_path)
    assert status.silence(tmp_path) == math.inf
    assert (tmp_path / "status.json").read_bytes() == content


def test_there_is_no_sign_of_life_where_there_is_no_file(tmp_path: Path) -> None:
    status.touch(tmp_path)
    status.disown(tmp_path)
    assert os.listdir(tmp_path) == []
