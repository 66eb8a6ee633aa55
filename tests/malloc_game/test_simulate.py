"""The simulator: XLA's vectors, maps one can time by hand, and a tick-by-tick witness."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from hlo_graphs.errors import InputError
from hlo_graphs.program import Loop, Program
from malloc_game.generator import Family, random_program
from malloc_game.memory_map import Eviction, MemoryMap, Part, ReplacedCopy, Residency, Source
from malloc_game.simulate import (
    COPY_ORDERS,
    compulsory_bus_bytes,
    fast_access_mask,
    fast_accesses,
    simulate,
)
from malloc_game.validate import validate
from tests.malloc_game.reference import reference_fifo_latency, reference_simulation
from tests.malloc_game.small import program_of
from tests.strategies import programs, programs_with_maps, random_valid_map, small_program

PRODUCED, COPIED, CARRIED = Source.PRODUCED, Source.COPIED, Source.CARRIED


def copied(buffer: int, start: int, ready: int, end: int, loop: int | None = None) -> Residency:
    return Residency(buffer, 8 * buffer, start, end, COPIED, ready, loop)


def latency(program: Program, *residencies: Residency, **pieces: tuple[object, ...]) -> float:
    """Latency of a valid map with deadlines; the witness agrees."""
    memory_map = MemoryMap(residencies, **pieces)  # type: ignore[arg-type]
    assert validate(program, memory_map) == ()
    simulation = simulate(program, memory_map)
    assert simulation.latency_ticks == reference_simulation(program, memory_map).latency_ticks
    return simulation.latency_ticks


class TestByHand:
    """One byte takes one tick; every test's arithmetic fits in its comments."""

    def test_all_slow(self) -> None:
        program = program_of({"a": 4, "b": 2}, [(1, "ra wb"), (9, "rb")], capacity=32)
        assert latency(program) == 6 + 9

    def test_a_prefetch_hidden_by_idle_time(self) -> None:
        # Step 0 computes for 9 and its slow access takes 2: 7 idle ticks hide a's 4.
        program = program_of({"a": 4, "b": 2}, [(9, "rb"), (1, "ra")], capacity=32)
        assert latency(program) == 9 + 4
        assert latency(program, copied(0, 0, 1, 2)) == 9 + 1

    def test_a_prefetch_partly_hidden_stalls_for_the_rest(self) -> None:
        # Only 1 idle tick: the other 3 of a's 4 stall just before step 1.
        program = program_of({"a": 4, "b": 2}, [(3, "rb"), (1, "ra")], capacity=32)
        memory_map = MemoryMap((copied(0, 0, 1, 2),))
        simulation = simulate(program, memory_map)
        assert simulation.latency_ticks == 3 + 3 + 1
        assert simulation.stall_before_ticks.tolist() == [0, 3, 0]
        assert (simulation.services[0].first_step, simulation.services[0].end_step) == (0, 1)
        assert simulation.elapsed_ticks.tolist() == [3, 1]
        assert simulation.idle_ticks.tolist() == [1, 1]

    def test_a_prefetch_that_nothing_hides(self) -> None:
        program = program_of({"a": 4}, [(9, "ra"), (0, "")], capacity=32)
        assert latency(program, copied(0, 0, 0, 1)) == 4 + 9

    def test_the_earliest_deadline_goes_first(self) -> None:
        # Both are issued at 0, a first; b is due at 1. 4 idle ticks carry b, then a's stall is 4.
        program = program_of({"a": 4, "b": 4}, [(4, ""), (0, "rb"), (0, "ra")], capacity=32)
        a, b = copied(0, 0, 2, 3), copied(1, 0, 1, 2)
        assert latency(program, a, b) == 4 + 4
        simulation = simulate(program, MemoryMap((a, b)))
        assert simulation.stall_before_ticks.tolist() == [0, 0, 4, 0]
        # First in, first out: a is served first, so that b waits for nothing but its own 4.
        assert simulate(program, MemoryMap((a, b)), "fifo").stall_before_ticks.tolist() == [
            0,
            4,
            0,
            0,
        ]

    def test_a_later_copy_with_an_earlier_deadline_goes_before(self) -> None:
        # a takes the 2 idle ticks of step 0, b those of step 1: a stalls for its other 2.
        program = program_of(
            {"a": 4, "b": 2}, [(2, ""), (2, ""), (0, "rb"), (0, "ra")], capacity=32
        )
        memory_map = MemoryMap((copied(0, 0, 3, 4), copied(1, 1, 2, 3)))
        simulation = simulate(program, memory_map)
        assert simulation.stall_before_ticks.tolist() == [0, 0, 0, 2, 0]
        served = [(s.first_step, s.end_step) for s in simulation.services]
        assert served == [(0, 1), (1, 2)]

    def test_an_eviction_delays_a_prefetch(self) -> None:
        program = program_of(
            {"a": 4, "b": 4}, [(0, "wb"), (6, ""), (0, "ra")], live_out="b", capacity=32
        )
        b = Residency(1, 8, 0, 2, PRODUCED, 0)
        # Of step 1's 6 idle ticks the eviction, due first in the map's order, takes 4.
        assert latency(program, copied(0, 1, 2, 3), b, evictions=(Eviction(1, 1, 2),)) == 6 + 2

    def test_a_flush_at_the_end(self) -> None:
        program = program_of({"b": 4}, [(5, "wb")], live_out="b", capacity=32)
        b = Residency(0, 0, 0, 1, PRODUCED, 0)
        assert latency(program, b, evictions=(Eviction(0, 1, 1),)) == 5 + 4

    def test_slices_are_copies_of_their_own(self) -> None:
        # Two idle ticks in step 0 and two in step 1 carry the slices of two bytes each.
        program = program_of({"a": 4}, [(2, ""), (2, ""), (0, "ra")], capacity=32)
        parts = (Part(0, 2, 0), Part(2, 2, 1))
        whole = copied(0, 0, 2, 3)
        assert latency(program, replace(whole, parts=parts)) == 4
        # Both at step 1: two of the four ticks stall.
        late = tuple(replace(part, start=1) for part in parts)
        assert latency(program, replace(whole, start=1, parts=late)) == 6

    def test_a_replaced_copy_takes_no_step(self) -> None:
        program = program_of(
            {"a": 4, "c": 4}, [(0, "ra wc"), (6, ""), (0, "rc")], copies=[0], capacity=32
        )
        assert latency(program) == 8 + 6 + 4
        # From slow memory to slow memory: eight ticks of bus, of which six are idle.
        assert latency(program, replaced_copies=(ReplacedCopy(0, 0, 2),)) == 6 + 2 + 4
        both = (copied(0, 0, 0, 2), Residency(1, 8, 0, 3, PRODUCED, 0))
        assert latency(program, *both, replaced_copies=(ReplacedCopy(0, 0, 2),)) == 4 + 6
        fast = Residency(1, 8, 0, 3, PRODUCED, 0)
        assert latency(program, fast, replaced_copies=(ReplacedCopy(0, 0, 2),)) == 6
        # What its own computation would have taken is gone too.
        busy = replace(program.instructions[0], base_ticks=(3,))
        computing = replace(program, instructions=(busy, *program.instructions[1:]))
        assert latency(computing, fast, replaced_copies=(ReplacedCopy(0, 0, 1),)) == 4 + 6
        # Nothing to hide behind: step 0 itself has no time any more.
        assert latency(program, fast, replaced_copies=(ReplacedCopy(0, 0, 1),)) == 4 + 6

    def test_only_the_copy_that_begins_a_residency_fills_its_slices(self) -> None:
        program = program_of(
            {"a": 4, "b": 4, "c": 4},
            [(0, "ra wc"), (9, "rc"), (0, "rb wc"), (9, "rc")],
            copies=[0, 2],
            capacity=32,
        )
        parts = (Part(0, 2, 0), Part(2, 2, 0))
        c = Residency(2, 8, 0, 4, PRODUCED, 0, parts=parts)
        replaced = (ReplacedCopy(0, 0, 1), ReplacedCopy(2, 2, 3))
        assert latency(program, c, replaced_copies=replaced) == 4 + 9 + 4 + 9
        services = simulate(program, MemoryMap((c,), replaced_copies=replaced)).services
        assert [(s.copy.size_bytes, s.copy.issue) for s in services] == [(2, 0), (2, 0), (4, 2)]

    def test_a_copy_in_a_loop_is_paid_on_every_trip(self) -> None:
        program = program_of(
            {"a": 4}, [(0, ""), (3, ""), (0, "ra")], loops=[Loop(1, 3, 5)], capacity=32
        )
        assert latency(program) == 5 * (3 + 4)
        assert latency(program, copied(0, 1, 2, 3, loop=0)) == 5 * (3 + 1)

    def test_a_copy_past_a_loop_is_served_by_all_its_trips(self) -> None:
        program = program_of({"a": 16}, [(3, ""), (0, "ra")], loops=[Loop(0, 1, 5)], capacity=32)
        # 5 trips of 3 idle ticks carry 15 of 16.
        assert latency(program, copied(0, 0, 1, 2)) == 15 + 1

    def test_what_a_copy_of_the_loop_leaves(self) -> None:
        # A trip has 3 idle ticks, b's copy of 2 leaves 1: over 5 trips a gets 5 of its 8.
        program = program_of(
            {"a": 8, "b": 2},
            [(3, ""), (0, "rb"), (0, "ra")],
            loops=[Loop(0, 2, 5)],
            capacity=32,
        )
        a, b = copied(0, 0, 2, 3), copied(1, 0, 1, 2, loop=0)
        assert latency(program, a, b) == 15 + 3

    def test_a_stall_at_the_end_of_a_trip_counts_on_every_trip(self) -> None:
        program = program_of(
            {"s": 2}, [(0, ""), (1, "ws"), (0, "rs")], loops=[Loop(1, 2, 3)], capacity=32
        )
        s = Residency(0, 0, 1, 2, PRODUCED, 1, 0)
        simulation = simulate(program, MemoryMap((s,), (Eviction(0, 2, 2),)))
        assert simulation.stall_before_ticks.tolist() == [0, 0, 6, 0]
        assert latency(program, s, evictions=(Eviction(0, 2, 2),)) == 3 * (1 + 2) + 2

    def test_a_branch_supplies_what_is_expected_of_it(self) -> None:
        # Half of 7 idle ticks, rounded down, is 3 of the 4 that a needs.
        program = program_of(
            {"a": 4}, [(7, ""), (0, "ra")], loops=[Loop(0, 1, 1, 0.5)], capacity=32
        )
        memory_map = MemoryMap((copied(0, 0, 1, 2),))
        assert validate(program, memory_map) == ()
        assert simulate(program, memory_map).latency_ticks == 3.5 + 1

    def test_rounding_happens_once_per_loop_passed(self) -> None:
        # 3 idle ticks: floor(3 * 0.5) = 1 per trip around the branch, times 2 trips is 2, not 3.
        program = program_of(
            {"a": 4},
            [(3, ""), (0, ""), (0, "ra")],
            loops=[Loop(0, 2, 2), Loop(0, 1, 1, 0.5, parent=0)],
            capacity=32,
        )
        simulation = simulate(program, MemoryMap((copied(0, 0, 2, 3),)))
        assert simulation.stall_ticks == 4 - 2

    def test_an_empty_program(self) -> None:
        program = program_of({"a": 4}, [], capacity=32)
        for order in COPY_ORDERS:
            assert simulate(program, MemoryMap(), order).latency_ticks == 0
            assert simulate(program, MemoryMap((copied(0, 0, 0, 1),)), order).latency_ticks == 4


