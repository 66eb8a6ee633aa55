"""What a report says, before it is written down: every table and chart of an evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.folder import TableSettings, read_settings
from experiments.parallel import Say
from experiments.report.charts import Chart, charts
from experiments.report.retimings import Retiming, retime
from experiments.report.statistics import (
    Change,
    ProgramResult,
    Summary,
    compare,
    program_results,
    regressions,
    retimed_programs,
    shared_results,
    summarise,
)
from experiments.results import Row, TimeModel, read_rows
from hlo_graphs.errors import InputError


@dataclass(frozen=True, slots=True)
class Section:
    """One table of summaries with what it covers."""

    title: str
    note: str
    summaries: tuple[Summary, ...]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Speed-ups over production, a line a program and a column a solver.

    Attributes:
      solvers: the best in the geometric mean first.
      lines: (program, its result by each solver, None where the solver did not run on it).
    """

    solvers: tuple[str, ...]
    lines: tuple[tuple[str, tuple[ProgramResult | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """This table beside another.

    Attributes:
      settings: of the other table.
      num_compared: programs and solvers that both have.
      retimed: programs left out, since they take another time by themselves than they did there.
      regressions: those that became slower.
    """

    settings: TableSettings
    num_compared: int
    retimed: tuple[str, ...]
    regressions: tuple[Change, ...]

    @property
    def limits(self) -> str:
        """The other table's time limits."""
        return limits_of(self.settings)


@dataclass(frozen=True, slots=True)
class Report:
    """All that is told of an evaluation.

    Attributes:
      settings: what its table was made with.
      num_programs: in the table.
      codes: per digest of the sources that made its rows, the solvers they are of.
      processors: those its rows were made on, each with its solvers.
      sections: summaries over groups of programs.
      retiming: the maps under other times.
      charts: drawn.
      side_by_side: speed-ups of all solvers.
      results: every program and solver.
      failures: rows without a result.
      comparison: with another table, if one was given.
    """

    settings: TableSettings
    num_programs: int
    codes: Mapping[str, tuple[str, ...]]
    processors: Mapping[str, tuple[str, ...]]
    sections: tuple[Section, ...]
    retiming: Retiming
    charts: tuple[Chart, ...]
    side_by_side: SideBySide
    results: tuple[ProgramResult, ...]
    failures: tuple[Row, ...]
    comparison: Comparison | None

    @property
    def title(self) -> str:
        """What it is about: "Memory maps of 43 programs, 5 s each"."""
        programs = counted(self.num_programs, "program")
        return f"Memory maps of {programs}, {limits_of(self.settings)} each"


def report_of(directory: Path, other: Path | None = None, say: Say | None = None) -> Report:
    """Everything there is to say of an evaluation's folder; `say` is told how far it is.

    Raises:
      InputError: if a folder holds no evaluation, or the other's maps are timed differently.
    """
    rows = read_rows(directory)
    settings = read_settings(directory)
    results = program_results(rows)
    comparison = None if other is None else _comparison(other, rows, settings.model)
    return Report(
        settings=settings,
        num_programs=len({row.program for row in rows}),
        codes=_solvers_by(rows, lambda row: row.code),
        # Older rows tell no processor, their table does.
        processors=_solvers_by(rows, lambda row: row.processor or settings.machine["processor"]),
        sections=tuple(sections(results)),
        retiming=retime(directory, rows, results, settings.model, say),
        charts=tuple(charts(rows, results)),
        side_by_side=side_by_side(results),
        results=tuple(results),
        failures=tuple(row for row in rows if row.error is not None),
        comparison=comparison,
    )


def _solvers_by(
    rows: Sequence[Row], maker_of: Callable[[Row], str]
) -> Mapping[str, tuple[str, ...]]:
    solvers = defaultdict[str, set[str]](set)
    for row in rows:
        solvers[maker_of(row)].add(row.solver)
    return {name: tuple(sorted(found)) for name, found in sorted(solvers.items())}


def side_by_side(results: Sequence[ProgramResult]) -> SideBySide:
    """The results of all programs whose production is known."""
    known = [result for result in results if result.speedup is not None]
    solvers = tuple(summary.solver for summary in summarise(known))
    by_program: dict[str, dict[str, ProgramResult]] = {}
    for result in known:
        by_program.setdefault(result.program, {})[result.solver] = result
    return SideBySide(
        solvers,
        tuple(
            (program, tuple(found.get(solver) for solver in solvers))
            for program, found in sorted(by_program.items())
        ),
    )


def _comparison(other: Path, rows: Sequence[Row], model: TimeModel) -> Comparison:
    settings = read_settings(other)
    if settings.model != model:
        raise InputError(
            f"{other}: its maps are timed as {settings.model.label}, these as {model.label}: "
            "their latencies do not compare"
        )
    before = read_rows(other)
    changes = compare(before, rows)
    retimed = retimed_programs(before, rows)
    return Comparison(settings, len(changes), retimed, tuple(regressions(changes)))


def counted(number: int, noun: str) -> str:
    """A number of things: "1 family", "2 families"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def limits_of(settings: TableSettings) -> str:
    """The time limits of all runs, for people: "5 s" or "5, 10 and 60 s"."""
    *others, last = sorted({run.time_limit_seconds for run in settings.runs})
    first = ", ".join(f"{limit:g}" for limit in others)
    return f"{first} and {last:g} s" if first else f"{last:g} s"


def sections(results: Sequence[ProgramResult]) -> list[Section]:
    """Programs with headroom at the chip's own capacity and at reduced ones apart, then all.

    If not every solver ran on every program, the programs that they share come first.
    """
    known = [r for r in results if r.production_seconds is not None]
    open_ones = [r for r in known if r.has_headroom]
    shared = shared_results(open_ones)
    groups = [
        ("The chips' own capacity, programs with headroom", [r for r in open_ones if r.is_native]),
        ("Reduced capacity, programs with headroom", [r for r in open_ones if not r.is_native]),
        ("Test families, programs with headroom", [r for r in open_ones if r.split == "test"]),
        ("All programs whose production is known", known),
    ]
    if len(shared) < len(open_ones):
        groups.insert(0, ("Programs with headroom that every solver ran on", shared))
    return [
        Section(title, _note(group), tuple(summarise(group))) for title, group in groups if group
    ]


def _note(results: Sequence[ProgramResult]) -> str:
    programs = {result.program for result in results}
    families = {result.family for result in results}
    note = f"{counted(len(programs), 'program')} of {counted(len(families), 'family')}."
    if len(shared_results(results)) < len(results):
        note += " Not every solver ran on all of them: these means do not compare."
    unknown = {result.program for result in results if result.production_gap is None}
    if unknown:
        note += f" Of {len(unknown)} no bound is known, nor whether there is headroom."
    return note
