"""The files for iproute2 name what is ours."""

from __future__ import annotations

import subprocess

from metaleg_node.core.model import ROUTE_PROTOCOL
from tests.programs import ROOT


def test_ip_names_our_protocol_and_tables() -> None:
    """In mounts and a network of its own, where only our files are in iproute2's directories."""
    folders = " && ".join(
        f"mount --bind {ROOT}/etc/iproute2/{name} /etc/iproute2/{name}" for name in ("rt_protos.d", "rt_tables.d")
    )
    script = f"""
        {folders} && ip link set lo up &&
        ip route add 192.0.2.0/24 dev lo proto {ROUTE_PROTOCOL} table 1000003 &&
        ip rule add fwmark 1 lookup 1000003 priority 4700 protocol {ROUTE_PROTOCOL} &&
        ip route show table metaleg-3 && ip rule show priority 4700
    """
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    route, rule = done.stdout.splitlines()
    assert route.split()[:5] == ["192.0.2.0/24", "dev", "lo", "proto", "metaleg-node"]
    assert "lookup metaleg-3" in rule
    assert "proto metaleg-node" in rule
