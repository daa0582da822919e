"""The configuration: one table of settings, and how a TOML text becomes a `Config` or a list of problems.

The dataclasses below are the table. Parsing, `check`, the sample file and the reference (`text`) all follow it.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from metaleg_node.configuration import settings as s
from metaleg_node.configuration.merging import Merged, join, short
from metaleg_node.configuration.settings import Many, Section, Setting, section, sections, setting
from metaleg_node.core.model import Address, AnnouncedBy, Match, Network
from metaleg_node.text import endpoint

MetallbConfig = Literal["auto", "crds", "configmap"]
PreFailure = Literal["continue", "abort"]
Backend = Literal["auto", "nftables", "iptables"]
WhenUnavailable = Literal["reject", "drop", "allow"]
TrafficPolicy = Literal["Local", "Cluster"]
SourcePorts = Literal["preserve", "random"]
NewPods = Literal["allow", "hold"]
Transport = Literal["auto", "direct", "pod-network"]
PathRpFilter = Literal["auto", "loose", "off", "filter", "keep"]
HostRpFilter = Literal["loose", "keep"]
LogLevel = Literal["error", "warning", "info", "debug"]
LogFormat = Literal["auto", "text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """[node]"""

    name: str = setting("", s.NODE_NAME, "name in `kubectl get nodes`; empty: the host name in lower case")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """[cluster]"""

    kubeconfig: str = setting(
        "/etc/metaleg-node/kubeconfig",
        s.STRING,
        "credentials of a read-only service account; empty: those of the pod this runs in",
    )
    context: str = setting("", s.STRING, "context of the kubeconfig; empty: its current one")
    events: bool = setting(
        False, s.BOOLEAN, "write Kubernetes Events about Services' egress; needs a right to create them"
    )
    state_file: str = setting("", s.ABSOLUTE_PATH, "YAML file, or directory of them; when set no API is contacted")
    metallb_namespace: str = setting("metallb-system", s.OBJECT_NAME, "where MetalLB runs")
    metallb_config: MetallbConfig = setting(
        "auto", s.choice(MetallbConfig), "where its pools and peers are configured; configmap: MetalLB before 0.13"
    )
    metallb_configmap: str = setting("config", s.OBJECT_NAME, "name of that ConfigMap")
    pod_cidrs: tuple[Network, ...] = setting([], Many(item=s.NETWORK), "in addition to those the Node objects carry")
    service_cidrs: tuple[Network, ...] = setting(
        [], Many(item=s.NETWORK), "in addition to those the API tells (ServiceCIDR)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileSettings:
    """[reconcile]; seconds, 0 is off."""

    interval: float = setting("5m", s.DURATION_OR_OFF, 'full comparison with the kernel; "0" turns it off')
    settle: float = setting(
        "20ms",
        s.DURATION_OR_OFF,
        "how long to gather events before acting, but after a rest; a quarter is enough if no more come",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HookSettings:
    """[hooks]; `timeout` in seconds."""

    pre: str = setting("", s.ABSOLUTE_PATH, "an executable, or a directory of them run in name order")
    post: str = setting("", s.ABSOLUTE_PATH, "the same, after the change")
    timeout: float = setting("10s", s.DURATION, "a hook that runs longer is killed")
    pre_failure: PreFailure = setting(
        "continue", s.choice(PreFailure), "what a reconcile does when the pre hook failed"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FirewallSettings:
    """[firewall]"""

    backend: Backend = setting(
        "auto", s.choice(Backend), "the packet filter; auto: nftables, but iptables where the kernel lacks nf_tables"
    )
    mark_mask: int = setting(
        0x3F000000, s.MARK_MASK, "bits of the packet mark for us alone, one value per gateway, path, or router: 63"
    )
    route_table_base: int = setting(
        1000000,
        s.integer(s.SYSTEM_TABLES, s.TABLE_MAX - s.SLOTS, note=" (tables up to 255 are the system's)"),
        "tables base+1 .. base+63",
    )
    rule_priority: int = setting(
        4700,
        s.integer(1, s.PRIORITY_MAX - s.PRIORITIES + 1, note=" (100 priorities, before the main table's)"),
        "our rules use this priority and the 99 after it",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressSettings:
    """[egress]"""

    enabled: bool = setting(True, s.BOOLEAN, "pods of labelled Services leave with the LoadBalancer address")
    label: str = setting("metaleg.de/rewriteSrcIP", s.LABEL_KEY, 'on the Service, value "true"')
    exclude_cidrs: tuple[Network, ...] = setting(
        [], Many(item=s.NETWORK), "destinations never rewritten, beside the cluster's own"
    )
    local_endpoints_only: bool = setting(
        True, s.BOOLEAN, "steer only pods of this node; false: also others' that are routed through it"
    )
    when_unavailable: WhenUnavailable = setting(
        "reject", s.choice(WhenUnavailable), "pods' outward traffic without a gateway; allow: with the node's address"
    )
    gateway_grace: float = setting(
        "1s",
        s.DURATION_OR_OFF,
        "an announcement that is away for less changes nothing, while its node is Ready",
    )
    max_networks: int = setting(
        16384, s.integer(0, 1 << 20), "networks in the annotations of all Services; the newest beyond that are held"
    )
    gateway_source: tuple[AnnouncedBy, ...] = setting(
        [word.value for word in AnnouncedBy],
        Many(item=s.choice(AnnouncedBy), needed=True),
        "what tells the gateway, best first",
    )
    new_pods: NewPods = setting(
        "allow", s.choice(NewPods), "hold: what pods send outside is dropped until it is known whose they are"
    )
    hold_exempt_namespaces: tuple[str, ...] = setting(
        ["kube-system"], Many(item=s.OBJECT_NAME), "their pods are never held"
    )
    cni_socket: str = setting(
        "/run/metaleg-node-cni/socket", s.ABSOLUTE_PATH, "where metaleg-node-cni.service tells of new pods"
    )
    transport: Transport = setting(
        "auto", s.choice(Transport), "to the gateway; auto: direct to a neighbour, else the way to its pods"
    )
    source_ports: SourcePorts = setting("preserve", s.choice(SourcePorts), "random: no connection survives a failover")


@dataclass(frozen=True, slots=True, kw_only=True)
class BgpSettings:
    """[return_path.bgp]; `destination` None is the default route."""

    enabled: bool = setting(False, s.BOOLEAN, "replies of BGP pools leave by the BGP peers of this node")
    table: int = setting(20, s.BGP_TABLE, "routing table, ours alone")
    rule_priority: int = setting(20, s.integer(1, s.PRIORITY_MAX), "priority of the rule that leads to it")
    rule_fwmark: int = setting(0, s.integer(0, s.MARK_MAX), "mark that packets known by source must carry; 0: any")
    destination: Network | None = setting("default", s.DESTINATION, "destination of the route")
    peer_weight: int = setting(100, s.integer(1, 256), "weight of a peer that carries no label metallb-nra/weight")
    symmetric: bool = setting(
        True, s.BOOLEAN, "answers go back through the peer that brought the request; false: by any"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class L2Settings:
    """[[return_path.l2]]"""

    name: str = setting("", s.PATH_NAME, "how messages call this path", required=True, example="public")
    pools: tuple[str, ...] = setting([], Many(item=s.POOL_NAME), "IPAddressPool names, and/or", example=["public"])
    cidrs: tuple[Network, ...] = setting([], Many(item=s.NETWORK), "networks")
    interface: str = setting(
        "", s.INTERFACE, "must exist; this program creates no interface", required=True, example="eth0.100"
    )
    gateways: tuple[Address, ...] = setting(
        [], Many(item=s.ADDRESS), "none: only the connected route in the main table", example=["192.0.2.1"]
    )
    connected_route: bool = setting(True, s.BOOLEAN, "route the pools to the interface")
    symmetric: bool = setting(
        True, s.BOOLEAN, "answers go back through the gateway that brought the request; false: by any"
    )
    rp_filter: PathRpFilter = setting(
        "auto", s.choice(PathRpFilter), "auto: loose, or filter (off, but netfilter checks) without an address"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnPathSettings:
    """[return_path]"""

    match: tuple[Match, ...] = setting(
        ["conntrack", "source"],
        Many(item=s.choice(Match), needed=True),
        "how replies are known; source: host addresses; rules: no netfilter (Cilium BPF)",
    )
    exclude_cidrs: tuple[Network, ...] = setting(
        [], Many(item=s.NETWORK), "destinations that stay on the main table, beside the cluster's own"
    )
    bgp: BgpSettings = section(BgpSettings, "Pools that MetalLB announces by BGP.")
    l2: tuple[L2Settings, ...] = sections(
        L2Settings, "Pools of layer 2 mode with their own subnet, VLAN and router; any number."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalIpSettings:
    """[external_ip]"""

    enabled: bool = setting(False, s.BOOLEAN, "pods and this host reach LoadBalancer addresses by the ClusterIP")
    traffic_policies: tuple[TrafficPolicy, ...] = setting(
        ["Local"],
        Many(item=s.choice(TrafficPolicy), needed=True),
        "of Services with these as externalTrafficPolicy",
    )
    external_ips: bool = setting(False, s.BOOLEAN, "spec.externalIPs too; then all Services are read")
    masquerade_mark: int = setting(
        0, s.integer(0, s.MARK_MAX, hexadecimal=True), "0: this host is masqueraded; else: gets this mark instead"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """[host]"""

    drop_invalid_input: bool = setting(False, s.BOOLEAN, "drop conntrack INVALID in INPUT")
    strict_arp: bool = setting(False, s.BOOLEAN, "arp_ignore=1, arp_announce=2")
    rp_filter: HostRpFilter = setting(
        "loose",
        s.choice(HostRpFilter),
        "loose: 2 where it is 1 (0 without an IPv4 address), on the interfaces that steered traffic enters",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """[metrics]; `listen` is (host, port), None when off."""

    listen: tuple[str, int] | None = setting("127.0.0.1:21793", s.LISTEN, 'served over HTTP; "" or "0": off')


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """[health]; `listen` is (host, port), None when off."""

    listen: tuple[str, int] | None = setting(
        "127.0.0.1:21794", s.LISTEN, '/livez, /healthz and /readyz; "" or "0": off'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorSettings:
    """[doctor]"""

    ignore: tuple[str, ...] = setting(
        [], Many(item=s.CHECK_CODE), "checks of `metaleg-node doctor` that are not made on this host"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """[log]"""

    level: LogLevel = setting("info", s.choice(LogLevel), "the least severe messages shown")
    format: LogFormat = setting("auto", s.choice(LogFormat), "auto: text, in the journal's form under systemd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration; `Config()` is all defaults. `origin` tells which file a key is from."""

    origin: Merged = dataclasses.field(default_factory=lambda: Merged(main=""), compare=False, repr=False)

    node: NodeSettings = section(NodeSettings, "This node.")
    cluster: ClusterSettings = section(ClusterSettings, "Where the cluster's state comes from.")
    reconcile: ReconcileSettings = section(ReconcileSettings, "When the kernel is compared and changed.")
    hooks: HookSettings = section(HookSettings, "Programs run around a reconcile that changes something.")
    firewall: FirewallSettings = section(FirewallSettings, "What this program may use of the kernel's shared numbers.")
    egress: EgressSettings = section(EgressSettings, "Pods leave with the LoadBalancer address of their Service.")
    return_path: ReturnPathSettings = section(ReturnPathSettings, "Replies leave by the way the request came.")
    external_ip: ExternalIpSettings = section(
        ExternalIpSettings, "LoadBalancer addresses from inside the cluster, for kube-proxy in IPVS mode."
    )
    host: HostSettings = section(HostSettings, "Settings of the whole host.")
    metrics: MetricsSettings = section(MetricsSettings, "Metrics for Prometheus.")
    health: HealthSettings = section(HealthSettings, "Health checks.")
    doctor: DoctorSettings = section(DoctorSettings, "What `metaleg-node doctor` leaves out.")
    log: LogSettings = section(LogSettings, "Messages.")


