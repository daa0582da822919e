"""The package as a file: who can build it, what is in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import metaleg_node
from tests.package import tree
from tests.package.archive import Archive
from tools import sbom

_DEBIAN_NAMES = {"PyYAML": "yaml"}
"""Python packages that Debian names otherwise than their index does."""


def test_every_build_gives_the_same_bytes_wherever_and_by_whomever(package: Path, directory: Path) -> None:
    again = tree.copy(directory / "elsewhere" / "second")
    for path in (again, *again.rglob("*")):
        shutil.chown(path, "nobody", "nogroup")
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "sh", "-c", 'umask 077; exec "$@"', "-"]
    environment = {"HOME": "/nonexistent", "TZ": "Asia/Tokyo", "LC_ALL": "C", "SOURCE_DATE_EPOCH": ""}
    built = tree.build(again, environment, before=nobody)
    assert built.read_bytes() == package.read_bytes()


def test_lintian_has_nothing_to_say(package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=error,warning", package], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_versions_agree(package: Path) -> None:
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())["project"]
    assert [tree.fields(package)["Version"], metaleg_node.__version__] == [project["version"]] * 2


def test_the_package_depends_on_what_the_program_requires(package: Path) -> None:
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split("[>=]", requirement)[0] for requirement in project["dependencies"]]
    wanted = {f"python3-{_DEBIAN_NAMES.get(name, name)}" for name in names} | {"nftables"}
    assert wanted <= set(tree.dependencies(package))
    assert tree.fields(package)["Architecture"] == "all"


def test_the_bill_of_materials_is_valid_and_names_every_dependency_with_a_version(package: Path) -> None:
    document = sbom.bill(package)
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(json.dumps(document)) is None
    assert [part["name"] for part in document["components"]] == tree.dependencies(package)
    assert [part["name"] for part in document["components"] if part["version"] in ("unknown", "(none)")] == []
    assert document == sbom.bill(package)


def test_debian_alone_has_all_that_it_depends_on(package: Path, archive: Archive, directory: Path) -> None:
    """Nothing but this release of Debian is asked, and the root is a minimal one."""
    root = directory / "minimal"
    archive.make_root(root)
    names = [file.name for file in archive.download(root, str(package))]
    assert [name for name in names if name.startswith("python3-kubernetes_")]
    assert names[-1] == package.name
