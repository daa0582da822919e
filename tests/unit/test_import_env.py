"""What each variable of the three programs becomes, which ones are refused, and how they are read from files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metaleg_node import cli
from metaleg_node.configuration.config import Config, ConfigError, parse
from metaleg_node.import_env import reading
from metaleg_node.import_env.translation import Environment, translate
from metaleg_node.import_env.variables import PREFIXES, VARIABLES

T = TypeVar("T")

PRIVATE = '["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"]'
SHARED = ""
METALEG = f"egress.exclude_cidrs = {PRIVATE}"
ROUTE_AGENT = "return_path.bgp.enabled = true"
NODE_MANAGER = "host.drop_invalid_input = true"
"""What each program does without any variable, as TOML."""
EXTERNAL = 'external_ip = { enabled = true, traffic_policies = ["Local", "Cluster"], external_ips = true }'


def text_of(environment: dict[str, str]) -> str:
    translated = translate(Environment(variables=environment), file="F")
    assert not translated.problems
    return translated.text


def config_of(environment: dict[str, str]) -> Config:
    return parse(text_of(environment), file="F")


def problems_of(environment: dict[str, str]) -> list[str]:
    return [str(problem) for problem in translate(Environment(variables=environment), file="F").problems]


def unwrapped(text: str) -> str:
    """The comments of a text without their line breaks."""
    return re.sub(r"\n#  +", " ", text)


GOOD = [
    # whose default comes with it, the variable, its value, what it means
    (SHARED, "NODE_NAME", "node-1.example", 'node.name = "node-1.example"'),
    (SHARED, "METALLB_NAMESPACE", "lb", 'cluster.metallb_namespace = "lb"'),
    (SHARED, "METALLB_NAMESPACE", "metallb-system", ""),
    (METALEG, "FILTER_ENDPOINTS_FOR_NODE", "false", "egress.local_endpoints_only = false"),
    (METALEG, "FILTER_ENDPOINTS_FOR_NODE", "0", "egress.local_endpoints_only = false"),
    (METALEG, "FILTER_ENDPOINTS_FOR_NODE", "T", ""),
    (METALEG, "FIREWALL_BACKEND", "iptables", ""),
    (METALEG, "FIREWALL_MASK", "0x0F000000", "firewall.mark_mask = 0x0f000000"),
    (METALEG, "FIREWALL_MASK", "0x00F00000", ""),
    (METALEG, "FIREWALL_MASK", "0xF00000", ""),
    (SHARED, "FIREWALL_EXCLUDE_DST_CIDRS", "10.244.0.0/16", 'egress.exclude_cidrs = ["10.244.0.0/16"]'),
    (
        SHARED,
        "FIREWALL_EXCLUDE_DST_CIDRS",
        " 10.96.0.1/12 ,fd00:96::1/112,, 10.96.0.0/12",
        'egress.exclude_cidrs = ["10.96.0.0/12", "fd00:96::/112"]',
    ),
    (METALEG, "FIREWALL_EXCLUDE_DST_CIDRS", "", ""),
    (METALEG, "ROUTE_BACKEND", "netlink", ""),
    (METALEG, "ROUTE_TABLE_ID_OFFSET", "200000", "firewall.route_table_base = 200000"),
    (METALEG, "ROUTE_TABLE_ID_OFFSET", "100000", ""),
    (METALEG, "RECONCILIATION_INTERVAL", "1h30m", 'reconcile.interval = "1h30m"'),
    (METALEG, "RECONCILIATION_INTERVAL", "+90s", 'reconcile.interval = "90s"'),
    (METALEG, "RECONCILIATION_INTERVAL", "5m0s", ""),
    (SHARED, "METRICS_BIND_ADDRESS", ":9100", 'metrics.listen = "[::]:9100"'),
    (SHARED, "METRICS_BIND_ADDRESS", "0", 'metrics.listen = "0"'),
    (SHARED, "METRICS_BIND_ADDRESS", "127.0.0.1:21793", ""),
    (SHARED, "HEALTH_PROBE_BIND_ADDRESS", "[::1]:9101", 'health.listen = "[::1]:9101"'),
    (SHARED, "HEALTH_PROBE_BIND_ADDRESS", ":9101", 'health.listen = "[::]:9101"'),
    (SHARED, "DEV_MODE", "true", 'log.format = "text"'),
    (SHARED, "DEV_MODE", "1", ""),
    (ROUTE_AGENT, "MAX_RECONCILE_WAIT", "60000", 'reconcile.interval = "1m"'),
    (ROUTE_AGENT, "MAX_RECONCILE_WAIT", "90000", 'reconcile.interval = "90s"'),
    (ROUTE_AGENT, "MAX_RECONCILE_WAIT", "1500", 'reconcile.interval = "1500ms"'),
    (ROUTE_AGENT, "MAX_RECONCILE_WAIT", "7200000", 'reconcile.interval = "2h"'),
    (ROUTE_AGENT, "MAX_RECONCILE_WAIT", "5", 'reconcile.interval = "1s"'),
    (ROUTE_AGENT, "MAX_RECONCILE_WAIT", "0", 'reconcile.interval = "0"'),
    (ROUTE_AGENT, "MAX_RECONCILE_WAIT", "300000", ""),
    (ROUTE_AGENT, "TABLE_WEIGHT", "30", "return_path.bgp.table = 30"),
    (ROUTE_AGENT, "TABLE_WEIGHT", "20", ""),
    (ROUTE_AGENT, "TABLE_NAME", "30", "return_path.bgp.table = 30"),
    (ROUTE_AGENT, "TABLE_NAME", "metallb-nra", ""),
    (ROUTE_AGENT, "PEER_WEIGHT", "256", "return_path.bgp.peer_weight = 256"),
    (ROUTE_AGENT, "RULE_PRIORITY", "1000", "return_path.bgp.rule_priority = 1000"),
    (ROUTE_AGENT, "RULE_FWMARK", "0x14", "return_path.bgp.rule_fwmark = 0x14"),
    (ROUTE_AGENT, "RULE_FWMARK", "20", "return_path.bgp.rule_fwmark = 20"),
    (ROUTE_AGENT, "DESTINATION", "default", ""),
    (ROUTE_AGENT, "DESTINATION", "10.0.0.0/8", 'return_path.bgp.destination = "10.0.0.0/8"'),
    (ROUTE_AGENT, "PRE_RECONCILE_SCRIPT_PATH", "/opt/a b", 'hooks.pre = "/opt/a b"'),
    (ROUTE_AGENT, "POST_RECONCILE_SCRIPT_PATH", '/ö"\\\x7f😀', 'hooks.post = "/ö\\"\\\\\\u007f😀"'),
    (ROUTE_AGENT, "METALLB_CONFIGMAP_NAME", "bgp", 'cluster.metallb_configmap = "bgp"'),
    (ROUTE_AGENT, "METALLB_STATIC_FILE", "/etc/metallb.yaml", 'cluster.state_file = "/etc/metallb.yaml"'),
    (ROUTE_AGENT, "METALLB_STATIC_FILE_WAIT", "5000", ""),
    (ROUTE_AGENT, "METALLB_USE_CRDS", "1", 'cluster.metallb_config = "crds"'),
    (SHARED, "LOG_LEVEL", "warn", 'log.level = "warning"'),
    (SHARED, "LOG_LEVEL", "error", 'log.level = "error"'),
    (SHARED, "LOG_LEVEL", "verbose", 'log.level = "debug"'),
    (SHARED, "LOG_LEVEL", "silly", 'log.level = "debug"'),
    (SHARED, "LOG_LEVEL", "info", ""),
    (ROUTE_AGENT, "CLEANANDEXIT", "1", ""),
    (ROUTE_AGENT, "ONESHOT", "1", ""),
    (NODE_MANAGER, "POD_CIDR_IPV4", "10.244.0.0/16", 'cluster.pod_cidrs = ["10.244.0.0/16"]'),
    (NODE_MANAGER, "POD_CIDR_IPV6", "fd00:244::/48", 'cluster.pod_cidrs = ["fd00:244::/48"]'),
    (SHARED, "RULE_DROP_INVALID_INPUT_ENABLE", "False", ""),
    (NODE_MANAGER, "RULE_DROP_INVALID_INPUT_ENABLE", "true", ""),
    (SHARED, "RULE_DROP_INVALID_INPUT", "false", ""),
    (NODE_MANAGER, "RULE_EXTERNAL_CLUSTER_ENABLE", "true", EXTERNAL),
    (NODE_MANAGER, "RULE_EXTERNAL_CLUSTER_ENABLE", "false", ""),
    (NODE_MANAGER, "RULE_EXTERNAL_CLUSTER", "TRUE", EXTERNAL),
    (NODE_MANAGER, "NET_STACK", "ipv4, IPv6", ""),
    (NODE_MANAGER, "RULE_NOT_TRACK_DNS_ENABLE", "true", ""),
    (NODE_MANAGER, "RULE_NOT_TRACK_DNS", "true", ""),
    (NODE_MANAGER, "RULE_NOT_TRACK_DNS_SERVICES", "kube-dns", ""),
]


@pytest.mark.parametrize(("default", "name", "value", "toml"), GOOD, ids=[f"{n}={v!a}" for _, n, v, _ in GOOD])
def test_a_variable_means_a_setting(default: str, name: str, value: str, toml: str) -> None:
    if name == "FIREWALL_EXCLUDE_DST_CIDRS" and not value:
        # Empty is as good as unset; another variable must tell whose it is.
        assert config_of({name: value, "ROUTE_BACKEND": "netlink"}) == parse(METALEG, file="F")
        return
    text = text_of({name: value})
    assert parse(text, file="F") == parse(f"{default}\n{toml}", file="F")
    assert name in unwrapped(text), "a variable that is given is always accounted for"
    if toml:
        assert f"# from {name}" in text


def test_every_variable_has_a_row() -> None:
    assert {name for _, name, _, _ in GOOD} == {variable.name for variable in VARIABLES}


BAD = [
    ("NODE_NAME", "Node_1", "DNS-1123"),
    ("METALLB_NAMESPACE", "a/b", "DNS-1123"),
    ("FILTER_ENDPOINTS_FOR_NODE", "yes", "true or false"),
    ("FIREWALL_BACKEND", "nftables", "must be iptables"),
    ("FIREWALL_MASK", "0x00F0F000", "there is a gap between its bits"),
    ("FIREWALL_MASK", "15728640", "it is not hexadecimal"),
    ("FIREWALL_MASK", "0x0000F000", "kube-proxy has its usual mark 0x4000, which overlaps firewall.mark_mask (0xf000)"),
    ("FIREWALL_EXCLUDE_DST_CIDRS", "10.0.0.0/8,10.0.0.0/33", "; '10.0.0.0/33' is none"),
    ("FIREWALL_EXCLUDE_DST_CIDRS", "10.0.0.1", "; '10.0.0.1' is none"),
    ("FIREWALL_EXCLUDE_DST_CIDRS", ",", "it names no network"),
    ("ROUTE_BACKEND", "bpf", "must be netlink"),
    ("ROUTE_TABLE_ID_OFFSET", "-1", "too small"),
    ("ROUTE_TABLE_ID_OFFSET", "0x30d40", "an integer"),
    ("RECONCILIATION_INTERVAL", "5", "no unit"),
    ("RECONCILIATION_INTERVAL", "100us", "a duration with units"),
    ("METRICS_BIND_ADDRESS", ":http", "the port must be a number"),
    ("METRICS_BIND_ADDRESS", "21793", '":PORT" or "ADDRESS:PORT", or "0" for off'),
    ("HEALTH_PROBE_BIND_ADDRESS", "::1:9101", "brackets"),
    ("MAX_RECONCILE_WAIT", "1m", "a whole number of milliseconds"),
    ("MAX_RECONCILE_WAIT", "604800001", "longer than 168h"),
    ("MAX_RECONCILE_WAIT", "9" * 5000, "a whole number of milliseconds"),
    ("TABLE_WEIGHT", "254", "system's tables"),
    ("TABLE_WEIGHT", "main", "a routing table"),
    ("TABLE_WEIGHT", "1000001", "return_path.bgp.table = 1000001 lies in the tables of firewall.route_table_base"),
    ("TABLE_NAME", "0", "too small"),
    ("PEER_WEIGHT", "257", "too large"),
    ("PEER_WEIGHT", "1.5", "an integer from 1 to 256"),
    ("RULE_PRIORITY", "4700", "lies in the priorities of firewall.rule_priority"),
    ("RULE_PRIORITY", "32766", "too large"),
    ("RULE_FWMARK", "0x14/0xff", "it has a mask"),
    ("RULE_FWMARK", "0x100000000", "too large"),
    ("DESTINATION", "10.0.0.1/8", "did you mean 10.0.0.0/8?"),
    ("PRE_RECONCILE_SCRIPT_PATH", "pre.sh", "an absolute path"),
    ("POST_RECONCILE_SCRIPT_PATH", "/\udcff", "is not UTF-8"),
    ("ONESHOT", "\udcff", "is not UTF-8"),
    ("METALLB_STATIC_FILE", "metallb.yaml", "an absolute path"),
    ("METALLB_STATIC_FILE_WAIT", "5s", "a whole number of milliseconds"),
    ("LOG_LEVEL", "warning", "error, warn, info"),
    ("POD_CIDR_IPV4", "fd00::/48", "it is of the other family"),
    ("POD_CIDR_IPV6", "10.244.0.0/16", "it is of the other family"),
    ("RULE_DROP_INVALID_INPUT_ENABLE", "1", "true or false"),
    ("RULE_EXTERNAL_CLUSTER_ENABLE", "on", "true or false"),
    ("NET_STACK", "ipv4 ipv6", "ipv4, ipv6 or both"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[f"{n}={v!a:.30}" for n, v, _ in BAD])
def test_a_bad_value_is_the_one_problem_and_says_what_is_allowed(name: str, value: str, message: str) -> None:
    (problem,) = problems_of({name: value, "NODE_NAME": "a"} | {name: value})
    assert problem.startswith(f"F: {name} = '")
    assert message in problem
    assert problem.isprintable()
    assert len(problem) < 400


def test_all_problems_come_at_once() -> None:
    told = problems_of({"LOG_LEVEL": "x", "TABLE_WEIGHT": "x", "ROUTE_BACKEND": "x", "NODE_NAME": "n"})
    assert [problem.split()[1] for problem in told] == ["ROUTE_BACKEND", "TABLE_WEIGHT", "LOG_LEVEL"]


# --- several variables, several programs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RECONCILIATION_INTERVAL": "10m", "MAX_RECONCILE_WAIT": "60000"}, "1m"),
        ({"RECONCILIATION_INTERVAL": "10s", "MAX_RECONCILE_WAIT": "60000"}, "10s"),
        ({"RECONCILIATION_INTERVAL": "10m", "MAX_RECONCILE_WAIT": "0"}, "10m"),
        ({"RECONCILIATION_INTERVAL": "0", "MAX_RECONCILE_WAIT": "0"}, "0"),
    ],
)
def test_of_two_intervals_the_shorter_one_serves_both(environment: dict[str, str], expected: str) -> None:
    assert config_of(environment).reconcile == parse(f'reconcile.interval = "{expected}"', file="F").reconcile
    assert "# from RECONCILIATION_INTERVAL, from MAX_RECONCILE_WAIT" in text_of(environment)


def test_the_pod_networks_of_both_families_come_together() -> None:
    config = config_of({"POD_CIDR_IPV4": "10.244.0.0/16", "POD_CIDR_IPV6": "fd00:244::/48"})
    assert list(map(str, config.cluster.pod_cidrs)) == ["10.244.0.0/16", "fd00:244::/48"]


@pytest.mark.parametrize(
    ("first", "second", "same", "other"),
    [
        ("TABLE_WEIGHT", "TABLE_NAME", "30", "31"),
        ("RULE_DROP_INVALID_INPUT_ENABLE", "RULE_DROP_INVALID_INPUT", "true", "false"),
        ("RULE_EXTERNAL_CLUSTER_ENABLE", "RULE_EXTERNAL_CLUSTER", "true", "false"),
    ],
)
def test_two_names_for_one_thing_may_not_contradict_each_other(first: str, second: str, same: str, other: str) -> None:
    assert config_of({first: same, second: same}) == config_of({first: same})
    (problem,) = problems_of({first: same, second: other})
    assert problem.startswith(f"F: {second} = '{other}': contradicts {first}")


def test_the_programs_may_be_mixed() -> None:
    environment = {"NODE_NAME": "n", "FIREWALL_MASK": "0x00F00000", "TABLE_WEIGHT": "20", "NET_STACK": "ipv4"}
    expected = parse(f'{METALEG}\n{ROUTE_AGENT}\n{NODE_MANAGER}\nnode.name = "n"', file="F")
    assert config_of(environment) == expected
    assert "metaleg and metallb-node-route-agent and network-node-manager" in text_of(environment)


DEFAULTS_OF_METALEG = {
    "NODE_NAME": "n",
    "METALLB_NAMESPACE": "metallb-system",
    "FILTER_ENDPOINTS_FOR_NODE": "true",
    "FIREWALL_BACKEND": "iptables",
    "FIREWALL_MASK": "0x00F00000",
    "ROUTE_BACKEND": "netlink",
    "ROUTE_TABLE_ID_OFFSET": "100000",
    "RECONCILIATION_INTERVAL": "5m",
    "DEV_MODE": "false",
}


def test_a_program_with_its_defaults_needs_only_what_differs() -> None:
    assert config_of(DEFAULTS_OF_METALEG) == parse(f'{METALEG}\nnode.name = "n"', file="F")
    keys = [line for line in text_of(DEFAULTS_OF_METALEG).splitlines() if line and not line.startswith("#")]
    assert keys == ["[node]", 'name = "n"', "[egress]", f"exclude_cidrs = {PRIVATE}"]


def test_the_keys_are_grouped_by_table_in_the_order_of_the_reference() -> None:
    text = text_of({"RULE_EXTERNAL_CLUSTER": "true", "TABLE_WEIGHT": "30", "PEER_WEIGHT": "7", "NODE_NAME": "n"})
    assert re.findall(r"^\[.*\]$", text, re.MULTILINE) == ["[node]", "[return_path.bgp]", "[external_ip]", "[host]"]
    assert max(map(len, text.splitlines())) <= 118


def test_a_long_list_has_a_line_for_each_network() -> None:
    networks = [f"2001:db8:{number:x}::/48" for number in range(1, 30)]
    text = text_of({"FIREWALL_EXCLUDE_DST_CIDRS": ",".join(networks)})
    assert max(map(len, text.splitlines())) <= 118
    assert list(map(str, parse(text, file="F").egress.exclude_cidrs)) == networks


def test_an_environment_without_any_of_them_is_all_defaults_and_says_what_to_look_for() -> None:
    text = text_of({"PATH": "/bin", "HOME": "/root"})
    assert parse(text, file="F") == Config()
    told = unwrapped(text)
    assert "no variable tells which program it is for" in told
    assert "for metallb-node-route-agent set return_path.bgp.enabled = true" in told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("FIREWALL_EXCLUDE_DST_CIDR", "not understood, none of the three programs has it; did you mean FIREWALL_EX"),
        ("METALLB_\n[egress]\nö", "METALLB_\\n[egress]\\n\\xf6: not understood"),
        ("RULE_" + "x" * 1000, "...: not understood"),
    ],
)
def test_an_unknown_variable_with_a_known_prefix_is_named(name: str, told: str) -> None:
    text = text_of({name: "1"})
    assert parse(text, file="F") == Config()
    assert told in unwrapped(text)


@pytest.mark.parametrize("name", ["METALLB_WEBHOOK_SERVICE_SERVICE_HOST", "METALLB_WEBHOOK_SERVICE_PORT_443_TCP_ADDR"])
def test_what_kubernetes_tells_every_pod_of_its_services_is_no_misspelt_variable(name: str) -> None:
    assert "not understood" not in text_of({name: "10.96.0.7"})


# --- files -----------------------------------------------------------------------------------------------------------

LINES = [
    ("A=b", {"A": "b"}),
    ("  export A=b  ", {"A": "b"}),
    ("# A=b\n; A=c\n\n", {}),
    ("A=", {"A": ""}),
    ("A=b c", {"A": "b c"}),
    ("A='b # c'", {"A": "b # c"}),
    ('A="b \\"c\\" $d \\x" # why', {"A": 'b "c" $d \\x'}),
    ("A=b # why", {"A": "b"}),
    ("A=b#c", {"A": "b#c"}),
    ("A=b\r\nB=c\r\n", {"A": "b", "B": "c"}),
    ("A=b,\\\n  c\nB=d", {"A": "b,  c", "B": "d"}),
    ("A=b\\", {"A": "b"}),
    ("A=b\nA=c", {"A": "c"}),
    ("\ufeffA=b", {"A": "b"}),
    ("PATH=/bin\0A=b=c\nd\0NOTHING\0", {"PATH": "/bin", "A": "b=c\nd"}),
]


@pytest.mark.parametrize(("text", "variables"), LINES, ids=[f"{text!a}" for text, _ in LINES])
def test_lines_of_an_environment_file(tmp_path: Path, text: str, variables: dict[str, str]) -> None:
    file = tmp_path / "env"
    file.write_bytes(text.encode())
    assert reading.load(file) == Environment(variables=variables)


def test_lines_that_are_none_are_all_named_with_their_number() -> None:
    with pytest.raises(ConfigError) as caught:
        reading.parse('A=1\\\n2\nnonsense\nB=\'open\nC="x" y\n1D=2', file="F")
    assert [str(problem) for problem in caught.value.problems] == [
        "F: line 3: 'nonsense' is no variable; write NAME=value",
        "F: line 4: B: a quote is not closed, or something follows it",
        "F: line 5: C: a quote is not closed, or something follows it",
        "F: line 6: '1D=2' is no variable; write NAME=value",
    ]


AGENT = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: metallb-node-route-agent}
spec:
  template:
    spec:
      containers:
      - image: registry.example/mirror/metallb-node-route-agent:v0.4.13
        env:
        - name: NODE_NAME
          valueFrom: {fieldRef: {apiVersion: v1, fieldPath: spec.nodeName}}
        - {name: PEER_WEIGHT, value: "7"}
        - {name: TABLE_WEIGHT, valueFrom: {configMapKeyRef: {name: nra, key: table}}}
        envFrom:
        - configMapRef: {name: more}
"""
MANAGER = """
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{env: [{name: RULE_EXTERNAL_CLUSTER, value: 'true'}]}]}}}}}
"""
OTHER = """
kind: Pod
spec: {containers: [{image: example/other, env: [{name: LOG_LEVEL, value: trace}]}, {}]}
"""


