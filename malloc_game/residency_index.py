"""Which residency of a buffer covers a step, and which one an eviction copies out of."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from malloc_game.memory_map import Eviction, Residency


class ResidencyIndex:
    """Residencies by buffer and start; every look-up takes logarithmic time.

    Where residencies of one buffer overlap (the validator's rule 2) the later one is found.
    """

    def __init__(self, residencies: Iterable[Residency]) -> None:
        by_buffer: dict[int, list[Residency]] = {}
        for residency in residencies:
            by_buffer.setdefault(residency.buffer, []).append(residency)
        for several in by_buffer.values():
            several.sort(key=lambda residency: residency.start)
        self._by_buffer = by_buffer
        self._starts = {b: [r.start for r in several] for b, several in by_buffer.items()}

    @property
    def buffers(self) -> Iterable[int]:
        """The buffers that have residencies."""
        return self._by_buffer.keys()

    def of_buffer(self, buffer: int) -> list[Residency]:
        """All residencies of `buffer` by start."""
        return self._by_buffer.get(buffer, [])

    def covering(self, buffer: int, step: int) -> Residency | None:
        """The residency that holds the buffer's place at `step`, ready or not."""
        at = bisect_right(self._starts.get(buffer, ()), step) - 1
        if at < 0:
            return None
        found = self._by_buffer[buffer][at]
        return found if step < found.end else None

    def ready_at(self, buffer: int, step: int) -> Residency | None:
        """The residency that serves accesses of `buffer` at `step`."""
        found = self.covering(buffer, step)
        return found if found is not None and found.ready <= step else None

    def overlapping(self, buffer: int, start: int, end: int) -> list[Residency]:
        """The residencies of `buffer` that hold its place at some step of `[start, end)`."""
        return [r for r in self.of_buffer(buffer) if r.start < end and start < r.end]

    def evicted(self, eviction: Eviction) -> Residency | None:
        """The residency that `eviction` copies out of, which lasts until `done` at least.

        An eviction with `issue == done` is a flush, paid as a stall just before that step: it
        belongs to the residency that held the buffer until then.
        """
        starts = self._starts.get(eviction.buffer, ())
        if eviction.issue == eviction.done:
            at = bisect_left(starts, eviction.issue) - 1
        else:
            at = bisect_right(starts, eviction.issue) - 1
        if at < 0:
            return None
        found = self._by_buffer[eviction.buffer][at]
        return found if found.ready <= eviction.issue and eviction.done <= found.end else None
