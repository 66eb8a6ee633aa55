"""Duration cuts: never above what a step lasts, whatever is slow, and as high as the envelope."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from hlo_graphs.program import Access, AccessKind, Instruction
from solvers.duration_cuts import MOST_ACCESSES, DurationCut, violated_duration_cut


def instruction_of(base: list[int], accesses: list[tuple[int, ...]]) -> Instruction:
    """Of each access the ticks on the bus and on every lane; it is of the buffer of that number."""
    return Instruction(
        name="i",
        opcode="fusion",
        shape="",
        repeat=1.0,
        base_ticks=tuple(base),
        accesses=tuple(
            Access(buffer, AccessKind.READ, 1, bus, tuple(lanes))
            for buffer, (bus, *lanes) in enumerate(accesses)
        ),
    )


@st.composite
def instructions(draw: st.DrawFn, most: int = 5) -> Instruction:
    ticks = st.integers(0, 30)
    lanes = draw(st.integers(1, 2))
    base = draw(st.lists(ticks, min_size=lanes, max_size=lanes))
    access = st.tuples(*[ticks] * (lanes + 1))
    return instruction_of(base, draw(st.lists(access, min_size=1, max_size=most)))


def sets_of_slow(instruction: Instruction, always: set[int]) -> list[list[Access]]:
    """Every set of slow accesses that has those of the buffers in `always`."""
    free = [a for a in instruction.accesses if a.buffer not in always]
    fixed = [a for a in instruction.accesses if a.buffer in always]
    counts = range(len(free) + 1)
    return [[*fixed, *some] for n in counts for some in itertools.combinations(free, n)]


def of_cut(cut: DurationCut, slow: list[Access]) -> int:
    ticks = dict(cut.ticks)
    return cut.base_ticks + sum(ticks.get(access.buffer, 0) for access in slow)


def envelope(instruction: Instruction, slow: dict[int, float]) -> float:
    """The least that sets of slow accesses give between them at these shares."""
    sets = sets_of_slow(instruction, {a.buffer for a in instruction.accesses} - slow.keys())
    rows = [[float(any(a.buffer == b for a in chosen)) for chosen in sets] for b in slow]
    found = linprog(
        [instruction.elapsed_ticks(chosen) for chosen in sets],
        A_eq=[*rows, [1.0] * len(sets)],
        b_eq=[*slow.values(), 1.0],
    )
    return float(found.fun)


@given(instructions(), st.data())
def test_a_cut_is_found_below_the_envelope_and_holds(
    instruction: Instruction, data: st.DataObject
) -> None:
    share = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99))
    movable = [a.buffer for a in instruction.accesses if data.draw(st.booleans())]
    slow = {buffer: data.draw(share) for buffer in movable}
    highest = envelope(instruction, slow)
    elapsed = highest - data.draw(st.floats(0.5, 20))
    cut = violated_duration_cut(instruction, slow, elapsed)
    partly = [value for value in slow.values() if 0 < value < 1]
    if cut is None:
        # Its ticks are whole: it may fall short of the envelope by less than one for each.
        assert not partly or elapsed + len(partly) >= highest
        return
    always = {a.buffer for a in instruction.accesses} - slow.keys()
    sets = sets_of_slow(instruction, always)
    assert min(instruction.elapsed_ticks(chosen) - of_cut(cut, chosen) for chosen in sets) == 0
    assert {buffer for buffer, _ in cut.ticks} <= slow.keys()
    at_shares = cut.base_ticks + sum(ticks * slow[buffer] for buffer, ticks in cut.ticks)
    assert elapsed < at_shares <= highest + 1e-6


def test_half_an_access_does_not_hide_behind_the_compute_units() -> None:
    """100 ticks that overlap 80 of compute: half is 50, and yet half of the way to 100."""
    instruction = instruction_of([80], [(100, 0)])
    assert violated_duration_cut(instruction, {0: 0.5}, 80.0) == DurationCut(80, ((0, 20),))


def test_of_two_that_share_a_lane_each_is_cut_for_what_the_other_does() -> None:
    """60 each, 80 behind compute. While b is fast a has nothing beyond it: both hide alone."""
    instruction = instruction_of([80], [(60, 0), (60, 0)])
    beside_slow = violated_duration_cut(instruction, {0: 0.5, 1: 1.0}, 80.0)
    assert beside_slow == DurationCut(40, ((0, 40), (1, 40)))
    assert violated_duration_cut(instruction, {0: 0.5, 1: 0.0}, 80.0) is None


def test_what_is_always_slow_counts() -> None:
    instruction = instruction_of([80], [(60, 0), (60, 0)])
    assert violated_duration_cut(instruction, {0: 0.5}, 80.0) == DurationCut(80, ((0, 40),))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_whole_accesses_break_nothing(share: float) -> None:
    instruction = instruction_of([80], [(100, 0), (60, 10)])
    assert violated_duration_cut(instruction, {0: share, 1: 1.0}, 0.0) is None


def test_many_accesses_are_not_looked_through_all_at_once() -> None:
    rng = np.random.default_rng(1)
    count = MOST_ACCESSES + 4
    accesses = [tuple(int(t) for t in rng.integers(1, 40, 2)) for _ in range(count)]
    instruction = instruction_of([300], accesses)
    slow = {buffer: 0.5 + buffer / 40 for buffer in range(count)}
    lower = instruction.elapsed_ticks(()) - 1.0
    cut = violated_duration_cut(instruction, slow, lower)
    assert cut is not None
    assert len(cut.ticks) <= MOST_ACCESSES
    rows = (rng.random((2000, count)) < rng.random((2000, 1))).tolist()
    for row in rows:
        chosen = [a for a, is_slow in zip(instruction.accesses, row, strict=True) if is_slow]
        assert of_cut(cut, chosen) <= instruction.elapsed_ticks(chosen)
