"""A path whose interface is in a VRF is refused, with what to do."""

from __future__ import annotations

from contextlib import ExitStack

from metaleg_node.lab.daemons import wait_until
from tests.e2e.path_scene import ALL, scene, status_of
from tests.e2e.scenario import NODE1, SETTLED
from tests.e2e.second_way import l2
from tests.kernel_modules import needed
from tests.lab.plan import Flavour, LabOptions


def test_an_interface_in_a_vrf_is_refused_until_it_is_taken_out() -> None:
    needed("vrf")
    with ExitStack() as stack:
        here = scene(stack, LabOptions(flavour=Flavour.IPTABLES_LEGACY))
        node = here.lab.namespace(NODE1)
        node.ip(["link add red up type vrf table 77", "link set eth1 master red"])
        here.lab.start_daemons(l2())
        assert "interface eth1 is in VRF red" in status_of(here, NODE1)["reason"]
        assert not node.run("ip", "route", "show", "table", "all", "proto", "201")
        node.ip(["link set eth1 nomaster"])
        assert wait_until(lambda: status_of(here, NODE1)["state"] == "active", SETTLED)
        here.settle(ALL)
        node.ip(["link set eth1 master red"])
        assert wait_until(lambda: "VRF red" in status_of(here, NODE1)["reason"], SETTLED)
