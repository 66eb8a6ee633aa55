"""What a step of a `Program` costs in the eyes of memory-space assignment.

XLA's assignment decides by its own roofline (XLA_MSA.md B.2): compute time against bytes over
bandwidth. A Program's calibrated times say how long steps really take; how much of a step's floor
is compute must be read out of them: floors hold fast memory's own time in every lane, so compute
is by how much the longest lane's floor exceeds the shortest's.
"""

from __future__ import annotations

from dataclasses import dataclass

from hlo_graphs.program import Access, Instruction
from solvers.msa_options import BenefitModel, ElapsedModel, MsaOptions


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
        compute = max(base) - (min(base) if len(base) > 1 else 0)
        elapsed = max(compute, bus)
        if options.elapsed_model is ElapsedModel.PROGRAM:
            elapsed = instruction.elapsed_ticks(instruction.accesses)
        summed = tuple(map(sum, zip(*lanes, strict=True)))
        return StepCost(bus, summed, base, compute, elapsed, options)

    def reduction(self, access: Access) -> int:
        """By how much the step gets shorter with one access fast."""
        longest = self.bus_ticks - access.bus_ticks
        if self.options.elapsed_model is ElapsedModel.ROOFLINE:
            return self.elapsed_ticks - max(self.compute_ticks, longest)
        lanes = zip(self.base_ticks, self.lane_ticks, access.lane_ticks, strict=True)
        for base, ticks, less in lanes:
            longest = max(longest, base + ticks - less)
        return self.elapsed_ticks - longest

    def benefit(self, access: Access) -> float:
        """Time fast memory saves at one access; negative: how far from memory bound it is."""
        model = self.options.benefit_model
        if model is BenefitModel.ELAPSED:
            return float(self.reduction(access))
        if model is BenefitModel.BYTES_ALONE:
            return float(access.bus_ticks)
        compute, memory, gain = max(self.base_ticks), self.bus_ticks, access.bus_ticks
        if model is BenefitModel.COMPUTE_LANE:
            compute = self.compute_ticks
        if model is BenefitModel.LANES:
            memory = max(memory, *self.lane_ticks)
            gain = max(gain, *access.lane_ticks)
        scaled = compute * self.options.compute_scaling
        return float(gain if memory > scaled else memory - scaled)
