"""OpenXLA's memory-space assignment: buffers in order, each tried as a whole.

Source: `MsaAlgorithm::Finish` (`xla/service/memory_space_assignment/algorithm.cc`). The loop over
one buffer's values and uses is `msa_attempt`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hlo_graphs.errors import InputError
from solvers.msa_attempt import Allocation, Attempt, Place, Resources, Result
from solvers.msa_copies import CopyOrdering, CopyResource, OutstandingCopies
from solvers.msa_heap import Block, Chunk, ChunkHeap, repack
from solvers.msa_options import BufferOrder, MsaOptions, PrefetchOverride, SortOverride
from solvers.msa_pickers import NestedClock, Window, make_picker
from solvers.msa_problem import MsaBuffer, MsaProblem, MsaUse

MAX_OCCUPIED_RATIO = 0.6
"""A carried parameter is freed if it is in use for less than this share of the time."""


@dataclass(frozen=True, slots=True)
class CrossProgramPrefetch:
    """A parameter left in fast memory for the next run.

    Attributes:
      place: its address.
      last_use: last time at which it is needed.
      fetched_after: it is prefetched again after this time; None: it stays.
    """

    place: Place
    last_use: int
    fetched_after: int | None


@dataclass(slots=True, eq=False)
class Placed:
    """What became of one buffer.

    Attributes:
      buffer: the buffer.
      sequences: per value its allocations in order; empty where the value has none.
      serving: per (value index, use index) the allocation that serves the use.
      places: addresses in fast memory.
      carried: set for a cross-program prefetch; then the others are empty.
    """

    buffer: MsaBuffer
    sequences: list[list[Allocation]] = field(default_factory=list)
    serving: dict[tuple[int, int], Allocation] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    carried: CrossProgramPrefetch | None = None

    def is_fast(self, value_index: int, use_index: int) -> bool:
        """Whether a use is served from fast memory."""
        if self.carried is not None:
            return True
        served = self.serving.get((value_index, use_index))
        return served is not None and served.fast


@dataclass(frozen=True, slots=True)
class MsaResult:
    """The assignment.

    Attributes:
      placed: per buffer id.
      num_repacks: calls of the repacker that moved something.
    """

    placed: dict[int, Placed]
    num_repacks: int


class PrecoloredError(InputError):
    """A buffer that must be in fast memory does not fit (XLA: FailedPrecondition)."""


def assign(problem: MsaProblem, options: MsaOptions) -> MsaResult:
    """Runs memory-space assignment.

    Raises:
      PrecoloredError: if a buffer that must be in fast memory cannot be.
      InputError: if an option does not fit the problem.
    """
    return _Assignment(problem, options).run()


class _Assignment:
    """The state of one run."""

    def __init__(self, problem: MsaProblem, options: MsaOptions) -> None:
        self._problem = problem
        self._options = options
        self._clock = NestedClock(
            problem.elapsed_ticks, problem.while_nest, options.while_execution_count
        )
        self._picker = make_picker(
            options.picker, self._clock, problem.nest, problem.max_copy_ticks
        )
        self._shared = Resources(
            problem=problem,
            options=options,
            picker=self._picker,
            heap=self._empty_heap(),
            prefetches=CopyResource(problem.elapsed_ticks),
            evictions=CopyResource(problem.elapsed_ticks),
            order=CopyOrdering(),
            outstanding_prefetches=OutstandingCopies(),
            outstanding_evictions=OutstandingCopies(),
        )
        self._scoped = self._scoped_places()
        self._placed: dict[int, Placed] = {}
        self._num_repacks = 0
        self._moved = 0

    def run(self) -> MsaResult:
        """Everything in XLA's order: scoped memory, carried parameters, the buffers."""
        ordered = ordered_buffers(self._problem.buffers, self._options)
        if self._options.enable_cross_program_prefetch:
            self._carry_parameters()
        for buffer in ordered:
            if buffer.id not in self._placed and self._may_be_placed(buffer):
                self._place(buffer)
        if self._options.verify:
            self._verify()
        return MsaResult(self._placed, self._moved)

    def _may_be_placed(self, buffer: MsaBuffer) -> bool:
        return buffer.allowed and 0 < buffer.size_bytes <= self._problem.capacity_bytes

    def _scoped_places(self) -> list[Place]:
        """Memory that instructions reserve for themselves, at the bottom until repacked.

        All at one address, or each at its own (`allocate_reserved_scoped_memory_at_same_offset`).
        """
        problem, options = self._problem, self._options
        chunks = [
            Chunk(time, time, 0, min(size, problem.capacity_bytes))
            for time, size in sorted(options.reserved_scoped_bytes)
        ]
        if options.post_module_scoped_bytes:
            size = min(options.post_module_scoped_bytes, problem.capacity_bytes)
            chunks.append(Chunk(problem.num_times, problem.num_times, 0, size))
        together = options.allocate_reserved_scoped_memory_at_same_offset
        groups = [chunks] if together else [[chunk] for chunk in chunks]
        heap = self._shared.heap
        return [Place(0, [(heap.add(chunk), chunk) for chunk in group]) for group in groups]

    def _empty_heap(self) -> ChunkHeap:
        problem = self._problem
        return ChunkHeap(problem.num_times + 1, problem.capacity_bytes, problem.alignment_bytes)

    def _all_places(self) -> list[Place]:
        """Every address in use."""
        placed = [place for found in self._placed.values() for place in found.places]
        return [place for place in [*self._scoped, *placed] if place.held]

    # -- one buffer ---------------------------------------------------------------------------

    def _place(self, buffer: MsaBuffer) -> None:
        """XLA's loop of retries, repacks and inefficient sites over one buffer."""
        options = self._options
        forced: frozenset[tuple[int, int]] = frozenset()
        retry, repacked = 0, False
        while retry < options.max_retries:
            attempt = Attempt(self._shared, buffer, retry, forced, self._preferred_start)
            result = attempt.run()
            if result & Result.REQUIRES_UNCOMMIT:
                attempt.uncommit()
                retry += 1
            elif self._wants_repack(result) and not repacked:
                attempt.uncommit()
                repacked = True
                if not self._repack() and not options.repack_after_every_allocation:
                    retry += 1
            else:
                sites = inefficient_sites(attempt, options.inefficient_use_to_copy_ratio)
                if not sites - forced:
                    self._finalize(attempt)
                    return
                attempt.uncommit()
                forced |= sites
        if any(value.precolored for value in buffer.values):
            raise PrecoloredError(
                f"{buffer.name} ({buffer.size_bytes} bytes) requires allocation in fast memory of "
                f"{self._problem.capacity_bytes} bytes, which could not be satisfied: remove S(1) "
                "from its layout or give it more memory"
            )
        self._placed[buffer.id] = Placed(buffer, [[] for _ in buffer.values])

    def _wants_repack(self, result: Result) -> bool:
        options = self._options
        wanted = bool(result & Result.OUT_OF_MEMORY) or options.repack_after_every_allocation
        return wanted and self._num_repacks < options.max_repacks

    def _finalize(self, attempt: Attempt) -> None:
        self._placed[attempt.buffer.id] = Placed(
            attempt.buffer, attempt.sequences, attempt.serving, attempt.places
        )
        for sequence in attempt.sequences:
            for allocation in sequence:
                if allocation.fast:
                    self._shared.edges.update((allocation.start - 1, allocation.end + 1))

    def _preferred_start(
        self, buffer: MsaBuffer, use: MsaUse, earliest: int, end: int
    ) -> int | None:
        for override in self._options.preferred_prefetch_overrides:
            if _matches_use(override, buffer, use):
                return _override_time(override, self._problem.names, earliest, end)
        return None

    # -- repacking ----------------------------------------------------------------------------

    def _repack(self) -> bool:
        """Gives all placed buffers new addresses if that makes them fit better."""
        self._num_repacks += 1
        places = self._all_places()
        blocks = [Block(tuple((c.start, c.end, c.size) for _, c in place.held)) for place in places]
        problem = self._problem
        offsets = repack(
            blocks, problem.num_times + 1, problem.capacity_bytes, problem.alignment_bytes
        )
        if offsets is None or offsets == [place.offset for place in places]:
            return False
        self._move(places, offsets)
        self._moved += 1
        return True

    def _move(self, places: Sequence[Place], offsets: Sequence[int]) -> None:
        heap = self._empty_heap()
        for place, offset in zip(places, offsets, strict=True):
            place.offset = offset
            chunks = [replace(chunk, offset=offset) for _, chunk in place.held]
            place.held[:] = [(heap.add(chunk), chunk) for chunk in chunks]
        self._shared.heap = heap

    # -- parameters carried over ----------------------------------------------------------------

    def _carry_parameters(self) -> None:
        limit = self._options.max_cross_program_prefetches
        carried = 0
        candidates = [
            b
            for b in self._problem.buffers
            if b.cross_program and self._may_be_placed(b) and _last_use(b) is not None
        ]
        for buffer in sorted(candidates, key=self._cross_program_key):
            if 0 <= limit <= carried:
                return
            carried += self._carry(buffer)

    def _cross_program_key(self, buffer: MsaBuffer) -> tuple[float, ...]:
        if self._options.default_cross_program_prefetch_heuristic:
            return order_key(buffer, self._options)
        priority = _priority(buffer, self._options.sort_order_overrides)
        size, used = -buffer.content_bytes, -buffer.result_elements
        return (priority, size, used, buffer.latest_use_time, buffer.id)

    def _carry(self, buffer: MsaBuffer) -> bool:
        """Keeps a parameter where it is for the next run, if there is room all along."""
        end = self._problem.num_times
        offset = self._shared.heap.best_fit(0, end, buffer.size_bytes)
        last_use = _last_use(buffer)
        if offset is None or last_use is None:
            return False
        fetched_after = self._fetch_again(buffer, last_use)
        place = Place(offset)
        ranges = [(0, end)] if fetched_after is None else [(0, last_use), (fetched_after + 1, end)]
        for start, last in ranges:
            chunk = Chunk(start, last, offset, buffer.size_bytes)
            place.held.append((self._shared.heap.add(chunk), chunk))
        carried = CrossProgramPrefetch(place, last_use, fetched_after)
        self._placed[buffer.id] = Placed(buffer, places=[place], carried=carried)
        return True

    def _fetch_again(self, buffer: MsaBuffer, last_use: int) -> int | None:
        """When to prefetch it for the next run if its place is wanted meanwhile."""
        problem = self._problem
        end = problem.num_times
        pressure = sum(b.size_bytes for b in problem.buffers if self._may_be_placed(b))
        if not self._options.enable_cross_program_prefetch_freeing:
            return None
        if pressure <= problem.capacity_bytes:
            return None
        window = Window(last_use, end, 0, buffer.copy_ticks)
        start = self._picker.preferred_start(window)
        between = self._clock.between
        occupied = between(-1, last_use) + max(between(start, end), buffer.copy_ticks)
        inside = problem.inside.get(buffer.values[0].scope, frozenset())
        if not last_use < start < end or occupied >= MAX_OCCUPIED_RATIO * between(-1, end):
            return None
        if start + 1 in inside or last_use + 1 in inside:
            return None
        return start

    # -- checking -------------------------------------------------------------------------------

    def _verify(self) -> None:
        """Asserts that no byte of fast memory is taken twice at one time."""
        heap = self._empty_heap()
        for place in self._all_places():
            for _, chunk in place.held:
                assert heap.is_free(chunk.start, chunk.end, chunk.offset, chunk.size), chunk
                heap.add(chunk)


