"""Why is this tensor slow? The accesses that a map leaves in slow memory, and what each costs.

For those that cost most the question is answered by trying: the map gets one more residency, for
this access alone or for a whole loop around it, with its copy begun as early as content and room
allow, and the result is validated and simulated, loops, stalls and all. Everything else stays
where it is.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.program import Access, AccessKind, Program
from malloc_game.memory_map import Eviction, MemoryMap, Residency, Source
from malloc_game.simulate import fast_accesses, simulate
from malloc_game.validate import validate


class Reason(enum.StrEnum):
    """Why an access is not served from fast memory."""

    NOT_ALLOWED = "may not be fast"
    TOO_LARGE = "larger than fast memory"
    NOT_WORTH = "costs nothing where it is"
    NO_ROOM = "no room"
    NOT_ALONE = "not by itself: its neighbours would have to change"
    NO_TIME = "its copies would cost more than it saves"
    MISSED = "room and time: the map is slower than it need be"


@dataclass(frozen=True, slots=True)
class SlowAccess:
    """One access in slow memory.

    Attributes:
      step: where.
      buffer: which.
      kind: read, update or write.
      size_bytes: of the buffer.
      cost_seconds: what the step would be shorter with this access alone fast, all repeats.
      reason: the first that applies.
    """

    step: int
    buffer: int
    kind: str
    size_bytes: int
    cost_seconds: float
    reason: Reason


def slow_accesses(
    program: Program, memory_map: MemoryMap, limit: int, copy_order: str = "deadline"
) -> list[SlowAccess]:
    """The `limit` costliest accesses that a valid map serves from slow memory."""
    costs = sorted(_costs(program, memory_map), key=lambda cost: -cost[2])[:limit]
    trials = _Trials(program, memory_map, copy_order)
    return [
        SlowAccess(
            step=step,
            buffer=access.buffer,
            kind=access.kind.value,
            size_bytes=program.buffers[access.buffer].size_bytes,
            cost_seconds=cost_ticks * program.tick_seconds,
            reason=_reason(program, step, access, cost_ticks, trials),
        )
        for step, access, cost_ticks in costs
    ]


def _costs(program: Program, memory_map: MemoryMap) -> Iterator[tuple[int, Access, float]]:
    """(step, access, ticks over all repeats) of every slow access; replaced copies have none."""
    fast = fast_accesses(program, memory_map)
    replaced = {copy.step for copy in memory_map.replaced_copies}
    for step, instruction in enumerate(program.instructions):
        if step in replaced:
            continue
        slow = [a for a in instruction.accesses if (step, a.buffer) not in fast]
        elapsed = instruction.elapsed_ticks(slow)
        for access in slow:
            others = [other for other in slow if other is not access]
            saved = elapsed - instruction.elapsed_ticks(others)
            yield step, access, instruction.repeat * saved


def _reason(
    program: Program, step: int, access: Access, cost_ticks: float, trials: _Trials
) -> Reason:
    buffer = program.buffers[access.buffer]
    if not buffer.fast_allowed:
        return Reason.NOT_ALLOWED
    if buffer.size_bytes > program.capacity_bytes:
        return Reason.TOO_LARGE
    if cost_ticks <= 0:
        return Reason.NOT_WORTH
    return trials.reason(step, access)


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a buffer would be fast: steps `[start, end)`, once per trip of `loop`."""

    start: int
    end: int
    loop: int | None