class TestXlaVectors:
    """`simulator_test.cc` of OpenXLA: 1 byte/s to slow and 2 byte/s to fast memory, 1 flop/s.

    Programs by hand, since only the costs are meant: a step's base time is what its operations
    and fast accesses take, in seconds. XLA counts a tuple's pointers (8 bytes) as a step; a
    lowered program has no such steps.
    """

    def test_single_layer_loop(self) -> None:
        # Body: increment 12 bytes, tuple 8; condition: compare 9; before it: tuple 8.
        program = program_of({}, [(8, ""), (12, ""), (8, ""), (9, "")], loops=[Loop(1, 4, 42)])
        assert simulate(program, MemoryMap(), "fifo").latency_ticks == 1226

    def test_nested_layer_loop(self) -> None:
        inner = [(8, ""), (12, ""), (8, ""), (9, "")]
        program = program_of(
            {},
            [(8, ""), *inner, (12, ""), (8, ""), (9, "")],
            loops=[Loop(1, 8, 27), Loop(2, 5, 42, parent=0)],
        )
        assert simulate(program, MemoryMap(), "fifo").latency_ticks == 33893

    @pytest.mark.parametrize("size", [8388608, 6291456], ids=["copy", "slice"])
    def test_single_async_copy(self, size: int) -> None:
        program = program_of({"p": size}, [], capacity=size)
        assert simulate(program, MemoryMap((copied(0, 0, 0, 1),)), "fifo").latency_ticks == size

    def test_async_copy_with_computation(self) -> None:
        # The negation moves 16 bytes in slow memory and leaves the bus no time for the 32.
        program = program_of({"p": 32, "q": 8, "r": 8}, [(2, "rq wr")], capacity=64)
        assert simulate(program, MemoryMap((copied(0, 0, 1, 2),)), "fifo").latency_ticks == 48

    def test_async_copy_and_async_slice_and_compute(self) -> None:
        # Two copies of 256 with nothing beside them, then 512 beside 384 of fast accesses.
        program = program_of(
            {"s": 256, "c": 256, "p": 512, "r": 256}, [(384, "rs rc wr")], capacity=2048
        )
        result = Residency(3, 1024, 0, 1, PRODUCED, 0)
        residencies = (copied(0, 0, 0, 1), copied(1, 0, 0, 1), copied(2, 0, 1, 2), result)
        assert simulate(program, MemoryMap(residencies), "fifo").latency_ticks == 1024

    @staticmethod
    def two_queues(*computes: int) -> tuple[Program, MemoryMap]:
        """512 bytes are read from step 0 on, 128 written from step 1 on and due at the end of it.

        `computes`: base times of step 1.
        """
        steps = [(0, "wq"), *((compute, "") for compute in computes), (0, "rp")]
        program = program_of({"p": 512, "q": 128}, steps, capacity=1024)
        last = len(steps) - 1
        written = Residency(1, 512, 0, last, PRODUCED, 0)
        read = Residency(0, 0, 1, last + 1, COPIED, last)
        return program, MemoryMap((read, written), (Eviction(1, 1, last),))

    def test_copy_done_at_full_bandwidth(self) -> None:
        program = program_of({"p": 512}, [(0, "rp")], capacity=1024)
        simulation = simulate(program, MemoryMap((copied(0, 0, 0, 1),)), "fifo")
        assert simulation.stall_ticks == 512

    def test_copy_done_already_completed(self) -> None:
        program = program_of({"p": 512}, [(512, ""), (0, "rp")], capacity=1024)
        assert simulate(program, MemoryMap((copied(0, 0, 1, 2),)), "fifo").stall_ticks == 0

    def test_copy_done_at_shared_bandwidth(self) -> None:
        # 128 bytes of the write queue take 256 s; the read queue moves 128 of its 512 meanwhile.
        program = program_of(
            {"p": 512, "q": 128}, [(0, "wq"), (0, ""), (0, ""), (0, "rp")], capacity=1024
        )
        written = Residency(1, 512, 0, 2, PRODUCED, 0)
        read = Residency(0, 0, 1, 4, COPIED, 3)
        memory_map = MemoryMap((read, written), (Eviction(1, 1, 2),))
        assert validate(program, memory_map) == ()
        simulation = simulate(program, memory_map, "fifo")
        assert simulation.stall_before_ticks.tolist() == [0, 0, 256, 384, 0]

    def test_compute_with_empty_queues(self) -> None:
        # 128 elements negated in slow memory: 1024 bytes.
        program = program_of({"p": 512, "r": 512}, [(128, "rp wr")])
        assert simulate(program, MemoryMap(), "fifo").latency_ticks == 1024

    @pytest.mark.parametrize(
        ("evicts", "left"), [(False, (448,)), (True, (480, 96))], ids=["full", "shared"]
    )
    def test_compute_beside_copies(self, evicts: bool, left: tuple[int, ...]) -> None:
        # 32 elements, 128 bytes from fast memory (64 s) to slow memory (128 s): 192 s, 64 idle.
        steps = [(0, "wq"), (192, "wr"), (0, ""), (0, "rp")]
        program = program_of({"p": 512, "q": 128, "r": 128}, steps, capacity=1024)
        written = Residency(1, 512, 0, 3, PRODUCED, 0)
        read = Residency(0, 0, 1, 4, COPIED, 3)
        evictions = (Eviction(1, 1, 3),) if evicts else ()
        simulation = simulate(program, MemoryMap((read, written), evictions), "fifo")
        assert simulation.elapsed_ticks[1] == 192
        assert simulation.idle_ticks[1] == 64
        # What is left of both is due at step 3 and takes its full time, however it is shared.
        assert simulation.stall_ticks == sum(left)