def _last_use(buffer: MsaBuffer) -> int | None:
    times = [use.hold_until for value in buffer.values for use in value.uses]
    return max(times, default=None)


# -- order ------------------------------------------------------------------------------------


def ordered_buffers(buffers: Sequence[MsaBuffer], options: MsaOptions) -> list[MsaBuffer]:
    """The buffers in the order in which they are tried.

    Source: `xla/service/memory_space_assignment/buffer_interval_comparator.cc`.

    Raises:
      InputError: if `autotuning_config` is not a permutation of them.
    """
    ordered = sorted(buffers, key=lambda buffer: order_key(buffer, options))
    if options.autotuning_config is not None:
        config = options.autotuning_config
        if sorted(config) != list(range(len(ordered))):
            raise InputError(
                f"autotuning_config has {len(config)} entries, expected a permutation of the "
                f"{len(ordered)} buffers"
            )
        ordered = [ordered[index] for index in config]
    return sorted(ordered, key=lambda b: not any(value.precolored for value in b.values))


def order_key(buffer: MsaBuffer, options: MsaOptions) -> tuple[float, ...]:
    """Ascending sort key of a buffer."""
    duration = buffer.end - buffer.start
    priority = _priority(buffer, options.sort_order_overrides)
    if options.order is BufferOrder.SIZE:
        return (priority, -buffer.content_bytes, -duration, buffer.id)
    boundedness = buffer.boundedness
    if options.large_buffer_scaling == "SQRT":
        boundedness /= math.sqrt(max(buffer.content_bytes, 1))
    return (
        priority,
        -boundedness,
        -buffer.content_bytes,
        -duration,
        buffer.latest_use_time,
        buffer.start,
        buffer.id,
    )