def test_a_manifest_tells_variables_program_and_what_cannot_be_read() -> None:
    environment = reading.parse(AGENT, file="F")
    assert environment.variables == {"PEER_WEIGHT": "7"}
    text = translate(environment, file="F").text
    assert parse(text, file="F") == parse(f"{ROUTE_AGENT}\nreturn_path.bgp.peer_weight = 7", file="F")
    told = unwrapped(text)
    assert "NODE_NAME: cannot be read here, it comes from fieldRef spec.nodeName; set node.name" in told
    assert "TABLE_WEIGHT: cannot be read here, it comes from configMapKeyRef nra table; set return_path" in told
    assert "the variables of configMapRef more: cannot be read here" in told


def test_an_image_tells_the_program_even_without_variables() -> None:
    for image, default in (
        ("ghcr.io/gerolf-vent/metaleg-agent:v0.2.1", METALEG),
        ("travisghansen/metallb-node-route-agent", ROUTE_AGENT),
        ("kakaocorp/network-node-manager:v1.0.0", NODE_MANAGER),
    ):
        manifest = json.dumps({"kind": "Pod", "spec": {"containers": [{"image": image}]}})
        text = translate(reading.parse(manifest, file="F"), file="F").text
        assert parse(text, file="F") == parse(default, file="F")


