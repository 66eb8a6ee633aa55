"""Known optima: reached by the map that comes with them, and beaten by nothing that is tried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.known_optimum import KINDS, known_optimum_program
from malloc_game.memory_map import MemoryMap, Residency, Source
from malloc_game.simulate import simulate
from malloc_game.validate import validate
from tests.pictures import picture
from tests.strategies import random_valid_map


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_that_comes_with_it_reaches_the_optimum(kind: str) -> None:
    for seed in range(60):
        known = known_optimum_program(seed, kind=kind, size=2 + seed % 30)
        assert validate(known.program, known.memory_map) == ()
        simulation = simulate(known.program, known.memory_map)
        assert simulation.latency_ticks == known.optimal_ticks
        assert known.optimal_ticks <= known.program.all_slow_ticks


@pytest.mark.parametrize("kind", KINDS)
def test_no_random_map_beats_it(kind: str) -> None:
    for seed in range(40):
        known = known_optimum_program(seed, kind=kind, size=4 + seed % 6)
        found = random_valid_map(known.program, np.random.default_rng(seed), 30)
        assert simulate(known.program, found).latency_ticks >= known.optimal_ticks


def latencies_of_all_subsets(program: Program) -> list[float]:
    """Every subset of tensors kept from write to read, if it fits one beside the other."""
    found = []
    buffers = range(len(program.buffers))
    for number in range(len(program.buffers) + 1):
        for subset in itertools.combinations(buffers, number):
            offset, residencies = 0, []
            for buffer in subset:
                start, end = (step for step, _ in program.accesses_of_buffer[buffer])
                loop = program.loop_of_step[start]
                residencies.append(
                    Residency(buffer, offset, start, end + 1, Source.PRODUCED, start, loop)
                )
                offset += program.buffers[buffer].size_bytes
            memory_map = MemoryMap(tuple(residencies))
            if offset <= program.capacity_bytes:
                found.append(simulate(program, memory_map).latency_ticks)
    return found


def test_knapsacks_by_trying_every_subset() -> None:
    for seed in range(12):
        known = known_optimum_program(seed, kind="knapsack", size=7)
        assert min(latencies_of_all_subsets(known.program)) == known.optimal_ticks


def test_packings_fill_fast_memory_completely() -> None:
    for seed in range(20):
        known = known_optimum_program(seed, kind="packing", size=12)
        rows = picture(known.program, known.memory_map).splitlines()
        assert all("." not in row[:-1] for row in rows)
        assert all(row[-1] == "." for row in rows)


def test_they_are_not_trivial() -> None:
    """There is something to gain, and not everything fits in the knapsacks."""
    for kind in KINDS:
        known = [known_optimum_program(seed, kind=kind, size=16) for seed in range(10)]
        assert all(k.optimal_ticks < k.program.all_slow_ticks for k in known)
    knapsacks = [known_optimum_program(seed, kind="knapsack", size=16) for seed in range(10)]
    assert all(k.optimal_ticks > k.program.all_fast_ticks for k in knapsacks)
    assert any(k.program.loops for k in knapsacks)


def test_the_same_seed_gives_the_same_program() -> None:
    for kind in KINDS:
        first, again, other = (known_optimum_program(s, kind=kind) for s in (1, 1, 2))
        assert first == again
        assert first != other


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="'bin' of known optima; choose one of packing, knapsack"):
        known_optimum_program(0, kind="bin")
    with pytest.raises(InputError, match="size 1"):
        known_optimum_program(0, size=1)
