"""How well the cost models foretell the compiler's cycles: the table in `docs/times.md`.

For every bundle: the compiler's cycles at production's placement, summed over the instructions
that state them, against what a model says of the same placement without having seen it (but for
bundles without another compile that shows fast memory: `floors from` says production). Models:
the plain roofline, the two-point roofline between the all-slow time and the floor, the pipeline
form from the same two points, and the pipeline corrected by the other compiles of the bundle.
`--fit` fits the pipeline's shared coefficients again, on the corpus' training families alone.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.optimize import minimize

from experiments.console import told_in_a_line
from hlo_graphs import corpus
from hlo_graphs.bundle import Bundle, CyclePoint, CycleTable, bundle_in, read_cycles, read_points
from hlo_graphs.calibration import (
    COMPILER_FORM,
    CalibratedTimes,
    PipelineForm,
    StatedInstruction,
    calibrated_times,
    pipeline_times,
    placements_of,
    slow_leaves,
)
from hlo_graphs.chips import Chip, find_chip
from hlo_graphs.errors import InputError
from hlo_graphs.hlo import HloModule
from hlo_graphs.live_range import flatten_schedule
from hlo_graphs.parser import read_module
from hlo_graphs.times import StepTimes, Times, analytic_times, takes_no_time


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
    """One instruction at production's placement, in seconds.

    `unseen`: no compile that was fitted on shows this placement of this instruction, nor of one
    that is costed like it. Nothing is where production's own cycles were fitted for want of
    another compile: the floors are theirs.
    """

    predicted_seconds: float
    stated_seconds: float
    unseen: bool = True


@dataclass(frozen=True, slots=True)
class Score:
    """A model on a program.

    Attributes:
      total_error: predicted over stated total, minus one.
      spread: sum of |predicted - stated| over the stated total.
      median_error: of |predicted / stated - 1|, half of the stated time lying on either side.
    """

    total_error: float
    spread: float
    median_error: float


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
    knows_production = isinstance(times, CalibratedTimes) and times.knows_production
    judged: list[Judged] = []
    for computation in case.module.computations.values():
        for instruction in computation.instructions:
            name = instruction.name
            if name not in production.cycles or name not in case.table.none.cycles:
                continue
            step = times.step(computation.name, name)
            slow = _slow(case, name, step)
            keys = tuple(key for key, is_slow in zip(step.leaves, slow, strict=True) if is_slow)
            stated_seconds = case.chip.seconds(production.cycles[name])
            unseen = not knows_production and slow not in _fitted_placements(times, name)
            judged.append(Judged(step.elapsed_seconds(keys), stated_seconds, unseen))
    return judged


def _slow(case: Case, name: str, step: StepTimes) -> tuple[bool, ...]:
    placement = (case.table.production.placements or {}).get(name)
    slow = (True,) * len(step.leaves) if placement is None else slow_leaves(placement)
    if len(slow) != len(step.leaves):
        raise InputError(
            f"{case.name}: {name} has {len(step.leaves)} leaves, its placement {len(slow)}"
        )
    return slow


def _fitted_placements(times: Times, name: str) -> frozenset[tuple[bool, ...]]:
    if not isinstance(times, CalibratedTimes) or name not in times.stated:
        return frozenset()
    return frozenset(seen.slow for seen in times.stated[name].observations)


def score(judged: Sequence[Judged]) -> Score:
    """Sums up the errors; `judged` must not be empty."""
    stated = sum(item.stated_seconds for item in judged)
    predicted = sum(item.predicted_seconds for item in judged)
    distance = sum(abs(item.predicted_seconds - item.stated_seconds) for item in judged)
    return Score(predicted / stated - 1.0, distance / stated, _weighted_median(judged))


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
    """The models compared, by name; none has seen production's placement if there is another."""
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


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of the compiler's to be foretold from an instruction's two anchors alone.

    `count`: how often it occurs; the layers of a network are costed alike.
    """

    stated: StatedInstruction
    slow: tuple[bool, ...]
    seconds: float
    count: int


def targets_of(case: Case) -> list[Target]:
    """Every placement of every instruction that production or another compile shows."""
    times = calibrated_times(case.module, case.table, case.chip, case.points, with_production=True)
    anchored = calibrated_times(case.module, case.table, case.chip).stated
    counts = Counter(anchored[name].signature for name in times.stated)
    alike = {anchored[name].signature: stated for name, stated in times.stated.items()}
    return [
        Target(replace(anchored[stated.name], observations=()), seen.slow, seen.seconds, count)
        for signature, count in counts.items()
        for stated in (alike[signature],)
        for seen in stated.observations
        if any(seen.slow)
    ]


def fit(cases: Sequence[Sequence[Target]]) -> PipelineForm:
    """Coefficients with the least |predicted - stated|, every program weighing the same."""

    def loss(values: Sequence[float]) -> float:
        form = _form(values)
        return sum(_spread(targets, form) for targets in cases)

    options = {"maxfev": 100, "xatol": 0.01, "fatol": 1e-4}
    found = minimize(loss, _START, method="Nelder-Mead", options=options)
    return _form(found.x)


def _spread(targets: Sequence[Target], form: PipelineForm) -> float:
    distance = total = 0.0
    for target in targets:
        step = pipeline_times(target.stated, form)
        keys = (key for key, slow in zip(step.leaves, target.slow, strict=True) if slow)
        error = step.elapsed_seconds(tuple(keys)) - target.seconds
        distance += target.count * abs(error)
        total += target.count * target.seconds
    return distance / total if total else 0.0


def _form(values: Sequence[float]) -> PipelineForm:
    streaming, exposed, power, ratio = (float(value) for value in values)
    return PipelineForm(
        streaming=max(0.1, streaming),
        exposed=max(0.0, exposed),
        reread_power=max(0.0, power),
        overlap_ratio=min(0.95, max(0.0, ratio)),
    )


# --- what is printed -----------------------------------------------------------------------------


HEADER = (
    "program",
    "split",
    "instructions",
    "Mcycles",
    "states none",
    "floors from",
    "analytic",
    "two-point",
    "pipeline",
    "pipeline + points",
    "unseen: share, spread, median",
)


def rows_of(cases: Sequence[Case], form: PipelineForm) -> Iterator[tuple[str, ...]]:
    """The table's lines: one per program, then the sums; each model as total error / spread."""
    sums: dict[str, dict[str, list[Judged]]] = {}
    for case in cases:
        compared = models(case, form)
        judged = {name: judge(case, times) for name, times in compared.items()}
        side = side_of(case.name)
        for name, items in judged.items():
            for group in (side, "all"):
                sums.setdefault(group, {}).setdefault(name, []).extend(items)
        yield (
            case.name,
            side,
            str(len(judged["pipeline"])),
            f"{sum(case.table.production.cycles.values()) / 1e6:.2f}",
            f"{unstated_share(case, compared['pipeline']):.1%}",
            "1 GiB" if case.table.huge else "points" if case.points else "production",
            *_scores(judged),
        )
    for group in sorted(sums, reverse=True):
        yield (f"all {group}".removesuffix(" all"), "", *[""] * 4, *_scores(sums[group]))


