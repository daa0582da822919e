"""What is fuzzed: for each kind of input how one is made, who reads it, and which exceptions the reader declares."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import urllib3
import yaml

from metaleg_node.configuration import file as configuration_file
from metaleg_node.configuration.config import ConfigError, parse
from metaleg_node.core import external_ip
from metaleg_node.core.assembly import questions
from metaleg_node.core.egress import survey
from metaleg_node.core.model import ClusterState, NodeName
from metaleg_node.core.return_path import wanted
from metaleg_node.sources import credentials, state_file
from metaleg_node.sources.api_client import ApiClient
from metaleg_node.sources.api_watch import Follower, Timing
from metaleg_node.sources.credentials import Access, CredentialsError
from metaleg_node.sources.exec_plugin import Plugins
from metaleg_node.sources.resources import Subject, subjects
from metaleg_node.sources.state_file import StateFileError
from metaleg_node.sources.store import Store
from tests.fuzz.mutation import damaged_bytes, damaged_value
from tests.unit import builders
from tests.unit.test_manifests import EVERY_KIND

ROOT = Path(__file__).parents[2]
EVERYTHING = parse("return_path.bgp.enabled = true", file="F")
STATES = tuple(file.read_bytes() for file in sorted((ROOT / "etc/metaleg-node/examples").glob("*.yaml")))
CONFIGURATION = (ROOT / "etc/metaleg-node/examples/config.toml").read_bytes()
PATH = b"""
[[return_path.l2]]
name = "a"
pools = ["p"]
cidrs = ["192.0.2.0/24"]
interface = "eth0"
gateways = ["192.0.2.1"]
"""


VALUES = tuple(
    text.encode()
    for text in (
        *(
            '""',
            '"x"',
            "0",
            "-1",
            "true",
            "1.5",
            "nan",
            "[]",
            "[[]]",
            "{}",
            "{a = 1}",
            "2026-01-02",
            "0x3f",
            "9" * 5000,
        ),
        *('"5m"', '"-5m"', '"1e9h"', '"10.0.0.1/33"', '["10.0.0.0/8", "::/0"]', '"127.0.0.1:0"', '"[::]:70000"'),
        *(
            '"\\u0000"',
            '"\\u202e"',
            '["a", 1]',
            '"eth0; x"',
            '"/"',
            '"conntrack"',
            '["rules"]',
            '"iptables"',
            "0xffffffff",
        ),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`run` makes one input in a directory and has it read; what it raises beside `declared` is a defect. The texts of
    the declared ones are for people, so they must be printable. `share` is how many there are in a round: of what costs
    little more."""

    run: Callable[[Random, Path], object]
    declared: tuple[type[Exception], ...]
    share: int


# --- configuration and state file ------------------------------------------------------------------------------------


def _configuration(random: Random, directory: Path) -> None:
    lines = (CONFIGURATION + PATH).splitlines(keepends=True)
    start = random.randint(0, len(lines))
    good = b"".join(lines[start : start + random.choice((5, 20, 200))])
    file = directory / "config.toml"
    file.write_bytes(damaged_bytes(random, good) if random.random() < 0.5 else _edited(random, good))
    configuration_file.load(file)


def _edited(random: Random, good: bytes) -> bytes:
    """The same with one value in place of another, so that the text stays TOML."""
    lines = good.split(b"\n")
    for _ in range(random.randint(1, 3)):
        number = random.randrange(len(lines))
        key, equals, _ = lines[number].partition(b" = ")
        if equals:
            lines[number] = key + equals + random.choice(VALUES)
    return b"\n".join(lines)


def _objects(random: Random) -> list[Any]:
    objects = [make() for make in EVERY_KIND.values()]
    return [damaged_value(random, random.choice(objects)) for _ in range(random.randint(1, 4))]


def _state(random: Random, directory: Path) -> None:
    """Reads it, and has decided what follows from it."""
    file = directory / "state.yaml"
    if random.random() < 0.3:
        content = damaged_bytes(random, random.choice(STATES)[: random.choice((600, 3000, 100000))])
    else:
        content = b"\n".join(json.dumps(one).encode() for one in _objects(random))
        if random.random() < 0.2:
            content = damaged_bytes(random, content)
    file.write_bytes(content)
    decide(state_file.read(file))


def decide(cluster: ClusterState) -> None:
    """What a node would do about a cluster's state."""
    me = NodeName("worker-1")
    surveyed, paths = survey.take(cluster, EVERYTHING), wanted.read(cluster, EVERYTHING, me)
    questions(surveyed, paths, external_ip.read(cluster, EVERYTHING), EVERYTHING, me)
    builders.assembled(surveyed, EVERYTHING, me, builders.host(surveyed, me), paths=paths)


# --- kubeconfig ------------------------------------------------------------------------------------------------------


class NoPlugins(Plugins):
    """Gives the output of a plugin without running one."""

    def __init__(self, output: bytes) -> None:
        super().__init__()
        self._given = output

    def _output(self, argv: list[str], environment: Mapping[str, str], directory: Path) -> bytes:
        assert all(isinstance(one, str) for one in (*argv, *environment.values(), str(directory)))
        return self._given


