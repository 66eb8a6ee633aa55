"""What a solver is: a request in, a solution with a status out; and where to find one by name.

A solver takes a `Program` and returns a memory map, with a certified lower bound where it has
one. Nothing here imports a solver until it is asked for by name, so that `solve --solver greedy`
loads greedy and nothing else. docs/solvers.md says which solver does what.
"""

from __future__ import annotations

import enum
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

from hlo_graphs.errors import InputError, MallocGameError, did_you_mean
from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import check_copy_order

MOST_WORKERS = 1024
"""Beyond any machine that a solver could use."""


class Status(enum.StrEnum):
    """What is known about a solution, as in the command line's JSON."""

    OPTIMAL = "optimal"
    """The map is within the requested gap of a certified lower bound."""
    FEASIBLE = "feasible"
    """The map is valid; nothing better is ruled out."""
    INFEASIBLE = "infeasible"
    """No valid answer exists (packing only: a program always has the empty map)."""
    UNKNOWN = "unknown"
    """Nothing was found in time."""


def check_effort(time_limit_seconds: float, seed: int, workers: int) -> None:
    """Raises InputError for a time limit, seed or number of workers that cannot be used."""
    if not 0 <= time_limit_seconds < math.inf:
        raise InputError(f"time limit is {time_limit_seconds} seconds, must be >= 0 and finite")
    if seed < 0:
        raise InputError(f"seed is {seed}, must be a whole number >= 0")
    if not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"workers is {workers}, must be from 1 to {MOST_WORKERS}")


@dataclass(frozen=True, slots=True)
class Progress:
    """One event of a running solver, for the live line and for handing incumbents on.

    Attributes:
      seconds: since the solver was started.
      who: name of the solver that reports.
      incumbent_ticks: latency of its best map so far, None if it has none.
      bound_ticks: its best certified lower bound so far, None if it has none.
      memory_map: the map of `incumbent_ticks` when it is new, else None.
    """

    seconds: float
    who: str
    incumbent_ticks: float | None = None
    bound_ticks: float | None = None
    memory_map: MemoryMap | None = None


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class SolveRequest:
    """What a solver is asked for.

    Attributes:
      program: the problem.
      time_limit_seconds: wall time the solver may use; it returns within a second of it, an agent
        once what it has begun to compile is compiled.
      seed: of everything random, not negative; one worker and one seed give one map where no
        clock decides.
      gap: stop when latency / lower bound - 1 is at most this.
      workers: processes or threads it may use.
      max_games: games, or rounds, after which a search stops (`counts_games`); then the answer
        depends on the seed alone, in local search on the workers too, as long as the time limit is
        not reached. None leaves it to the clock, as other solvers do in any case.
      initial_maps: valid maps to start from; the answer is never worse than the best of them, but
        of a raw agent, which does not look at them, and of one that replays them.
      copy_order: "deadline" or "fifo" (docs/simulator.md, "Time"): the simulator that decides.
      on_progress: called in the solver's own thread with each improvement.
      best_known: asked from time to time for the best map anyone has found, None if there is
        none; lets solvers that run beside each other share incumbents.

    Raises:
      InputError: for a negative limit, gap or seed, no workers or games, or an unknown copy order.
    """

    program: Program
    time_limit_seconds: float = 10.0
    seed: int = 0
    gap: float = 0.0
    workers: int = 1
    max_games: int | None = None
    initial_maps: tuple[MemoryMap, ...] = ()
    copy_order: str = "deadline"
    on_progress: ProgressCallback | None = None
    best_known: Callable[[], MemoryMap | None] | None = None

    def __post_init__(self) -> None:
        check_effort(self.time_limit_seconds, self.seed, self.workers)
        if not self.gap >= 0:
            raise InputError(f"gap is {self.gap}, must be >= 0")
        if self.max_games is not None and self.max_games < 1:
            raise InputError(f"games are limited to {self.max_games}, must be at least 1")
        check_copy_order(self.copy_order)

    def report(self, progress: Progress) -> None:
        """Hands `progress` to the callback, if there is one."""
        if self.on_progress is not None:
            self.on_progress(progress)


@dataclass(frozen=True, slots=True)
class Solution:
    """What a solver returns.

    Attributes:
      memory_map: a valid map; the empty one leaves everything in slow memory.
      latency_ticks: its simulated latency, stalls included.
      lower_bound_ticks: no valid map is faster; None where the solver proves nothing.
      status: see `Status`.
      solver: name of who made the map.
      wall_seconds: time taken.
      games_played: complete games (or maps) evaluated on the way.
      notes: what a reader of the result should know, e.g. solvers that failed.
    """

    memory_map: MemoryMap
    latency_ticks: float
    lower_bound_ticks: float | None
    status: Status
    solver: str
    wall_seconds: float
    games_played: int = 0
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float | None:
        """latency / lower bound - 1, None without a bound (docs/bounds.md)."""
        return gap_between(self.latency_ticks, self.lower_bound_ticks)


