"""How long each instruction takes for any choice of memories for its operands and outputs.

The form is the one `program.Instruction` has, in seconds and per array *leaf* of the operands and
outputs instead of per buffer: with `slow` the set of leaves in slow memory,

    elapsed = max( max over lanes k of base[k] + sum over slow of lane[k], sum over slow of bus )

so whoever merges leaves that share a buffer adds their figures up. `analytic_times` is XLA's
roofline (`CostAnalysis` in `xla/service/memory_space_assignment/cost_analysis.cc`) as two lanes,
compute and memory; `calibration.calibrated_times` gives the compiler's own figures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from hlo_graphs.chips import Chip
from hlo_graphs.costs import CostAnalysis, InstructionCost, analyse_costs
from hlo_graphs.hlo import HloComputation, HloInstruction, HloModule, ShapeIndex
from hlo_graphs.leaves import leaves
from hlo_graphs.shapes import padded_size_bytes

LeafKey = tuple[Literal["operand"], int, ShapeIndex] | tuple[Literal["output"], ShapeIndex]
"""Names an array leaf of an instruction: ("operand", position, index) or ("output", index)."""


@dataclass(frozen=True, slots=True)
class LeafTimes:
    """What one access of an array leaf costs.

    Attributes:
      size_bytes: bytes moved between the leaf and the compute units.
      bus_seconds: how long slow memory's bus is busy with it when it lies there.
      lane_seconds: per lane, what it adds when it lies in slow memory.
    """

    size_bytes: int
    bus_seconds: float
    lane_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The times of one execution of one instruction.

    Attributes:
      base_seconds: per lane, the time with every leaf in fast memory.
      leaves: every array leaf of the operands and outputs.
      stated: the figures come from the compiler's cycles.
      compute_seconds: the compute units' own time, operations over their peak.
    """

    base_seconds: tuple[float, ...]
    leaves: Mapping[LeafKey, LeafTimes]
    stated: bool = False
    compute_seconds: float = 0.0

    def elapsed_seconds(self, slow: Collection[LeafKey]) -> float:
        """Duration with exactly the leaves `slow` in slow memory."""
        slow_leaves = [self.leaves[key] for key in slow]
        longest = sum(leaf.bus_seconds for leaf in slow_leaves)
        for lane, base in enumerate(self.base_seconds):
            lane_seconds = base + sum(leaf.lane_seconds[lane] for leaf in slow_leaves)
            longest = max(longest, lane_seconds)
        return longest

    @property
    def all_slow_seconds(self) -> float:
        """Duration with everything in slow memory."""
        return self.elapsed_seconds(tuple(self.leaves))

    @property
    def all_fast_seconds(self) -> float:
        """Duration with everything in fast memory."""
        return max(self.base_seconds)


class Times(Protocol):
    """A cost model of one module."""

    @property
    def name(self) -> str:
        """Which model: "analytic", "calibrated", ..."""
        ...

    @property
    def num_lanes(self) -> int:
        """Lanes of every `StepTimes` it gives."""
        ...

    def step(self, computation: str, instruction: str) -> StepTimes:
        """The times of an instruction, by name.

        Raises:
          KeyError: if the module has none of these names.
        """
        ...


COMPUTE_LANE, MEMORY_LANE = 0, 1
"""The lanes of `AnalyticTimes`."""

FORWARDING = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "domain"),
        *("after-all", "add-dependency", "opt-barrier", "partition-id", "replica-id"),
        *("while", "call", "conditional"),
    )
)
"""Opcodes that take no time of their own: they forward values, or their time is their bodies'."""


def takes_no_time(opcode: str) -> bool:
    """Whether an instruction costs nothing itself; XLA takes asynchronous pairs as hidden."""
    return opcode in FORWARDING or opcode.endswith(("-start", "-done", "-update"))


