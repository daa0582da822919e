"""Kernel settings: read, changed with the way back remembered, and put back.

A name is written as in sysctl(8): when the first separator is a slash the name is the path below /proc/sys
("net/ipv4/conf/eth0.100/rp_filter"); when it is a dot, dots separate and a slash stands for a dot within a part
("net.ipv4.conf.eth0/100.rp_filter"). Records and answers keep the name as it was given.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from metaleg_node import files
from metaleg_node.kernel.errors import KernelError, refusal

_ROOT = Path("/proc/sys")
_BOOT_ID = _ROOT / "kernel/random/boot_id"
_RP_FILTER = _ROOT / "net/ipv4/conf"
_T = TypeVar("_T")
_SWAP = str.maketrans("./", "/.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The value found before our first change, and what we set: two values while the second is being written.
    `interface` is the index of the one that it belongs to, 0 for none."""

    original: str
    ours: tuple[str, ...]
    interface: int

    def name(self, recorded: str) -> str | None:
        """What the setting is called now, if it is still as we left it. Else somebody has decided since, or the
        interface is gone, maybe with another of its name in its place: the record is void."""
        name = _renamed(recorded, self.interface) if self.interface else recorded
        return name if name is not None and _read(name) in self.ours else None


class Sysctls:
    """Sysctls of the calling thread's network namespace; what we changed is kept in `state_dir`/sysctls.json.

    The record holds for one boot of the machine: afterwards the settings are the operator's again.
    """

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / "sysctls.json"

    def read(self, names: Iterable[str]) -> dict[str, str]:
        """The present values; a setting that does not exist (its interface is gone) is left out."""
        found = {}
        for name in names:
            value = _read(name)
            if value is not None:
                found[name] = value
        return found

    def set(self, values: Mapping[str, str]) -> list[KernelError | None]:
        """Writes values in their order and remembers, before the first change, what was there. Tells of each why it
        failed, None if it did not.

        The record is on disk before the kernel changes, so that a kill in between leaves only a record of a change
        that did not happen. It is written once for all of them, twice where we had set one before.
        """
        failed: dict[str, KernelError] = {}
        try:
            records = self._records()
            before = {name: one for name in values if (one := _attempt(failed, name, _present, name, values[name]))}
            changed = {name: values[name] for name, one in before.items() if one != values[name]}
            first = {name: _begun(records.get(name), name, before[name], value) for name, value in changed.items()}
            if changed:
                self._save({**records, **first})
            for name, value in changed.items():
                _attempt(failed, name, _write, name, value)
            last = {name: replace(first[name], ours=(changed[name],)) for name in changed.keys() - failed.keys()}
            if any(first[name] != record for name, record in last.items()):
                self._save({**records, **first, **last})
        except KernelError as error:
            return [failed.get(name, error) for name in values]
        return [failed.get(name) for name in values]

    def remembered(self) -> dict[str, str]:
        """What was there before, by present name, of every setting that is still as we changed it since the machine's
        boot.

        Raises KernelError when the record cannot be read.
        """
        return {name: record.original for name, record in self._records().items()}

    def restore(self, names: Iterable[str]) -> list[KernelError | None]:
        """Puts the remembered values back in this order, unless somebody else has changed them since, and forgets
        their records. Tells of each why it failed, None if it did not.

        A name without record and a setting that no longer exists are fine.
        """
        failed: dict[str, KernelError] = {}
        wanted = [*names]
        try:
            records = self._records()
            found = [name for name in wanted if name in records]
            for name in found:
                _attempt(failed, name, _write, name, records[name].original)
            if found:
                self._save({name: one for name, one in records.items() if name in failed or name not in found})
        except KernelError as error:
            return [failed.get(name, error) for name in wanted]
        return [failed.get(name) for name in wanted]

    def prune(self) -> None:
        """Forgets what is no longer as we left it, such as the settings of interfaces that are gone, and writes down
        which have another name.

        Raises KernelError.
        """
        found = self._load()
        records = _holding(found)
        if records != found:
            self._save(records)

    def rp_filter(self) -> dict[str, int]:
        """net.ipv4.conf.NAME.rp_filter (0 off, 1 strict, 2 loose; RFC 3704) of every interface, of `all`, and of
        `default`, which future interfaces begin with."""
        found = {}
        for interface in os.listdir(_RP_FILTER):
            value = _read(f"net/ipv4/conf/{interface}/rp_filter")
            if value is not None:
                found[interface] = int(value)
        return found

    def _records(self) -> dict[str, _Record]:
        """Those that hold; the others go when the file is next written."""
        return _holding(self._load())

    def _load(self) -> dict[str, _Record]:
        try:
            document = json.loads(self._file.read_text())
            if document["boot_id"] != _boot_id():
                return {}
            interfaces = document.get("interfaces", {})
            return {
                str(name): _record(int(interfaces.get(name, 0)), *values)
                for name, values in document["sysctls"].items()
            }
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise KernelError(
                f"cannot read {self._file}: {error.strerror}; it tells which sysctls to put back", code=error.errno or 0
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise KernelError(
                f"{self._file} is damaged ({error}): compare the sysctls by hand, then delete the file"
            ) from error

    def _save(self, records: Mapping[str, _Record]) -> None:
        document = {
            "boot_id": _boot_id(),
            "interfaces": {name: record.interface for name, record in records.items() if record.interface},
            "sysctls": {name: (record.original, *record.ours) for name, record in records.items()},
        }
        content = json.dumps(document, indent=2, sort_keys=True) + "\n"
        try:
            files.replace(self._file, content.encode(), mode=0o600)
        except OSError as error:
            raise KernelError(
                f"cannot write {self._file}: {error.strerror}; no sysctl is changed unless it can be put back",
                code=error.errno or 0,
            ) from error


def _holding(records: Mapping[str, _Record]) -> dict[str, _Record]:
    found = ((record.name(name), record) for name, record in records.items())
    return {name: record for name, record in found if name is not None}


def _begun(known: _Record | None, name: str, present: str, value: str) -> _Record:
    """The record while a value is being written: where we had set one before, whichever of the two a kill leaves there
    is ours."""
    if known is None:
        return _Record(original=present, ours=(value,), interface=_interface(name))
    return _Record(original=known.original, ours=(present, value), interface=_interface(name))


def _present(name: str, value: str) -> str:
    present = _read(name)
    if present is None:
        raise KernelError(f"cannot set {name} to {value}: there is no {_path(name)}; is the interface gone?")
    return present


def _attempt(failed: dict[str, KernelError], name: str, act: Callable[[str, str], _T], *given: str) -> _T | None:
    """One of several: its failure keeps none of the others from being tried."""
    try:
        return act(*given)
    except KernelError as error:
        failed[name] = error
        return None


def _record(interface: int, original: object, *ours: object) -> _Record:
    return _Record(original=str(original), ours=tuple(map(str, ours)), interface=interface)


def _interface(name: str) -> int:
    """The index of the interface that a setting belongs to, which no later interface gets; 0: there is none."""
    try:
        return socket.if_nametoindex(_path(name).parent.name)
    except OSError:
        return 0


def _renamed(name: str, interface: int) -> str | None:
    """What the setting of an interface is called now; None when the interface is gone."""
    path = _path(name)
    try:
        called = socket.if_indextoname(interface)
    except OSError:
        return None
    return name if path.parent.name == called else str((path.parent.with_name(called) / path.name).relative_to(_ROOT))


def _path(name: str) -> Path:
    dotted = "." in name and ("/" not in name or name.index(".") < name.index("/"))
    parts = (name.translate(_SWAP) if dotted else name).split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise KernelError(f"{name!r} is not the name of a sysctl: see sysctl(8)")
    return _ROOT.joinpath(*parts)


def _read(name: str) -> str | None:
    path = _path(name)
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(f"read {path}", error.errno or 0) from error


def _write(name: str, value: str) -> None:
    path = _path(name)
    try:
        # Python's text layer would hide a refused value until close; one plain write tells at once.
        handle = os.open(path, os.O_WRONLY)
        try:
            os.write(handle, value.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise refusal(f"set {name} to {value}", error.errno or 0) from error


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
