"""The contract of the configuration: every key, every check, every problem at once, in words an operator can use."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

import pytest

from metaleg_node.configuration.config import Config, ConfigError, parse
from metaleg_node.core.model import AnnouncedBy

L2 = '[[return_path.l2]]\nname = "a"\ninterface = "eth0"\npools = ["p"]\n'


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, file="F")
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return [str(problem) for problem in caught.value.problems]


def test_an_empty_file_is_all_defaults() -> None:
    config = parse("", file="F")
    assert config == Config()
    assert config.reconcile.interval == 300.0
    assert config.reconcile.settle == 0.02
    assert config.firewall.mark_mask == 0x3F000000
    assert config.egress.gateway_source == (AnnouncedBy.L2_STATUS, AnnouncedBy.BGP_STATUS, AnnouncedBy.EVENTS)
    assert config.metrics.listen == ("127.0.0.1", 21793)
    assert config.return_path.bgp.destination is None
    assert config.return_path.l2 == ()


GOOD = [
    ('node.name = "node-1.example"', "node.name", "node-1.example"),
    ('cluster.pod_cidrs = ["10.0.0.0/8", "2001:db8::/32"]', "cluster.pod_cidrs", ("10.0.0.0/8", "2001:db8::/32")),
    ('cluster.pod_cidrs = ["192.0.2.7", "2001:db8::7"]', "cluster.pod_cidrs", ("192.0.2.7/32", "2001:db8::7/128")),
    ('cluster.pod_cidrs = ["0.0.0.0/0"]', "cluster.pod_cidrs", ("0.0.0.0/0",)),
    ('reconcile.interval = "1h30m"', "reconcile.interval", 5400.0),
    ('reconcile.interval = "0"', "reconcile.interval", 0.0),
    ('reconcile.settle = "0ms"', "reconcile.settle", 0.0),
    ('hooks.timeout = "1.5s"', "hooks.timeout", 1.5),
    ('hooks.pre = "/etc/metaleg-node/hooks"', "hooks.pre", "/etc/metaleg-node/hooks"),
    ("firewall.mark_mask = 0x1", "firewall.mark_mask", 1),
    ("firewall.mark_mask = 0xffff0000", "firewall.mark_mask", 0xFFFF0000),
    ("firewall.route_table_base = 255", "firewall.route_table_base", 255),
    ("firewall.route_table_base = 4294967232", "firewall.route_table_base", 4294967232),
    ("firewall.rule_priority = 32666", "firewall.rule_priority", 32666),
    ("return_path.bgp.table = 256", "return_path.bgp.table", 256),
    ("return_path.bgp.table = 1000064", "return_path.bgp.table", 1000064),
    ("return_path.bgp.rule_priority = 4800", "return_path.bgp.rule_priority", 4800),
    ("return_path.bgp.peer_weight = 256", "return_path.bgp.peer_weight", 256),
    ('egress.label = "opt-in"', "egress.label", "opt-in"),
    ('metrics.listen = ""', "metrics.listen", None),
    ('metrics.listen = "0"', "metrics.listen", None),
    ('metrics.listen = "[::1]:1"', "metrics.listen", ("::1", 1)),
    ('metrics.listen = "localhost:0"', "metrics.listen", ("localhost", 0)),
    ('metrics.listen = "0.0.0.0:65535"', "metrics.listen", ("0.0.0.0", 65535)),
    ('return_path.bgp.destination = "198.51.100.0/24"', "return_path.bgp.destination", "198.51.100.0/24"),
    ('egress.gateway_source = ["events"]', "egress.gateway_source", ("events",)),
]


@pytest.mark.parametrize(("text", "key", "expected"), GOOD, ids=[text for text, *_ in GOOD])
def test_a_value_in_its_bounds_is_taken(text: str, key: str, expected: object) -> None:
    value: object = parse(text, file="F")
    for name in key.split("."):
        value = getattr(value, name)
    if isinstance(expected, tuple) and "cidrs" in key:
        expected = tuple(ip_network(item) for item in expected)
    if key.endswith("destination"):
        expected = ip_network(str(expected))
    assert value == expected


def test_a_layer_2_path_is_read_whole() -> None:
    text = L2 + 'cidrs = ["192.0.2.0/24"]\ngateways = ["192.0.2.1", "2001:db8::1"]\nrp_filter = "off"\n'
    (path,) = parse(text, file="F").return_path.l2
    assert (path.name, path.interface, path.pools, path.rp_filter) == ("a", "eth0", ("p",), "off")
    assert path.connected_route
    assert path.cidrs == (ip_network("192.0.2.0/24"),)
    assert path.gateways == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))


BAD = [
    # the key, what is written, what the message must say
    ("node.name", '"Node_1"', "DNS-1123"),
    ("node.name", f'"{"a" * 254}"', "DNS-1123"),
    ("node.name", "7", "this is an integer"),
    ("cluster.state_file", '"a\\u0000b"', "NUL"),
    ("cluster.metallb_namespace", '""', "DNS-1123"),
    ("cluster.metallb_config", '"crd"', 'did you mean "crds"?'),
    ("cluster.pod_cidrs", '"10.0.0.0/8"', 'did you mean ["10.0.0.0/8"]?'),
    ("cluster.pod_cidrs[0]", '["10.0.0.1/8"]', "host bits are set; did you mean 10.0.0.0/8?"),
    ("cluster.pod_cidrs[0]", '["2001:db8::1/64"]', "did you mean 2001:db8::/64?"),
    ("cluster.pod_cidrs[0]", '["10.0.0.0/33"]', "CIDR"),
    ("cluster.pod_cidrs[0]", '["10.0.0.0/255.0.0.0"]', "CIDR"),
    ("cluster.pod_cidrs[0]", '["localhost"]', "CIDR"),
    ("cluster.pod_cidrs[0]", '["fe80::1%eth0"]', "CIDR"),
    ("cluster.pod_cidrs[0]", '["10.0.0.0/8 "]', "CIDR"),
    ("cluster.pod_cidrs[1]", '["10.0.0.0/8", true]', "this is a boolean"),
    ("reconcile.interval", '"5"', "no unit"),
    ("reconcile.interval", "5", "this is an integer"),
    ("reconcile.interval", '"-5m"', "negative"),
    ("reconcile.interval", '"5 m"', "duration"),
    ("reconcile.interval", '"5d"', "duration"),
    ("reconcile.interval", '""', "duration"),
    ("reconcile.interval", '"169h"', "longer than 168h"),
    ("reconcile.interval", f'"{"9" * 400}h"', "longer than 168h"),
    ("hooks.timeout", '"0"', "cannot be turned off"),
    ("hooks.pre", '"hooks/pre"', "absolute"),
    ("hooks.pre_failure", '"stop"', "continue, abort"),
    ("firewall.mark_mask", "0", "zero"),
    ("firewall.mark_mask", "-1", "negative"),
    ("firewall.mark_mask", "0x5", "gap"),
    ("firewall.mark_mask", "0x100000000", "wider than 32 bits"),
    ("firewall.mark_mask", '"0x3f"', "this is a string"),
    ("firewall.mark_mask", "true", "this is a boolean"),
    ("firewall.route_table_base", "254", "too small"),
    ("firewall.route_table_base", "4294967233", "too large"),
    ("firewall.rule_priority", "0", "too small"),
    ("firewall.rule_priority", "32667", "too large"),
    ("egress.enabled", "1", "true or false"),
    ("egress.label", '"a b"', "label key"),
    ("egress.label", '"/x"', "label key"),
    ("egress.label", f'"{"a" * 64}"', "label key"),
    ("egress.when_unavailable", '"rejct"', 'must be one of reject, drop, allow; did you mean "reject"?'),
    ("egress.gateway_source", "[]", "non-empty"),
    ("egress.gateway_source[0]", '["l2"]', "l2-status"),
    ("return_path.match", "[]", "non-empty"),
    ("return_path.bgp.table", "0", "too small"),
    ("return_path.bgp.table", "253", "system's tables"),
    ("return_path.bgp.table", "255", "system's tables"),
    ("return_path.bgp.table", "1000001", "firewall.route_table_base (1000001-1000063)"),
    ("return_path.bgp.table", "1000063", "firewall.route_table_base"),
    ("return_path.bgp.rule_priority", "32766", "too large"),
    ("return_path.bgp.rule_priority", "4700", "firewall.rule_priority (4700-4799)"),
    ("return_path.bgp.rule_priority", "4799", "firewall.rule_priority"),
    ("return_path.bgp.rule_fwmark", "0x100000000", "too large"),
    ("return_path.bgp.destination", '"all"', '"default"'),
    ("return_path.bgp.peer_weight", "0", "too small"),
    ("return_path.bgp.peer_weight", "257", "too large"),
    ("external_ip.masquerade_mark", "0x1000000", "overlaps firewall.mark_mask (0x3f000000)"),
    ("external_ip.masquerade_mark", "0x100000000", "too large"),
    ("metrics.listen", '"::1:1"', "brackets"),
    ("metrics.listen", '":1"', "0.0.0.0"),
    ("metrics.listen", '"localhost"', "port"),
    ("metrics.listen", '"localhost:65536"', "port"),
    ("metrics.listen", '"300.1.1.1:1"', "ADDRESS:PORT"),
    ("health.listen", '"[::g]:1"', "ADDRESS:PORT"),
    ("log.level", '"warn"', 'did you mean "warning"?'),
    ("log.format", "1979-05-27", "this is a date or time"),
    ("return_path.l2", "{}", "[[return_path.l2]]"),
    ("return_path.l2[0]", "[1]", "[[return_path.l2]]"),
    ("egress", "3", "must be a table: write [egress]"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=[f"{key}={value:.30}" for key, value, _ in BAD])
def test_a_bad_value_is_the_one_problem_and_says_what_is_allowed(key: str, value: str, message: str) -> None:
    (problem,) = problems(f"{re.sub(r'.[0-9].$', '', key)} = {value}")
    assert problem.startswith(f"F: {key} = ")
    assert message in problem


BAD_L2 = [
    (L2 + L2, "return_path.l2[1].name", "several paths"),
    (L2.replace('"a"', '"bgp"'), "return_path.l2[0].name", "BGP peers"),
    (L2.replace('"p"', '"p", "a pool"'), "return_path.l2[0].pools[1]", "the name of a pool"),
    (L2.replace('pools = ["p"]', ""), "return_path.l2[0]", "set pools (IPAddressPool names) or cidrs"),
    (
        L2.replace('pools = ["p"]', 'cidrs = ["192.0.2.0/24", "0.0.0.0/0"]'),
        "return_path.l2[0].cidrs[1]",
        "every address",
    ),
    (L2.replace('pools = ["p"]', 'cidrs = ["::/0"]'), "return_path.l2[0].cidrs[0]", "every address"),
    (L2.replace('interface = "eth0"', ""), "return_path.l2[0].interface", "is missing"),
    (L2.replace('name = "a"', ""), "return_path.l2[0].name", "is missing"),
    (L2.replace("eth0", "sixteen-bytes-x1"), "return_path.l2[0].interface", "1-15 bytes"),
    (L2.replace("eth0", "a/b"), "return_path.l2[0].interface", "no slash"),
    (L2.replace("eth0", "a b"), "return_path.l2[0].interface", "white space"),
    (L2 + 'gateways = ["router"]', "return_path.l2[0].gateways[0]", "address"),
    (L2 + 'gateways = ["192.0.2.1/24"]', "return_path.l2[0].gateways[0]", "prefix length"),
    (L2 + 'gateways = ["fe80::1%eth0"]', "return_path.l2[0].gateways[0]", "zone"),
    (L2 + 'gateway = "192.0.2.1"', "return_path.l2[0].gateway", "did you mean gateways?"),
]


@pytest.mark.parametrize(("text", "key", "message"), BAD_L2, ids=[f"{key} {message}" for _, key, message in BAD_L2])
def test_a_bad_layer_2_path_is_named_by_its_number(text: str, key: str, message: str) -> None:
    assert any(p.startswith((f"F: {key}:", f"F: {key} =")) and message in p for p in problems(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[egress]\nexclude_cidr = []", "egress.exclude_cidr: unknown key; did you mean exclude_cidrs?"),
        ("[egres]\nenabled = true", "egres: unknown key; did you mean egress?"),
        ('interval = "5m"', "interval: unknown key; did you mean interval in [reconcile]?"),
        ("[egress]\nmark_maks = 1", "egress.mark_maks: unknown key; did you mean mark_mask in [firewall]?"),
        ("[log]\nzzzzzz = 1", "log.zzzzzz: unknown key; [log] knows level, format"),
        ('[log]\n"a\\u001bb" = 1', 'log."a\\u001bb": unknown key; [log] knows level, format'),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(text: str, message: str) -> None:
    assert problems(text) == [f"F: {message}"]


def test_all_problems_come_at_once() -> None:
    text = '[log]\nlevel = 3\nfromat = "text"\n[egress]\nexclude_cidrs = ["x", "10.0.0.1/8"]\n[reconcile]\nsettle = 1\n'
    assert [line.split(" ")[1].rstrip(":") for line in problems(text)] == [
        "reconcile.settle",
        "egress.exclude_cidrs[0]",
        "egress.exclude_cidrs[1]",
        "log.fromat",
        "log.level",
    ]


SHARED = [
    ('metrics.listen = "[::1]:1"\nhealth.listen = "[::1]:1"', '"[::1]:1"'),
    ('health.listen = "127.0.0.1:21793"', '"127.0.0.1:21793"'),
    ('metrics.listen = "127.0.0.1:21794"', '"127.0.0.1:21794"'),
]


@pytest.mark.parametrize(("text", "value"), SHARED)
def test_metrics_and_health_cannot_share_an_address(text: str, value: str) -> None:
    message = "is the address of metrics.listen as well; change the port of one of the two"
    assert problems(text) == [f"F: health.listen = {value}: {message}"]


@pytest.mark.parametrize("listen", ['"127.0.0.1:0"', '""'])
def test_addresses_that_are_off_or_of_the_kernels_choice_do_not_clash(listen: str) -> None:
    assert parse(f"metrics.listen = {listen}\nhealth.listen = {listen}", file="F").metrics.listen != (
        "127.0.0.1",
        21793,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("firewall.mark_mask", "0x5"),
        ("firewall.mark_mask", "0x100000000"),
        ("firewall.mark_mask", "-1"),
        ("external_ip.masquerade_mark", "0x1000000"),
        ("external_ip.masquerade_mark", "-1"),
    ],
)
def test_a_bad_mark_is_shown_as_it_is_written(key: str, value: str) -> None:
    (problem,) = problems(f"{key} = {value}")
    assert problem.startswith(f"F: {key} = {value}: ")


def test_a_bad_value_does_not_cause_further_problems() -> None:
    text = "firewall.rule_priority = 0\n[return_path.bgp]\nrule_priority = 4700\n"
    assert len(problems(text)) == 1


def test_a_message_stays_short_and_printable_whatever_the_value() -> None:
    long = "\\u001b" + "x" * 1000
    for text in (
        f'log.level = "{long}"',
        f'log."{long}" = 1',
        f"log.level = {'[' * 50}{']' * 50}",
        f"log.level{'.a' * 2000} = 1",
        f"firewall.mark_mask = 0x{'f' * 5000}",
    ):
        (problem,) = problems(text)
        assert len(problem) < 400
        assert problem.isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = \n", "line 1, column 5"),
        ("[egress]\nenabled = true\nenabled = true\n", "line 3"),
        ("[log]\n[log]\n", "line 2"),
        ("a = " + "[" * 100000, "nested too deeply"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ("a = 2024-02-30\n", "not valid TOML"),
        ("\ufeffa = 1", "line 1, column 1"),
        ("a = 1\x00", "line 1"),
    ],
    ids=["no value", "key twice", "table twice", "depth", "long number", "no such day", "byte order mark", "nul"],
)
def test_bad_toml_is_one_problem_with_its_place(text: str, message: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith("F: not valid TOML: ")
    assert message in problem