def test_several_documents_a_list_and_json_read_the_same_and_strangers_do_not_count() -> None:
    objects = [yaml.safe_load(text) for text in (AGENT, MANAGER, OTHER)]
    whole = {"apiVersion": "v1", "kind": "List", "items": objects}
    texts = ["---".join((AGENT, MANAGER, OTHER)), yaml.safe_dump(whole), json.dumps(whole), json.dumps(whole, indent=4)]
    assert len({translate(reading.parse(text, file="F"), file="F") for text in texts}) == 1
    environment = reading.parse(texts[0], file="F")
    assert environment.variables == {"PEER_WEIGHT": "7", "RULE_EXTERNAL_CLUSTER": "true"}


def test_a_value_that_one_container_has_and_another_refers_to_is_known() -> None:
    environment = reading.parse(
        AGENT
        + "---"
        + AGENT.replace("configMapKeyRef: {name: nra, key: table}", "").replace("valueFrom: {}", 'value: "30"'),
        file="F",
    )
    assert environment.variables["TABLE_WEIGHT"] == "30"
    assert "TABLE_WEIGHT" not in environment.unreadable


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AGENT + "---" + AGENT.replace('"7"', '"8"'), "'PEER_WEIGHT': has different values in several containers"),
        ("kind: DaemonSet\nspec: {}", "has no container"),
        ("kind: [", "not valid YAML"),
        ("kind: DaemonSet\nspec: " + "[" * 5000, "not valid YAML"),
        ('{"kind": "Pod"', "not valid YAML"),
        ("{\U00018d09", "\\U00018d09"),
    ],
    ids=["contradiction", "no container", "yaml", "depth", "json", "unprintable"],
)
def test_a_manifest_that_is_no_use_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^F: ") as caught:
        reading.parse(text, file="F")
    assert message in str(caught.value)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_reads_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "env"
    file.write_text("NODE_NAME=n\n")
    assert cli.main(["import-env", str(file)]) == 0
    assert parse(capsys.readouterr().out, file="F") == parse('node.name = "n"', file="F")


