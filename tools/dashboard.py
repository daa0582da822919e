"""Draws the dashboard's panels from what Prometheus saw of a run in the demo's network: docs/figures/dashboard.svg.

Grafana itself is not needed: each panel's queries are asked as Grafana asks them, and its kind, title, place and legend
are those of the dashboard's file. As root: python -m tools.dashboard"""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metaleg_node.lab.daemons import wait_until
from metaleg_node.lab.lab import Lab
from metaleg_node.lab.namespaces import Namespace
from metaleg_node.lab.plan import NODES, SERVER, SERVER_PORT, LabService
from tools.plots import draw, head, lines, quoted

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "etc/metaleg-node/prometheus/dashboard.json"
DRAWN = ROOT / "docs/figures/dashboard.svg"
METRICS, PROMETHEUS = 21793, 9090
SCRAPE_SECONDS, RATE = 1, "8s"
_CELL = (48, 24)
"""Pixels of a unit of the grid, which is 24 units wide."""
_UNITS = {"bps": "bit/s", "pps": "packets/s", "s": "s"}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        began = time.time()
        with prometheus(lab, Path(folder)) as server:
            happen(lab)
            draw(script(server, began, time.time()), DRAWN)
    print(f"wrote {DRAWN.relative_to(ROOT)}")


def happen(lab: Lab) -> None:
    """What the curves show: labels, traffic, moves, a Service that nobody announces, somebody's flush."""
    home, second, third = NODES
    services = [
        LabService(name="web", number=0, pods=(lab.pod(home),), gateway=second),
        LabService(name="mail", number=1, pods=(lab.pod(home, 2), lab.pod(third)), gateway=third),
    ]
    lab.set_services(*(replace(one, labelled=False) for one in services))
    lab.start_daemons({"metrics": {"listen": f"0.0.0.0:{METRICS}"}})
    ended = threading.Event()
    senders = [
        threading.Thread(target=_send, args=(lab.namespace(pod), rate, ended))
        for pod, rate in ((lab.pod(home), 300), (lab.pod(home, 2), 150), (lab.pod(third), 80))
    ]
    for one in senders:
        one.start()
    try:
        time.sleep(10)
        lab.set_services(*services)
        time.sleep(20)
        lab.failover("web", third)
        time.sleep(15)
        lab.namespace(home).run("nft", "flush", "ruleset")
        time.sleep(15)
        lab.failover("mail", None)
        time.sleep(20)
        lab.failover("mail", second)
        time.sleep(15)
    finally:
        ended.set()
        for one in senders:
            one.join()


def _send(client: Namespace, rate: int, ended: threading.Event) -> None:
    """Datagrams of 1,000 bytes to the server outside; that nobody answers there, or that they are refused, is fine."""
    with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while not ended.wait(1 / rate):
            try:
                sock.sendto(bytes(1000), (str(SERVER[4]), SERVER_PORT))
            except OSError:
                continue


# --- Prometheus ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """Prometheus in a namespace."""

    namespace: Namespace

    def ask(self, path: str, **query: object) -> list[dict[str, Any]]:
        """What its HTTP API answers."""
        with self.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            sock.connect(("127.0.0.1", PROMETHEUS))
            target = f"/api/v1/{path}?{urllib.parse.urlencode(query)}"
            sock.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            with sock.makefile("rb") as answer:
                _, _, body = answer.read().partition(b"\r\n\r\n")
        found: list[dict[str, Any]] = json.loads(body)["data"]["result"]
        return found


@contextmanager
def prometheus(lab: Lab, folder: Path) -> Iterator[Server]:
    """Scrapes all nodes each second, from the first one."""
    program = shutil.which("prometheus", path=f"{ROOT}/build/tools/usr/bin:/usr/bin:/bin")
    assert program, "prometheus is not installed: run ./dev setup"
    jobs = [{"targets": [f"{node.addresses[4]}:{METRICS}"], "labels": {"instance": node.name}} for node in NODES]
    job = {"job_name": "metaleg-node", "scrape_interval": f"{SCRAPE_SECONDS}s", "static_configs": jobs}
    config = folder / "prometheus.yml"
    config.write_text(json.dumps({"scrape_configs": [job]}))
    server = Server(lab.namespace(NODES[0]))
    argv = ["ip", "netns", "exec", server.namespace.name, program, f"--config.file={config}"]
    argv += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{PROMETHEUS}"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert wait_until(lambda: _answers(server), 60.0, pause=0.1), "prometheus does not begin"
            yield server
        finally:
            process.terminate()


