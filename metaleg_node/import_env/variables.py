"""What each environment variable of the three programs means here: one row for each, and how its value is read.

The programs and their versions: metaleg 0.2, metallb-node-route-agent 0.4, network-node-manager (the names without
_ENABLE are those of its version 1.0).
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Raw = str | int | bool | list[str]
"""A value as TOML has it."""


class Program(enum.StrEnum):
    """A program that metaleg-node replaces; the names of its container images begin with its value."""

    METALEG = "metaleg"
    ROUTE_AGENT = "metallb-node-route-agent"
    NODE_MANAGER = "network-node-manager"


class NotTakenOver(Exception):  # noqa: N818 - the value is good, there is just nothing to set
    """A good value without an equivalent; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An environment variable and the key that it becomes; without a key, `remark` says why and what to do instead.

    `read` turns its text into the key's value. It raises ValueError, with what is wrong, or NotTakenOver. `allowed`
    ends a sentence that begins with "must be"; empty: what the key's kind says. `program` has it alone and is known by
    it; None: several programs, also others, have it.
    """

    name: str
    program: Program | None
    key: str = ""
    read: Callable[[str], Raw] = str
    allowed: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """What a program did while none of some variables was set, where metaleg-node's own default differs. Without a key
    there is only something to tell."""

    program: Program
    variables: tuple[str, ...]
    key: str = ""
    value: Raw = ""
    remark: str


# --- readers ---------------------------------------------------------------------------------------------------------

_GO_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_LEVELS = {
    "error": "error",
    "warn": "warning",
    "info": "info",
    **dict.fromkeys(("verbose", "debug", "silly"), "debug"),
}
_BOOLEAN = "true or false"
_MILLISECONDS = "a whole number of milliseconds"
_NETWORK_LIST = "a comma-separated list of CIDRs such as 10.0.0.0/8 or 2001:db8::/32"
_ADDRESS_AND_PORT = '":PORT" or "ADDRESS:PORT", or "0" for off'
_UNITS = (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))

METALEG_MASK = 0x00F00000
METALEG_TABLES = 100000


def _word(words: Mapping[str, Raw]) -> Callable[[str], Raw]:
    def read(text: str) -> Raw:
        if text not in words:
            raise ValueError("")
        return words[text]

    return read


def _lower_boolean(text: str) -> Raw:
    return _word({"true": True, "false": False})(text.lower())


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise ValueError("")
    return int(text)


def _hexadecimal(text: str) -> int:
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", text):
        raise ValueError("it is not hexadecimal")
    return int(text, 16)


def _mark(text: str) -> int:
    if "/" in text:
        raise ValueError("it has a mask; the whole mark is compared here")
    return _hexadecimal(text) if text[:1] == "0" and len(text) > 1 else _integer(text)


def _mask(text: str) -> int:
    mask = _hexadecimal(text)
    if mask == METALEG_MASK:
        raise NotTakenOver(
            "metaleg's default. metaleg-node has bits of its own (firewall.mark_mask), so that both can run at once"
        )
    return mask


def _first_table(text: str) -> int:
    base = _integer(text)
    if base == METALEG_TABLES:
        raise NotTakenOver(
            "metaleg's default. metaleg-node has tables of its own (firewall.route_table_base), so that both can run "
            "at once"
        )
    return base


def _table(text: str) -> int:
    if not re.match(r"-?[0-9]", text):
        raise NotTakenOver(
            "a name only. Where it is not the name of table 20 in /etc/iproute2/rt_tables, set return_path.bgp.table "
            "to the number that it has there"
        )
    return _integer(text)


def _go_duration(text: str) -> str:
    return text.removeprefix("+")


def _milliseconds(text: str) -> str:
    """The program takes what is not above 0 for "off", and waits for a second at least."""
    number = _integer(text)
    if number <= 0:
        return "0"
    number = max(number, 1000)
    return next(f"{number // size}{unit}" for unit, size in _UNITS if number % size == 0)


def _networks(text: str) -> list[str]:
    """Host bits are cut off, as the programs do."""
    found = [_network(item.strip()) for item in text.split(",") if item.strip()]
    if not found:
        raise ValueError("it names no network")
    return found


def _network(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f:.]+/[0-9]{1,3}", text):
        raise ValueError(f"{text!a:.60} is none")
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f"{text!a:.60} is none") from None


def _pod_networks(family: int) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        network = _network(text.replace(" ", ""))
        if ipaddress.ip_network(network).version != family:
            raise ValueError("it is of the other family")
        return [network]

    return read


def _listen(text: str) -> str:
    return f"[::]{text}" if text.startswith(":") else text


def _stack(text: str) -> str:
    if not {part.strip() for part in text.lower().split(",")} <= {"ipv4", "ipv6"}:
        raise ValueError("")
    return text


# --- the tables ------------------------------------------------------------------------------------------------------

_METALEG, _ROUTE_AGENT, _NODE_MANAGER = Program
_UNTRACKED = "metaleg-node leaves connection tracking of DNS as it is. NodeLocal DNSCache avoids the race behind it"
_SCRIPT = (
    "put the script, which was in the container, on the host, owned by root and writable by nobody else; it gets the "
    "plan on standard input (docs/operation.md)"
)
_NOT_WHILE_BOTH_RUN = (
    "leave it out while metaleg still runs, since the two must not share bits or tables (docs/migration.md)"
)

VARIABLES = (
    Variable(name="NODE_NAME", program=None, key="node.name"),
    Variable(name="METALLB_NAMESPACE", program=None, key="cluster.metallb_namespace"),
    # metaleg
    Variable(
        name="FILTER_ENDPOINTS_FOR_NODE",
        program=_METALEG,
        key="egress.local_endpoints_only",
        read=_word(_GO_BOOLEANS),
    ),
    Variable(
        name="FIREWALL_BACKEND",
        program=_METALEG,
        key="firewall.backend",
        read=_word({"iptables": "auto"}),
        allowed="iptables",
    ),
    Variable(
        name="FIREWALL_MASK",
        program=_METALEG,
        key="firewall.mark_mask",
        read=_mask,
        remark=_NOT_WHILE_BOTH_RUN,
    ),
    Variable(
        name="FIREWALL_EXCLUDE_DST_CIDRS",
        program=_METALEG,
        key="egress.exclude_cidrs",
        read=_networks,
        allowed=_NETWORK_LIST,
    ),
    Variable(
        name="ROUTE_BACKEND",
        program=_METALEG,
        read=_word({"netlink": ""}),
        allowed="netlink",
        remark="routes are always made through netlink",
    ),
    Variable(
        name="ROUTE_TABLE_ID_OFFSET",
        program=_METALEG,
        key="firewall.route_table_base",
        read=_first_table,
        remark=_NOT_WHILE_BOTH_RUN,
    ),
    Variable(name="RECONCILIATION_INTERVAL", program=_METALEG, key="reconcile.interval", read=_go_duration),
    Variable(name="METRICS_BIND_ADDRESS", program=None, key="metrics.listen", read=_listen, allowed=_ADDRESS_AND_PORT),
    Variable(
        name="HEALTH_PROBE_BIND_ADDRESS", program=None, key="health.listen", read=_listen, allowed=_ADDRESS_AND_PORT
    ),
    Variable(name="DEV_MODE", program=None, key="log.format", read=lambda text: "text" if text == "true" else "auto"),
    # metallb-node-route-agent
    Variable(
        name="MAX_RECONCILE_WAIT",
        program=_ROUTE_AGENT,
        key="reconcile.interval",
        read=_milliseconds,
        allowed=_MILLISECONDS,
    ),
    Variable(name="TABLE_WEIGHT", program=_ROUTE_AGENT, key="return_path.bgp.table", read=_integer),
    Variable(name="TABLE_NAME", program=_ROUTE_AGENT, key="return_path.bgp.table", read=_table),
    Variable(name="PEER_WEIGHT", program=_ROUTE_AGENT, key="return_path.bgp.peer_weight", read=_integer),
    Variable(name="RULE_PRIORITY", program=_ROUTE_AGENT, key="return_path.bgp.rule_priority", read=_integer),
    Variable(
        name="RULE_FWMARK",
        program=_ROUTE_AGENT,
        key="return_path.bgp.rule_fwmark",
        read=_mark,
        allowed="a mark such as 0x14, of 32 bits at most",
    ),
    Variable(
        name="DESTINATION",
        program=_ROUTE_AGENT,
        key="return_path.bgp.destination",
        remark="metallb-node-route-agent did not use it, whatever its documentation says: check that it is meant",
    ),
    Variable(name="PRE_RECONCILE_SCRIPT_PATH", program=_ROUTE_AGENT, key="hooks.pre", remark=_SCRIPT),
    Variable(name="POST_RECONCILE_SCRIPT_PATH", program=_ROUTE_AGENT, key="hooks.post", remark=_SCRIPT),
    Variable(name="METALLB_CONFIGMAP_NAME", program=_ROUTE_AGENT, key="cluster.metallb_configmap"),
    Variable(
        name="METALLB_STATIC_FILE",
        program=_ROUTE_AGENT,
        key="cluster.state_file",
        remark="no API is contacted then; for egress the file needs the cluster's objects, too (docs/state-file.md)",
    ),
    Variable(
        name="METALLB_STATIC_FILE_WAIT",
        program=_ROUTE_AGENT,
        read=_milliseconds,
        allowed=_MILLISECONDS,
        remark="a change of the file is noticed at once",
    ),
    Variable(name="METALLB_USE_CRDS", program=_ROUTE_AGENT, key="cluster.metallb_config", read=lambda _text: "crds"),
    Variable(name="LOG_LEVEL", program=None, key="log.level", read=_word(_LEVELS), allowed=", ".join(_LEVELS)),
    Variable(
        name="CLEANANDEXIT",
        program=_ROUTE_AGENT,
        remark="it is a command: `metaleg-node cleanup` removes everything of metaleg-node from the kernel",
    ),
    Variable(
        name="ONESHOT",
        program=_ROUTE_AGENT,
        remark="it is a command: `metaleg-node apply` reconciles once, for example from a timer",
    ),
    # network-node-manager
    Variable(
        name="POD_CIDR_IPV4",
        program=_NODE_MANAGER,
        key="cluster.pod_cidrs",
        read=_pod_networks(4),
        allowed="an IPv4 CIDR such as 10.244.0.0/16",
    ),
    Variable(
        name="POD_CIDR_IPV6",
        program=_NODE_MANAGER,
        key="cluster.pod_cidrs",
        read=_pod_networks(6),
        allowed="an IPv6 CIDR such as 2001:db8::/32",
    ),
    *(
        Variable(name=name, program=_NODE_MANAGER, key="host.drop_invalid_input", read=_lower_boolean, allowed=_BOOLEAN)
        for name in ("RULE_DROP_INVALID_INPUT_ENABLE", "RULE_DROP_INVALID_INPUT")
    ),
    *(
        Variable(
            name=name,
            program=_NODE_MANAGER,
            key="external_ip.enabled",
            read=_lower_boolean,
            allowed=_BOOLEAN,
        )
        for name in ("RULE_EXTERNAL_CLUSTER_ENABLE", "RULE_EXTERNAL_CLUSTER")
    ),
    Variable(
        name="NET_STACK",
        program=_NODE_MANAGER,
        read=_stack,
        allowed="ipv4, ipv6 or both, separated by a comma",
        remark="both families are always handled",
    ),
    *(
        Variable(name=name, program=_NODE_MANAGER, remark=_UNTRACKED)
        for name in ("RULE_NOT_TRACK_DNS_ENABLE", "RULE_NOT_TRACK_DNS", "RULE_NOT_TRACK_DNS_SERVICES")
    ),
)
"""In the order in which a key that several of them set names them."""

DEFAULTS = (
    Default(
        program=_METALEG,
        variables=("FIREWALL_EXCLUDE_DST_CIDRS",),
        key="egress.exclude_cidrs",
        value=[
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "fc00::/7",
            "fe80::/10",
        ],
        remark="without this, private networks outside the cluster see the LoadBalancer address, too",
    ),
    Default(
        program=_METALEG,
        variables=("METRICS_BIND_ADDRESS",),
        remark='it served metrics on all addresses: for a Prometheus elsewhere set metrics.listen to "[::]:21793"',
    ),
    Default(
        program=_ROUTE_AGENT,
        variables=(),
        key="return_path.bgp.enabled",
        value=True,
        remark="all that it did",
    ),
    Default(
        program=_ROUTE_AGENT,
        variables=("METALLB_NAMESPACE",),
        remark="it looked for MetalLB in its own namespace: where that is another than metallb-system, set "
        "cluster.metallb_namespace",
    ),
    Default(
        program=_NODE_MANAGER,
        variables=("RULE_DROP_INVALID_INPUT_ENABLE", "RULE_DROP_INVALID_INPUT"),
        key="host.drop_invalid_input",
        value=True,
        remark="against resets of pods' connections",
    ),
)

PREFIXES = (
    "FIREWALL_",
    "ROUTE_",
    "RULE_",
    "METALLB_",
    "POD_CIDR_",
    "FILTER_ENDPOINTS_",
    "TABLE_",
    "PEER_",
    "MAX_RECONCILE_",
)
"""A variable whose name begins so is probably meant for one of the programs."""

SERVICE_LINK = re.compile(r".*_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|.*_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")
"""What Kubernetes itself puts into the environment of pods: kubernetes.io, "Discovering services"."""
