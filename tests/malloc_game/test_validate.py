"""The validator: each rule by a map one can check by eye, and all of them against a witness."""

from __future__ import annotations

import cProfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_graphs.program import Loop, Program
from malloc_game.generator import Family, random_program
from malloc_game.memory_map import Eviction, MemoryMap, Part, ReplacedCopy, Residency, Source
from malloc_game.validate import InvalidMapError, Rule, check, validate
from tests.malloc_game.reference import TooManyRunsError, reference_verdict
from tests.malloc_game.small import program_of
from tests.pictures import picture
from tests.strategies import (
    mutated,
    programs,
    random_valid_map,
    small_program,
    with_proposal,
)

PRODUCED, COPIED, CARRIED = Source.PRODUCED, Source.COPIED, Source.CARRIED


def produced(
    buffer: int, start: int, end: int, offset: int = 0, loop: int | None = None
) -> Residency:
    return Residency(buffer, offset, start, end, PRODUCED, start, loop)


def copied(
    buffer: int, start: int, ready: int, end: int, offset: int = 0, loop: int | None = None
) -> Residency:
    return Residency(buffer, offset, start, end, COPIED, ready, loop)


def rules(program: Program, *residencies: Residency, **pieces: tuple[object, ...]) -> set[Rule]:
    """The rules that a map breaks; the slow witness must agree that it breaks some or none."""
    memory_map = MemoryMap(residencies, **pieces)  # type: ignore[arg-type]
    found = {violation.rule for violation in validate(program, memory_map)}
    assert (reference_verdict(program, memory_map) is not None) == bool(found)
    return found


# a is a parameter, b and c are tensors; steps: write b from a, write c from b, read a and c.
def three_steps(**settings: object) -> Program:
    return program_of(
        {"a": 2, "b": 3, "c": 2},
        [(4, "ra wb"), (4, "rb wc"), (4, "ra rc")],
        **settings,  # type: ignore[arg-type]
    )


def test_a_valid_map_as_a_picture() -> None:
    program = three_steps()
    memory_map = MemoryMap((produced(1, 0, 2), produced(2, 1, 3, offset=3), copied(0, 0, 2, 3, 5)))
    assert picture(program, memory_map) == (
        "....\n"
        "aaA.\n"
        "aaA.\n"
        ".CC.\n"
        ".CC.\n"
        "BB..\n"
        "BB..\n"
        "BB.."
    )  # fmt: skip
    assert validate(program, memory_map) == ()
    assert reference_verdict(program, memory_map) is None


def test_the_empty_map_is_valid() -> None:
    for family in Family:
        program = random_program(3, family=family)
        assert validate(program, MemoryMap()) == ()


@pytest.mark.parametrize(
    ("offset", "capacity"), [(-1, 8), (6, 8), (8, 8)], ids=["below", "across the end", "above"]
)
def test_rule_1_a_place_inside_fast_memory(offset: int, capacity: int) -> None:
    program = three_steps(capacity=capacity)
    assert rules(program, produced(1, 0, 2, offset=offset)) == {Rule.PLACE}


def test_rule_1_alignment() -> None:
    program = random_program(0, family="chain", forbidden_share=0.0, pressure=0.5)
    first, last = (steps[0] for steps in program.accesses_of_buffer[1][:2])
    residency = produced(1, first, last + 1, offset=512)
    assert [v.rule for v in validate(program, MemoryMap((residency,)))] == [Rule.PLACE]


def test_rule_2_bytes_of_two_buffers() -> None:
    program = three_steps()
    assert rules(program, produced(1, 0, 2), produced(2, 1, 3, offset=2)) == {Rule.OVERLAP}
    assert rules(program, produced(1, 0, 2), produced(2, 1, 3, offset=3)) == set()


def test_rule_2_names_the_shared_bytes_and_the_buffers() -> None:
    memory_map = MemoryMap((produced(1, 0, 2), produced(2, 1, 3, offset=2)))
    (violation,) = validate(three_steps(), memory_map)
    assert violation.message == "b and c share bytes [2, 3) at step 1"
    assert (violation.buffers, violation.steps) == ((1, 2), (1,))
    assert str(violation) == "rule 2 (overlap): b and c share bytes [2, 3) at step 1"


def test_rule_2_one_place_per_buffer() -> None:
    assert rules(three_steps(), produced(1, 0, 2), copied(1, 1, 1, 2, offset=4)) >= {Rule.OVERLAP}


