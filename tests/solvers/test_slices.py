"""Prefetches in slices: they tile the buffer, are served like the whole, and hold less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as testing
from hypothesis import strategies as st

from hlo_graphs.program import Loop, Program
from malloc_game.memory_map import MemoryMap, Part, ReplacedCopy, Residency, Source
from malloc_game.simulate import Simulation, simulate
from malloc_game.validate import validate
from solvers.exact import solve_exactly
from solvers.greedy import VARIANTS, construct
from solvers.idle_time import Window
from solvers.lane_table import LaneTable
from solvers.large_neighbourhood import LargeNeighbourhoodSolver, NeighbourhoodSettings
from solvers.milp import MilpSolver
from solvers.plan import Plan
from solvers.slices import LEAST_SLICED_BYTES, MOST_SLICES, Slice, Slicing, mirrored
from solvers.solver import SolveRequest
from tests.malloc_game.small import program_of
from tests.strategies import programs

MEBIBYTE = LEAST_SLICED_BYTES


def cut(size: int, arrivals: list[tuple[int, int]], end: int) -> tuple[Slice, ...]:
    """Of a parameter of so many bytes, a tick each; arrivals as (step, ticks), earliest first."""
    program = program_of({"p": size}, [(0, "rp")], capacity=size)
    lacking = size - sum(ticks for _, ticks in arrivals)
    window = Window(arrivals[0][0] if arrivals else end, end, (), lacking, tuple(arrivals[::-1]))
    return Slicing(program, least_bytes=0).cut(0, window)


def test_a_slice_begins_when_those_before_it_are_served() -> None:
    assert cut(8, [(1, 2), (2, 2), (4, 2), (5, 2)], 7) == (
        Slice(0, 2, 1),
        Slice(2, 2, 2),
        Slice(4, 2, 4),
        Slice(6, 2, 5),
    )
    assert cut(8, [(1, 3), (2, 5)], 7) == (Slice(0, 4, 1), Slice(4, 4, 2))


def test_what_one_step_serves_is_one_slice() -> None:
    assert cut(8, [(3, 8)], 4) == (Slice(0, 8, 3),)


def test_what_no_step_serves_is_held_from_the_end_of_the_window_on() -> None:
    assert cut(8, [(1, 2)], 7) == (Slice(0, 2, 1), Slice(2, 6, 7))
    assert cut(8, [], 7) == (Slice(0, 8, 7),)


def test_the_last_slice_may_be_smaller() -> None:
    assert cut(5, [(1, 2), (2, 2), (4, 1)], 7) == (Slice(0, 2, 1), Slice(2, 2, 2), Slice(4, 1, 4))


def test_mirrored_the_first_slice_lies_highest() -> None:
    assert mirrored((Slice(0, 3, 1), Slice(3, 1, 2))) == (Slice(1, 3, 1), Slice(0, 1, 2))


def test_small_buffers_are_not_cut() -> None:
    program = program_of({"p": LEAST_SLICED_BYTES - 1, "q": LEAST_SLICED_BYTES}, [(0, "rp rq")])
    slicing = Slicing(program)
    assert [slicing.is_sliced(buffer) for buffer in (0, 1)] == [False, True]


def sliced_plans(program: Program) -> list[Plan]:
    slicing, table = Slicing(program, least_bytes=0), LaneTable.of(program)
    return [construct(Plan(program, table, slicing), settings) for settings in VARIANTS]


@given(programs(max_accesses=40))
@testing(max_examples=100, deadline=None)
def test_plans_with_slices_are_valid_and_promise_no_more_than_the_simulator_finds(
    program: Program,
) -> None:
    branches = sum(loop.end_step - loop.start_step for loop in program.loops if loop.is_branch)
    for plan in sliced_plans(program):
        memory_map = plan.memory_map()
        assert validate(program, memory_map) == ()
        latency = simulate(program, memory_map).latency_ticks
        assert latency <= plan.latency_estimate() * (1 + 1e-9) + 1e-6 + branches
        assert all(len(r.parts) <= MOST_SLICES for r in memory_map.residencies)


@given(programs(max_accesses=40))
@testing(max_examples=60, deadline=None)
def test_a_plan_takes_over_slices_as_they_are(program: Program) -> None:
    for original in sliced_plans(program):
        plan = Plan(program, original.table, original.slicing)
        plan.load(original.memory_map())
        assert plan.memory_map() == original.memory_map()


@given(programs(max_accesses=30), st.booleans())
@testing(max_examples=60, deadline=None)
def test_undoing_restores_slices(program: Program, again: bool) -> None:
    for plan in sliced_plans(program):
        before, ticks = plan.memory_map(), plan.latency_estimate()
        for run in list(plan.runs.values()):
            dropped = plan.uncover(run)
            if again:
                made = plan.cover(run.lane, run.first, run.last)
                if made is not None:
                    made.undo()
            dropped.undo()
        assert plan.memory_map() == before
        assert plan.latency_estimate() == pytest.approx(ticks)


def test_a_slice_comes_while_others_find_no_room() -> None:
    """Of eight bytes a weight of six leaves room for a quarter of the next, of eight."""
    program = program_of({"p": 6, "q": 8}, [(6, ""), (2, "rp"), (6, ""), (0, "rq")], capacity=8)
    stalls = []
    for slicing in (None, Slicing(program, least_bytes=0)):
        plan = Plan(program, None, slicing)
        assert all(plan.cover(buffer, 0, 0) is not None for buffer in (0, 1))
        memory_map = plan.memory_map()
        assert validate(program, memory_map) == ()
        simulation = simulate(program, memory_map)
        assert simulation.latency_ticks == plan.latency_estimate() == 14 + total_stall(simulation)
        stalls.append(total_stall(simulation))
        (of_q,) = (r for r in memory_map.residencies if r.buffer == 1)
    assert stalls == [2, 0]
    assert of_q.parts == (Part(6, 2, 1), Part(0, 6, 2))


def total_stall(simulation: Simulation) -> float:
    return float(sum(simulation.stall_before_ticks))


def test_slices_of_a_loop_begin_where_an_inner_loop_does() -> None:
    """The inner loop serves four ticks in its two trips, the step after it the other two."""
    steps = [(0, ""), (1, ""), (1, ""), (2, ""), (0, "rp")]
    loops = [Loop(0, 5, 3), Loop(1, 3, 2, parent=0)]
    program = program_of({"p": 6}, steps, loops=loops)
    plan = Plan(program, slicing=Slicing(program, least_bytes=0))
    inner = next(index for index, lane in enumerate(plan.lanes) if lane.loop == 0)
    assert plan.cover(inner, 0, 0) is not None
    (residency,) = plan.memory_map().residencies
    assert residency.parts == (Part(0, 4, 1), Part(4, 2, 3))
    assert validate(program, plan.memory_map()) == ()
    assert total_stall(simulate(program, plan.memory_map())) == 0


@pytest.fixture
def two_weights() -> Program:
    """As above, a mebibyte for a byte, so that they may be cut; 14 of ticks without a stall."""
    steps = [(6, ""), (2, "rp"), (6, ""), (0, "rq")]
    sizes = {"p": 6 * MEBIBYTE, "q": 8 * MEBIBYTE}
    scaled = [(ticks * MEBIBYTE, accesses) for ticks, accesses in steps]
    return program_of(sizes, scaled, capacity=8 * MEBIBYTE)


def test_the_search_fetches_in_slices_where_it_gets_no_further(two_weights: Program) -> None:
    request = SolveRequest(two_weights, time_limit_seconds=60.0, max_games=400)
    for slicing_rounds, stall in ((1000, 2), (100, 0)):
        settings = NeighbourhoodSettings(slicing_rounds=slicing_rounds)
        solution = LargeNeighbourhoodSolver(settings).solve(request)
        assert solution.latency_ticks == (14 + stall) * MEBIBYTE


def test_small_programs_that_may_have_slices_are_searched_on(two_weights: Program) -> None:
    """The exact solver knows no slices: what it proves is not the end."""
    exact = solve_exactly(two_weights, 3.0)
    assert exact is not None
    assert exact.proven
    assert exact.ticks == 16 * MEBIBYTE
    solution = MilpSolver().solve(SolveRequest(two_weights, time_limit_seconds=5.0))
    assert solution.latency_ticks == 14 * MEBIBYTE


@pytest.mark.parametrize("parts", [(), (Part(0, 1, 2), Part(1, 1, 3))])
def test_what_a_replaced_copy_fills_is_made_anew(parts: tuple[Part, ...]) -> None:
    """A plan has none such: production's maps do."""
    steps = [(0, "wb"), (0, "rb"), (0, ""), (0, "rp wb"), (0, "rb"), (0, "")]
    program = program_of({"p": 2, "b": 2}, steps, copies=[3])
    filled = Residency(1, 0, start=2, end=5, source=Source.PRODUCED, ready=2, parts=parts)
    memory_map = MemoryMap((filled,), (), (ReplacedCopy(3, 2, 4),))
    assert validate(program, memory_map) == ()
    plan = Plan(program)
    plan.load(memory_map)
    assert validate(program, plan.memory_map()) == ()
    assert plan.latency_estimate() < program.all_slow_ticks
