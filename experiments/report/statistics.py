"""Figures of an evaluation: speed-ups with intervals, wins and losses, gaps, profiles.

A difference from production under half a percent is a tie; a win is *safe* if it is larger than the
cost model's own error on that program (docs/evaluate.md, "The report").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experiments.results import Row
from solvers.solver import Status

TIE = 0.005
"""Relative difference from production that counts as none."""

HEADROOM = 0.005
"""A program has headroom if production is more than this above the best bound."""

SETTLED = 5e-5
"""Relative distance from its last latency within which a solver has found it."""

RESAMPLES = 10_000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """One solver on one program, its seeds put together by the median latency.

    A seed with which a solver gave nothing leaves the program in slow memory: that is its latency.

    Attributes:
      solver: its name; in a table with several time limits or numbers of processes, with those.
      row: of the seed whose latency is nearest to the median, for its map.
      production_seconds: None where production's map is not known.
      settled_seconds: after which the latency did not improve by more than `SETTLED`; median over
        the seeds; None where a seed's anytime curve was not kept.
      games_played: median over the seeds; 0 if the solver plays none.
      speedup: production's latency over the solver's; None where that is not known.
      spread: least and greatest speed-up of a seed; None where `speedup` is, or with one seed.
      gap: latency over the best bound any solver proved, minus one; None without a bound.
      production_gap: the same of production.
      model_error: of the times at production's placement; None where it is not known.
      status: of all seeds; where they differ, the least that can be said of all; "1 of 3 failed".
      failures: seeds that gave nothing.
    """

    program: str
    solver: str
    family: str
    split: str
    is_native: bool
    row: Row
    latency_seconds: float
    production_seconds: float | None
    stall_seconds: float
    wall_seconds: float
    settled_seconds: float | None
    games_played: float
    status: str
    speedup: float | None
    spread: tuple[float, float] | None
    gap: float | None
    production_gap: float | None
    model_error: float | None
    failures: int

    @property
    def outcome(self) -> str:
        """ "win", "tie" or "loss" against production; "unknown" without its map."""
        if self.speedup is None:
            return "unknown"
        if abs(self.speedup - 1) < TIE:
            return "tie"
        return "win" if self.speedup > 1 else "loss"

    @property
    def is_safe_win(self) -> bool:
        """A win larger than the model's own error on the program, which must be known."""
        if self.model_error is None or self.speedup is None or self.outcome != "win":
            return False
        return self.speedup - 1 > abs(self.model_error)

    @property
    def has_headroom(self) -> bool:
        """Whether production is known, and far enough above the bound for anything to be shown."""
        if self.production_seconds is None:
            return False
        return self.production_gap is None or self.production_gap > HEADROOM


@dataclass(frozen=True, slots=True)
class Summary:
    """One solver over several programs; intervals are (low, high) at 95 %."""

    solver: str
    num_programs: int
    geometric_mean: float
    geometric_interval: tuple[float, float]
    median: float
    median_interval: tuple[float, float]
    wins: int
    safe_wins: int
    ties: int
    losses: int
    failures: int
    median_gap: float | None
    median_wall_seconds: float


def program_results(
    rows: Iterable[Row], label: Callable[[Row], str] | None = None
) -> list[ProgramResult]:
    """Per program and solver. Left out are programs that no task could load.

    Args:
      rows: of one table.
      label: what a row's solver is called, `labels(rows)` if None.
    """
    rows = list(rows)
    bounds = best_bounds(rows)
    label = label or labels(rows)
    known = rows_with_times(rows)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.program, label(row)), []).append(row)
    results = (
        _result(solver, group, bounds.get(program), known.get(program))
        for (program, solver), group in groups.items()
    )
    return sorted((r for r in results if r is not None), key=lambda r: (r.program, r.solver))


def rows_with_times(rows: Iterable[Row]) -> dict[str, Row]:
    """Per program a row that says what it takes with everything slow, and under production."""
    return {row.program: row for row in rows if row.all_slow_seconds is not None}


def labels(rows: Iterable[Row]) -> Callable[[Row], str]:
    """What to call the solver of a row: with its time limit and processes if those differ."""
    rows = list(rows)
    several_limits = len({row.time_limit_seconds for row in rows}) > 1
    several_workers = len({row.workers_per_task for row in rows}) > 1

    def label(row: Row) -> str:
        limit = f", {row.time_limit_seconds:g} s" if several_limits else ""
        workers = f", cores {row.workers_per_task}" if several_workers else ""
        return f"{row.solver}{limit}{workers}"

    return label


def best_bounds(rows: Iterable[Row]) -> dict[str, float]:
    """Per program the highest certified bound in seconds."""
    bounds: dict[str, float] = {}
    for row in rows:
        if row.lower_bound_seconds is not None:
            bounds[row.program] = max(bounds.get(row.program, 0.0), row.lower_bound_seconds)
    return bounds


