"""Times from the compiler's own cycle estimates, for placements it was never asked about.

The TPU compiler states `estimated_cycles` for most instructions, for the placement it compiled
(docs/times.md). Compiled without fast memory that is an instruction's all-slow time N; the least
over the compiles is its floor F, taken for the all-fast time. A *pipeline* of two lanes says what
lies between:

    compute  =  F  + sum over slow leaves of a little (the first and last tile, which nothing hides)
    memory   =  M0 + sum over slow leaves of their share of N - M0

The memory lane meets N exactly. Its base M0 is F for work that does not overlap with transfers
(everything but matrix products, in the compiler's estimates) and less where the matrix units set
the floor. What each leaf takes of N - M0: an output its bytes at streaming speed, then an operand
likewise, and what is left over is the operands of the matrix product being read again for every
tile of the result. Further compiles of the same program (`points`) correct these shares for the
instructions they show in between. `docs/times.md` gives the errors on placements not fitted on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.bundle import CyclePoint, CycleTable, Placement
from hlo_graphs.chips import CHIPS, Chip
from hlo_graphs.errors import InputError
from hlo_graphs.fusion_costs import matrix_operands
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule
from hlo_graphs.times import (
    AnalyticTimes,
    LeafKey,
    LeafTimes,
    StepTimes,
    TwoLaneTimes,
    analytic_times,
)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PipelineForm:
    """The coefficients that all instructions of all programs share.

    Attributes:
      streaming: slow seconds of one undisturbed pass over a leaf, per second of bytes / bandwidth.
      exposed: the part of a pass that not even a compute-bound instruction hides.
      reread_power: how the repeated reads divide among the operands of a matrix product:
        in proportion to size to this power (0 = evenly, 1 = by size).
      overlap_ratio: transfers begin to overlap with the matrix units where their time is this
        part of the floor; at 1 all of it overlaps.
    """

    streaming: float = 1.11
    exposed: float = 0.07
    reread_power: float = 0.2
    overlap_ratio: float = 0.65

    def overlapped_seconds(self, floor_seconds: float, matrix_seconds: float) -> float:
        """F - M0: the part of the floor during which transfers can proceed."""
        ratio = min(1.0, matrix_seconds / floor_seconds) if floor_seconds > 0 else 0.0
        hidden = max(0.0, (ratio - self.overlap_ratio) / (1.0 - self.overlap_ratio))
        return floor_seconds * hidden


COMPILER_FORM = PipelineForm()
"""Fitted on the corpus' training families (`python -m experiments.benchmarks.cost_model --fit`)."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The compiler's figure for one placement.

    Attributes:
      slow: per leaf, in the order of `times.leaf_keys`, whether it lay in slow memory.
      seconds: what the compiler stated.
    """

    slow: tuple[bool, ...]
    seconds: float


@dataclass(frozen=True)
class StatedInstruction:
    """An instruction whose cycles are stated, in numbers.

    Attributes:
      name: of the instruction.
      keys: its array leaves; the arrays below have one entry for each.
      sizes_bytes: bytes moved.
      bus_seconds: bytes / slow memory's bandwidth.
      is_output: written, not read.
      is_matrix: an operand that reaches the matrix units.
      is_copy: the instruction is a plain copy.
      matrix_seconds: the matrix units' own time.
      slow_seconds: N, with everything in slow memory.
      floor_seconds: F, the least over the compiles used.
      observations: what the compiles used say, placement by placement.
    """

    name: str
    keys: tuple[LeafKey, ...]
    sizes_bytes: tuple[int, ...]
    bus_seconds: Array
    is_output: NDArray[np.bool_]
    is_matrix: NDArray[np.bool_]
    is_copy: bool
    matrix_seconds: float
    slow_seconds: float
    floor_seconds: float
    observations: tuple[Observation, ...] = ()

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for instructions that the compiler costs alike: the layers of a network."""
        return (
            self.is_copy,
            self.keys,
            self.sizes_bytes,
            tuple(self.is_matrix),
            self.slow_seconds,
            self.matrix_seconds,
        )

    @property
    def is_seen_all_fast(self) -> bool:
        """Whether a compile shows it with nothing slow: then its floor needs no likeness."""
        return any(not any(seen.slow) for seen in self.observations)


