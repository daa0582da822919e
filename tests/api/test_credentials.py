"""Every way to reach an API server, over TLS and through the real package; rotated and broken credentials."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from metaleg_node.sources import credentials
from metaleg_node.sources.api_client import ApiClient, ApiError
from metaleg_node.sources.credentials import CredentialsError
from tests.api.certificates import Authority
from tests.api.harness import Harness, eventually, service, write_kubeconfig
from tests.api.server import ApiServer, Object

NODES = "/api/v1/nodes"


@pytest.fixture
def secured(authority: Authority) -> Iterator[ApiServer]:
    """HTTPS; the token is "good", certificates of the authority are taken too."""
    with ApiServer(tls=authority.server_context(), tokens={"good"}) as server:
        yield server


def inline(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def ask(kubeconfig: Path | str) -> str:
    """The kind of the answer to a list, or what was wrong."""
    try:
        with ApiClient(str(kubeconfig)) as client:
            return str(client.get(NODES, {}, 2.0)["kind"])
    except ApiError as error:
        return str(error)


def exec_user(directory: Path, output: str) -> Object:
    script = directory / "plugin"
    script.write_text(f"#!/bin/sh\necho run >>{directory}/runs\n{output}\n")
    script.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script), "args": []}}


def credential(**status: str) -> str:
    body = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"cat <<'END'\n{json.dumps(body)}\nEND"


def test_every_way_to_authenticate_works(secured: ApiServer, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("reader")
    (tmp_path / "token").write_text("good\n")
    (tmp_path / "ca.crt").write_bytes(authority.certificate.read_bytes())
    users: dict[str, Object] = {
        "token": {"token": "good"},
        "token file, by a path relative to the kubeconfig": {"tokenFile": "token"},
        "client certificate in files": {"client-certificate": str(certificate), "client-key": str(key)},
        "client certificate inline": {"client-certificate-data": inline(certificate), "client-key-data": inline(key)},
        "exec plugin": exec_user(tmp_path, credential(token="good")),
    }
    clusters: dict[str, Object] = {
        "authority in a file": {"certificate-authority": "ca.crt"},
        "authority inline": {"certificate-authority-data": inline(authority.certificate)},
        "unverified": {"insecure-skip-tls-verify": True},
    }
    answers = {
        (user, cluster): ask(write_kubeconfig(tmp_path / "kubeconfig", secured.url, cluster=where, user=who))
        for user, who in users.items()
        for cluster, where in clusters.items()
    }
    assert set(answers.values()) == {"NodeList"}, answers


def test_private_keys_do_not_stay_in_temporary_files(
    secured: ApiServer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    certificate, key = authority.issue("reader")
    user = {"client-certificate-data": inline(certificate), "client-key-data": inline(key)}
    where = {"certificate-authority-data": inline(authority.certificate)}
    assert ask(write_kubeconfig(tmp_path / "kubeconfig", secured.url, cluster=where, user=user)) == "NodeList"
    assert list(temporary.iterdir()) == []


def test_exec_plugin_with_a_client_certificate(secured: ApiServer, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("plugin")
    output = credential(clientCertificateData=certificate.read_text(), clientKeyData=key.read_text())
    where = {"certificate-authority": str(authority.certificate)}
    user = exec_user(tmp_path, output)
    assert ask(write_kubeconfig(tmp_path / "kubeconfig", secured.url, cluster=where, user=user)) == "NodeList"


def test_the_name_in_the_certificate_counts_and_may_be_another_than_the_address(
    authority: Authority, tmp_path: Path
) -> None:
    with ApiServer(tls=authority.server_context("DNS:api.example")) as server:
        where: Object = {"certificate-authority": str(authority.certificate)}
        refused = ask(write_kubeconfig(tmp_path / "kubeconfig", server.url, cluster=where))
        assert "certificate cannot be verified" in refused
        where["tls-server-name"] = "api.example"
        assert ask(write_kubeconfig(tmp_path / "kubeconfig", server.url, cluster=where)) == "NodeList"
        where["tls-server-name"] = "other.example"
        refused = ask(write_kubeconfig(tmp_path / "kubeconfig", server.url, cluster=where))
        assert "certificate cannot be verified" in refused


def test_an_unknown_authority_is_refused(secured: ApiServer, tmp_path: Path) -> None:
    answer = ask(write_kubeconfig(tmp_path / "kubeconfig", secured.url, user={"token": "good"}))
    assert "certificate cannot be verified" in answer


def relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def serve_tunnel(listener: socket.socket, seen: list[bytes]) -> None:
    """One connection of an HTTP proxy."""
    connection, _ = listener.accept()
    with connection:
        seen.append(connection.recv(4096))
        host, _, port = seen[0].split()[1].decode().partition(":")
        with socket.create_connection((host, int(port))) as upstream:
            connection.sendall(b"HTTP/1.1 200 yes\r\n\r\n")
            back = threading.Thread(target=relay, args=(upstream, connection))
            back.start()
            relay(connection, upstream)
            back.join()


def test_a_proxy_of_the_kubeconfig_is_used(secured: ApiServer, authority: Authority, tmp_path: Path) -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_tunnel, args=(listener, seen))
        thread.start()
        where = {
            "certificate-authority": str(authority.certificate),
            "proxy-url": f"http://127.0.0.1:{listener.getsockname()[1]}",
        }
        file = write_kubeconfig(tmp_path / "kubeconfig", secured.url, cluster=where, user={"token": "good"})
        assert ask(file) == "NodeList"
        thread.join()
    assert seen[0].startswith(f"CONNECT {secured.url.removeprefix('https://')} HTTP/1".encode())


def test_the_context_that_is_asked_for_is_taken(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"good"}
    file = tmp_path / "kubeconfig"
    file.write_text(
        f"""
