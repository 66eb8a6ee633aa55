"""Draws the curves of a training run, of one program or of the generalist, as one SVG.

    python -m experiments.curves RUN -o CURVES.svg

RUN is the folder of `malloc-game train` or of `experiments.generalist`. Each line is the mean over
a fortieth of the run's metrics; docs/agent.md says what healthy looks like.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.console import told_in_a_line
from experiments.files import write_atomically
from experiments.metrics import METRICS, VALIDATION, read_metrics
from experiments.report.charts import line_chart
from hlo_graphs.errors import InputError

PANELS: Mapping[str, Mapping[str, str]] = {
    "Play": {
        "share_of_best": "of the best",
        "mean_saved": "mean saved",
        "validation": "validation",
    },
    "Losses, nats": {
        "policy_loss": "policy",
        "value_loss": "value",
        "reward_loss": "reward",
        "legality_loss": "legality",
    },
    "Values": {"value_explained": "explained", "value_bias": "bias"},
    "Search": {
        "search_divergence": "divergence",
        "policy_entropy": "policy entropy",
        "reward_error": "reward error",
    },
}
"""Panels, and the metrics in each with what they are called; those a run lacks are left out."""

_LEAST = {"value_explained": -1.0}
"""What is lower is drawn there: while returns hardly differ, shares of their variance are huge."""

_POINTS = 40
_PANEL_WIDTH, _PANEL_HEIGHT = 500, 310


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(updates, mean of the metric) over equal parts of the lines that have it."""
    least = _LEAST.get(name, -np.inf)
    known = [
        (float(line["num_updates"]), max(float(line[name]), least))
        for line in lines
        if line.get(name) is not None and np.isfinite(line[name])
    ]
    parts = np.array_split(np.array(known).reshape(-1, 2), min(_POINTS, max(len(known), 1)))
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts if len(part)]


def curves_svg(run: Path) -> str:
    """All panels of which the run has metrics, two a row.

    Raises:
      InputError: see `experiments.metrics.read_metrics`; or if there is nothing to draw.
    """
    lines = read_metrics(run / METRICS)
    if (run / VALIDATION).exists():
        scores = read_metrics(run / VALIDATION)
        lines += [{"num_updates": s["num_updates"], "validation": s["score"]} for s in scores]
    panels = []
    for title, names in PANELS.items():
        drawn = [(label, curve(lines, name)) for name, label in names.items()]
        drawn = [(label, points) for label, points in drawn if points]
        if drawn:
            panels.append((title, line_chart(drawn, *_ranges(drawn))))
    if not panels:
        raise InputError(f"{run}: its metrics are none that there is a panel for")
    rows = -(-len(panels) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _PANEL_WIDTH}" '
        f'height="{rows * _PANEL_HEIGHT}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, (title, svg) in enumerate(panels):
        x, y = place % 2 * _PANEL_WIDTH, place // 2 * _PANEL_HEIGHT
        parts.append(f'<g transform="translate({x} {y})">')
        parts.append(f'<text x="44" y="14" font-size="13">{title}, against updates</text>')
        parts.append(f'<g transform="translate(0 20)">{svg}</g></g>')
    return "".join([*parts, "</svg>\n"])


def _ranges(
    drawn: Sequence[tuple[str, Sequence[tuple[float, float]]]],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of updates from 0, and of the values, but for the outermost: first values are wild."""
    updates = [x for _, points in drawn for x, _ in points]
    values = [y for _, points in drawn for _, y in points]
    low, high = np.percentile(values, [3, 97])
    return (0.0, max(updates)), (min(float(low), 0.0), float(high) or 1.0)


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    write_atomically(chosen.output, curves_svg(chosen.run))


if __name__ == "__main__":
    main()