class CalibratedTimes(TwoLaneTimes):
    """The compiler's figures where it states them, the analytic ones elsewhere.

    Args:
      analytic: stands in, and gives the bytes.
      stated: by instruction name.
      form: the shared coefficients.
      knows_production: whether production's own cycles are among what was fitted.
    """

    name = "calibrated"

    def __init__(
        self,
        analytic: AnalyticTimes,
        stated: Mapping[str, StatedInstruction],
        form: PipelineForm,
        *,
        knows_production: bool,
    ) -> None:
        super().__init__()
        self.knows_production = knows_production
        self.analytic = analytic
        self.stated = stated
        self.form = form
        self._alike: dict[tuple[object, ...], StepTimes] = {}

    def _work_out(self, computation: str, instruction: str) -> StepTimes:
        plain = self.analytic.step(computation, instruction)
        stated = self.stated.get(instruction)
        if stated is None or set(stated.keys) != set(plain.leaves):
            return _streaming(plain, self.form)
        return replace(self._pipeline(stated), compute_seconds=plain.compute_seconds)

    def _pipeline(self, stated: StatedInstruction) -> StepTimes:
        """Worked out once for all instructions that are costed alike (and so share everything)."""
        shared = (stated.signature, stated.floor_seconds)
        if shared not in self._alike:
            self._alike[shared] = pipeline_times(stated, self.form)
        return self._alike[shared]


def calibrated_times(
    module: HloModule,
    table: CycleTable,
    chip: Chip,
    points: Sequence[CyclePoint] = (),
    *,
    with_production: bool = False,
    form: PipelineForm = COMPILER_FORM,
) -> CalibratedTimes:
    """Times of `module` on `chip` from the compiler's cycles.

    Args:
      module: the program before memory-space assignment.
      table: the bundle's cycles.
      chip: of the bundle; gives the clock, and the analytic times of what states no cycles.
      points: further compiles of the same program, with other placements.
      with_production: learn from the production compile too. Off by default, so that the error
        at production's placement is an error on a placement that was not fitted. Where no other
        compile shows fast memory at all, production's cycles still give the floors.
      form: the shared coefficients.

    Raises:
      InputError: if the cycles are those of another chip.
    """
    _check_chip(table, chip)
    analytic = analytic_times(module, chip)
    used = [table.none, *([table.huge] if table.huge else []), *points]
    has_other = len(used) > 1
    if with_production:
        used.append(table.production)
    elif not has_other:
        used.append(replace(table.production, placements=None))
    stated = list(_read_stated(analytic, table.none, used, chip))
    return CalibratedTimes(
        analytic,
        {item.name: item for item in _pooled(stated)},
        form,
        knows_production=with_production or not has_other,
    )


def _check_chip(table: CycleTable, chip: Chip) -> None:
    if table.meta is None or table.meta.chip not in CHIPS:
        return
    compiled = CHIPS[table.meta.chip]
    same_clock = compiled.clock_hz == chip.clock_hz
    if not same_clock or compiled.slow_bytes_per_second != chip.slow_bytes_per_second:
        raise InputError(
            f"the cycles are those of {compiled.name}, the chip is {chip.name}, with another clock "
            f"or another memory: choose {compiled.name}, or analytic times, or a bundle compiled "
            f"for {chip.name}"
        )


# --- what the compiler states --------------------------------------------------------------------


def _read_stated(
    analytic: AnalyticTimes, none: CyclePoint, used: Sequence[CyclePoint], chip: Chip
) -> Iterable[StatedInstruction]:
    module = analytic.costs.module
    for computation in module.computations.values():
        for instruction in computation.instructions:
            if instruction.name in none.cycles:
                yield _stated(analytic, computation, instruction, none, used, chip)


def _stated(
    analytic: AnalyticTimes,
    computation: HloComputation,
    instruction: HloInstruction,
    none: CyclePoint,
    used: Sequence[CyclePoint],
    chip: Chip,
) -> StatedInstruction:
    name = instruction.name
    times = analytic.step(computation.name, name)
    cost = analytic.costs.cost(computation.name, name)
    matrix = matrix_operands(analytic.costs, computation.name, name)
    keys = tuple(times.leaves)
    slow_cycles = none.cycles[name]
    floor_cycles = min(point.cycles.get(name, slow_cycles) for point in used)
    return StatedInstruction(
        name=name,
        keys=keys,
        sizes_bytes=tuple(times.leaves[key].size_bytes for key in keys),
        bus_seconds=np.array([times.leaves[key].bus_seconds for key in keys], dtype=np.float64),
        is_output=np.array([key[0] == "output" for key in keys], dtype=bool),
        is_matrix=np.array(
            [key[0] == "operand" and (key[1], key[2]) in matrix for key in keys], dtype=bool
        ),
        is_copy=instruction.opcode == "copy",
        matrix_seconds=cost.matrix_flops / chip.matrix_flops_per_second(cost.matrix_type),
        slow_seconds=chip.seconds(slow_cycles),
        floor_seconds=chip.seconds(floor_cycles),
        observations=tuple(_observations(name, len(keys), used, chip)),
    )