KUBECONFIG: Any = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "here",
    "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
    "clusters": [
        {
            "name": "c",
            "cluster": {
                "server": "https://192.0.2.1:6443",
                "certificate-authority-data": base64.b64encode(b"no certificate").decode(),
                "insecure-skip-tls-verify": False,
                "tls-server-name": "kubernetes",
                "proxy-url": "http://192.0.2.2:3128",
                "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"a": "b"}}],
            },
        }
    ],
    "users": [
        {
            "name": "u",
            "user": {
                "token": "abc",
                "tokenFile": "token",
                "username": "me",
                "password": "secret",
                "as": "her",
                "as-uid": "1",
                "as-groups": ["one", "two"],
                "as-user-extra": {"scopes": ["view"]},
                "exec": {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "command": "plugin",
                    "args": ["--flag"],
                    "env": [{"name": "A", "value": "b"}],
                    "installHint": "install it",
                    "interactiveMode": "Never",
                    "provideClusterInfo": True,
                },
            },
        }
    ],
}
CREDENTIAL: Any = {
    "apiVersion": "client.authentication.k8s.io/v1",
    "kind": "ExecCredential",
    "status": {"token": "abc", "expirationTimestamp": "2036-01-02T03:04:05Z"},
}


def _kubeconfig(random: Random, directory: Path) -> None:
    made = json.loads(json.dumps(KUBECONFIG))
    for part in (made["clusters"][0]["cluster"], made["users"][0]["user"]):
        for key in [key for key in part if key != "server" and random.random() < 0.8]:
            del part[key]
    made = damaged_value(random, made) if random.random() < 0.8 else made
    content = json.dumps(made, default=str) if random.random() < 0.7 else yaml.safe_dump(made)
    raw = content.encode(errors="surrogatepass")
    (directory / "kubeconfig").write_bytes(damaged_bytes(random, raw) if random.random() < 0.3 else raw)
    (directory / "token").write_bytes(damaged_bytes(random, b"abc\n"))
    output = json.dumps(damaged_value(random, CREDENTIAL)).encode()
    output = damaged_bytes(random, output) if random.random() < 0.2 else output
    access = credentials.load(str(directory / "kubeconfig"), plugins=NoPlugins(output))
    assert all(value.isascii() and value.isprintable() for _, value in access.headers)


# --- answers of the API ----------------------------------------------------------------------------------------------

SUBJECTS: tuple[Subject, ...] = subjects(EVERYTHING)
STATUS: Any = {"kind": "Status", "apiVersion": "v1", "message": "no", "reason": "Expired", "code": 410, "metadata": {}}


class Answers:
    """Stands for the connections: each request gets a damaged answer."""

    def __init__(self, random: Random, objects: list[Any]) -> None:
        self._random = random
        self._objects = objects

    def request(self, _method: str, url: str, **_: object) -> urllib3.HTTPResponse:
        random = self._random
        body = self._events() if "watch=1" in url else self._list()
        status = 200 if random.random() < 0.8 else random.choice((204, 302, 401, 403, 404, 410, 429, 500, 503))
        if status != 200 and random.random() < 0.7:
            body = json.dumps(damaged_value(random, STATUS)).encode()
        if random.random() < 0.3:
            body = damaged_bytes(random, body)
        headers = {"Retry-After": random.choice(("", "1", "-1", "\xb2", "9" * 5000, "soon", "1.5"))}
        if random.random() < 0.05:
            headers["Content-Encoding"] = "gzip"
        return urllib3.HTTPResponse(io.BytesIO(body), headers=headers, status=status, preload_content=False)

    def clear(self) -> None:
        """As of a pool."""

    def _list(self) -> bytes:
        made: Any = {"kind": "XList", "metadata": {"resourceVersion": "5"}, "items": self._objects}
        return json.dumps(damaged_value(self._random, made) if self._random.random() < 0.5 else made).encode()

    def _events(self) -> bytes:
        kinds = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR")
        events: list[Any] = [{"type": self._random.choice(kinds), "object": one} for one in (*self._objects, STATUS)]
        for event in events:
            event["object"].setdefault("metadata", {})["resourceVersion"] = "6"
        made = (damaged_value(self._random, one) if self._random.random() < 0.5 else one for one in events)
        return b"".join(json.dumps(one).encode() + b"\n" for one in made)


class Answered(ApiClient):
    """A client whose connections are these answers."""

    def __init__(self, answers: Answers) -> None:
        super().__init__("")
        pool = cast(urllib3.PoolManager, answers)
        self._access = Access(host="https://api", pool=pool, headers=(), expires=None, stamp=(), files=())

    def access(self) -> Access:
        assert self._access
        return self._access


def _answers(random: Random, _directory: Path) -> None:
    """Lists and watches some times, then has decided what follows."""
    objects = [one for one in _objects(random) if isinstance(one, dict) and isinstance(one.get("metadata"), dict)]
    subject = random.choice(SUBJECTS)
    store = Store(lambda: None)
    follower = Follower(subject, Answered(Answers(random, objects)), store, Timing())
    for _ in range(random.randint(1, 5)):
        assert 0 <= follower.run_once() < 1000
    assert all(problem.isprintable() for problem in store.problems)
    decide(store.snapshot())


TARGETS: dict[str, Target] = {
    "configuration": Target(run=_configuration, declared=(ConfigError,), share=8),
    "state file": Target(run=_state, declared=(StateFileError,), share=4),
    "kubeconfig": Target(run=_kubeconfig, declared=(CredentialsError,), share=1),
    "API answers": Target(run=_answers, declared=(), share=4),
}
