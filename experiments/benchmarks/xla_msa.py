"""Does `xla-msa` decide as production's compiler does? One row per corpus program.

    python -m experiments.benchmarks.xla_msa [PROGRAM ...]
    python -m experiments.benchmarks.xla_msa --tune SECONDS [--seed N]

`order`: share of the buffers that are ranked as in production's own table, to 10 % and one
factor for all; `alike`: share of the accesses that both maps serve from the same memory;
`fast`: share that is fast, ours and production's; `latency`: ours over production's, both
simulated; `stalls`: share of the latency, ours and production's; `seconds`: of the solver. Sums
are over the programs at their chip's own capacity and at less, for the train and the test side of
the split.

`--tune` searches options on the train side only: random draws and changes of the best so far,
for agreement less half the mean distance of the latencies. It prints each improvement.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experiments.console import told_in_a_line
from experiments.inputs import load_program
from hlo_graphs import corpus
from hlo_graphs.bundle import Bundle, read_bufferinfo
from hlo_graphs.program import Program
from malloc_game.simulate import fast_access_mask, simulate
from malloc_game.validate import check
from solvers.msa_algorithm import assign
from solvers.msa_options import ElapsedModel, MsaOptions
from solvers.msa_problem import MsaProblem
from solvers.msa_program import memory_map_of, problem_of
from solvers.xla_msa import TUNED

LATENCY_WEIGHT = 0.5
"""Of the mean distance of the latencies' logarithms, against the share placed alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A program with what production did.

    Attributes:
      name: corpus name.
      program: the program.
      fast: [A] accesses that production serves fast.
      latency_ticks: of production's map.
      stall_share: of that.
      benefits: what production ranked buffers by, where its table says.
    """

    name: str
    program: Program
    fast: NDArray[np.bool_]
    latency_ticks: float
    stall_share: float
    benefits: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One program's figures: `order` is a share of buffers, `latency` is over production's, other
    shares are of accesses."""

    name: str
    order: float
    alike: float
    fast: float
    reference_fast: float
    latency: float
    stall_share: float
    reference_stall_share: float
    seconds: float


def references(names: Sequence[str]) -> Iterator[Reference]:
    """Programs with production's answer; those without one are left out."""
    for name in names:
        bundle = corpus.bundle(name)
        loaded = load_program(name)
        if loaded.production_map is None:
            print(f"{name}: no production answer beside it, left out", file=sys.stderr)
            continue
        simulation = simulate(loaded.program, loaded.production_map)
        yield Reference(
            name=name,
            program=loaded.program,
            fast=fast_access_mask(loaded.program, loaded.production_map),
            latency_ticks=simulation.latency_ticks,
            stall_share=simulation.stall_ticks / simulation.latency_ticks,
            benefits=production_benefits(loaded.program, bundle),
        )


def production_benefits(program: Program, bundle: Bundle) -> dict[int, float]:
    """Per buffer of the program what production ranked it by, if the bundle has its table."""
    if bundle.bufferinfo is None:
        return {}
    buffer_of = {name: b for b, buffer in enumerate(program.buffers) for name in buffer.values}
    return {
        buffer_of[str(row.name)]: row.benefit
        for row in read_bufferinfo(bundle.bufferinfo)
        if not row.is_scoped and str(row.name) in buffer_of
    }


def ranked_alike(problem: MsaProblem, benefits: Mapping[int, float]) -> float:
    """Share of the buffers with the same benefit, to 10 % and one factor; 1 where none is known.

    The factor is the median: production's units are not stated.
    """
    pairs = np.array(
        [
            (benefits[b.id], b.boundedness / math.sqrt(max(b.content_bytes, 1)))
            for b in problem.buffers
            if b.id in benefits
        ]
    ).reshape(-1, 2)
    both = (pairs > 0).all(axis=1)
    if not both.any():
        return 1.0
    theirs, ours = pairs.T
    scaled = ours * np.median(theirs[both] / ours[both])
    return float((np.abs(theirs - scaled) <= 0.1 * np.abs(theirs)).mean())


def compare(reference: Reference, options: MsaOptions) -> Row:
    """Runs the assignment and compares; raises if its map is invalid."""
    started = time.perf_counter()
    problem = problem_of(reference.program, options)
    made = memory_map_of(reference.program, assign(problem, options))
    seconds = time.perf_counter() - started
    check(reference.program, made)
    fast = fast_access_mask(reference.program, made)
    simulation = simulate(reference.program, made)
    return Row(
        name=reference.name,
        order=ranked_alike(problem, reference.benefits),
        alike=float((fast == reference.fast).mean()),
        fast=float(fast.mean()),
        reference_fast=float(reference.fast.mean()),
        latency=simulation.latency_ticks / reference.latency_ticks,
        stall_share=simulation.stall_ticks / simulation.latency_ticks,
        reference_stall_share=reference.stall_share,
        seconds=seconds,
    )


# -- the report -------------------------------------------------------------------------------


