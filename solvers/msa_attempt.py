"""One attempt at one buffer: value by value, use by use.

Source: `MsaAlgorithm::AllocateAllocationValues` and `AllocateSegment`
(`xla/service/memory_space_assignment/algorithm.cc`). Each use is tried in turn: stay in fast memory
without a copy; else save the value to default memory if it has no copy there yet, and prefetch it;
else read it from default memory. Space, bandwidth and counters taken on the way can be given back
(`Attempt.uncommit`).
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from solvers.msa_copies import CopyOrdering, CopyResource, OutstandingCopies
from solvers.msa_heap import Chunk, ChunkHeap
from solvers.msa_options import MsaOptions
from solvers.msa_pickers import IntervalPicker, Window
from solvers.msa_problem import MsaBuffer, MsaProblem, MsaUse, MsaValue


class Result(enum.IntFlag):
    """Why an allocation failed; bits of XLA's `AllocationResult`."""

    SUCCESS = 0
    OUT_OF_MEMORY = 1
    PREVIOUS_NOT_FAST = 2
    LIVE_RANGE_TOO_LONG = 4
    LIVE_RANGE_TOO_SHORT = 8
    OUT_OF_ASYNC_COPIES = 16
    VIOLATES_COPY_RESOURCE = 32
    REQUIRES_UNCOMMIT = 64
    CONFLICTING_OFFSETS = 256


@dataclass(slots=True, eq=False)
class Place:
    """An address that one or more allocations of a buffer share (XLA's `AliasedOffset`).

    Attributes:
      offset: bytes; changes when fast memory is repacked.
      held: (heap key, chunk) taken at this address, by time, none at the same time.
    """

    offset: int
    held: list[tuple[int, Chunk]] = field(default_factory=list)

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of times `[start, end]` at which the address is not held yet."""
        first = bisect_left(self.held, start, key=lambda entry: entry[1].end)
        for position in range(first, len(self.held)):
            _, chunk = self.held[position]
            if chunk.start > end:
                break
            if start < chunk.start:
                yield start, chunk.start - 1
            start = chunk.end + 1
        if start <= end:
            yield start, end

    def add(self, entry: tuple[int, Chunk]) -> None:
        """Holds a chunk in one of the gaps."""
        insort(self.held, entry, key=lambda held: held[1].start)

    def remove(self, entry: tuple[int, Chunk]) -> None:
        """Holds a chunk no longer."""
        del self.held[bisect_left(self.held, entry[1].start, key=lambda held: held[1].start)]


@dataclass(slots=True, eq=False)
class Allocation:
    """A value in one memory during times `[start, end]`, both included.

    Attributes:
      start: when it is there or, for a prefetch, first holds its bytes.
      end: last time.
      place: address in fast memory; None: default memory.
      copy: (issued after, done before) of the copy that makes it; None: defined here.
      source: what it is a copy of.
      uses: indices of the value's uses that it serves.
    """

    start: int
    end: int
    place: Place | None
    copy: tuple[int, int] | None = None
    source: Allocation | None = None
    uses: list[int] = field(default_factory=list)

    @property
    def fast(self) -> bool:
        """Whether it is in fast memory."""
        return self.place is not None

    @property
    def available_after(self) -> int:
        """Earliest (exclusive) start of a copy from it."""
        return self.start if self.copy is None else self.copy[1]


@dataclass(frozen=True, slots=True)
class Requirement:
    """Where a value must be at some time: at a place, or in default memory (None)."""

    place: Place | None
    also_default: bool = False


@dataclass(slots=True, eq=False)
class Resources:
    """What all buffers share."""

    problem: MsaProblem
    options: MsaOptions
    picker: IntervalPicker
    heap: ChunkHeap
    prefetches: CopyResource
    evictions: CopyResource
    order: CopyOrdering
    outstanding_prefetches: OutstandingCopies
    outstanding_evictions: OutstandingCopies
    edges: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch of a value's life: from its definition or a use to the next use."""

    index: int
    value: MsaValue
    use_index: int
    use: MsaUse
    start: int
    required_start: Requirement | None
    required_end: Requirement | None
    allow_no_copy: bool
    earliest_prefetch: int

    @property
    def end(self) -> int:
        """The use's time."""
        return self.use.time

    @property
    def hold_until(self) -> int:
        """Last time fast memory must be held if it serves the use."""
        return self.use.hold_until

    @property
    def preferred_place(self) -> Place | None:
        """The address that what follows insists on."""
        return None if self.required_end is None else self.required_end.place

    @property
    def default_at_end(self) -> bool:
        """Whether the use must be served from default memory."""
        return self.required_end is not None and self.required_end.place is None


