"""Places that are free for a while: what a loop carries around, and what holds nothing yet.

step       0   1   2   3   4        byte 0..3
         +---+-----------+---+
a        | w | r | . | w | r |      carried around the loop [1, 4): dead during step 2
b        |   |   | w |   |   |      scratch of step 2, at the same bytes
         +---+-----------+---+
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from hlo_graphs.program import Loop, Program
from malloc_game.memory_map import Eviction, MemoryMap, ReplacedCopy, Residency, Source
from malloc_game.simulate import fast_accesses, simulate
from malloc_game.validate import Rule, validate
from tests.malloc_game.reference import reference_verdict
from tests.malloc_game.small import program_of

A, B = 0, 1


def carried_around() -> Program:
    steps = [(1, "wa"), (1, "ra"), (1, "wb"), (1, "wa"), (1, "ra")]
    return program_of({"a": 4, "b": 4}, steps, loops=[Loop(1, 4, 3)])


def carried(*holes: tuple[int, int]) -> Residency:
    return Residency(A, 0, 0, 5, Source.PRODUCED, 0, holes=holes)


def test_the_bytes_of_a_hole_are_free_for_others() -> None:
    program = carried_around()
    other = Residency(B, 0, 2, 3, Source.PRODUCED, 2, loop=0)
    assert [v.rule for v in validate(program, MemoryMap((carried(), other)))] == [Rule.OVERLAP]
    held = MemoryMap((carried((2, 3)), other))
    assert validate(program, held) == ()
    assert simulate(program, held).peak_fast_bytes == 4
    assert (3, A) in fast_accesses(program, held)


@pytest.mark.parametrize(
    ("hole", "why"),
    [
        ((1, 2), "accessed at step 1"),
        ((2, 4), "accessed at step 3"),
        ((2, 2), "is empty"),
        ((4, 6), "outside"),
        ((0, 2), "leaves or enters a loop"),
    ],
)
def test_a_hole_lies_where_nothing_is_held(hole: tuple[int, int], why: str) -> None:
    (broken,) = validate(carried_around(), MemoryMap((carried(hole),)))
    assert broken.rule is Rule.DEFINITION
    assert why in broken.message


def test_what_follows_a_hole_must_be_written_before_it_is_read() -> None:
    steps = [(1, "wa"), (1, "ra"), (1, "wb"), (1, "ra")]
    program = program_of({"a": 4, "b": 4}, steps)
    holding = replace(carried((2, 3)), end=4)
    assert [v.rule for v in validate(program, MemoryMap((holding,)))] == [Rule.CONTENT]


def test_nothing_is_evicted_out_of_a_hole() -> None:
    memory_map = MemoryMap((carried((2, 3)),), (Eviction(A, 2, 3),))
    assert Rule.DEFINITION in {v.rule for v in validate(carried_around(), memory_map)}


def test_a_buffer_without_content_may_have_its_place_before_it_is_written() -> None:
    """As XLA's `AllocateBuffer` in fast memory: the loop's first trip updates what is undefined."""
    program = program_of({"a": 4}, [(1, ""), (1, "ua"), (1, "ra")], loops=[Loop(1, 2, 3)])
    early = MemoryMap((Residency(A, 0, 0, 3, Source.PRODUCED, 0),))
    assert [v.rule for v in validate(program, early)] == [Rule.CONTENT, Rule.CONTENT]
    undefined = replace(program, buffers=(replace(program.buffers[A], is_undefined=True),))
    assert validate(undefined, early) == ()
    inside = MemoryMap((Residency(A, 0, 1, 2, Source.PRODUCED, 1, loop=0),))
    assert validate(undefined, inside) != ()


def test_holes_survive_json() -> None:
    memory_map = MemoryMap((carried((2, 3)),))
    assert MemoryMap.from_json(memory_map.to_json()) == memory_map


def test_an_eviction_of_what_is_dead_does_not_overwrite_what_is_being_copied() -> None:
    steps = [(1, "ra"), *[(1, "")] * 2, (1, "ra wb"), *[(1, "")] * 3, (1, "rb")]
    program = program_of({"a": 4, "b": 4}, steps, copies=[3])
    emptied = Residency(A, 0, 0, 5, Source.COPIED, 0, holes=((1, 2),))
    copied = (ReplacedCopy(3, 3, 6),)
    torn = MemoryMap((emptied,), (Eviction(A, 4, 5),), copied)
    assert [v.rule for v in validate(program, torn)] == [Rule.CONTENT]
    assert reference_verdict(program, torn) is not None
    for whole in (MemoryMap((emptied,), (), copied), replace(torn, replaced_copies=())):
        assert (validate(program, whole) == ()) is (reference_verdict(program, whole) is None)
    assert validate(program, MemoryMap((emptied,), (), copied)) == ()
