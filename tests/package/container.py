"""A booted Debian with systemd, which is a node of the lab: it shares that node's network namespace, nothing else."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.namespaces import Namespace
from tests.package.archive import install_command
from tests.patience import patient

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
_BOOT_SECONDS = patient(60)


class BootError(Exception):
    """The container did not boot; the message has what its console said."""


class Container:
    """systemd-nspawn(1) on a root directory. `folders` of the host, by their path inside, can be read there. `group` is
    what its command line begins with."""

    def __init__(
        self, root: Path, host_name: str, network: Namespace, folders: Mapping[str, Path], group: Sequence[str]
    ) -> None:
        self.root = root
        self._host_name = host_name
        self._network = network
        self._folders = folders
        self._group = group
        self._console = root.with_name(f"{root.name}.console")
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self) -> None:
        """Returns when systemd has started all it wants to start. Raises BootError."""
        address = self._console.with_suffix(".notify")
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, self._console.open("wb") as console:
            told.bind(str(address))
            told.settimeout(_BOOT_SECONDS)
            environment = {
                "PATH": os.environ["PATH"],
                "NOTIFY_SOCKET": str(address),
                # The node's own sysctls, as a machine would have them.
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            }
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment
            )
            try:
                self._leader = self._wait_for_leader(told)
            except TimeoutError as error:
                self.kill()
                raise BootError(f"{self._host_name} does not boot: {self._console.read_text()[-3000:]}") from error
        # A machine has one boot id; nspawn gives another one to all but sandboxes with a /proc of their own. journald
        # has begun with that one, so journalctl's --boot finds nothing.
        self.run("umount", "/proc/sys/kernel/random/boot_id")
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def power_off(self) -> None:
        """Shuts down in order; a container that does not run is fine."""
        if self._process:
            self.run("systemctl", "poweroff", check=False)
            self._process.wait(_BOOT_SECONDS)
            self._process = None

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def run(
        self, *command: str, check: bool = True, stdin: str = "", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program inside; a failure raises AssertionError with its output, unless `check` is off."""
        done = subprocess.run(
            [*self.entering(), *command], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def entering(self) -> list[str]:
        """What a command line inside begins with."""
        variables = [f"{key}={value}" for key, value in _ENVIRONMENT.items()]
        return ["nsenter", f"--target={self._leader}", "--all", "--wdns=/", "env", "-i", *variables]

    def install(self, files: Sequence[Path]) -> str:
        """`apt install` of package files; what they need must be among them, or there."""
        folder = self.root / "packages"
        folder.mkdir()
        try:
            for file in files:
                shutil.copy(file, folder)
            done = self.run(*install_command(files), timeout=120)
            return done.stdout + done.stderr
        finally:
            shutil.rmtree(folder)

    def write(self, path: str, text: str, mode: int = 0o644, group: str = "root") -> None:
        """Puts a whole file, as an administrator would."""
        self.run("install", "-D", f"--mode={mode:o}", f"--group={group}", "/dev/stdin", path, stdin=text)

    def property(self, name: str, unit: str = "metaleg-node") -> str:
        """What `systemctl show` tells of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def log(self, unit: str = "metaleg-node") -> str:
        """The unit's messages, of all boots."""
        return self.run("journalctl", "--output=cat", f"--unit={unit}").stdout

    def wait(self, *command: str, timeout: float = 10) -> None:
        """Waits until a command inside succeeds."""
        done = wait_until(lambda: self.run(*command, check=False).returncode == 0, timeout, pause=0.05)
        assert done, f"{command} did not succeed within {timeout} s:\n{self.log()}"

    def _command(self) -> list[str]:
        return [
            *self._group,
            "systemd-nspawn",
            "--quiet",
            "--boot",
            "--notify-ready=yes",
            "--register=no",
            "--keep-unit",
            f"--directory={self.root}",
            f"--machine={self._host_name}",
            f"--network-namespace-path=/run/netns/{self._network.name}",
            "--capability=CAP_NET_ADMIN",
            *(f"--bind-ro={there}:{inside}" for inside, there in self._folders.items()),
        ]

    def _wait_for_leader(self, told: socket.socket) -> int:
        """The process that is systemd inside, once that has told that it is ready. Raises TimeoutError."""
        leader = 0
        while True:
            for line in told.recv(4096).decode().splitlines():
                key, _, value = line.partition("=")
                if key == "X_NSPAWN_LEADER_PID":
                    leader = int(value)
                if key == "READY" and leader:
                    return leader
