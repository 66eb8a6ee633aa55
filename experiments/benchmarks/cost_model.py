"""How well the cost models foretell the compiler's cycles: the table in `docs/times.md`.

For every bundle: the compiler's cycles at production's placement, summed over the instructions
that state them, against what a model says of the same placement without having seen it. Models:
the plain roofline, the two-point roofline between the all-slow time and the floor, the pipeline
form from the same two points, and the pipeline corrected by the other compiles of the bundle.
`--fit` fits the pipeline's shared coefficients again, each program judged by coefficients fitted
on the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from hlo_graphs import corpus
from hlo_graphs.bundle import Bundle, CyclePoint, CycleTable, bundle_in, read_cycles, read_points
from hlo_graphs.calibration import (
    COMPILER_FORM,
    PipelineForm,
    calibrated_times,
    placements_of,
    slow_leaves,
)
from hlo_graphs.chips import Chip, find_chip
from hlo_graphs.hlo import HloModule
from hlo_graphs.live_range import flatten_schedule
from hlo_graphs.parser import read_module
from hlo_graphs.times import LeafKey, StepTimes, Times, analytic_times, takes_no_time


@dataclass(frozen=True)
class Case:
    """A bundle, read."""

    name: str
    module: HloModule
    chip: Chip
    table: CycleTable
    points: tuple[CyclePoint, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """One instruction at production's placement, in seconds."""

    predicted_seconds: float
    stated_seconds: float


@dataclass(frozen=True, slots=True)
class Score:
    """A model on a program.

    Attributes:
      total_error: predicted over stated total, minus one.
      median_error: median over instructions of |predicted / stated - 1|, each weighted by its
        stated time.
      spread: sum of |predicted - stated| over the stated total.
    """

    total_error: float
    median_error: float
    spread: float


def read_case(bundle: Bundle) -> Case | None:
    """The bundle's module and cycles; None if it states no cycles or no placements."""
    if bundle.cycles is None or bundle.chip is None:
        return None
    chip = find_chip(bundle.chip)
    module = read_module(bundle.before)
    table = read_cycles(bundle.cycles)
    if table.production.placements is None:
        if bundle.production is None:
            return None
        placed = read_module(bundle.production)
        found = placements_of(module, placed, chip.fast_memory_space)
        cycles = {k: v for k, v in table.production.cycles.items() if k in found}
        production = replace(table.production, cycles=cycles, placements=found)
        table = replace(table, production=production)
    points = read_points(bundle.points) if bundle.points else ()
    return Case(bundle.key, module, chip, table, points)


def judge(case: Case, times: Times) -> list[Judged]:
    """What `times` says of production's placement beside the compiler's cycles."""
    production = case.table.production
    judged: list[Judged] = []
    for computation in case.module.computations.values():
        for instruction in computation.instructions:
            name = instruction.name
            if name not in production.cycles or name not in case.table.none.cycles:
                continue
            step = times.step(computation.name, name)
            seconds = step.elapsed_seconds(_slow_keys(case, name, step))
            judged.append(Judged(seconds, case.chip.seconds(production.cycles[name])))
    return judged


def _slow_keys(case: Case, name: str, step: StepTimes) -> tuple[LeafKey, ...]:
    placement = (case.table.production.placements or {}).get(name)
    keys = tuple(step.leaves)
    if placement is None:
        return keys
    slow = slow_leaves(placement)
    if len(slow) != len(keys):
        raise ValueError(f"{case.name}: {name} has {len(keys)} leaves, its placement {len(slow)}")
    return tuple(key for key, is_slow in zip(keys, slow, strict=True) if is_slow)


def score(judged: Sequence[Judged]) -> Score:
    """Sums up the errors; `judged` must not be empty."""
    stated = sum(item.stated_seconds for item in judged)
    predicted = sum(item.predicted_seconds for item in judged)
    distance = sum(abs(item.predicted_seconds - item.stated_seconds) for item in judged)
    return Score(predicted / stated - 1.0, _weighted_median(judged), distance / stated)


def _weighted_median(judged: Sequence[Judged]) -> float:
    errors = sorted(
        (abs(item.predicted_seconds / item.stated_seconds - 1.0), item.stated_seconds)
        for item in judged
    )
    half, passed = sum(weight for _, weight in errors) / 2, 0.0
    for error, weight in errors:
        passed += weight
        if passed >= half:
            return error
    return 0.0


def unstated_share(case: Case, times: Times) -> float:
    """Part of the all-slow time, every step once, that instructions without cycles make up."""
    stated = unstated = 0.0
    for position in flatten_schedule(case.module).positions:
        if takes_no_time(position.instruction.opcode):
            continue
        step = times.step(position.computation, position.instruction.name)
        stated += step.all_slow_seconds if step.stated else 0.0
        unstated += 0.0 if step.stated else step.all_slow_seconds
    return unstated / (stated + unstated) if stated + unstated else 0.0


