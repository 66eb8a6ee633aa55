"""The solver on programs: always valid, never worse than all-slow, and by hand on small ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.benchmarks.xla_msa import ranked_alike, references
from hlo_graphs.errors import InputError
from hlo_graphs.program import Loop, Program
from malloc_game.memory_map import MemoryMap, Source
from malloc_game.simulate import fast_accesses
from malloc_game.validate import validate
from solvers.msa_algorithm import assign
from solvers.msa_options import (
    ASSIGN_FIRST,
    BufferOrder,
    MsaOptions,
    PickerKind,
    PickerOptions,
    SortOverride,
)
from solvers.msa_program import memory_map_of, problem_of
from solvers.solver import SolveRequest, solver_named
from solvers.xla_msa import TUNED, XlaMsaSolver
from tests.malloc_game.small import program_of
from tests.strategies import small_program

COUNTING = MsaOptions(
    order=BufferOrder.SIZE,
    picker=PickerOptions(kind=PickerKind.INSTRUCTION_COUNT),
    enable_cross_program_prefetch=False,
    verify=True,
)


def map_of(program: Program, options: MsaOptions) -> MemoryMap:
    made = memory_map_of(program, assign(problem_of(program, options), options))
    assert validate(program, made) == ()
    return made


def options_of(seed: int) -> MsaOptions:
    """Options of every kind, by the bits of a seed."""
    counting = bool(seed & 1)
    return MsaOptions(
        order=BufferOrder.SIZE if seed & 2 else BufferOrder.MEMORY_BOUNDEDNESS,
        picker=PickerOptions(
            kind=PickerKind.INSTRUCTION_COUNT if counting else PickerKind.COST_ANALYSIS,
            min_overlap=0.5 * (seed >> 2 & 3),
            preferred_overlap=0.5 * (seed >> 2 & 3) + 0.5,
            max_overlap=4.0 * (1 + (seed >> 4 & 3)),
            min_count=seed >> 2 & 3,
            max_count=3 + (seed >> 4 & 7),
        ),
        max_retries=1 + (seed >> 7 & 1),
        max_repacks=(seed >> 8 & 1) * 5,
        inefficient_use_to_copy_ratio=0.5 * (seed >> 9 & 3),
        enforce_prefetch_fifo_order=bool(seed >> 11 & 1),
        max_outstanding_prefetches=(seed >> 12 & 3) - 1,
        max_outstanding_evictions=(seed >> 14 & 3) - 1,
        enable_cross_program_prefetch=bool(seed >> 16 & 1),
        verify=True,
    )


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**17 - 1))
def test_every_map_is_valid_under_every_option(seed: int, choice: int) -> None:
    map_of(small_program(seed, max_accesses=40), options_of(choice))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_never_worse_than_all_slow_nor_than_what_it_was_given(seed: int) -> None:
    program = small_program(seed)
    given_map = solver_named("greedy").solve(SolveRequest(program)).memory_map
    for maps in ((), (given_map,)):
        request = SolveRequest(program, initial_maps=maps)
        solution = XlaMsaSolver().solve(request)
        assert validate(program, solution.memory_map) == ()
        assert solution.latency_ticks <= program.all_slow_ticks
    greedy_ticks = solver_named("greedy").solve(SolveRequest(program)).latency_ticks
    assert solution.latency_ticks <= greedy_ticks


def test_is_in_the_registry() -> None:
    assert isinstance(solver_named("xla-msa"), XlaMsaSolver)


def test_a_value_between_neighbours_stays() -> None:
    program = program_of({"a": 4}, [(1, "wa"), (1, "ra")])
    (residency,) = map_of(program, COUNTING).residencies
    assert (residency.source, residency.start, residency.end) == (Source.PRODUCED, 0, 2)


def test_a_parameter_is_prefetched_as_early_as_allowed() -> None:
    steps = [(9, "")] * 8 + [(1, "ra")]
    (residency,) = map_of(program_of({"a": 4}, steps), COUNTING).residencies
    assert (residency.source, residency.start, residency.ready) == (Source.COPIED, 0, 8)


def test_a_value_that_waits_too_long_is_evicted_and_fetched_again() -> None:
    steps = [(9, "wa"), (9, "ra"), *[(9, "")] * 15, (9, "ra")]
    made = map_of(program_of({"a": 4}, steps), COUNTING)
    first, second = made.residencies
    (eviction,) = made.evictions
    assert (first.source, first.start) == (Source.PRODUCED, 0)
    assert eviction.issue == 1
    assert (second.source, second.start, second.ready) == (Source.COPIED, 8, 17)


def test_an_update_keeps_the_address() -> None:
    program = program_of({"a": 4}, [(9, "wa"), (9, "ua"), (9, "ra")])
    (residency,) = map_of(program, COUNTING).residencies
    assert (residency.start, residency.end) == (0, 3)


def test_the_output_is_saved_before_the_end() -> None:
    program = program_of({"a": 4}, [(9, "wa"), (9, "ra"), (9, ""), (9, "")], live_out="a")
    made = map_of(program, COUNTING)
    (eviction,) = made.evictions
    assert eviction.issue == 1
    assert eviction.done <= program.num_steps
    assert fast_accesses(program, made) == {(0, 0), (1, 0)}


def test_a_buffer_used_all_through_a_loop_is_held_for_all_of_it() -> None:
    program = program_of(
        {"a": 4},
        [(9, "wa"), (9, "ra"), (9, ""), (9, "ra")],
        loops=[Loop(1, 3, 10)],
    )
    (residency,) = map_of(program, COUNTING).residencies
    assert (residency.start, residency.end, residency.loop) == (0, 4, None)


def test_what_lives_in_a_trip_is_placed_per_trip() -> None:
    program = program_of({"a": 4}, [(9, ""), (9, "wa"), (9, "ra")], loops=[Loop(1, 3, 10)])
    (residency,) = map_of(program, COUNTING).residencies
    assert (residency.start, residency.end, residency.loop) == (1, 3, 0)


def test_a_weight_is_left_for_the_next_run() -> None:
    program = program_of({"a": 4, "b": 2}, [(1, "ra rb"), (1, "ra")])
    options = replace(COUNTING, enable_cross_program_prefetch=True)
    carried = [r for r in map_of(program, options).residencies if r.source is Source.CARRIED]
    assert [(r.buffer, r.start, r.end) for r in carried] == [(0, 0, 3)]


def test_a_weight_is_freed_if_loops_make_the_time_after_its_last_use_long() -> None:
    """In one pass it is used for 70 of 155 ticks; the loop counts as five trips."""
    program = program_of(
        {"a": 5, "b": 4},
        [(70, ""), (0, "ra"), (40, ""), (20, "wb"), (20, "rb")],
        loops=[Loop(2, 3, 3)],
    )
    found = [r for r in map_of(program, TUNED).residencies if r.buffer == 0]
    assert [(r.source, r.start, r.end) for r in found] == [
        (Source.CARRIED, 0, 2),
        (Source.COPIED, 4, 6),
    ]


def test_what_the_program_gives_out_is_not_left_for_the_next_run() -> None:
    """XLA carries no parameter that is aliased with the root."""
    program = program_of({"a": 4, "b": 2}, [(1, "ra rb"), (1, "ra")], live_out="a")
    options = replace(COUNTING, enable_cross_program_prefetch=True)
    carried = [r for r in map_of(program, options).residencies if r.source is Source.CARRIED]
    assert [r.buffer for r in carried] == [1]


def test_dead_content_is_not_fetched_into_a_trip() -> None:
    """What the inner loop overwrites was left stale in slow memory by the trip before."""
    program = program_of(
        {"a": 4},
        [(40, ""), (40, ""), (0, "wa"), (0, ""), (0, "ra")],
        loops=[Loop(0, 5, 3), Loop(2, 4, 2, parent=0)],
    )
    map_of(program, TUNED)


def test_no_eviction_is_issued_while_a_loop_is_under_way() -> None:
    """The loop reads what nothing has written; the next use is too late to stay for it."""
    program = program_of(
        {"a": 4}, [(9, "ra"), (9, ""), (200, ""), (9, "ra")], loops=[Loop(0, 2, 3)]
    )
    undefined = replace(program.buffers[0], is_undefined=True, is_parameter=False)
    map_of(replace(program, buffers=(undefined,)), TUNED)


class LookedUpOnly(dict[int, tuple[int, ...]]):
    """What is asked for one value at a time."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("the requirements of all values are looked at for one buffer")