current-context: wrong
contexts:
- {{name: wrong, context: {{cluster: c, user: nobody}}}}
- {{name: right, context: {{cluster: c, user: reader}}}}
clusters: [{{name: c, cluster: {{server: "{server.url}"}}}}]
users: [{{name: nobody, user: {{}}}}, {{name: reader, user: {{token: good}}}}]
"""
    )
    assert "401" in ask(file)
    with ApiClient(str(file), "right") as client:
        assert client.get(NODES, {}, 2.0)["kind"] == "NodeList"
    with pytest.raises(ApiError, match="no context named 'none'; there is: wrong, right"):
        ApiClient(str(file), "none").access()


BROKEN: dict[str, tuple[str, str]] = {
    "empty": ("", "is no kubeconfig"),
    "no YAML": ("a: [", "is not valid YAML"),
    "a value": ("hello", "is no kubeconfig"),
    "a disk image": ("x" * (4 << 20) + "x", "is larger than 4 MiB"),
    "no context": ("clusters: []", "has no current-context"),
    "a context that is not there": ("current-context: x\ncontexts: []", "no context named 'x'; there is: none"),
    "contexts of a wrong type": ("current-context: x\ncontexts: 5", "no context named 'x'"),
    "no cluster": (
        "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]",
        "clusters has no cluster named 'c'",
    ),
    "no server": (
        "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {}}]",
        "has no server",
    ),
}


@pytest.mark.parametrize(("text", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_kubeconfig_is_told_with_file_and_place(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(CredentialsError) as caught:
        credentials.load(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert problem in str(caught.value)


def test_a_kubeconfig_of_roots_alone_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    file = tmp_path / "kubeconfig"
    with pytest.raises(CredentialsError, match=f"Permission denied; .*: chgrp metaleg-node {file}; chmod 640"):
        credentials.load(str(file))


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="does not exist; put a kubeconfig there"):
        credentials.load(str(tmp_path / "kubeconfig"))
    for user in ({"tokenFile": "token"}, {"client-certificate": "x.crt"}):
        file = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", user=user)
        with pytest.raises(CredentialsError, match="No such file"):
            credentials.load(str(file))
    where = {"certificate-authority-data": "%%%"}
    file = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", cluster=where)
    with pytest.raises(CredentialsError, match="certificate-authority-data: is not base64"):
        credentials.load(str(file))
    where = {"certificate-authority-data": base64.b64encode(b"no certificate").decode()}
    file = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1", cluster=where)
    with pytest.raises(CredentialsError, match="certificate-authority of the kubeconfig cannot be used"):
        credentials.load(str(file))


def test_a_failing_exec_plugin_is_told(server: ApiServer, tmp_path: Path) -> None:
    file = write_kubeconfig(tmp_path / "kubeconfig", server.url, user=exec_user(tmp_path, "exit 3"))
    with pytest.raises(CredentialsError, match=r"exec plugin '.*plugin' gave no credentials"):
        credentials.load(str(file))


def test_outside_of_a_pod_no_kubeconfig_is_told() -> None:
    with pytest.raises(CredentialsError, match=r"cluster.kubeconfig is empty, but this is no pod"):
        credentials.load("")


def test_in_a_pod_the_service_account_is_used(
    secured: ApiServer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = secured.url.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(credentials, "_SERVICE_ACCOUNT", tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (tmp_path / "token").write_text("good\n")
    assert ask("") == "NodeList"
    (tmp_path / "token").unlink()
    assert "token: No such file" in ask("")


# --- rotation --------------------------------------------------------------------------------------------------------


def followed(server: ApiServer, kubeconfig: Path) -> Harness:
    server.put(service("a"))
    return Harness(server, kubeconfig).loaded()


def test_F38_a_rotated_token_file_is_picked_up(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"old"}
    (tmp_path / "token").write_text("old")
    harness = followed(server, write_kubeconfig(tmp_path / "kubeconfig", server.url, user={"tokenFile": "token"}))
    try:
        (tmp_path / "token").write_text("new!")
        server.tokens = {"new!"}
        server.break_connections()
        server.put(service("b"))
        harness.wait_names("a", "b")
    finally:
        harness.stop()


def test_F38_a_replaced_kubeconfig_is_picked_up_also_with_another_server(
    server: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    file = write_kubeconfig(tmp_path / "kubeconfig", server.url)
    harness = followed(server, file)
    try:
        with ApiServer(tls=authority.server_context(), tokens={"good"}) as other:
            other.put(service("z"))
            other.version = server.version + 100
            where = {"certificate-authority-data": inline(authority.certificate)}
            write_kubeconfig(file, other.url, cluster=where, user={"token": "good"})
            server.down()
            harness.wait_names("z")
            harness.wait_well()
    finally:
        harness.stop()


def test_F38_rotated_client_certificates_are_picked_up(authority: Authority, tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def rotate(name: str) -> None:
        issued = authority.issue(name)
        certificate.write_bytes(issued[0].read_bytes())
        key.write_bytes(issued[1].read_bytes())

    rotate("first")
    with ApiServer(tls=authority.server_context(), tokens=set()) as server:
        where = {"certificate-authority": str(authority.certificate)}
        user = {"client-certificate": "tls.crt", "client-key": "tls.key"}
        file = write_kubeconfig(tmp_path / "kubeconfig", server.url, cluster=where, user=user)
        with ApiClient(str(file)) as client:
            client.get(NODES, {}, 2.0)
            first = client.access()
            client.get(NODES, {}, 2.0)
            assert client.access() is first
            rotate("second")
            client.get(NODES, {}, 2.0)
            assert client.access() is not first


def test_F38_refused_credentials_are_read_again_and_a_plugin_asked_again(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"one"}
    user = exec_user(tmp_path, f"sed \"s/TOKEN/$(cat {tmp_path}/current)/\" <<'END'\n{PLUGIN_ANSWER}\nEND")
    (tmp_path / "current").write_text("one")
    harness = followed(server, write_kubeconfig(tmp_path / "kubeconfig", server.url, user=user))
    try:
        runs = (tmp_path / "runs").read_text().count("run")
        assert runs == 1
        (tmp_path / "current").write_text("two")
        server.tokens = {"two"}
        server.break_connections()
        server.put(service("b"))
        harness.wait_names("a", "b")
        harness.wait_well()
        assert (tmp_path / "runs").read_text().count("run") < 8
    finally:
        harness.stop()


PLUGIN_ANSWER = '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"TOKEN"}}'


def test_credentials_that_are_refused_are_told(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"good"}
    file = write_kubeconfig(tmp_path / "kubeconfig", server.url, user={"token": "bad"})
    harness = Harness(server, file).start()
    try:
        problem = harness.wait_problem("401")
        assert str(file) in problem
        write_kubeconfig(file, server.url, user={"token": "good"})
        harness.wait_well()
    finally:
        harness.stop()


def test_a_kubeconfig_that_breaks_or_goes_leaves_the_old_credentials_in_force(
    server: ApiServer, tmp_path: Path
) -> None:
    file = write_kubeconfig(tmp_path / "kubeconfig", server.url)
    harness = followed(server, file)
    try:
        for damage in (lambda: file.write_text("a: ["), file.unlink):
            damage()
            server.break_connections()
            server.put(service(f"n{len(harness.names())}"))
            harness.wait(lambda: len(harness.names()) == len(server.tables["v1/services"].objects))
        assert eventually(lambda: not harness.store.problems)
    finally:
        harness.stop()
