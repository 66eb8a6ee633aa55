"""What OpenXLA's cost analysis says about the instructions of a module, in ticks.

Source: `CostAnalysis` in `xla/service/memory_space_assignment/cost_analysis.cc`. Ticks are
fractions of a second fine enough that sums do not depend on their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hlo_graphs.costs import CostAnalysis
from hlo_graphs.hlo import HloInstruction, ShapeIndex

TICKS_PER_SECOND = 2**30
"""Of the costs here."""

HIDDEN = frozenset(
    f"{operation}-{part}"
    for operation in ("all-gather", "all-reduce", "async", "collective-permute", "copy")
    for part in ("start", "done")
)
"""Opcodes that are taken to cost nothing, as something hides them."""


class HloCosts(Protocol):
    """Times and bytes of one module's instructions."""

    def elapsed_ticks(self, computation: str, instruction: HloInstruction) -> int:
        """Time with everything in default memory."""
        ...

    def copy_ticks(self, size_bytes: int) -> int:
        """Time of a copy."""
        ...

    def operand_reduction(
        self, computation: str, instruction: HloInstruction, operand: int, index: ShapeIndex
    ) -> float:
        """Ticks saved by having one operand in fast memory."""
        ...

    def operand_benefit(
        self, computation: str, instruction: HloInstruction, operand: int, index: ShapeIndex
    ) -> float:
        """XLA's benefit of one operand in fast memory; negative if bound by compute."""
        ...

    def output_benefit(
        self, computation: str, instruction: HloInstruction, index: ShapeIndex
    ) -> float:
        """XLA's benefit of one output in fast memory; negative if bound by compute."""
        ...

    def operand_bytes(
        self, computation: str, instruction: HloInstruction, operand: int, index: ShapeIndex
    ) -> float:
        """Bytes read of an operand."""
        ...

    def output_bytes(
        self, computation: str, instruction: HloInstruction, index: ShapeIndex
    ) -> float:
        """Bytes written of an output."""
        ...


@dataclass(frozen=True, slots=True)
class UncostedHlo:
    """Without a cost analysis: instructions last 1 each, copies 0.1, whatever they are."""

    def elapsed_ticks(self, computation: str, instruction: HloInstruction) -> int:
        """One second."""
        return 10

    def copy_ticks(self, size_bytes: int) -> int:
        """A tenth of a second."""
        return 1

    def operand_reduction(
        self, computation: str, instruction: HloInstruction, operand: int, index: ShapeIndex
    ) -> float:
        """Nothing is known to be saved."""
        return 0.0

    operand_benefit = operand_reduction
    operand_bytes = operand_reduction

    def output_benefit(
        self, computation: str, instruction: HloInstruction, index: ShapeIndex
    ) -> float:
        """Nothing is known to be saved."""
        return 0.0

    output_bytes = output_benefit


@dataclass(frozen=True, slots=True)
class FixedHloCosts(UncostedHlo):
    """Every instruction and every copy last as long as told.

    Attributes:
      instruction_ticks: of each instruction.
      copy: of each copy, whatever its size.
    """

    instruction_ticks: int = 10
    copy: int = 20

    def elapsed_ticks(self, computation: str, instruction: HloInstruction) -> int:
        """As told; what only defines takes no time."""
        return 0 if instruction.opcode in ("parameter", "tuple") else self.instruction_ticks

    def copy_ticks(self, size_bytes: int) -> int:
        """As told."""
        return self.copy