class Attempt:
    """Places one buffer.

    Args:
      shared: what all buffers share; changed at once.
      buffer: what is placed.
      retry: number of attempts before.
      forced: sites that must be in default memory: (value index, use index or -1).
      preferred_start: wished start of a prefetch for a use, if any.
    """

    def __init__(
        self,
        shared: Resources,
        buffer: MsaBuffer,
        retry: int,
        forced: frozenset[tuple[int, int]] = frozenset(),
        preferred_start: Callable[[MsaBuffer, MsaUse, int, int], int | None] | None = None,
    ) -> None:
        self.buffer = buffer
        self.sequences: list[list[Allocation]] = [[] for _ in buffer.values]
        self.serving: dict[tuple[int, int], Allocation] = {}
        self.places: list[Place] = []
        self._shared = shared
        self._retry = retry
        self._forced = forced
        self._preferred_start = preferred_start
        self._required: dict[tuple[int, int], Requirement] = {}
        self._undo: list[Callable[[], None]] = []
        self._use_times = sorted({use.hold_until for value in buffer.values for use in value.uses})

    # -- driving ------------------------------------------------------------------------------

    def run(self) -> Result:
        """Tries all values; stops where only giving the whole buffer up helps."""
        for index, value in enumerate(self.buffer.values):
            if value.required_default or (index, -1) in self._forced:
                self._required[value.value, value.time] = Requirement(None)
            for time in self._shared.problem.required.get(value.value, ()):
                self._required[value.value, time] = Requirement(None)
        result = Result.SUCCESS
        for index, value in enumerate(self.buffer.values):
            if not any(self._is_fast(*covering) for covering in value.covered_by):
                result |= self._allocate_value(index, value)
            if result & Result.REQUIRES_UNCOMMIT:
                break
        self._settle_unused()
        return result

    def _settle_unused(self) -> None:
        """Values without uses lie where what they share their place with does."""
        for value, sequence in zip(self.buffer.values, self.sequences, strict=True):
            required = self._required.get((value.value, value.time))
            if not sequence and required is not None and required.place is not None:
                sequence.append(Allocation(value.time, value.time, required.place))

    def uncommit(self) -> None:
        """Gives back everything that was taken."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _is_fast(self, value_index: int, use_index: int) -> bool:
        allocation = self.serving.get((value_index, use_index))
        return allocation is not None and allocation.fast

    def _allocate_value(self, index: int, value: MsaValue) -> Result:
        result = Result.SUCCESS
        start, blocked_until = value.time, -2
        for use_index, use in enumerate(value.uses):
            self._require_default_where_useless(index, value, use_index, use)
            segment = self._segment(index, value, use_index, use, start, blocked_until)
            result |= self._allocate_segment(segment)
            if result & Result.REQUIRES_UNCOMMIT:
                return result
            if not self._propagate(segment):
                return result | Result.REQUIRES_UNCOMMIT
            if use.conditional is not None:
                blocked_until = use.conditional
            elif use.hold_until > use.time and not self.serving[index, use_index].fast:
                blocked_until = use.hold_until
            start = use.hold_until
        return result

    def _segment(
        self,
        index: int,
        value: MsaValue,
        use_index: int,
        use: MsaUse,
        start: int,
        blocked_until: int,
    ) -> _Segment:
        start = min(start, use.time)
        end_requirement = self._required.get((value.value, use.time))
        for alias in use.aliases:
            found = self._required.get(alias)
            if found is not None and (end_requirement is None or found.place is None):
                end_requirement = found
        sequence = self.sequences[index]
        return _Segment(
            index=index,
            value=value,
            use_index=use_index,
            use=use,
            start=start,
            required_start=self._required.get((value.value, start)),
            required_end=end_requirement,
            allow_no_copy=not sequence or sequence[-1].end >= blocked_until,
            earliest_prefetch=blocked_until,
        )

    def _require_default_where_useless(
        self, index: int, value: MsaValue, use_index: int, use: MsaUse
    ) -> None:
        """Uses that may not be fast, and loops and branches that would only hold the memory."""
        picker = self._shared.picker
        waits = [
            first is not None and picker.allows_no_copy(start, first)
            for start, first in use.first_inside
        ]
        useless = bool(waits) and not any(waits)
        if use.required_default or useless or (index, use_index) in self._forced:
            self._required[value.value, use.time] = Requirement(None)

    def _propagate(self, segment: _Segment) -> bool:
        """Hands the use's place on to what shares it; False if that contradicts a requirement."""
        served = self.serving[segment.index, segment.use_index]
        sequence = self.sequences[segment.index]
        keep = self._shared.options.enable_while_redundant_eviction_elimination
        also = served.fast and any(not a.fast for a in sequence) and segment.use.is_while and keep
        for alias in segment.use.aliases:
            unchanged = alias[0] == segment.value.value
            known = self._required.get(alias)
            if known is not None and known.place is not served.place:
                return False
            self._required[alias] = Requirement(served.place, also and unchanged)
        return True

    # -- one use ------------------------------------------------------------------------------

    def _allocate_segment(self, segment: _Segment) -> Result:
        sequence = self.sequences[segment.index]
        if segment.start == segment.end and self._reuse(segment):
            return Result.SUCCESS
        if segment.required_start is not None:
            self._begin_as_required(segment, segment.required_start)
        result = Result.SUCCESS
        starts_default = segment.required_start is not None and (
            segment.required_start.place is None
        )
        if not starts_default and not segment.default_at_end and segment.allow_no_copy:
            result = self._stay(segment)
            if result is Result.SUCCESS or segment.value.precolored:
                return self._failed_if(result, segment.value.precolored)
        if segment.value.contiguous:
            return self._contiguous_in_default(segment, result)
        source = next((a for a in reversed(sequence) if not a.fast), None)
        if source is None:
            if sequence and sequence[-1].copy is None:
                evicted = self._evict(segment)
                if evicted is not Result.SUCCESS:
                    return result | evicted | Result.REQUIRES_UNCOMMIT
            else:
                sequence.append(Allocation(segment.start, segment.end, None))
            source = sequence[-1]
        if not segment.default_at_end:
            prefetched = self._prefetch(segment, source)
            result |= prefetched
            if prefetched is Result.SUCCESS:
                return Result.SUCCESS
        if segment.preferred_place is not None:
            return result | Result.REQUIRES_UNCOMMIT
        source.end = max(source.end, segment.end)
        self._serve(segment, source)
        return result

    def _failed_if(self, result: Result, precolored: bool) -> Result:
        if result is not Result.SUCCESS and precolored:
            return result | Result.REQUIRES_UNCOMMIT
        return result

    def _reuse(self, segment: _Segment) -> bool:
        """Serves a use at the time of the one before (or of the definition) like that one."""
        for allocation in reversed(self.sequences[segment.index]):
            if allocation.start <= segment.end <= allocation.end:
                if allocation.fast and (
                    segment.default_at_end or segment.hold_until > allocation.end
                ):
                    continue
                self._serve(segment, allocation)
                return True
        return False

    def _begin_as_required(self, segment: _Segment, required: Requirement) -> None:
        """Makes the value be where it must be when the segment starts."""
        sequence = self.sequences[segment.index]
        for allocation in reversed(sequence):
            if allocation.fast == (required.place is not None):
                allocation.end = max(allocation.end, segment.start)
                return
        if required.also_default:
            sequence.append(Allocation(segment.start, segment.start, None))
        sequence.append(Allocation(segment.start, segment.start, required.place))

    def _contiguous_in_default(self, segment: _Segment, result: Result) -> Result:
        """A value that cannot move stays in default memory, if nothing wants it elsewhere."""
        sequence = self.sequences[segment.index]
        if any(a.fast for a in sequence) or segment.preferred_place is not None:
            return result | Result.REQUIRES_UNCOMMIT
        if not sequence:
            sequence.append(Allocation(segment.start, segment.end, None))
        sequence[-1].end = max(sequence[-1].end, segment.end)
        self._serve(segment, sequence[-1])
        return result

    def _serve(self, segment: _Segment, allocation: Allocation) -> None:
        allocation.uses.append(segment.use_index)
        self.serving[segment.index, segment.use_index] = allocation

    # -- staying ------------------------------------------------------------------------------

    def _stay(self, segment: _Segment) -> Result:
        """No copy: the value is produced in fast memory, or stays there from before."""
        sequence = self.sequences[segment.index]
        previous = sequence[-1] if sequence else None
        if previous is not None and not previous.fast:
            return Result.PREVIOUS_NOT_FAST
        forced = segment.value.precolored
        if not forced and not self._shared.picker.allows_no_copy(segment.start, segment.end):
            return Result.LIVE_RANGE_TOO_LONG
        wanted = segment.preferred_place
        if previous is not None:
            if wanted is not None and wanted is not previous.place:
                return Result.CONFLICTING_OFFSETS
            wanted = previous.place
        start = segment.start if previous is None else previous.end + 1
        place = self._find_place(start, segment.hold_until, wanted)
        if place is None:
            return Result.OUT_OF_MEMORY
        self._hold(place, start, segment.hold_until)
        if previous is None:
            previous = Allocation(segment.start, segment.hold_until, place)
            sequence.append(previous)
        previous.end = max(previous.end, segment.hold_until)
        self._serve(segment, previous)
        return Result.SUCCESS

    def _find_place(self, start: int, end: int, wanted: Place | None) -> Place | None:
        """An address free during `[start, end]`; if there is a choice, for as long as possible."""
        heap, size = self._shared.heap, self.buffer.size_bytes
        if wanted is not None:
            free = all(heap.is_free(*gap, wanted.offset, size) for gap in wanted.gaps(start, end))
            return wanted if free else None
        offset = heap.best_fit(start, end, size)
        if offset is None:
            return None
        farther = self._later_uses(end)
        low, high = 0, len(farther)
        while low < high:
            # The farthest is tried first: mostly it fits.
            middle = high - 1 if high == len(farther) else (low + high) // 2
            found = heap.best_fit(start, farther[middle], size)
            if found is None:
                high = middle
            else:
                offset, low = found, middle + 1
        place = Place(offset)
        self.places.append(place)
        return place

    def _later_uses(self, end: int) -> list[int]:
        """Times of further uses that the value could wait for without a copy."""
        times = self._use_times
        found: list[int] = []
        last = end
        for time in times[bisect_left(times, end + 1) :]:
            if not self._shared.picker.allows_no_copy(last, time):
                break
            found.append(time)
            last = time
        return found

    def _hold(self, place: Place, start: int, end: int) -> None:
        heap, size = self._shared.heap, self.buffer.size_bytes
        for first, last in list(place.gaps(start, end)):
            chunk = Chunk(first, last, place.offset, size)
            entry = (heap.add(chunk), chunk)
            place.add(entry)
            self._undo.append(lambda entry=entry: self._release(place, entry))  # type: ignore[misc]

    def _release(self, place: Place, entry: tuple[int, Chunk]) -> None:
        self._shared.heap.remove(*entry)
        place.remove(entry)

    # -- leaving ------------------------------------------------------------------------------

    def _evict(self, segment: _Segment) -> Result:
        """Copies a value that was produced in fast memory to default memory."""
        shared, buffer = self._shared, self.buffer
        sequence = self.sequences[segment.index]
        previous = sequence[-1]
        assert previous.place is not None
        after = previous.start
        latest = segment.use.latest_prefetch_time
        end = shared.picker.eviction_end(after, segment.end, buffer.copy_ticks, self._retry)
        end = min(max(end, previous.end), latest)
        scope = segment.value.scope
        end = self._eviction_end(scope, previous, end)
        if end <= after or after + 1 in shared.problem.inside.get(scope, ()):
            return Result.OUT_OF_ASYNC_COPIES
        work = buffer.copy_ticks
        if not shared.evictions.fits(after, end, work):
            if self._retry < shared.options.max_retries - 1:
                return Result.VIOLATES_COPY_RESOURCE
            work = 0
        limit = shared.options.max_outstanding_evictions
        if 0 <= limit <= shared.outstanding_evictions.overlapping(after, end):
            return Result.OUT_OF_ASYNC_COPIES
        self._hold(previous.place, previous.end + 1, end)
        previous.end = max(previous.end, end)
        shared.evictions.add(after, end, work)
        self._undo.append(lambda: shared.evictions.remove(after, end, work))
        shared.outstanding_evictions.add(after, end)
        self._undo.append(lambda: shared.outstanding_evictions.remove(after, end))
        sequence.append(Allocation(end, segment.end, None, (after, end), previous))
        return Result.SUCCESS

    def _eviction_end(self, scope: int, previous: Allocation, wished: int) -> int:
        """The latest end up to the wish for which the address is free, of those worth trying."""
        inside = self._shared.problem.inside.get(scope, frozenset())
        place, size = previous.place, self.buffer.size_bytes
        assert place is not None
        for end in range(wished, previous.end, -1):
            tried = end == wished or end in self._shared.edges
            if tried and end not in inside:
                gaps = place.gaps(previous.end + 1, end)
                if all(self._shared.heap.is_free(*gap, place.offset, size) for gap in gaps):
                    return end
        end = min(previous.end, wished)
        while end in inside:
            end -= 1
        return end

    # -- coming back --------------------------------------------------------------------------

    def _prefetch(self, segment: _Segment, source: Allocation) -> Result:
        """Copies the value to fast memory in time for the use."""
        window = self._prefetch_window(segment, source)
        if window is None:
            return Result.OUT_OF_MEMORY
        picker = self._shared.picker
        latest = picker.latest_start(window)
        if window.earliest > latest:
            return Result.LIVE_RANGE_TOO_SHORT
        size = self.buffer.size_bytes
        wanted = segment.preferred_place
        if wanted is None and (
            self._shared.heap.best_fit(latest + 1, segment.hold_until, size) is None
        ):
            return Result.OUT_OF_MEMORY
        result = Result.LIVE_RANGE_TOO_SHORT
        out_of_memory_at = -2
        inside = self._shared.problem.inside.get(segment.value.scope, frozenset())
        for after in picker.starts(window):
            if after <= out_of_memory_at:
                return Result.OUT_OF_MEMORY
            if after + 1 in inside:
                continue
            result = self._copy_fits(segment, window, after)
            if result is not Result.SUCCESS:
                continue
            place = self._find_place(after + 1, segment.hold_until, wanted)
            if place is not None:
                self._add_prefetch(segment, source, window, after, place)
                return Result.SUCCESS
            result = Result.OUT_OF_MEMORY
            out_of_memory_at = max(out_of_memory_at, after)
        return result

    def _prefetch_window(self, segment: _Segment, source: Allocation) -> Window | None:
        """When the copy may start; None if memory is full just before the use."""
        end = segment.use.latest_prefetch_time
        earliest = max(source.available_after, segment.earliest_prefetch)
        if self._shared.problem.one_place_at_a_time:
            fast = [a.end for a in self.sequences[segment.index] if a.fast]
            earliest = max([earliest, *fast])
        limit = self._shared.heap.capacity - self.buffer.size_bytes
        used = self._shared.heap.used
        low = max(earliest + 1, 0)
        if low < end:
            full = used[low:end] > limit
            if full.any():
                last_full = low + int(full.nonzero()[0][-1])
                if last_full == end - 1 and segment.preferred_place is None:
                    return None
                earliest = max(earliest, last_full)
        preferred = None
        if self._preferred_start is not None:
            preferred = self._preferred_start(self.buffer, segment.use, earliest, end)
        return Window(
            earliest=earliest,
            end=end,
            nest=segment.value.nest,
            copy_ticks=self.buffer.copy_ticks,
            reduction_ticks=segment.use.reduction_ticks,
            preferred=None if preferred is None else max(preferred, earliest),
        )

    def _copy_fits(self, segment: _Segment, window: Window, after: int) -> Result:
        shared = self._shared
        options = shared.options
        if options.enforce_prefetch_fifo_order and shared.order.violates(after, window.end):
            return Result.OUT_OF_ASYNC_COPIES
        limit = options.max_outstanding_prefetches
        if limit >= 0:
            if segment.use.is_while:
                limit += options.while_use_extra_outstanding_prefetch_limit
            if shared.outstanding_prefetches.overlapping(after, window.end) >= limit:
                return Result.OUT_OF_ASYNC_COPIES
        if not shared.prefetches.fits(after, window.end, self._work(window)):
            return Result.VIOLATES_COPY_RESOURCE
        return Result.SUCCESS

    def _work(self, window: Window) -> int:
        """Bandwidth that a prefetch reserves: none where its start was wished for."""
        return 0 if window.preferred is not None else self.buffer.copy_ticks

    def _add_prefetch(
        self, segment: _Segment, source: Allocation, window: Window, after: int, place: Place
    ) -> None:
        shared, work, end = self._shared, self._work(window), window.end
        self._hold(place, after + 1, segment.hold_until)
        shared.prefetches.add(after, end, work)
        self._undo.append(lambda: shared.prefetches.remove(after, end, work))
        shared.order.add(after, end)
        self._undo.append(lambda: shared.order.remove(after, end))
        shared.outstanding_prefetches.add(after, end)
        self._undo.append(lambda: shared.outstanding_prefetches.remove(after, end))
        source.end = max(source.end, end)
        made = Allocation(after + 1, segment.hold_until, place, (after, end), source)
        self.sequences[segment.index].append(made)
        self._serve(segment, made)