# --- problems --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong in a file. `key` is dotted and empty for the file as a whole, `value` as TOML would write it,
    shortened, and empty where there is none."""

    file: str
    key: str = ""
    value: str = ""
    message: str

    @property
    def text(self) -> str:
        """All but the file."""
        place = " = ".join(part for part in (self.key, self.value) if part)
        return f"{place}: {self.message}" if place else self.message

    def __str__(self) -> str:
        return f"{self.file}: {self.text}" if self.file else self.text


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems

    @classmethod
    def of(cls, file: str, *messages: str) -> Self:
        """Of what is wrong with a file as a whole."""
        return cls(tuple(Problem(file=file, message=message) for message in messages))


def parse(text: str, *, file: str, fragments: Mapping[str, str] | None = None) -> Config:
    """Turns TOML text into a Config, with `fragments`, texts by their files, over it in their order. Raises ConfigError
    with every problem; the files are only for their text."""
    merged = Merged(main=file)
    problems: list[Problem] = []
    for name, one in {file: text, **(fragments or {})}.items():
        try:
            merged.add(name, _document(one, name))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(tuple(problems))
    reader = _Reader(merged)
    config: Config = dataclasses.replace(reader.table(Config, merged.tables, ""), origin=merged)
    _relate(config, reader)
    if reader.problems:
        raise ConfigError(tuple(reader.problems))
    return config


def _document(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError.of(file, "not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError; or a number or date that Python cannot hold
        raise ConfigError.of(file, f"not valid TOML: {error}") from None


def former_keys(config: Config) -> tuple[Problem, ...]:
    """The keys in its files that still work, but not for long."""
    return tuple(Problem(file=use.file, key=use.key, message=use.former.text) for use in config.origin.uses)


# --- reading ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Turns tables into dataclasses and gathers what is wrong; a bad value reads as its default."""

    def __init__(self, merged: Merged) -> None:
        self._merged = merged
        self.problems: list[Problem] = []

    def add(self, key: str, message: str, value: object = None, *, hexadecimal: bool = False) -> None:
        text = "" if value is None else _shown(value, hexadecimal=hexadecimal)
        self.problems.append(Problem(file=self._merged.file(key), key=key, value=text, message=message))

    def relate(self, key: str, other: str, message: str, value: object, *, hexadecimal: bool = False) -> None:
        """What is wrong with a key beside another one. Told is the file that has written it, else the other's; both
        where they are two."""
        mine, others = self._merged.writer(key), self._merged.writer(other)
        where = f"; {other} is in {others}" if mine and others and mine != others else ""
        text = _shown(value, hexadecimal=hexadecimal)
        file = mine or others or self._merged.main
        self.problems.append(Problem(file=file, key=key, value=text, message=f"{message}{where}"))

    def is_good(self, key: str) -> bool:
        """Whether nothing is wrong at this key or inside it."""
        return not any(p.key == key or p.key.startswith((f"{key}.", f"{key}[")) for p in self.problems)

    def table(self, cls: type[Any], raw: dict[str, Any], key: str) -> Any:
        known = dict(s.entries(cls))
        for name in raw:
            if name not in known:
                self.add(join(key, name), _unknown(name, key, list(known)))
        return cls(**{name: self._entry(entry, raw, name, key) for name, entry in known.items()})

    def _entry(self, entry: Setting | Section, raw: dict[str, Any], name: str, parent: str) -> Any:
        key = join(parent, name)
        if isinstance(entry, Setting):
            return self._setting(entry, raw, name, key)
        if entry.many:
            return self._tables(entry.cls, raw.get(name, []), key)
        value = raw.get(name, {})
        if isinstance(value, dict):
            return self.table(entry.cls, value, key)
        self.add(key, f"must be a table: write [{key}] on a line of its own", value)
        return entry.cls()

    def _tables(self, cls: type[Any], raw: Any, key: str) -> tuple[Any, ...]:
        if not isinstance(raw, list):
            self.add(key, f"must be an array of tables: write [[{key}]] on a line of its own", raw)
            return ()
        found = []
        for index, item in enumerate(raw):
            if isinstance(item, dict):
                found.append(self.table(cls, item, f"{key}[{index}]"))
            else:
                self.add(f"{key}[{index}]", f"must be a table: write [[{key}]] on a line of its own", item)
        return tuple(found)

    def _setting(self, entry: Setting, raw: dict[str, Any], name: str, key: str) -> Any:
        if name not in raw:
            if entry.required:
                self.add(key, f"is missing: set it to {entry.kind.allowed}")
            return entry.default_value
        if not isinstance(entry.kind, Many):
            return self._value(entry.kind, raw[name], key, entry.default_value)
        return self._array(entry, raw[name], key)

    def _array(self, entry: Setting, raw: Any, key: str) -> Any:
        assert isinstance(entry.kind, Many)
        if not isinstance(raw, list) or (entry.kind.needed and not raw):
            hint = f"; did you mean [{_shown(raw)}]?" if isinstance(raw, str) else ""
            self.add(key, f"must be {entry.kind.allowed}{hint}", raw)
            return entry.default_value
        return tuple(self._value(entry.kind.item, item, f"{key}[{i}]", None) for i, item in enumerate(raw))

    def _value(self, kind: s.Kind[Any], raw: Any, key: str, fallback: Any) -> Any:
        try:
            return kind.read(raw)
        except ValueError as error:
            hint = f"; {error}" if str(error) else ""
            self.add(key, f"must be {kind.allowed}{hint}", raw, hexadecimal=kind.hexadecimal)
            return fallback


