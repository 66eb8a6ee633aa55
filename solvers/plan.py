"""A memory map under construction: space, idle time and slow accesses, kept consistent.

`Plan` holds residencies that never overlap, reserves idle time for every copy, and knows each
step's current duration, so that a constructive solver can ask "what would it bring if this
buffer stayed over these accesses, and is there room?" and take the answer back. Every state is
a valid map; its estimate of stalls is close, the simulator decides (docs/solvers.md, "Plans").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field

from hlo_graphs.program import Access, AccessKind, Program
from malloc_game.memory_map import Eviction, MemoryMap, ReplacedCopy, Residency, Source
from malloc_game.simulate import CopyService
from solvers.free_space import Piece, Space
from solvers.idle_time import Clock, Window
from solvers.lane_table import LaneTable
from solvers.served_map import ServedMap, ServedResidency
from solvers.slices import Slice, Slicing, mirrored, parts_of, slices_of
from solvers.timeline import Item, outermost_loop_within


@dataclass(slots=True, eq=False)
class Run:
    """A residency of a lane over its items `first..last`, with its copies.

    Attributes:
      lane: index into `LaneTable.lanes`.
      first: first item covered.
      last: last item covered.
      start: first step at which it holds its bytes.
      ready: end of the prefetch window; equals `start` unless copied.
      end: one past the last step.
      source: how it is filled.
      eviction: issue and done of the copy to slow memory, if one is needed.
      slices: what it is fetched in; one that is all of it where it comes as a whole.
      offset: address in alignment units, once placed.
      reserved: idle ticks per execution that its copies hold, as (step, ticks).
      stall_ticks: what its copies lack, weighted by repeat.
      copy_ticks: work of its copies, weighted by repeat.
      slots: columns in the plan's table of placed rectangles.
    """

    lane: int
    first: int
    last: int
    start: int
    ready: int
    end: int
    source: Source
    eviction: tuple[int, int] | None = None
    slices: tuple[Slice, ...] = ()
    offset: int = -1
    reserved: list[tuple[int, int]] = field(default_factory=list)
    stall_ticks: float = 0.0
    copy_ticks: float = 0.0
    slots: tuple[int, ...] = ()

    def pieces(self) -> list[Piece]:
        """The space it holds, from its address on."""
        return [Piece(part.start, self.end, part.low, part.size) for part in self.slices]

    def area(self) -> int:
        """Alignment units times steps that it holds."""
        return sum((self.end - part.start) * part.size for part in self.slices)


@dataclass(frozen=True, slots=True)
class Pinned:
    """A parameter carried over from the previous run.

    Attributes:
      buffer: the parameter.
      residencies: at the start, and again at the end.
      uses: its accesses that they make fast.
      reserved: idle ticks that the prefetch at the end holds, as (step, ticks).
      stall_ticks: what that prefetch lacks.
    """

    buffer: int
    residencies: tuple[Residency, ...]
    uses: tuple[tuple[int, Access], ...]
    reserved: tuple[tuple[int, int], ...]
    stall_ticks: int


class Plan:
    """All residencies chosen so far for one program.

    Args:
      program: the problem.
      table: the program's lanes (it can be shared by plans); made if None.
      slicing: how prefetches may be cut (it can be shared too); each is one copy if None. Another
        one may be set at any time, for those that come.
    """

    def __init__(
        self,
        program: Program,
        table: LaneTable | None = None,
        slicing: Slicing | None = None,
    ) -> None:
        self.program = program
        self.table = LaneTable.of(program) if table is None else table
        self.lanes = self.table.lanes
        self.slicing = Slicing(program, most_slices=1) if slicing is None else slicing
        self.unit = program.machine.alignment_bytes
        self.capacity = program.capacity_bytes // self.unit
        self.size = [buffer.size_bytes // self.unit for buffer in program.buffers]
        self.copy_ticks = [program.copy_ticks(buffer.size_bytes) for buffer in program.buffers]
        self.run_at: list[list[Run | None]] = [[None] * len(lane.items) for lane in self.lanes]
        self.covered = [0] * len(self.lanes)
        self._clock = Clock(program)
        self._space = Space(program.num_steps + 2, self.capacity)
        self.runs: dict[int, Run] = {}
        self._stalls = 0.0
        self.pinned: Pinned | None = None
        self._pinned_slots: list[int] = []
        self.replaced: dict[int, tuple[int, int]] = {}
        self.blocked: dict[int, list[tuple[int, int]]] = {}

    # -- reading ------------------------------------------------------------------------------

    def latency_estimate(self) -> float:
        """Sum of repeat times duration, with the stalls that copies are known to lack."""
        return self._clock.total + self._clock.overcommitted + self._stalls

    @property
    def fast_accesses(self) -> Set[tuple[int, int]]:
        """The accesses served from fast memory, as (step, buffer)."""
        return self._clock.fast

    def is_fast(self, step: int, buffer: int) -> bool:
        """Whether the access of `buffer` at `step` is served from fast memory."""
        return (step, buffer) in self._clock.fast

    def saving(self, uses: Iterable[tuple[int, Access]]) -> float:
        """Fall of the total latency, copies left out, if one of the slow `uses` became fast.

        Summed over the uses, each by itself.
        """
        return self._clock.saving(uses)

    def memory_map(self) -> MemoryMap:
        """The residencies and evictions chosen so far."""
        residencies = [] if self.pinned is None else list(self.pinned.residencies)
        evictions = []
        for run in self.runs.values():
            lane = self.lanes[run.lane]
            residencies.append(
                Residency(
                    buffer=lane.buffer,
                    offset_bytes=run.offset * self.unit,
                    start=run.start,
                    end=run.end,
                    source=run.source,
                    ready=run.ready,
                    loop=lane.loop,
                    parts=parts_of(run.slices, self.unit),
                )
            )
            if run.eviction is not None:
                evictions.append(Eviction(lane.buffer, *run.eviction))
        residencies.sort(key=lambda r: (r.start, r.buffer))
        evictions.sort(key=lambda e: (e.issue, e.buffer))
        copies = tuple(
            ReplacedCopy(step, issue, done) for step, (issue, done) in sorted(self.replaced.items())
        )
        return MemoryMap(tuple(residencies), tuple(evictions), copies)

    # -- changing -----------------------------------------------------------------------------

    def cover(
        self,
        lane_index: int,
        first: int,
        last: int,
        offset: int | None = None,
        accepts: Callable[[Proposal], bool] | None = None,
    ) -> Proposal | None:
        """Extends what is resident so that items `first..last` of a lane are one residency.

        Runs that touch the range are joined to it. Copies are hidden in idle time as far as
        there is any, and as far as there is room meanwhile; the rest of a copy is a stall. The
        plan is changed at once; the returned proposal says what it brings and can take it back.
        None, and no change, if it is not possible: no room, or a lane inside a covered loop.

        Args:
          lane_index: index into `lanes`.
          first: first item to cover.
          last: last item to cover.
          offset: tried before other addresses, in alignment units.
          accepts: asked about the proposal before an address is sought; False refuses it.
        """
        if self.covered[lane_index] or not self._gap_has_room(lane_index, first, last):
            return None
        first, last = self._joined_range(lane_index, first, last)
        replaced = self._runs_touching(lane_index, first, last)
        for run in replaced:
            self._remove(run)
        proposal = self._try_cover(lane_index, first, last, replaced, offset, accepts)
        if proposal is None:
            for run in replaced:
                self._insert(run)
        return proposal

    def uncover(self, run: Run) -> Proposal:
        """Drops a residency: its accesses become slow."""
        self._remove(run)
        lane = self.lanes[run.lane]
        uses = [use for item in lane.items[run.first : run.last + 1] for use in item.uses]
        before = self._clock.total + self._clock.overcommitted
        self._clock.set_slow(uses)
        saved = before - self._clock.total - self._clock.overcommitted
        return Proposal(self, [run], None, uses, saved, run.stall_ticks, run.copy_ticks, 0)

    def load(self, memory_map: MemoryMap) -> None:
        """Takes over the residencies of a map, into a plan that has none, as far as it can.

        They keep their places, and their copies the idle time that the engine serves them from, so
        that a plan's own map gives the same plan. What no plan has, such as holes or a copy that
        nothing needs, is made anew.
        """
        served = ServedMap.of(self.program, memory_map)
        for copy in memory_map.replaced_copies:  # before pinning: their steps' accesses vanish
            if not self._load_replaced(copy, served.replaced[copy.step]):
                self.replace_copy(copy.step)
        pinned = served.pinned()
        if pinned:
            windows = [self._window_of(found, None) for row in pinned for found in row.prefetches]
            self.pin([row.residency for row in pinned], windows)
        anew: list[tuple[int, int, int, int]] = []
        for row in served.residencies:
            residency = row.residency
            lane_index = self.table.index.get((residency.buffer, residency.loop))
            if row in pinned or lane_index is None:
                continue
            covered = [
                position
                for position, item in enumerate(self.lanes[lane_index].items)
                if residency.ready <= item.start_step and item.end_step <= residency.end
            ]
            if covered and not self._load_run(row, lane_index, covered[0], covered[-1]):
                offset = residency.offset_bytes // self.unit
                anew.append((lane_index, covered[0], covered[-1], offset))
        for row_anew in anew:
            self.cover(*row_anew)

    def _load_replaced(self, copy: ReplacedCopy, services: Sequence[CopyService]) -> bool:
        """Takes over a replaced copy whose ends are all in slow memory; False if one is not."""
        instruction = self.program.instructions[copy.step]
        crossings = 1 + sum(not access.kind.writes for access in instruction.accesses)
        if any(found.copy.bus_bytes != found.copy.size_bytes * crossings for found in services):
            return False
        windows = [self._window_of(found, found.copy.loop) for found in services]
        taken = [part for window in windows for part in window.taken]
        lacking = sum(window.lacking_ticks for window in windows)
        self._replace(copy.step, (copy.issue, copy.done), taken, lacking)
        return True

    def _load_run(self, row: ServedResidency, lane_index: int, first: int, last: int) -> bool:
        """Takes over a residency as it is; False if a run is none like it."""
        residency, lane = row.residency, self.lanes[lane_index]
        items = lane.items[first : last + 1]
        made = Source.PRODUCED if self.table.starts_empty[lane_index][first] else Source.COPIED
        must_evict = self.table.must_evict(lane_index, first, last)
        if residency.source is not made or len(row.evictions) != must_evict or residency.holes:
            return False
        # What a replaced copy fills begins before the step, and perhaps in slices.
        begins_early = bool(residency.parts) or residency.start < items[0].start_step
        if made is Source.PRODUCED and begins_early:
            return False
        num_copies = must_evict + bool(row.prefetches)
        services = (*row.prefetches, *(service for _, service in row.evictions))
        windows = [self._window_of(found, lane.loop) for found in services]
        run = Run(
            lane=lane_index,
            first=first,
            last=last,
            start=residency.start,
            ready=residency.ready,
            end=residency.end,
            source=made,
            slices=slices_of(residency, self.size[lane.buffer], self.unit),
            eviction=next(((e.issue, e.done) for e, _ in row.evictions), None),
            offset=residency.offset_bytes // self.unit,
            reserved=[part for window in windows for part in window.taken],
            stall_ticks=lane.repeat * sum(window.lacking_ticks for window in windows),
            copy_ticks=lane.repeat * self.copy_ticks[lane.buffer] * num_copies,
        )
        is_free = self._space.is_free(run.pieces(), run.offset)
        if self.covered[lane_index] or self._is_blocked(run) or not is_free:
            return False
        fast = self._clock.fast
        uses = [use for item in items for use in item.uses if (use[0], lane.buffer) not in fast]
        self._clock.set_fast(uses)
        self._insert(run)
        return True

    def _window_of(self, service: CopyService, scope: int | None) -> Window:
        """The idle time that the engine serves a copy of `scope` from."""
        taken = [
            (step, self._clock.share(int(ticks), step, scope)) for step, ticks in service.served
        ]
        copy = service.copy
        return Window(copy.issue, copy.deadline, tuple(taken), int(service.stall_ticks))

    def replace_copies(self) -> None:
        """Has the copy engine do every copy instruction where that is expected to pay.

        Only while nothing is resident yet. What such a copy reads and writes stays in slow
        memory from its issue until it is done, so it crosses the bus twice. Production has the
        engine copy into fast memory only (docs/production.md).
        """
        steps = [t for t, found in enumerate(self.program.instructions) if found.async_copy]
        for step in sorted(steps, key=lambda t: (-self._clock.elapsed[t], t)):
            self.replace_copy(step)

    def replace_copy(self, step: int) -> bool:
        """Has the copy engine do `step`, in idle time around it; False if that does not pay."""
        instruction = self.program.instructions[step]
        written = [a.buffer for a in instruction.accesses if a.kind.writes]
        if step in self.replaced or not written or not instruction.async_copy or self.runs:
            return False
        if any(a.kind is AccessKind.UPDATE for a in instruction.accesses):
            return False
        loop = self.program.loop_of_step[step]
        lowest, highest = self._transfer_range(step, loop)
        crossings = 1 + sum(not a.kind.writes for a in instruction.accesses)
        sizes = (self.program.buffers[buffer].size_bytes for buffer in written)
        ticks = sum(self.program.copy_ticks(size * crossings) for size in sizes)
        saved = self._clock.elapsed[step]
        before = self._clock.window_before(step, lowest, ticks, loop)
        after = self._clock.window_after(step + 1, highest, before.lacking_ticks, loop)
        lacking = after.lacking_ticks if before.lacking_ticks else 0
        if lacking >= saved:
            return False
        done = after.end if before.lacking_ticks and after.taken else step + 1
        taken = [*before.taken, *(after.taken if before.lacking_ticks else ())]
        self._replace(step, (before.start, done), taken, lacking)
        return True

    def _replace(
        self, step: int, window: tuple[int, int], taken: Sequence[tuple[int, int]], lacking: int
    ) -> None:
        """The copy engine does `step` in this window, from idle time taken, but for what lacks."""
        instruction = self.program.instructions[step]
        self._clock.vanish(step)
        self._clock.reserve(taken)
        self._stalls += lacking * instruction.repeat
        self.replaced[step] = window
        for access in instruction.accesses:
            self.blocked.setdefault(access.buffer, []).append(window)

    def _transfer_range(self, step: int, loop: int | None) -> tuple[int, int]:
        """Steps between the neighbouring touches that a transfer must not cross."""
        program = self.program
        lowest = 0 if loop is None else program.loops[loop].start_step
        highest = program.num_steps if loop is None else program.loops[loop].end_step
        for access in program.instructions[step].accesses:
            for other, use in program.accesses_of_buffer[access.buffer]:
                if other == step or not (use.kind.writes or access.kind.writes):
                    continue
                start, end = self.replaced.get(other, (other, other + 1))
                inner = outermost_loop_within(program, loop, other)
                if inner is not None:
                    start = min(start, program.loops[inner].start_step)
                    end = max(end, program.loops[inner].end_step)
                if other < step:
                    lowest = max(lowest, end)
                else:
                    highest = min(highest, start)
        return min(lowest, step), max(highest, step + 1)

    def carried(
        self, buffer: int, last_use: int | None, offset: int | None = None
    ) -> tuple[Residency, ...]:
        """Residencies that carry a parameter over from the previous run, to `pin`.

        From the start through its use number `last_use`, and again, prefetched in the idle time
        before it, at the end; one residency if the two meet, or if `last_use` is None. At
        `offset`, in alignment units, or at the best free one.
        """
        last = self.program.num_steps + 1
        if offset is None:
            offset = max(self._best_fit(0, last, self.size[buffer]), 0)
        place = offset * self.unit
        released = last if last_use is None else self._released_after(buffer, last_use)
        ticks = self.copy_ticks[buffer]
        window = self._clock.window_before(last - 1, min(released, last - 1), ticks, None)
        if window.start <= released:
            return (Residency(buffer, place, 0, last, Source.CARRIED, 0),)
        again = Residency(buffer, place, window.start, last, Source.COPIED, last - 1)
        return Residency(buffer, place, 0, released, Source.CARRIED, 0), again

    def _released_after(self, buffer: int, use: int) -> int:
        """One past the step of a use, or past the loops around it."""
        step = self.program.accesses_of_buffer[buffer][use][0]
        inner = outermost_loop_within(self.program, None, step)
        return step + 1 if inner is None else self.program.loops[inner].end_step

    def pin(
        self, residencies: Sequence[Residency], windows: Sequence[Window] | None = None
    ) -> PinChange | None:
        """Places the residencies of one carried parameter, which then stay as they are.

        None, and no change, if they do not fit, if they meet other residencies of the buffer,
        or if another parameter is carried already.

        Args:
          residencies: of the parameter.
          windows: that serve those that are copied; the latest that there are if None.
        """
        unit, size = self.unit, self.size
        buffers = {r.buffer for r in residencies}
        if self.pinned is not None or len(buffers) != 1 or self._meets_runs(residencies):
            return None
        for r in residencies:
            piece = Piece(r.start, r.end, 0, size[r.buffer])
            if not self._space.is_free([piece], r.offset_bytes // unit):
                return None
        (buffer,) = buffers
        fast = [
            use
            for use in self.program.accesses_of_buffer[buffer]
            if (use[0], buffer) not in self._clock.fast
            and any(r.ready <= use[0] < r.end for r in residencies)
        ]
        self._clock.set_fast(fast)
        ticks = self.copy_ticks[buffer]
        if windows is None:
            windows = [
                self._clock.window_before(r.ready, r.start, ticks, None)
                for r in residencies
                if r.source is Source.COPIED
            ]
        self._clock.set_slow(fast)
        reserved = [taken for window in windows for taken in window.taken]
        stall = sum(window.lacking_ticks for window in windows)
        self._pin(Pinned(buffer, tuple(residencies), tuple(fast), tuple(reserved), stall))
        return PinChange(self, None)

    def unpin(self) -> PinChange | None:
        """Releases the carried parameter; its accesses become slow. None if there is none."""
        before = self.pinned
        if before is None:
            return None
        self._unpin(before)
        return PinChange(self, before)

    def _unpin(self, pinned: Pinned) -> None:
        for slot in self._pinned_slots:
            self._space.remove(slot)
        self._clock.set_slow(pinned.uses)
        self._clock.release(pinned.reserved)
        self._stalls -= pinned.stall_ticks
        for r in pinned.residencies:
            self.blocked[pinned.buffer].remove((r.start, r.end))
        self.pinned = None

    def _pin(self, pinned: Pinned) -> None:
        size = self.size[pinned.buffer]
        self._pinned_slots = [
            self._space.add(r.start, r.end, r.offset_bytes // self.unit, size)
            for r in pinned.residencies
        ]
        self._clock.set_fast(pinned.uses)
        self._clock.reserve(pinned.reserved)
        self._stalls += pinned.stall_ticks
        ranges = [(r.start, r.end) for r in pinned.residencies]
        self.blocked.setdefault(pinned.buffer, []).extend(ranges)
        self.pinned = pinned

    def overlaps(self, run: Run, residency: Residency) -> bool:
        """Whether a run holds a byte of `residency` at the same step."""
        low = residency.offset_bytes // self.unit
        high = low + self.size[residency.buffer]
        return (
            run.start < residency.end
            and residency.start < run.end
            and run.offset < high
            and low < run.offset + self.size[self.lanes[run.lane].buffer]
        )

    def _meets_runs(self, residencies: Sequence[Residency]) -> bool:
        """Whether a run of the same buffer holds space at the same step."""
        return any(
            self.lanes[run.lane].buffer == r.buffer and run.start < r.end and r.start < run.end
            for r in residencies
            for run in self.runs.values()
        )

    # -- inside -------------------------------------------------------------------------------

    def _joined_range(self, lane_index: int, first: int, last: int) -> tuple[int, int]:
        """The range, widened by the runs that hold its first and last item.

        A later run whose prefetch window begins before the range ends is joined too: a buffer
        has one residency at a time.
        """
        runs = self.run_at[lane_index]
        items = self.lanes[lane_index].items
        for position in (first, last):
            run = runs[position]
            if run is not None:
                first, last = min(first, run.first), max(last, run.last)
        following = self._run_after(lane_index, last)
        if following is not None and following.start < items[last].end_step:
            last = following.last
        return first, last

    def _runs_touching(self, lane_index: int, first: int, last: int) -> list[Run]:
        """Runs over the items, and those inside the loops that the items stand for."""
        found = {
            id(run): run for run in self.run_at[lane_index][first : last + 1] if run is not None
        }
        for position in range(first, last + 1):
            for inner in self.table.inner[lane_index].get(position, ()):
                found.update((id(run), run) for run in self.run_at[inner] if run is not None)
        return list(found.values())

    def _try_cover(
        self,
        lane_index: int,
        first: int,
        last: int,
        replaced: list[Run],
        offset: int | None,
        accepts: Callable[[Proposal], bool] | None,
    ) -> Proposal | None:
        buffer = self.lanes[lane_index].buffer
        fast = self._clock.fast
        items = self.lanes[lane_index].items[first : last + 1]
        uses = [use for item in items for use in item.uses if (use[0], buffer) not in fast]
        preferred = [old.offset for old in replaced if old.lane == lane_index]
        if offset is not None:
            preferred.insert(0, offset)
        before = self._clock.total + self._clock.overcommitted
        self._clock.set_fast(uses)
        bounds: tuple[int, int] | None = (0, self.program.num_steps)
        while bounds is not None:
            run = self._new_run(lane_index, first, last, *bounds)
            if run is None:
                break
            bounds = None
            proposal = self._proposal(run, replaced, uses, before)
            if accepts is None or accepts(proposal):
                if self._place(run, preferred):
                    self._insert_placed(run)
                    return proposal
                bounds = self._room_for_windows(run)
            self._clock.release(run.reserved)
        self._clock.set_slow(uses)
        return None

    def _proposal(
        self, run: Run, replaced: list[Run], uses: list[tuple[int, Access]], before: float
    ) -> Proposal:
        """What a run brings whose windows are reserved; `before` is what the steps took."""
        return Proposal(
            plan=self,
            replaced=replaced,
            run=run,
            uses=uses,
            saved_ticks=before - self._clock.total - self._clock.overcommitted,
            fewer_stall_ticks=sum(r.stall_ticks for r in replaced) - run.stall_ticks,
            fewer_copy_ticks=sum(r.copy_ticks for r in replaced) - run.copy_ticks,
            added_area=run.area() - sum(old.area() for old in replaced),
        )

    def _room_for_windows(self, run: Run) -> tuple[int, int] | None:
        """The widest steps around a run's items for which there is room, prefetch first.

        None if a run without copy windows would find no place either, or has none to give up.
        """
        items = self.lanes[run.lane].items
        start, end = items[run.first].start_step, items[run.last].end_step
        if (start, end) == (run.start, run.end) or not self._has_room(run.lane, start, end):
            return None
        low = run.start
        while low < start:
            middle = (low + start) // 2
            if self._has_room(run.lane, middle, end):
                start = middle
            else:
                low = middle + 1
        high = run.end
        while end < high:
            middle = (end + high + 1) // 2
            if self._has_room(run.lane, start, middle):
                end = middle
            else:
                high = middle - 1
        return start, end

    def _gap_has_room(self, lane_index: int, first: int, last: int) -> bool:
        """Whether the steps between two items have room; a quick no before runs are joined."""
        if last != first + 1:
            return True
        runs, items = self.run_at[lane_index], self.lanes[lane_index].items
        before, after = runs[first], runs[last]
        start = items[first].end_step if before is None else before.end
        end = items[last].start_step if after is None else after.start
        return before is after is not None or start >= end or self._has_room(lane_index, start, end)

    def _has_room(self, lane_index: int, start: int, end: int) -> bool:
        size = self.size[self.lanes[lane_index].buffer]
        if self._space.peak(start, end) + size > self.capacity:
            return False
        return self._best_fit(start, end, size) >= 0

    def _best_fit(self, start: int, end: int, size: int) -> int:
        return self._space.best_fit([Piece(start, end, 0, size)], size)

    def _new_run(self, lane_index: int, first: int, last: int, low: int, high: int) -> Run | None:
        """The run with its windows reserved within steps `[low, high)`, not yet placed."""
        lane = self.lanes[lane_index]
        begin, finish = lane.items[first], lane.items[last]
        run = Run(
            lane=lane_index,
            first=first,
            last=last,
            start=begin.start_step,
            ready=begin.start_step,
            end=finish.end_step,
            source=Source.PRODUCED,
            slices=(Slice(0, self.size[lane.buffer], begin.start_step),),
        )
        possible = self.table.starts_empty[lane_index][first] or self._add_prefetch(run, begin, low)
        if possible and self.table.must_evict(lane_index, first, last):
            possible = self._add_eviction(run, high)
        if not possible or self._is_blocked(run):
            self._clock.release(run.reserved)
            return None
        return run

    def _is_blocked(self, run: Run) -> bool:
        """Whether a transfer of a replaced copy needs the buffer in slow memory meanwhile."""
        ranges = self.blocked.get(self.lanes[run.lane].buffer, ())
        return any(run.start < end and start < run.end for start, end in ranges)

    def _add_prefetch(self, run: Run, begin: Item, low: int) -> bool:
        lane = self.lanes[run.lane]
        if not begin.reads_first:
            return False
        floor = max(self.table.write_before[run.lane][run.first], low)
        origin = self.program.buffers[lane.buffer].origin
        if lane.loop is None and origin >= 0:
            floor = max(floor, origin + 1)
        previous = self._run_before(run.lane, run.first)
        if previous is not None:
            floor = max(floor, previous.end)
        for start, end in self.blocked.get(lane.buffer, ()):
            if start <= begin.start_step:
                floor = max(floor, end)
        if floor > begin.start_step:
            return False
        window = self._fetch(run, floor)
        if window.lacking_ticks and lane.repeat == 0:
            return False
        run.source = Source.COPIED
        run.start = window.start
        self._take(run, window)
        return True

    def _fetch(self, run: Run, floor: int) -> Window:
        """Cuts a run's prefetch into slices; the window that serves them, not before `floor`."""
        lane, slicing = self.lanes[run.lane], self.slicing
        ticks = slicing.most_ticks[lane.buffer]
        window = self._clock.window_before(run.ready, floor, ticks, lane.loop)
        run.slices = slicing.cut(lane.buffer, window)
        fewer = slicing.ticks_of(run.slices)
        if fewer < ticks:  # Some slices have become one, which is rounded up but once.
            window = self._clock.window_before(run.ready, floor, fewer, lane.loop)
            run.slices = tuple(
                part._replace(start=max(part.start, window.start)) for part in run.slices
            )
        return window

    def _add_eviction(self, run: Run, high: int) -> bool:
        lane = self.lanes[run.lane]
        issue = lane.items[self.table.last_write[run.lane][run.last]].end_step
        limit = min(lane.end_step, high)
        if run.last + 1 < len(lane.items):
            limit = min(limit, lane.items[run.last + 1].start_step)
            following = self._run_after(run.lane, run.last)
            if following is not None:
                limit = min(limit, following.start)
        for start, _ in self.blocked.get(lane.buffer, ()):
            if start >= issue:
                limit = min(limit, start)
        if issue > limit:
            return False
        ticks = self.copy_ticks[lane.buffer]
        window = self._clock.window_after(issue, limit, ticks, lane.loop)
        run.eviction = (issue, window.end)
        run.end = max(run.end, window.end)
        self._take(run, window)
        return True

    def _take(self, run: Run, window: Window) -> None:
        lane = self.lanes[run.lane]
        self._clock.reserve(window.taken)
        run.reserved.extend(window.taken)
        run.stall_ticks += window.lacking_ticks * lane.repeat
        run.copy_ticks += self.copy_ticks[lane.buffer] * lane.repeat

    def _run_before(self, lane_index: int, first: int) -> Run | None:
        runs = self.run_at[lane_index]
        return next((runs[i] for i in range(first - 1, -1, -1) if runs[i] is not None), None)

    def _run_after(self, lane_index: int, last: int) -> Run | None:
        runs = self.run_at[lane_index]
        return next((runs[i] for i in range(last + 1, len(runs)) if runs[i] is not None), None)

    def _place(self, run: Run, preferred: Sequence[int]) -> bool:
        if self._is_full(run):
            return False
        size = self.size[self.lanes[run.lane].buffer]
        # Where there is room for the whole, neighbours stay in line.
        if self._find_place(run, [Piece(run.start, run.end, 0, size)], preferred):
            return True
        if len(run.slices) == 1:
            return False
        for slices in (run.slices, mirrored(run.slices)):
            run.slices = slices
            if self._find_place(run, run.pieces(), preferred):
                return True
        return False

    def _find_place(self, run: Run, pieces: Sequence[Piece], preferred: Sequence[int]) -> bool:
        for offset in preferred:
            if self._space.is_free(pieces, offset):
                run.offset = offset
                return True
        run.offset = self._space.best_fit(pieces, self.size[self.lanes[run.lane].buffer])
        return run.offset >= 0

    def _is_full(self, run: Run) -> bool:
        """Whether there are too few units for a run, wherever they lie."""
        held = 0
        until = [*(part.start for part in run.slices[1:]), run.end]
        for part, end in zip(run.slices, until, strict=True):
            held += part.size
            if self._space.peak(part.start, end) + held > self.capacity:
                return True
        return False

    def _insert_placed(self, run: Run) -> None:
        run.slots = tuple(
            self._space.add(piece.start, piece.end, run.offset + piece.low, piece.size)
            for piece in run.pieces()
        )
        self.runs[id(run)] = run
        self._stalls += run.stall_ticks
        for position in range(run.first, run.last + 1):
            self.run_at[run.lane][position] = run
            for inner in self.table.inner[run.lane].get(position, ()):
                self.covered[inner] += 1

    def _insert(self, run: Run) -> None:
        self._clock.reserve(run.reserved)
        self._insert_placed(run)

    def _remove(self, run: Run) -> None:
        self._clock.release(run.reserved)
        for slot in run.slots:
            self._space.remove(slot)
        del self.runs[id(run)]
        self._stalls -= run.stall_ticks
        for position in range(run.first, run.last + 1):
            self.run_at[run.lane][position] = None
            for inner in self.table.inner[run.lane].get(position, ()):
                self.covered[inner] -= 1