def _observations(
    name: str, count: int, used: Sequence[CyclePoint], chip: Chip
) -> Iterable[Observation]:
    for point in used:
        if point.placements is None or name not in point.cycles:
            continue
        placement = point.placements.get(name)
        slow = (True,) * count if placement is None else slow_leaves(placement)
        if len(slow) == count:
            yield Observation(slow, chip.seconds(point.cycles[name]))


def slow_leaves(placement: Placement) -> tuple[bool, ...]:
    """Per leaf, operands first, whether a placement leaves it in slow memory."""
    return tuple(character == "0" for character in placement.operands + placement.outputs)


def _pooled(stated: Sequence[StatedInstruction]) -> Iterable[StatedInstruction]:
    """Instructions that are costed alike share their observations, and the least floor.

    What is seen all fast keeps its own: unlike work may agree in all that is told here.
    """
    groups: dict[tuple[object, ...], list[StatedInstruction]] = defaultdict(list)
    for item in stated:
        groups[item.signature].append(item)
    for group in groups.values():
        floor_seconds = min(item.floor_seconds for item in group)
        seen = tuple(dict.fromkeys(seen for item in group for seen in item.observations))
        for item in group:
            own_seconds = item.floor_seconds if item.is_seen_all_fast else floor_seconds
            yield replace(item, floor_seconds=own_seconds, observations=seen)


# --- the pipeline of one instruction -------------------------------------------------------------


def pipeline_times(stated: StatedInstruction, form: PipelineForm) -> StepTimes:
    """The two lanes of a stated instruction; together exact at all slow and at all fast."""
    overlapped = form.overlapped_seconds(stated.floor_seconds, stated.matrix_seconds)
    base_seconds = stated.floor_seconds - overlapped
    shares = memory_shares(stated, stated.slow_seconds - base_seconds, form)
    base_seconds, shares = _corrected(stated, base_seconds, shares)
    exposed = _exposed(stated, shares, form)
    total_bus = float(stated.bus_seconds.sum())
    shrink = min(1.0, stated.slow_seconds / total_bus) if total_bus > 0 else 1.0
    leaf_times: dict[LeafKey, LeafTimes] = {}
    for position, key in enumerate(stated.keys):
        lanes = (float(exposed[position]), float(shares[position]))
        bus_seconds = float(stated.bus_seconds[position]) * shrink
        leaf_times[key] = LeafTimes(stated.sizes_bytes[position], bus_seconds, lanes)
    return StepTimes((stated.floor_seconds, base_seconds), leaf_times, stated=True)


def memory_shares(stated: StatedInstruction, available_seconds: float, form: PipelineForm) -> Array:
    """Divides the memory lane's time among the leaves; the sum is `available_seconds`."""
    bus = stated.bus_seconds
    if stated.is_copy:
        return _divided(available_seconds, bus)
    writes = form.streaming * bus * stated.is_output
    reads = form.streaming * bus * ~stated.is_output
    left_seconds = available_seconds - float(writes.sum())
    if left_seconds <= 0:
        return _divided(available_seconds, writes)
    rest_seconds = left_seconds - float(reads.sum())
    if rest_seconds <= 0:
        return writes + _divided(left_seconds, reads)
    weights = stated.is_matrix * bus**form.reread_power
    for candidate in (weights, reads, writes, np.ones_like(bus)):
        if candidate.sum() > 0:
            return writes + reads + _divided(rest_seconds, candidate)
    return writes + reads


def _divided(seconds: float, weights: Array) -> Array:
    total = float(weights.sum())
    if total > 0:
        return weights * (seconds / total)
    return np.full_like(weights, seconds / len(weights)) if len(weights) else weights