def _shown(value: object, *, hexadecimal: bool = False) -> str:
    """A value about as TOML writes it, in printable ASCII, shortened; tables only hinted at. `hexadecimal`: as integers
    of its key are written."""
    if isinstance(value, list):
        return short(f"[{', '.join('[...]' if isinstance(item, list) else _shown(item) for item in value)}]")
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, tuple):
        return short(json.dumps(endpoint(*value)))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool):
        # TOML has no negative hexadecimal numbers, and Python refuses to write very long decimal ones.
        return short(hex(value)) if (hexadecimal and value >= 0) or abs(value) >= 1 << 64 else str(value)
    return short(repr(value) if isinstance(value, float) else json.dumps(value))


def _unknown(name: str, table: str, known: list[str]) -> str:
    """What to say about a key that does not exist: the nearest here, else where that key does exist."""
    guess = s.nearest(name, known)
    if guess:
        return f"unknown key; did you mean {guess}?"
    everywhere = {leaf.path[-1]: ".".join(leaf.path[:-1]) for leaf in s.leaves(Config)}
    guess = s.nearest(name, everywhere)
    if guess:
        return f"unknown key; did you mean {guess} in [{everywhere[guess]}]?"
    place = f"[{table}]" if table else "the file"
    return f"unknown key; {place} knows {', '.join(known)}"