def side_of(name: str) -> str:
    """The side of the corpus' split a program is on; "-" for programs outside of it."""
    try:
        return corpus.family_of(name).split
    except InputError:
        return "-"


def _scores(judged: Mapping[str, Sequence[Judged]]) -> Iterator[str]:
    for items in judged.values():
        found = score(items)
        yield f"{found.total_error:+.1%} / {found.spread:.1%}"
    last = judged["pipeline + points"]
    unseen = [item for item in last if item.unseen]
    time_share = sum(i.stated_seconds for i in unseen) / sum(i.stated_seconds for i in last)
    if not unseen:
        yield "0.0%, -, -"
        return
    found = score(unseen)
    yield f"{time_share:.1%}, {found.spread:.1%}, {found.median_error:.1%}"


def markdown(rows: Iterable[tuple[str, ...]]) -> str:
    """The table as Markdown, as it stands in the documentation."""
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, *rows)]
    lines.insert(1, "|" + " --- |" * len(HEADER))
    return "\n".join(lines)


TABLE_START, TABLE_END = "<!-- corpus table -->\n", "\n<!-- end of corpus table -->"
"""What stands around the table in `docs/times.md`."""


def write_into(page: Path, table: str) -> None:
    """Puts `table` between the marks of `page`.

    Raises:
      InputError: if the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    before, start, rest = text.partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    if not start or not end:
        raise InputError(f"{page}: no {TABLE_START.strip()} ... {TABLE_END.strip()} to write into")
    page.write_text(before + start + table + end + after, encoding="utf-8")


def _bundles(directories: Sequence[Path]) -> Iterator[Bundle]:
    if not directories:
        yield from (corpus.bundle(name) for name in corpus.names())
    for directory in directories:
        for path in sorted(directory.glob("*.before.hlo.gz")):
            yield bundle_in(directory, path.name.removesuffix(".before.hlo.gz"))


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table for the corpus, or for the bundles of the directories given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directories", nargs="*", type=Path, help="bundles; default: the corpus")
    parser.add_argument("--fit", action="store_true", help="fit the coefficients first")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into PAGE too")
    options = parser.parse_args(arguments)
    cases = [case for case in map(read_case, _bundles(options.directories)) if case is not None]
    if not cases:
        raise SystemExit("no bundle here states cycles; make some with `malloc-game extract`")
    form = COMPILER_FORM
    if options.fit:
        form = fit([targets_of(case) for case in cases if side_of(case.name) == "train"])
        print(f"fitted on the training families: {form}\n")
    table = markdown(rows_of(cases, form))
    print(table)
    if options.write is not None:
        write_into(options.write, table)


if __name__ == "__main__":
    main()
