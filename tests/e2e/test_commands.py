"""The commands as people and scripts meet them on a node: what they print, how they end, what hooks are told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metaleg_node import cli
from metaleg_node.kernel import process
from metaleg_node.lab import objects
from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.namespaces import Namespace
from tests import schemas
from tests.disks import Disk, small_disk
from tests.e2e.scenario import NODE1, NODE3, SETTLED, egress_service, foreign, ours
from tests.lab.daemons import Daemon
from tests.lab.lab import Lab
from tests.lab.plan import Flavour, LabOptions
from tests.unit.test_hooks import wait_until_gone


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    """One lab for all; strict reverse-path filters, so that there is a sysctl to change and to put back."""
    with Lab(LabOptions(flavour=Flavour.IPTABLES_LEGACY, rp_filter=1)) as lab:
        yield lab


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Node1, which steers its pod to node2, and what is in its kernel."""

    lab: Lab
    daemon: Daemon
    namespace: Namespace

    def run(self, *words: str) -> process.Completed:
        return self.daemon.command(*words)

    def start(self, **overrides: dict[str, Any]) -> None:
        self.daemon.configure(overrides)
        self.daemon.start()

    @property
    def ours(self) -> dict[str, str]:
        return {what: text for what, text in ours(self.lab, NODE1).items() if text}

    @property
    def directory(self) -> Path:
        return self.daemon.config_file.parent


@pytest.fixture
def node(cluster: Lab) -> Iterator[Node]:
    """Nothing of ours is in its kernel, neither before nor after the test."""
    cluster.set_services(egress_service(cluster))
    found = Node(lab=cluster, daemon=cluster.daemons[NODE1], namespace=cluster.namespace(NODE1))
    found.daemon.configure({})
    yield found
    found.daemon.kill()
    if found.ours:
        assert found.run("cleanup").returncode == 0
    for name in ("run", "lib"):
        shutil.rmtree(found.directory / name, ignore_errors=True)


# --- wrong usage and wrong files -------------------------------------------------------------------------------------

USAGE = ["", "plann", "plan --jsn", "plan x", "--log-level loud plan", "kubeconfig", "--config"]
USAGE += ["explain x", "explain a/b --to y", "trace x", "trace 10.0.0.1 --to 2001:db8::1", "doctor --only 9"]


@pytest.mark.parametrize("words", USAGE)
def test_wrong_usage_ends_with_64_and_shows_the_right_one(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words.split())
    assert ended.value.code == 64
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: metaleg-node ")
    assert "metaleg-node" in printed.err.splitlines()[-1]


def test_options_may_stand_before_the_command_and_after_it(node: Node) -> None:
    others = [*node.daemon._argv("plan")[:-1]]
    before, after = process.run([Path(others[0]).name, *others[1:], "plan"]), None
    at = others.index("--config")
    after = process.run([Path(others[0]).name, *others[1:at], "plan", *others[at:]])
    assert before == after
    assert before.returncode == 2
    mixed = node.run("check", "--config", str(node.directory / "none.toml"))
    assert mixed.returncode == 78, "the later one counts"
    assert f"{node.directory}/none.toml" in mixed.stderr


@pytest.mark.parametrize("command", ["run", "apply", "plan", "check"])
def test_a_wrong_configuration_ends_with_78_and_every_problem(node: Node, command: str) -> None:
    node.daemon.configure({"egress": {"enabeld": True}, "hooks": {"timeout": "soon"}})
    done = node.run(command)
    assert done.returncode == 78
    assert done.stdout == ""
    first, second = sorted(done.stderr.splitlines())
    assert f"{node.daemon.config_file}" in first
    assert "egress.enabeld" in first
    assert "enabled" in first
    assert f"{node.daemon.config_file}" in second
    assert "hooks.timeout" in second
    assert "soon" in second
    assert node.ours == {}


def test_check_tells_what_is_good_and_what_the_state_holds(node: Node) -> None:
    done = node.run("check")
    assert (done.returncode, done.stderr) == (0, "")
    state, config = done.stdout.splitlines()
    assert state.startswith(f"{node.daemon.state_file}: 3 nodes, 1 Service")
    assert state.endswith(", 4 pod addresses; this node is node1")
    assert config == f"{node.daemon.config_file}: good"