def test_rule_3_stale_reads_and_prefetches() -> None:
    program = three_steps()
    # b leaves without being saved, then it is read; saving it makes that legal.
    leaves = produced(1, 0, 1)
    assert rules(program, leaves) == {Rule.CONTENT}
    assert rules(program, leaves, evictions=(Eviction(1, 1, 1),)) == set()
    assert rules(program, leaves, copied(1, 1, 1, 2)) == {Rule.CONTENT}
    assert rules(program, leaves, copied(1, 1, 1, 2), evictions=(Eviction(1, 1, 1),)) == set()


def test_rule_3_what_produces_must_write() -> None:
    assert rules(three_steps(), produced(1, 1, 2)) == {Rule.CONTENT}
    assert rules(three_steps(), produced(0, 0, 3)) == {Rule.CONTENT}


def test_rule_3_no_write_during_a_prefetch() -> None:
    program = program_of({"a": 1}, [(1, "ra"), (1, "ua"), (1, "ra")])
    assert rules(program, copied(0, 1, 2, 3)) == {Rule.CONTENT}
    assert rules(program, copied(0, 2, 2, 3)) == set()


def test_rule_3_an_eviction_spoiled_by_a_write() -> None:
    program = program_of({"a": 1}, [(1, "wa"), (1, "ra"), (1, "ua"), (1, "ra"), (1, "ra")])
    resident = produced(0, 0, 4)
    assert rules(program, resident, evictions=(Eviction(0, 1, 3),)) == {Rule.CONTENT}
    assert rules(program, resident, evictions=(Eviction(0, 3, 4),)) == set()


def test_rule_4_live_out() -> None:
    program = three_steps(live_out="c")
    assert rules(program, produced(2, 1, 3)) == {Rule.LIVE_OUT}
    assert rules(program, produced(2, 1, 3), evictions=(Eviction(2, 3, 3),)) == set()
    assert rules(program, produced(2, 1, 3), evictions=(Eviction(2, 2, 3),)) == set()


# s is carried from trip to trip: written before the loop, read and written again in each trip.
def carried_state(trip_count: int = 3, probability: float = 1.0) -> Program:
    return program_of(
        {"s": 2, "t": 2},
        [(4, "ws"), (4, "rs wt"), (4, "rt ws"), (4, "rs")],
        loops=[Loop(1, 3, trip_count, probability)],
    )


def test_rule_5_ranges_and_loops() -> None:
    program = carried_state()
    assert rules(program, produced(0, 0, 4)) == set()
    assert rules(program, produced(0, 0, 2)) == {Rule.LOOP}
    assert rules(program, produced(1, 1, 3, loop=0)) == set()
    assert Rule.LOOP in rules(program, copied(1, 0, 2, 3))
    assert rules(program, produced(1, 1, 4, loop=0)) == {Rule.LOOP}


def test_rule_5_what_the_next_trip_needs_is_saved_in_this_one() -> None:
    written_at_end = produced(0, 2, 3, loop=0)
    assert rules(carried_state(), written_at_end) == {Rule.CONTENT}
    assert rules(carried_state(), written_at_end, evictions=(Eviction(0, 3, 3),)) == set()
    # Whole writes at the start of each trip need nothing from the trip before.
    assert rules(carried_state(), produced(1, 1, 3, loop=0)) == set()


def test_a_flush_at_the_end_of_a_trip_belongs_to_the_loop() -> None:
    """Not to the residency that begins where the loop ends."""
    in_loop, after = produced(0, 2, 3, loop=0), copied(0, 3, 3, 4)
    assert rules(carried_state(), in_loop, after, evictions=(Eviction(0, 3, 3),)) == set()
    assert rules(carried_state(), in_loop, after) == {Rule.CONTENT}


def test_nothing_is_evicted_before_it_is_there() -> None:
    program = program_of({"a": 2}, [(4, ""), (4, ""), (4, "ra")])
    assert rules(program, copied(0, 0, 2, 3), evictions=(Eviction(0, 1, 3),)) == {Rule.DEFINITION}
    assert rules(program, copied(0, 0, 2, 3), evictions=(Eviction(0, 2, 3),)) == set()


def test_rule_5_the_program_after_the_loop_needs_it_too() -> None:
    assert rules(carried_state(trip_count=1), produced(0, 2, 3, loop=0)) == {Rule.CONTENT}