def test_the_command_reads_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TABLE_WEIGHT", "30")
    assert cli.main(["import-env"]) == 0
    assert "\ntable = 30\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=b\n\xff", "line 2: not UTF-8"),
        (None, "No such"),
    ],
)
def test_what_cannot_be_understood_is_a_configuration_error_without_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    file = tmp_path / "env"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["import-env", str(file)]) == 78
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{file}: ")
    assert message in printed.err


def test_the_command_goes_on_after_variables_that_cannot_be_translated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "env"
    file.write_text("TABLE_WEIGHT=x\nNODE_NAME=n\nLOG_LEVEL=x\n")
    assert cli.main(["import-env", str(file)]) == 78
    printed = capsys.readouterr()
    assert parse(printed.out, file="F") == parse('node.name = "n"\nreturn_path.bgp.enabled = true', file="F")
    assert "# - TABLE_WEIGHT: cannot be translated\n# - LOG_LEVEL: cannot be translated\n" in printed.out
    told = printed.err.splitlines()
    assert told[0].startswith(f"{file}: TABLE_WEIGHT = 'x': must be a routing table")
    assert told[1].startswith(f"{file}: LOG_LEVEL = 'x': must be")
    assert len(told) == 2


def test_values_that_do_not_fit_together_are_told_and_left_out() -> None:
    translated = translate(Environment(variables={"TABLE_WEIGHT": "1000005", "LOG_LEVEL": "debug"}), file="F")
    (problem,) = translated.problems
    assert str(problem).startswith("F: TABLE_WEIGHT = '1000005': ")
    assert "TABLE_WEIGHT: cannot be translated" in translated.text
    config = parse(translated.text, file="F")
    assert (config.return_path.bgp.table, config.log.level) == (Config().return_path.bgp.table, "debug")


