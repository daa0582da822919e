"""Checks of `doctor` that ask the API, or look at the credentials for it: each finds its fault, and nothing before."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from metaleg_node import cli
from metaleg_node.configuration.options import Options
from metaleg_node.doctor.diagnosis import Diagnosis
from metaleg_node.doctor.examination import examine
from metaleg_node.sources import access_rights
from metaleg_node.sources.saved_state import FILE
from tests.api.certificates import Authority
from tests.api.harness import l2_status, node, service, write_kubeconfig
from tests.api.server import ApiServer, Object
from tests.netns import execute
from tests.patience import patient

YEAR = 365 * 86400


class Host:
    """A node of the server's cluster."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.kubeconfig = folder / "kubeconfig"
        self.folder = folder
        self.options = Options(config_file=folder / "config.toml", runtime_dir=folder / "run", state_dir=folder / "lib")
        self.options.config_file.write_text(f'[node]\nname = "worker-1"\n[cluster]\nkubeconfig = "{self.kubeconfig}"\n')
        self.log_in(token="secret")
        server.put(node("worker-1"), service("a"), l2_status("a", "worker-1"))
        made = access_rights.objects("metallb-system", "config")
        server.rules = [rule for one in made for rule in one.get("rules", ())]

    def log_in(self, **user: str) -> None:
        write_kubeconfig(self.kubeconfig, self.server.url, user=user)
        self.kubeconfig.chmod(0o640)

    def examined(self, code: str) -> Diagnosis:
        return examine(self.options.load(), self.options, only=code, root=self.folder)

    def found(self, code: str) -> list[str]:
        """What was seen; the check must be able to tell."""
        diagnosis = self.examined(code)
        assert not diagnosis.unseen, diagnosis.unseen
        return [finding.seen for _, finding in diagnosis.findings]


@pytest.fixture
def host(server: ApiServer, tmp_path: Path) -> Host:
    return Host(server, tmp_path)


