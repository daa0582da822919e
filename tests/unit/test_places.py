"""check names the object that something is wrong with by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from metaleg_node import cli
from metaleg_node.sources.state_file import places

NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}
BAD = {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"}, "spec": {"ports": 1}}
SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  namespace: shop
  name: {}
spec:
  ports: 1
"""
DOCUMENTS = f"# Of today.\n\n---\n# The first.\n{SERVICE.format('web')}---\n{SERVICE.format('mail')}--- \n\n"
LIST = yaml.safe_dump({"apiVersion": "v1", "items": [NODE, BAD], "kind": "List"}, sort_keys=False)


def told(path: Path) -> dict[str, str]:
    return {str(ref): place.removeprefix(f"{path}") for ref, place in places(path).items()}


def test_documents_items_of_lists_and_files_of_a_directory(tmp_path: Path) -> None:
    documents, items, plain, whole = (tmp_path / name for name in ("a.yaml", "b.yaml", "c.json", "d.yaml"))
    documents.write_text(DOCUMENTS)
    assert told(documents) == {"Service shop/web": ": line 5", "Service shop/mail": ": line 13"}
    items.write_text(f"---\n{LIST}")
    lines = items.read_text().splitlines()
    second = next(n for n, line in enumerate(lines, 1) if line.startswith("- ") and n > 5)
    assert told(items) == {"Node a": ": line 4", "Service shop/web": f": line {second}"}
    plain.write_text(json.dumps(BAD))
    assert told(plain) == {"Service shop/web": ""}
    whole.write_text(f"%YAML 1.2\n---\n{SERVICE.format('other')}")
    assert told(tmp_path) == {
        "Service shop/mail": "/a.yaml: line 13",
        "Node a": "/b.yaml: line 4",
        "Service shop/web": "/c.json",
        "Service shop/other": "/d.yaml: line 1",
    }


def test_check_tells_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, config = tmp_path / "state.yaml", tmp_path / "config.toml"
    state.write_text(f"{yaml.safe_dump(NODE)}---\n{SERVICE.format('web')}")
    config.write_text(f'[node]\nname = "a"\n[cluster]\nstate_file = "{state}"\n')
    assert cli.main(["--config", str(config), "check"]) == 78
    line = state.read_text().splitlines().index("kind: Service")
    assert f"! {state}: line {line}: Service shop/web: spec.ports: " in " ".join(capsys.readouterr().err.split())
