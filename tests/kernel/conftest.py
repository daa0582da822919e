"""A network namespace that the test itself is in, with a link to the outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.patient import Patient
from tests.netns import Netns


@pytest.fixture
def inside(netns: Netns) -> Iterator[Netns]:
    """The test runs in an empty namespace that has 10.9.0.1/24 and fd09::1/64 on the veth `v0`, whose peer is `v1`."""
    netns.run("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
    netns.run(
        "ip",
        "-batch",
        "-",
        stdin="""\
link add v0 type veth peer name v1
link set v0 up
link set v1 up
address add 10.9.0.1/24 dev v0
address add fd09::1/64 dev v0 nodad
""",
    )
    with netns.inside():
        yield netns


@pytest.fixture
def patient(inside: Netns, tmp_path: Path) -> Patient:
    """A healthy host: it forwards, and reaches the nodes by v0, where b answers."""
    found = Patient(inside, tmp_path)
    found.run(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        "ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent",
    )
    return found