class _Trials:
    """One map, to which one residency at a time is added."""

    def __init__(self, program: Program, memory_map: MemoryMap, copy_order: str) -> None:
        self._program = program
        self._map = memory_map
        self._copy_order = copy_order
        self._latency = simulate(program, memory_map, copy_order).latency_ticks
        self._pieces = np.array(
            [
                piece
                for residency in memory_map.residencies
                for piece in residency.occupied(program.buffers[residency.buffer].size_bytes)
            ],
            dtype=np.int64,
        ).reshape(-1, 4)

    def reason(self, step: int, access: Access) -> Reason:
        """What the trials of one slow access show."""
        spans = [span for span in self._spans(step) if self._is_free(access.buffer, span)]
        maps = [
            candidate for span in spans if (candidate := self._with_fast(access, span)) is not None
        ]
        if spans and not maps:
            return Reason.NO_ROOM
        valid = [candidate for candidate in maps if not validate(self._program, candidate)]
        if not valid:
            return Reason.NOT_ALONE
        latencies = (
            simulate(self._program, candidate, self._copy_order).latency_ticks
            for candidate in valid
        )
        return Reason.MISSED if min(latencies) < self._latency else Reason.NO_TIME

    def _spans(self, step: int) -> Iterator[_Span]:
        """The step alone, then every loop around it as a whole."""
        program = self._program
        inner = program.loop_of_step[step]
        yield _Span(step, step + 1, inner)
        for index in program.loops_around(inner):
            loop = program.loops[index]
            yield _Span(loop.start_step, loop.end_step, loop.parent)

    def _with_fast(self, access: Access, span: _Span) -> MemoryMap | None:
        """The map with the buffer fast during a span, copied in and out as needed, if it fits."""
        buffer = access.buffer
        low, high = self._free_steps(buffer, span)
        is_step = span.end == span.start + 1
        is_written_first = is_step and access.kind is AccessKind.WRITE
        start = span.start if is_written_first else self._begin(buffer, span, low)
        end = self._finish(buffer, span, start, high) if self._writes(buffer, span) else span.end
        offset = self._offset(buffer, start, end)
        if offset is None:
            return None
        added = Residency(
            buffer=buffer,
            offset_bytes=offset,
            start=start,
            end=end,
            source=Source.PRODUCED if is_written_first else Source.COPIED,
            ready=span.start,
            loop=span.loop,
        )
        candidate = replace(self._map, residencies=(*self._map.residencies, added))
        if not self._writes(buffer, span) or not validate(self._program, candidate):
            return candidate
        eviction = Eviction(buffer, span.end, end)
        return replace(candidate, evictions=(*candidate.evictions, eviction))

    def _writes(self, buffer: int, span: _Span) -> bool:
        return any(
            access.kind.writes and span.start <= step < span.end
            for step, access in self._program.accesses_of_buffer[buffer]
        )

    def _is_free(self, buffer: int, span: _Span) -> bool:
        """Whether the buffer is in slow memory during all of the span."""
        return not any(
            residency.buffer == buffer and residency.start < span.end and span.start < residency.end
            for residency in self._map.residencies
        )

    def _free_steps(self, buffer: int, span: _Span) -> tuple[int, int]:
        """The steps around a free span in which its loop runs and the buffer is nowhere else."""
        program = self._program
        low, high = 0, program.num_steps
        if span.loop is not None:
            low, high = program.loops[span.loop].start_step, program.loops[span.loop].end_step
        for residency in self._map.residencies:
            if residency.buffer == buffer and residency.end <= span.start:
                low = max(low, residency.end)
            elif residency.buffer == buffer:
                high = min(high, residency.start)
        return low, high

    def _begin(self, buffer: int, span: _Span, low: int) -> int:
        """The earliest start of a copy into the span that content and room allow."""
        for step, access in self._program.accesses_of_buffer[buffer]:
            if access.kind.writes and step < span.start:
                low = max(low, step + 1)
        starts = [t for t in range(low, span.start + 1) if self._may_begin_or_end(t, span)]
        return _first(starts, lambda start: self._offset(buffer, start, span.end) is not None)

    def _finish(self, buffer: int, span: _Span, start: int, high: int) -> int:
        """The latest end of a copy out of the span before the next access that room allows."""
        following = [
            step for step, _ in self._program.accesses_of_buffer[buffer] if step >= span.end
        ]
        high = min([high, *following])
        ends = [t for t in range(high, span.end - 1, -1) if self._may_begin_or_end(t, span)]
        return _first(ends, lambda end: self._offset(buffer, start, end) is not None)

    def _may_begin_or_end(self, step: int, span: _Span) -> bool:
        """Whether a residency of the span's loop may begin or end at a step: in no inner loop."""
        return not any(
            loop.start_step < step < loop.end_step
            and not (loop.start_step <= span.start and span.end <= loop.end_step)
            for loop in self._program.loops
        )

    def _offset(self, buffer: int, start: int, end: int) -> int | None:
        """The lowest place that is free during `[start, end)`."""
        taken = self._pieces[(self._pieces[:, 0] < end) & (self._pieces[:, 1] > start)][:, 2:]
        return _lowest_gap(
            taken, self._program.buffers[buffer].size_bytes, self._program.capacity_bytes
        )


def _lowest_gap(taken: NDArray[np.int64], size_bytes: int, capacity_bytes: int) -> int | None:
    """The lowest offset at which `size_bytes` are free; `taken` has rows (low, high)."""
    offset = 0
    for low, high in sorted(taken.tolist()):
        if low - offset >= size_bytes:
            break
        offset = max(offset, high)
    return offset if offset + size_bytes <= capacity_bytes else None


def _first(steps: list[int], fits: Callable[[int], bool]) -> int:
    """The first step that fits, of steps that are fitting from some point on; else the last."""
    return steps[min(bisect_left(steps, True, key=fits), len(steps) - 1)]