def test_exact_against_the_full_unrolling() -> None:
    """Latency and stall before each step equal those of running every trip, tick by tick."""
    stalled = spanning = 0
    looped = [
        random_program(seed, family="loop", num_accesses=24, max_trip_count=4, copy_share=0.3)
        for seed in range(150)
    ]
    straight = [small_program(seed, branches=False) for seed in range(150)]
    for seed, program in enumerate(looped + straight):
        if any(loop.is_branch for loop in program.loops):
            continue
        memory_map = random_valid_map(program, np.random.default_rng(seed), 16)
        expected = reference_simulation(program, memory_map)
        simulation = simulate(program, memory_map)
        assert simulation.latency_ticks == expected.latency_ticks, seed
        assert tuple(simulation.stall_before_ticks) == expected.stall_before_ticks, seed
        stalled += simulation.stall_ticks > 0
        spanning += any(
            service.copy.issue <= loop.start_step < loop.end_step <= service.copy.deadline
            and index not in program.loops_around(service.copy.loop)
            for service, (index, loop) in itertools.product(
                simulation.services, enumerate(program.loops)
            )
        )
    assert stalled > 100
    assert spanning > 15


def test_fifo_against_slices_of_time() -> None:
    """Both queues at work, slice by slice of an eighth of a tick."""
    shared = 0
    for seed in range(80):
        program = random_program(
            seed, family="training", num_accesses=16, intensity=0.7, copy_share=0.3
        )
        memory_map = random_valid_map(program, np.random.default_rng(seed), 16)
        simulation = simulate(program, memory_map, "fifo")
        expected = reference_fifo_latency(program, memory_map, slices=8)
        assert abs(simulation.latency_ticks - expected) <= 1 + simulation.num_copies / 8, seed
        shared += simulation.latency_ticks != simulate(program, memory_map).latency_ticks
    assert shared > 3