# --- settings that depend on each other ------------------------------------------------------------------------------


def _lies_in(number: int, first: int, count: int, whose: str) -> str:
    if not first <= number < first + count:
        return ""
    return f"lies in the {whose} ({first}-{first + count - 1}); change one of the two"


def _bgp_table_is_free(config: Config) -> str:
    first = config.firewall.route_table_base + 1
    return _lies_in(config.return_path.bgp.table, first, s.SLOTS, "tables of firewall.route_table_base")


def _bgp_priority_is_free(config: Config) -> str:
    first = config.firewall.rule_priority
    whose = "priorities of firewall.rule_priority"
    return _lies_in(config.return_path.bgp.rule_priority, first, s.PRIORITIES, whose)


_KUBE_PROXY_MARK = 0x4000
"""What it masquerades carries this (its iptables.masqueradeBit, 14)."""


def _masquerade_mark_is_free(config: Config) -> str:
    mask, mark = config.firewall.mark_mask, config.external_ip.masquerade_mark
    if not (mark or _KUBE_PROXY_MARK) & mask:
        return ""
    whose = "" if mark else f"means that kube-proxy has its usual mark {_KUBE_PROXY_MARK:#x}, which "
    return f"{whose}overlaps firewall.mark_mask ({mask:#x}); change one of the two"


