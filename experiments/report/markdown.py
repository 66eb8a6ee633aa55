"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.contents import Comparison, Report, Section, SideBySide, counted
from experiments.report.retimings import Ranking, Retiming
from experiments.report.statistics import ProgramResult


def markdown(report: Report) -> str:
    """The page's tables as Markdown."""
    lines = [
        f"# {report.title}",
        "",
        f"Times: {report.settings.model.label}. Made with "
        + ", ".join(f"`{run.command}`" for run in report.settings.runs)
        + ".",
    ]
    for makers, what in (
        (report.codes, "by several versions of this project's code"),
        (report.processors, "on several processors"),
    ):
        if len(makers) > 1:
            kinds = (f"{name} ({', '.join(solvers)})" for name, solvers in makers.items())
            lines += ["", f"The rows were made {what}: {'; '.join(kinds)}."]
    for section in report.sections:
        lines += ["", f"## {section.title}", "", section.note, "", *_summary_table(section)]
    lines += _retiming_lines(report.retiming)
    if report.comparison is not None:
        lines += ["", "## Beside the other table", "", *_regression_lines(report.comparison)]
    if report.side_by_side.lines:
        lines += ["", "## Speed-up over production", "", *_side_by_side(report.side_by_side)]
    lines += ["", "## Every program", "", *_result_table(report.results)]
    for row in report.failures:
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


def _retiming_lines(retiming: Retiming) -> list[str]:
    lines = ["", "## The same maps under other times", "", retiming.note]
    for ranking in retiming.rankings:
        lines += ["", f"{ranking.title}, {counted(ranking.num_programs, 'program')}:", ""]
        lines += _ranking_table(ranking)
    return lines


def _ranking_table(ranking: Ranking) -> list[str]:
    rows = [
        f"| solver | {' | '.join(ranking.labels)} |",
        f"|{' --- |' * (1 + len(ranking.labels))}",
    ]
    for solver, standings in ranking.lines:
        cells = (f"{s.geometric_mean:.4f} ({s.rank}, {s.losses} losses)" for s in standings)
        rows.append(f"| {solver} | {' | '.join(cells)} |")
    return rows


def _regression_lines(comparison: Comparison) -> list[str]:
    lines = [
        f"The other: {comparison.limits} each, {comparison.settings.model.label}.",
        "",
    ]
    if comparison.retimed:
        lines += [
            "Left out, since their own times (all slow, or production's map) are others now: "
            f"{', '.join(comparison.retimed)}.",
            "",
        ]
    if not comparison.num_compared:
        return [*lines, "Nothing to compare: no program, solver and time limit is in both."]
    if not comparison.regressions:
        return [*lines, f"No regressions among {comparison.num_compared} results."]
    return [
        *lines,
        *(
            f"- {c.program}, {c.solver}: {c.before_seconds * 1e3:.4f} ms before, "
            f"{c.after_seconds * 1e3:.4f} ms now, slower by {c.ratio - 1:.2%}"
            for c in comparison.regressions
        ),
    ]


def _side_by_side(table: SideBySide) -> list[str]:
    rows = [f"| program | {' | '.join(table.solvers)} |", f"|{' --- |' * (1 + len(table.solvers))}"]
    for program, results in table.lines:
        cells = ("-" if r is None else f"{r.speedup:.4f}" for r in results)
        rows.append(f"| {_cell(program)} | {' | '.join(cells)} |")
    return rows


def _result_table(results: Sequence[ProgramResult]) -> list[str]:
    rows = [
        "| program | solver | ms | production ms | speed-up | gap | stalls ms | games | settled s "
        "| seconds | status |",
        f"|{' --- |' * 11}",
    ]
    for r in results:
        gap = "-" if r.gap is None else f"{r.gap:.2%}"
        production = "-" if r.production_seconds is None else f"{r.production_seconds * 1e3:.4f}"
        speedup = "-" if r.speedup is None else f"{r.speedup:.4f}"
        if r.spread is not None:
            speedup += f" ({r.spread[0]:.4f} to {r.spread[1]:.4f})"
        games = f"{r.games_played:,.0f}" if r.games_played else "-"
        settled = "-" if r.settled_seconds is None else f"{r.settled_seconds:.2f}"
        rows.append(
            f"| {_cell(r.program)} | {r.solver} | {r.latency_seconds * 1e3:.4f} "
            f"| {production} | {speedup} | {gap} "
            f"| {r.stall_seconds * 1e3:.4f} | {games} | {settled} | {r.wall_seconds:.2f} "
            f"| {r.status} |"
        )
    return rows


def _cell(name: str) -> str:
    """A name that ends no cell of a table."""
    return name.replace("|", "\\|")
