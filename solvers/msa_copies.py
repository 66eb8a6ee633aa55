"""What limits asynchronous copies: bandwidth, order and number.

Source: `AsynchronousCopyResource` and `AsynchronousCopyOrdering` in
`xla/service/memory_space_assignment/algorithm.h`. A copy `(start, end)` is issued after the
instruction at time `start` (exclusive) and done before the one at `end`, so that it can use the
times in between. Everything is an integer, so that taking a copy back restores the state exactly.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(slots=True, eq=False)
class _Served:
    """A copy in the queue, and by how much it could be delayed and still be done in time."""

    end: int
    work: int
    slack: int


class CopyResource:
    """Bandwidth per logical time, given to copies in the order of their start times.

    Copies that start at the same time are served in the order in which they were added. Let
    `backlog[t]` be the work that waits when time `t` begins; then `t` serves
    `min(initial[t], backlog[t])` of it and the rest is carried over. A copy is done in time if
    the backlog up to and including itself, when it joins, is no more than what the times until
    its end can serve.

    Args:
      initial: [times] work that each time can do.
    """

    def __init__(self, initial: Sequence[int]) -> None:
        self._initial = list(initial)
        self._before = [0, *accumulate(self._initial)]
        self._backlog = [0] * (len(self._initial) + 1)
        self._joining: dict[int, list[_Served]] = {}

    @property
    def remaining(self) -> list[int]:
        """[times] what is left of each time: XLA's `GetCurrentResources`."""
        return [max(i - b, 0) for i, b in zip(self._initial, self._backlog, strict=False)]

    def fits(self, start: int, end: int, work: int) -> bool:
        """Whether a copy could be added without making it or another one late."""
        if work <= 0:
            return True
        first = start + 1
        own = self._supply(first, end) - self._backlog_at(first) - work
        return own >= 0 and self._delays_nobody(first, work)

    def add(self, start: int, end: int, work: int) -> None:
        """Adds a copy that `fits`."""
        first = start + 1
        if work > 0:
            slack = self._supply(first, end) - self._backlog_at(first) - work
            self._joining.setdefault(first, []).append(_Served(end, work, slack))
            self._push(first, work)

    def remove(self, start: int, end: int, work: int) -> None:
        """Takes back the copy that was added last with these arguments."""
        if work <= 0:
            return
        first = start + 1
        queue = self._joining[first]
        position = max(i for i, c in enumerate(queue) if (c.end, c.work) == (end, work))
        del queue[position]
        for later in queue[position:]:
            later.slack += work
        if not queue:
            del self._joining[first]
        self._push(first, -work)

    def _supply(self, first: int, end: int) -> int:
        """Work that times `[first, end)` can do."""
        last = min(end, len(self._initial))
        return self._before[last] - self._before[first] if last > first else 0

    def _backlog_at(self, time: int) -> int:
        return self._backlog[time] if time < len(self._backlog) else 0

    def _carried_more(self, time: int, work: int) -> int:
        """How much more `time` hands on if `work` is added to its backlog."""
        served = self._initial[time]
        return max(self._backlog[time] + work - served, 0) - max(self._backlog[time] - served, 0)

    def _delays_nobody(self, first: int, work: int) -> bool:
        time, more = first, work
        while time < len(self._initial):
            more = self._carried_more(time, more)
            time += 1
            if more <= 0:
                return True
            if any(copy.slack < more for copy in self._joining.get(time, ())):
                return False
        return True

    def _push(self, first: int, work: int) -> None:
        """Adds `work` (negative: takes away) to the backlog from `first` on."""
        time, more = first, work
        while more and time < len(self._initial):
            following = self._carried_more(time, more)
            self._backlog[time] += more
            time, more = time + 1, following
            for copy in self._joining.get(time, ()) if more else ():
                copy.slack -= more


class CopyOrdering:
    """First in, first out: a copy that starts earlier must not end later."""

    def __init__(self) -> None:
        self._copies: list[tuple[int, int]] = []

    def violates(self, start: int, end: int) -> bool:
        """Whether a copy would overtake or be overtaken; equal starts or ends are in order."""
        before = bisect_left(self._copies, (start,))
        if before and self._copies[before - 1][1] > end:
            return True
        after = bisect_left(self._copies, (start + 1,))
        return after < len(self._copies) and self._copies[after][1] < end

    def add(self, start: int, end: int) -> None:
        """Adds a copy that does not violate the order; copies may be equal."""
        insort(self._copies, (start, end))

    def remove(self, start: int, end: int) -> None:
        """Takes back one copy."""
        del self._copies[bisect_left(self._copies, (start, end))]


class OutstandingCopies:
    """Counts copies under way, both ends included as XLA's interval trees do."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def overlapping(self, start: int, end: int) -> int:
        """Copies that share a time with `[start, end]`."""
        return bisect_right(self._starts, end) - bisect_left(self._ends, start)

    def add(self, start: int, end: int) -> None:
        """Counts a copy."""
        insort(self._starts, start)
        insort(self._ends, end)

    def remove(self, start: int, end: int) -> None:
        """Takes back a copy."""
        del self._starts[bisect_left(self._starts, start)]
        del self._ends[bisect_left(self._ends, end)]