@settings(max_examples=60, deadline=None)
@given(programs_with_maps(branches=False, max_accesses=16))
def test_exact_on_arbitrary_maps(pair: tuple[Program, MemoryMap]) -> None:
    program, memory_map = pair
    expected = reference_simulation(program, memory_map)
    assert simulate(program, memory_map).latency_ticks == expected.latency_ticks


@pytest.mark.parametrize("order", COPY_ORDERS)
@pytest.mark.parametrize("family", Family)
def test_the_empty_map_takes_the_all_slow_time(family: Family, order: str) -> None:
    for seed in range(5):
        program = random_program(seed, family=family, num_lanes=2)
        simulation = simulate(program, MemoryMap(), order)
        assert simulation.latency_ticks == program.all_slow_ticks
        assert simulation.latency_seconds == program.all_slow_ticks * program.tick_seconds
        assert (simulation.num_copies, simulation.peak_fast_bytes) == (0, 0)


@settings(max_examples=100, deadline=None)
@given(programs_with_maps())
def test_what_holds_of_every_valid_map(pair: tuple[Program, MemoryMap]) -> None:
    program, memory_map = pair
    fast = fast_accesses(program, memory_map)
    for order in COPY_ORDERS:
        simulation = simulate(program, memory_map, order)
        assert simulation.latency_ticks >= program.all_fast_ticks or memory_map.replaced_copies
        assert simulation.stall_ticks == pytest.approx(
            sum(program.repeat_of(s.copy.loop) * s.stall_ticks for s in simulation.services)
        )
        busy = sum(
            i.repeat * e
            for i, e in zip(program.instructions, simulation.elapsed_ticks, strict=True)
        )
        assert simulation.latency_ticks == pytest.approx(busy + simulation.stall_ticks)
        assert simulation.num_fast_accesses == len(fast)
        assert simulation.peak_fast_bytes <= program.capacity_bytes
        if not any(r.source is CARRIED for r in memory_map.residencies):
            assert simulation.bus_bytes >= compulsory_bus_bytes(program)
        for service in simulation.services:
            if service.first_step is not None and service.end_step is not None:
                assert service.copy.issue <= service.first_step < service.end_step
                assert service.end_step <= service.copy.deadline