def _exposed(stated: StatedInstruction, shares: Array, form: PipelineForm) -> Array:
    """What the compute lane adds per slow leaf; never lifts it over the all-slow time."""
    room_seconds = stated.slow_seconds - stated.floor_seconds
    total = float(shares.sum())
    limit = shares * (room_seconds / total) if total > 0 else np.zeros_like(shares)
    return np.minimum(form.exposed * stated.bus_seconds, limit)


_PRIOR_WEIGHT = 0.03
"""How firmly the shares hold to the form where observations contradict it."""

_ANCHOR_WEIGHT = 100.0
"""How firmly base and shares together hold to the all-slow time."""

_AT_FLOOR = 1.005
"""An observation up to this many floors says only that the memory lane is no longer."""


def _corrected(
    stated: StatedInstruction, base_seconds: float, shares: Array
) -> tuple[float, Array]:
    """Moves the memory lane towards what the compiler stated for placements in between.

    Least squares with non-negative shares, pulled weakly to the form's: an observation above the
    floor is met, one at the floor only bounds the lane from above.
    """
    between = [seen for seen in stated.observations if any(seen.slow) and not all(seen.slow)]
    if not between or stated.slow_seconds <= 0:
        return base_seconds, shares
    unit = stated.slow_seconds
    prior = np.concatenate([[base_seconds], shares]) / unit
    solution = prior
    for _ in range(2):
        rows = [_equation(seen, solution, stated) for seen in between]
        used = [row for row in rows if row is not None]
        if not used:
            return base_seconds, shares
        solution = _solve(used, prior, stated.floor_seconds / unit)
    base = float(solution[0]) * unit
    return base, _divided(stated.slow_seconds - base, solution[1:])


def _equation(
    seen: Observation, solution: Array, stated: StatedInstruction
) -> tuple[Array, float] | None:
    row = np.concatenate([[1.0], np.array(seen.slow, dtype=np.float64)])
    target = seen.seconds / stated.slow_seconds
    at_floor = seen.seconds <= _AT_FLOOR * stated.floor_seconds
    return None if at_floor and float(row @ solution) <= target else (row, target)


def _solve(equations: Sequence[tuple[Array, float]], prior: Array, most_base: float) -> Array:
    """Non-negative least squares for base and shares, as parts of the all-slow time."""
    from scipy.optimize import nnls  # slow to import, and only cycles need it

    matrix = np.vstack(
        [
            _ANCHOR_WEIGHT * np.ones((1, len(prior))),
            np.array([row for row, _ in equations]),
            _PRIOR_WEIGHT * np.eye(len(prior)),
        ]
    )
    targets = np.concatenate(
        [[_ANCHOR_WEIGHT], [target for _, target in equations], _PRIOR_WEIGHT * prior]
    )
    solution, _ = nnls(matrix, targets)
    if solution[0] <= most_base:
        return np.asarray(solution, dtype=np.float64)
    shares, _ = nnls(matrix[:, 1:], targets - most_base * matrix[:, 0])
    return np.concatenate([[most_base], shares])


# --- what the compiler does not state ------------------------------------------------------------


def _streaming(plain: StepTimes, form: PipelineForm) -> StepTimes:
    """The analytic time with slow accesses at the streaming speed that stated ones show."""
    scaled = {
        key: replace(
            leaf, lane_seconds=tuple(form.streaming * seconds for seconds in leaf.lane_seconds)
        )
        for key, leaf in plain.leaves.items()
    }
    return replace(plain, leaves=scaled)


def placements_of(before: HloModule, placed: HloModule, memory_space: int) -> dict[str, Placement]:
    """Where a compiled module put the leaves of each instruction, by name.

    For bundles that state cycles but no placements. Instructions that the compiled module lacks,
    or has with another opcode or other leaves, are left out.
    """
    originals = {
        instruction.name: (computation, instruction)
        for computation in before.computations.values()
        for instruction in computation.instructions
    }
    found: dict[str, Placement] = {}
    for computation in placed.computations.values():
        for instruction in computation.instructions:
            if instruction.name not in originals:
                continue
            place, original = originals[instruction.name]
            placement = Placement.of(computation, instruction, memory_space)
            if instruction.opcode == original.opcode and _same_leaves(
                placement, Placement.of(place, original, memory_space)
            ):
                found[instruction.name] = placement
    return found


def _same_leaves(one: Placement, other: Placement) -> bool:
    return len(one.operands) == len(other.operands) and len(one.outputs) == len(other.outputs)