# --- whatever it is given --------------------------------------------------------------------------------------------

NAMES = st.sampled_from([variable.name for variable in VARIABLES]) | st.sampled_from(PREFIXES).flatmap(
    lambda prefix: st.text(max_size=5).map(lambda rest: prefix + rest)
)
VALUES = (
    st.sampled_from([value for _, _, value, _ in GOOD] + [value for _, value, _ in BAD])
    | st.integers(-(2**40), 2**40).map(str)
    | st.text(max_size=20)
    | st.text(st.characters(), max_size=20)
)


def problems_or(make: Callable[[], T]) -> T | None:
    """What is made, or None where there were problems, each in printable characters; anything else fails the test."""
    try:
        return make()
    except ConfigError as error:
        problems = error.problems
    assert problems
    assert all(str(problem).isprintable() for problem in problems)
    return None


@given(st.dictionaries(NAMES | st.text(max_size=5), VALUES, max_size=8))
def test_any_environment_is_a_configuration_or_problems(variables: dict[str, str]) -> None:
    translated = translate(Environment(variables=variables), file="F")
    parse(translated.text, file="F")
    assert translated.text.isascii()
    assert all(str(problem).isprintable() for problem in translated.problems)


TEXTS = (
    st.text(max_size=300)
    | st.text("A='\"\\ #\n;=x\0", max_size=60)
    | st.text("kind: {}[]-&*!\n\"'a", max_size=80).map(lambda text: f"kind: Pod\n{text}")
)


