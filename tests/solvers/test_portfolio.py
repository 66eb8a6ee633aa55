"""The portfolio: never worse than its parts, robust against members that fail, on time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from malloc_game.generator import random_program
from malloc_game.memory_map import MemoryMap, Residency, Source
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from solvers import portfolio
from solvers.greedy import GreedySolver
from solvers.portfolio import Member, PortfolioSolver
from solvers.solver import Progress, Solution, SolveRequest, Status
from tests.malloc_game.small import program_of

PROGRAM = random_program(3, num_accesses=60, pressure=3.0, max_size_units=16)


@dataclass(frozen=True)
class Failing:
    """A member that raises."""

    name: str = "failing"

    def solve(self, request: SolveRequest) -> Solution:
        raise ValueError(f"cannot map {request.program.name}")


@dataclass(frozen=True)
class Cheating:
    """A member that returns a map outside the memory, with a splendid latency."""

    name: str = "cheating"

    def solve(self, request: SolveRequest) -> Solution:
        outside = Residency(0, 2**40, 0, 1, Source.PRODUCED, 0)
        invalid = MemoryMap((outside,))
        return Solution(invalid, 0.0, None, Status.OPTIMAL, self.name, 0.0)


@dataclass(frozen=True)
class Knowing:
    """A member that has been told a good map, and cannot be sent to another process."""

    memory_map: MemoryMap
    name: str = "knowing"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("stays here")

    def solve(self, request: SolveRequest) -> Solution:
        ticks = simulate(request.program, self.memory_map).latency_ticks
        return Solution(self.memory_map, ticks, None, Status.FEASIBLE, self.name, 0.0, 1)


@dataclass(frozen=True)
class Patient:
    """A member that finds nothing in all the time it is given, and stays in this process."""

    name: str = "patient"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("stays here")

    def solve(self, request: SolveRequest) -> Solution:
        time.sleep(request.time_limit_seconds)
        ticks = request.program.all_slow_ticks
        return Solution(MemoryMap(), ticks, None, Status.FEASIBLE, self.name, 0.0)


def checked(solution: Solution) -> Solution:
    assert validate(PROGRAM, solution.memory_map) == ()
    assert simulate(PROGRAM, solution.memory_map).latency_ticks == solution.latency_ticks
    greedy = GreedySolver().solve(SolveRequest(PROGRAM))
    assert solution.latency_ticks <= greedy.latency_ticks
    return solution


def test_short_limits_are_kept_without_processes() -> None:
    started = time.monotonic()
    solution = checked(PortfolioSolver().solve(SolveRequest(PROGRAM, time_limit_seconds=2.0)))
    assert time.monotonic() - started < 6.0
    assert solution.lower_bound_ticks is not None
    assert solution.lower_bound_ticks <= solution.latency_ticks


def test_members_in_processes_improve_on_greedy() -> None:
    events: list[Progress] = []
    solution = checked(
        PortfolioSolver((Member("large-neighbourhood"),)).solve(
            SolveRequest(PROGRAM, time_limit_seconds=8.0, on_progress=events.append)
        )
    )
    assert solution.wall_seconds < 14.0
    incumbents = [event.incumbent_ticks for event in events if event.incumbent_ticks is not None]
    bounds = [event.bound_ticks for event in events if event.bound_ticks is not None]
    assert incumbents == sorted(incumbents, reverse=True)
    assert bounds == sorted(bounds)
    assert incumbents[-1] == solution.latency_ticks


def test_failing_and_cheating_members_are_reported_and_survived() -> None:
    schedule = (Member(Failing()), Member(Cheating()))
    request = SolveRequest(PROGRAM, time_limit_seconds=6.0, workers=2)
    solution = checked(PortfolioSolver(schedule).solve(request))
    assert any("failing failed: ValueError: cannot map" in note for note in solution.notes)
    assert any("cheating: an invalid map was refused" in note for note in solution.notes)


def test_no_member_is_another_one_again() -> None:
    run = portfolio._PortfolioRun(SolveRequest(PROGRAM), portfolio.DEFAULT_SCHEDULE)
    run.stop_all()
    members = [(member.name, member.seed) for member in run.pending]
    assert len(set(members)) == len(members) > 2 * len(portfolio.DEFAULT_SCHEDULE)


def test_what_the_system_refuses_does_not_lose_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no more of that")

    monkeypatch.setattr(portfolio.Noticeboard, "post", refuse)
    monkeypatch.setattr(portfolio, "start_member", refuse)
    solution = checked(PortfolioSolver().solve(SolveRequest(PROGRAM, time_limit_seconds=4.0)))
    assert any("could not be shown to members" in note for note in solution.notes)
    assert any("could not be started: no more of that" in note for note in solution.notes)


def test_a_solver_handed_in_from_outside_takes_part() -> None:
    program = random_program(3, num_accesses=60, pressure=3.0, max_size_units=16)
    good = PortfolioSolver(()).solve(SolveRequest(program, time_limit_seconds=2.0)).memory_map
    solver = PortfolioSolver((), extra=(Knowing(good),))
    solution = solver.solve(SolveRequest(program, time_limit_seconds=4.0))
    assert solution.latency_ticks <= simulate(program, good).latency_ticks


def test_with_one_worker_the_others_begin_after_a_solver_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what they did when time was up is counted."""
    monkeypatch.setattr(portfolio, "_SHARING_FROM_SECONDS", 0.0)
    program = random_program(0, num_accesses=150, pressure=3.0, max_size_units=32)
    solver = PortfolioSolver((Member("large-neighbourhood"),), extra=(Patient(),))
    solution = solver.solve(SolveRequest(program, time_limit_seconds=12.0, workers=1))
    assert solution.status is Status.FEASIBLE
    assert solution.games_played > 10


