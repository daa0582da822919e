"""Rules and routes changed as the daemon changes them, where a refusal is an error."""

from __future__ import annotations

from metaleg_node.core.compare.diff import RoutingOperation
from metaleg_node.kernel.netlink.routing import RoutingControl


def change(control: RoutingControl, *operations: RoutingOperation) -> None:
    """Carries out operations. Raises the first KernelError of any of them."""
    for error in control.change(operations):
        if error:
            raise error