def _result(
    solver: str, rows: Sequence[Row], bound: float | None, known: Row | None
) -> ProgramResult | None:
    """One result from a solver's rows of one program, whose own times `known` says."""
    answers = [row for row in rows if row.latency_seconds is not None]
    failures = len(rows) - len(answers)
    seeds = answers
    if known is not None:
        seeds = [row if row in answers else _all_slow(row, known) for row in rows]
    if not seeds:
        return None
    latencies = [row.latency_seconds or 0.0 for row in seeds]
    latency = float(np.median(latencies))
    middle = min(answers or seeds, key=lambda row: abs((row.latency_seconds or 0.0) - latency))
    production = middle.production_seconds
    spread = None
    if production is not None and len(seeds) > 1:
        spread = (_ratio(production, max(latencies)), _ratio(production, min(latencies)))
    return ProgramResult(
        program=middle.program,
        solver=solver,
        family=middle.family,
        split=middle.split,
        is_native=middle.is_native,
        row=middle,
        latency_seconds=latency,
        production_seconds=production,
        stall_seconds=float(np.median([row.stall_seconds or 0.0 for row in seeds])),
        wall_seconds=float(np.median([row.wall_seconds or 0.0 for row in seeds])),
        settled_seconds=_settled_seconds(seeds),
        games_played=float(np.median([row.games_played or 0 for row in seeds])),
        status=_status_of(rows, failures),
        speedup=None if production is None else _ratio(production, latency),
        spread=spread,
        gap=None if not bound else latency / bound - 1,
        production_gap=None if not bound or production is None else production / bound - 1,
        model_error=middle.model_error,
        failures=failures,
    )


def _status_of(rows: Sequence[Row], failures: int) -> str:
    if 0 < failures < len(rows):
        return f"{failures} of {len(rows)} failed"
    found = {row.status for row in rows}
    return found.pop() if len(found) == 1 else Status.FEASIBLE.value


def _settled_seconds(seeds: Sequence[Row]) -> float | None:
    """Median over the seeds of the moment at which the curve came to its end; see `SETTLED`."""
    moments = [
        [
            moment
            for moment, found, _ in row.curve
            if found is not None and found <= (row.latency_seconds or 0.0) * (1 + SETTLED)
        ]
        for row in seeds
    ]
    if not all(moments):
        return None
    return float(np.median([min(of_seed) for of_seed in moments]))


def _ratio(one: float, other: float) -> float:
    """`one / other`; 1 for a program that takes no time at all."""
    if one == other:
        return 1.0
    return one / other if other else math.inf


def _all_slow(failed: Row, known: Row) -> Row:
    """A failed row with what is known of its program: everything stays in slow memory."""
    return replace(
        failed,
        latency_seconds=known.all_slow_seconds,
        all_slow_seconds=known.all_slow_seconds,
        production_seconds=known.production_seconds,
        model_error=known.model_error,
    )


def shared_results(results: Iterable[ProgramResult]) -> list[ProgramResult]:
    """Those of the programs that every solver ran on: only over these do their means compare."""
    results = list(results)
    solvers = {result.solver for result in results}
    ran: dict[str, set[str]] = {}
    for result in results:
        ran.setdefault(result.program, set()).add(result.solver)
    return [result for result in results if ran[result.program] == solvers]


def summarise(results: Sequence[ProgramResult], *, seed: int = 0) -> list[Summary]:
    """Per solver, over those of the programs given whose production is known, the best first."""
    by_solver: dict[str, list[ProgramResult]] = {}
    for result in results:
        if result.speedup is not None:
            by_solver.setdefault(result.solver, []).append(result)
    summaries = [_summary(solver, group, seed) for solver, group in by_solver.items()]
    return sorted(summaries, key=lambda summary: -summary.geometric_mean)


def _summary(solver: str, results: Sequence[ProgramResult], seed: int) -> Summary:
    speedups = np.array([result.speedup for result in results], dtype=np.float64)
    gaps = [result.gap for result in results if result.gap is not None]
    outcomes = [result.outcome for result in results]
    return Summary(
        solver=solver,
        num_programs=len(results),
        geometric_mean=float(geometric_means(speedups)),
        geometric_interval=bootstrap(speedups, geometric_means, seed),
        median=float(medians(speedups)),
        median_interval=bootstrap(speedups, medians, seed),
        wins=outcomes.count("win"),
        safe_wins=sum(result.is_safe_win for result in results),
        ties=outcomes.count("tie"),
        losses=outcomes.count("loss"),
        failures=sum(result.failures for result in results),
        median_gap=float(np.median(gaps)) if gaps else None,
        median_wall_seconds=float(np.median([result.wall_seconds for result in results])),
    )


Floats = NDArray[np.float64]


def geometric_means(values: Floats) -> Floats:
    """exp of the mean logarithm along the last axis."""
    means: Floats = np.exp(np.log(values).mean(axis=-1))
    return means


def medians(values: Floats) -> Floats:
    """Median along the last axis."""
    found: Floats = np.median(values, axis=-1)
    return found