@dataclass(slots=True)
class Proposal:
    """A change that has been made to a plan, and what it brought.

    Attributes:
      plan: the plan changed.
      replaced: runs that are gone.
      run: the run that came, if any.
      uses: accesses whose speed changed.
      saved_ticks: fall of the weighted durations, less what reservations now lack.
      fewer_stall_ticks: fall of the stalls of copies.
      fewer_copy_ticks: fall of the weighted copy work.
      added_area: growth of the space held, alignment units times steps.
    """

    plan: Plan
    replaced: list[Run]
    run: Run | None
    uses: list[tuple[int, Access]]
    saved_ticks: float
    fewer_stall_ticks: float
    fewer_copy_ticks: float
    added_area: int

    @property
    def gain_ticks(self) -> float:
        """Expected fall of the latency."""
        return self.saved_ticks + self.fewer_stall_ticks

    def undo(self) -> None:
        """Restores the plan; only the latest change may be undone."""
        plan = self.plan
        if self.run is not None:
            plan._remove(self.run)
            plan._clock.set_slow(self.uses)
        else:
            plan._clock.set_fast(self.uses)
        for run in self.replaced:
            plan._insert(run)


@dataclass(frozen=True, slots=True)
class PinChange:
    """A parameter that came to be carried, or one that no longer is.

    Attributes:
      plan: the plan changed.
      before: what was carried before.
    """

    plan: Plan
    before: Pinned | None

    def undo(self) -> None:
        """Restores the plan; only the latest change may be undone."""
        if self.plan.pinned is not None:
            self.plan._unpin(self.plan.pinned)
        if self.before is not None:
            self.plan._pin(self.before)
