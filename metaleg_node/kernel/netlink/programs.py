"""eBPF programs that look at an interface's packets, as filters of traffic control (tc-bpf(8)) in rtnetlink messages.
Structures: linux/rtnetlink.h, linux/pkt_cls.h, linux/pkt_sched.h."""

from __future__ import annotations

import struct

from metaleg_node.kernel.netlink.socket import attribute_of, attributes, string

GETTFILTER = 46
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
"""TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) and the same for egress: where such filters hang."""
_FILTER = struct.Struct("=B3xiIII")
"""struct tcmsg: family, interface, handle, parent, info."""
_KIND, _OPTIONS, _NAME = 1, 2, 7
"""TCA_KIND, TCA_OPTIONS, and in these TCA_BPF_NAME."""


def list_body(interface: int, parent: int) -> bytes:
    """The RTM_GETTFILTER message, without its header, that asks for an interface's filters."""
    return _FILTER.pack(0, interface, 0, parent, 0)


def read_program(body: bytes) -> str:
    """The name of the program of a filter, empty where it has none."""
    found = attributes(body, _FILTER.size)
    if string(found.get(_KIND, b"")) != "bpf":
        return ""
    return string(attribute_of(found.get(_OPTIONS, b""), 0, _NAME))
