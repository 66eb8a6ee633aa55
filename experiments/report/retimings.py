"""Does the ranking survive other times? Every stored map timed again, nothing solved again.

A map is an answer to one cost model. Timed under another it shows what is left of its gain if
that other model is the right one, not what the solver would reach if it were told so: copies that
were hidden behind long steps stall behind short ones. Production's map, made with the compiler's
own costs, is timed again the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from experiments.folder import map_path
from experiments.inputs import LoadedProgram, has_cycles, load_map, load_program
from experiments.parallel import Say, on_all_processors
from experiments.report.statistics import (
    ProgramResult,
    labels,
    program_results,
    shared_results,
    summarise,
)
from experiments.results import Key, Row, TimeModel
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import Simulation, simulate
from malloc_game.validate import check

SAME = 1e-9
"""Relative difference under which a latency counts as reproduced."""


STANDARD = (
    TimeModel("calibrated", "deadline", "bytes"),
    TimeModel("analytic", "deadline", "bytes"),
    TimeModel("calibrated", "fifo", "bytes"),
    TimeModel("calibrated", "deadline", "slow"),
)
"""The models every report shows."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One solver under one model: geometric mean of its speed-ups, rank by it, and losses.

    The rank is one more than the solvers whose mean is higher in its first four digits.
    """

    geometric_mean: float
    rank: int
    losses: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every solver under every model over the same programs.

    Attributes:
      title: which programs.
      num_programs: how many.
      labels: of the models; the first is the one that the maps were made for.
      lines: (solver, its standing under each model), the best under the first model first.
    """

    title: str
    num_programs: int
    labels: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Standing, ...]], ...]

    @property
    def moved(self) -> tuple[str, ...]:
        """Solvers that do not keep their rank under every model."""
        return tuple(
            solver for solver, standings in self.lines if len({s.rank for s in standings}) > 1
        )


@dataclass(frozen=True, slots=True)
class Retiming:
    """An evaluation's maps under other models.

    Attributes:
      rankings: over the programs with headroom that every solver ran on, native and reduced
        capacities apart.
      changed: rows whose stored latency is no longer what the first model gives: the cost model
        or the simulator has changed since the table was made.
      missing: rows whose map is not in the folder; with any, there are no rankings.
      without_cycles: programs that only have some of the models, and are in no ranking.
    """

    rankings: tuple[Ranking, ...]
    changed: tuple[Row, ...]
    missing: tuple[Row, ...]
    without_cycles: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What the rankings mean, and what is wrong with them."""
        if self.missing:
            return (
                f"Not shown: {len(self.missing)} maps are not in the folder, that of "
                f"{self.missing[0].program} by {self.missing[0].solver} first."
            )
        meaning = _MEANING if self.rankings else _NOTHING
        said = (meaning, self._moves(), self._leaves_out(), self._changes())
        return " ".join(filter(None, said))

    def _leaves_out(self) -> str:
        if not self.without_cycles:
            return ""
        return (
            "Left out, having no compiler's cycles to be timed with: "
            f"{', '.join(self.without_cycles)}."
        )

    def _moves(self) -> str:
        moved = dict.fromkeys(solver for ranking in self.rankings for solver in ranking.moved)
        if not self.rankings or not moved:
            return "" if not self.rankings else "No solver changes its rank."
        return f"Ranks change: {', '.join(moved)}."

    def _changes(self) -> str:
        if not self.changed:
            return ""
        return (
            f"{len(self.changed)} latencies of the table are no longer what its own times give, "
            f"{self.changed[0].program} by {self.changed[0].solver} first: the cost model or the "
            "simulator has changed since."
        )


_MEANING = (
    "Geometric mean of production's latency over the solver's (rank; programs lost to production). "
    "Every stored map is only timed again, in the first column with the times it was made for; "
    "nothing is solved again. A map made for one cost model is no answer to another: the other "
    "columns show what is left of its gain if that model is the right one (copies hidden behind "
    "steps that are long in one model stall behind steps that are short in the other), not what "
    "the solver would reach if it were given that model. Production's map, made with the "
    "compiler's own costs, is timed again in the same way."
)

_NOTHING = (
    "Not shown: no program that every solver ran on has production's map to compare with, headroom "
    "below it, and all of these times."
)


def models_for(own: TimeModel) -> tuple[TimeModel, ...]:
    """The models of a report: the evaluation's own first."""
    return (own, *(model for model in STANDARD if model != own))


def retime(
    directory: Path,
    rows: Sequence[Row],
    results: Sequence[ProgramResult],
    own: TimeModel,
    say: Say | None = None,
) -> Retiming:
    """Times every stored map under every model.

    Args:
      directory: of the evaluation, with its maps.
      rows: its table.
      results: of that table; says which programs have headroom.
      own: the model that the evaluation used.
      say: told how far it is.

    Raises:
      InputError: for a map that cannot be read.
      InvalidMapError: for a stored map that breaks a rule.
    """
    solved = [row for row in rows if row.latency_seconds is not None]
    missing = tuple(row for row in solved if not map_path(directory, row).exists())
    if missing:
        return Retiming((), (), missing)
    models = models_for(own)
    if not solved:
        return Retiming((), (), ())
    tables = {
        model: table for model, table in retimed_rows(directory, rows, models, say).items() if table
    }
    again = {row.key: row for row in tables.get(own, ())}
    for row in solved:
        if row.key not in again:
            raise InputError(
                f"{row.source}: cannot be timed as in the table any more ({own.label}): are its "
                "cycles gone?"
            )
    changed = tuple(row for row in solved if not _is_same(row, again[row.key]))
    everywhere = set.intersection(*({row.program for row in table} for table in tables.values()))
    without = sorted({row.program for row in solved} - everywhere)
    rankings = _rankings(tables, [r for r in results if r.program in everywhere])
    return Retiming(rankings, changed, (), tuple(without))


