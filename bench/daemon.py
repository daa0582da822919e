"""The program itself, run on a node of its own with files of its own."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import toml

from bench.cluster import Cluster, documents
from metaleg_node.kernel.netlink.socket import NETLINK_NETFILTER, NetlinkSocket, attribute
from metaleg_node.kernel.nftables.watch import generation
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.objects import replace_file

DEADLINE = 30.0
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GET_ELEMENTS, _INET = 0x0A0D, bytes([1, 0, 0, 0])
_TABLE, _SET, _ELEMENTS, _ELEMENT, _KEY, _VALUE = 1, 2, 3 | 0x8000, 1 | 0x8000, 1 | 0x8000, 1
"""NFT_MSG_GETSETELEM, nfgenmsg of the family inet, and attributes (linux/netfilter/nf_tables.h)."""
_TRANSACTIONS = 7
"""The group that is told of nftables transactions (linux/netfilter/nfnetlink.h, NFNLGRP_NFTABLES)."""


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory for files, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="metaleg-node-bench-") as path:
        yield Path(path)


def wait(met: Callable[[], bool], what: str, *, every: float = 0.0005, limit: float = DEADLINE) -> float:
    """Waits for something and returns when it came (monotonic seconds). Raises TimeoutError after `limit` seconds."""
    end = time.monotonic() + limit
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {limit:g} s for {what}")
        time.sleep(every)
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Commits:
    """The nftables transactions of a node, by a socket that is told of them."""

    heard: socket.socket

    def forget(self) -> None:
        """Those until now do not count."""
        while select.select([self.heard], [], [], 0)[0]:
            self.heard.recv(1 << 16)

    def wait(self) -> float:
        """When the next one came (monotonic seconds). Raises TimeoutError."""
        self.heard.recv(1 << 16)
        return time.monotonic()


class Daemon:
    """`metaleg-node` as node1 of a cluster."""

    def __init__(self, node: Namespace, directory: Path) -> None:
        self.node = node
        self._directory = directory
        directory.mkdir()

    @property
    def state_file(self) -> Path:
        return self._directory / "state.yaml"

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text()

    def configure(self, **sections: Mapping[str, Any]) -> None:
        """Writes the configuration: `sections` beside the node's name and the state file."""
        base = {"node": {"name": "node1"}, "cluster": {"state_file": str(self.state_file)}}
        (self._directory / "config.toml").write_text(toml.dumps({**base, **sections}))

    def apply(self, cluster: Cluster, **sections: Mapping[str, Any]) -> None:
        """Brings the node into the state that the cluster asks for, without leaving a daemon behind; `sections` as in
        `configure`."""
        self.configure(**sections)
        replace_file(self.state_file, documents(cluster.objects()).encode())
        with self.node.inside():
            subprocess.run(self._command("apply"), check=True, stdout=subprocess.DEVNULL)

    @contextmanager
    def running(self) -> Iterator[int]:
        """Starts `run`; gives the process id; stops it with SIGTERM."""
        with self.node.inside(), open(self._directory / "log", "ab") as log:
            process = subprocess.Popen(self._command("run"), stdout=log, stderr=log)
        try:
            yield process.pid
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the daemon's log:\n{self.log}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()

    def status_stamp(self) -> int | None:
        """Changes whenever the daemon has told what it did."""
        path = self._directory / "run" / "status.json"
        return path.stat().st_mtime_ns if path.exists() else None

    @contextmanager
    def commits(self) -> Iterator[Commits]:
        """Hears of the node's nftables transactions, without asking again and again: that would take time from what is
        measured."""
        with self.node.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as heard:
            heard.bind((0, 0))
            heard.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _TRANSACTIONS)
            heard.settimeout(DEADLINE)
            yield Commits(heard)

    @contextmanager
    def elements(self, name: str) -> Iterator[Callable[[str], bool]]:
        """Tells whether a set of ours has an IPv4 address, without the time that a process takes."""
        table = attribute(_TABLE, b"metaleg_node\0")
        netlink = NetlinkSocket(NETLINK_NETFILTER)
        with self.node.inside():
            netlink.open()

        def has(address: str) -> bool:
            key = attribute(_KEY, attribute(_VALUE, IPv4Address(address).packed))
            asked = attribute(_ELEMENTS, attribute(_ELEMENT, key))
            body = _INET + table + attribute(_SET, name.encode() + b"\0") + asked
            (answer,) = netlink.ask(_GET_ELEMENTS, [body], f"look for {address}")
            assert answer.code in (0, errno.ENOENT), answer
            return not answer.code

        with netlink:
            yield has

    def generation(self) -> int:
        with self.node.inside(), NetlinkSocket(NETLINK_NETFILTER) as netlink:
            return generation(netlink)

    def _command(self, name: str) -> list[str]:
        directory = self._directory
        options = ["--config", directory / "config.toml", "--runtime-dir", directory / "run"]
        options += ["--state-dir", directory / "lib", "--log-level", "warning"]
        return [sys.executable, "-m", "metaleg_node", *map(str, options), name]


def cpu_seconds(process_id: int) -> float:
    """Processor time of a process, its threads and its ended children."""
    text = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return sum(int(value) for value in text[11:15]) / os.sysconf("SC_CLK_TCK")


def memory_mib(process_id: int) -> tuple[float, float]:
    """Resident memory of a process now and at its peak, in MiB."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith("Vm"))
    return int(found["VmRSS"].split()[0]) / 1024, int(found["VmHWM"].split()[0]) / 1024
