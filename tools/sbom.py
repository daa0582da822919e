"""A bill of materials of the Debian package, in CycloneDX's JSON: what it depends on, as apt of this machine knows it.

https://cyclonedx.org/docs/1.5/json/, https://github.com/package-url/purl-spec
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DEPENDENCY = re.compile(r"(?P<name>[a-z0-9][a-z0-9.+-]+)(?::\w+)?(?: \((?P<constraint>[^)]+)\))?")

Json = dict[str, Any]


def bill(package: Path) -> Json:
    """The document for a package file. Raises CalledProcessError."""
    fields = _fields(_output("dpkg-deb", "--field", str(package)))
    parts = list(_components(fields["Depends"]))
    own = _component(fields["Package"], fields["Version"]) | {
        "type": "application",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # The same package has the same bill.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([own, parts]))}",
        "version": 1,
        "metadata": {"component": own},
        "components": parts,
        "dependencies": [{"ref": own["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _components(depends: str) -> Iterator[Json]:
    """Of alternatives the first, each package once, in the order of their names."""
    wanted: dict[str, list[str]] = {}
    for text in depends.split(","):
        found = _DEPENDENCY.match(text.strip())
        assert found, text
        wanted.setdefault(found["name"], []).extend(filter(None, [found["constraint"]]))
    for name, constraints in sorted(wanted.items()):
        properties = [{"name": "debian:constraint", "value": constraint} for constraint in constraints]
        yield (
            _component(name, _version(name)) | {"type": "library"} | ({"properties": properties} if properties else {})
        )


def _component(name: str, version: str) -> Json:
    reference = f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}"
    return {"bom-ref": reference, "name": name, "version": version, "purl": reference}


def _version(name: str) -> str:
    """The one that apt would install."""
    found = re.search(r"^  Candidate: (\S+)$", _output("apt-cache", "policy", name), re.MULTILINE)
    return found[1] if found else "unknown"


def _fields(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition(": ") for line in text.splitlines()) if value}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}).stdout


def main() -> None:
    """Writes the bill beside each package that is named."""
    for package in map(Path, sys.argv[1:]):
        target = package.with_suffix(".cdx.json")
        target.write_text(f"{json.dumps(bill(package), indent=2)}\n", encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main()
