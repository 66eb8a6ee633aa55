"""The interval pickers against OpenXLA's example and the definition of each bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solvers.msa_options import PickerKind, PickerOptions
from solvers.msa_pickers import CostAnalysisPicker, InstructionCountPicker, NestedClock, Window


def picker(
    elapsed: list[int],
    *,
    low: float = 1.0,
    preferred: float = 2.0,
    high: float = 4.0,
    max_copy: float = 3.0,
    nest: list[int] | None = None,
) -> CostAnalysisPicker:
    levels = nest or [0] * len(elapsed)
    options = PickerOptions(PickerKind.COST_ANALYSIS, low, preferred, high)
    return CostAnalysisPicker(options, NestedClock(elapsed, levels, 5), levels, max_copy)


def test_order_of_openxlas_own_test() -> None:
    """One-second instructions, a copy of 3 s: preferred 6 s before, then outwards."""
    window = Window(earliest=0, end=22, nest=0, copy_ticks=3.0)
    chosen = picker([1] * 23)
    assert list(chosen.starts(window)) == [15, 16, 14, 17, 13, 18, 12, 11, 10, 9]
    assert chosen.latest_start(window) == 18


def test_what_the_use_gains_counts_as_overlap() -> None:
    window = Window(earliest=0, end=22, nest=0, copy_ticks=3.0, reduction_ticks=2.0)
    assert picker([1] * 23).latest_start(window) == 20


def test_nothing_fits_before_the_earliest_time() -> None:
    window = Window(earliest=20, end=22, nest=0, copy_ticks=3.0)
    assert list(picker([1] * 23).starts(window)) == []


def test_a_wish_is_honoured_unless_too_late() -> None:
    chosen = picker([1] * 23)
    wish = Window(earliest=0, end=22, nest=0, copy_ticks=3.0, preferred=11)
    assert list(chosen.starts(wish))[:3] == [11, 12, 10]
    late = Window(earliest=0, end=22, nest=0, copy_ticks=3.0, preferred=20)
    assert next(chosen.starts(late)) == 15


def test_no_copy_is_bounded_by_the_longest_wait() -> None:
    chosen = picker([1] * 30)
    assert chosen.allows_no_copy(0, 12)  # 11 between, 12 allowed
    assert not chosen.allows_no_copy(0, 13)


def test_evictions_wait_longer_with_each_retry() -> None:
    chosen = picker([1] * 40)
    assert chosen.eviction_end(5, 30, 2.0, 0) == 5 + 4 + 1
    assert chosen.eviction_end(5, 30, 2.0, 1) == 5 + 12 + 1
    assert chosen.eviction_end(5, 8, 2.0, 0) == 9  # later than allowed: one past


def test_starts_stay_at_the_level_of_the_use() -> None:
    nest = [0] * 5 + [1] * 5 + [0] * 5
    window = Window(earliest=0, end=13, nest=0, copy_ticks=2.0)
    starts = list(picker([1] * 15, nest=nest, max_copy=12.0).starts(window))
    assert set(starts) == {10, 4, 3, 2, 1, 0}


def test_loops_count_several_times_seen_from_outside_and_once_from_inside() -> None:
    clock = NestedClock([1] * 6, [0, 0, 1, 1, 1, 0], 5)
    assert clock.between(0, 5) == 1 + 3 * 5
    assert clock.between(2, 4) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=20))
def test_time_between_by_looking_at_every_instruction(steps: list[tuple[int, int]]) -> None:
    """Each counts once per trip of the loops around it that are not around all of them."""
    ticks, nest = [t for t, _ in steps], [n for _, n in steps]
    clock = NestedClock(ticks, nest, 5)
    for start in range(-1, len(steps)):
        for end in range(start + 1, len(steps) + 1):
            level = min(nest[max(start, 0) : end + 1])
            inside = range(start + 1, end)
            assert clock.between(start, end) == sum(ticks[t] * 5 ** nest[t] for t in inside) / (
                5**level if inside else 1
            )


class CountingClock(NestedClock):
    """Counts how often it is asked."""

    asked = 0

    def between(self, start: int, end: int) -> float:
        self.asked += 1
        return super().between(start, end)


def test_windows_with_loops_are_not_searched_start_by_start() -> None:
    nest = [0] * 500 + [1] * 10 + [0] * 1490
    clock = CountingClock([1] * 2000, nest, 5)
    options = PickerOptions(PickerKind.COST_ANALYSIS, 1.0, 2.0, 1e9)
    chosen = CostAnalysisPicker(options, clock, nest, 3.0)
    assert chosen.preferred_start(Window(-1, 1900, 0, copy_ticks=300.0)) == 1299
    assert chosen.eviction_end(-1, 1900, 300.0, 0) == 560
    assert clock.asked < 100


def test_instruction_counts() -> None:
    chosen = InstructionCountPicker(2, 10)
    window = Window(earliest=1, end=9, nest=0, copy_ticks=0.0)
    assert list(chosen.starts(window)) == [1, 2, 3, 4, 5, 6]
    assert chosen.latest_start(window) == 6
    assert chosen.allows_no_copy(3, 13)
    assert not chosen.allows_no_copy(3, 14)
    assert chosen.eviction_end(3, 20, 0.0, 0) == 5
    wish = Window(earliest=1, end=9, nest=0, copy_ticks=0.0, preferred=5)
    assert list(chosen.starts(wish)) == [5, 6]


@given(
    st.lists(st.integers(0, 4), min_size=4, max_size=25),
    st.integers(0, 10),
    st.floats(0.1, 10),
)
def test_starts_are_within_the_bounds_and_never_twice(
    elapsed: list[int], earliest: int, copy_ticks: float
) -> None:
    end = len(elapsed) - 1
    chosen = picker(elapsed, max_copy=8.0)
    starts = list(chosen.starts(Window(earliest, end, 0, copy_ticks)))
    clock = NestedClock(elapsed, [0] * len(elapsed), 5)
    assert len(set(starts)) == len(starts)
    for start in starts:
        assert earliest <= start < end
        assert copy_ticks <= clock.between(start, end) <= 32.0


@given(
    st.lists(st.integers(0, 4), min_size=4, max_size=25),
    st.integers(-1, 10),
    st.floats(0.1, 10),
    st.floats(0.5, 3),
    st.tuples(st.integers(0, 24), st.integers(0, 24)),
)
def test_bounds_by_looking_at_every_time(
    elapsed: list[int],
    earliest: int,
    copy_ticks: float,
    preferred: float,
    loop: tuple[int, int],
) -> None:
    """The binary searches against the definitions, time by time, in a program with a loop."""
    end = len(elapsed) - 1
    nest = [int(min(loop) <= time < max(loop)) for time in range(len(elapsed))]
    chosen = picker(elapsed, preferred=preferred, max_copy=2.0, nest=nest)
    window = Window(earliest, end, nest[end - 1], copy_ticks, reduction_ticks=1.0)
    clock = NestedClock(elapsed, nest, 5)
    levels = {-1: 0, **dict(enumerate(nest))}
    between = {
        start: clock.between(start, end)
        for start in range(earliest, end)
        if levels[start] == window.nest
    }
    latest = max((s for s, t in between.items() if copy_ticks <= t + 1.0), default=None)
    if latest is None:
        assert list(chosen.starts(window)) == []
        return
    # The latest start is tried even if the step after it takes longer than any wait may.
    allowed = [s for s, t in between.items() if s <= latest and (t <= 8.0 or s == latest)]
    assert chosen.latest_start(window) == latest
    nearest = min(allowed, key=lambda s: (abs(preferred * copy_ticks - between[s]), s))
    assert chosen.preferred_start(window) == nearest
