"""What is wrong, as values: a code for machines, a severity, what it is about, and a sentence for people.

The codes stand in one table, from which log, status, check, metrics and the documentation derive what they tell. So
does which severity makes a command fail, see `fails`. What changes nothing for anybody is no problem at all.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Severity(enum.IntEnum):
    """How much a problem matters to who runs this node."""

    NOTE = 0
    """Nothing is amiss, but somebody may have meant something else."""
    WARNING = 1
    """Somebody's object does not get what it asks for, through its own fault; all others do."""
    ERROR = 2
    """What this node is asked for does not work, or not wholly."""

    def __str__(self) -> str:
        return self.name.lower()


class Code(enum.StrEnum):
    """What kind of problem; stable words, in status, metrics and the documentation."""

    # The configuration and this program.
    CONFIGURATION = "configuration"
    FORMER_KEY = "former-key"
    LISTEN = "listen"
    HOOK = "hook"
    STATUS_FILE = "status-file"
    # The cluster's state.
    SOURCE = "source"
    STALE_STATE = "stale-state"
    SAVED_STATE = "saved-state"
    INCOMPLETE_STATE = "incomplete-state"
    EVENTS = "events"
    OBJECT_NOT_USED = "object-not-used"
    NO_EFFECT = "no-effect"
    # The kernel.
    KERNEL = "kernel"
    SYSCTL_RECORD = "sysctl-record"
    INTERFACE_NAME = "interface-name"
    LIMITED = "limited"
    UNEXPECTED = "unexpected"
    # The host and its other programs.
    FORWARDING_OFF = "forwarding-off"
    RP_FILTER = "rp-filter"
    FORWARD_DROP = "forward-drop"
    FOREIGN_MARKS = "foreign-marks"
    FOREIGN_NUMBERS = "foreign-numbers"
    UNDONE = "undone"
    # Egress: why a Service has none.
    NOT_LOAD_BALANCER = "not-load-balancer"
    BAD_ANNOTATION = "bad-annotation"
    TOO_MANY_NETWORKS = "too-many-networks"
    NO_ADDRESS = "no-address"
    BAD_ADDRESS = "bad-address"
    NO_GATEWAY = "no-gateway"
    SEVERAL_GATEWAYS = "several-gateways"
    UNKNOWN_NODE = "unknown-node"
    NO_INTERNAL_IP = "no-internal-ip"
    OFF_LINK = "off-link"
    NO_ROUTE = "no-route"
    NO_POD_NETWORK = "no-pod-network"
    NO_SLOT = "no-slot"
    NO_EXIT = "no-exit"
    # Egress that works, but.
    SPLIT_ADDRESS = "split-address"
    NEW_PODS_LATE = "new-pods-late"
    NEW_PODS_UNKNOWN = "new-pods-unknown"
    # Return paths.
    PATH_INACTIVE = "path-inactive"
    PATH_PARTIAL = "path-partial"
    PATH_OVERLAP = "path-overlap"
    NOT_SYMMETRIC = "not-symmetric"

    @property
    def severity(self) -> Severity:
        return _TABLE[self][0]

    @property
    def meaning(self) -> str:
        """One sentence, for the documentation."""
        return _TABLE[self][1]