def _health_address_is_free(config: Config) -> str:
    listen = config.health.listen
    # Port 0 is one of the kernel's choice, another each time.
    if listen is None or listen != config.metrics.listen or not listen[1]:
        return ""
    return "is the address of metrics.listen as well; change the port of one of the two"


_RELATIONS: tuple[tuple[str, str, Callable[[Config], str]], ...] = (
    ("return_path.bgp.table", "firewall.route_table_base", _bgp_table_is_free),
    ("return_path.bgp.rule_priority", "firewall.rule_priority", _bgp_priority_is_free),
    ("external_ip.masquerade_mark", "firewall.mark_mask", _masquerade_mark_is_free),
    ("health.listen", "metrics.listen", _health_address_is_free),
)
"""The key that is blamed, the other that it depends on, and what says what is wrong (empty: nothing)."""


def _relate(config: Config, reader: _Reader) -> None:
    """Checks what needs several values, where those are good in themselves."""
    leaves = {leaf.key: leaf for leaf in s.leaves(Config)}
    for key, other, check in _RELATIONS:
        if reader.is_good(key) and reader.is_good(other) and (message := check(config)):
            leaf = leaves[key]
            value = functools.reduce(getattr, leaf.path, config)
            reader.relate(key, other, message, value, hexadecimal=leaf.setting.kind.hexadecimal)
    if reader.is_good("return_path.l2"):
        _relate_l2(config, reader)


def _relate_l2(config: Config, reader: _Reader) -> None:
    paths = config.return_path.l2
    names = Counter(path.name for path in paths)
    for index, path in enumerate(paths):
        key = f"return_path.l2[{index}]"
        if names[path.name] > 1:
            reader.add(f"{key}.name", "is used by several paths; give each its own", path.name)
        if path.name == "bgp":
            reader.add(f"{key}.name", "is what messages call the path of the BGP peers; choose another", path.name)
        if not path.pools and not path.cidrs:
            reader.add(key, "selects nothing: set pools (IPAddressPool names) or cidrs")
        for number, network in enumerate(path.cidrs):
            if not network.prefixlen:
                message = "is every address there is; name the networks that the LoadBalancer addresses are of"
                reader.add(f"{key}.cidrs[{number}]", message, str(network))
