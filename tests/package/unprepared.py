"""A machine where nothing is installed but git and certificates, with the network and pip's settings of this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.package.cgroups import own_group

PACKAGES = ("ca-certificates", "git")
TREE = "srv/metaleg-node"
"""Where the source tree is in the machine."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_SETTING = re.compile(r"^(?:global|install|:env:)\.+(?P<key>[\w-]+)='(?P<value>.*)'$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A command, and the file that has what it prints."""

    process: subprocess.Popen[bytes]
    log: Path


def pip_settings() -> dict[str, str]:
    """What pip is told on this machine, as environment variables."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found = {match["key"]: match["value"].replace(r"\n", " ") for match in _SETTING.finditer(listing.stdout)}
    return {f"PIP_{key.upper().replace('-', '_')}": value for key, value in found.items()}


def needed_paths(settings: dict[str, str]) -> Iterator[Path]:
    """The files and directories of this machine that pip's settings name, and the certificates that it trusts."""
    words = {word.removeprefix("file://") for value in settings.values() for word in value.split()}
    for path in (CERTIFICATES, *map(Path, sorted(words))):
        # An index on disk may have its files beside it.
        wanted = path.parent if path.name == "simple" else path
        if path.is_absolute() and wanted.exists():
            yield wanted


@contextmanager
def running(root: Path, command: str) -> Iterator[Running]:
    """Runs a shell's command in the source tree, as root, while the block runs. Everybody else goes before it: it may
    run beside tests that measure seconds."""
    settings = pip_settings()
    proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    container = [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--as-pid2",
        f"--chdir=/{TREE}",
        f"--directory={root}",
        *(f"--bind-ro={path}" for path in dict.fromkeys(needed_paths(settings))),
        *(f"--setenv={key}={value}" for key, value in {**settings, **proxies}.items()),
    ]
    log = root.with_name(f"{root.name}.log")
    with own_group() as group, log.open("wb") as output:
        whole = [*group, "nice", "-n19", *container, "sh", "-c", command]
        with subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process:
            try:
                yield Running(process=process, log=log)
            finally:
                process.terminate()