def test_a_buffer_looks_up_what_is_required_of_its_own_values() -> None:
    problem = problem_of(program_of({"a": 4}, [(1, "wa"), (1, "ra")]), COUNTING)
    for time, fast in ((0, False), (9, True)):
        required = replace(problem, required=LookedUpOnly({0: (time,)}))
        assert assign(required, COUNTING).placed[0].is_fast(0, 0) is fast


def test_priority_decides_who_gets_the_memory() -> None:
    program = program_of({"a": 4, "b": 3}, [(1, "wa"), (1, "wb"), (1, "ra rb")], capacity=4)
    assert {r.buffer for r in map_of(program, COUNTING).residencies} == {0}
    override = SortOverride(ASSIGN_FIRST, instruction_regex="b")
    options = replace(COUNTING, sort_order_overrides=(override,))
    assert {r.buffer for r in map_of(program, options).residencies} == {1}
    options = replace(COUNTING, autotuning_config=(1, 0))
    assert {r.buffer for r in map_of(program, options).residencies} == {1}


def test_scratch_takes_memory_away() -> None:
    program = program_of({"a": 4}, [(1, "wa"), (1, ""), (1, "ra")])
    options = replace(COUNTING, reserved_scoped_bytes=((1, 5),))
    assert map_of(program, options).residencies == ()
    options = replace(COUNTING, reserved_scoped_bytes=((1, 4),))
    (residency,) = map_of(program, options).residencies
    assert residency.offset_bytes == 4