def test_rule_5_a_single_trip_has_no_next_one() -> None:
    steps = [(1, "ws"), (1, "rs"), (1, "us")]
    once = program_of({"s": 1}, steps, loops=[Loop(1, 3, 1)])
    twice = program_of({"s": 1}, steps, loops=[Loop(1, 3, 2)])
    last = copied(0, 2, 2, 3, loop=0)
    assert rules(once, last) == set()
    assert rules(twice, last) == {Rule.CONTENT}


def test_rule_5_a_branch_may_be_skipped() -> None:
    program = program_of({"s": 1}, [(1, "rs"), (1, "ws"), (1, "rs")], loops=[Loop(1, 2, 1, 0.5)])
    # Produced in the branch, resident to the end: skipped, nothing is there to be read.
    assert rules(program, produced(0, 1, 3)) == {Rule.CONTENT}
    assert rules(program, produced(0, 1, 2, loop=0), evictions=(Eviction(0, 2, 2),)) == set()
    assert rules(program, produced(0, 1, 2, loop=0)) == {Rule.CONTENT}


def test_rule_5_a_loop_of_unknown_trips_may_run_never_once_or_again() -> None:
    unknown = Loop(1, 3, 1, trips_known=False)
    steps = [(1, "ws"), (1, "rs"), (1, "us")]
    last = copied(0, 2, 2, 3, loop=0)
    assert rules(program_of({"s": 1}, steps, loops=[unknown]), last) == {Rule.CONTENT}
    overwritten = [(1, "ws"), (1, "ws"), (1, ""), (1, "rs")]
    first = produced(0, 0, 1)
    always = program_of({"s": 1}, overwritten, loops=[Loop(1, 3, 1)])
    perhaps = program_of({"s": 1}, overwritten, loops=[unknown])
    assert rules(always, first) == set()
    assert rules(perhaps, first) == {Rule.CONTENT}
    assert rules(perhaps, first, evictions=(Eviction(0, 1, 1),)) == set()


def test_rule_6_carried_parameters() -> None:
    program = three_steps(live_out="c")
    pinned = Residency(0, 0, 0, 4, CARRIED, 0)
    assert rules(program, pinned) == set()
    assert [v.rule for v in validate(program, MemoryMap((pinned,)), max_carried=0)] == [
        Rule.CARRIED
    ]
    released = Residency(0, 0, 0, 1, CARRIED, 0)
    assert rules(program, released) == {Rule.CARRIED}
    assert rules(program, released, copied(0, 1, 2, 4)) == set()
    assert rules(program, released, copied(0, 1, 2, 4, offset=1)) == {Rule.CARRIED}
    assert Rule.CARRIED in rules(program, Residency(1, 0, 0, 4, CARRIED, 0))
    forgotten = Residency(0, 0, 0, 4, CARRIED, 0, holes=((1, 2),))
    assert rules(program_of({"a": 2}, [(1, "ra"), (1, ""), (1, "")]), forgotten) == {Rule.CARRIED}
    updated = program_of({"a": 1}, [(1, "ua")])
    assert Rule.CARRIED in rules(updated, Residency(0, 0, 0, 2, CARRIED, 0))


def test_rule_7_not_allowed_or_too_large() -> None:
    assert rules(three_steps(forbidden="b"), produced(1, 0, 2)) == {Rule.NOT_ALLOWED}
    too_small = three_steps(capacity=2)
    assert rules(too_small, produced(1, 0, 2)) == {Rule.NOT_ALLOWED, Rule.PLACE}


def sliced(*parts: Part, ready: int = 2) -> Residency:
    return Residency(0, 0, min(p.start for p in parts), 3, COPIED, ready, None, parts)


def test_sliced_prefetch_holds_only_what_was_issued() -> None:
    program = program_of({"a": 4, "b": 2}, [(4, "wb"), (4, "rb"), (4, "ra")], capacity=4)
    early, late = Part(0, 2, 0), Part(2, 2, 2)
    memory_map = MemoryMap((sliced(early, late), produced(1, 0, 2, offset=2)))
    assert picture(program, memory_map) == (
        "BBA.\n"
        "BBA.\n"
        "aaA.\n"
        "aaA."
    )  # fmt: skip
    assert rules(program, *memory_map.residencies) == set()
    whole = copied(0, 0, 2, 3)
    assert rules(program, whole, produced(1, 0, 2, offset=2)) == {Rule.OVERLAP}


