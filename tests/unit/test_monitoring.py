"""The alert rules and the dashboard: promtool takes them, and all that they ask for exists."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from metaleg_node.daemon.metrics import Metrics
from tests.programs import ROOT, wanted

FOLDER = ROOT / "etc/metaleg-node/prometheus"
ALERTS, DASHBOARD = FOLDER / "alerts.yaml", FOLDER / "dashboard.json"
RUNBOOKS = "https://metaleg-node.example/"
OWN = re.compile(r"\b(?:metaleg_node|process)_[a-z_]+")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([wanted("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def queries() -> Iterator[str]:
    """What the dashboard asks, with Grafana's variables filled in."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")


def names() -> set[str]:
    """Every metric that a service has, samples or not."""
    page = Metrics(version="0", traffic=dict).page(Message()).body.decode()
    families = list(text_string_to_metric_families(page))
    samples = {sample.name for family in families for sample in family.samples}
    return samples | {family.name for family in families}


def test_the_rules_are_good_and_fire_when_they_should() -> None:
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", FOLDER / "alerts_test.yaml")


def test_every_alert_is_seen_firing_in_the_tests() -> None:
    text = (FOLDER / "alerts_test.yaml").read_text()
    assert [rule["alert"] for rule in alerts() if f'alertname="{rule["alert"]}"' not in text] == []


def test_the_dashboards_queries_can_be_parsed(tmp_path: Path) -> None:
    asked = list(queries())
    assert len(asked) > 15
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(asked)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for query in [*queries(), *(rule["expr"] for rule in alerts())] for name in OWN.findall(query)}
    assert len(asked) > 15
    assert asked - names() == set()


def test_every_runbook_is_a_heading_of_the_documentation() -> None:
    for rule in alerts():
        place, _, anchor = rule["annotations"]["runbook_url"].removeprefix(RUNBOOKS).partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / place).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_panels_neither_overlap_nor_lack_a_title() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(panel["title"] for panel in panels)
