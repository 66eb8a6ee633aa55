"""When to start a prefetch: the two interval pickers of OpenXLA's memory-space assignment.

Source: `xla/service/memory_space_assignment/prefetch_interval_picker.cc`. Times are logical times;
a prefetch starts *after* the instruction at its start time and is done before the one at its end,
so the time between is that of the instructions strictly between.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from solvers.msa_options import PickerKind, PickerOptions

EXPLORED_DECREASING_INTERVALS = 100
"""XLA's `kNumExploredDecreasingIntervals`: how finely the far past is searched."""


@dataclass(frozen=True, slots=True)
class Window:
    """What a picker is asked for.

    Attributes:
      earliest: first allowed start (exclusive).
      end: the prefetch is done before this time.
      nest: computation nest level of the use; starts are taken at this level only.
      copy_ticks: of the buffer.
      reduction_ticks: by which the use gets faster when served from fast memory.
      preferred: wished start, None: none.
    """

    earliest: int
    end: int
    nest: int
    copy_ticks: float
    reduction_ticks: float = 0.0
    preferred: int | None = None


class IntervalPicker(Protocol):
    """Says which intervals are worth holding memory for."""

    def allows_no_copy(self, start: int, end: int) -> bool:
        """Whether a buffer may stay in fast memory from `start` to `end` unused."""
        ...

    def eviction_end(self, start: int, latest: int, copy_ticks: float, retry: int) -> int:
        """Preferred end of an eviction that starts after `start`; may exceed `latest` by one."""
        ...

    def latest_start(self, window: Window) -> int:
        """Latest start that hides the copy as well as it must."""
        ...

    def starts(self, window: Window) -> Iterator[int]:
        """Starts to try, best first."""
        ...

    def preferred_start(self, window: Window) -> int:
        """The start to aim at."""
        ...


def make_picker(
    options: PickerOptions, clock: NestedClock, nest: Sequence[int], max_copy_ticks: float
) -> IntervalPicker:
    """The picker that the options ask for; see `CostAnalysisPicker` for the arguments."""
    if options.kind is PickerKind.INSTRUCTION_COUNT:
        return InstructionCountPicker(options.min_count, options.max_count)
    return CostAnalysisPicker(options, clock, nest, max_copy_ticks)


@dataclass(frozen=True, slots=True)
class InstructionCountPicker:
    """Counts instructions: at least `min_count` between, at most `max_count`."""

    min_count: int
    max_count: int

    def allows_no_copy(self, start: int, end: int) -> bool:
        """Whether at most `max_count` instructions lie between."""
        return end - start <= self.max_count

    def eviction_end(self, start: int, latest: int, copy_ticks: float, retry: int) -> int:
        """`min_count` later."""
        return min(start + self.min_count, latest)

    def latest_start(self, window: Window) -> int:
        """`min_count` instructions before the end."""
        return window.end - self.min_count - 1

    def starts(self, window: Window) -> Iterator[int]:
        """From the earliest allowed, or the preferred, upwards."""
        first = self.preferred_start(window)
        return iter(range(first, window.end - self.min_count))

    def preferred_start(self, window: Window) -> int:
        """The earliest allowed, if none is wished."""
        if window.preferred is not None:
            return window.preferred
        return max(window.earliest, window.end - self.max_count)


class NestedClock:
    """Elapsed time between logical times, loops counted as if they ran several times.

    Args:
      elapsed_ticks: [times] of each instruction; 0 for loops and conditionals themselves.
      while_nest: [times] number of loops around each.
      count: executions taken for each level.
    """

    def __init__(self, elapsed_ticks: Sequence[int], while_nest: Sequence[int], count: int) -> None:
        self._count = count
        self._lowest = _range_minima(while_nest) if any(while_nest) else []
        weighted = (t * count**n for t, n in zip(elapsed_ticks, while_nest, strict=True))
        self.until = list(accumulate(weighted, initial=0))
        """[times + 1] weighted time of all instructions before each time."""

    def between(self, start: int, end: int) -> float:
        """Time of the instructions strictly between `start` and `end`.

        The least nested level from `start` to `end` is what counts once. A longer stretch never
        takes less time: it adds instructions, and its least nested level is no higher.
        """
        if end <= start + 1:
            return 0.0
        total = self.until[min(end, len(self.until) - 1)] - self.until[start + 1]
        if not self._lowest:
            return float(total)
        return float(total / self._count ** self._least_nested(max(start, 0), end + 1))

    def _least_nested(self, low: int, high: int) -> int:
        """The least number of loops around any of times `[low, high)`."""
        high = min(high, len(self._lowest[0]))
        if high <= low:
            return 0
        row = (high - low).bit_length() - 1
        minima = self._lowest[row]
        return min(minima[low], minima[high - (1 << row)])


def _range_minima(values: Sequence[int]) -> list[list[int]]:
    """Row `k` holds at `i` the least of the `2**k` values from `i` on."""
    row = np.asarray(values, dtype=np.int64)
    rows, width = [row.tolist()], 1
    while 2 * width <= len(values):
        row = np.minimum(row[:-width], row[width:])
        rows.append(row.tolist())
        width *= 2
    return rows