def test_slices_must_tile_the_buffer() -> None:
    program = program_of({"a": 4}, [(4, ""), (4, ""), (4, "ra")], capacity=4)
    assert rules(program, sliced(Part(0, 2, 0), Part(2, 2, 1))) == set()
    assert rules(program, sliced(Part(0, 2, 0))) == {Rule.DEFINITION}
    assert rules(program, sliced(Part(0, 3, 0), Part(2, 2, 1))) == {Rule.DEFINITION}
    assert rules(program, sliced(Part(1, 3, 0), Part(0, 1, 3))) == {Rule.DEFINITION}


# s is dead from its last use in a trip to its next write; t lives in that hole.
def with_hole() -> Program:
    return program_of(
        {"s": 2, "t": 2},
        [(4, "ws"), (4, "rs"), (4, "wt"), (4, "rt"), (4, "ws"), (4, "rs")],
        loops=[Loop(1, 5, 3)],
        capacity=2,
    )


def test_a_hole_frees_the_bytes_of_dead_content() -> None:
    program = with_hole()
    s = Residency(0, 0, 0, 6, PRODUCED, 0, holes=((2, 4),))
    assert picture(program, MemoryMap((s,))) == (
        "SS..SS.\n"
        "SS..SS."
    )  # fmt: skip
    assert rules(program, s, produced(1, 2, 4, loop=0)) == set()
    assert rules(program, replace(s, holes=()), produced(1, 2, 4, loop=0)) == {Rule.OVERLAP}
    assert rules(program, replace(s, holes=((2, 3),)), produced(1, 2, 4, loop=0)) == {Rule.OVERLAP}


def test_what_a_hole_may_not_do() -> None:
    program = with_hole()
    s = produced(0, 0, 6)
    assert rules(program, replace(s, holes=((1, 4),))) == {Rule.DEFINITION}  # read at 1
    assert rules(program, replace(s, holes=((3, 3),))) == {Rule.DEFINITION}
    assert rules(program, replace(s, holes=((2, 6),))) == {Rule.DEFINITION}
    saved = (Eviction(0, 2, 4),)
    assert rules(program, replace(s, holes=((3, 4),)), evictions=saved) == {Rule.DEFINITION}
    # Without the write at step 4 the next trip would read what the hole has lost.
    kept = program_of({"s": 2}, [(4, "ws"), (4, "rs"), (4, "")], loops=[Loop(1, 3, 2)])
    assert rules(kept, replace(produced(0, 0, 3), holes=((2, 2),))) == {Rule.DEFINITION}
    longer = program_of({"s": 2}, [(4, "ws"), (4, "rs"), (4, ""), (4, "rs")])
    assert rules(longer, replace(produced(0, 0, 4), holes=((2, 3),))) == {Rule.CONTENT}


def test_a_hole_right_at_the_start_holds_nothing() -> None:
    program = program_of({"s": 2, "t": 2}, [(4, ""), (4, "ws"), (4, "rs"), (4, "wt")], capacity=2)
    s = Residency(0, 0, 0, 3, PRODUCED, 0, holes=((0, 1),))
    assert rules(program, s, produced(1, 3, 4)) == set()


# c is a copy of a at step 1, which the copy engine may do; a changes at step 3.
def with_copy() -> Program:
    return program_of(
        {"a": 2, "c": 2},
        [(4, "ua"), (0, "ra wc"), (4, ""), (4, "rc ua")],
        copies=[1],
    )


def test_replaced_copies() -> None:
    program = with_copy()
    into_fast = produced(1, 1, 4)
    assert rules(program, into_fast, replaced_copies=(ReplacedCopy(1, 1, 3),)) == set()
    assert rules(program, replaced_copies=(ReplacedCopy(1, 1, 3),)) == set()
    too_early = ReplacedCopy(1, 0, 2)
    assert rules(program, replaced_copies=(too_early,)) == {Rule.REPLACED_COPY}
    too_late = ReplacedCopy(1, 1, 4)
    assert rules(program, replaced_copies=(too_late,)) == {Rule.REPLACED_COPY}
    no_copy = ReplacedCopy(0, 0, 1)
    assert rules(program, replaced_copies=(no_copy,)) == {Rule.REPLACED_COPY}
    reads_only = with_copy().instructions[1]
    reads_only = replace(reads_only, accesses=reads_only.accesses[:1])
    steps = (program.instructions[0], reads_only, *program.instructions[2:])
    for_nothing = replace(program, instructions=steps)
    assert Rule.REPLACED_COPY in rules(for_nothing, replaced_copies=(ReplacedCopy(1, 1, 3),))
    starts_late = produced(1, 2, 4)
    assert Rule.REPLACED_COPY in rules(
        program, starts_late, replaced_copies=(ReplacedCopy(1, 1, 3),)
    )


