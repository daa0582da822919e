"""A virtual machine with a release of Debian, its kernel and its packages, which runs tests of this tree and ends.

It needs no hardware acceleration, so it runs where containers do; everything in it is slower by an order of magnitude.
Its root is in memory. The tree comes in, and the exit status out, by a folder that both sides see (9p).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.package import tree
from tests.package.archive import Archive, Unavailable

QEMU = "qemu-system-x86_64"
PACKAGES = (
    "conntrack",
    "ipset",
    "iproute2",
    "iptables",
    "iputils-ping",
    "ipvsadm",
    "kmod",
    "linux-image-amd64",
    "nftables",
    "openssl",
    "procps",
    "python3-hypothesis",
    "python3-kubernetes",
    "python3-prometheus-client",
    "python3-pytest",
    "python3-pytest-timeout",
    "python3-toml",
    "python3-watchdog",
    "python3-yaml",
)
"""What the tests and the program use, and the kernel."""
LIMIT = 2700
"""Seconds after which a machine that has not ended by itself is stopped."""
MEMORY = "3G"
EX_TIMEOUT = 124
_INIT = Path(__file__).with_name("init")
_DRIVERS = "./usr/lib/modules/*/kernel/drivers"
_LEFT_OUT = (
    "./boot/initrd*",
    "./usr/share/doc",
    "./usr/share/locale",
    "./usr/share/man",
    "./var/cache",
    "./var/lib/apt",
    "./usr/lib/modules/*/kernel/sound",
    *(
        f"./usr/lib/modules/*/kernel/drivers/{name}"
        for name in ("gpu", "infiniband", "media", "scsi", "staging", "usb")
    ),
    *(f"./usr/lib/modules/*/kernel/drivers/net/{name}" for name in ("ethernet", "wireless")),
)
"""What no test needs: all the rest is unpacked at every boot."""


class MachineError(Exception):
    """A machine ended, or was ended, before pytest did; the message has what its console said."""


class Machine:
    """A release's machine; what it boots is kept in the archive's folder, by what goes in."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def prepare(self) -> None:
        """Makes what it boots, unless it is there; that takes minutes. Raises Unavailable."""
        for program in (QEMU, "cpio", "debootstrap"):
            if not shutil.which(program):
                raise Unavailable(f"{program} is not installed; on Debian for amd64, `./dev setup` as root does it")
        folder = self._folder()
        if folder.exists():
            return
        root = self._archive.kept_root(PACKAGES)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            made = Path(name) / "made"
            made.mkdir()
            (kernel,) = root.glob("boot/vmlinuz-*")
            shutil.copy(kernel, made / "kernel")
            _pack(root, made / "root")
            if not folder.exists():
                made.rename(folder)

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        """Runs pytest in a copy of this tree, with its output on ours, and returns its exit status. Raises
        MachineError."""
        with tempfile.TemporaryDirectory(prefix="metaleg-vm-") as name:
            shared, console = Path(name) / "shared", Path(name) / "console"
            shared.mkdir()
            _pack_tree(shared / "tree.tar", Path(name) / "tree")
            (shared / "arguments").write_bytes(_joined(arguments))
            (shared / "environment").write_bytes(_joined(f"{key}={value}" for key, value in environment.items()))
            how = self._boot(shared, console)
            status = shared / "status"
            if not status.exists():
                raise MachineError(f"it {how}; its console: {console.read_text(errors='replace')[-3000:]}")
            return int(status.read_text())

    def _boot(self, shared: Path, console: Path) -> str:
        folder = self._folder()
        command = ["timeout", "--foreground", str(LIMIT), QEMU, "-smp", "2", "-m", MEMORY]
        command += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]
        command += ["-kernel", f"{folder}/kernel", "-initrd", f"{folder}/root"]
        # Where others have the processors, the timer may not tick while the kernel waits to see whether it does.
        command += [
            "-append",
            "console=ttyS0 quiet panic=-1 no_timer_check",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ]
        command += ["-nic", "none", "-serial", f"file:{console}", "-serial", "stdio"]
        command += ["-virtfs", f"local,path={shared},mount_tag=shared,security_model=none"]
        status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
        return f"did not end within {LIMIT} s" if status == EX_TIMEOUT else f"ended with {status}"

    def _folder(self) -> Path:
        contents = repr((PACKAGES, _LEFT_OUT, _INIT.read_text()))
        return self._archive.folder / f"vm-{hashlib.sha256(contents.encode()).hexdigest()[:16]}"


def _pack(root: Path, target: Path) -> None:
    """An initramfs of the root and `init`. It is not compressed: unpacking would take longer than loading."""
    left_out = [word for path in _LEFT_OUT for word in ("-path", path, "-o")][:-1]
    find = ["find", ".", "-xdev", "(", *left_out, ")", "-prune", "-o", "-print0"]
    with target.open("wb") as file:
        _cpio(find, root, file.fileno())
        _cpio(["find", "init", "-print0"], _INIT.parent, file.fileno())


def _cpio(find: Sequence[str], folder: Path, output: int) -> None:
    names = subprocess.run(find, cwd=folder, capture_output=True, check=True).stdout
    # Owned by root whoever has the tree.
    command = ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=+0:+0"]
    subprocess.run(command, cwd=folder, input=names, stdout=output, check=True)


def _pack_tree(target: Path, copy: Path) -> None:
    copy.mkdir()
    tree.copy(copy)
    subprocess.run(["tar", "-c", "-f", target, "-C", copy, "--exclude=./.git", "."], check=True)


def _joined(words: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)
