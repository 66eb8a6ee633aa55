"""One self-contained offline page, and its Markdown twin, from an evaluation's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments.evaluate import MAPS, SETTINGS, Task
from experiments.files import write_atomically
from experiments.inputs import load_map, load_program
from experiments.report.picture import PicturedMap, map_document, program_document
from experiments.report.statistics import (
    AnytimeLine,
    ProfileLine,
    ProgramResult,
    Summary,
    anytime_curves,
    compare,
    performance_profile,
    program_results,
    regressions,
    summarise,
)
from experiments.results import Row, read_rows
from experiments.solve import SolveResult
from hlo_graphs.program import Program

PAGE = "report.html"
MARKDOWN = "report.md"


@dataclass(frozen=True, slots=True)
class Section:
    """One table of summaries with what it covers."""

    title: str
    note: str
    summaries: tuple[Summary, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart."""

    caption: str
    svg: str


def write_report(directory: Path, other: Path | None = None, *, pictures: bool = True) -> Path:
    """Writes `report.html` and `report.md` into an evaluation's folder; returns the page.

    Args:
      directory: of the evaluation.
      other: another evaluation to compare with; what got slower since is named.
      pictures: draw the maps too.

    Raises:
      InputError: if a folder holds no evaluation.
    """
    rows = read_rows(directory)
    document = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
    results = program_results(rows)
    changes = None if other is None else compare(read_rows(other), rows)
    context = {
        "settings": document["settings"],
        "command": document["command"],
        "machine": json.dumps(document["machine"]),
        "num_programs": len({row.program for row in rows}),
        "sections": sections(results),
        "charts": charts(rows, results, document["settings"]["time_limit_seconds"]),
        "results": results,
        "failures": [row for row in rows if row.error is not None],
        "regressions": None if changes is None else regressions(changes),
        "num_compared": 0 if changes is None else len(changes),
    }
    drawn = _pictures(directory, results, document["settings"]) if pictures else []
    page = _environment().get_template("report.html").render(**context, **_assets(drawn))
    write_atomically(directory / PAGE, page)
    write_atomically(directory / MARKDOWN, markdown(context))
    return directory / PAGE


def map_page(title: str, program: Program, maps: Sequence[PicturedMap]) -> str:
    """A page with nothing but one program's maps."""
    picture = {
        "program": program_document(program),
        "maps": [map_document(program, pictured) for pictured in maps],
    }
    template = _environment().get_template("map.html")
    return template.render(title=title, **_assets(picture))


def result_page(result: SolveResult) -> str:
    """A page with the maps of one solved program: ours, and production's where known."""
    maps = [PicturedMap(result.solution.solver, result.memory_map)]
    if result.production_map is not None:
        maps.append(PicturedMap("production", result.production_map))
    title = f"{result.program.name} on {result.program.machine.chip}"
    return map_page(title, result.program, maps)


def sections(results: Sequence[ProgramResult]) -> list[Section]:
    """Programs with headroom at the chip's own capacity and at reduced ones apart, then all."""
    open_ones = [r for r in results if r.has_headroom]
    groups = [
        ("The chips' own capacity, programs with headroom", [r for r in open_ones if r.is_native]),
        ("Reduced capacity, programs with headroom", [r for r in open_ones if not r.is_native]),
        ("Test families, programs with headroom", [r for r in open_ones if r.split == "test"]),
        ("All programs", list(results)),
    ]
    return [
        Section(title, _note(group), tuple(summarise(group))) for title, group in groups if group
    ]


def _note(results: Sequence[ProgramResult]) -> str:
    programs = {result.program for result in results}
    return f"{len(programs)} programs of {len({result.family for result in results})} families."