def test_a_replaced_copy_fills_slices_one_by_one() -> None:
    program = with_copy()
    slices = (Part(0, 1, 1), Part(1, 1, 2))
    residency = replace(produced(1, 1, 4), parts=slices)
    memory_map = MemoryMap((residency,), replaced_copies=(ReplacedCopy(1, 1, 3),))
    assert picture(program, memory_map).splitlines()[-2:] == ["..CC.", ".CCC."]
    assert rules(program, residency, replaced_copies=memory_map.replaced_copies) == set()
    # A slice cannot come after the copy is done, nor out of an access that is no copy.
    late = replace(residency, parts=(slices[0], Part(1, 1, 3)))
    assert rules(program, late, replaced_copies=(ReplacedCopy(1, 1, 2),)) == {Rule.CONTENT}
    assert rules(program, late, replaced_copies=(ReplacedCopy(1, 1, 3),)) == set()
    assert rules(program, residency) == {Rule.CONTENT}


def test_rule_5_replaced_copies_and_loops() -> None:
    program = program_of(
        {"a": 2, "c": 2, "d": 2},
        [(0, "ra wc"), (4, ""), (4, ""), (4, ""), (4, ""), (0, "ra wd"), (4, "rc rd")],
        copies=[0, 5],
        loops=[Loop(2, 4, 3)],
    )
    for issue, done in ((0, 2), (0, 4), (1, 6), (4, 5), (4, 4)):
        assert rules(program, replaced_copies=(ReplacedCopy(0, issue, done),)) == set()
    for issue, done in ((0, 3), (2, 3), (3, 5), (2, 2)):
        assert rules(program, replaced_copies=(ReplacedCopy(0, issue, done),)) == {Rule.LOOP}
        # The same on the far side: from the window to the step lies the whole loop.
        assert rules(program, replaced_copies=(ReplacedCopy(5, issue, done),)) == {Rule.LOOP}
    assert rules(program, replaced_copies=(ReplacedCopy(5, 1, 2),)) == set()


def test_a_replaced_copy_reads_the_newest_source() -> None:
    program = program_of({"a": 2, "c": 2}, [(4, "wa"), (0, "ra wc"), (4, "rc")], copies=[1])
    replaced = (ReplacedCopy(1, 1, 2),)
    assert rules(program, produced(0, 0, 2), replaced_copies=replaced) == set()
    assert rules(program, produced(0, 0, 1), replaced_copies=replaced) == {Rule.CONTENT}


def test_a_replaced_copy_writes_during_all_of_its_transfer() -> None:
    """What it writes is stale or torn for copies meanwhile, and stale in slow memory after."""
    program = program_of(
        {"a": 2, "c": 2},
        [(4, "wc"), (4, "rc"), (4, ""), (0, "ra wc"), (4, ""), (4, "rc")],
        copies=[3],
        live_out="c",
    )
    early = (ReplacedCopy(3, 3, 5),)
    resident = produced(1, 0, 6)
    saved_before = (Eviction(1, 1, 3),)
    saved_across = (Eviction(1, 2, 4),)
    saved_inside = (Eviction(1, 4, 5),)
    saved_after = (Eviction(1, 5, 6),)
    flushed_inside = (Eviction(1, 4, 4),)
    for evictions in ((), saved_before, saved_across, saved_inside, flushed_inside):
        broken = rules(program, resident, replaced_copies=early, evictions=evictions)
        assert broken == {Rule.LIVE_OUT}
    assert rules(program, resident, replaced_copies=early, evictions=saved_after) == set()
    # A slow result is current at once; a prefetch of it must not begin before it is whole.
    assert rules(program, replaced_copies=early) == set()
    assert rules(program, copied(1, 5, 5, 6), replaced_copies=early) == set()
    assert Rule.CONTENT in rules(program, copied(1, 4, 5, 6), replaced_copies=early)
    # The place may be given up as soon as the transfer is done, if what came is saved then.
    ends = (Eviction(1, 5, 5),)
    moved = produced(1, 3, 5)
    assert rules(program, moved, replaced_copies=early, evictions=ends) == set()


