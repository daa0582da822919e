"""The command line with the API: check, the start without credentials, and the making of a kubeconfig."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaleg_node import cli
from metaleg_node.configuration.config import parse
from metaleg_node.sources import access_rights, service_account
from metaleg_node.sources.resources import subjects
from tests.api import faults
from tests.api.certificates import Authority
from tests.api.harness import l2_status, node, service, write_kubeconfig
from tests.api.server import ApiServer, Object
from tests.api.test_credentials import inline

ROOT = Path(__file__).resolve().parents[2]
HOLD = 'node.name = "worker-1"\negress.new_pods = "hold"'


def run(tmp_path: Path, kubeconfig: Path, *command: str) -> int:
    config = tmp_path / "config.toml"
    config.write_text(f'[node]\nname = "worker-1"\n[cluster]\nkubeconfig = "{kubeconfig}"\n')
    directories = ("--runtime-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "lib"))
    return cli.main(["--config", str(config), *directories, *command])


def test_check_is_content_with_an_api_that_may_be_read(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put(node("worker-1"), service("a"), l2_status("a", "worker-1"))
    assert run(tmp_path, write_kubeconfig(tmp_path / "kubeconfig", server.url), "check") == 0
    assert capsys.readouterr().out.endswith(": good\n")
    lists = [one.path.partition("?")[0] for one in server.asked]
    assert len(lists) == len(set(lists)) > 0


def test_check_names_every_missing_right(server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.forbidden.update({"nodes", "servicel2statuses"})
    assert run(tmp_path, write_kubeconfig(tmp_path / "kubeconfig", server.url), "check") == 78
    told = capsys.readouterr().err
    assert 'cannot list resource "nodes"' in told
    assert 'cannot list resource "servicel2statuses"' in told


def test_check_tells_of_a_server_that_cannot_be_reached_once(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.down()
    assert run(tmp_path, write_kubeconfig(tmp_path / "kubeconfig", server.url), "check") == 78
    assert capsys.readouterr().err.count("connection refused") == 1


@pytest.mark.parametrize("text", [None, "a: ["])
def test_a_start_without_credentials_and_without_a_past_is_a_configuration_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    if text:
        kubeconfig.write_text(text)
    assert run(tmp_path, kubeconfig, "run") == 78
    told = capsys.readouterr().err
    assert "cluster.kubeconfig: " in told
    assert str(kubeconfig) in told


def test_plan_without_an_api_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, tmp_path / "kubeconfig", "plan") == 1
    assert "does not exist; put a kubeconfig there" in capsys.readouterr().err


# --- rights ----------------------------------------------------------------------------------------------------------


def test_the_rights_are_reading_what_is_asked_for_and_nothing_else() -> None:
    made = access_rights.objects("metallb-system", "config")
    rules = [rule for one in made for rule in one.get("rules", ())]
    allowed = {(group, name) for rule in rules for group in rule["apiGroups"] for name in rule["resources"]}
    config = parse("return_path.bgp.enabled = true", file="F")
    asked = {(choice.group, choice.plural) for subject in subjects(config) for choice in subject.choices}
    assert asked == allowed
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert not {name for _, name in allowed if name == "*" or "secret" in name}
    (role,) = (one for one in made if one["kind"] == "Role")
    assert role["metadata"]["namespace"] == "metallb-system"
    assert {group for rule in role["rules"] for group in rule["apiGroups"]} == {"", "metallb.io"}


def test_the_hold_of_new_pods_needs_Pods_of_this_node_and_a_right_of_its_own() -> None:
    (asked,) = (one for one in subjects(parse(HOLD, file="F")) if one.name == "Pod")
    assert [(one.path, one.field_selector) for one in asked.choices] == [("/api/v1/pods", "spec.nodeName=worker-1")]
    assert "Pod" not in {one.name for one in subjects(parse("", file="F"))}
    text = (ROOT / "etc/metaleg-node/kubernetes/rbac-new-pods.yaml").read_text()
    role, binding = yaml.safe_load_all(text)
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (account,) = (one for one in access_rights.objects("lb", "metallb") if one["kind"] == "ServiceAccount")
    assert binding["subjects"] == [{"kind": "ServiceAccount", **account["metadata"]}]


def test_of_all_config_maps_only_the_one_with_metallbs_configuration_may_be_read() -> None:
    made = access_rights.objects("lb", "metallb")
    found = [(one, rule) for one in made for rule in one.get("rules", ()) if "configmaps" in rule["resources"]]
    ((role, rule),) = found
    assert (role["kind"], role["metadata"]["namespace"]) == ("Role", "lb")
    assert (rule["resources"], rule["resourceNames"]) == (["configmaps"], ["metallb"])


def admin_kubeconfig(server: ApiServer, authority: Authority, tmp_path: Path) -> Path:
    where = {"certificate-authority-data": inline(authority.certificate)}
    return write_kubeconfig(tmp_path / "admin", server.url, cluster=where, user={"token": "admin"})


def test_the_kubeconfig_command_makes_an_account_that_can_log_in(
    authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ApiServer(tls=authority.server_context(), tokens={"admin", "of-the-account"}) as server:
        server.service_account_token, server.authority = "of-the-account", authority.certificate.read_bytes()
        admin = admin_kubeconfig(server, authority, tmp_path)
        command = ["kubeconfig", "--admin", str(admin), "--yes", "--metallb-configmap", "bgp"]
        assert cli.main(command) == 0
        printed = capsys.readouterr()
        assert "kind: ClusterRole" in printed.err
        assert "resourceNames:\n  - bgp\n" in printed.err
        assert sorted(path.rsplit("/", 2)[-2] for path in server.made) == [
            "clusterrolebindings",
            "clusterroles",
            "rolebindings",
            "roles",
            "secrets",
            "serviceaccounts",
        ]
        assert yaml.safe_load(printed.out)["users"][0]["user"] == {"token": "of-the-account"}
        (tmp_path / "kubeconfig").write_text(printed.out)
        server.tokens = {"of-the-account"}
        assert run(tmp_path, tmp_path / "kubeconfig", "check") == 0


def made(admin: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the command printed, and the cluster in it."""
    assert cli.main(["kubeconfig", "--admin", str(admin), "--yes"]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    assert document.keys() == {"apiVersion", "kind", "current-context", "contexts", "clusters", "users"}
    assert document["users"] == [{"name": "metaleg-node", "user": {"token": "secret"}}]
    return document["clusters"][0]["cluster"]


def test_the_kubeconfig_keeps_the_authority_that_works(
    authority: Authority, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Authority(directory=tmp_path_factory.mktemp("other")).create()
    known = inline(authority.certificate)
    (tmp_path / "ca.crt").write_bytes(authority.certificate.read_bytes())
    extension = {"name": "x", "extension": {"secret": "of the administrator"}}
    ways: dict[str, Object] = {
        "inline": {"certificate-authority-data": known},
        "in a file beside": {"certificate-authority": "ca.crt"},
        "as bytes": {"certificate-authority-data": authority.certificate.read_bytes()},
    }
    with ApiServer(tls=authority.server_context(), tokens={"admin", "secret"}) as server:
        for name, way in ways.items():
            cluster = {**way, "extensions": [extension], "disable-compression": True}
            admin = write_kubeconfig(tmp_path / "admin", server.url, cluster=cluster, user={"token": "admin"})
            for of_secret in (authority.certificate.read_bytes(), other.certificate.read_bytes(), b"", b"nonsense"):
                server.authority = of_secret
                wanted = {"server": server.url, "certificate-authority-data": known}
                assert made(admin, capsys) == wanted, (name, of_secret)


def test_a_kubeconfig_verifies_the_server_where_that_is_possible(
    authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = {"insecure-skip-tls-verify": True}
    with ApiServer(tls=authority.server_context(), tokens={"admin", "secret"}) as server:
        admin = write_kubeconfig(tmp_path / "admin", server.url, cluster=cluster, user={"token": "admin"})
        server.authority = authority.certificate.read_bytes()
        assert made(admin, capsys) == {
            "server": server.url,
            "certificate-authority-data": inline(authority.certificate),
        }
        server.authority = b""
        assert made(admin, capsys) == {"server": server.url, "insecure-skip-tls-verify": True}


def test_a_kubeconfig_that_does_not_work_is_not_printed(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_account, "_RIGHTS_WAIT", 0.0)
    admin = write_kubeconfig(tmp_path / "admin", server.url, user={"token": "admin"})
    server.tokens = {"admin"}
    assert cli.main(["kubeconfig", "--admin", str(admin), "--yes"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the account is made, but a kubeconfig for it does not work" in printed.err
    assert "401" in printed.err


def test_a_token_that_is_not_known_at_once_is_waited_for(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = write_kubeconfig(tmp_path / "admin", server.url, user={"token": "admin"})
    server.inject(faults.answers(401, "Unauthorized"), when=lambda asked: asked.authorization == "Bearer secret")
    assert made(admin, capsys) == {"server": server.url}
    assert server.faults_to_come == 0


def test_the_kubeconfig_command_does_nothing_without_consent(
    server: ApiServer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert cli.main(["kubeconfig", "--admin", str(admin_kubeconfig(server, authority, tmp_path))]) == 1
    assert server.made == {}


def test_the_kubeconfig_command_tells_what_is_wrong(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["kubeconfig", "--admin", str(tmp_path / "admin"), "--yes"]) == 1
    assert "does not exist" in capsys.readouterr().err
    server.tokens = {"admin"}
    admin = write_kubeconfig(tmp_path / "admin", server.url, user={"token": "other"})
    assert cli.main(["kubeconfig", "--admin", str(admin), "--yes"]) == 1
    assert "401" in capsys.readouterr().err


def test_explain_goes_by_the_last_known_state_while_the_api_does_not_answer(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", server.url)
    objects = (node("worker-1"), service("a"), l2_status("a", "worker-1"))
    server.put(*objects)
    assert run(tmp_path, kubeconfig, "explain", "mail/a") == 0
    live = capsys.readouterr()
    server.down()
    assert run(tmp_path, kubeconfig, "explain", "mail/a") == 1
    assert "connection refused" in capsys.readouterr().err
    (tmp_path / "lib").mkdir(exist_ok=True)
    (tmp_path / "lib" / "cluster-state.yaml").write_text(yaml.safe_dump_all(objects))
    assert run(tmp_path, kubeconfig, "explain", "mail/a") == 0
    saved = capsys.readouterr()
    assert saved.out == live.out != ""
    assert "connection refused" in saved.err
    assert "going by the state of 20" in saved.err