def _pictures(
    directory: Path, results: Sequence[ProgramResult], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Per program the best solver's map beside production's."""
    best: dict[str, ProgramResult] = {}
    for result in results:
        known = best.get(result.program)
        if known is None or result.latency_seconds < known.latency_seconds:
            best[result.program] = result
    return [_picture(directory, result, settings) for result in best.values()]


def _picture(directory: Path, result: ProgramResult, settings: dict[str, Any]) -> dict[str, Any]:
    loaded = load_program(result.program, times=settings["times"], busy=settings["busy"])
    seed = settings["seeds"][0]
    path = directory / MAPS / Task(result.program, result.solver, seed).map_name
    maps = [PicturedMap(result.solver, load_map(path))] if path.exists() else []
    if loaded.production_map is not None:
        maps.append(PicturedMap("production", loaded.production_map))
    return {
        "program": program_document(loaded.program),
        "maps": [map_document(loaded.program, pictured) for pictured in maps],
    }


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("experiments.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def _assets(data: object) -> dict[str, str]:
    """What a page carries along; `</` in data would end the script that holds it."""
    folder = resources.files("experiments.report")
    return {
        "style": (folder / "style.css").read_text(encoding="utf-8"),
        "viewer": (folder / "viewer.js").read_text(encoding="utf-8"),
        "data": json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
    }


# --- charts -----------------------------------------------------------------------------------

_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#72b7b2", "#9d755d", "#555555")
_WIDTH, _HEIGHT, _MARGIN = 460, 280, 44


def charts(
    rows: Sequence[Row], results: Sequence[ProgramResult], time_limit_seconds: float
) -> list[Chart]:
    """The performance profile and the anytime curves, where there is something to draw."""
    drawn = []
    if results:
        profile = performance_profile(results)
        drawn.append(Chart("Share of programs within a factor of the best", _profile_svg(profile)))
    moments = [time_limit_seconds * (i + 1) / 40 for i in range(40)]
    curves = anytime_curves(rows, moments)
    if curves:
        drawn.append(Chart("Median gap to the bound (%) against seconds", _anytime_svg(curves)))
    return drawn


def _profile_svg(lines: Sequence[ProfileLine]) -> str:
    widest = min(max((f for line in lines for f in line.factors), default=1.01), 1.5)
    paths = []
    for line in lines:
        points = [(1.0, 0.0)]
        for factor, share in zip(line.factors, line.shares, strict=True):
            points += [(min(factor, widest), points[-1][1]), (min(factor, widest), share)]
        paths.append((line.solver, [*points, (widest, points[-1][1])]))
    return _line_chart(paths, (1.0, widest), (0.0, 1.0))


def _anytime_svg(lines: Sequence[AnytimeLine]) -> str:
    paths = [
        (line.solver, list(zip(line.seconds, (100 * g for g in line.gaps), strict=True)))
        for line in lines
    ]
    highest = max(gap for _, points in paths for _, gap in points)
    return _line_chart(paths, (0.0, lines[0].seconds[-1]), (0.0, highest))


def _line_chart(
    paths: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    xs: tuple[float, float],
    ys: tuple[float, float],
) -> str:
    """Lines over two labelled axes, with a key."""

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / ((xs[1] - xs[0]) or 1)
        up = (y - ys[0]) / ((ys[1] - ys[0]) or 1)
        return _MARGIN + across * (_WIDTH - 150 - _MARGIN), _HEIGHT - 26 - up * (_HEIGHT - 46)

    parts = [f'<svg width="{_WIDTH}" height="{_HEIGHT}" font-size="11" fill="#555">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = xs[0] + share * (xs[1] - xs[0]), ys[0] + share * (ys[1] - ys[0])
        left, level = place(xs[0], y)
        right, bottom = place(x, ys[0])
        parts.append(
            f'<text x="{left - 6:.1f}" y="{level + 4:.1f}" text-anchor="end">{y:.3g}</text>'
        )
        parts.append(
            f'<text x="{right:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{x:.3g}</text>'
        )
        end = place(xs[1], y)[0]
        parts.append(f'<path d="M{left:.1f} {level:.1f}H{end:.1f}" stroke="#e4e4e4"/>')
    for index, (name, points) in enumerate(paths):
        colour = _COLOURS[index % len(_COLOURS)]
        line = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in points)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        row = 20 + 16 * index
        parts.append(f'<path d="M{_WIDTH - 140} {row}h16" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{_WIDTH - 118}" y="{row + 4}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


# --- Markdown -----------------------------------------------------------------------------------


def markdown(context: dict[str, Any]) -> str:
    """The page's tables as Markdown."""
    settings = context["settings"]
    lines = [
        f"# Memory maps of {context['num_programs']} programs, "
        f"{settings['time_limit_seconds']:g} s each",
        "",
        f"Times: {settings['times']}; copy order: {settings['copy_order']}. "
        f"Made with `{context['command']}`.",
    ]
    for section in context["sections"]:
        lines += ["", f"## {section.title}", "", section.note, "", *_summary_table(section)]
    if context["regressions"] is not None:
        lines += ["", "## Beside the other table", "", *_regression_lines(context)]
    lines += ["", "## Every program", "", *_result_table(context["results"])]
    for row in context["failures"]:
        lines.append(f"\nFailed: {row.program}, {row.solver}, seed {row.seed}: {row.error}")
    return "\n".join(lines) + "\n"


def _summary_table(section: Section) -> list[str]:
    columns = (
        *("solver", "programs", "geometric mean", "95 %", "median"),
        *("wins", "safe", "ties", "losses", "gap"),
    )
    rows = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for s in section.summaries:
        low, high = s.geometric_interval
        gap = "-" if s.median_gap is None else f"{s.median_gap:.2%}"
        rows.append(
            f"| {s.solver} | {s.num_programs} | {s.geometric_mean:.4f} | {low:.3f} to {high:.3f} "
            f"| {s.median:.4f} | {s.wins} | {s.safe_wins} | {s.ties} | {s.losses} | {gap} |"
        )
    return rows


def _regression_lines(context: dict[str, Any]) -> list[str]:
    if not context["regressions"]:
        return [f"No regressions among {context['num_compared']} results."]
    return [
        f"- {c.program}, {c.solver}: {c.before_seconds * 1e3:.4f} ms before, "
        f"{c.after_seconds * 1e3:.4f} ms now, slower by {c.ratio - 1:.2%}"
        for c in context["regressions"]
    ]


def _result_table(results: Sequence[ProgramResult]) -> list[str]:
    rows = [
        "| program | solver | ms | production ms | speed-up | gap | stalls ms | seconds | status |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        gap = "-" if r.gap is None else f"{r.gap:.2%}"
        rows.append(
            f"| {r.program} | {r.solver} | {r.latency_seconds * 1e3:.4f} "
            f"| {r.production_seconds * 1e3:.4f} | {r.speedup:.4f} | {gap} "
            f"| {r.stall_seconds * 1e3:.4f} | {r.wall_seconds:.2f} | {r.status} |"
        )
    return rows