PROOF_TOLERANCE = 1e-9
"""Relative difference of a latency and a bound that is none: bounds are lowered by what rounding
could have added."""


class WrongBoundError(MallocGameError):
    """A lower bound is above the latency of a valid map: a fault of ours."""

    exit_code = 4


def exceeds(bound_ticks: float, latency_ticks: float) -> bool:
    """Whether a lower bound is above a latency by more than rounding: one of them is wrong."""
    return bound_ticks > latency_ticks * (1 + PROOF_TOLERANCE)


def gap_between(latency_ticks: float, lower_bound_ticks: float | None) -> float | None:
    """latency / lower bound - 1; 0 when both are 0, infinite over a bound of 0."""
    if lower_bound_ticks is None:
        return None
    if lower_bound_ticks <= 0:
        return 0.0 if latency_ticks <= 0 else math.inf
    return max(latency_ticks / lower_bound_ticks - 1, 0.0)


def status_of(latency_ticks: float, lower_bound_ticks: float | None, gap: float) -> Status:
    """`OPTIMAL` if the latency is proven to be within `gap` of the optimum, else `FEASIBLE`."""
    found = gap_between(latency_ticks, lower_bound_ticks)
    is_proven = found is not None and found <= gap + PROOF_TOLERANCE
    return Status.OPTIMAL if is_proven else Status.FEASIBLE


@runtime_checkable
class Solver(Protocol):
    """Anything that maps a program's tensors. Keep instances reusable: `solve` holds no state."""

    @property
    def name(self) -> str:
        """The registry's name, e.g. "local-search"."""
        ...

    def solve(self, request: SolveRequest) -> Solution:
        """A valid map within the request's time limit."""
        ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which to be done; `Deadline.after(limit)` starts the clock."""

    limit_seconds: float
    started: float = field(default_factory=time.monotonic)

    @staticmethod
    def after(seconds: float) -> Deadline:
        """The deadline `seconds` from now."""
        return Deadline(seconds)

    @property
    def elapsed_seconds(self) -> float:
        """Since the clock was started."""
        return time.monotonic() - self.started

    @property
    def remaining_seconds(self) -> float:
        """Until the deadline, never negative."""
        return max(self.limit_seconds - self.elapsed_seconds, 0.0)

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return self.elapsed_seconds >= self.limit_seconds


@dataclass(frozen=True, slots=True)
class _Registered:
    """Where a solver is ("module:class", imported when asked for), and what it does.

    `counts_games` says whether `SolveRequest.max_games` stops it.
    """

    target: str
    idea: str
    counts_games: bool = False


_REGISTRY = {
    "portfolio": _Registered(
        "solvers.portfolio:PortfolioSolver",
        "several of these beside each other, sharing incumbents and bounds (the default)",
    ),
    "greedy": _Registered(
        "solvers.greedy:GreedySolver",
        "most time saved per byte and step first; an answer in a second",
    ),
    "milp": _Registered(
        "solvers.milp:MilpSolver",
        "an integer program decides residency, then addresses, then repair; proves a bound",
    ),
    "large-neighbourhood": _Registered(
        "solvers.large_neighbourhood:LargeNeighbourhoodSolver",
        "tears out part of the map and fills it anew, again and again",
        counts_games=True,
    ),
    "xla-msa": _Registered(
        "solvers.xla_msa:XlaMsaSolver", "OpenXLA's memory-space assignment: what production does"
    ),
    "cross-entropy": _Registered(
        "solvers.cross_entropy:CrossEntropySolver",
        "plays the game; probabilities of its actions move towards the best tenth's",
        counts_games=True,
    ),
    "local-search": _Registered(
        "solvers.local_search:LocalSearchSolver",
        "plays the game; annealing on its actions",
        counts_games=True,
    ),
    "evolution": _Registered(
        "solvers.evolution:EvolutionSolver",
        "plays the game; mutates and crosses its best games",
        counts_games=True,
    ),
    "random": _Registered(
        "solvers.random_restarts:RandomSolver",
        "plays the game at random; a control",
        counts_games=True,
    ),
}
"""By name, the default first."""


def solver_ideas() -> dict[str, str]:
    """What each solver that `solver_named` knows does, in a line; the default first."""
    return {name: registered.idea for name, registered in _REGISTRY.items()}


def counts_games(name: str) -> bool:
    """Whether `SolveRequest.max_games` stops the solver called `name`."""
    return name in _REGISTRY and _REGISTRY[name].counts_games


def solver_named(name: str) -> Solver:
    """The solver called `name`, with its default settings.

    Raises:
      InputError: if there is none, with the nearest names.
    """
    registered = _REGISTRY.get(name)
    if registered is None:
        near = did_you_mean(name, _REGISTRY)
        raise InputError(f"no solver is called {name!r}{near}. Solvers: {', '.join(_REGISTRY)}")
    module_name, _, class_name = registered.target.partition(":")
    made = getattr(importlib.import_module(module_name), class_name)()
    return cast(Solver, made)