def bootstrap(
    values: Floats, statistic: Callable[[Floats], Floats], seed: int
) -> tuple[float, float]:
    """Percentile interval at 95 % of a statistic over resampled programs."""
    generator = np.random.default_rng(seed)
    samples = generator.choice(values, size=(RESAMPLES, len(values)))
    low, high = np.percentile(statistic(samples), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class ProfileLine:
    """A performance profile: share of programs within each factor of the best latency."""

    solver: str
    factors: tuple[float, ...]
    shares: tuple[float, ...]


def performance_profile(results: Sequence[ProgramResult]) -> list[ProfileLine]:
    """Per solver (and production) how often it is within a factor of the best (Dolan, Moré).

    Production's shares are of the programs on which it is known.
    """
    latencies: dict[str, dict[str, float]] = {}
    for result in results:
        if result.production_seconds is not None:
            latencies.setdefault("production", {})[result.program] = result.production_seconds
        latencies.setdefault(result.solver, {})[result.program] = result.latency_seconds
    programs = sorted({result.program for result in results})
    best = {p: min(times[p] for times in latencies.values() if p in times) for p in programs}
    lines = []
    for solver, times in latencies.items():
        ratios = sorted(_ratio(times.get(p, math.inf), best[p]) for p in programs)
        finite = [ratio for ratio in ratios if math.isfinite(ratio)]
        count = len(times) if solver == "production" else len(programs)
        shares = tuple((i + 1) / count for i in range(len(finite)))
        lines.append(ProfileLine(solver, tuple(finite), shares))
    return lines


@dataclass(frozen=True, slots=True)
class AnytimeLine:
    """Median over programs of the gap to the best bound (of several seeds their median), against
    solver time."""

    solver: str
    seconds: tuple[float, ...]
    gaps: tuple[float, ...]


def anytime_curves(
    rows: Iterable[Row], programs: Collection[str], seconds: Sequence[float]
) -> list[AnytimeLine]:
    """Per solver with curves the median gap at each moment, over some programs.

    A row without a curve of its own, as of a task that failed, has found nothing better than
    everything slow.
    """
    rows = list(rows)
    bounds = best_bounds(rows)
    known = rows_with_times(rows)
    label = labels(rows)
    by_solver: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.program not in programs or not bounds.get(row.program):
            continue
        if row.latency_seconds is None and row.program not in known:
            continue
        seed = row if row.latency_seconds is not None else _all_slow(row, known[row.program])
        by_solver.setdefault(label(row), {}).setdefault(row.program, []).append(seed)

    def median_gap(of_solver: Mapping[str, Sequence[Row]], moment: float) -> float:
        gaps = [_gap_at(seeds, bounds[name], moment) for name, seeds in of_solver.items()]
        return float(np.median(gaps))

    return [
        AnytimeLine(solver, tuple(seconds), tuple(median_gap(found, at) for at in seconds))
        for solver, found in by_solver.items()
        if any(row.curve for seeds in found.values() for row in seeds)
    ]


def _gap_at(seeds: Sequence[Row], bound: float, moment: float) -> float:
    """The gap of the best map known at a moment, the median of the seeds; everything slow until
    the first."""
    gaps = []
    for row in seeds:
        known = [found for at, found, _ in row.curve if found is not None and at <= moment]
        latency = min(known) if known else row.all_slow_seconds
        gaps.append(math.inf if latency is None else latency / bound - 1)
    return float(np.median(gaps))


@dataclass(frozen=True, slots=True)
class Change:
    """One program and solver in two tables."""

    program: str
    solver: str
    before_seconds: float
    after_seconds: float

    @property
    def ratio(self) -> float:
        """After over before: above 1 is slower than it was."""
        return _ratio(self.after_seconds, self.before_seconds)


def retimed_programs(before: Iterable[Row], after: Iterable[Row]) -> tuple[str, ...]:
    """Programs that take another time now with everything slow, or under production's map.

    The program, its cost model or the simulator has changed: no solver's doing.
    """
    old, new = rows_with_times(before), rows_with_times(after)
    return tuple(
        sorted(
            name for name in old.keys() & new.keys() if old[name].own_times != new[name].own_times
        )
    )


def compare(before: Iterable[Row], after: Iterable[Row]) -> list[Change]:
    """Programs and solvers in both tables with the same limits, the worst regression first.

    Without those whose own times have changed.
    """
    before, after = list(before), list(after)
    retimed = retimed_programs(before, after)
    before = [row for row in before if row.program not in retimed]
    after = [row for row in after if row.program not in retimed]
    label = labels([*before, *after])
    old = {(r.program, r.solver): r.latency_seconds for r in program_results(before, label)}
    changes = [
        Change(r.program, r.solver, old[r.program, r.solver], r.latency_seconds)
        for r in program_results(after, label)
        if (r.program, r.solver) in old
    ]
    return sorted(changes, key=lambda change: -change.ratio)


REGRESSION = 0.005
"""A latency that grew by more than this is named as a regression."""


def regressions(changes: Iterable[Change]) -> list[Change]:
    """The changes for the worse that are worth naming."""
    return [change for change in changes if change.ratio > 1 + REGRESSION]
