"""Roots of Debian to install packages in, made with the machine's own apt: its mirror, its proxy, its keys.

What is slow to make is kept in the user's cache directory: roots by what they contain, and downloaded packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SUITES = ("bookworm", "trixie")
"""The releases that the tests know: Debian 12 and 13."""
BASE = ("dbus", "systemd", "systemd-sysv")
"""What a container needs to boot, beside what is essential. All else must come by way of our package."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RECIPE = 1
"""To be raised when the same packages shall make another root."""
_DPKG_OPTIONS = "force-unsafe-io\n"


class Unavailable(Exception):  # noqa: N818 - it is a state of affairs
    """This machine cannot make a root; the message says what is missing."""


class Archive:
    """One release in Debian's archive, and the cache of what came from it."""

    def __init__(self, cache: Path, suite: str = "bookworm") -> None:
        self.folder = cache / suite
        """Where it is kept."""
        self._suite = suite
        for name in ("lists/partial", "packages/partial", "none/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Makes what all roots begin with, unless it is there. Raises Unavailable."""
        with self._lock():
            self._kept_root(())

    def make_root(self, target: Path, packages: Sequence[str] = ()) -> None:
        """A minimal system with `packages`, and what they depend on, at a path that is free. Raises Unavailable."""
        call("cp", "--archive", "--reflink=auto", str(self.kept_root(packages)), str(target))

    def kept_root(self, packages: Sequence[str]) -> Path:
        """The same in the cache, not to be changed. Raises Unavailable."""
        with self._lock():
            return self._kept_root(packages)

    def download(self, root: Path, *packages: str) -> list[Path]:
        """The files of all packages that must be installed in `root` for these, which are names or paths of files (they
        are among the result). Raises Unavailable."""
        with self._lock():
            return self._download(root, packages)

    def write_sources(self, root: Path) -> None:
        """Lets the apt of a root use the same mirror, as far as it can be reached from there."""
        shutil.copy(self._sources(), root / "etc/apt/sources.list")

    # --- roots -------------------------------------------------------------------------------------------------------

    def _kept_root(self, packages: Sequence[str]) -> Path:
        kept = self.folder / f"root-{self._key(packages)}"
        if kept.exists():
            return kept
        making = kept.with_suffix(".new")
        shutil.rmtree(making, ignore_errors=True)
        if packages:
            call("cp", "--archive", "--reflink=auto", str(self._kept_root(())), str(making))
            self._install(making, self._download(making, packages))
        else:
            self._bootstrap(making)
        making.rename(kept)
        return kept

    def _bootstrap(self, root: Path) -> None:
        mirror = _mirrors()["Debian"]
        call("debootstrap", "--variant=minbase", f"--include={','.join(BASE)}", self._suite, str(root), mirror)
        (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text(_DPKG_OPTIONS)
        for leftover in ("etc/apt/sources.list", "etc/hostname", "etc/resolv.conf"):
            (root / leftover).unlink(missing_ok=True)
        for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / leftover)
        self._update()

    def _install(self, root: Path, files: Sequence[Path]) -> None:
        folder = root / "packages"
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        # A kernel's initramfs takes long to make, and nothing here boots it.
        environment = ("DEBIAN_FRONTEND=noninteractive", "INITRD=No")
        call("env", *environment, "chroot", str(root), *install_command(files))
        shutil.rmtree(folder)

    # --- apt ---------------------------------------------------------------------------------------------------------

    def _download(self, root: Path, packages: Sequence[str]) -> list[Path]:
        try:
            return self._try_download(root, packages)
        except Unavailable:
            # The lists are too old, or were never there.
            self._update()
            return self._try_download(root, packages)

    def _try_download(self, root: Path, packages: Sequence[str]) -> list[Path]:
        folder = self.folder / "packages"
        self._apt("install", "--download-only", "--no-install-recommends", *packages, root=root, archives=folder)
        # Looked up in an empty folder, since apt passes over what it has.
        listing = self._apt("install", "--print-uris", "--no-install-recommends", *packages, root=root)
        names = re.findall(r"^'https?:[^']+' (\S+\.deb) ", listing, flags=re.MULTILINE)
        local = [Path(package) for package in packages if "/" in package]
        return [*(folder / name for name in names), *local]

    def _update(self) -> None:
        self._apt("update")

    def _apt(self, *arguments: str, root: Path | None = None, archives: Path | None = None) -> str:
        status = root / "var/lib/dpkg/status" if root else "/dev/null"
        options = {
            "Dir::Etc::sourcelist": self._sources(),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self.folder / "lists",
            "Dir::State::status": status,
            "Dir::State::extended_states": self.folder / "extended_states",
            "Dir::Cache::archives": f"{archives or self.folder / 'none'}/",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Get::List-Cleanup": "false",
            "APT::Keep-Downloaded-Packages": "true",
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "true",
        }
        return call("apt-get", "-q", "-y", *(f"-o{key}={value}" for key, value in options.items()), *arguments)

    def _sources(self) -> Path:
        """A sources.list with nothing but this suite of Debian's own repositories."""
        path = self.folder / "sources.list"
        if not path.exists():
            mirrors = _mirrors()
            lines = [f"deb [signed-by={_KEYRING}] {mirrors['Debian']} {self._suite} main"]
            if security := mirrors.get("Debian-Security"):
                lines.append(f"deb [signed-by={_KEYRING}] {security} {self._suite}-security main")
            path.write_text("\n".join([*lines, ""]))
        return path

    def _key(self, packages: Sequence[str]) -> str:
        contents = (_RECIPE, self._suite, BASE, sorted(packages), call("dpkg", "--print-architecture"))
        return hashlib.sha256(repr(contents).encode()).hexdigest()[:16]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def default_cache() -> Path:
    """Where this machine keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaleg-node"


def install_command(files: Sequence[Path]) -> list[str]:
    """What installs package files in a system that knows of no others."""
    names = [f"/packages/{file.name}" for file in files]
    return ["apt-get", "-q", "-y", "install", "--allow-downgrades", "--no-install-recommends", *names]


def call(*command: str, cwd: Path | None = None) -> str:
    """Runs a program and returns what it printed. Raises Unavailable with its complaint."""
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed: run `./dev setup` as root") from error
    if done.returncode:
        raise Unavailable(f"`{' '.join(command)}` ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def _mirrors() -> dict[str, str]:
    """Address of each of Debian's repositories (by its label) that apt has on this machine. Raises Unavailable."""
    found = _targets()
    if "Debian" not in found:
        call("apt-get", "-q", "update")
        found = _targets()
    if "Debian" not in found:
        raise Unavailable("apt's sources on this machine name no mirror of Debian")
    return found


def _targets() -> dict[str, str]:
    targets = call("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Origin: Debian")
    return dict(line.split(maxsplit=1) for line in targets.splitlines())
