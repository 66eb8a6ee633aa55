"""Integer programs: exact on small programs, by exhaustive plays and maps; sound on others."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ortools.sat.python import cp_model

from hlo_graphs.program import Loop, Program
from malloc_game.fast_game import FastGame
from malloc_game.generator import random_program
from malloc_game.memory_map import Eviction, MemoryMap, Residency, Source
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from solvers import milp
from solvers.cp_sat import cp_solver, solved
from solvers.exact import can_be_exact, solve_exactly
from solvers.greedy import GreedySolver
from solvers.lane_table import all_lanes
from solvers.milp import MilpSettings, MilpSolver, wanted_runs
from solvers.relaxation import IntegerSolution
from solvers.solver import Deadline, SolveRequest, Status, solver_named
from tests.malloc_game.small import program_of
from tests.strategies import random_valid_map, small_program

MOST_TURNS = 9


def tiny_programs(count: int, *, first_seed: int = 0) -> Iterator[tuple[int, Program]]:
    """Programs whose every play can be tried and that can be solved exactly."""
    seed = first_seed
    while count:
        program = small_program(seed, branches=False, max_accesses=7)
        if FastGame(program).num_turns <= MOST_TURNS and can_be_exact(program):
            yield seed, program
            count -= 1
        seed += 1


def best_play(program: Program) -> float:
    """The least latency over all sequences of actions."""
    game = FastGame(program)
    plays = np.array(list(itertools.product(range(3), repeat=game.num_turns)), dtype=np.int8)
    return float(game.play_many(plays).min()) if len(plays) else program.all_slow_ticks


def test_never_worse_than_the_best_play_of_the_game() -> None:
    better = 0
    for seed, program in tiny_programs(7):
        found = solve_exactly(program, 20.0)
        assert found is not None, seed
        assert found.proven, seed
        assert validate(program, found.memory_map) == (), seed
        assert simulate(program, found.memory_map).latency_ticks == found.ticks, seed
        play = best_play(program)
        assert found.ticks <= play, seed
        better += found.ticks < play
    assert better < 7  # mostly the game's rules reach the optimum


def test_no_random_map_without_slices_and_holes_beats_it() -> None:
    for seed, program in tiny_programs(6, first_seed=500):
        found = solve_exactly(program, 20.0)
        assert found is not None
        rng = np.random.default_rng(seed)
        for _ in range(40):
            other = random_valid_map(program, rng, 15)
            plain = not other.replaced_copies and not any(
                r.parts or r.holes for r in other.residencies
            )
            if plain:
                assert simulate(program, other).latency_ticks >= found.ticks, seed


def maps_of_one_buffer(program: Program, buffer: int) -> list[MemoryMap]:
    """Every valid map in which one buffer has at most one residency and one eviction."""
    steps = program.num_steps
    size = program.buffers[buffer].size_bytes
    found = [MemoryMap()]
    for start, ready in itertools.combinations_with_replacement(range(steps + 1), 2):
        for end in range(ready + 1, steps + 2):
            for source in Source:
                for offset in range(program.capacity_bytes - size + 1):
                    residency = Residency(buffer, offset, start, end, source, ready)
                    windows = itertools.combinations_with_replacement(range(steps + 1), 2)
                    evictions = [(), *((Eviction(buffer, i, d),) for i, d in windows)]
                    maps = [MemoryMap((residency,), eviction) for eviction in evictions]
                    found += [m for m in maps if not validate(program, m)]
    return found


@pytest.mark.parametrize(
    "steps",
    [
        [(2, "wa"), (1, "rp ra"), (0, "rp")],
        [(0, "wa wp"), (2, "rp"), (1, "ra")],
        [(3, "ra"), (0, "rp ua"), (1, "ra")],
    ],
)
def test_equals_exhaustive_search_over_maps(steps: list[tuple[int, str]]) -> None:
    program = program_of({"a": 2, "p": 2}, steps, capacity=3, live_out="a")
    maps = [maps_of_one_buffer(program, buffer) for buffer in range(2)]
    best = program.all_slow_ticks
    for first, second in itertools.product(*maps):
        pieces = first.residencies + second.residencies
        if len(pieces) == 2 and _clash(program, *pieces):
            continue
        together = MemoryMap(pieces, first.evictions + second.evictions)
        if sum(r.source is Source.CARRIED for r in pieces) <= 1:
            best = min(best, simulate(program, together).latency_ticks)
    found = solve_exactly(program, 30.0)
    assert found is not None
    assert found.proven
    several = len(found.memory_map.residencies) > len(
        {r.buffer for r in found.memory_map.residencies}
    )
    assert found.ticks == best or (several and found.ticks < best)


def _clash(program: Program, first: Residency, second: Residency) -> bool:
    in_time = first.start < second.end and second.start < first.end
    sizes = [program.buffers[r.buffer].size_bytes for r in (first, second)]
    low = max(first.offset_bytes, second.offset_bytes)
    high = min(first.offset_bytes + sizes[0], second.offset_bytes + sizes[1])
    return in_time and low < high


def test_large_programs_are_not_exact() -> None:
    assert not can_be_exact(random_program(0, num_accesses=400, family="training"))
    assert solve_exactly(random_program(0, num_accesses=400, family="training"), 1.0) is None


def test_the_solver_proves_small_programs_optimal() -> None:
    program = program_of({"a": 5, "b": 5}, [(0, "wa wb"), (0, "ra rb")], capacity=9)
    solution = MilpSolver().solve(SolveRequest(program, time_limit_seconds=10.0))
    assert solution.status is Status.OPTIMAL
    assert solution.latency_ticks == 10
    assert "CP-SAT: no map" in solution.notes[0]


def test_branch_and_bound_gives_valid_maps_within_the_limit() -> None:
    program = random_program(2, num_accesses=150, pressure=3.0, max_size_units=32)
    seen: list[float] = []
    request = SolveRequest(
        program,
        time_limit_seconds=4.0,
        on_progress=lambda p: seen.append(p.incumbent_ticks) if p.incumbent_ticks else None,
    )
    solution = MilpSolver(MilpSettings(exact_accesses=0)).solve(request)
    assert validate(program, solution.memory_map) == ()
    assert simulate(program, solution.memory_map).latency_ticks == solution.latency_ticks
    assert solution.lower_bound_ticks is not None
    assert solution.lower_bound_ticks <= solution.latency_ticks < program.all_slow_ticks
    assert seen == sorted(seen, reverse=True)
    assert any("its own bound" in note or "nothing in time" in note for note in solution.notes)
    assert solution.wall_seconds < 12.0


def test_what_a_loop_writes_anew_each_trip_may_be_kept_around_it() -> None:
    steps = [(0, "wa"), (0, "ra"), (0, "wc"), (0, "rc"), (0, "wa"), (0, "ra"), (0, "ra")]
    program = program_of({"a": 4, "c": 8}, steps, capacity=8, loops=[Loop(4, 6, 10)])
    found = solve_exactly(program, 10.0)
    assert found is not None
    assert found.proven
    assert found.ticks == 0
    assert validate(program, found.memory_map) == ()
    assert GreedySolver().solve(SolveRequest(program)).latency_ticks == 0


def test_a_loop_that_may_be_skipped_writes_nothing_for_certain() -> None:
    steps = [(0, "wa"), (0, "wa"), (0, "ra"), (0, "ra")]
    program = program_of({"a": 4}, steps, loops=[Loop(1, 3, 1, 0.5)])
    for solver in ("greedy", "large-neighbourhood"):
        request = SolveRequest(program, time_limit_seconds=0.3)
        assert validate(program, solver_named(solver).solve(request).memory_map) == ()


def wanted(program: Program) -> list[tuple[int, int | None, int, int]]:
    """(buffer, loop, first, last) of the runs wanted where all is fast and nothing is fetched."""
    lanes = all_lanes(program)
    outermost = {lane.buffer: lane for lane in lanes if lane.loop is None}
    keys = [
        (b, 0, position) for b, lane in outermost.items() for position in range(len(lane.items))
    ]
    everything = dict.fromkeys(keys, 1.0)
    found = IntegerSolution(0.0, 0.0, everything, everything, ())
    runs = wanted_runs(program, lanes, found)
    return [(lanes[r.lane].buffer, lanes[r.lane].loop, r.first, r.last) for r in runs]


def test_what_is_written_anew_is_not_wanted_before() -> None:
    steps = [(0, "wa"), (0, "ra"), (9, ""), (0, "wa"), (0, "ra"), (9, ""), (0, "ra")]
    assert wanted(program_of({"a": 4}, steps)) == [(0, None, 2, 4), (0, None, 0, 1)]


def test_what_lives_within_a_trip_is_wanted_for_as_long() -> None:
    steps = [(0, ""), (0, "wa"), (0, "ra"), (9, ""), (0, "wa"), (0, "ra")]
    program = program_of({"a": 4}, steps, loops=[Loop(0, 6, 10)])
    assert wanted(program) == [(0, 0, 0, 1), (0, 0, 2, 3)]
    live_out = program_of({"a": 4}, steps, loops=[Loop(0, 6, 10)], live_out="a")
    assert wanted(live_out) == [(0, None, 0, 0)]


def test_wide_windows_are_no_small_model() -> None:
    idle = [(1, "")] * 150
    program = program_of({"a": 4}, [(1, "wa"), *idle, (1, "ra"), *idle, (1, "ra")])
    assert not can_be_exact(program)


def test_where_nothing_may_be_resident_nothing_is_solved() -> None:
    program = random_program(0).with_capacity(0)
    solution = MilpSolver().solve(SolveRequest(program, time_limit_seconds=5.0))
    assert solution.memory_map.residencies == ()
    assert solution.notes == ()
    assert solution.wall_seconds < 4.0
    empty = program_of({}, [])
    assert MilpSolver().solve(SolveRequest(empty, time_limit_seconds=5.0)).latency_ticks == 0


def hard_model() -> cp_model.CpModel:
    """Five sums of forty numbers, each to be halved at once: nobody knows a quick way."""
    rng = random.Random(0)
    model = cp_model.CpModel()
    taken = [model.new_bool_var("") for _ in range(40)]
    for _ in range(5):
        weights = [rng.randrange(100) for _ in taken]
        model.add(cp_model.LinearExpr.weighted_sum(taken, weights) == sum(weights) // 2)
    return model


def is_sigint_caught() -> bool:
    """Whether the process, not only Python, has a handler for it."""
    status = Path("/proc/self/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_ctrl_c_ends_cp_sat_and_is_heard_afterwards() -> None:
    # What a shell starts in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        solver = cp_solver(Deadline.after(120.0), seed=0, workers=1)
        interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        started = time.monotonic()
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            solved(solver, hard_model())
        assert time.monotonic() - started < 60.0
        assert is_sigint_caught()
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_process_is_started_for_which_there_is_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = random_program(1, num_accesses=60)
    monkeypatch.setattr(milp, "start_child", lambda *_: pytest.fail("it takes a second"))
    for seconds in (0.0, 0.5):
        solution = MilpSolver().solve(SolveRequest(program, time_limit_seconds=seconds))
        assert validate(program, solution.memory_map) == ()


def test_nothing_is_solved_once_a_map_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    program = random_program(1, num_accesses=60)
    monkeypatch.setattr(milp, "integer_solution", lambda *_: pytest.fail("there is an answer"))
    given = GreedySolver().solve(SolveRequest(program)).memory_map
    request = SolveRequest(program, time_limit_seconds=60.0, gap=5.0, initial_maps=(given,))
    assert MilpSolver().solve(request).status is Status.OPTIMAL