def test_a_state_file_that_cannot_be_read_is_an_error_and_changes_nothing(node: Node) -> None:
    objects.replace_file(node.daemon.state_file, b"kind: Service\nmetadata: {\n")
    for command, status in (("plan", 1), ("apply", 1), ("check", 78)):
        done = node.run(command)
        assert done.returncode == status
        assert str(node.daemon.state_file) in done.stderr
        assert "line 3" in done.stderr
    assert node.ours == {}


# --- plan and apply --------------------------------------------------------------------------------------------------


def test_plan_tells_people_and_programs_the_same(node: Node) -> None:
    text, document = node.run("plan"), node.run("plan", "--json")
    assert (text.returncode, document.returncode) == (2, 2)
    signs = {"add": "+", "change": "~", "remove": "-"}
    schemas.check("plan", json.loads(document.stdout))
    changes = json.loads(document.stdout)["changes"]
    lines = [f"{signs[c['action']]} {c['kind']} {c['object']}" for c in changes]
    *told, count = text.stdout.splitlines()
    assert [line.partition("  # ")[0] for line in told] == lines
    assert [line.partition("  # ")[2] for line in told] == [c["reason"] for c in changes]
    assert count == f"{len(changes)} changes"
    assert node.run("apply").returncode == 0
    nothing = json.loads(node.run("plan", "--json").stdout)
    assert nothing == {"version": 1, "changes": [], "paths": [], "problems": []}


