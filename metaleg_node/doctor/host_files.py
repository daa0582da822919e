"""Files of the host that say what other programs will do: sysctl.d(5), systemd's units and configurations. Only read;
below a root of their own in tests."""

from __future__ import annotations

import configparser
import fnmatch
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_SYSTEMD = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
"""Where systemd and sysctl look, the first with a name counts (systemd.unit(5), sysctl.d(5))."""
_SYSCTL_LINE = re.compile(r"-?\s*([^#;=\s][^=]*?)\s*=\s*(.*?)\s*$")


class Line(NamedTuple):
    """A setting in a file: what it is set to, and where that stands."""

    value: str
    file: str


class HostFiles:
    """Those below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """A file or folder, as `etc/nftables.conf`."""
        return self.root / name

    def text(self, name: str) -> str:
        """Its content; empty where there is none. Raises OSError where it may not be read."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return ""

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def shown(self, path: Path) -> str:
        """A file's path as the host knows it."""
        return f"/{path.relative_to(self.root)}"

    def drop_ins(self, folder: str, suffix: str = ".conf") -> list[Path]:
        """The files of, say, `sysctl.d` in all of their places, in the order in which they are read."""
        found: dict[str, Path] = {}
        for place in _SYSTEMD:
            for path in self._listed(f"{place}/{folder}"):
                if path.suffix == suffix:
                    found.setdefault(path.name, path)
        return [found[name] for name in sorted(found)]

    def _listed(self, folder: str) -> list[Path]:
        try:
            return [*self.path(folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    # --- sysctl.d ---

    def sysctls(self, pattern: str) -> dict[str, Line]:
        """What the files will set those variables to that match a pattern such as `net/ipv4/conf/*/rp_filter`, as they
        are named there, with slashes; the last line counts. /etc/sysctl.conf comes after all others, as procps has
        it."""
        found: dict[str, Line] = {}
        for path in (*self.drop_ins("sysctl.d"), self.path("etc/sysctl.conf")):
            for line in _lines(path):
                if (match := _SYSCTL_LINE.match(line)) and fnmatch.fnmatch(name := _slashes(match[1]), pattern):
                    found.pop(name, None)
                    found[name] = Line(match[2], self.shown(path))
        return found

    # --- systemd ---

    def configured(self, folder: str, name: str, section: str, keys: Iterable[str]) -> dict[str, Line]:
        """Settings in, say, `systemd/networkd.conf` and its drop-ins; the last one counts."""
        first = next((path for place in _SYSTEMD if (path := self.path(f"{place}/{folder}/{name}")).is_file()), None)
        paths = ([first] if first else []) + self.drop_ins(f"{folder}/{name}.d")
        found: dict[str, Line] = {}
        for path in paths:
            for _, key, value in _settings(path, section):
                if key in keys:
                    found[key] = Line(value, self.shown(path))
        return found

    def unit(self, name: str) -> list[Path]:
        """The files of a unit, its own first, then drop-ins; empty where there is no such unit."""
        own = next((p for place in _SYSTEMD if (p := self.path(f"{place}/systemd/system/{name}")).exists()), None)
        return [own, *self.drop_ins(f"systemd/system/{name}.d")] if own else []

    def unit_settings(self, name: str, section: str) -> list[tuple[str, str, str]]:
        """(file, key, value) of a unit's section, in order."""
        return [
            (self.shown(path), key, value) for path in self.unit(name) for _, key, value in _settings(path, section)
        ]

    def enabled(self, unit: str) -> bool:
        """Whether something wants a unit at boot."""
        found = self.path("etc/systemd/system").glob(f"*.wants/{unit}")
        return any(True for _ in found)


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        return


def _slashes(name: str) -> str:
    """A variable's name with slashes, see sysctl(8)."""
    dotted = "." in name and ("/" not in name or name.index(".") < name.index("/"))
    return name.translate(str.maketrans("./", "/.")) if dotted else name


def _settings(path: Path, section: str) -> Iterator[tuple[str, str, str]]:
    """What a section of an ini file holds, a key as often as it is there (systemd.syntax(7))."""
    here = ""
    for line in _lines(path):
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            here = text[1:-1]
        elif here == section and "=" in text and text[0] not in "#;":
            key, _, value = text.partition("=")
            yield here, key.strip(), value.strip()


def keyfile(text: str, section: str) -> dict[str, str]:
    """A section of a file of NetworkManager's; empty where it cannot be read."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
        return dict(parser[section])
    except (configparser.Error, KeyError):
        return {}


def true(text: str) -> bool:
    """A boolean as systemd, firewalld and NetworkManager write it."""
    return text.strip().lower() in ("1", "yes", "true", "on", "y")