class CostAnalysisPicker:
    """Picks intervals by the time that passes in them.

    Args:
      options: the overlap ratios.
      clock: elapsed times.
      nest: [times] computation nest level, conditionals and calls included.
      max_copy_ticks: copy time of `PickerOptions.max_overlap_size_bytes`.
    """

    def __init__(
        self,
        options: PickerOptions,
        clock: NestedClock,
        nest: Sequence[int],
        max_copy_ticks: float,
    ) -> None:
        self._options = options
        self._clock = clock
        self._nest = list(nest)
        self._max_elapsed = max_copy_ticks * options.max_overlap
        self._last: tuple[Window, tuple[int, int]] | None = None

    def allows_no_copy(self, start: int, end: int) -> bool:
        """Whether less than the longest wait passes, independent of the buffer's size."""
        return self._max_elapsed > self._clock.between(start, end)

    def eviction_end(self, start: int, latest: int, copy_ticks: float, retry: int) -> int:
        """First time by which the preferred overlap has passed, longer with each retry."""
        wanted = (1 + 2 * retry) * self._options.preferred_overlap * copy_ticks
        ends = range(start + 1, latest + 1)
        return ends.start + bisect_left(
            ends, True, key=lambda end: self._clock.between(start, end) >= wanted
        )

    def latest_start(self, window: Window) -> int:
        """Latest start with the least overlap, what the use gains by it included."""
        return self._bounds(window)[1]

    def preferred_start(self, window: Window) -> int:
        """The start nearest to the preferred overlap, or the one wished for if not too late."""
        earliest, latest = self._bounds(window)
        if window.preferred is not None and window.preferred <= latest:
            return window.preferred
        wanted = self._options.preferred_overlap * window.copy_ticks
        best, best_error = earliest, abs(wanted - self._clock.between(earliest, window.end))
        for start in self._worth_comparing(window, earliest, latest, wanted):
            error = abs(wanted - self._clock.between(start, window.end))
            if error < best_error:
                best, best_error = start, error
        return best

    def _worth_comparing(
        self, window: Window, earliest: int, latest: int, wanted: float
    ) -> Sequence[int]:
        """Starts among which is the first of those nearest to `wanted`, in order."""
        below = self._first_within(window, wanted, latest)
        before = max(self._back_at_level(min(below, latest + 1) - 1, window), earliest)
        above = self._first_within(window, self._clock.between(before, window.end), latest)
        return [start for start in (above, below) if earliest < start <= latest]

    def starts(self, window: Window) -> Iterator[int]:
        """From the preferred start outwards, later and earlier in turn; then far ones sparsely."""
        earliest, latest = self._bounds(window)
        if earliest > latest:
            return
        middle = self.preferred_start(window)
        earlier, later = middle, self._at_level(middle + 1, latest, window.nest)
        while earlier >= earliest or later <= latest:
            if earlier >= earliest:
                yield earlier
                earlier = self._step_back(earlier, earliest, window, later > latest)
            if later <= latest:
                yield later
                later = self._at_level(later + 1, latest, window.nest)

    def _step_back(self, start: int, earliest: int, window: Window, sparse: bool) -> int:
        step = self._clock.between(earliest, window.end) / EXPLORED_DECREASING_INTERVALS
        target = self._clock.between(start, window.end) + step if sparse else 0.0
        start -= 1
        while start >= earliest and (
            self._level(start) != window.nest or self._clock.between(start, window.end) < target
        ):
            start -= 1
        return start

    def _at_level(self, start: int, latest: int, nest: int) -> int:
        """The first time from `start` on at a nest level; `latest + 1` if there is none."""
        while start <= latest and self._level(start) != nest:
            start += 1
        return start

    def _level(self, time: int) -> int:
        return self._nest[time] if 0 <= time < len(self._nest) else 0

    def _bounds(self, window: Window) -> tuple[int, int]:
        """Earliest and latest start; remembered for the window asked about last."""
        if self._last is not None and self._last[0] is window:
            return self._last[1]
        latest = self._latest(window)
        earliest = self._first_within(window, self._max_elapsed, latest)
        if latest >= window.earliest:  # which is tried, however long the step after it takes
            earliest = min(earliest, latest)
        self._last = window, (earliest, latest)
        return earliest, latest

    def _latest(self, window: Window) -> int:
        wanted = self._options.min_overlap * window.copy_ticks
        starts, end = range(window.earliest, window.end), window.end
        too_late = bisect_left(
            starts,
            True,
            key=lambda start: wanted > self._clock.between(start, end) + window.reduction_ticks,
        )
        return self._back_at_level(window.earliest + too_late - 1, window)

    def _first_within(self, window: Window, ticks: float, latest: int) -> int:
        """First start at the window's level from which at most `ticks` pass until its end."""
        starts, end = range(window.earliest, window.end), window.end
        enough = bisect_left(
            starts, True, key=lambda start: self._clock.between(start, end) <= ticks
        )
        return self._at_level(window.earliest + enough, latest, window.nest)

    def _back_at_level(self, start: int, window: Window) -> int:
        """The last time up to `start` at the window's level; before the window if none is in it."""
        while start >= window.earliest and self._level(start) != window.nest:
            start -= 1
        return start
