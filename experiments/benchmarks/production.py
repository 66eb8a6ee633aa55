"""Is production's map what the compiler says it is? One row per corpus program.

    python -m experiments.benchmarks.production [PROGRAM ...]

`valid`: violations of our rules by production's own map. `marked`: accesses whose operands and
results the compiled layouts mark fast; `missed`: of those, not covered by the map, or covered
and not marked. `error`: simulated time of the instructions that state cycles, at production's
placement, over the compiler's cycles, minus one; the times were fitted without that placement
where another compile allows it. `unstated`: share of the simulated time whose instructions state
no cycles. Exit status 1 if a map is invalid or misses an access.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.console import told_in_a_line
from experiments.inputs import LoadedProgram, bundle_beside, load_program
from hlo_graphs import bundle as bundles
from hlo_graphs import corpus
from hlo_graphs.calibration import CalibratedTimes
from hlo_graphs.errors import InputError
from hlo_graphs.parser import read_module
from malloc_game.production import marked_fast
from malloc_game.simulate import fast_accesses, simulate
from malloc_game.validate import validate


@dataclass(frozen=True, slots=True)
class ProductionCheck:
    """One program's row.

    Attributes:
      stated_seconds: simulated, of the instructions that state cycles, repeats included.
      compiler_seconds: the same instructions by the compiler's cycles.
      unstated_seconds: simulated, of the others.
    """

    name: str
    num_violations: int
    num_marked: int
    num_missed: int
    stated_seconds: float
    compiler_seconds: float
    unstated_seconds: float

    @property
    def error(self) -> float:
        """Simulated over compiler, minus one."""
        return self.stated_seconds / self.compiler_seconds - 1 if self.compiler_seconds else 0.0

    @property
    def unstated_share(self) -> float:
        """Part of the simulated time that no cycles vouch for."""
        return self.unstated_seconds / max(self.stated_seconds + self.unstated_seconds, 1e-30)


def check_production(name: str) -> ProductionCheck:
    """Reads production's map of a bundle and compares it with what the compiler printed."""
    loaded = load_program(name)
    bundle = bundle_beside(name)
    if (
        bundle is None
        or bundle.production is None
        or loaded.production_map is None
        or loaded.lowered is None
    ):
        raise InputError(f"{name}: no production answer beside it")
    marked = marked_fast(loaded.lowered, read_module(bundle.production))
    covered = fast_accesses(loaded.program, loaded.production_map)
    stated, compiler, unstated = _times(loaded, bundle)
    return ProductionCheck(
        name=bundle.key,
        num_violations=len(validate(loaded.program, loaded.production_map)),
        num_marked=len(marked),
        num_missed=len(marked ^ covered),
        stated_seconds=stated,
        compiler_seconds=compiler,
        unstated_seconds=unstated,
    )


def model_error(loaded: LoadedProgram, bundle: bundles.Bundle | None) -> float | None:
    """Simulated over compiler time at production's placement, minus one; None if not known.

    Nor if the times were fitted to it, for want of another placement with fast memory.
    """
    if loaded.production_map is None or loaded.lowered is None:
        return None
    if bundle is None or bundle.cycles is None:
        return None
    times = loaded.lowered.times
    if isinstance(times, CalibratedTimes) and times.knows_production:
        return None
    stated, compiler, _ = _times(loaded, bundle)
    return stated / compiler - 1 if compiler else None


def _times(loaded: LoadedProgram, bundle: bundles.Bundle) -> tuple[float, float, float]:
    """Seconds: simulated and by the compiler where cycles are stated, and simulated elsewhere."""
    assert loaded.production_map is not None
    assert loaded.lowered is not None
    assert bundle.cycles is not None
    program = loaded.program
    cycles = bundles.read_cycles(bundle.cycles).production.cycles
    elapsed = simulate(program, loaded.production_map).elapsed_ticks * program.tick_seconds
    repeats = np.array([i.repeat for i in program.instructions])
    replaced = {copy.step for copy in loaded.production_map.replaced_copies}
    known = np.array(
        [i.name in cycles and t not in replaced for t, i in enumerate(program.instructions)]
    )
    stated_cycles = sum(
        i.repeat * cycles[i.name]
        for i, is_known in zip(program.instructions, known, strict=True)
        if is_known
    )
    weighted = repeats * elapsed
    return (
        float(weighted[known].sum()),
        loaded.lowered.chip.seconds(stated_cycles),
        float(weighted[~known].sum()),
    )


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; see the module."""
    parser = argparse.ArgumentParser(prog="production", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="default: the corpus")
    names = parser.parse_args(arguments).programs or list(corpus.names())
    print(f"{'program':32} {'valid':>6} {'marked':>7} {'missed':>7} {'error':>8} {'unstated':>9}")
    rows = []
    for name in names:
        row = check_production(name)
        rows.append(row)
        print(
            f"{row.name:32} {'yes' if not row.num_violations else row.num_violations:>6} "
            f"{row.num_marked:7d} {row.num_missed:7d} {row.error:+8.2%} {row.unstated_share:9.2%}",
            flush=True,
        )
    stated, compiler = (
        sum(getattr(r, f"{w}_seconds") for r in rows) for w in ("stated", "compiler")
    )
    worst = max(rows, key=lambda row: abs(row.error))
    overall = stated / compiler - 1
    print(f"\nover all {len(rows)}: {overall:+.2%}; worst {worst.name} {worst.error:+.2%}")
    return int(any(row.num_violations or row.num_missed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
