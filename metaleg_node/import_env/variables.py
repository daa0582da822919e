"""What each environment variable of the three programs means here: one row for each, and how its value is read.

The programs and their versions: metaleg 0.2, metallb-node-route-agent 0.4, network-node-manager (the names without
_ENABLE are those of its version 1.0).
"""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metaleg_node.configuration.settings import OBJECT_NAME, SYSTEM_TABLES

Raw = str | int | bool | list[str]
"""A value as TOML has it."""


class Program(enum.StrEnum):
    """A program that metaleg-node replaces; the names of its container images begin with its value."""

    METALEG = "metaleg"
    ROUTE_AGENT = "metallb-node-route-agent"
    NODE_MANAGER = "network-node-manager"


class NotTakenOver(Exception):  # noqa: N818 - the value is good, there is just nothing to set
    """A good value without an equivalent; the text says why."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns the text of a variable into its key's value, or raises ValueError with what is wrong, or NotTakenOver.
    `allowed` ends a sentence that begins with "must be"; empty: what the key's kind says."""

    read: Callable[[str], Raw]
    allowed: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable and the key that it becomes; without a key, `remark` says why and what to do instead.

    `program` has it alone and is known by it; None: several programs, also others, have it.
    """

    name: str
    program: Program | None
    key: str = ""
    reader: Reader = Reader(str)
    remark: str = ""
    unread_with: tuple[str, ...] = ()
    """Beside one of these the program did not read it."""


@dataclass(frozen=True, slots=True)
class Default:
    """What a program did while none of some variables was set, where metaleg-node's own default differs. Without a key
    there is only something to tell."""

    program: Program
    variables: tuple[str, ...]
    remark: str
    key: str = ""
    value: Raw = ""


# --- readers ---------------------------------------------------------------------------------------------------------

_GO_BOOLEANS: Mapping[str, bool] = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_LEVELS = {"error": "error", "warn": "warning", "info": "info"}
_LEVELS |= dict.fromkeys(("verbose", "debug", "silly"), "debug")
_UNITS = (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_ALREADY = "metaleg's default. metaleg-node has {} of its own ({}), so that both can run at once"


def _words(words: Mapping[str, Raw], allowed: str = "") -> Reader:
    def read(text: str) -> Raw:
        if text not in words:
            raise ValueError
        return words[text]

    return Reader(read, allowed)


def _policies(text: str) -> Raw:
    return ["Local", "Cluster"] if _BOOLEAN.read(text) else ["Local"]


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise ValueError
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
    if mask == 0x00F00000:
        raise NotTakenOver(_ALREADY.format("bits", "firewall.mark_mask"))
    return mask


def _first_table(text: str) -> int:
    base = _integer(text)
    if base == 100000:
        raise NotTakenOver(_ALREADY.format("tables", "firewall.route_table_base"))
    if 0 <= base < SYSTEM_TABLES:
        raise NotTakenOver(
            f"tables up to {SYSTEM_TABLES} are the system's and other programs'. metaleg-node has tables of its own "
            "(firewall.route_table_base), so that both can run at once"
        )
    return base


def _table(text: str) -> int:
    if not re.match(r"-?[0-9]", text):
        raise NotTakenOver(
            "a name only. Where it is not the name of table 20 in /etc/iproute2/rt_tables, set return_path.bgp.table "
            "to the number that it has there"
        )
    return _integer(text)


def _configmap(text: str) -> str:
    """The program asked the API for any name, and went on without the ConfigMap when there was none."""
    try:
        return OBJECT_NAME.read(text)
    except ValueError:
        raise NotTakenOver(
            "no ConfigMap can be called so, and metallb-node-route-agent went on without one. Where MetalLB has its "
            "configuration in a ConfigMap with another name than config, set cluster.metallb_configmap"
        ) from None


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
    with contextlib.suppress(ValueError):
        if re.fullmatch(r"[0-9A-Fa-f:.]+/[0-9]{1,3}", text):
            return str(ipaddress.ip_network(text, strict=False))
    raise ValueError(f"{text!a:.60} is none")


def _pod_network(version: int, example: str) -> Reader:
    def read(text: str) -> list[str]:
        network = _network(text.replace(" ", ""))
        if ipaddress.ip_network(network).version != version:
            raise ValueError("it is of the other family")
        return [network]

    return Reader(read, f"an IPv{version} CIDR such as {example}")


def _stack(text: str) -> str:
    if not {part.strip() for part in text.lower().split(",")} <= {"ipv4", "ipv6"}:
        raise ValueError
    return text


_GO_BOOLEAN = _words(_GO_BOOLEANS)
_BOOLEAN = Reader(lambda text: _words({"true": True, "false": False}).read(text.lower()), "true or false")
_DURATION = Reader(lambda text: text.removeprefix("+"))
_INTEGER = Reader(_integer)
_LISTEN = Reader(
    lambda text: f"[::]{text}" if text.startswith(":") else text, '":PORT" or "ADDRESS:PORT", or "0" for off'
)
_MARK = Reader(_mark, "a mark such as 0x14, of 32 bits at most")
_MILLISECONDS = Reader(_milliseconds, "a whole number of milliseconds")
_NETWORKS = Reader(_networks, "a comma-separated list of CIDRs such as 10.0.0.0/8 or 2001:db8::/32")


# --- the tables ------------------------------------------------------------------------------------------------------

_METALEG, _ROUTE_AGENT, _NODE_MANAGER = Program
_BGP = "return_path.bgp"
_UNTRACKED = "metaleg-node leaves connection tracking of DNS as it is. NodeLocal DNSCache avoids the race behind it"
_SCRIPT = (
    "put the script, which was in the container, on the host, owned by root and writable by nobody else; it gets the "
    "plan on standard input (docs/operation.md)"
)
_NOT_WHILE_BOTH_RUN = (
    "leave it out while metaleg still runs, since the two must not share bits or tables (docs/migration.md)"
)
_UNUSED = "metallb-node-route-agent did not use it, whatever its documentation says: check that it is meant"
_STATIC = "no API is contacted then; for egress the file needs the cluster's objects, too (docs/state-file.md)"
_CLEANUP = "it is a command: `metaleg-node cleanup` removes everything of metaleg-node from the kernel"
_APPLY = "it is a command: `metaleg-node apply` reconciles once, for example from a timer"

VARIABLES = (
    Variable("NODE_NAME", None, "node.name"),
    Variable("METALLB_NAMESPACE", None, "cluster.metallb_namespace"),
    # metaleg
    Variable("FILTER_ENDPOINTS_FOR_NODE", _METALEG, "egress.local_endpoints_only", _GO_BOOLEAN),
    Variable("FIREWALL_BACKEND", _METALEG, "firewall.backend", _words({"iptables": "auto"}, "iptables")),
    Variable("FIREWALL_MASK", _METALEG, "firewall.mark_mask", Reader(_mask), _NOT_WHILE_BOTH_RUN),
    Variable("FIREWALL_EXCLUDE_DST_CIDRS", _METALEG, "egress.exclude_cidrs", _NETWORKS),
    Variable(
        "ROUTE_BACKEND", _METALEG, "", _words({"netlink": ""}, "netlink"), "routes are always made through netlink"
    ),
    Variable("ROUTE_TABLE_ID_OFFSET", _METALEG, "firewall.route_table_base", Reader(_first_table), _NOT_WHILE_BOTH_RUN),
    Variable("RECONCILIATION_INTERVAL", _METALEG, "reconcile.interval", _DURATION),
    Variable("METRICS_BIND_ADDRESS", None, "metrics.listen", _LISTEN),
    Variable("HEALTH_PROBE_BIND_ADDRESS", None, "health.listen", _LISTEN),
    Variable("DEV_MODE", None, "log.format", Reader(lambda text: "text" if text == "true" else "auto")),
    # metallb-node-route-agent
    Variable("MAX_RECONCILE_WAIT", _ROUTE_AGENT, "reconcile.interval", _MILLISECONDS),
    Variable("TABLE_WEIGHT", _ROUTE_AGENT, f"{_BGP}.table", _INTEGER),
    Variable("TABLE_NAME", _ROUTE_AGENT, f"{_BGP}.table", Reader(_table)),
    Variable("PEER_WEIGHT", _ROUTE_AGENT, f"{_BGP}.peer_weight", _INTEGER),
    Variable("RULE_PRIORITY", _ROUTE_AGENT, f"{_BGP}.rule_priority", _INTEGER),
    Variable("RULE_FWMARK", _ROUTE_AGENT, f"{_BGP}.rule_fwmark", _MARK),
    Variable("DESTINATION", _ROUTE_AGENT, f"{_BGP}.destination", remark=_UNUSED),
    Variable("PRE_RECONCILE_SCRIPT_PATH", _ROUTE_AGENT, "hooks.pre", remark=_SCRIPT),
    Variable("POST_RECONCILE_SCRIPT_PATH", _ROUTE_AGENT, "hooks.post", remark=_SCRIPT),
    Variable(
        "METALLB_CONFIGMAP_NAME",
        _ROUTE_AGENT,
        "cluster.metallb_configmap",
        Reader(_configmap),
        unread_with=("METALLB_STATIC_FILE", "METALLB_USE_CRDS"),
    ),
    Variable("METALLB_STATIC_FILE", _ROUTE_AGENT, "cluster.state_file", remark=_STATIC),
    Variable("METALLB_STATIC_FILE_WAIT", _ROUTE_AGENT, "", _MILLISECONDS, "a change of the file is noticed at once"),
    Variable(
        "METALLB_USE_CRDS",
        _ROUTE_AGENT,
        "cluster.metallb_config",
        Reader(lambda _text: "crds"),
        unread_with=("METALLB_STATIC_FILE",),
    ),
    Variable("LOG_LEVEL", None, "log.level", _words(_LEVELS, ", ".join(_LEVELS))),
    Variable("CLEANANDEXIT", _ROUTE_AGENT, remark=_CLEANUP),
    Variable("ONESHOT", _ROUTE_AGENT, remark=_APPLY),
    # network-node-manager
    Variable("POD_CIDR_IPV4", _NODE_MANAGER, "cluster.pod_cidrs", _pod_network(4, "10.244.0.0/16")),
    Variable("POD_CIDR_IPV6", _NODE_MANAGER, "cluster.pod_cidrs", _pod_network(6, "2001:db8::/32")),
    Variable("RULE_DROP_INVALID_INPUT_ENABLE", _NODE_MANAGER, "host.drop_invalid_input", _BOOLEAN),
    Variable("RULE_DROP_INVALID_INPUT", _NODE_MANAGER, "host.drop_invalid_input", _BOOLEAN),
    *(
        Variable(name, _NODE_MANAGER, f"external_ip.{key}", reader, remark)
        for name in ("RULE_EXTERNAL_CLUSTER_ENABLE", "RULE_EXTERNAL_CLUSTER")
        for key, reader, remark in (
            ("enabled", _BOOLEAN, ""),
            ("traffic_policies", Reader(_policies, _BOOLEAN.allowed), "only Local needs it"),
            ("external_ips", _BOOLEAN, ""),
        )
    ),
    Variable(
        "NET_STACK",
        _NODE_MANAGER,
        reader=Reader(_stack, "ipv4, ipv6 or both, separated by a comma"),
        remark="both families are always handled",
    ),
    Variable("RULE_NOT_TRACK_DNS_ENABLE", _NODE_MANAGER, remark=_UNTRACKED),
    Variable("RULE_NOT_TRACK_DNS", _NODE_MANAGER, remark=_UNTRACKED),
    Variable("RULE_NOT_TRACK_DNS_SERVICES", _NODE_MANAGER, remark=_UNTRACKED),
)
"""In the order in which a key that several of them set names them."""

_PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"]
DEFAULTS = (
    Default(
        _METALEG,
        ("FIREWALL_EXCLUDE_DST_CIDRS",),
        "without this, private networks outside the cluster see the LoadBalancer address, too",
        "egress.exclude_cidrs",
        _PRIVATE,
    ),
    Default(
        _METALEG,
        ("METRICS_BIND_ADDRESS",),
        'it served metrics on all addresses: for a Prometheus elsewhere set metrics.listen to "[::]:21793"',
    ),
    Default(_ROUTE_AGENT, (), "all that it did", f"{_BGP}.enabled", True),
    Default(
        _ROUTE_AGENT,
        ("METALLB_NAMESPACE",),
        "it looked for MetalLB in its own namespace: where that is another than metallb-system, set "
        "cluster.metallb_namespace",
    ),
    Default(
        _NODE_MANAGER,
        ("RULE_DROP_INVALID_INPUT_ENABLE", "RULE_DROP_INVALID_INPUT"),
        "against resets of pods' connections",
        "host.drop_invalid_input",
        True,
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
