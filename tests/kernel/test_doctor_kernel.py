"""Checks of `doctor` whose faults need more than a command: other programs' versions, traffic, a full table."""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metaleg_node.kernel import process, statistics
from tests import schemas
from tests.kernel.patient import Patient, service
from tests.netns import Netns

_UNAME26 = 0x0020000
"""personality(2): uname(2) tells of a kernel 2.6."""


@contextmanager
def old_kernel() -> Iterator[None]:
    libc = ctypes.CDLL(None)
    before = libc.personality(_UNAME26)
    try:
        yield
    finally:
        libc.personality(before)


def test_an_old_kernel_is_told(patient: Patient) -> None:
    assert patient.found("ML-101") == []
    with old_kernel():
        (finding,) = patient.found("ML-101")
    assert finding.seen.startswith("Linux 2.6.")


OF_FILES = {"ML-304", "ML-305", "ML-306"}
"""They are of the machine that the namespace is on."""
NFT_FAULTS = {
    "ML-101": ('test "$1" = --version && exec echo "nftables v0.9.8 (E.D.S.)"', "nft 0.9.8 is older than 1.0.6"),
    "ML-103": ('case "$*" in *"list chains"*) kill -SEGV $$;; esac', "was ended by signal 11"),
    "ML-104": (
        'if test "$1" = --check; then grep -q "fib daddr" && echo "Error: no fib here" >&2 && exit 1; exit 0; fi',
        "lookups of addresses (fib): Error: no fib here",
    ),
    "ML-106": (
        'if test "$1" = --check; then grep -q "ct label" && echo "Error: no labels" >&2 && exit 1; exit 0; fi',
        "connection labels: Error: no labels",
    ),
}


@pytest.mark.parametrize("code", NFT_FAULTS)
def test_an_nft_that_cannot_do_what_is_needed_is_told(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    assert patient.found(code) == []
    script, said = NFT_FAULTS[code]
    program = tmp_path / "bin" / "nft"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n{script}\nexec {process.find("nft")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(process, "SEARCH_PATH", f"{program.parent}:{process.SEARCH_PATH}")
    (finding,) = patient.found(code)
    assert said in finding.seen


def test_no_nft_is_told(patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert patient.found("ML-102") == []
    monkeypatch.setattr(process, "SEARCH_PATH", str(tmp_path))
    (finding,) = patient.found("ML-102")
    assert "the program nft is not installed" in finding.seen


def test_who_may_not_look_finds_nothing_wrong(patient: Patient, netns: Netns) -> None:
    patient.know(*service("web", pods={"10.244.1.5": "a", "10.244.2.5": "b"}, announced_by="b"))
    command = [sys.executable, "-m", "metaleg_node", "--config", str(patient.config), "doctor", "--json"]
    drop = ["setpriv", "--bounding-set", "-net_admin,-net_raw"]
    found = {}
    for only in ("ML-1", "ML-30", "ML-60"):
        found[only] = json.loads(netns.run(*drop, *command, "--only", only, check=False).stdout)
        schemas.check("doctor", found[only])
    assert not {one["code"] for part in found.values() for one in part["findings"]} - OF_FILES
    unseen = {one["code"] for part in found.values() for one in part["unseen"]}
    assert unseen >= {"ML-103", "ML-104", "ML-106", "ML-109", "ML-301", "ML-308"}


def test_a_full_conntrack_is_told(patient: Patient, netns: Netns, tmp_path: Path) -> None:
    """nf_conntrack_max belongs to the whole machine: another one is mounted over it in a mount namespace."""
    patient.run("nft 'add table inet t; add chain inet t c { type filter hook output priority 0; }'")
    patient.run("nft add rule inet t c ct state new accept")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in range(2000, 2009):
            sender.sendto(b"x", ("10.9.0.1", port))
    assert patient.found("ML-107") == []
    (tmp_path / "max").write_text("10\n")
    command = [sys.executable, "-m", "metaleg_node", "--config", str(patient.config), "doctor"]
    script = f"mount --bind {tmp_path}/max /proc/sys/net/netfilter/nf_conntrack_max; exec {' '.join(command)}"
    done = netns.run("unshare", "-m", "sh", "-ec", f"{script} --only ML-107 --json", check=False)
    (found,) = json.loads(done.stdout)["findings"]
    assert (done.returncode, found["code"], found["severity"]) == (1, "ML-107", "warning")
    assert found["seen"] == "conntrack has 9 entries of 10 (net.netfilter.nf_conntrack_max)"


def test_what_a_reverse_path_filter_drops_now_is_told(patient: Patient) -> None:
    patient.run("sysctl -qw net.ipv4.conf.all.rp_filter=1")
    assert patient.found("ML-204") == []
    ended = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("v1", 0))
        frame = forged()

        def send() -> None:
            while not ended.wait(0.02):
                sender.send(frame)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            (finding,) = patient.found("ML-204")
        finally:
            ended.set()
            thread.join()
    assert finding.seen.startswith("reverse-path filters dropped ")


def test_a_kernel_that_does_not_count_keeps_no_other_check_from_being_made(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_NET", tmp_path)
    found = patient.examined("ML-2")
    assert [(check.code, reason) for check, reason in found.unseen] == [
        ("ML-204", "the kernel does not count that here")
    ]
    assert len(found.passed) > 8


def forged() -> bytes:
    """A datagram to the host from an address that it has no way to by v0."""
    datagram = struct.pack("!4H", 1000, 2000, 8, 0)
    ends = map(socket.inet_aton, ("198.51.100.7", "10.9.0.1"))
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0, *ends)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]
    return hardware_address("v0") + b"\x02\0\0\0\0\x09" + b"\x08\x00" + header + datagram


def hardware_address(interface: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
        opened.bind((interface, 0))
        found: bytes = opened.getsockname()[4]
    return found