# --- the models ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TwoPointTimes:
    """max(floor, slow time x slow bytes / all bytes), from the same two figures."""

    exact: Times
    name: str = "two-point"
    num_lanes: int = 2

    def step(self, computation: str, instruction: str) -> StepTimes:
        """See `Times.step`."""
        step = self.exact.step(computation, instruction)
        total_bytes = sum(leaf.size_bytes for leaf in step.leaves.values())
        leaves = {
            key: replace(
                leaf,
                lane_seconds=(0.0, step.all_slow_seconds * leaf.size_bytes / max(1, total_bytes)),
            )
            for key, leaf in step.leaves.items()
        }
        return StepTimes((step.all_fast_seconds, 0.0), leaves, step.stated)


def models(case: Case, form: PipelineForm = COMPILER_FORM) -> dict[str, Times]:
    """The models compared, by name; none has seen production's placement."""
    anchored = calibrated_times(case.module, case.table, case.chip, form=form)
    corrected = calibrated_times(case.module, case.table, case.chip, case.points, form=form)
    return {
        "analytic": analytic_times(case.module, case.chip),
        "two-point": TwoPointTimes(anchored),
        "pipeline": anchored,
        "pipeline + points": corrected,
    }


# --- fitting the shared coefficients -------------------------------------------------------------

_START = (1.0, 0.1, 0.5, 0.5)


def fit(cases: Sequence[Case]) -> PipelineForm:
    """Coefficients with the least sum of |predicted - stated| over all cases and placements."""

    def loss(values: Sequence[float]) -> float:
        form = _form(values)
        return sum(
            score(judge(_as_production(case, point), _anchored(case, form))).spread
            for case in cases
            for point in (case.table.production, *case.points)
        )

    options = {"maxfev": 120, "xatol": 0.01, "fatol": 1e-4}
    found = minimize(loss, _START, method="Nelder-Mead", options=options)
    return _form(found.x)


def _anchored(case: Case, form: PipelineForm) -> Times:
    return calibrated_times(case.module, case.table, case.chip, form=form)


def _as_production(case: Case, point: CyclePoint) -> Case:
    return replace(case, table=replace(case.table, production=point))


def _form(values: Sequence[float]) -> PipelineForm:
    streaming, exposed, power, ratio = (float(value) for value in values)
    return PipelineForm(
        streaming=max(0.1, streaming),
        exposed=max(0.0, exposed),
        reread_power=max(0.0, power),
        overlap_ratio=min(0.95, max(0.0, ratio)),
    )


# --- what is printed -----------------------------------------------------------------------------


def table_of(cases: Sequence[Case], form_of: Callable[[Case], PipelineForm]) -> Table:
    """One line per program, one for all together; columns per model: total error, spread."""
    table = Table(title="Cycles at production's placement, not fitted on it", title_justify="left")
    for column in ("program", "instructions", "Mcycles", "unstated", "floors"):
        table.add_column(column, justify="left" if column == "program" else "right")
    together: dict[str, list[Judged]] = {}
    for case in cases:
        compared = models(case, form_of(case))
        judged = {name: judge(case, times) for name, times in compared.items()}
        for name, items in judged.items():
            if name not in together:
                table.add_column(f"{name}: total, spread, median", justify="right")
            together.setdefault(name, []).extend(items)
        stated = [item.stated_seconds for item in next(iter(judged.values()))]
        table.add_row(
            case.name,
            str(len(stated)),
            f"{sum(stated) * case.chip.clock_hz / 1e6:.2f}",
            f"{unstated_share(case, compared['pipeline']):.1%}",
            "huge" if case.table.huge else "points" if case.points else "production",
            *(_text(score(items)) for items in judged.values()),
        )
    counted = len(next(iter(together.values())))
    table.add_row("all", str(counted), "", "", "", *(_text(score(x)) for x in together.values()))
    return table


def _text(found: Score) -> str:
    return f"{found.total_error:+.1%} {found.spread:.1%} {found.median_error:.1%}"


def _bundles(directories: Sequence[Path]) -> Iterator[Bundle]:
    if not directories:
        yield from (corpus.bundle(name) for name in corpus.names())
    for directory in directories:
        for path in sorted(directory.glob("*.before.hlo.gz")):
            yield bundle_in(directory, path.name.removesuffix(".before.hlo.gz"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table for the corpus, or for the bundles of the directories given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directories", nargs="*", type=Path, help="bundles; default: the corpus")
    parser.add_argument("--fit", action="store_true", help="fit the coefficients, leave one out")
    options = parser.parse_args(arguments)
    cases = [case for case in map(read_case, _bundles(options.directories)) if case is not None]
    console = Console(width=200)
    if not cases:
        console.print("no bundle here states cycles; make some with `malloc-game extract`")
        return
    if not options.fit:
        console.print(table_of(cases, lambda _: COMPILER_FORM))
        return
    left_out = {case.name: fit([c for c in cases if c is not case]) for case in cases}
    console.print(table_of(cases, lambda case: left_out[case.name]))
    console.print(f"fitted on all: {fit(cases)}")


if __name__ == "__main__":
    main()