def test_apply_tells_what_the_kernel_refused_and_a_later_one_completes_it(node: Node) -> None:
    """A table with the flag `owner` belongs to one process (nft(8)), and is gone with it."""
    with node.namespace.inside():
        owner = subprocess.Popen([process.find("nft"), "-i"], stdin=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdin
        owner.stdin.write("add table inet metaleg_node { flags owner; }\n")
        owner.stdin.flush()
        assert wait_until(lambda: "metaleg_node" in node.namespace.run("nft", "list", "tables"), SETTLED)
        done = node.run("apply")
        assert done.returncode == 1
        assert "nft refused the change of table inet metaleg_node" in done.stderr
        assert done.stdout.endswith(", 1 failed\n")
    done = node.run("apply")
    assert done.returncode == 0
    assert done.stdout.endswith(", 0 failed\n")
    assert node.run("plan").returncode == 0


# --- cleanup ---------------------------------------------------------------------------------------------------------

MISSING: dict[str, tuple[str, ...]] = {
    "the table": ("nft delete table inet metaleg_node",),
    "parts of the table": ("nft flush chain inet metaleg_node prerouting", "nft delete map inet metaleg_node pods4"),
    "the routes": ("ip -4 route flush table 1000001", "ip -6 route delete default table 1000001"),
    "the table, the rules and the routes": (
        "nft flush ruleset",
        "ip -4 rule flush proto 201",
        "ip -6 rule flush proto 201",
        "ip -4 route flush table all proto 201",
        "ip -6 route flush table all proto 201",
    ),
}


@pytest.mark.parametrize("missing", MISSING)
def test_F39_cleanup_works_whatever_is_missing_and_also_twice(node: Node, missing: str) -> None:
    before = foreign(node.lab, NODE1)
    assert node.run("apply").returncode == 0
    assert set(node.ours) == {"rule 4", "rule 6", "route show table all 4", "route show table all 6", "nftables"}
    for command in MISSING[missing]:
        node.namespace.run(*command.split())
    # Neither is needed, and what is wrong with them keeps nothing in the kernel.
    node.daemon.config_file.write_text("[egress")
    node.daemon.state_file.unlink()
    first, second = node.run("cleanup"), node.run("cleanup")
    assert (first.returncode, second.returncode) == (0, 0)
    assert "cleaning up all the same" in first.stderr
    assert first.stdout.endswith(" removed or put back\n")
    assert second.stdout == "nothing to clean up\n"
    assert node.ours == {}
    assert foreign(node.lab, NODE1) == before
    assert node.namespace.run("sysctl", "-n", "net.ipv4.conf.eth0.rp_filter") == "1\n"


# --- status, and one instance at a time ------------------------------------------------------------------------------


def test_status_tells_of_the_running_service_only(node: Node) -> None:
    done = node.run("status")
    assert (done.returncode, done.stdout) == (3, "metaleg-node is not running\n")
    node.start()
    node.daemon.wait_ready()
    done = node.run("status")
    assert done.returncode == 0
    assert re.search(r"^healthy: +yes$", done.stdout, re.MULTILINE)
    assert re.search(r"^default/web +IPv6 +2001:db8:2::200 +node2 +2 +active", done.stdout, re.MULTILINE)
    document = json.loads(node.run("status", "--json").stdout)
    assert document == node.daemon.status()
    schemas.check("status", document)
    assert (document["node"], document["pid"], document["healthy"]) == ("node1", node.daemon.process_id, True)
    objects.replace_file(node.daemon.state_file, b"kind: [")
    assert wait_until(lambda: node.daemon.status()["problems"] != [], SETTLED)
    done = node.run("status")
    assert done.returncode == 1
    assert re.search(r"^healthy: +no$", done.stdout, re.MULTILINE)
    assert str(node.daemon.state_file) in done.stdout.partition("Problems:\n")[2]
    assert node.daemon.stop() == 0
    done = node.run("status", "--json")
    nothing = {"version": 1, "running": False, "healthy": False, "reason": "metaleg-node is not running"}
    assert (done.returncode, json.loads(done.stdout)) == (3, nothing)


def test_on_a_terminal_lines_fit_and_words_are_coloured_and_status_can_be_watched(node: Node) -> None:
    escape = re.compile(r"\x1b\[[0-9;]*[mHJ]")
    code, shown = node.daemon.on_terminal(80, "plan")
    assert code == 2
    assert "\x1b[32m+\x1b[0m" in shown
    assert max(len(line) for line in escape.sub("", shown).splitlines()) <= 80
    node.start()
    node.daemon.wait_ready()
    assert wait_until(lambda: node.run("status").returncode == 0, SETTLED)
    code, shown = node.daemon.on_terminal(80, "status", "--watch", "--color", "never")
    first, second = shown.split("\x1b[H\x1b[J")[1:]
    assert code == 0
    assert "healthy:        yes" in first
    assert "healthy:        yes" in second
    assert max(len(line) for line in escape.sub("", shown).splitlines()) <= 80
    node.daemon.stop()


def test_status_is_never_healthy_when_the_service_gives_no_sign_of_life(node: Node) -> None:
    node.start()
    node.daemon.wait_ready()
    file = node.directory / "run" / "status.json"
    seen = file.stat()

    def is_touched() -> bool:
        """The same file, not written anew, is younger than at the last look."""
        nonlocal seen
        before, seen = seen, file.stat()
        return seen.st_ino == before.st_ino and seen.st_mtime > before.st_mtime

    assert wait_until(is_touched, SETTLED)
    os.kill(node.daemon.process_id, signal.SIGSTOP)
    done, document = node.run("status"), json.loads(node.run("status", "--json").stdout)
    assert done.returncode == 1
    assert re.search(r"^healthy: +no$", done.stdout, re.MULTILINE)
    assert f"process {node.daemon.process_id} is stopped by a signal" in done.stdout
    assert (document["healthy"], document["problems"][0]["code"]) == (False, "status-file")
    os.utime(file, (time.time() - 11,) * 2)
    os.kill(node.daemon.process_id, signal.SIGCONT)
    assert wait_until(lambda: node.run("status").returncode == 0, SETTLED)


def test_status_is_not_healthy_while_the_loop_is_stuck(node: Node) -> None:
    node.start()
    node.daemon.wait_ready()
    assert wait_until(lambda: node.daemon.status()["healthy"], SETTLED)
    # What writes to a FIFO waits for somebody who reads it.
    stuck = node.directory / "run" / ".status.json.tmp"
    os.mkfifo(stuck)
    node.daemon.reload()
    assert wait_until(lambda: node.run("status").returncode == 1, 20)
    assert "no sign of life for 1" in node.run("status").stdout
    with stuck.open("rb") as reader:
        reader.read()
    # The pipe has become the file; the next one is a real one again.
    node.daemon.reload()
    assert wait_until((node.directory / "run" / "status.json").is_file, SETTLED)
    assert wait_until(lambda: node.run("status").returncode == 0, SETTLED)


@pytest.mark.parametrize(("begin", "end"), [(Disk.fill, Disk.empty), (Disk.lock, Disk.unlock)], ids=["full", "ro"])
def test_with_disks_that_take_nothing_the_rules_stand_and_all_is_written_later(
    node: Node, begin: Callable[[Disk], None], end: Callable[[Disk], None]
) -> None:
    with small_disk(node.directory / "run") as runtime, small_disk(node.directory / "lib") as state:
        node.start(egress={"enabled": False})
        node.daemon.wait_ready()
        assert wait_until(lambda: node.run("status").returncode == 0, SETTLED)
        for disk in (runtime, state):
            begin(disk)
        node.daemon.configure({})
        node.daemon.reload()
        assert wait_until(lambda: "nftables" in node.ours, SETTLED)
        assert wait_until(lambda: node.run("status").returncode == 1, 20)
        words = node.run("status").stdout
        assert f"into {runtime.path}" in words
        end(runtime)
        assert wait_until(lambda: f"cannot write {state.path}/sysctls.json" in node.run("status").stdout, 2 * SETTLED)
        assert node.run("status").returncode == 1
        end(state)
        assert wait_until(lambda: node.run("status").returncode == 0, 60)
        assert (runtime.names, state.names) == (["status.json"], ["sysctls.json"])
        assert node.daemon.stop() == 0
        assert node.run("cleanup").returncode == 0
        assert node.namespace.run("sysctl", "-n", "net.ipv4.conf.eth0.rp_filter") == "1\n"


def test_a_damaged_record_of_sysctls_is_a_problem_that_is_told_once(node: Node) -> None:
    assert node.run("apply").returncode == 0
    record = node.directory / "lib" / "sysctls.json"
    content = record.read_text()
    record.write_text(content[:-3])
    assert "sysctls.json is damaged" in node.run("plan").stderr
    node.start()
    node.daemon.wait_ready()
    (found,) = node.daemon.status()["problems"]
    assert (found["code"], found["severity"]) == ("sysctl-record", "error")
    problem = found["text"]
    assert f"{record} is damaged" in problem
    assert node.run("status").returncode == 1
    for _ in range(3):
        _wake(node)
    assert node.daemon.log().count(problem) == 1
    record.write_text(content)
    _wake(node)
    assert node.daemon.status()["problems"] == []
    assert wait_until(lambda: f"solved: {problem}" in node.daemon.log(), SETTLED)
    assert node.daemon.stop() == 0
    record.write_text(content[:-3])
    done = node.run("cleanup")
    assert (done.returncode, "sysctls.json is damaged" in done.stderr, node.ours) == (1, True, {})
    record.write_text(content)
    assert node.run("cleanup").returncode == 0


def _wake(node: Node) -> None:
    """Makes the service look at the kernel once more."""
    before = node.daemon.status()["last_reconcile"]["time"]
    node.namespace.ip(["address add 192.0.2.77/32 dev lo", "address delete 192.0.2.77/32 dev lo"])
    assert wait_until(lambda: node.daemon.status()["last_reconcile"]["time"] != before, SETTLED)


def test_while_the_service_runs_nobody_else_changes_anything_but_may_look(node: Node) -> None:
    node.start()
    node.daemon.wait_ready()
    before = node.ours
    for command in ("apply", "cleanup"):
        done = node.run(command)
        assert done.returncode == 1
        assert f"process {node.daemon.process_id}" in done.stderr
    assert node.ours == before
    done = node.run("plan")
    assert (done.returncode, done.stdout) == (0, "nothing to do\n")


TAKE = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
with socket.socket(socket.AF_UNIX) as taken:
    taken.bind("\\0metaleg-node")
    taken.listen()
    print("taken", flush=True)
    sys.stdin.read()
"""


@contextmanager
def lock_taken(node: Node, user: int) -> Iterator[int]:
    """Another process of this user holds the lock; its number."""
    with node.namespace.inside():
        process = subprocess.Popen(
            [sys.executable, "-c", TAKE, str(user)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "taken\n"
        yield process.pid


def test_what_a_service_left_that_was_killed_is_not_shown_as_running_because_another_process_has_the_lock(
    node: Node,
) -> None:
    node.start()
    node.daemon.wait_ready()
    killed = node.daemon.process_id
    node.daemon.kill()
    assert node.daemon.status()["healthy"]
    with lock_taken(node, 0) as other:
        for words in (["status"], ["status", "--json"]):
            done = node.run(*words)
            assert done.returncode == 3
            assert "not running" in done.stdout
            assert f"process {other} of user root" in done.stdout
            assert f"process {killed}" in done.stdout
    with lock_taken(node, 65534) as other:
        done, refused = node.run("status"), node.run("run")
        assert (done.returncode, refused.returncode) == (3, 1)
        assert done.stdout.startswith("metaleg-node is not running: ")
        for text in (done.stdout, refused.stderr):
            assert f"process {other} of user nobody (uid 65534) holds" in text
            assert f"ps -fp {other}" in text


# --- hooks -----------------------------------------------------------------------------------------------------------


def hook(node: Node, name: str, text: str) -> str:
    """A script of this name beside the node's other files."""
    path = node.directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def recording(node: Node) -> str:
    """A hook that keeps its environment and its input, for `told`."""
    calls = node.directory / "calls"
    shutil.rmtree(calls, ignore_errors=True)
    calls.mkdir()
    one = f"{calls}/.$METALEG_HOOK-$METALEG_CHANGES-$$"
    return hook(node, "record", f"{{ env; echo; cat; }} > {one} && mv {one} {calls}/$(date +%s%N)")


def told(node: Node) -> list[tuple[dict[str, str], list[Any]]]:
    """Environment and changes of each call of a recording hook so far, in order."""
    calls = []
    for path in sorted((node.directory / "calls").glob("[0-9]*")):
        environment, _, plan = path.read_text().partition("\n\n")
        calls.append((dict(line.split("=", 1) for line in environment.splitlines()), json.loads(plan)["changes"]))
    return calls


def test_the_service_tells_its_hooks_what_it_does(node: Node) -> None:
    record = recording(node)
    node.start(hooks={"pre": record, "post": record})
    node.daemon.wait_ready()
    # An unchanged state is no occasion for hooks; the next change shows that none came.
    node.lab.write_state(nodes=[NODE1])
    node.lab.failover("web", NODE3, seen_by=[NODE1])
    assert wait_until(lambda: len(told(node)) >= 4, SETTLED)
    calls = told(node)
    assert [environment["METALEG_HOOK"] for environment, _ in calls] == ["pre", "post"] * 2
    for environment, changes in calls:
        assert environment["METALEG_NODE"] == "node1"
        assert int(environment["METALEG_CHANGES"]) == len(changes) > 0
        assert environment.get("METALEG_RESULT") == {"pre": None, "post": "ok"}[environment["METALEG_HOOK"]]
        known = {"PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"}
        assert {name for name in environment if not name.startswith("METALEG_")} <= known
    reasons = [environment["METALEG_REASON"] for environment, _ in calls]
    assert set(reasons[0].split(", ")) <= {"cluster state changed", "start"}
    assert "cluster state changed" in reasons[2]
    assert any(c["object"].startswith("10.244.1.2 leaves through node3") for c in calls[2][1])
    assert [changes for _, changes in calls[::2]] == [changes for _, changes in calls[1::2]]
    # At its first reconcile it tells them also that there is nothing to change.
    assert node.daemon.stop() == 0
    node.daemon.start()
    node.daemon.wait_ready()
    assert [e["METALEG_CHANGES"] for e, _ in told(node)[4:]] == ["0", "0"]


def test_apply_tells_its_hooks_too(node: Node) -> None:
    record = recording(node)
    node.daemon.configure({"hooks": {"pre": record, "post": record}})
    assert node.run("apply").returncode == 0
    about = [(e["METALEG_HOOK"], e["METALEG_REASON"], e.get("METALEG_RESULT")) for e, _ in told(node)]
    assert about == [("pre", "apply", None), ("post", "apply", "ok")]


def test_a_pre_hook_that_fails_may_abort(node: Node) -> None:
    consent = node.directory / "consent"
    settings = {"pre": hook(node, "ask", f"test -e {consent}"), "pre_failure": "abort"}
    node.daemon.configure({"hooks": settings})
    done = node.run("apply")
    assert done.returncode == 1
    assert "hooks.pre_failure is abort: nothing was changed" in done.stderr
    assert "failed with exit status 1" in done.stderr
    assert node.ours == {}
    node.start(hooks=settings)
    assert wait_until(lambda: bool(node.daemon.status()), SETTLED)
    done = node.run("status")
    assert done.returncode == 1
    assert "hooks.pre_failure is abort: nothing was changed" in done.stdout
    assert not node.daemon.ready()
    assert node.ours == {}
    # It is asked again without any other event.
    consent.touch()
    node.daemon.wait_ready()
    assert node.ours
    assert node.run("status").returncode == 0
    consent.unlink()


def _disturb(node: Node) -> None:
    """What others do to the kernel all the time, and is nothing of ours."""
    node.namespace.ip(["address add 192.0.2.77/32 dev lo", "address delete 192.0.2.77/32 dev lo"])


def test_a_hook_that_fails_is_left_alone_whatever_others_do_but_not_when_an_operator_asks(node: Node) -> None:
    calls = node.directory / "asked"
    calls.unlink(missing_ok=True)
    settings = {"pre": hook(node, "refuse", f"date +%s.%N >> {calls}; exit 1"), "pre_failure": "abort"}
    node.start(hooks=settings)

    def asked() -> list[float]:
        return [float(line) for line in calls.read_text().split()] if calls.exists() else []

    assert wait_until(lambda: len(asked()) >= 1, SETTLED)
    while len(asked()) < 3:
        _disturb(node)
    first, second, third = asked()
    assert second - first >= 0.8
    assert third - second >= 1.6
    before = node.daemon.log().count("reload: 0 changes")
    node.daemon.reload()
    assert wait_until(lambda: node.daemon.log().count("reload: 0 changes") > before, 1.0)


def test_what_others_break_is_put_back_while_something_else_fails(node: Node) -> None:
    """And what fails is not tried again for each of these."""
    # The log has what other tests did, too.
    retried = node.daemon.log().count("retry: 0 changes")
    node.directory.joinpath("lib").write_text("where the record of sysctls should be")
    node.start()
    assert wait_until(lambda: "firewall" in node.daemon.log() and bool(node.ours), SETTLED)
    assert wait_until(lambda: "sysctls.json: Not a directory" in node.run("status").stdout, SETTLED)
    # Past the first pause, so that only what is new is tried soon.
    assert wait_until(lambda: node.daemon.log().count("retry: 0 changes") > retried, 20)
    tries = node.daemon.log().count(" changes in ")
    for _ in range(3):
        node.namespace.run("nft", "delete", "table", "inet", "metaleg_node")
        assert wait_until(lambda: "nftables" in node.ours, 2.0)
        for _ in range(5):
            _disturb(node)
    assert node.daemon.log().count(" changes in ") - tries <= 4
    node.directory.joinpath("lib").unlink()
    # After five failures the pause is 16 s, a fifth more at most.
    assert wait_until(lambda: node.run("status").returncode == 0, 25)


def test_what_happens_while_a_pre_hook_runs_is_part_of_what_is_done_after_it(node: Node) -> None:
    delete = "nft delete table inet metaleg_node 2>/dev/null"
    record = recording(node)
    hooks = {"pre": hook(node, "disturb", delete), "post": record}
    node.start(hooks=hooks)
    node.daemon.wait_ready()
    node.lab.failover("web", NODE3, seen_by=[NODE1])
    assert wait_until(lambda: len(told(node)) >= 2, SETTLED)
    assert [environment["METALEG_RESULT"] for environment, _ in told(node)] == ["ok", "ok"]
    # The whole table was made anew, not only what the cluster changed.
    changes = told(node)[1][1]
    assert any(c["object"] == "table inet metaleg_node" for c in changes)
    assert any(c["object"].startswith("10.244.1.2 leaves through node3") for c in changes)
    assert node.daemon.stop() == 0
    assert node.run("apply").returncode == 0
    assert node.run("plan").stdout == "nothing to do\n"


def test_a_hook_that_hangs_is_killed_with_all_its_children_and_reported(node: Node) -> None:
    children = node.directory / "children"
    slow = hook(node, "slow", f"sleep 600 & echo $! > {children}; wait")
    node.start(hooks={"pre": slow, "timeout": "200ms"})
    node.daemon.wait_ready()
    done = node.run("status")
    assert done.returncode == 1
    assert f"hooks.pre: {slow}: killed, it did not end within 0.2 s" in done.stdout
    assert node.ours
    wait_until_gone(int(children.read_text()))