@dataclass(frozen=True)
class RooflineHloCosts:
    """XLA's roofline: the longer of compute and all traffic, one after the other.

    Attributes:
      analysis: flops and bytes.
      default_bytes_per_second: of default memory.
      fast_read_bytes_per_second, fast_write_bytes_per_second: of alternate memory.
      flops_per_second, transcendentals_per_second: of the compute units.
      pipeline_overhead_window_bytes: share of the traffic that cannot overlap with compute.
    """

    analysis: CostAnalysis
    default_bytes_per_second: float = 100.0
    fast_read_bytes_per_second: float = 1000.0
    fast_write_bytes_per_second: float = 1000.0
    flops_per_second: float = 1000.0
    transcendentals_per_second: float = 10.0
    pipeline_overhead_window_bytes: float = 0.0

    def elapsed_ticks(self, computation: str, instruction: HloInstruction) -> int:
        """Of the roofline with everything in default memory."""
        if instruction.opcode in HIDDEN:
            return 0
        return round(self._elapsed(computation, instruction, 0.0, 0.0) * TICKS_PER_SECOND)

    def copy_ticks(self, size_bytes: int) -> int:
        """At default memory's bandwidth."""
        return round(size_bytes / self.default_bytes_per_second * TICKS_PER_SECOND)

    def operand_reduction(
        self, computation: str, instruction: HloInstruction, operand: int, index: ShapeIndex
    ) -> float:
        """Fall of the roofline's time."""
        if instruction.opcode in HIDDEN:
            return 0.0
        moved = self.operand_bytes(computation, instruction, operand, index)
        slow = self._elapsed(computation, instruction, 0.0, 0.0)
        return (slow - self._elapsed(computation, instruction, moved, 0.0)) * TICKS_PER_SECOND

    def operand_benefit(
        self, computation: str, instruction: HloInstruction, operand: int, index: ShapeIndex
    ) -> float:
        """Memory time saved, or memory time less compute time if that is less."""
        moved = self.operand_bytes(computation, instruction, operand, index)
        return self._benefit(computation, instruction, moved, 0.0)

    def output_benefit(
        self, computation: str, instruction: HloInstruction, index: ShapeIndex
    ) -> float:
        """Memory time saved, or memory time less compute time if that is less."""
        moved = self.output_bytes(computation, instruction, index)
        return self._benefit(computation, instruction, 0.0, moved)

    def operand_bytes(
        self, computation: str, instruction: HloInstruction, operand: int, index: ShapeIndex
    ) -> float:
        """Bytes read of an operand."""
        cost = self.analysis.cost(computation, instruction.name)
        if operand >= len(cost.operands):
            return 0.0
        return cost.operand_bytes(operand, index)

    def output_bytes(
        self, computation: str, instruction: HloInstruction, index: ShapeIndex
    ) -> float:
        """Bytes written of an output."""
        return self.analysis.cost(computation, instruction.name).output_bytes(index)

    def _compute(self, computation: str, instruction: HloInstruction) -> float:
        cost = self.analysis.cost(computation, instruction.name)
        transcendental = cost.transcendentals / self.transcendentals_per_second
        return max(cost.flops / self.flops_per_second, transcendental, 0.0)

    def _memory(
        self, computation: str, instruction: HloInstruction, read: float, written: float
    ) -> float:
        total = self.analysis.cost(computation, instruction.name).total_bytes
        return (
            read / self.fast_read_bytes_per_second
            + written / self.fast_write_bytes_per_second
            + (total - read - written) / self.default_bytes_per_second
        )

    def _elapsed(
        self, computation: str, instruction: HloInstruction, read: float, written: float
    ) -> float:
        compute = self._compute(computation, instruction)
        total = self.analysis.cost(computation, instruction.name).total_bytes
        overhead = 0.0
        if total > 0:
            slow = total - read - written
            overhead = min(self.pipeline_overhead_window_bytes, slow) / total * compute
        return max(compute, self._memory(computation, instruction, read, written) + overhead)

    def _benefit(
        self, computation: str, instruction: HloInstruction, read: float, written: float
    ) -> float:
        memory = self._memory(computation, instruction, 0.0, 0.0)
        compute = self._compute(computation, instruction)
        if memory > compute:
            return memory - self._memory(computation, instruction, read, written)
        return memory - compute
