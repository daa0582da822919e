"""A kernel that has no nf_tables chooses iptables by itself and carries traffic. It must be a virtual machine of ours:
the module is blocked for the whole machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from metaleg_node.core.firewall.egress import EgressPod
from metaleg_node.kernel.iptables.backend import Iptables
from metaleg_node.kernel.packet_filters import why_no_nftables
from metaleg_node.reconcile.machine import Machine
from tests.firewalls import but
from tests.kernel.packet_net import BASE, IPTABLES, LB, POD, SNAT, STEER, packet_net
from tests.kernel.test_iptables import change_over
from tests.netns import Netns
from tests.patience import MACHINE

NF_TABLES = "nf_tables"
BLOCKED = Path("/run/modprobe.d/no-nf-tables.conf")


@pytest.fixture
def _no_nf_tables() -> Iterator[None]:
    if not os.environ.get(MACHINE):
        pytest.skip("blocks a module of the kernel: for the virtual machines alone")
    BLOCKED.parent.mkdir(exist_ok=True)
    BLOCKED.write_text(f"install {NF_TABLES} /bin/false\n")
    try:
        unload(NF_TABLES)
        yield
    finally:
        BLOCKED.unlink()


def unload(module: str) -> None:
    """With those that use it, which earlier tests may have had loaded."""
    about = Path("/sys/module") / module
    if about.exists():
        for holder in sorted((about / "holders").iterdir()):
            unload(holder.name)
        subprocess.run(["rmmod", module], check=True)


@pytest.mark.usefixtures("_no_nf_tables")
def test_iptables_is_chosen_and_carries_traffic(netns: Netns, tmp_path: Path) -> None:
    with packet_net(netns, IPTABLES) as net, Machine(tmp_path, "auto") as machine:
        assert "the kernel has no nf_tables" in why_no_nftables()
        assert isinstance(machine.packet_filter, Iptables)
        assert machine.packet_filter.lacking() == {}
        server, before = net.server(), None
        ways: dict[str, EgressPod] = {POD: STEER, LB: SNAT}
        for seen, pod in ways.items():
            firewall = but(BASE, pods={ip_address(POD): pod})
            change_over(machine, before, firewall)
            assert net.seen(server, net.open(net.pod, POD)) == [seen]
            before = firewall
        assert not Path("/sys/module", NF_TABLES).exists()
