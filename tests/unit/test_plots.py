"""What `./dev bench --plot` and `./dev figures` draw: gnuplot takes it, and all that was measured is in it."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import plots
from bench.results import Figure
from tests.programs import ROOT, lacking
from tools import dashboard
from tools.plots import draw

MACHINE = "Linux 6.1, 2 cores"
FORWARDING = [
    Figure(name=f"{layout}: {kind}{more}", unit="ratio", values=values)
    for kind in ("egress pods, out", 'pods "behind" no Service')
    for layout, values in (("metaleg-node", (0.9, 1.0, 1.1)), ("one ipset and rule per Service", (0.005,)))
    for more in ("", ": packets/s")
]
CHURN = [
    Figure(name=f"{services} Services, 0 connections: a pod replaced{more}", unit="ms", values=(3.0, 1.0, 2.0))
    for services in ("10", "5,000")
    for more in ("", ", p99", ", processor time")
]


@pytest.fixture(autouse=True)
def gnuplot() -> None:
    if not shutil.which("gnuplot"):
        lacking("gnuplot is not installed: run `./dev setup` as root")


def texts(file: Path) -> str:
    return html.unescape("\n".join(re.findall(r"<text[^>]*>(.*?)</text>", file.read_text(encoding="utf-8"))))


def test_what_was_measured_is_drawn(tmp_path: Path) -> None:
    found = {"forwarding": FORWARDING, "churn": CHURN, "update": FORWARDING}
    forwarding, churn = plots.draw_all(found, MACHINE, tmp_path)
    assert (forwarding.name, churn.name) == ("forwarding.svg", "churn.svg")
    told = texts(forwarding)
    assert told.count("metaleg-node: ") == 2
    assert 'one ipset and rule per Service: pods "behind" no Service' in told
    assert MACHINE in told
    told = texts(churn)
    assert [word for word in ("10 Services", "5,000 Services", "p99", "processor time") if word in told] == [
        "10 Services",
        "5,000 Services",
    ]


class Answers:
    """In the place of Prometheus."""

    def ask(self, path: str, **query: Any) -> list[dict[str, Any]]:
        labels = {"namespace": "shop", "service": "web", "address": "192.0.2.7", "node": "node1"}
        if "refused" in str(query["query"]) or "reject" in str(query["query"]):
            return []
        values = {"values": [[at, str(at % 7)] for at in range(3)]} if path == "query_range" else {"value": [1, "42"]}
        return [{"metric": labels, **values}]


def test_every_panel_of_the_dashboard_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "dashboard.svg"
    draw(dashboard.script(Answers(), 0.0, 3.0), file)  # type: ignore[arg-type]
    told = texts(file)
    titles = [panel["title"] for panel in json.loads(dashboard.DASHBOARD.read_text())["panels"]]
    assert [title for title in titles if title not in told] == []
    assert {"42", "shop", "192.0.2.7", "no data"} <= {*re.findall(r"no data|[\w.]+", told)}


def test_the_picture_in_the_documentation_is_of_this_dashboard() -> None:
    told = texts(ROOT / "docs/figures/dashboard.svg")
    titles = [panel["title"] for panel in json.loads(dashboard.DASHBOARD.read_text())["panels"]]
    assert [title for title in titles if title not in told] == [], "run ./dev figures"
    assert "![" in (page := (ROOT / "docs/operation.md").read_text())
    assert "](figures/dashboard.svg)" in page