def test_repacking_makes_room() -> None:
    """`a` leaves a hole below `b` and `d`; only moving them joins it with the rest."""
    program = program_of(
        {"a": 3, "b": 3, "d": 5},
        [(1, "wa"), (1, "wb"), (1, "ra"), (1, "wd"), (1, "rb rd")],
        capacity=8,
    )
    overrides = (SortOverride(-1, instruction_regex="a"), SortOverride(1, instruction_regex="d"))
    order = replace(COUNTING, sort_order_overrides=overrides)
    assert {r.buffer for r in map_of(program, order).residencies} == {0, 1}
    packed = map_of(program, replace(order, max_repacks=1))
    assert {r.buffer for r in packed.residencies} == {0, 1, 2}


@pytest.mark.parametrize(
    ("steps", "boundedness"),
    [
        ([(9, "wa"), (6, "ra")], 4 - 6),  # the better of two that are bound by compute
        ([(6, "wa"), (9, "ra")], 4 - 6),
        ([(3, "wa"), (3, "ra")], 4 + 4 * 5),
        ([(9, "wa"), (3, "ra")], 4 * 5),
        ([(9, "ra"), (9, "ra")], 0),  # defined before the program
    ],
)
def test_boundedness_is_below_zero_for_what_is_bound_by_compute(
    steps: list[tuple[int, str]], boundedness: int
) -> None:
    """The second step is in a loop, which counts as five trips for what is bound by memory."""
    program = program_of({"a": 4}, steps, loops=[Loop(1, 2, 3)])
    assert problem_of(program, COUNTING).buffers[0].boundedness == boundedness


@pytest.mark.parametrize("together", [True, False])
def test_scratch_moves_when_memory_is_repacked(together: bool) -> None:
    """`b` of 5 bytes lies above 3 of scratch, `a` of 4 above 4: both always fit."""
    program = program_of({"b": 5, "a": 4}, [(1, "wb"), (1, "rb"), (1, "wa"), (1, "ra")], capacity=8)
    options = replace(
        COUNTING,
        reserved_scoped_bytes=((1, 3), (3, 4)),
        max_repacks=5,
        repack_after_every_allocation=True,
        allocate_reserved_scoped_memory_at_same_offset=together,
    )
    assert {r.buffer for r in map_of(program, options).residencies} == {0, 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"large_buffer_scaling": "CUBE"},
        {"async_copy_bandwidth_scaling": 0.0},
        {"max_retries": 0},
    ],
)
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        MsaOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [-1, 2])
def test_a_map_carries_no_more_than_one_parameter(most: int) -> None:
    with pytest.raises(InputError, match=f"max_cross_program_prefetches is {most}"):
        XlaMsaSolver(MsaOptions(max_cross_program_prefetches=most))


def test_a_wrong_permutation_is_refused() -> None:
    program = program_of({"a": 4}, [(1, "wa"), (1, "ra")])
    options = replace(COUNTING, autotuning_config=(0, 1))
    with pytest.raises(InputError, match="permutation"):
        map_of(program, options)


@pytest.mark.parametrize("name", ["resnet50_infer.v5e", "llama_decode.v5e"])
def test_buffers_are_ranked_as_in_productions_own_table(name: str) -> None:
    (reference,) = references([name])
    problem = problem_of(reference.program, TUNED)
    assert len(reference.benefits) > 0.9 * len(problem.buffers)
    assert ranked_alike(problem, reference.benefits) > 0.8


def test_a_shape_that_is_no_hlo_text_is_no_error() -> None:
    program = program_of({"p": 4, "a": 4}, [(0, "rp wa"), (0, "ra")])
    step = replace(program.instructions[0], shape="a matrix")
    program = replace(program, instructions=(step, program.instructions[1]))
    solution = XlaMsaSolver().solve(SolveRequest(program))
    assert validate(program, solution.memory_map) == ()
