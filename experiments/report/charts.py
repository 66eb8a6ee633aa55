"""The charts of a report, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from experiments.report.statistics import (
    AnytimeLine,
    ProfileLine,
    ProgramResult,
    anytime_curves,
    performance_profile,
    shared_results,
)
from experiments.results import Row


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart."""

    caption: str
    svg: str


_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#72b7b2", "#9d755d", "#555555")
_DASHES = ("none", "5 3", "2 2")
_WIDTH, _HEIGHT, _MARGIN, _KEY = 510, 280, 44, 200


def charts(rows: Sequence[Row], results: Sequence[ProgramResult]) -> list[Chart]:
    """The performance profile and the anytime curves, where there is something to draw."""
    drawn = []
    shared = shared_results(results)
    if shared:
        profile = performance_profile(shared)
        drawn.append(Chart("Share of programs within a factor of the best", _profile_svg(profile)))
    longest = max((row.time_limit_seconds for row in rows), default=0.0)
    moments = [longest * (i + 1) / 40 for i in range(40)]
    curves = anytime_curves(rows, {result.program for result in shared}, moments)
    if curves:
        drawn.append(Chart("Median gap to the bound (%) against seconds", _anytime_svg(curves)))
    return drawn


def _profile_svg(lines: Sequence[ProfileLine]) -> str:
    widest = min(max((f for line in lines for f in line.factors), default=1.01), 1.5)
    paths = []
    for line in lines:
        points = [(1.0, 0.0)]
        for factor, share in zip(line.factors, line.shares, strict=True):
            if factor <= widest:
                points += [(factor, points[-1][1]), (factor, share)]
        paths.append((line.solver, [*points, (widest, points[-1][1])]))
    return line_chart(paths, (1.0, widest), (0.0, 1.0))


def _anytime_svg(lines: Sequence[AnytimeLine]) -> str:
    paths = [
        (line.solver, list(zip(line.seconds, (100 * g for g in line.gaps), strict=True)))
        for line in lines
    ]
    highest = max(gap for _, points in paths for _, gap in points)
    return line_chart(paths, (0.0, lines[0].seconds[-1]), (0.0, highest))


def line_chart(
    paths: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    xs: tuple[float, float],
    ys: tuple[float, float],
) -> str:
    """Lines over two labelled axes, with a key.

    Args:
      paths: (name, points) of each line.
      xs, ys: least and greatest value of each axis; what lies beyond is drawn at its end.
    """
    height = max(_HEIGHT, 16 * len(paths) + 24)

    def place(x: float, y: float) -> tuple[float, float]:
        across = min(max((x - xs[0]) / ((xs[1] - xs[0]) or 1), 0.0), 1.0)
        up = min(max((y - ys[0]) / ((ys[1] - ys[0]) or 1), 0.0), 1.0)
        return _MARGIN + across * (_WIDTH - _KEY - _MARGIN), height - 26 - up * (height - 46)

    parts = [f'<svg width="{_WIDTH}" height="{height}" font-size="11" fill="#555">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = xs[0] + share * (xs[1] - xs[0]), ys[0] + share * (ys[1] - ys[0])
        left, level = place(xs[0], y)
        right, bottom = place(x, ys[0])
        parts.append(
            f'<text x="{left - 6:.1f}" y="{level + 4:.1f}" text-anchor="end">{_tick(y, ys)}</text>'
        )
        label = _tick(x, xs)
        parts.append(
            f'<text x="{right:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{label}</text>'
        )
        end = place(xs[1], y)[0]
        parts.append(f'<path d="M{left:.1f} {level:.1f}H{end:.1f}" stroke="#e4e4e4"/>')
    for index, (name, points) in enumerate(paths):
        colour = _COLOURS[index % len(_COLOURS)]
        # Once all colours are used, lines are told apart by their dashes.
        dashes = f' stroke-dasharray="{_DASHES[index // len(_COLOURS) % len(_DASHES)]}"'
        drawn = f'fill="none" stroke="{colour}" stroke-width="1.8"{dashes}'
        line = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in points)
        parts.append(f'<path d="M{line}" {drawn}/>')
        row = 20 + 16 * index
        parts.append(f'<path d="M{_WIDTH - _KEY + 10} {row}h16" {drawn}/>')
        parts.append(f'<text x="{_WIDTH - _KEY + 32}" y="{row + 4}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _tick(value: float, span: tuple[float, float]) -> str:
    """An axis label with as many digits as tell quarters of the axis apart."""
    width = span[1] - span[0]
    digits = 2 - math.floor(math.log10(width)) if width > 0 else 2
    text = f"{value:.{min(max(digits, 1), 6)}f}"
    return text.rstrip("0").rstrip(".")
