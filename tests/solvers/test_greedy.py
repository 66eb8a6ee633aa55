"""Greedy: always valid, never worse than all-slow, and right where the answer is plain."""

from __future__ import annotations

import cProfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.program import Loop, Program
from malloc_game.generator import random_program
from malloc_game.memory_map import MemoryMap, Source
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from solvers.greedy import GreedySolver, carried_choices, construct, greedy_plans
from solvers.lane_table import LaneTable
from solvers.plan import Plan, Proposal
from solvers.solver import SolveRequest
from tests.malloc_game.small import program_of
from tests.strategies import programs, random_valid_map


def solved(program: Program) -> tuple[MemoryMap, float]:
    solution = GreedySolver().solve(SolveRequest(program))
    assert validate(program, solution.memory_map) == ()
    assert simulate(program, solution.memory_map).latency_ticks == solution.latency_ticks
    return solution.memory_map, solution.latency_ticks


def rounding_ticks(program: Program) -> float:
    """What serving copies from branches may lose: the simulator rounds down at every step."""
    return 1e-6 + sum(loop.end_step - loop.start_step for loop in program.loops if loop.is_branch)


@given(programs(max_accesses=40))
@settings(max_examples=60, deadline=None)
def test_maps_are_valid_and_never_worse_than_all_slow(program: Program) -> None:
    _, ticks = solved(program)
    assert ticks <= program.all_slow_ticks


@given(programs(max_accesses=40))
@settings(max_examples=60, deadline=None)
def test_plans_never_promise_more_than_the_simulator_finds(program: Program) -> None:
    for plan in greedy_plans(program, LaneTable.of(program)):
        latency = simulate(program, plan.memory_map()).latency_ticks
        assert latency <= plan.latency_estimate() * (1 + 1e-9) + rounding_ticks(program)


@given(programs(max_accesses=30))
@settings(max_examples=40, deadline=None)
def test_undoing_restores_the_plan(program: Program) -> None:
    plan = construct(Plan(program))
    before, ticks = plan.memory_map(), plan.latency_estimate()
    for run in list(plan.runs.values()):
        plan.uncover(run).undo()
    for index, lane in enumerate(plan.lanes):
        for position in range(len(lane.items)):
            change = plan.cover(index, position, position)
            if change is not None:
                change.undo()
    assert plan.memory_map() == before
    assert plan.latency_estimate() == pytest.approx(ticks)


@given(programs(max_accesses=40))
@settings(max_examples=60, deadline=None)
def test_a_plan_takes_over_the_map_of_another_as_it_is(program: Program) -> None:
    table = LaneTable.of(program)
    for original in greedy_plans(program, table):
        memory_map = original.memory_map()
        plan = Plan(program, table)
        plan.load(memory_map)
        assert plan.memory_map() == memory_map
        latency = simulate(program, memory_map).latency_ticks
        assert latency <= plan.latency_estimate() * (1 + 1e-9) + rounding_ticks(program)
        if not program.loops:
            assert plan.latency_estimate() == pytest.approx(latency, rel=1e-12)
        for run in list(plan.runs.values()):
            plan.uncover(run)
        plan.unpin()
        if not plan.replaced:
            assert plan.latency_estimate() == pytest.approx(program.all_slow_ticks)