def test_maps_handed_in_are_never_made_worse() -> None:
    given = GreedySolver().solve(SolveRequest(PROGRAM)).memory_map
    request = SolveRequest(PROGRAM, time_limit_seconds=0.0, initial_maps=(given,))
    assert PortfolioSolver().solve(request).latency_ticks <= simulate(PROGRAM, given).latency_ticks


@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_stops_when_proven(gap: float) -> None:
    program = program_of({"a": 4}, [(1, "wa"), (1, "ra")])
    started = time.monotonic()
    solution = PortfolioSolver().solve(SolveRequest(program, time_limit_seconds=30.0, gap=gap))
    assert solution.status is Status.OPTIMAL
    assert solution.latency_ticks == 2
    assert time.monotonic() - started < 15.0


def test_scripts_need_no_main_guard(tmp_path: Path) -> None:
    """Children must not run the calling script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from malloc_game.generator import random_program\n"
        "from solvers.portfolio import Member, PortfolioSolver\n"
        "from solvers.solver import SolveRequest\n"
        "print('once')\n"
        "program = random_program(3, num_accesses=60, pressure=3.0, max_size_units=16)\n"
        "solver = PortfolioSolver((Member('large-neighbourhood'),))\n"
        "solution = solver.solve(SolveRequest(program, time_limit_seconds=5.0))\n"
        "print(solution.notes)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines() == ["once", "()"]


@dataclass(frozen=True)
class Boasting:
    """A member whose lower bound is above every map's latency."""

    name: str = "boasting"

    def solve(self, request: SolveRequest) -> Solution:
        ticks = request.program.all_slow_ticks
        return Solution(MemoryMap(), ticks, 1e18, Status.OPTIMAL, self.name, 0.0)


def test_bounds_that_nobody_vouches_for_are_not_believed() -> None:
    request = SolveRequest(PROGRAM, time_limit_seconds=4.0)
    solution = checked(PortfolioSolver((), extra=(Boasting(),)).solve(request))
    assert solution.lower_bound_ticks is not None
    assert solution.lower_bound_ticks <= solution.latency_ticks


def test_a_bound_above_a_valid_map_is_refused() -> None:
    run = portfolio._PortfolioRun(SolveRequest(PROGRAM), ())
    run._believe_bound(run.best.ticks * 1.001, Member("milp"))
    run._believe_bound(run.best.ticks * 1.002, Member("milp"))
    assert run.bound is None
    assert run.notes == ["milp: a bound above a valid map's latency was refused"]
    run._believe_bound(run.best.ticks * 0.5, Member("milp"))
    assert run.bound == run.best.ticks * 0.5


def test_without_a_place_for_temporary_files_there_is_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: object) -> None:
        raise OSError("no place")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    for seconds in (1.0, 4.0):
        request = SolveRequest(PROGRAM, time_limit_seconds=seconds)
        solution = checked(PortfolioSolver().solve(request))
        assert any("could not be shown to members" in note for note in solution.notes)
        assert solution.latency_ticks < PROGRAM.all_slow_ticks


def test_a_thread_that_goes_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    @dataclass(frozen=True)
    class Deaf(Patient):
        def solve(self, request: SolveRequest) -> Solution:
            may_end.wait(60.0)
            return super().solve(replace(request, time_limit_seconds=0.0))

    solver = PortfolioSolver((), extra=(Deaf(),))
    solution = solver.solve(SolveRequest(PROGRAM, time_limit_seconds=3.5))
    may_end.set()
    assert solution.notes[-1] == "patient goes on: a thread cannot be ended"