@settings(max_examples=60, deadline=None)
@given(programs_with_maps())
def test_fast_accesses_are_those_a_ready_residency_covers(
    pair: tuple[Program, MemoryMap],
) -> None:
    program, memory_map = pair
    replaced = {copy.step for copy in memory_map.replaced_copies}
    expected = {
        (step, access.buffer)
        for step, instruction in enumerate(program.instructions)
        for access in instruction.accesses
        for r in memory_map.residencies
        if r.buffer == access.buffer and r.ready <= step < r.end and step not in replaced
    }
    assert fast_accesses(program, memory_map) == expected
    assert int(fast_access_mask(program, memory_map).sum()) == len(expected)


@settings(max_examples=60, deadline=None)
@given(programs_with_maps())
def test_the_two_orders_agree_where_deadlines_come_in_order(
    pair: tuple[Program, MemoryMap],
) -> None:
    """One direction, and whoever is issued first is due first: then both serve alike."""
    program, memory_map = pair
    only_prefetches = replace(memory_map, evictions=(), replaced_copies=())
    residencies: list[Residency] = []
    latest: dict[int | None, int] = {}
    for residency in sorted(memory_map.residencies, key=lambda r: (r.start, r.ready)):
        in_order = residency.ready >= latest.get(residency.loop, 0)
        if in_order and not residency.parts:
            residencies.append(residency)
            latest[residency.loop] = residency.ready
    only_prefetches = replace(only_prefetches, residencies=tuple(residencies))
    deadline, fifo = (simulate(program, only_prefetches, order) for order in COPY_ORDERS)
    assert deadline.latency_ticks == fifo.latency_ticks