def retimed_rows(
    directory: Path,
    rows: Iterable[Row],
    models: Sequence[TimeModel],
    say: Say | None = None,
) -> dict[TimeModel, list[Row]]:
    """The rows with the times of each model; of the solvers' own claims nothing is kept.

    Programs without the compiler's cycles have no rows under a model that asks for them, those
    that no solver could do none at all: perhaps they cannot even be read.
    """
    by_source: dict[str, list[Row]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row)
    by_source = {
        source: group
        for source, group in by_source.items()
        if any(row.latency_seconds is not None for row in group)
    }
    work = partial(_of_one_program, directory, models)
    found = on_all_processors(work, list(by_source.items()), "programs timed again", say)
    return {
        model: [row for tables in found for row in tables[number]]
        for number, model in enumerate(models)
    }


def _of_one_program(
    directory: Path, models: Sequence[TimeModel], group: tuple[str, Sequence[Row]]
) -> list[list[Row]]:
    """The rows of one program under each model."""
    source, rows = group
    loaded: dict[tuple[str, str], LoadedProgram] = {}
    possible = [m for m in models if m.times == "analytic" or has_cycles(source)]
    for model in possible:
        key = (model.times, model.busy)
        if key not in loaded:
            loaded[key] = load_program(source, times=model.times, busy=model.busy)
    any_times = next(iter(loaded.values())).program
    maps = {
        row.key: load_map(map_path(directory, row), any_times)
        for row in rows
        if row.latency_seconds is not None
    }
    for memory_map in maps.values():  # Whether a map is valid does not depend on any times.
        check(any_times, memory_map)
    return [
        _retimed_group(rows, maps, loaded[model.times, model.busy], model)
        if model in possible
        else []
        for model in models
    ]


def _retimed_group(
    rows: Sequence[Row], maps: Mapping[Key, MemoryMap], loaded: LoadedProgram, model: TimeModel
) -> list[Row]:
    known = loaded.production_map
    production = None if known is None else simulate(loaded.program, known, model.copy_order)
    return [_retimed(row, maps.get(row.key), loaded.program, production, model) for row in rows]


def _retimed(
    row: Row,
    memory_map: MemoryMap | None,
    program: Program,
    production: Simulation | None,
    model: TimeModel,
) -> Row:
    plain = replace(
        row,
        times=model.times,
        copy_order=model.copy_order,
        busy=model.busy,
        all_slow_seconds=program.all_slow_seconds,
        production_seconds=None if production is None else production.latency_seconds,
        production_stall_seconds=None if production is None else production.stall_seconds,
        lower_bound_seconds=None,
        curve=(),
    )
    if memory_map is None:
        return plain
    simulation = simulate(program, memory_map, model.copy_order)
    return replace(
        plain,
        latency_seconds=simulation.latency_seconds,
        stall_seconds=simulation.stall_seconds,
    )


def _is_same(row: Row, again: Row) -> bool:
    before, now = row.latency_seconds, again.latency_seconds
    return before is not None and now is not None and math.isclose(before, now, rel_tol=SAME)


def _rankings(
    tables: Mapping[TimeModel, Sequence[Row]], results: Sequence[ProgramResult]
) -> tuple[Ranking, ...]:
    """The chips' own capacities and reduced ones apart, as judged under the first model."""
    found = []
    shared = [r for r in shared_results(results) if r.has_headroom]
    for title, is_native in (("The chips' own capacity", True), ("Reduced capacity", False)):
        programs = {r.program for r in shared if r.is_native == is_native}
        if programs:
            found.append(ranking(title, tables, programs))
    return tuple(found)


def ranking(title: str, tables: Mapping[TimeModel, Sequence[Row]], programs: set[str]) -> Ranking:
    """The solvers' standings over some programs under each model."""
    label = labels(row for rows in tables.values() for row in rows)
    standings = [_standings(rows, programs, label) for rows in tables.values()]
    return Ranking(
        title=title,
        num_programs=len(programs),
        labels=tuple(model.label for model in tables),
        lines=tuple(
            (solver, tuple(column[solver] for column in standings)) for solver in standings[0]
        ),
    )


def _standings(
    rows: Iterable[Row], programs: set[str], label: Callable[[Row], str]
) -> dict[str, Standing]:
    """Means that look the same as printed share a rank."""
    summaries = summarise([r for r in program_results(rows, label) if r.program in programs])
    shown = {summary.solver: round(summary.geometric_mean, 4) for summary in summaries}
    return {
        summary.solver: Standing(
            summary.geometric_mean,
            1 + sum(mean > shown[summary.solver] for mean in shown.values()),
            summary.losses,
        )
        for summary in summaries
    }
