"""Measures, prints a table, and with --json the figures for programs.

bench/run.py [--json] [--plot DIR] [--rounds N] [NAME…]
bench/run.py [--json] --nodes N

NAME: forwarding, rules, parts, maps, update, compare, idle, start, api, churn, burst, failover, survival, return_path,
external_ip, routing, saved_state, state_file
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import (
    api,
    changes,
    control,
    external_ip,
    failovers,
    forwarding,
    maps,
    plots,
    results,
    return_path,
    routing,
    saved_state,
    scale,
    state_file,
)

MEASUREMENTS: Mapping[str, Callable[[int], list[results.Figure]]] = {
    "forwarding": forwarding.measure,
    "rules": forwarding.policy_rules,
    "parts": forwarding.parts,
    "maps": maps.measure,
    "update": control.update,
    "compare": control.compare,
    "idle": control.idle,
    "start": control.start,
    "api": api.api,
    "churn": changes.churn,
    "burst": changes.burst,
    "failover": changes.failover,
    "survival": failovers.survival,
    "return_path": return_path.measure,
    "external_ip": external_ip.measure,
    "routing": routing.measure,
    "state_file": state_file.measure,
    "saved_state": saved_state.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the speed of metaleg-node; needs root.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(MEASUREMENTS)}; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="how often each thing is measured (default: 7)")
    parser.add_argument("--json", action="store_true", help="JSON on standard output; the tables go to standard error")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw forwarding and churn as SVG files there")
    parser.add_argument(
        "--nodes", type=int, metavar="N", help="only so many clients of one API server, see docs/scale.md"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(MEASUREMENTS):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    machine = f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    told = sys.stderr if options.json else sys.stdout
    print(machine, file=told)
    found: dict[str, list[results.Figure]] = {}
    chosen = {name: MEASUREMENTS[name] for name in options.names or MEASUREMENTS}
    if options.nodes:
        chosen = {"scale": lambda _: scale.measure(options.nodes)}
    for name, measurement in chosen.items():
        found[name] = measurement(options.rounds)
        print(f"\n{name}\n{results.render(found[name])}", file=told, flush=True)
    if options.json:
        figures = {name: [figure.as_json() for figure in some] for name, some in found.items()}
        print(json.dumps({"machine": machine, "load": os.getloadavg(), "figures": figures}, indent=1))
    if options.plot:
        for file in plots.draw_all(found, machine, options.plot):
            print(f"wrote {file}", file=told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
