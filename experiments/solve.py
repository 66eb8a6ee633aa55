"""Solving one program: load it, run a solver, check and time the map, and say what came out.

Every map is validated and timed here by code that did not make it, before anyone sees it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.inputs import LoadedProgram, load_program
from experiments.solvers_by_name import any_solver_named
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap, to_document
from malloc_game.simulate import Simulation, compulsory_bus_bytes, simulate
from malloc_game.validate import check
from solvers.solver import (
    Progress,
    ProgressCallback,
    Solution,
    Solver,
    SolveRequest,
    Status,
    WrongBoundError,
    counts_games,
    exceeds,
    gap_between,
    solver_ideas,
    status_of,
)

SCHEMA = "malloc-game/solution/1"


@dataclass(frozen=True)
class SolveResult:
    """One solved program, beside what it is compared with.

    Attributes:
      program: what was solved.
      memory_map: the answer, validated.
      simulation: its timing.
      solution: what the solver said of it.
      capacity_bytes: of fast memory.
      production: timing of production's own map over the same program, None if not known.
      production_map: that map.
      copy_order: of the simulator, "deadline" or "fifo".
      seed: the one the solver was given.
      wall_seconds: the solver's, loading and checking excluded.
      is_interrupted: the answer is the best that the solver had told of; its games are not known.
    """

    program: Program
    memory_map: MemoryMap
    simulation: Simulation
    solution: Solution
    production: Simulation | None
    production_map: MemoryMap | None
    copy_order: str
    seed: int
    wall_seconds: float
    is_interrupted: bool = False

    @property
    def latency_seconds(self) -> float:
        """Simulated time of one run of the program under the map."""
        return self.simulation.latency_seconds

    @property
    def all_slow_latency_seconds(self) -> float:
        """Simulated time with everything in slow memory."""
        return self.program.all_slow_seconds

    @property
    def production_latency_seconds(self) -> float | None:
        """Simulated time under production's own map."""
        return None if self.production is None else self.production.latency_seconds

    @property
    def speedup_over_production(self) -> float | None:
        """Production's latency over ours: above 1 is faster than production."""
        if self.production is None or self.simulation.latency_ticks == 0:
            return None
        return self.production.latency_ticks / self.simulation.latency_ticks

    @property
    def lower_bound_seconds(self) -> float | None:
        """Certified: no valid map is faster."""
        bound = self.solution.lower_bound_ticks
        return None if bound is None else bound * self.program.tick_seconds

    @property
    def gap(self) -> float | None:
        """Latency over the lower bound, minus one."""
        return gap_between(self.simulation.latency_ticks, self.solution.lower_bound_ticks)

    def to_document(self) -> dict[str, Any]:
        """The result as plain JSON values; null where nothing is known, and for an endless gap."""
        gap = self.gap
        return {
            "schema": SCHEMA,
            "program": self.program.name,
            "program_digest": self.program.structure_digest,
            "chip": self.program.machine.chip,
            "capacity_bytes": self.program.capacity_bytes,
            "times": self.program.times,
            "copy_order": self.copy_order,
            "solver": self.solution.solver,
            "status": self.solution.status.value,
            "latency_seconds": self.latency_seconds,
            "all_slow_latency_seconds": self.all_slow_latency_seconds,
            "production_latency_seconds": self.production_latency_seconds,
            "speedup_over_production": self.speedup_over_production,
            "lower_bound_seconds": self.lower_bound_seconds,
            "gap": None if gap is None or math.isinf(gap) else gap,
            "stall_seconds": self.simulation.stall_seconds,
            "peak_fast_bytes": self.simulation.peak_fast_bytes,
            "bus_bytes": self.simulation.bus_bytes,
            "compulsory_bus_bytes": compulsory_bus_bytes(self.program),
            "num_copies": self.simulation.num_copies,
            "games_played": None if self.is_interrupted else self.solution.games_played,
            "wall_seconds": self.wall_seconds,
            "seed": self.seed,
            "notes": list(self.solution.notes),
        }

    def to_json(self) -> str:
        """`to_document` as one line of JSON."""
        return json.dumps(self.to_document())

    def map_json(self) -> str:
        """What `solve -o` writes and `validate` reads: the map, the tensors that it places by their
        numbers in it, and the result."""
        placed = sorted({residency.buffer for residency in self.memory_map.residencies})
        tensors = {number: self.program.buffers[number] for number in placed}
        buffers = {
            number: {"name": found.name, "shape": found.shape, "size_bytes": found.size_bytes}
            for number, found in tensors.items()
        }
        beside = {"buffers": buffers, "result": self.to_document()}
        return json.dumps({**to_document(self.memory_map), **beside}) + "\n"


