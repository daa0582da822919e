"""Return paths on a VLAN device, as most pools with a subnet of their own have it."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.e2e.path_scene import ALL, NONE, reaches_node, scene, status_of
from tests.e2e.scenario import NODE1
from tests.e2e.second_way import L2_PATH, l2
from tests.kernel_modules import needed
from tests.lab.plan import Flavour, LabOptions
from tests.patience import patient

VLAN = "eth1.100"
STRICT = LabOptions(flavour=Flavour.IPTABLES_LEGACY, rp_filter=1)


@pytest.mark.parametrize("addresses", [True, False], ids=["with an address", "without an address"])
def test_replies_leave_by_a_vlan(addresses: bool) -> None:
    needed("8021q")
    with ExitStack() as stack:
        here = scene(stack, STRICT, interface=VLAN, addresses=addresses)
        here.lab.start_daemons(l2({**L2_PATH, "interface": VLAN}))
        here.settle(ALL)
        # Loose filtering lets in whatever can be answered by any way; the packet filter looks closer.
        assert reaches_node(here, VLAN) == addresses
        assert status_of(here, NODE1)["state"] == "active"
        here.lab.namespace(NODE1).ip([f"link set {VLAN} down"])
        here.settle(NONE, patient(2))
