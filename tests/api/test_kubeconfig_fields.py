"""Each field of a kubeconfig with whatever kubectl takes and with what it does not: it works, or one line names it."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaleg_node.sources import credentials
from metaleg_node.sources.api_client import ApiClient, ApiError
from metaleg_node.sources.credentials import CredentialsError
from metaleg_node.sources.exec_plugin import Plugins
from tests.api.certificates import Authority
from tests.api.harness import Harness, eventually, service, write_kubeconfig
from tests.api.server import ApiServer, Object
from tests.api.test_credentials import ask, credential, exec_user, inline
from tests.patience import patient

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


@pytest.fixture
def secured(authority: Authority) -> Iterator[ApiServer]:
    with ApiServer(tls=authority.server_context(), tokens={"good"}) as server:
        yield server


def wrapped(text: str) -> str:
    return "".join(f"{text[start : start + 64]}\n" for start in range(0, len(text), 64))


def test_whatever_kubectl_takes_works(secured: ApiServer, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("reader")
    (tmp_path / "bom").write_text(f"{BOM}good\r\n")
    content = authority.certificate.read_bytes()
    trusted = {"certificate-authority-data": inline(authority.certificate)}
    bare = secured.url.removeprefix("https://")
    good: Object = {"token": "good"}
    cases: dict[str, tuple[Object, Object]] = {
        "base64 in lines": ({"certificate-authority-data": wrapped(inline(authority.certificate))}, good),
        "!!binary": ({"certificate-authority-data": content}, good),
        "base64 of keys in lines": (
            trusted,
            {"client-certificate-data": wrapped(inline(certificate)), "client-key-data": wrapped(inline(key))},
        ),
        "a newline behind the token": (trusted, {"token": "good\n"}),
        "a token file with a BOM": (trusted, {"tokenFile": "bom"}),
        "a token file beside a stale token": (trusted, {"tokenFile": "bom", "token": "stale"}),
        "a token beside a token file that is gone": (trusted, {"tokenFile": "gone", "token": "good"}),
        "empty strings": (
            {**trusted, "certificate-authority": "", "proxy-url": "", "tls-server-name": ""},
            {**good, "tokenFile": "", "client-certificate": "", "client-key-data": "", "as": "", "as-groups": []},
        ),
        "an empty token beside a file": (trusted, {"token": "", "tokenFile": "bom"}),
        "null": ({**trusted, "proxy-url": None}, {**good, "tokenFile": None, "exec": None}),
        "a server without scheme": ({**trusted, "server": bare}, good),
        "a slash at the end": ({**trusted, "server": f"{secured.url}/"}, good),
        "a token beside a plugin": (trusted, {**good, **exec_user(tmp_path, "exit 3")}),
    }
    answers = {
        name: ask(write_kubeconfig(tmp_path / "kubeconfig", secured.url, cluster=cluster, user=user))
        for name, (cluster, user) in cases.items()
    }
    assert set(answers.values()) == {"NodeList"}, answers


REFUSED: dict[str, tuple[Object, Object, str]] = {
    "SOCKS": ({"proxy-url": "socks5://127.0.0.1:1080"}, {}, "proxy-url: socks5: must begin with http or https://"),
    "a proxy without scheme": ({"proxy-url": "127.0.0.1:1080"}, {}, "proxy-url: no scheme: must begin with http"),
    "a proxy's bad port": ({"proxy-url": "http://127.0.0.1:99999"}, {}, "proxy-url: is no URL: Port out of range"),
    "a proxy's port in words": ({"proxy-url": "http://proxy:http"}, {}, "proxy-url: is no URL"),
    "a proxy without host": ({"proxy-url": "http://"}, {}, "proxy-url: is no URL like"),
    "a proxy of another type": ({"proxy-url": 8080}, {}, "proxy-url: must be a string; put it in quotes"),
    "a server's bad port": ({"server": "https://a:66666"}, {}, "server: is no URL: Port out of range"),
    "a server with another scheme": ({"server": "unix:///run/x"}, {}, "server: unix: must begin with https or http://"),
    "a server's broken address": ({"server": "https://[::1"}, {}, "server: is no URL: Invalid IPv6 URL"),
    "a server with a blank": ({"server": "https://a b"}, {}, "server: is no URL like"),
    "a server of another type": ({"server": 5}, {}, "server: must be a string"),
    "tls-server-name of another type": ({"tls-server-name": 5}, {}, "tls-server-name: must be a string"),
    "a word for a truth value": ({"insecure-skip-tls-verify": "no"}, {}, "insecure-skip-tls-verify: must be true or"),
    "no base64": ({"certificate-authority-data": "\xe4"}, {}, "certificate-authority-data: is not base64"),
    "a line break in a token": ({}, {"token": "go\nod"}, "token: has a line break in it"),
    "a letter that cannot be sent": ({}, {"token": "g\xf6\xf6d"}, "token: has a line break in it, or another"),
    "a token of another type": ({}, {"token": 12345}, "token: must be a string; put it in quotes"),
    "a date as token": ({}, {"token": datetime.date(2026, 1, 2)}, "token: must be a string"),
    "a token of blanks": ({}, {"token": " \n"}, "token: is empty"),
    "groups without a user": ({}, {"as-groups": ["a"]}, "as-groups: needs `as`"),
    "groups of another type": ({}, {"as": "a", "as-groups": "b"}, "as-groups: must be a list"),
    "a group of another type": ({}, {"as": "a", "as-groups": [1]}, "as-groups: is empty or no string"),
    "exec of another type": ({}, {"exec": "plugin"}, "exec: must be a mapping"),
    "exec without command": ({}, {"exec": {"apiVersion": "v1"}}, "exec: command: must be a string"),
    "exec without version": ({}, {"exec": {"command": "x"}}, "exec: apiVersion: must be a string"),
    "exec's arguments": ({}, {"exec": {"command": "x", "apiVersion": "v1", "args": [1]}}, "exec: args: must be a list"),
    "exec's environment": (
        {},
        {"exec": {"command": "x", "apiVersion": "v1", "env": {"a": "b"}}},
        "env: must be a list",
    ),
    "exec that is not there": (
        {},
        {"exec": {"command": "no-such-plugin", "apiVersion": "v1", "installHint": "install it"}},
        "exec plugin 'no-such-plugin' gave no credentials: it cannot be started: No such file or directory; install it",
    ),
    "exec that wants a terminal": (
        {},
        {"exec": {"command": "x", "apiVersion": "v1", "interactiveMode": "Always"}},
        "asks for a terminal",
    ),
    "an auth-provider of a wrong shape": (
        {},
        {"auth-provider": {"name": "oidc", "config": {"id-token": "a.W10.c"}}},
        "auth-provider: ",
    ),
}


@pytest.mark.parametrize(("cluster", "user", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_one_line_with_the_fields_name(
    tmp_path: Path, cluster: Object, user: Object, told: str
) -> None:
    file = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", cluster=cluster, user=user)
    with pytest.raises(CredentialsError) as caught:
        credentials.load(str(file))
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).isprintable()
    assert "good" not in str(caught.value)


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ("socks5://127.0.0.1:1", "the variable HTTP_PROXY: socks5: must begin with http"),
        ("http://127.0.0.1:70000", "the variable HTTP_PROXY: is no URL: Port out of range"),
        ("127.0.0.1:1", "connection refused"),
    ],
)
def test_a_proxy_of_the_environment_that_cannot_be_used_is_told(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str, told: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    assert told in ask(write_kubeconfig(tmp_path / "kubeconfig", server.url))


@pytest.mark.parametrize(
    "text",
    [
        "current-context: 2024-13-45",
        "current-context: !!timestamp x",
        "current-context: !!int x",
        "a: !!python/object:os.system x",
        "[" * 5000,
        "current-context: 5\ncontexts: [{name: 5}]",
        "&a [*a]",
        "a: \x00",
        "current-context: [1]\ncontexts: [{name: [1], context: {}}]",
    ],
)
def test_yaml_that_is_no_kubeconfig_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    for refuse in (credentials.load, credentials.check):
        with pytest.raises(CredentialsError) as caught:
            refuse(str(file))
        assert str(caught.value).startswith(f"{file}: ")
        assert str(caught.value).isprintable()


def test_a_kubeconfig_with_a_bom_is_read(server: ApiServer, tmp_path: Path) -> None:
    file = write_kubeconfig(tmp_path / "kubeconfig", server.url)
    file.write_text(BOM + file.read_text())
    assert ask(file) == "NodeList"


def test_an_encrypted_key_asks_nobody(secured: ApiServer, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("reader")
    locked = tmp_path / "locked.key"
    command: list[str | Path] = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    user = {"client-certificate": str(certificate), "client-key": str(locked)}
    told = ask(write_kubeconfig(tmp_path / "kubeconfig", secured.url, user=user))
    assert "client-certificate and client-key of the kubeconfig cannot be used" in told


def test_a_name_and_a_password_are_sent(server: ApiServer, tmp_path: Path) -> None:
    user: Object = {"username": "jos\u00e9", "password": "\u4e2d:"}
    assert ask(write_kubeconfig(tmp_path / "kubeconfig", server.url, user=user)) == "NodeList"
    kind, _, pair = server.asked[-1].authorization.partition(" ")
    assert (kind, base64.b64decode(pair).decode()) == ("Basic", "jos\u00e9:\u4e2d:")


def test_impersonation_is_sent(server: ApiServer, tmp_path: Path) -> None:
    user: Object = {
        "token": "good",
        "as": "jane",
        "as-uid": "7",
        "as-groups": ["readers", "nodes"],
        "as-user-extra": {"scopes": ["view"]},
    }
    assert ask(write_kubeconfig(tmp_path / "kubeconfig", server.url, user=user)) == "NodeList"
    assert server.asked[-1].authorization == "Bearer good"
    assert sorted(server.asked[-1].impersonation) == [
        ("Impersonate-Extra-scopes", "view"),
        ("Impersonate-Group", "nodes"),
        ("Impersonate-Group", "readers"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-User", "jane"),
    ]


# --- exec plugins ----------------------------------------------------------------------------------------------------


def test_a_plugin_is_told_of_the_cluster(secured: ApiServer, authority: Authority, tmp_path: Path) -> None:
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "here"}}
    cluster = {"certificate-authority": str(authority.certificate), "extensions": [extension]}
    user = exec_user(tmp_path, f'printf %s "$KUBERNETES_EXEC_INFO" >{tmp_path}/info\n{credential(token="good")}')
    user["exec"] |= {"provideClusterInfo": True, "env": [{"name": "A", "value": "b"}]}
    assert ask(write_kubeconfig(tmp_path / "kubeconfig", secured.url, cluster=cluster, user=user)) == "NodeList"
    told = json.loads((tmp_path / "info").read_text())
    assert told["apiVersion"] == "client.authentication.k8s.io/v1"
    assert told["spec"]["interactive"] is False
    given = told["spec"]["cluster"]
    assert given["server"] == secured.url
    assert given["config"] == {"audience": "here"}
    assert base64.b64decode(given["certificate-authority-data"]) == authority.certificate.read_bytes()


BAD_OUTPUT = {
    "echo 'log in first: run kinit' >&2; exit 1": "exit status 1: log in first: run kinit",
    "kill -TERM $$": "signal 15",
    "echo hello": "its output is no JSON",
    "echo '[]'": "its output is no ExecCredential",
    credential(): "neither a token nor",
    credential(clientKeyData="x"): "neither a token nor",
    credential(token="go\nod"): "token: has a line break",
    credential(token="x", expirationTimestamp="soon"): "expirationTimestamp is no time",
    credential(token="x").replace("k8s.io/v1", "k8s.io/v2"): "another apiVersion",
    credential(clientCertificateData="x", clientKeyData="y"): "client-certificate and client-key of the kubeconfig",
}


@pytest.mark.parametrize(("output", "told"), BAD_OUTPUT.items())
def test_a_plugins_own_message_is_told(tmp_path: Path, output: str, told: str) -> None:
    user = exec_user(tmp_path, output)
    file = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", user=user)
    with pytest.raises(CredentialsError) as caught:
        credentials.load(str(file))
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_plugin_that_hangs_is_killed_with_what_it_started(server: ApiServer, tmp_path: Path) -> None:
    file = write_kubeconfig(tmp_path / "kubeconfig", server.url, user=exec_user(tmp_path, "sleep 1000 & sleep 1000"))
    began = time.monotonic()
    with (
        ApiClient(str(file), plugins=Plugins(time_limit=0.5)) as client,
        pytest.raises(ApiError, match=r"did not end within 0\.5 s and was killed"),
    ):
        client.access()
    assert time.monotonic() - began < patient(5)


def test_a_plugin_that_hangs_runs_once_for_all_and_delays_no_stop(server: ApiServer, tmp_path: Path) -> None:
    user = exec_user(tmp_path, "sleep 1000")
    harness = Harness(server, write_kubeconfig(tmp_path / "kubeconfig", server.url, user=user)).start()
    try:
        assert eventually((tmp_path / "runs").exists)
        time.sleep(0.2)  # More time than the other threads need to ask for another run.
        assert (tmp_path / "runs").read_text().count("run") == 1
        before = threading.active_count()
        assert before > 3
    finally:
        began = time.monotonic()
        harness.stop()
    assert time.monotonic() - began < patient(1)
    assert eventually(lambda: threading.active_count() < before)


def test_an_expired_token_is_replaced_and_kept_while_the_plugin_fails(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"good"}
    past = datetime.datetime.now(datetime.UTC).isoformat()
    output = credential(token="good", expirationTimestamp=past)
    user = exec_user(tmp_path, f"[ -e {tmp_path}/broken ] && exit 1\n{output}")
    server.put(service("a"))
    with ApiClient(str(write_kubeconfig(tmp_path / "kubeconfig", server.url, user=user))) as client:
        first = client.access()
        second = client.access()
        assert second is not first
        (tmp_path / "broken").touch()
        assert client.access() is second
        assert client.get("/api/v1/nodes", {}, 2.0)["kind"] == "NodeList"
