"""Production's own maps, read from real compiled modules, obey our rules and cover its marks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from hlo_graphs import bundle as bundles
from hlo_graphs.calibration import calibrated_times
from hlo_graphs.chips import find_chip
from hlo_graphs.hlo import HloModule
from hlo_graphs.lower import Lowered, LoweringOptions, lower
from hlo_graphs.parser import parse_module, read_module
from hlo_graphs.program import Program
from malloc_game.compiled import ProductionError
from malloc_game.memory_map import MemoryMap, Residency, Source
from malloc_game.production import _updated_in_place, marked_fast, read_production_map
from malloc_game.simulate import fast_accesses, simulate
from malloc_game.validate import validate
from tests.shared_data import shared_data_path

EXAMPLES = ("mlp6", "lstm", "lm_infer", "resnet50_infer", "lm_train", "decode")


@dataclass(frozen=True)
class Example:
    bundle: bundles.Bundle
    lowered: Lowered
    compiled: HloModule
    memory_map: MemoryMap

    @property
    def program(self) -> Program:
        return self.lowered.program


@cache
def read_example(path: Path) -> Example:
    bundle = bundles.bundle_of(path)
    module = read_module(bundle.before)
    chip = find_chip("v5e")
    assert bundle.cycles is not None
    assert bundle.bufferinfo is not None
    assert bundle.production is not None
    assert bundle.buffer_assignment is not None
    lowered = lower(
        module,
        chip,
        calibrated_times(module, bundles.read_cycles(bundle.cycles), chip),
        LoweringOptions(name=bundle.key),
        bundles.read_bufferinfo(bundle.bufferinfo),
    )
    compiled = read_module(bundle.production)
    assignment = bundles.read_buffer_assignment(bundle.buffer_assignment)
    return Example(bundle, lowered, compiled, read_production_map(lowered, compiled, assignment))


def example(name: str) -> Example:
    return read_example(shared_data_path("tpu_examples") / f"{name}.v5e.before.hlo.gz")


@pytest.mark.parametrize("name", EXAMPLES)
def test_map_is_valid(name: str) -> None:
    found = example(name)
    assert [str(v) for v in validate(found.program, found.memory_map)] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_map_covers_exactly_the_accesses_marked_fast(name: str) -> None:
    found = example(name)
    assert fast_accesses(found.program, found.memory_map) == marked_fast(
        found.lowered, found.compiled
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_addresses_and_times_agree_with_the_compilers_own_table(name: str) -> None:
    """Every block of `allocinfo` that some step touches is (part of) one of our residencies."""
    found = example(name)
    assert found.bundle.allocinfo is not None
    placed = {
        (r.offset_bytes, found.program.buffers[r.buffer].size_bytes)
        for r in found.memory_map.residencies
    }
    alignment = found.program.machine.alignment_bytes
    unknown = [
        block
        for block in bundles.read_allocinfo(found.bundle.allocinfo)
        if (block.offset_bytes, -(-block.size_bytes // alignment) * alignment) not in placed
    ]
    assert unknown == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_faster_than_all_slow_and_within_the_memory(name: str) -> None:
    found = example(name)
    simulation = simulate(found.program, found.memory_map)
    assert simulation.latency_ticks < found.program.all_slow_ticks
    assert 0 < simulation.peak_fast_bytes <= found.program.capacity_bytes


def test_sliced_prefetches_have_parts_that_tile_the_buffer() -> None:
    found = example("mlp6")
    sliced = [r for r in found.memory_map.residencies if r.parts]
    assert len(sliced) == 4
    for residency in sliced:
        size_bytes = found.program.buffers[residency.buffer].size_bytes
        ends = [part.offset_bytes + part.size_bytes for part in residency.parts]
        assert [part.offset_bytes for part in residency.parts] == [0, *ends[:-1]]
        assert ends[-1] == size_bytes


def test_cross_program_prefetch_is_carried_and_fetched_again_at_the_end() -> None:
    found = example("mlp6")
    (carried,) = [r for r in found.memory_map.residencies if r.source is Source.CARRIED]
    again = [r for r in found.memory_map.residencies if r.end == found.program.num_steps + 1]
    assert found.program.buffers[carried.buffer].name.startswith("ws_0_")
    assert [r.buffer for r in again] == [carried.buffer]
    assert again[0].offset_bytes == carried.offset_bytes


def test_loop_bodies_fetch_their_weights_on_every_trip() -> None:
    found = example("lstm")
    (loop,) = found.program.loops
    inside = [r for r in found.memory_map.residencies if r.loop == 0]
    assert loop.trip_count == 128
    assert [r for r in inside if r.source is Source.COPIED]
    assert all(loop.start_step <= r.start < r.end <= loop.end_step for r in inside)


def test_copies_the_copy_engine_did_instead_are_named() -> None:
    found = example("decode")
    steps = [copy.step for copy in found.memory_map.replaced_copies]
    assert len(steps) == 12
    assert {found.program.instructions[step].opcode for step in steps} == {"copy"}


def test_a_module_of_another_program_is_refused() -> None:
    text = "HloModule other, is_scheduled=true\nENTRY e { ROOT p = f32[8] parameter(0) }\n"
    with pytest.raises(ProductionError, match="nothing there does the work of"):
        read_production_map(example("mlp6").lowered, parse_module(text, "other.hlo"), ())


def test_what_is_joined_keeps_the_holes_of_both() -> None:
    earlier = Residency(0, 0, 0, 3, Source.COPIED, 1, holes=((1, 2),))
    later = Residency(0, 0, 2, 9, Source.PRODUCED, 2, holes=((4, 6),))
    (joined,) = _updated_in_place([earlier, later])
    assert joined == Residency(0, 0, 0, 9, Source.COPIED, 1, holes=((1, 2), (4, 6)))
