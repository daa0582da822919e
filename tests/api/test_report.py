"""An archive for a bug report has what helps, and no secret of any kind, wherever one may stand."""

from __future__ import annotations

import base64
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaleg_node import cli
from metaleg_node.commands import report_parts
from metaleg_node.daemon import status
from metaleg_node.kernel import process
from metaleg_node.kernel.process import Completed
from metaleg_node.redaction import redacted
from tests.api.harness import l2_status, node, service

PEM = "-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzZWNyZXRqd3QifQ.c2VjcmV0c2lnbmF0dXJl"


class Secrets:
    """Makes secrets, each one that stands nowhere else, and knows all that it made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, kind: str) -> str:
        self.made.append(f"S3cr3t{len(self.made):02}{kind}x9Zq")
        return self.made[-1]


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


def user(secrets: Secrets, directory: Path) -> dict[str, Any]:
    """All ways of a kubeconfig at once (kubeconfig(v1), AuthInfo)."""
    (directory / "token").write_text(secrets("tokenfile"))
    (directory / "key.pem").write_text(PEM.format(secrets("keyfile")))
    key = base64.b64encode(PEM.format(secrets("keydata")).encode()).decode()
    env = [{"name": "PLUGIN_REGION", "value": secrets("env")}]
    provider = {"id-token": secrets("idtoken"), "refresh-token": secrets("refresh"), "client-secret": secrets("oidc")}
    return {
        "token": secrets("token"),
        "username": "admin",
        "password": secrets("password"),
        "client-key-data": key,
        "tokenFile": "token",
        "client-key": str(directory / "key.pem"),
        "auth-provider": {"name": "oidc", "config": provider},
        "exec": {"command": "/usr/bin/plugin", "args": ["get", secrets("argument")], "env": env},
    }


def log_lines(secrets: Secrets, known: list[str]) -> str:
    """What hooks and plugins may print: secrets that are known from elsewhere, and some by their form alone."""
    s = secrets
    forms = [
        f"Authorization: Bearer {s('bearer')}",
        f"password={s('pw')} user=x",
        f'"clientSecret": "{s("json")}",',
        f"plugin --api-token {s('option')} run",
        f"GET https://someone:{s('url')}@proxy.example:3128/",
        PEM.format(s("block")),
        base64.b64encode(PEM.format(s("blockdata")).encode()).decode(),
        JWT,
        "token 07401b.f395accd246ae52d",
        f"curl -u someone:{s('curl')} https://example",
        f"curl --proxy-user 'someone:{s('proxy')}' https://example",
        f"tokens={s('first')},{s('second')}",
        f'"passwords": ["{s("third")}", "{s("fourth")}"], "rest": 1',
        f"secrets: {{a: {s('fifth')}, b: {s('sixth')}}}",
        f"tokens:\n  - {s('item')}\n  - {s('item2')}\nrest: 2",
    ]
    return "\n".join(
        ["2026-01-01 host metaleg-node[1]: harmless line", *forms, *(f"plain {k} in a line" for k in known)]
    )


@pytest.fixture
def archive(secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files of a report about a node with all of these."""
    clusters = [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443"}}]
    users = [{"name": "u", "user": user(secrets, tmp_path)}]
    monkeypatch.setenv("PLUGIN_PASSWORD", secrets("environment"))
    known = list(secrets.made)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump({"clusters": clusters, "users": users, "contexts": [], "kind": "Config"}))
    config = tmp_path / "config.toml"
    config.write_text(f'# {secrets("comment")}\n[node]\nname = "worker-1"\n[cluster]\nkubeconfig = "{kubeconfig}"\n')
    monkeypatch.setenv("PLUGIN_PROFILE", secrets("profile"))
    document = {"problems": [{"code": "source", "text": f"401 with {known[0]}"}], "pid": 1}
    monkeypatch.setattr(status, "read", lambda _: document)
    monkeypatch.setattr(status, "render", lambda document, _: str(document))
    (tmp_path / "lib").mkdir()
    labelled = service("a", annotations={"note": secrets("annotation")})
    objects = (node("worker-1"), labelled, l2_status("a", "worker-1"))
    (tmp_path / "lib" / "cluster-state.yaml").write_text(yaml.safe_dump_all(objects))
    text = log_lines(secrets, known)
    run = process.run

    def logged(argv: list[str], **more: Any) -> Completed:
        return Completed(returncode=0, stdout=text, stderr="") if argv[0] == "journalctl" else run(argv, **more)

    monkeypatch.setattr(process, "run", logged)
    file = tmp_path / "report.tar.gz"
    directories = ("--runtime-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "lib"))
    assert cli.main(["--config", str(config), *directories, "report", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    return dict(contents(file))


def contents(file: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(file) as opened:
        for member in opened:
            content = opened.extractfile(member)
            assert content
            yield member.name.partition("/")[2], content.read().decode()


def test_no_secret_of_any_kind_is_in_the_archive(
    secrets: Secrets, archive: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    printed = capsys.readouterr()
    whole = "\n".join([*archive.values(), printed.out, printed.err])
    forbidden = [*secrets.made, JWT.split(".")[1], "f395accd246ae52d"]
    assert len(forbidden) > 20
    assert [secret for secret in forbidden if secret in whole] == []
    encoded = [base64.b64encode(secret.encode()).decode().strip("=")[:-2] for secret in forbidden]
    assert [text for text in encoded if text in whole] == []


def test_what_helps_is_there(archive: dict[str, str]) -> None:
    assert set(archive) == {"README.txt", *report_parts.PARTS}
    assert json.loads(archive["configuration.json"])["node"]["name"] == "worker-1"
    assert "metaleg-node: " in archive["versions.txt"]
    assert "nft: " in archive["versions.txt"]
    assert "harmless line" in archive["log.txt"]
    for kept in ("user=x", '"rest": 1', "rest: 2", "curl -u someone:", "https://example"):
        assert kept in archive["log.txt"]
    assert re.search(r"^\d+ findings?; |^nothing found; ", archive["doctor.txt"], re.MULTILINE)
    assert archive["plan.txt"].startswith("node worker-1")


def test_a_broken_configuration_is_reported_and_a_file_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, file = tmp_path / "config.toml", tmp_path / "report.tar.gz"
    config.write_text('[cluster]\nkubeconfig = "none"\nnonsense = 1\n')
    words = ("--config", str(config), "--state-dir", str(tmp_path), "--runtime-dir", str(tmp_path), "report")
    assert cli.main([*words, str(file)]) == 0
    found = dict(contents(file))
    assert "cluster.nonsense" in found["configuration.json"]
    for part in ("plan.txt", "doctor.txt", "routing.txt"):
        assert found[part].startswith("not made: it follows from the configuration, and that is wrong")
    capsys.readouterr()
    for path in (config / "x", tmp_path / "missing" / "x"):
        assert cli.main([*words, str(path)]) == 1
        assert capsys.readouterr().err.endswith("name a file elsewhere\n")
    assert not (tmp_path / "missing").exists()


def test_secrets_of_a_kubeconfig_that_only_a_wrong_configuration_names_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "plainword77"
    kubeconfig, config, file = tmp_path / "kubeconfig", tmp_path / "config.toml", tmp_path / "report.tar.gz"
    kubeconfig.write_text(yaml.safe_dump({"users": [{"name": "u", "user": {"token": token}}]}))
    config.write_text("nonsense = 1\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml").write_text(f'[cluster]\nkubeconfig = "{kubeconfig}"\n')
    run = process.run

    def logged(argv: list[str], **more: Any) -> Completed:
        line = Completed(returncode=0, stdout=f"refused {token}, kept", stderr="")
        return line if argv[0] == "journalctl" else run(argv, **more)

    monkeypatch.setattr(process, "run", logged)
    words = ("--config", str(config), "--state-dir", str(tmp_path), "--runtime-dir", str(tmp_path), "report")
    assert cli.main([*words, str(file)]) == 0
    assert dict(contents(file))["log.txt"] == "refused (removed), kept"


@pytest.mark.parametrize(
    "text",
    [
        "Service shop/web: no node announces it [no-gateway]",
        "~ sysctl net/ipv4/conf/eth0/rp_filter = 2  # was 1; packets do not come the way that they would go back",
        "10.244.1.5 leaves through node2, slot 1",
        "https://192.0.2.1:6443: connection refused",
        "table inet metaleg_node { map pods4 { type ipv4_addr : verdict; } }",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
