"""Plots as SVG files, drawn by gnuplot (the Debian package gnuplot-nox). Colours are those that people with any kind of
sight tell apart (Okabe and Ito)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#f0e442")
_GREY = "#666666"

Points = Sequence[tuple[float, float]]


def quoted(text: str) -> str:
    """A text as gnuplot takes it, as it is."""
    return json.dumps(text, ensure_ascii=False)


def head(width: int, height: int) -> str:
    """What a drawing of so many pixels begins with; its output is standard output."""
    return "\n".join(
        [
            f'set terminal svg size {width},{height} noenhanced font "sans-serif,12" background "#ffffff"',
            "set encoding utf8",
            f'set border 3 linecolor "{_GREY}"',
            f'set tics nomirror textcolor "{_GREY}"',
            f'set grid linecolor "{_GREY}" dashtype 3',
        ]
    )


def lines(series: Mapping[str, Points], name: str) -> str:
    """The commands that plot curves by their titles; `name` is one that the data of no other plot has."""
    blocks = "".join(
        f"${name}{number} << END\n" + "".join(f"{x:g} {y:g}\n" for x, y in points) + "END\n"
        for number, points in enumerate(series.values())
    )
    drawn = ", ".join(
        f'${name}{number} using 1:2 with lines linewidth 2 linecolor rgb "{COLOURS[number % len(COLOURS)]}" '
        f"title {quoted(title)}"
        for number, title in enumerate(series)
    )
    return f"{blocks}plot {drawn}"


def bars(rows: Iterable[tuple[str, float, float, float, str]]) -> str:
    """The commands that plot horizontal bars, the first one at the top: each with its title, value, least and greatest
    one, and colour."""
    some = [*rows]
    data = "".join(
        f"{value:g} {len(some) - 1 - n} {low:g} {high:g} {int(colour[1:], 16)}\n"
        for n, (_, value, low, high, colour) in enumerate(some)
    )
    tics = ", ".join(f"{quoted(title)} {len(some) - 1 - n}" for n, (title, *_) in enumerate(some))
    return (
        f"$bars << END\n{data}END\nset ytics ({tics})\nset yrange [-0.7:{len(some) - 0.3}]\nunset key\n"
        "plot $bars using (0):2:(0):1:($2-0.3):($2+0.3):5 with boxxyerror fillstyle solid 0.7 linecolor rgb variable, "
        f'$bars using 1:2:3:4 with xerrorbars pointtype 0 linecolor "{_GREY}"'
    )


def draw(script: str, file: Path) -> None:
    """Raises OSError and subprocess.CalledProcessError."""
    done = subprocess.run(["gnuplot", "-"], input=script, stdout=subprocess.PIPE, text=True, check=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(done.stdout, encoding="utf-8")
