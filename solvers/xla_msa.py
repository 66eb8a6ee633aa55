"""Solver `xla-msa`: OpenXLA's memory-space assignment, re-implemented on our Program.

A faithful re-implementation from a description of what `xla/service/memory_space_assignment/` does,
without its code: buffers by memory-boundedness over the square root of the size, use by use, with
prefetch intervals from the cost analysis, copy bandwidth, look-ahead best fit, retries, repacking,
inefficient sites and one parameter carried over to the next run. See docs/xla_msa.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hlo_graphs.errors import InputError
from malloc_game.validate import validate
from solvers.incumbent import Incumbent
from solvers.msa_algorithm import assign
from solvers.msa_options import MsaOptions, PickerOptions
from solvers.msa_program import memory_map_of, problem_of
from solvers.solver import Solution, SolveRequest

TUNED = MsaOptions(
    picker=PickerOptions(min_overlap=0.1, preferred_overlap=1.0, max_overlap=8.0),
    max_retries=2,
    inefficient_use_to_copy_ratio=0.7,
    async_copy_bandwidth_scaling=1.0,
)
"""Options that agree best with production's maps on the corpus's train split (docs/xla_msa.md)."""


@dataclass(frozen=True, slots=True)
class XlaMsaSolver:
    """One run of memory-space assignment.

    Attributes:
      options: see `MsaOptions`; by default those tuned on the train split. At most one
        parameter may be carried over (docs/simulator.md, rule 6).

    Raises:
      InputError: if the options carry any other number over.
    """

    options: MsaOptions = field(default=TUNED)

    name = "xla-msa"

    def __post_init__(self) -> None:
        most = self.options.max_cross_program_prefetches
        if most not in (0, 1):
            raise InputError(
                f"max_cross_program_prefetches is {most}: a map carries at most one parameter "
                "over, use 0 or 1"
            )

    def solve(self, request: SolveRequest) -> Solution:
        """The assignment, or an initial map or the empty one if that is faster."""
        program = request.program
        best = Incumbent(request, self.name)
        for candidate in request.initial_maps:
            best.offer(candidate)
        result = assign(problem_of(program, self.options), self.options)
        made = memory_map_of(program, result)
        broken = validate(program, made)
        if broken:
            note = f"xla-msa made an invalid map, not used: {broken[0].message}"
            return best.solution(1, notes=(note,))
        ticks = best.offer(made)
        if ticks == best.ticks:
            return best.solution(1)
        milliseconds = ticks * program.tick_seconds * 1e3
        note = f"its own map takes {milliseconds:.4f} ms, longer than the one returned"
        return best.solution(1, notes=(note,))
