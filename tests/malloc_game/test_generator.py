"""Generated programs are well formed, the same for the same seed, and as asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.errors import InputError
from hlo_graphs.program import AccessKind, Program
from malloc_game.generator import TICKS_PER_UNIT, UNIT_BYTES, Family, random_program
from malloc_game.known_optimum import known_optimum_program
from malloc_game.memory_map import MemoryMap
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from tests.strategies import programs


def largest_live_bytes(program: Program) -> int:
    """Largest sum of sizes from first to last use."""
    live = np.zeros(program.num_steps, dtype=np.int64)
    for buffer, accesses in zip(program.buffers, program.accesses_of_buffer, strict=True):
        if accesses:
            live[accesses[0][0] : accesses[-1][0] + 1] += buffer.size_bytes
    return int(live.max())


@pytest.mark.parametrize("family", Family)
def test_the_same_seed_gives_the_same_program(family: Family) -> None:
    first, again, other = (random_program(seed, family=family) for seed in (7, 7, 8))
    assert first == again
    assert first != other


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("wanted", [1, 60, 1000])
def test_size_is_about_what_was_asked_for(family: Family, wanted: int) -> None:
    found = random_program(2, family=family, num_accesses=wanted).num_accesses
    assert wanted <= found <= wanted + 150


def test_thousands_of_accesses() -> None:
    assert random_program(0, num_accesses=4000).num_accesses >= 4000


@settings(max_examples=60, deadline=None)
@given(programs(max_accesses=80))
def test_everything_is_written_before_it_is_read(program: Program) -> None:
    for buffer, accesses in zip(program.buffers, program.accesses_of_buffer, strict=True):
        if accesses and not buffer.is_parameter:
            assert accesses[0][1].kind is AccessKind.WRITE
            assert accesses[0][0] == buffer.origin


@settings(max_examples=40, deadline=None)
@given(programs(max_accesses=80))
def test_json_round_trip_and_repeats(program: Program) -> None:
    assert Program.from_json(program.to_json()) == program
    for step, instruction in enumerate(program.instructions):
        around = program.loops_around(program.loop_of_step[step])
        weights = [program.loops[loop].weight for loop in around]
        assert instruction.repeat == pytest.approx(np.prod(weights))


@settings(max_examples=40, deadline=None)
@given(programs(max_accesses=80))
def test_the_empty_map_is_valid_and_takes_the_all_slow_time(program: Program) -> None:
    assert validate(program, MemoryMap()) == ()
    assert simulate(program, MemoryMap()).latency_ticks == program.all_slow_ticks


@pytest.mark.parametrize("pressure", [0.5, 1.0, 2.0, 5.0])
def test_pressure_is_live_bytes_over_capacity(pressure: float) -> None:
    program = random_program(4, num_accesses=300, pressure=pressure)
    units = largest_live_bytes(program) / UNIT_BYTES / pressure
    assert units <= program.capacity_bytes / UNIT_BYTES < units + 1


def test_intensity_sets_what_can_be_gained() -> None:
    gains = [
        program.all_slow_ticks / program.all_fast_ticks
        for program in (random_program(1, num_accesses=300, intensity=i) for i in (0.25, 1.0, 4.0))
    ]
    assert gains[0] > gains[1] > gains[2] >= 1.0


def test_families_have_what_their_names_say() -> None:
    kinds = {a.kind for i in random_program(1, family="in_place").instructions for a in i.accesses}
    assert AccessKind.UPDATE in kinds
    assert all(loop.is_branch for loop in random_program(1, family="branch").loops)
    nested = random_program(1, family="loop", num_accesses=200, max_loop_depth=3)
    assert any(loop.parent is not None for loop in nested.loops)
    assert max(loop.trip_count for loop in nested.loops) <= 5
    assert not random_program(1, family="chain").loops
    assert not random_program(1, family="mixed", num_accesses=300, max_loop_depth=0).loops


def test_copies_and_forbidden_buffers_can_be_asked_for_and_left_out() -> None:
    many = random_program(3, num_accesses=300, copy_share=1.0, forbidden_share=1.0)
    none = random_program(3, num_accesses=300, copy_share=0.0, forbidden_share=0.0)
    assert any(i.async_copy for i in many.instructions)
    assert not any(i.async_copy for i in none.instructions)
    assert not any(b.fast_allowed for b in many.buffers)
    assert all(b.fast_allowed for b in none.buffers)


@given(st.integers(1, 10**6))
def test_copies_take_whole_ticks(units: int) -> None:
    program = random_program(0, num_accesses=1)
    assert program.copy_ticks(units * UNIT_BYTES) == units * TICKS_PER_UNIT


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"family": "cnn"}, "'cnn'; choose one of chain, residual"),
        ({"num_accesses": 0}, "num_accesses is 0"),
        ({"pressure": -1.0}, "pressure is -1.0"),
        ({"intensity": -0.5}, "intensity is -0.5"),
        ({"intensity": float("inf")}, "intensity is inf"),
        ({"max_trip_count": 0.5}, "max_trip_count is 0.5, not an integer"),
        ({"forbidden_share": 1.5}, "forbidden_share is 1.5"),
    ],
)
def test_settings_out_of_range(settings_: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        random_program(0, **settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [random_program, known_optimum_program])
def test_a_seed_is_no_negative_number(draw: Callable[[int], object]) -> None:
    with pytest.raises(InputError, match="seed is -1, must be >= 0"):
        draw(-1)