@given(TEXTS)
def test_any_text_is_an_environment_or_problems(text: str) -> None:
    environment = problems_or(lambda: reading.parse(text, file="F"))
    if environment is not None:
        assert all(isinstance(value, str) for value in environment.variables.values())


@given(st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"])))
def test_quotes_keep_every_value(value: str) -> None:
    quoted = re.sub(r'(["\\$`])', r"\\\1", value)
    assert reading.parse(f'A="{quoted}"', file="F").variables == {"A": value}


# --- what is no list of variables, and what was never read ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image:\n  tag: v1\nenv:\n  TABLE_WEIGHT: 30\n", "is YAML, but no manifest; values of a Helm chart?"),
        ("kind: DaemonSet\nspec: {{ .Values.spec }}\n", "is a template of Helm"),
        ("{{- if .Values.agent }}\napiVersion: v1\n{{- end }}\n", "is a template of Helm"),
    ],
)
def test_what_helm_makes_manifests_of_is_told_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reading.parse(text, file="F")
    (problem,) = caught.value.problems
    assert words in problem.message
    assert "`helm template`" in problem.message


def test_a_configmap_of_an_impossible_name_is_a_note() -> None:
    found = translate(Environment(variables={"METALLB_CONFIGMAP_NAME": "An_Odd_Name", "PEER_WEIGHT": "7"}), file="F")
    assert found.problems == ()
    assert (config := parse(found.text, file="F")).cluster.metallb_configmap == "config"
    assert config.return_path.bgp.peer_weight == 7
    assert "METALLB_CONFIGMAP_NAME: no ConfigMap can be called so" in found.text


def test_what_the_program_did_not_read_is_a_note() -> None:
    variables = {"METALLB_USE_CRDS": "true", "METALLB_CONFIGMAP_NAME": "An_Odd_Name"}
    static = translate(Environment(variables={**variables, "METALLB_STATIC_FILE": "/srv/metallb.yaml"}), file="F")
    assert static.problems == ()
    config = parse(static.text, file="F")
    assert (config.cluster.state_file, config.cluster.metallb_config) == ("/srv/metallb.yaml", "auto")
    assert static.text.count("does not read it beside METALLB_STATIC_FILE") == 2
    crds = translate(Environment(variables=variables), file="F")
    assert crds.problems == ()
    assert parse(crds.text, file="F").cluster.metallb_config == "crds"


@pytest.mark.parametrize("offset", ["0", "20", "200"])
def test_tables_that_are_the_systems_are_a_note(offset: str) -> None:
    found = translate(Environment(variables={"ROUTE_TABLE_ID_OFFSET": offset}), file="F")
    assert found.problems == ()
    assert "tables up to 255 are the system's" in " ".join(found.text.replace("\n#", "").split())
    assert "route_table_base =" not in found.text