@given(programs(max_accesses=30), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_plan_takes_over_what_it_can_of_any_map(program: Program, seed: int) -> None:
    memory_map = random_valid_map(program, np.random.default_rng(seed))
    plan = Plan(program)
    plan.load(memory_map)
    assert validate(program, plan.memory_map()) == ()
    latency = simulate(program, plan.memory_map()).latency_ticks
    assert latency <= plan.latency_estimate() * (1 + 1e-9) + rounding_ticks(program)


def test_a_value_written_and_read_stays() -> None:
    program = program_of({"a": 4}, [(0, "wa"), (0, "ra")])
    memory_map, ticks = solved(program)
    assert ticks == 0
    (residency,) = memory_map.residencies
    assert (residency.start, residency.end, residency.source) == (0, 2, Source.PRODUCED)


def test_of_two_that_do_not_fit_the_better_by_byte_and_step_stays() -> None:
    program = program_of({"a": 4, "b": 6}, [(0, "wa wb"), (0, "ra"), (0, "rb")], capacity=6)
    memory_map, _ = solved(program)
    assert 0 in {residency.buffer for residency in memory_map.residencies}


def test_a_parameter_is_prefetched_in_idle_time() -> None:
    program = program_of({"p": 4, "a": 1}, [(9, "wa"), (0, "rp ra")])
    memory_map, ticks = solved(program)
    assert ticks == 9
    assert any(r.buffer == 0 and r.source is not Source.PRODUCED for r in memory_map.residencies)


def test_a_live_out_buffer_is_written_back() -> None:
    program = program_of({"a": 4}, [(0, "wa"), (9, "ra")], live_out="a")
    memory_map, ticks = solved(program)
    assert ticks == 9
    assert len(memory_map.evictions) == 1


def test_loop_weights_are_resident_for_the_whole_loop() -> None:
    loops = [Loop(1, 2, 10)]
    program = program_of({"p": 4, "x": 1}, [(0, "wx"), (1, "rp"), (0, "rx")], loops=loops)
    memory_map, ticks = solved(program)
    assert ticks < program.all_slow_ticks / 2
    weight = next(r for r in memory_map.residencies if r.buffer == 0)
    assert weight.loop is None
    assert weight.start <= 1
    assert weight.end >= 2


def test_a_copy_is_hidden_as_far_as_there_is_room() -> None:
    steps = [(3, "wa"), (3, "ra"), (3, ""), (0, "rp"), (0, "rp")]
    program = program_of({"p": 6, "a": 4}, steps)
    plan = Plan(program)
    lane_of = {lane.buffer: index for index, lane in enumerate(plan.lanes)}
    assert plan.cover(lane_of[1], 0, 1) is not None
    change = plan.cover(lane_of[0], 0, 1)
    assert change is not None
    assert change.run is not None
    assert (change.run.start, change.run.ready, change.run.stall_ticks) == (2, 3, 3.0)
    memory_map = plan.memory_map()
    assert validate(program, memory_map) == ()
    assert simulate(program, memory_map).latency_ticks == plan.latency_estimate() == 12


def test_what_the_last_step_of_a_trip_writes_is_written_back_as_a_stall() -> None:
    program = program_of({"a": 4}, [(0, "ra"), (0, "ua")], loops=[Loop(0, 2, 3)])
    plan = Plan(program)
    (inner,) = (index for index, lane in enumerate(plan.lanes) if lane.loop == 0)
    assert plan.cover(inner, 0, 1) is not None
    memory_map = plan.memory_map()
    assert [(e.issue, e.done) for e in memory_map.evictions] == [(2, 2)]
    assert validate(program, memory_map) == ()
    assert simulate(program, memory_map).latency_ticks == plan.latency_estimate() == 3 * (4 + 4)


def test_a_refused_proposal_leaves_no_trace() -> None:
    program = program_of({"p": 4, "a": 1}, [(9, "wa"), (0, "rp ra")])
    plan = Plan(program)
    seen: list[float] = []

    def refuse(proposal: Proposal) -> bool:
        seen.append(proposal.gain_ticks)
        return False

    assert plan.cover(0, 0, 0, accepts=refuse) is None
    assert seen == [4.0]
    assert plan.memory_map() == MemoryMap()
    assert plan.latency_estimate() == program.all_slow_ticks


def test_a_program_that_is_only_a_loop_fetches_at_its_entry() -> None:
    steps = [(1, "rp"), (1, "rp wx"), (0, "up")]
    program = program_of({"p": 4, "x": 1}, steps, loops=[Loop(0, 2, 10)], live_out="p")
    memory_map, ticks = solved(program)
    (residency,) = memory_map.residencies
    assert (residency.start, residency.ready, residency.end) == (0, 0, 3)
    assert ticks == 4 + 10 * 2 + 4


def test_a_copy_instruction_goes_to_the_copy_engine() -> None:
    steps = [(9, "wx"), (0, "rs wd"), (9, "rx"), (1, "rd")]
    program = program_of({"x": 1, "s": 6, "d": 6}, steps, copies=[1], forbidden="sd")
    memory_map, _ = solved(program)
    assert [copy.step for copy in memory_map.replaced_copies] == [1]


def test_initial_maps_are_never_made_worse() -> None:
    program = random_program(3, num_accesses=60)
    best = construct(Plan(program)).memory_map()
    solution = GreedySolver().solve(SolveRequest(program, initial_maps=(best,)))
    assert solution.latency_ticks <= simulate(program, best).latency_ticks


def test_the_same_program_gives_the_same_map() -> None:
    program = random_program(5, num_accesses=120)
    request = SolveRequest(program)
    assert GreedySolver().solve(request).memory_map == GreedySolver().solve(request).memory_map


def test_work_grows_as_the_accesses_do() -> None:
    small, large = (_calls_to_construct(num_accesses) for num_accesses in (925, 3700))
    assert large < 5.5 * small


def _calls_to_construct(num_accesses: int) -> int:
    """Calls of functions, which no other work on the machine changes."""
    program = random_program(1, family="training", num_accesses=num_accesses, max_size_units=64)
    profile = cProfile.Profile()
    profile.runcall(construct, Plan(program))
    return sum(entry.callcount for entry in profile.getstats())


@given(programs(max_accesses=30))
@settings(max_examples=60, deadline=None)
def test_carrying_another_parameter_can_be_taken_back(program: Program) -> None:
    for buffer in carried_choices(program)[:2]:
        for last_use in (None, 0):
            plan = Plan(program)
            assert plan.pin(plan.carried(buffer, last_use)) is not None
            assert validate(program, plan.memory_map()) == ()
            construct(plan)
            memory_map, ticks = plan.memory_map(), plan.latency_estimate()
            assert validate(program, memory_map) == ()
            latency = simulate(program, memory_map).latency_ticks
            assert latency <= ticks * (1 + 1e-9) + rounding_ticks(program)
            let_go = plan.unpin()
            assert let_go is not None
            assert validate(program, plan.memory_map()) == ()
            let_go.undo()
            assert plan.memory_map() == memory_map
            assert plan.latency_estimate() == pytest.approx(ticks)


def test_a_carried_parameter_leaves_and_comes_back_for_a_later_use() -> None:
    steps = [(0, "rp"), (9, "wa"), (9, "ra"), (0, "rp"), (9, "wb"), (9, "rb"), (9, "")]
    program = program_of({"p": 4, "a": 8, "b": 8}, steps)
    plan = Plan(program)
    assert plan.pin(plan.carried(0, 0)) is not None
    lane_of = {lane.buffer: index for index, lane in enumerate(plan.lanes)}
    assert plan.cover(lane_of[1], 0, 1) is not None
    assert plan.cover(lane_of[0], 1, 1) is not None
    memory_map = plan.memory_map()
    assert validate(program, memory_map) == ()
    of_p = [r for r in memory_map.residencies if r.buffer == 0]
    assert [r.source for r in of_p] == [Source.CARRIED, Source.COPIED, Source.COPIED]


def test_a_plan_of_a_map_lets_go_of_what_a_replaced_copy_reads() -> None:
    steps = [(4, ""), (0, "rp"), (0, "rp wb"), (0, "rb"), (4, "")]
    program = program_of({"p": 4, "b": 2}, steps, capacity=8, copies=[2])
    made = Plan(program)
    made.replace_copies()
    assert made.replaced
    assert made.pin(made.carried(0, None)) is not None
    loaded = Plan(program)
    loaded.load(made.memory_map())
    assert loaded.memory_map() == made.memory_map()
    for plan in (made, loaded):
        blocked = {buffer: list(ranges) for buffer, ranges in plan.blocked.items()}
        assert plan.unpin() is not None
        latency = simulate(program, plan.memory_map()).latency_ticks
        assert plan.latency_estimate() == pytest.approx(latency)
        assert blocked[0] == [*plan.blocked[0], (0, program.num_steps + 1)]


def test_all_maps_handed_in_count_whatever_the_time() -> None:
    program = random_program(3, num_accesses=60, pressure=3.0, max_size_units=16)
    good = GreedySolver().solve(SolveRequest(program)).memory_map
    best = min(
        (plan.memory_map() for plan in greedy_plans(program, LaneTable.of(program))),
        key=lambda found: simulate(program, found).latency_ticks,
    )
    assert good == best
    request = SolveRequest(program, time_limit_seconds=0.0, initial_maps=(MemoryMap(), good))
    ticks = simulate(program, good).latency_ticks
    assert GreedySolver().solve(request).latency_ticks <= ticks


def test_a_copy_in_an_inner_loop_has_the_same_window_as_in_an_outer_one() -> None:
    steps = [(0, "wa"), (20, ""), (0, "ra wb"), (0, "rb"), (0, "")]
    found = []
    for loops in ([Loop(1, 4, 3)], [Loop(0, 5, 2), Loop(1, 4, 3, parent=0)]):
        program = program_of({"a": 4, "b": 4}, steps, loops=loops, copies=[2], forbidden="ab")
        plan = Plan(program)
        plan.replace_copies()
        memory_map = plan.memory_map()
        assert validate(program, memory_map) == ()
        found.append((plan.replaced, simulate(program, memory_map).latency_ticks))
    (flat, _), (nested, nested_ticks) = found
    assert flat == nested == {2: (1, 3)}
    assert nested_ticks == 152


def test_time_that_a_replaced_copy_no_longer_has_is_missed_by_who_reserved_it() -> None:
    steps = [(0, "wa wc"), (20, "ra wb"), (30, "rc wd"), (0, "rb rd")]
    sizes = dict.fromkeys("abcd", 4)
    program = program_of(sizes, steps, capacity=4, copies=[1, 2], forbidden="abcd")
    plan = Plan(program)
    plan.replace_copies()
    assert plan.latency_estimate() == simulate(program, plan.memory_map()).latency_ticks == 32
