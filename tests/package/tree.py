"""Copies of this source tree, as a fresh checkout would be, and the package built in one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy(target: Path) -> Path:
    """What git has or would take, in a repository of its own."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        # Somebody may be at work: what git has can be gone.
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    subprocess.run(["git", "init", "--quiet", target], check=True)
    return target


def before(target: Path) -> Path:
    """The last release, or the commit before where nothing was released yet, in a folder of its own. Raises
    CalledProcessError where history is not there."""
    target.mkdir(parents=True)
    tag = subprocess.run(
        ["git", "describe", "--tags", "--abbrev=0", "HEAD~1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    archive = ["git", "archive", tag.stdout.strip() or "HEAD~1"]
    content = subprocess.run(archive, cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], cwd=target, input=content, check=True)
    subprocess.run(["git", "init", "--quiet", target], check=True)
    return target


def build(tree: Path, environment: Mapping[str, str] | None = None, before: Sequence[str] = ()) -> Path:
    """Runs `./dev deb` and returns the package; `before` is what its command line begins with."""
    done = subprocess.run(
        [*before, "./dev", "deb"],
        cwd=tree,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = (tree / "dist").glob("*.deb")
    return package


def fields(package: Path) -> dict[str, str]:
    """The control fields of a package."""
    text = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True).stdout
    return {key: value for key, _, value in (line.partition(": ") for line in text.splitlines()) if value}


def newer(package: Path, directory: Path) -> Path:
    """The same package as a later version."""
    content = directory / "content"
    subprocess.run(["dpkg-deb", "--raw-extract", package, content], check=True)
    control = content / "DEBIAN/control"
    version = f"{fields(package)['Version']}+later"
    control.write_text(control.read_text().replace(f"Version: {fields(package)['Version']}", f"Version: {version}"))
    made = directory / f"metaleg-node_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", content, made], check=True, capture_output=True)
    return made


def dependencies(package: Path) -> list[str]:
    """The names of the packages that a package depends on, the first one of alternatives."""
    return sorted(wanted.split()[0].partition(":")[0] for wanted in fields(package)["Depends"].split(", "))