def token(**claims: Any) -> str:
    def part(value: Object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmVk"


# --- ML-401 ----------------------------------------------------------------------------------------------------------


def test_a_kubeconfig_that_all_may_read_is_told(host: Host) -> None:
    assert host.found("ML-401") == []
    host.kubeconfig.chmod(0o644)
    assert host.found("ML-401") == [f"{host.kubeconfig} has the mode 644"]


def test_a_token_that_ends_soon_is_told(host: Host) -> None:
    for good in (token(exp=time.time() + YEAR), token(sub="x"), "opaque", "a.b.c"):
        host.log_in(token=good)
        assert host.found("ML-401") == []
    host.log_in(token=token(exp=time.time() + 3600))
    assert "the token in" in host.found("ML-401")[0]
    (host.folder / "token").write_text(token(exp=1_000_000_000))
    host.log_in(tokenFile="token")
    assert host.found("ML-401") == [f"the token in {host.kubeconfig} ended 2001-09-09 01:46 UTC"]


def test_a_client_certificate_that_ends_soon_is_told(host: Host, authority: Authority) -> None:
    certificate, key = authority.issue("node")
    host.log_in(**{"client-certificate": str(certificate), "client-key": str(key)})
    (seen,) = host.found("ML-401")
    assert seen.startswith(f"the client certificate in {host.kubeconfig} ends ")
    long = host.folder / "long.crt"
    execute("openssl", "req", "-x509", "-new", "-key", str(key), "-days", "900", "-subj", "/CN=n", "-out", str(long))
    host.log_in(**{"client-certificate-data": base64.b64encode(long.read_bytes()).decode(), "client-key": str(key)})
    assert host.found("ML-401") == []


def test_a_server_that_is_a_service_is_told(host: Host) -> None:
    assert host.found("ML-401") == []
    config = host.options.config_file
    config.write_text(f'{config.read_text()}service_cidrs = ["127.0.0.0/24"]\n')
    assert host.found("ML-401") == [f"the server of the kubeconfig, {host.server.url}, is a Service's address"]


# --- what the server tells -------------------------------------------------------------------------------------------


def test_a_missing_right_is_told(host: Host) -> None:
    assert host.found("ML-402") == []
    for rule in host.server.rules:
        rule["resources"] = [name for name in rule["resources"] if name not in ("nodes", "servicel2statuses")]
    (seen,) = host.found("ML-402")
    missing = seen.removeprefix("the service account may not ").split("; ")
    assert sorted(missing) == ["list and watch nodes", "list and watch servicel2statuses.metallb.io"]


ABOUT_ONESELF = {
    "verbs": ["create"],
    "apiGroups": ["authorization.k8s.io"],
    "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
}
TOO_MUCH: dict[str, tuple[Object, str]] = {
    "writes": ({"verbs": ["get", "patch"], "apiGroups": [""], "resources": ["nodes"]}, "patch nodes"),
    "secrets": ({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}, "get secrets"),
    "all": ({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, "* *"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_more_rights_than_are_needed_are_told(host: Host, name: str) -> None:
    rule, words = TOO_MUCH[name]
    host.server.rules.append(ABOUT_ONESELF)
    assert host.found("ML-402") == []
    host.server.rules.append(rule)
    assert host.found("ML-402") == [f"the service account may also {words}"]


@pytest.mark.parametrize(("ahead", "words"), [(120.0, "behind"), (-120.0, "ahead of")])
def test_a_wrong_clock_is_told(host: Host, ahead: float, words: str) -> None:
    host.server.clock_ahead = 5.0
    assert host.found("ML-405") == []
    host.server.clock_ahead = ahead
    (seen,) = host.found("ML-405")
    assert seen.endswith(f" s {words} the API server's")


def test_an_api_that_does_not_answer_is_told_and_the_state_of_before_counts(host: Host) -> None:
    assert host.found("ML-409") == []
    host.server.down()
    (seen,) = host.found("ML-409")
    assert "connection refused" in seen
    assert seen.endswith("nothing is known")
    ((_, reason),) = host.examined("ML-403").unseen
    assert "the cluster's state is not known" in reason
    host.options.state_dir.mkdir()
    (host.options.state_dir / FILE).write_text(json.dumps(node("other")))
    (seen,) = host.found("ML-409")
    assert "goes by the state of 20" in seen
    assert host.found("ML-403") == ["this node is worker-1, and the cluster's nodes are other"]
    ((_, reason),) = host.examined("ML-402").unseen
    assert "connection refused" in reason


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_ends_with_1_for_findings_and_with_0_without(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = ["--runtime-dir", str(host.options.runtime_dir), "--state-dir", str(host.options.state_dir)]
    command = ["--config", str(host.options.config_file), *directories, "doctor"]
    assert cli.main([*command, "--only", "ML-401"]) == 0
    assert capsys.readouterr().out == "nothing found; 1 check passed\n"
    host.kubeconfig.chmod(0o644)
    assert cli.main([*command, "--only", "401"]) == 1
    assert capsys.readouterr().out.startswith("warning ML-401 ")
    assert cli.main([*command, "--only", "ML-401", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False
    config = host.options.config_file
    config.write_text(f'{config.read_text()}[doctor]\nignore = ["ML-401"]\n')
    assert cli.main([*command, "--only", "ML-401"]) == 0
    assert capsys.readouterr().out == "nothing found; 0 checks passed, 1 ignored\n"
    with pytest.raises(SystemExit, match="64"):
        cli.main([*command, "--only", "ML-9"])
    assert "no check has a code that begins with ML-9" in capsys.readouterr().err


def test_on_a_healthy_host_nearly_every_check_passes_or_finds(host: Host) -> None:
    words = ("--config", str(host.options.config_file), "--state-dir", str(host.folder), "--runtime-dir")
    argv = [sys.executable, "-m", "metaleg_node", *words, str(host.folder), "doctor", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=patient(20))
    found = json.loads(done.stdout)
    assert len(found["passed"]) + len(found["findings"]) > 40