def _answers(server: Server) -> bool:
    try:
        return server.ask("query", query="vector(1)") != []
    except (OSError, ValueError):
        return False


# --- panels ----------------------------------------------------------------------------------------------------------


def script(server: Server, begin: float, end: float) -> str:
    """The drawing of all panels, for gnuplot."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    drawn = [head(24 * _CELL[0], rows * _CELL[1]), "set multiplot"]
    for number, panel in enumerate(panels):
        place = panel["gridPos"]
        drawn += [
            f"set origin {place['x'] / 24:.4f},{1 - (place['y'] + place['h']) / rows:.4f}",
            f"set size {place['w'] / 24:.4f},{place['h'] / rows:.4f}",
            f"set title {quoted(panel['title'])}",
            *_PANELS[panel["type"]](panel, server, begin, end, f"p{number}"),
        ]
    return "\n".join([*drawn, "unset multiplot", ""])


def _query(expression: str) -> str:
    return expression.replace("$__rate_interval", RATE).replace("$instance", ".*")


def _legend(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), text) or " ".join(labels.values())


def _timeseries(panel: dict[str, Any], server: Server, begin: float, end: float, name: str) -> list[str]:
    series = {}
    for target in panel["targets"]:
        asked = {"query": _query(target["expr"]), "start": begin, "end": end, "step": SCRAPE_SECONDS}
        for found in server.ask("query_range", **asked):
            points = [(at - begin, float(value)) for at, value in found["values"] if value != "NaN"]
            series[_legend(target["legendFormat"], found["metric"])] = points
    unit = _UNITS.get(panel["fieldConfig"]["defaults"].get("unit"), "")
    set_up = [
        f"set xrange [0:{end - begin:.0f}]",
        f"set xtics {20 if panel['gridPos']['w'] > 8 else 50}",
        "set yrange [0:*]",
        f"set ytics {_step(series):g}",
        'set format x "%g s"',
        'set format y "%.1s%c"',
        f"set ylabel {quoted(unit)}",
        'set key outside right top maxcols 1 samplen 1 font "sans-serif,9"',
    ]
    return [*set_up, lines(series, name)] if series else [*set_up, *_text("no data")]


def _step(series: dict[str, list[tuple[float, float]]]) -> float:
    """From one line of the grid to the next: a round number, so that there are two to five of them."""
    top = max((value for points in series.values() for _, value in points), default=0) or 1
    size: float = 10.0 ** math.floor(math.log10(top))
    return next(step * size for step in (0.5, 1, 2, 5) if top / (step * size) <= 4)


def _value(panel: dict[str, Any], server: Server, _begin: float, end: float, _name: str) -> list[str]:
    """The last value, in large figures."""
    found = [one for target in panel["targets"] for one in server.ask("query", query=_query(target["expr"]), time=end)]
    return _text(*(f"{float(one['value'][1]):g}" for one in found), size=32)


def _table(panel: dict[str, Any], server: Server, _begin: float, end: float, _name: str) -> list[str]:
    found = [one for target in panel["targets"] for one in server.ask("query", query=_query(target["expr"]), time=end)]
    labels = [one["metric"] for one in found]
    names = sorted({name for one in labels for name in one}, key=("namespace", "service", "address", "node").index)
    rows = [names, *sorted([one.get(name, "") for name in names] for one in labels)]
    placed = [
        f"set label {quoted(cell)} at graph {x / len(names):.3f},{1 - (y + 0.5) / 8:.3f} left"
        for y, row in enumerate(rows)
        for x, cell in enumerate(row)
    ]
    return [*_EMPTY, *placed, _NOTHING, *_FULL]


_EMPTY = ("unset border", "unset tics", "unset key", "set ylabel", "set xrange [0:1]", "set yrange [0:1]")
_NOTHING = "plot NaN notitle"
_FULL = ("unset label", "set border 3", "set tics nomirror")


def _text(*texts: str, size: int = 12) -> list[str]:
    words = quoted("  ".join(texts) or "no data")
    label = f'set label {words} at graph 0.5,0.45 center font "sans-serif,{size}"'
    return [*_EMPTY, label, _NOTHING, *_FULL]


_PANELS = {"timeseries": _timeseries, "stat": _value, "table": _table}


if __name__ == "__main__":
    main()