def _priority(buffer: MsaBuffer, overrides: Sequence[SortOverride]) -> int:
    for override in overrides:
        if _matches_buffer(override, buffer):
            return override.priority
    return 0


def _matches_buffer(override: SortOverride, buffer: MsaBuffer) -> bool:
    return (
        _full_match(override.instruction_regex, buffer.name)
        and _within(buffer.size_bytes, override.size_gte, override.size_lte)
        and (
            override.use_regex is None
            or any(
                _full_match(override.use_regex, use.name)
                for value in buffer.values
                for use in value.uses
            )
        )
    )


def _matches_use(override: PrefetchOverride, buffer: MsaBuffer, use: MsaUse) -> bool:
    return (
        _full_match(override.instruction_regex, use.name)
        and override.operand_number in (None, use.operand)
        and _within(buffer.size_bytes, override.size_gte, override.size_lte)
    )


def _override_time(
    override: PrefetchOverride, names: Sequence[str], earliest: int, end: int
) -> int:
    """The wished exclusive start: a share of the way, or after or before an instruction.

    Raises:
      InputError: if no instruction has the name asked for.
    """
    if override.prefetch_eagerness is not None:
        return int(earliest + (end - earliest) * override.prefetch_eagerness)
    regex = override.after_instruction or override.before_instruction
    for time, name in enumerate(names):
        if _full_match(regex, name):
            return time if override.after_instruction else time - 1
    raise InputError(f"preferred prefetch: no instruction matches {regex!r}")


