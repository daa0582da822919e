"""A real daemon and what it tells the service manager, here a datagram socket, from its start to its stop."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toml

import metaleg_node
from metaleg_node.lab.daemons import wait_until
from tests.api.harness import write_kubeconfig
from tests.netns import Netns
from tests.patience import patient
from tests.unit.test_log_writer import fill

EXAMPLE = Path(__file__).resolve().parents[2] / "etc/metaleg-node/examples/one-service-dual-stack.yaml"
NOWHERE = "https://127.0.0.1:6443"
TIMEOUT = patient(30.0)
"""Seconds after which something that must happen has failed to; far more than it takes."""
WATCHDOG_USEC = 400_000


class Manager:
    """Stands where systemd does: starts the daemon in a namespace and hears what it says."""

    def __init__(self, netns: Netns, directory: Path) -> None:
        self.netns = netns
        self.directory = directory
        self.state_dir, self.runtime_dir = directory / "lib", directory / "run"
        self.started = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "notify"))

    def configure(self, **sections: dict[str, object]) -> None:
        """Puts a whole configuration in place in one step."""
        cluster = {"state_file": str(EXAMPLE)} | sections.pop("cluster", {})
        beside = self.directory / ".config.toml"
        beside.write_text(toml.dumps({"node": {"name": "worker-1"}, "cluster": cluster, **sections}))
        beside.replace(self.directory / "config.toml")

    def start(self, stderr: int | None = None) -> None:
        """Standard error is the journal, here a file, unless another descriptor is given."""
        (self.directory / "log").touch()
        journal = (self.directory / "log").stat()
        environment = {
            **os.environ,
            "JOURNAL_STREAM": f"{journal.st_dev}:{journal.st_ino}",
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "WATCHDOG_USEC": str(WATCHDOG_USEC),
            "STATE_DIRECTORY": str(self.state_dir),
            "RUNTIME_DIRECTORY": str(self.runtime_dir),
        }
        command = [sys.executable, "-m", "metaleg_node", "--config", str(self.directory / "config.toml"), "run"]
        self.started = time.monotonic()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self.netns.name, *command], env=environment, stderr=stderr or log
            )

    def send(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def hear(self, seconds: float = TIMEOUT) -> str:
        """The next message. Raises TimeoutError."""
        self._socket.settimeout(seconds)
        return self._socket.recv(65536).decode()

    def until(self, wanted: str) -> list[str]:
        """The messages up to the first that begins so, without signs of life before it."""
        heard: list[str] = []
        deadline = time.monotonic() + TIMEOUT
        while not (heard and heard[-1].startswith(wanted)):
            assert time.monotonic() < deadline, f"no {wanted} in {heard}; the log:\n{self.log()}"
            message = self.hear()
            if message != "WATCHDOG=1" or wanted == message:
                heard.append(message)
        return heard

    def falls_silent(self, seconds: float) -> bool:
        """Waits until nothing has come for so long; whether that happens at all."""
        deadline = time.monotonic() + TIMEOUT
        try:
            while time.monotonic() < deadline:
                self.hear(seconds)
        except TimeoutError:
            return True
        return False

    def end(self) -> int:
        """The exit status."""
        assert self._process
        return self._process.wait(TIMEOUT)

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def logs(self, text: str) -> bool:
        """Whether that comes into the log, which is written beside the loop: what it has told others may be first."""
        return wait_until(lambda: text in self.log(), TIMEOUT)

    def close(self) -> None:
        self._socket.close()
        if self._process:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def manager(netns: Netns, tmp_path: Path) -> Iterator[Manager]:
    netns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    manager = Manager(netns, tmp_path)
    yield manager
    manager.close()


def has_table(manager: Manager) -> bool:
    return manager.netns.run("nft", "list", "table", "inet", "metaleg_node", check=False).returncode == 0


def last_status(messages: list[str]) -> str:
    return [message for message in messages if message.startswith("STATUS=")][-1]


def without_api(manager: Manager) -> None:
    """A configuration whose API server does not answer: nobody listens there."""
    kubeconfig = write_kubeconfig(manager.directory / "kubeconfig", NOWHERE)
    manager.configure(cluster={"state_file": "", "kubeconfig": str(kubeconfig)})


def test_from_the_start_over_reloads_to_the_stop(manager: Manager) -> None:
    manager.configure()
    manager.start()
    assert last_status(manager.until("READY=1")) == "STATUS=1 service, 4 pod addresses"
    assert has_table(manager)

    manager.configure(egress={"enabled": False})
    reload, *told, ready = manager.until("READY=1")
    assert reload.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert 0 <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000 - int(reload.rpartition("=")[2]) < TIMEOUT * 1e6
    # Before that it may tell that it waits for the state, which another configuration may read in another way.
    assert (last_status(told), ready) == ("STATUS=0 services, 0 pod addresses", "READY=1")
    assert not has_table(manager), "told before the new configuration was applied"

    manager.configure(egress={"enabeld": False})
    told = manager.until("READY=1")
    assert last_status(told).startswith("STATUS=0 services, 0 pod addresses; 2 problems: ")
    assert "egress.enabeld" in last_status(told)

    manager.configure()
    assert last_status(manager.until("READY=1")) == "STATUS=1 service, 4 pod addresses"
    manager.send(signal.SIGHUP)
    assert [message.split("\n")[0] for message in manager.until("READY=1")] == ["RELOADING=1", "READY=1"]

    manager.until("WATCHDOG=1")
    manager.send(signal.SIGTERM)
    assert manager.until("STOPPING=1") == ["STOPPING=1"]
    assert manager.end() == 0
    assert has_table(manager)
    lines = manager.log().splitlines()
    assert {line[:3] for line in lines} == {"<3>", "<6>"}
    assert f"<6>metaleg-node {metaleg_node.__version__} runs for node worker-1" in lines
    assert any(line.startswith("<3>") and "egress.enabeld" in line for line in lines)


def test_half_a_configuration_and_an_empty_one_are_not_taken(manager: Manager) -> None:
    manager.configure(egress={"enabled": False})
    manager.start()
    assert last_status(manager.until("READY=1")) == "STATUS=0 services, 0 pod addresses"
    file = manager.directory / "config.toml"
    text = file.read_text()
    with file.open("w") as writer:
        writer.write(text.replace("[egress]\nenabled = false\n", ""))
        writer.flush()
        # The loop turns, and so has seen it.
        assert [manager.hear() for _ in range(3)] == ["WATCHDOG=1"] * 3
        writer.write("[egress]\nenabled = false\n")
    manager.until("READY=1")
    assert manager.logs("configuration read again: no change"), manager.log()
    assert "configuration read again: changed" not in manager.log()

    file.write_text("")
    assert f"{file}: is empty" in last_status(manager.until("READY=1"))
    assert not has_table(manager)
    manager.configure()
    assert last_status(manager.until("READY=1")) == "STATUS=1 service, 4 pod addresses"


def test_a_pipe_in_place_of_the_configuration_stops_nothing(manager: Manager) -> None:
    manager.configure()
    manager.start()
    manager.until("READY=1")
    pipe = manager.directory / "pipe"
    os.mkfifo(pipe)
    pipe.replace(manager.directory / "config.toml")
    assert "is no regular file" in last_status(manager.until("READY=1"))
    manager.until("WATCHDOG=1")
    manager.send(signal.SIGTERM)
    assert manager.end() == 0


def test_a_journal_that_is_stuck_holds_up_neither_repair_nor_stop(manager: Manager) -> None:
    reader, writer = os.pipe()
    fill(writer)
    manager.configure()
    manager.start(stderr=writer)
    manager.until("READY=1")
    for _ in range(3):
        manager.netns.run("nft", "flush", "ruleset")
        assert wait_until(lambda: has_table(manager), patient(2))
    manager.send(signal.SIGTERM)
    asked = time.monotonic()
    assert manager.end() == 0
    assert time.monotonic() - asked < patient(5)
    for end in (reader, writer):
        os.close(end)


def test_why_it_does_not_start_is_an_error_in_the_journal(manager: Manager) -> None:
    manager.configure(egress={"enabled": 1}, hooks={"timeout": 10})
    manager.start()
    assert manager.end() == 78
    assert [line[:3] for line in manager.log().splitlines()] == ["<3>", "<3>"]


def test_F32_with_the_last_known_state_it_is_ready_though_the_api_does_not_answer(manager: Manager) -> None:
    manager.state_dir.mkdir()
    shutil.copy(EXAMPLE, manager.state_dir / "cluster-state.yaml")
    without_api(manager)
    manager.start()
    told = last_status(manager.until("READY=1"))
    assert told.startswith("STATUS=1 service, 4 pod addresses; ")
    assert "the last known state, of 20" in told
    assert has_table(manager)


def test_without_api_and_state_those_who_wait_go_on_after_ten_seconds(manager: Manager) -> None:
    """The kubelet of a control-plane node among them, whose pod the API server is."""
    without_api(manager)
    manager.start()
    place = f"{manager.directory}/kubeconfig"
    told = manager.until("READY=1")
    taken = time.monotonic() - manager.started
    problem = f"Kubernetes API {NOWHERE}: connection refused"
    assert last_status(told) == f"STATUS=waiting for the Kubernetes API ({place}); 1 problem: {problem}"
    assert 10 <= taken < 20, "from the start of the process, so the time that this takes is in it"
    assert manager.logs("nothing complete was applied within 10 s"), manager.log()
    assert not has_table(manager)


def test_while_a_hook_takes_its_time_the_loop_is_alive_but_nothing_is_ready(manager: Manager) -> None:
    hook, gate = manager.directory / "hook", manager.directory / "gate"
    os.mkfifo(gate)
    hook.write_text(f"#!/bin/sh\nread go < {gate}\n")
    hook.chmod(0o755)
    manager.configure(hooks={"pre": str(hook), "timeout": "60s"})
    manager.start()
    with gate.open("w") as go:  # Opened when the hook has begun to read.
        heard = [manager.hear() for _ in range(8)]
        go.write("\n")
    assert "READY=1" not in heard
    assert heard[-5:] == ["WATCHDOG=1"] * 5
    manager.until("READY=1")


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_stop_waits_for_no_hook(manager: Manager, kind: str) -> None:
    hook, begun = manager.directory / "hook", manager.directory / "begun"
    hook.write_text(f"#!/bin/sh\ntrap '' TERM\ntouch {begun}\nwhile :; do sleep 600; done\n")
    hook.chmod(0o755)
    manager.configure(hooks={kind: str(hook), "timeout": "10m"})
    manager.start()
    assert wait_until(begun.exists, TIMEOUT)
    manager.send(signal.SIGTERM)
    asked = time.monotonic()
    assert manager.end() == 0
    assert time.monotonic() - asked < patient(5)
    assert has_table(manager) == (kind == "post"), "a stop before the changes leaves the kernel as it is"
    assert f"hooks.{kind}: {hook}: ended before its time, since the service stops" in manager.log()


def test_a_loop_that_is_stuck_gives_no_sign_of_life(manager: Manager) -> None:
    manager.configure()
    manager.start()
    manager.until("READY=1")
    # What writes to a FIFO waits for somebody who reads it.
    stuck = manager.runtime_dir / ".status.json.tmp"
    os.mkfifo(stuck)
    manager.send(signal.SIGHUP)
    manager.until("RELOADING=1")
    assert manager.falls_silent(3 * WATCHDOG_USEC / 1e6)
    with stuck.open() as reader:
        manager.until("READY=1")
        reader.read()
    manager.until("WATCHDOG=1")