@settings(max_examples=60, deadline=None)
@given(programs_with_maps())
def test_more_bandwidth_for_copies_never_hurts(pair: tuple[Program, MemoryMap]) -> None:
    program, memory_map = pair
    machine = program.machine
    faster = replace(
        program,
        machine=replace(machine, slow_bytes_per_second=2 * machine.slow_bytes_per_second),
    )
    before, after = simulate(program, memory_map), simulate(faster, memory_map)
    assert after.latency_ticks <= before.latency_ticks


@settings(max_examples=40, deadline=None)
@given(programs_with_maps())
def test_peak_bytes_step_by_step(pair: tuple[Program, MemoryMap]) -> None:
    program, memory_map = pair
    held = [0] * (program.num_steps + 1)
    for r in memory_map.residencies:
        free = {step for start, end in r.holes for step in range(start, end)}
        for step in set(range(r.start, r.end)) - free:
            parts = [p.size_bytes for p in r.parts if p.start <= step]
            held[step] += sum(parts) if r.parts else program.buffers[r.buffer].size_bytes
    assert simulate(program, memory_map).peak_fast_bytes == max(held)


@settings(max_examples=40, deadline=None)
@given(programs())
def test_compulsory_bytes_are_at_most_those_of_the_empty_map(program: Program) -> None:
    assert compulsory_bus_bytes(program) <= simulate(program, MemoryMap()).bus_bytes