_TABLE: dict[Code, tuple[Severity, str]] = {
    Code.CONFIGURATION: (Severity.ERROR, "The configuration file is wrong; what was in force before stays so."),
    Code.FORMER_KEY: (Severity.WARNING, "A key of the configuration was renamed or removed; it is understood for now."),
    Code.LISTEN: (Severity.ERROR, "Metrics or health checks cannot be served at their address."),
    Code.HOOK: (Severity.ERROR, "A hook failed, timed out or was refused."),
    Code.STATUS_FILE: (Severity.ERROR, "What the service does cannot be written for others to read, or is old."),
    Code.SOURCE: (Severity.ERROR, "The cluster's state cannot be read."),
    Code.STALE_STATE: (Severity.ERROR, "The last known state is in force, since the API does not answer."),
    Code.SAVED_STATE: (Severity.ERROR, "The cluster's state cannot be saved for a start without the API."),
    Code.INCOMPLETE_STATE: (Severity.ERROR, "The cluster's state lacks what every decision needs."),
    Code.EVENTS: (Severity.WARNING, "Kubernetes Events cannot be written; nothing else depends on them."),
    Code.OBJECT_NOT_USED: (Severity.WARNING, "An object, or a part of one, is not used."),
    Code.NO_EFFECT: (Severity.NOTE, "A part of an object, or an object, has no effect here."),
    Code.KERNEL: (Severity.ERROR, "The kernel refused something."),
    Code.SYSCTL_RECORD: (Severity.ERROR, "The record of changed sysctls cannot be read or written."),
    Code.INTERFACE_NAME: (Severity.ERROR, "The packet filter cannot name an interface."),
    Code.LIMITED: (Severity.NOTE, "The packet filter in use cannot do all that nftables can, see iptables.md."),
    Code.UNEXPECTED: (Severity.ERROR, "A fault of this program."),
    Code.FORWARDING_OFF: (Severity.ERROR, "This host does not forward packets, though Services or paths need it."),
    Code.RP_FILTER: (Severity.ERROR, "A strict reverse-path filter that is left alone drops packets."),
    Code.FORWARD_DROP: (Severity.WARNING, "A packet filter seems to forward nothing that pods send."),
    Code.FOREIGN_MARKS: (Severity.WARNING, "Another program uses bits of the packet mark that are ours."),
    Code.FOREIGN_NUMBERS: (Severity.WARNING, "Another program uses rule priorities or routing tables that are ours."),
    Code.UNDONE: (Severity.ERROR, "Somebody undoes again and again what is ours; it is repaired once a second."),
    Code.NOT_LOAD_BALANCER: (Severity.WARNING, "A labelled Service is not of type LoadBalancer."),
    Code.BAD_ANNOTATION: (Severity.WARNING, "An annotation of a labelled Service cannot be understood."),
    Code.TOO_MANY_NETWORKS: (Severity.WARNING, "The networks in annotations are more than egress.max_networks."),
    Code.NO_ADDRESS: (Severity.WARNING, "A labelled Service has no LoadBalancer address of this family."),
    Code.BAD_ADDRESS: (Severity.WARNING, "A Service's LoadBalancer address can be nobody's source address."),
    Code.NO_GATEWAY: (Severity.ERROR, "No node announces the Service's address."),
    Code.SEVERAL_GATEWAYS: (Severity.ERROR, "Several nodes announce the Service's address by BGP."),
    Code.UNKNOWN_NODE: (Severity.ERROR, "The node that announces the address is not among the Node objects."),
    Code.NO_INTERNAL_IP: (Severity.ERROR, "The gateway has no InternalIP of this family."),
    Code.OFF_LINK: (Severity.ERROR, "The gateway is behind a router, and no tunnel of the pod network leads to it."),
    Code.NO_ROUTE: (Severity.ERROR, "This node has no route to the gateway."),
    Code.NO_POD_NETWORK: (Severity.ERROR, "The pod network does not lead to the gateway (egress.transport)."),
    Code.NO_SLOT: (Severity.ERROR, "All values under firewall.mark_mask are taken."),
    Code.NO_EXIT: (Severity.ERROR, "The return path by which the address must leave does not work."),
    Code.SPLIT_ADDRESS: (Severity.WARNING, "Several nodes announce one address, for several Services."),
    Code.NEW_PODS_LATE: (Severity.WARNING, "New pods are held without CNI's results, by what the API tells later."),
    Code.NEW_PODS_UNKNOWN: (Severity.WARNING, "New pods are to be held, but the state file has no Pods of this node."),
    Code.PATH_INACTIVE: (Severity.ERROR, "A return path does nothing."),
    Code.PATH_PARTIAL: (Severity.ERROR, "A part of a return path does not work."),
    Code.PATH_OVERLAP: (Severity.WARNING, "A pool holds addresses of nodes, pods or Services, which are left out."),
    Code.NOT_SYMMETRIC: (Severity.WARNING, "Answers do not leave by the router that brought the request."),
}

_FAILS_FROM = {"check": Severity.WARNING, "status": Severity.ERROR}
"""`check` finds all that its caller could mend; `status`, on every node, does not fail for one tenant's mistake. No
note makes either fail."""

_FAILS_NOTHING = {Code.FORMER_KEY}
"""An upgrade may bring these to a node that was fine before, and must not be stopped by them."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One thing that is wrong. `subject` names what it is about: an object, a path, a file and key; may be empty."""

    code: Code
    subject: str = ""
    text: str

    @property
    def severity(self) -> Severity:
        return self.code.severity

    @property
    def line(self) -> str:
        """For logs and terminals: with the code, by which the documentation tells more."""
        return f"{self} [{self.code}]"

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}" if self.subject else self.text


def fails(command: str, problems: Iterable[Problem]) -> bool:
    """Whether these problems make `check` or `status` fail."""
    return any(p.severity >= _FAILS_FROM[command] and p.code not in _FAILS_NOTHING for p in problems)
