"""The best map of one run of a solver: timed, reported, and made into its solution."""

from __future__ import annotations

from malloc_game.memory_map import MemoryMap
from solvers.evaluate import simulated_latency
from solvers.solver import Deadline, Progress, Solution, SolveRequest, status_of


class Incumbent:
    """Starts from the empty map; the clock starts with it.

    Args:
      request: what was asked for.
      name: the solver's, for reports.

    Attributes:
      deadline: the request's time limit.
      memory_map: the fastest map offered so far.
      ticks: its simulated latency, in the request's copy order.
      offers: maps timed so far.
    """

    def __init__(self, request: SolveRequest, name: str) -> None:
        self.request = request
        self.name = name
        self.deadline = Deadline.after(request.time_limit_seconds)
        self.memory_map = MemoryMap()
        self.ticks = request.program.all_slow_ticks
        self.offers = 0

    def offer(self, memory_map: MemoryMap, who: str | None = None) -> float:
        """Times a valid map, remembers and reports it if it is the fastest; its latency.

        `who` found it, in reports; the solver itself if None.
        """
        ticks = simulated_latency(self.request.program, memory_map, self.request.copy_order)
        self.offers += 1
        if ticks < self.ticks:
            self.memory_map, self.ticks = memory_map, ticks
            seconds = self.deadline.elapsed_seconds
            self.request.report(Progress(seconds, who or self.name, ticks, memory_map=memory_map))
        return ticks

    def solution(
        self,
        games_played: int,
        bound_ticks: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> Solution:
        """What the solver returns, with the certified bound if it has one."""
        return Solution(
            memory_map=self.memory_map,
            latency_ticks=self.ticks,
            lower_bound_ticks=bound_ticks,
            status=status_of(self.ticks, bound_ticks, self.request.gap),
            solver=self.name,
            wall_seconds=self.deadline.elapsed_seconds,
            games_played=games_played,
            notes=notes,
        )
