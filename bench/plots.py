"""The figures of docs/performance.md, drawn from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bench.results import Figure
from tools.plots import COLOURS, bars, draw, head, lines, quoted

_RATE = ": packets/s"
_EVENT = ": a pod replaced"


def draw_all(found: Mapping[str, Iterable[Figure]], machine: str, folder: Path) -> Iterator[Path]:
    """Draws what is there of forwarding and churn into files of the folder, and names these."""
    for name, script in (("forwarding", _forwarding), ("churn", _churn)):
        if name in found:
            file = folder / f"{name}.svg"
            draw(script(found[name], machine), file)
            yield file


def _forwarding(figures: Iterable[Figure], machine: str) -> str:
    """What is left of the packets a second of a node with nothing of ours: a bar for each layout and kind of packets,
    those of one kind together."""
    some = [one for one in figures if one.name.endswith(_RATE)]
    kinds = list(dict.fromkeys(one.name.removesuffix(_RATE).rpartition(": ")[2] for one in some))
    rows = [
        (one.name.removesuffix(_RATE), one.median, min(one.values), max(one.values), COLOURS[kinds.index(kind)])
        for kind in kinds
        for one in some
        if one.name.endswith(f": {kind}{_RATE}")
    ]
    title = quoted(f"Packets a second, in proportion to a node with nothing of ours\n{machine}")
    set_up = [head(1100, 60 + 24 * len(rows)), f"set title {title}", "set xrange [0:1.3]"]
    return "\n".join([*set_up, bars(rows), ""])


def _churn(figures: Iterable[Figure], machine: str) -> str:
    """Which share of the events was in the kernel after how many milliseconds: a curve for each cluster."""
    series = {}
    for one in (one for one in figures if one.name.endswith(_EVENT)):
        share = 1 / len(one.values)
        series[one.name.removesuffix(_EVENT)] = [(ms, (n + 1) * share) for n, ms in enumerate(sorted(one.values))]
    title = quoted(f"A pod is replaced: share of the events that are in the kernel\n{machine}")
    set_up = [
        head(1100, 480),
        f"set title {title}",
        'set xlabel "milliseconds from the API server\'s sending"',
        "set xrange [0:*]",
        "set yrange [0:1]",
        "set key outside below",
    ]
    return "\n".join([*set_up, lines(series, "churn"), ""])