def test_a_flush_comes_before_what_takes_the_place() -> None:
    program = program_of({"c": 2}, [(4, "wc"), (4, "rc"), (4, "uc")], live_out="c")
    first, second = produced(0, 0, 1), copied(0, 1, 1, 3)
    both = (Eviction(0, 1, 1), Eviction(0, 3, 3))
    assert rules(program, first, second, evictions=both) == set()
    assert Rule.CONTENT in rules(program, first, second, evictions=both[1:])


def test_definitions() -> None:
    program = three_steps()
    for broken in (
        Residency(9, 0, 0, 1, COPIED, 0),
        Residency(1, 0, 2, 2, COPIED, 2),
        Residency(1, 0, 0, 5, COPIED, 0),
        Residency(1, 0, 0, 2, COPIED, 2),
        Residency(1, 0, 0, 2, PRODUCED, 1),
        Residency(1, 0, 0, 2, PRODUCED, 0, 4),
    ):
        assert rules(program, broken) == {Rule.DEFINITION}
    for eviction in (Eviction(9, 1, 1), Eviction(1, 2, 1), Eviction(1, 0, 3), Eviction(0, 0, 1)):
        assert rules(program, produced(1, 0, 2), evictions=(eviction,)) == {Rule.DEFINITION}


def test_check_raises_with_the_first_few() -> None:
    program = three_steps()
    check(program, MemoryMap())
    many = MemoryMap(tuple(produced(1, 0, 2, offset=8 + i) for i in range(7)))
    with pytest.raises(InvalidMapError) as caught:
        check(program, many)
    assert caught.value.exit_code == 4
    assert len(caught.value.violations) > 7
    assert "rule 1 (place): residency of b [0, 2): bytes [8, 11)" in str(caught.value)
    assert str(caught.value).count("\n") == 6
    assert "more" in str(caught.value)


def test_agrees_with_the_witness_on_thousands_of_maps() -> None:
    """Valid maps, slightly changed ones and quite broken ones, each rule broken many times."""
    verdicts: Counter[bool] = Counter()
    broken: Counter[Rule] = Counter()
    for seed in range(700):
        program = small_program(seed)
        rng = np.random.default_rng(seed)
        valid = random_valid_map(program, rng, 12)
        once = mutated(program, valid, rng)
        for candidate in (valid, once, mutated(program, valid, rng), mutated(program, once, rng)):
            try:
                expected = reference_verdict(program, candidate)
            except TooManyRunsError:
                continue
            found = validate(program, candidate)
            assert bool(found) == (expected is not None), (seed, candidate, found, expected)
            verdicts[not found] += 1
            broken.update(violation.rule for violation in found)
    assert verdicts[True] > 1000
    assert verdicts[False] > 1000
    assert min(broken[rule] for rule in Rule) > 15


@settings(max_examples=150, deadline=None)
@given(programs(max_accesses=20), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_agrees_with_the_witness_on_arbitrary_maps(
    program: Program, seed: int, pieces: int
) -> None:
    rng = np.random.default_rng(seed)
    candidate = MemoryMap()
    for _ in range(pieces):
        candidate = with_proposal(program, candidate, rng)
    try:
        expected = reference_verdict(program, candidate)
    except TooManyRunsError:
        return
    assert bool(validate(program, candidate)) == (expected is not None)


def test_work_grows_as_the_map_does() -> None:
    """One residency per access: twice the accesses take little more than twice the calls."""
    small, large = (_calls_to_validate(num_accesses) for num_accesses in (1000, 4000))
    assert large < 5 * small


def _calls_to_validate(num_accesses: int) -> int:
    """Calls of functions, which no other work on the machine changes."""
    program = random_program(5, num_accesses=num_accesses)
    pieces = [
        (buffer, step)
        for buffer, accesses in enumerate(program.accesses_of_buffer)
        for step, _ in accesses
    ]
    memory_map = MemoryMap(
        tuple(Residency(b, 0, t, t + 1, COPIED, t, program.loop_of_step[t]) for b, t in pieces)
    )
    assert len(memory_map.residencies) > 0.9 * num_accesses
    profile = cProfile.Profile()
    assert profile.runcall(validate, program, memory_map)
    return sum(entry.callcount for entry in profile.getstats())