def test_traffic_counts_trips_and_both_ends_of_a_replaced_copy() -> None:
    program = program_of({"a": 4}, [(9, ""), (0, "ra")], loops=[Loop(0, 2, 5)], capacity=32)
    assert simulate(program, MemoryMap()).bus_bytes == 5 * 4
    assert simulate(program, MemoryMap((copied(0, 0, 0, 2),))).bus_bytes == 4
    assert simulate(program, MemoryMap((copied(0, 0, 1, 2, loop=0),))).bus_bytes == 5 * 4
    copying = program_of({"a": 4, "c": 4}, [(0, "ra wc"), (0, "rc")], copies=[0], capacity=32)
    engine = (ReplacedCopy(0, 0, 1),)
    # The source is on its way into fast memory, but read from where it still is.
    on_its_way = MemoryMap((copied(0, 0, 1, 2),), replaced_copies=engine)
    assert simulate(copying, on_its_way).bus_bytes == 4 + (4 + 4) + 4
    fast = (Residency(1, 8, 0, 2, PRODUCED, 0),)
    assert simulate(copying, MemoryMap(replaced_copies=engine)).bus_bytes == 4 + 4 + 4
    assert simulate(copying, MemoryMap(fast, replaced_copies=engine)).bus_bytes == 4


def test_unknown_copy_order() -> None:
    with pytest.raises(InputError, match="lifo"):
        simulate(random_program(0), MemoryMap(), "lifo")


def test_thousands_of_accesses_take_milliseconds() -> None:
    """50 ms allow for a slow machine; about 10 are needed."""
    program = random_program(1, num_accesses=3700)
    residencies = tuple(
        Residency(buffer, 0, steps[0][0] + 1, steps[-1][0] + 1, COPIED, steps[-1][0])
        for buffer, steps in enumerate(program.accesses_of_buffer)
        if len(steps) > 1 and steps[0][0] + 1 < steps[-1][0]
    )
    memory_map = MemoryMap(residencies)
    simulate(program, memory_map)
    times = []
    for _ in range(5):
        begun = time.process_time()
        simulate(program, memory_map)
        times.append(time.process_time() - begun)
    assert min(times) < 0.05


def test_nothing_must_come_in_of_what_holds_nothing_at_the_start() -> None:
    program = program_of({"b": 4}, [(0, "ub"), (0, "rb")])
    empty = replace(program.buffers[0], is_undefined=True, is_parameter=False)
    program = replace(program, buffers=(empty,))
    simulation = simulate(program, MemoryMap((Residency(0, 0, 0, 2, PRODUCED, 0),)))
    assert simulation.bus_bytes == 0
    assert compulsory_bus_bytes(program) == 0
