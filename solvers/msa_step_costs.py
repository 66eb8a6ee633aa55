"""What a step of a `Program` costs in the eyes of memory-space assignment.

XLA's assignment decides by its own roofline (`CostAnalysis` in
`xla/service/memory_space_assignment/cost_analysis.cc`), not by how long steps really take: compute
time, operations over the units' peak, against bytes over bandwidth. Where a Program does not state
the former it is read out of its lanes: floors hold fast memory's own time in every lane, so compute
is by how much the longest lane's floor exceeds the shortest's.
"""

from __future__ import annotations

from dataclasses import dataclass

from hlo_graphs.program import Access, AccessKind, Instruction
from solvers.msa_options import ElapsedModel, MsaOptions


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step costs with everything slow.

    Attributes:
      bus_ticks: of all its accesses.
      lane_ticks: per lane, of all its accesses, without the base.
      base_ticks: per lane.
      compute_ticks: what no memory can take away.
      elapsed_ticks: of the step.
      options: how to read the times.
    """

    bus_ticks: int
    lane_ticks: tuple[int, ...]
    base_ticks: tuple[int, ...]
    compute_ticks: int
    elapsed_ticks: int
    options: MsaOptions

    @staticmethod
    def of(instruction: Instruction, options: MsaOptions) -> StepCost:
        """The sums over the accesses of an instruction."""
        base = instruction.base_ticks
        lanes = [(0,) * len(base), *(access.lane_ticks for access in instruction.accesses)]
        bus = sum(access.bus_ticks for access in instruction.accesses)
        compute = instruction.compute_ticks
        if compute is None:
            compute = max(base) - (min(base) if len(base) > 1 else 0)
        elapsed = max(compute, bus)
        if options.elapsed_model is ElapsedModel.PROGRAM:
            elapsed = instruction.elapsed_ticks(instruction.accesses)
        summed = tuple(map(sum, zip(*lanes, strict=True)))
        return StepCost(bus, summed, base, compute, elapsed, options)

    def reduction(self, access: Access) -> float:
        """By how much the step gets shorter with what one access reads, or else writes, fast."""
        if self.options.elapsed_model is ElapsedModel.ROOFLINE:
            left = self.bus_ticks - _one_way_ticks(access)
            return self.elapsed_ticks - max(self.compute_ticks, left)
        longest = self.bus_ticks - access.bus_ticks
        lanes = zip(self.base_ticks, self.lane_ticks, access.lane_ticks, strict=True)
        for base, ticks, less in lanes:
            longest = max(longest, base + ticks - less)
        return self.elapsed_ticks - longest

    def benefit(self, access: Access) -> float:
        """Time that fast memory saves what an access reads, or else writes.

        If the step is memory bound; else how far it is from that, a negative number. XLA:
        `GetAlternateMemoryBenefit`.
        """
        if self.bus_ticks <= self.compute_ticks:
            return float(self.bus_ticks - self.compute_ticks)
        return _one_way_ticks(access)


def _one_way_ticks(access: Access) -> float:
    """What is read, or else written: half of what an update moves."""
    ticks = float(access.bus_ticks)
    return ticks / 2 if access.kind is AccessKind.UPDATE else ticks