class TwoLaneTimes(ABC):
    """A `Times` with a compute and a memory lane that works every step out once."""

    name: str

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str], StepTimes] = {}

    @property
    def num_lanes(self) -> int:
        """Compute and memory."""
        return 2

    def step(self, computation: str, instruction: str) -> StepTimes:
        """See `Times.step`."""
        key = (computation, instruction)
        if key not in self._steps:
            self._steps[key] = self._work_out(computation, instruction)
        return self._steps[key]

    @abstractmethod
    def _work_out(self, computation: str, instruction: str) -> StepTimes: ...


class AnalyticTimes(TwoLaneTimes):
    """XLA's roofline on a chip, from flops and bytes alone.

    Args:
      costs: the counted work.
      chip: what it runs on.
    """

    name = "analytic"

    def __init__(self, costs: CostAnalysis, chip: Chip) -> None:
        super().__init__()
        self.costs = costs
        self.chip = chip

    def _work_out(self, computation: str, instruction_name: str) -> StepTimes:
        place = self.costs.module.computations[computation]
        instruction = place.instruction(instruction_name)
        if takes_no_time(instruction.opcode):
            nothing = LeafTimes(0, 0.0, (0.0, 0.0))
            return StepTimes((0.0, 0.0), dict.fromkeys(leaf_keys(place, instruction), nothing))
        cost = self.costs.step_cost(place.name, instruction.name)
        sizes = leaf_bytes(place, instruction, cost, self.costs.size_of)
        compute = compute_seconds(cost, self.chip)
        fast = sum(self._fast_seconds(key, size) for key, size in sizes.items())
        times = {key: self._leaf(key, size) for key, size in sizes.items()}
        return StepTimes((compute, fast), times, compute_seconds=compute)

    def _fast_seconds(self, key: LeafKey, size_bytes: int) -> float:
        if key[0] == "operand":
            return size_bytes / self.chip.fast_read_bytes_per_second
        return size_bytes / self.chip.fast_write_bytes_per_second

    def _leaf(self, key: LeafKey, size_bytes: int) -> LeafTimes:
        """Slow instead of fast: the memory lane trades one bandwidth for the other."""
        slow = size_bytes / self.chip.slow_bytes_per_second
        extra = max(0.0, slow - self._fast_seconds(key, size_bytes))
        return LeafTimes(size_bytes, slow, (0.0, extra))


def analytic_times(module: HloModule, chip: Chip) -> AnalyticTimes:
    """The roofline of `module` on `chip`: physical bytes, XLA's counts, the chip's peaks."""
    return AnalyticTimes(analyse_costs(module, padded_size_bytes), chip)


def compute_seconds(cost: InstructionCost, chip: Chip) -> float:
    """The longest of the matrix units', the vector units' and the transcendental units' work."""
    matrix = cost.matrix_flops / chip.matrix_flops_per_second(cost.matrix_type)
    vector = max(0.0, cost.flops - cost.matrix_flops) / chip.vector_flops_per_second
    return max(matrix, vector, cost.transcendentals / chip.transcendentals_per_second)


def leaf_keys(place: HloComputation, instruction: HloInstruction) -> tuple[LeafKey, ...]:
    """The array leaves of an instruction: operands in order, pre-order, then the outputs."""
    keys: list[LeafKey] = []
    for position, operand in enumerate(instruction.operands):
        shape = place.instruction(operand).shape
        keys.extend(("operand", position, index) for index, _ in leaves(shape))
    keys.extend(("output", index) for index, _ in leaves(instruction.shape))
    return tuple(keys)


def leaf_bytes(
    place: HloComputation,
    instruction: HloInstruction,
    cost: InstructionCost,
    size_of: Callable[..., int],
) -> dict[LeafKey, int]:
    """Bytes moved per array leaf, never more than the leaf has.

    XLA counts a fusion's parameter once per broadcast of it; a memory is read once.
    """
    sizes: dict[LeafKey, int] = {}
    for key in leaf_keys(place, instruction):
        if key[0] == "operand":
            shape = place.instruction(instruction.operands[key[1]]).shape.at(key[2])
            counted = cost.operands[key[1]].get(key[2], 0.0)
        else:
            shape = instruction.shape.at(key[1])
            counted = cost.outputs.get(key[1], 0.0)
        sizes[key] = round(min(counted, size_of(shape)))
    return sizes