def solve(
    program: str | Path | Program | LoadedProgram,
    *,
    solver: str = "portfolio",
    time_limit_seconds: float = 10.0,
    seed: int = 0,
    gap: float = 0.0,
    workers: int = 1,
    max_games: int | None = None,
    bound_seconds: float = 0.0,
    copy_order: str = "deadline",
    checkpoint: Path | None = None,
    initial_maps: Sequence[MemoryMap] = (),
    on_progress: ProgressCallback | None = None,
) -> SolveResult:
    """Finds a memory map for one program, checked and timed beside production's.

    Args:
      program: what `experiments.inputs.load_program` returns, or takes.
      solver: a name of `experiments.solvers_by_name.all_solver_ideas()`.
      time_limit_seconds: wall time for the solver.
      seed: of everything random.
      gap: stop within this of the lower bound.
      workers: processes the solver may use.
      max_games: games, or rounds, after which a search stops, so that no clock decides.
      bound_seconds: wall time for a certified lower bound, unless the solver proved its map best.
      copy_order: "deadline" or "fifo".
      checkpoint: of a trained agent, for those solvers that begin with weights.
      initial_maps: valid maps to start from.
      on_progress: called with each improvement.

    A KeyboardInterrupt ends the solver, or the search for a bound, with the best so far.

    Raises:
      InputError: for anything wrong with what was given.
      KeyboardInterrupt: if there is no map yet.
      InvalidMapError, WrongBoundError: if the solver's map or bound is wrong (a bug of ours).
    """
    _check_numbers(seed, bound_seconds)
    chosen = any_solver_named(solver, checkpoint)
    if max_games is not None:
        _check_counts_games(solver)
    loaded = load_program(program)
    request = SolveRequest(
        program=loaded.program,
        time_limit_seconds=time_limit_seconds,
        seed=seed,
        gap=gap,
        workers=workers,
        max_games=max_games,
        initial_maps=tuple(initial_maps),
        copy_order=copy_order,
        on_progress=on_progress,
    )
    started = time.monotonic()
    solution, is_interrupted = _solved(chosen, request)
    wall_seconds = time.monotonic() - started
    if bound_seconds > 0 and not is_interrupted and solution.status is not Status.OPTIMAL:
        solution = _bounded(request, solution, bound_seconds)
    return _judged(loaded, request, solution, wall_seconds, is_interrupted)


def _check_numbers(seed: int, bound_seconds: float) -> None:
    """Before anything is loaded."""
    if seed < 0:
        raise InputError(f"seed is {seed}, must be >= 0")
    if not 0 <= bound_seconds < math.inf:
        raise InputError(f"bound is {bound_seconds} seconds, must be >= 0 and finite")


def _check_counts_games(solver: str) -> None:
    if not counts_games(solver):
        counting = ", ".join(name for name in solver_ideas() if counts_games(name))
        raise InputError(f"solver {solver!r} does not count games; these do: {counting}")


def _solved(solver: Solver, request: SolveRequest) -> tuple[Solution, bool]:
    """The solver's answer, or if it is interrupted the best map it has reported; whether it was."""
    heard = _Heard(request.on_progress)
    started = time.monotonic()
    try:
        return solver.solve(replace(request, on_progress=heard)), False
    except KeyboardInterrupt:
        if heard.memory_map is None:
            raise
        best = Solution(
            memory_map=heard.memory_map,
            latency_ticks=heard.ticks,
            lower_bound_ticks=heard.bound_ticks,
            status=status_of(heard.ticks, heard.bound_ticks, request.gap),
            solver=heard.who,
            wall_seconds=time.monotonic() - started,
            notes=("interrupted: the best map so far",),
        )
        return best, True


def _bounded(request: SolveRequest, solution: Solution, seconds: float) -> Solution:
    """The solution beside the best bound that is known, or found within the time."""
    # Loads a solver of linear programs, which most answers do without.
    from solvers.bounds import bound_program

    found = [] if solution.lower_bound_ticks is None else [solution.lower_bound_ticks]
    latency = solution.latency_ticks
    started = time.monotonic()

    def take(ticks: float) -> None:
        found.append(ticks)
        elapsed = solution.wall_seconds + time.monotonic() - started
        request.report(Progress(elapsed, solution.solver, bound_ticks=ticks))

    with suppress(KeyboardInterrupt):
        bound = bound_program(request.program, seconds, on_bound=take, target_ticks=lambda: latency)
        take(bound.ticks)
    if not found:
        return solution
    best = max(found)
    return replace(solution, lower_bound_ticks=best, status=status_of(latency, best, request.gap))


@dataclass
class _Heard:
    """The best that a solver has reported so far, and who found it."""

    forward: ProgressCallback | None
    memory_map: MemoryMap | None = None
    ticks: float = math.inf
    who: str = ""
    bound_ticks: float | None = None

    def __call__(self, progress: Progress) -> None:
        ticks, memory_map = progress.incumbent_ticks, progress.memory_map
        if memory_map is not None and ticks is not None and ticks < self.ticks:
            self.memory_map, self.ticks, self.who = memory_map, ticks, progress.who
        if progress.bound_ticks is not None:
            self.bound_ticks = max(progress.bound_ticks, self.bound_ticks or 0.0)
        if self.forward is not None:
            self.forward(progress)


def _judged(
    loaded: LoadedProgram,
    request: SolveRequest,
    solution: Solution,
    wall_seconds: float,
    is_interrupted: bool,
) -> SolveResult:
    """The solution, validated and timed here rather than believed."""
    program = loaded.program
    check(program, solution.memory_map)
    simulation = simulate(program, solution.memory_map, request.copy_order)
    bound_ticks = solution.lower_bound_ticks
    if bound_ticks is not None and exceeds(bound_ticks, simulation.latency_ticks):
        raise WrongBoundError(
            f"{program.name}: {solution.solver}'s bound of {bound_ticks} ticks is above the "
            f"{simulation.latency_ticks} ticks of its own valid map: please report this"
        )
    production = loaded.production_map
    return SolveResult(
        program=program,
        memory_map=solution.memory_map,
        simulation=simulation,
        solution=solution,
        production=None
        if production is None
        else simulate(program, production, request.copy_order),
        production_map=production,
        copy_order=request.copy_order,
        seed=request.seed,
        wall_seconds=wall_seconds,
        is_interrupted=is_interrupted,
    )
