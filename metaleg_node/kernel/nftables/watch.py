"""Whether others changed our nftables table, found out by asking.

Nobody may listen to the notifications of nf_tables: while there is a listener, every commit of everybody on the host
allocates a message for each element of its sets (nft_commit_notify), gigabytes for large ones. The generation of the
ruleset costs one message. It grows with the commits of others to their own tables, too: then what the kernel holds of
ours is read as bytes and compared, at a tenth of what a listing by nft costs.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator

from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.netlink.socket import NETLINK_NETFILTER, NetlinkSocket, attribute, attribute_of, attributes
from metaleg_node.kernel.nftables.table import NAME, TABLE

log = logging.getLogger(__name__)

_GET_GENERATION = 0x0A10
_GET_TABLE, _GET_CHAINS, _GET_RULES, _GET_SETS, _GET_ELEMENTS = 0x0A01, 0x0A04, 0x0A07, 0x0A0A, 0x0A0D
"""NFNL_SUBSYS_NFTABLES and NFT_MSG_GET* (linux/netfilter/nf_tables.h)."""
_HEADER = bytes([1, 0, 0, 0])
"""nfgenmsg of the family inet (NFPROTO_INET); in answers its last bytes are the generation's."""
_GENERATION_ID, _TABLE, _ELEMENTS_SET, _ELEMENTS = 1, 1, 2, 3
_SET_NAME, _SET_FLAGS, _SET_HANDLE = 2, 3, 16
_SET_TIMEOUT = 0x10
"""NFT_SET_TIMEOUT: the elements come and go by themselves."""
_NAME = NAME.encode() + b"\0"
_CALM = 10
"""So often in a row the table was as we left it, and it is read for comparison: were it read after each of our own
changes, a busy node with many elements would do little else."""
_SOON = 300
"""For so many questions after somebody else committed it is read at once after each of our own changes: else the next
commit of others makes a whole look necessary, at ten times the cost."""
_OURS = attribute(_TABLE, _NAME)
"""Tables, chains, rules, sets and lists of elements: all have the table's name as attribute 1."""


def generation(netlink: NetlinkSocket) -> int:
    """The number of the ruleset's generation: it grows with every nf_tables transaction, of any table, that changes
    something. Raises KernelError."""
    what = "read the nf_tables generation"
    (answer,) = netlink.ask(_GET_GENERATION, [bytes(len(_HEADER))], what)
    if answer.code:
        raise answer.refusal(what)
    return int.from_bytes(attributes(answer.body, len(_HEADER))[_GENERATION_ID], "big")


def ask_generation() -> int:
    """The same, by a socket of its own."""
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        return generation(netlink)


def digest(netlink: NetlinkSocket) -> bytes:
    """Of all that our table is: another one after any change of it, the same one whatever others do elsewhere, of use
    in this process only. The kernel orders a set's elements anew while it grows: their order counts for nothing.
    Raises KernelError."""
    found = hashlib.blake2b()
    for part in _contents(netlink):
        found.update(part)
    return found.digest()


def _contents(netlink: NetlinkSocket) -> Iterator[bytes]:
    what = f"read table {TABLE}"
    (table,) = netlink.ask(_GET_TABLE, [_HEADER + _OURS], what)
    if table.code == errno.ENOENT:
        return
    if table.code:
        raise table.refusal(what)
    yield table.body[len(_HEADER) :]
    chains = (body[len(_HEADER) :] for body in netlink.listing(_GET_CHAINS, _HEADER, what))
    yield from (chain for chain in chains if attribute_of(chain, 0, _TABLE) == _NAME)
    yield from (rule[len(_HEADER) :] for rule in netlink.listing(_GET_RULES, _HEADER + _OURS, what))
    for body in netlink.listing(_GET_SETS, _HEADER + _OURS, what):
        told = attributes(body, len(_HEADER))
        # Newer kernels also tell how many elements there are now.
        yield told[_SET_NAME] + told[_SET_HANDLE]
        if not int.from_bytes(told.get(_SET_FLAGS, b""), "big") & _SET_TIMEOUT:
            request = _HEADER + _OURS + attribute(_ELEMENTS_SET, told[_SET_NAME])
            yield str(sum(map(_sum, netlink.listing(_GET_ELEMENTS, request, what)))).encode()


def _sum(part: bytes) -> int:
    """Of one message of elements: all together give the same in whatever order they come."""
    elements = attribute_of(part, len(_HEADER), _ELEMENTS)
    total = at = 0
    while at + 4 <= len(elements):
        end = at + int.from_bytes(elements[at : at + 2], sys.byteorder)
        total += hash(elements[at:end])
        at = max(at + 4, (end + 3) & ~3)
    return total


class Watch:
    """What is asked again and again, by one thread, about a table that another one looks at and writes. `known` tells
    the generation at which that was last done, None for none, `busy` whether it is being done now; `same` is told that
    the table is as it was at that generation (the first) still at another."""

    def __init__(
        self,
        netlink: NetlinkSocket,
        *,
        known: Callable[[], int | None],
        busy: Callable[[], bool],
        same: Callable[[int, int], None],
    ) -> None:
        self._netlink = netlink
        self._known = known
        self._busy = busy
        self._same = same
        self._good: tuple[int, bytes] | None = None
        self._told: tuple[int, int | None] | None = None
        self._steady: tuple[int, int] = (0, 0)
        self._since_others = _SOON

    def disturbed(self) -> bool:
        """Whether others may have changed the table since it was looked at or written; of each such change this tells
        once. Raises KernelError."""
        now = generation(self._netlink)
        self._since_others += 1
        if self._busy():
            return False
        known = self._known()
        if now == known:
            self._read_in_time(now)
            return False
        if self._told == (now, known) or (known is not None and now < known):
            # Of the second kind: it was looked at or written in this moment.
            return False
        self._since_others = 0
        if known is not None and self._good is not None and self._good[0] == known:
            seen = self._look(now)
            if seen is not None and seen[1] == self._good[1]:
                self._same(known, now)
                self._good = seen
                return False
        self._told = now, known
        return True

    def _read_in_time(self, now: int) -> None:
        """The table is as we left it: what that is must be known before others commit."""
        before, asked = self._steady
        self._steady = now, asked + 1 if before == now else 1
        if self._good is None or (self._good[0] != now and (self._steady[1] >= _CALM or self._since_others < _SOON)):
            self._good = self._look(now)

    def _look(self, now: int) -> tuple[int, bytes] | None:
        """The digest with its generation; None where it cannot be had, as while somebody changes something."""
        try:
            found = digest(self._netlink)
        except KernelError as error:
            log.debug("the next change of the packet filter is looked at as a whole: %s", error)
            return None
        return (now, found) if generation(self._netlink) == now else None