def print_rows(rows: Sequence[Row]) -> None:
    """The table and, per side of the split, its sums."""
    head = f"{'program':34} {'split':5} {'order':>6} {'alike':>6} {'fast':>13} {'latency':>8}"
    print(f"{head} {'stalls':>13} {'seconds':>8}")
    for row in rows:
        print(
            f"{row.name:34} {corpus.family_of(row.name).split:5} {row.order:6.1%} {row.alike:6.1%} "
            f"{row.fast:6.1%}/{row.reference_fast:6.1%} {row.latency:8.3f} "
            f"{row.stall_share:6.2%}/{row.reference_stall_share:6.2%} {row.seconds:8.2f}"
        )
    print()
    for side in ("train", "test"):
        for what, reduced in (("own capacity", False), ("reduced", True)):
            found = [
                row
                for row in rows
                if corpus.family_of(row.name).split == side and ("MiB" in row.name) == reduced
            ]
            _print_sums(f"{side}, {what}", found)
        _print_sums(f"{side}, all", [r for r in rows if corpus.family_of(r.name).split == side])


def _print_sums(title: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    order = sum(row.order for row in rows) / len(rows)
    alike = sum(row.alike for row in rows) / len(rows)
    latency = geometric_mean([row.latency for row in rows])
    near = sum(abs(math.log(row.latency)) <= math.log(1.03) for row in rows)
    print(
        f"{title:22} {len(rows):3} programs: order {order:.1%}, alike {alike:.1%}, latency over "
        f"production's {latency:.3f} (geometric mean), within 3 % on {near}"
    )


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


# -- tuning -----------------------------------------------------------------------------------

CHOICES: dict[str, tuple[object, ...]] = {
    "elapsed_model": tuple(ElapsedModel),
    "large_buffer_scaling": ("SQRT", "NO_SCALE"),
    "min_overlap": (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0),
    "preferred_overlap": (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0),
    "max_overlap": (4.0, 8.0, 10.0, 16.0, 30.0, 60.0, 100.0, 300.0),
    "size_override_bytes": (None, None, None, 6_000_000),
    "max_retries": (1, 2, 3),
    "max_repacks": (0, 0, 5, 20, 100),
    "inefficient_use_to_copy_ratio": (0.0, 0.25, 0.5, 0.75, 1.0),
    "max_outstanding_prefetches": (-1, -1, 20, 60),
    "max_outstanding_evictions": (-1, -1, 10, 40),
    "enforce_prefetch_fifo_order": (False, False, True),
    "enable_cross_program_prefetch_freeing": (True, False),
}
"""What the search chooses from: options that OpenXLA leaves to its backend.

Not the copies' share of the bandwidth: its production value, 1, is documented.
"""

PICKER_FIELDS = ("min_overlap", "preferred_overlap", "max_overlap", "size_override_bytes")

REDRAW = 0.25
"""Chance of drawing everything anew, and of changing each option otherwise."""


def tune(seconds: float, seed: int) -> MsaOptions:
    """The best options found on the train side within a time; prints each improvement."""
    generator = random.Random(seed)
    train = list(references(corpus.split().train))
    best, best_choice, best_score = TUNED, choice_of(TUNED), objective(TUNED, train)
    print(f"{best_score:.4f} as it is, {len(train)} programs", flush=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        choice = dict(best_choice)
        anew = generator.random() < REDRAW
        for name, values in CHOICES.items():
            if anew or generator.random() < REDRAW:
                choice[name] = generator.choice(values)
        options = options_of(choice)
        score = objective(options, train)
        if score > best_score:
            best, best_choice, best_score = options, choice, score
            print(f"{score:.4f} {choice}", flush=True)
    return best


def choice_of(options: MsaOptions) -> dict[str, object]:
    """The values that the search may change, by name."""
    return {
        name: getattr(options.picker if name in PICKER_FIELDS else options, name)
        for name in CHOICES
    }


def options_of(choice: dict[str, object]) -> MsaOptions:
    """Options from values by name; the preferred overlap is at least the least one."""
    picker = replace(TUNED.picker, **{k: choice[k] for k in PICKER_FIELDS})  # type: ignore[arg-type]
    preferred = max(picker.preferred_overlap, picker.min_overlap)
    others = {k: v for k, v in choice.items() if k not in PICKER_FIELDS}
    picker = replace(picker, preferred_overlap=preferred)
    return replace(TUNED, picker=picker, **others)  # type: ignore[arg-type]


def objective(options: MsaOptions, train: Sequence[Reference]) -> float:
    """Mean share placed alike, less the weighted mean distance of the latencies."""
    rows = [compare(reference, options) for reference in train]
    alike = sum(row.alike for row in rows) / len(rows)
    return alike - LATENCY_WEIGHT * sum(abs(math.log(row.latency)) for row in rows) / len(rows)


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or tunes; see the module."""
    parser = argparse.ArgumentParser(
        prog="xla_msa", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="default: the corpus")
    parser.add_argument("--tune", type=float, metavar="SECONDS", help="search options instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.tune is not None:
        print(tune(given.tune, given.seed))
        return 0
    names = given.programs or corpus.names()
    print_rows([compare(reference, TUNED) for reference in references(names)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