def _full_match(regex: str | None, name: str) -> bool:
    return regex is None or re.fullmatch(regex, name) is not None


def _within(size: int, low: int | None, high: int | None) -> bool:
    return (low is None or size >= low) and (high is None or size <= high)


# -- inefficient sites ------------------------------------------------------------------------


def inefficient_sites(attempt: Attempt, ratio: float) -> frozenset[tuple[int, int]]:
    """Sites whose copies move more than fast memory saves: (value index, use index or -1).

    Allocations at one address belong together, with the evictions out of them. Source:
    `MsaAlgorithm::GetInefficientAllocationSites`, whose `inefficient_use_to_copy_ratio` is `ratio`;
    0 finds none.
    """
    if ratio <= 0:
        return frozenset()
    copied: dict[int, int] = {}
    used: dict[int, int] = {}
    sites: dict[int, set[tuple[int, int]]] = {}
    values = attempt.buffer.values
    copied_bytes = attempt.buffer.content_bytes
    for index, sequence in enumerate(attempt.sequences):
        for allocation in sequence:
            held = allocation if allocation.fast else allocation.source
            if held is None or held.place is None:
                continue
            place = id(held.place)
            if allocation.copy is not None:
                copied[place] = copied.get(place, 0) + copied_bytes
            if not allocation.fast:
                continue
            group = sites.setdefault(place, set())
            if allocation.copy is None and allocation.start == values[index].time:
                group.add((index, -1))
                used[place] = used.get(place, 0) + values[index].size_bytes
            for use in allocation.uses:
                group.add((index, use))
                used[place] = used.get(place, 0) + values[index].uses[use].size_bytes
    return frozenset(
        site
        for place, moved in copied.items()
        if ratio * moved > used.get(place, 0)
        for site in sites.get(place, ())
    )
