"""Routers that run FRR, Debian's package of that name: each a bgpd, and a zebra that puts its routes into the
kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.namespaces import Namespace
from tests.patience import patient
from tests.programs import lacking

_PROGRAMS = Path("/usr/lib/frr")
_PLACE = Path("/run/frr")
"""Of the package; zebra gives its privileges up before it opens anything."""
_USER = "frr"


def needed() -> None:
    """Skips the test where the package is not installed, but not in a CI."""
    if not (_PROGRAMS / "bgpd").exists():
        lacking("Debian's package frr is not installed; ./dev setup installs it")


class Frr:
    """A context manager that runs both in a namespace. `neighbours` are AS numbers by address, `networks` what it
    announces itself; what comes from the neighbour `preferred` is taken before what others tell."""

    def __init__(
        self,
        namespace: Namespace,
        number: int,
        neighbours: dict[str, int],
        *,
        networks: tuple[str, ...] = (),
        preferred: str = "",
    ) -> None:
        self._namespace = namespace
        self._text = "\n".join(_configuration(number, neighbours, networks, preferred))
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        _PLACE.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="test-", dir=_PLACE))
        self._place = place
        (place / "bgpd.conf").write_text(self._text)
        (place / "zebra.conf").touch()
        shutil.chown(_PLACE, _USER)
        for path in (place, *place.iterdir()):
            shutil.chown(path, _USER, _USER)
        self._start("zebra")
        assert wait_until((place / "zserv").exists, patient(10)), "zebra does not start"
        self._start("bgpd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._running:
            one.kill()
            one.wait()
        shutil.rmtree(self._place)

    def _start(self, name: str) -> None:
        options = ["-z", str(self._place / "zserv"), "-i", str(self._place / f"{name}.pid"), "-P", "0"]
        options += ["--vty_socket", str(self._place), "-f", str(self._place / f"{name}.conf")]
        with self._namespace.inside(), open(os.devnull, "wb") as nothing:
            self._running.append(subprocess.Popen([str(_PROGRAMS / name), *options], stdout=nothing, stderr=nothing))


def _configuration(number: int, neighbours: dict[str, int], networks: tuple[str, ...], preferred: str) -> list[str]:
    lines = [f"router bgp {number}", "no bgp ebgp-requires-policy", "no bgp network import-check"]
    for address, other in neighbours.items():
        lines += [f"neighbor {address} remote-as {other}", f"neighbor {address} timers 1 3"]
        lines += [f"neighbor {address} timers connect 1", f"neighbor {address} advertisement-interval 0"]
    lines.append("address-family ipv4 unicast")
    lines += [f"network {network}" for network in networks]
    lines += [f"neighbor {preferred} weight 100"] if preferred else []
    return [*lines, "exit-address-family", ""]
