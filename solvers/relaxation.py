"""The linear relaxation of memory mapping, whose dual values price a certified bound.

One column per item (the share of it that is fast), per way to serve a copy (a step, or a
stall), per state of the slow copy, and per step's duration; rows for capacity, idle time, lanes
and the links between them (docs/bounds.md, "Where prices come from"). Not trusted for bounds
(`solvers.prices.price_bound` is); its columns serve copies only at a few promising steps, to which
`Relaxation.add_services` adds more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hlo_graphs.program import Program
from solvers.cover_rows import CoverRows, Hold
from solvers.duration_cuts import DurationCut, violated_duration_cut
from solvers.linear_program import LinearProgram, LinearSolution
from solvers.prices import (
    MAX_CARRIED,
    NOTHING_FORCED,
    CopyCosts,
    Floats,
    Forced,
    Life,
    PricedProgram,
    Prices,
    floor_lanes,
    least_copy_ticks,
    may_be_carried,
    replacement_window,
    resident_lanes,
    starts_with_read,
)
from solvers.solver import Deadline
from solvers.timeline import Item, Lane, live_ranges_within, needs_content

STALL = -1
"""The "step" that serves a copy for which the program waits."""


NEW_STEPS = 8
"""To serve one copy, added at a time."""

MOST_REFINEMENTS = 4
"""Linear programs solved one after another where no bound is wanted, but what is worth having."""

LEAST_TICKS = 1e-5
"""By which a duration cut that is added makes the program longer, as a share of all slow."""

MOST_PARTS = 8
"""Cuts are made for buffers larger than the capacity over 2, 3, ... up to this."""


CopyKey = tuple[int, int, int, bool]
"""A copy: buffer, lane, the item that a prefetch is for or after which an eviction begins, and
whether it is a prefetch."""


@dataclass(frozen=True, slots=True)
class RelaxedSolution:
    """An optimal point of the relaxation.

    Attributes:
      value_ticks: its objective: a lower bound only as far as the columns go.
      prices: dual values in the form that `price_bound` certifies.
      fast: per (buffer, lane, item) the share that is fast.
      kept: likewise the share that needs no copy: kept since the item before, or made there.
      point: of all columns.
    """

    value_ticks: float
    prices: Prices
    fast: dict[tuple[int, int, int], float]
    kept: dict[tuple[int, int, int], float]
    point: Floats


@dataclass(frozen=True, slots=True)
class IntegerSolution:
    """A point of the relaxation whose items are wholly fast or wholly slow.

    Addresses are left out, and copies may be split over steps. Not certified.

    Attributes:
      value_ticks: its objective.
      bound_ticks: the branch and bound's own lower bound, not certified.
      fast: per (buffer, lane, item) 0 or 1.
      kept: the share kept since the item before, or made there.
      carried: parameters carried over from the previous run.
    """

    value_ticks: float
    bound_ticks: float
    fast: dict[tuple[int, int, int], float]
    kept: dict[tuple[int, int, int], float]
    carried: tuple[int, ...]


class Relaxation:
    """The linear program of one program; `solve` may be called again after `add_services`."""

    def __init__(self, program: Program, lanes: Sequence[Sequence[Lane]] | None = None) -> None:
        self.program = program
        self.divisors = cut_divisors(program)
        self.lanes = resident_lanes(program) if lanes is None else lanes
        self.unit = program.machine.alignment_bytes
        self._units = [found.size_bytes // self.unit for found in program.buffers]
        self.capacity = max(program.capacity_bytes // self.unit, 1)
        self.scale = max(program.all_slow_ticks, 1.0) / 1000.0
        self.matrix = LinearProgram()
        self.fast_column: dict[tuple[int, int, int], int] = {}
        self.carried_column: dict[int, int] = {}
        self._replaced_terms: dict[int, list[tuple[int, float]]] = {}
        self._replacing_steps: dict[int, list[int]] = {}
        replaceable = sum(step.async_copy for step in program.instructions)
        self._most_replacing = 4_000 // max(replaceable, 1)
        self._copies: dict[CopyKey, tuple[int, int]] = {}
        self._services: dict[CopyKey, dict[int, int]] = {}
        self._kept_row: dict[tuple[int, int, int], tuple[int, int, int | None]] = {}
        self._current_row: dict[tuple[int, int, int], int] = {}
        self._fast_terms: dict[tuple[int, int], list[int]] = {}
        self._floor_lanes = floor_lanes(program)
        self._idle_estimate = np.array(_largest_idle(program), dtype=np.float64)
        self._space_rows: list[dict[int, int]] = []
        self._space_columns: list[tuple[int, int, int]] = []
        self._covers = CoverRows(self.matrix, self._units, self.capacity)
        self._duration_columns: list[int] = []
        self._duration_rows: dict[tuple[int, DurationCut], int] = {}
        self._add_space()
        self._idle_rows = [self.matrix.row(-np.inf, 0.0, ()) for _ in range(program.num_steps)]
        self._carried_row = self.matrix.row(-np.inf, float(MAX_CARRIED), ())
        for buffer, of_buffer in enumerate(self.lanes):
            if of_buffer:
                self._add_buffer(buffer, of_buffer)
        self._lane_rows: list[tuple[int, int, int]] = []
        self._add_steps()

    # -- columns and rows ---------------------------------------------------------------------

    def _add_space(self) -> None:
        """Per resource the occupied share per step, as a chain of differences."""
        crowded = _crowded_steps(self.program, self.divisors)
        for resource, steps in enumerate(crowded):
            rows: dict[int, int] = {}
            previous = None
            for step in range(self.program.num_steps):
                limit = 1.0 if step in steps else np.inf
                column = self.matrix.column(0.0, 0.0, limit)
                terms = [(column, 1.0)] + ([] if previous is None else [(previous, -1.0)])
                rows[step] = self.matrix.row(0.0, 0.0, terms)
                if step in steps:
                    self._space_columns.append((column, resource, step))
                previous = column
            self._space_rows.append(rows)

    def _hold(
        self, column: int, buffer: int, start: int, end: int, *, sign: int = 1, sliced: bool = False
    ) -> None:
        """`column` is resident during steps [start, end); `sliced`: perhaps only in part."""
        end = min(end, self.program.num_steps)
        if start >= end:
            return
        size = self._units[buffer]
        if size:
            self._covers.hold(buffer, Hold(column, start, end, sign, sliced))
        for resource, divisor in enumerate(self.divisors[:1] if sliced else self.divisors):
            share = sign * (size // divisor) / max(self.capacity // divisor, 1)
            if share:
                rows = self._space_rows[resource]
                self.matrix.entry(rows[start], column, -share)
                if end < self.program.num_steps:
                    self.matrix.entry(rows[end], column, share)

    def _add_buffer(self, buffer: int, lanes: Sequence[Lane]) -> None:
        writes = any(item.writes for item in lanes[0].items)
        self._add_lane(buffer, lanes, 0, None, [], writes)
        if may_be_carried(self.program, buffer, lanes):
            self._add_carried(buffer, lanes[0])

    def _add_carried(self, buffer: int, lane: Lane) -> None:
        """The share that is there from the start, and is there again at the end."""
        steps = self.program.num_steps
        carried = self.matrix.column(0.0, 0.0, 1.0)
        self.carried_column[buffer] = carried
        self.matrix.entry(self._carried_row, carried, 1.0)
        start, fetched, kept = self._kept_row[buffer, 0, 0]
        self.matrix.entry(fetched, carried, -1.0)
        if kept is not None:
            self.matrix.entry(kept, carried, -1.0)
        self._hold(carried, buffer, 0, start)
        last = len(lane.items) - 1
        still = self.matrix.column(0.0, 0.0, 1.0)
        self._hold(still, buffer, lane.items[last].end_step, steps)
        self.matrix.row(-np.inf, 0.0, [(still, 1.0), (self.fast_column[buffer, 0, last], -1.0)])
        back = self._add_copy((buffer, 0, last + 1, True), self._promising(buffer, 0, 0, steps))
        self.matrix.row(-np.inf, 0.0, [(carried, 1.0), (still, -1.0), (back, -1.0)])

    def _add_lane(
        self,
        buffer: int,
        lanes: Sequence[Lane],
        lane_index: int,
        current: int | None,
        around: list[int],
        writes: bool,
    ) -> int | None:
        """Adds a lane's items. `current` is the column of the slow copy's currency, or None for
        always; returns the column after the last item. `around` are the columns of loops."""
        lane = lanes[lane_index]
        children = {other.parent: index for index, other in enumerate(lanes)}
        previous: int | None = None
        position = lane.start_step
        written = floor = lane.start_step
        has_written = False
        for index, item in enumerate(lane.items):
            column = self.matrix.column(0.0, 0.0, 1.0)
            self.fast_column[buffer, lane_index, index] = column
            self._add_fast(buffer, lane_index, index, item, column, previous, position)
            if needs_content(self.program, lane, index):
                if current is not None:
                    self._need_current(buffer, lane_index, index, column, current, around)
                self._add_prefetches(buffer, lane_index, index, floor)
            for step, _ in item.uses:
                self._fast_terms.setdefault((step, buffer), []).append(column)
            if around:
                self.matrix.row(-np.inf, 1.0, [(c, 1.0) for c in (column, *around)])
            inner_end = current
            if item.loop is not None:
                entry = self._loop_entry(item, current, around, column)
                child = children[lane_index, index]
                inner_end = self._add_lane(
                    buffer, lanes, child, entry, [*around, column], writes and item.writes
                )
                self._link_trips(item, entry, inner_end)
            has_written = has_written or item.writes
            if item.writes:
                written = floor = item.end_step
            if has_written or current is not None:
                current = self._add_currency(
                    buffer, lane_index, index, current, inner_end, around, written
                )
            previous, position = column, item.end_step
        if lane_index == 0 and self.program.buffers[buffer].live_out and current is not None:
            self.matrix.row(1.0, np.inf, [(current, 1.0)])
        return current

    def _add_fast(
        self,
        buffer: int,
        lane_index: int,
        index: int,
        item: Item,
        column: int,
        previous: int | None,
        position: int,
    ) -> None:
        """Space of the item, and of the share kept since the item before."""
        for low, high in live_ranges_within(self.program, self.lanes[buffer][lane_index], index):
            self._hold(column, buffer, low, high)
        if not needs_content(self.program, self.lanes[buffer][lane_index], index):
            return
        start = item.start_step if previous is None else position
        self._hold(column, buffer, start, item.start_step)
        if previous is None:
            fetched = self.matrix.row(0.0, 0.0, [(column, 1.0)])
            self._kept_row[buffer, lane_index, index] = (start, fetched, None)
            return
        fetched = self.matrix.row(0.0, np.inf, [(column, 1.0)])
        kept = self.matrix.row(-np.inf, 0.0, [(column, 1.0), (previous, -1.0)])
        self._kept_row[buffer, lane_index, index] = (start, fetched, kept)

    def _add_prefetches(self, buffer: int, lane_index: int, index: int, floor: int) -> None:
        item = self.lanes[buffer][lane_index].items[index]
        steps = self._promising(buffer, lane_index, floor, item.start_step)
        copy = self._add_copy((buffer, lane_index, index, True), steps)
        start, fetched, kept = self._kept_row[buffer, lane_index, index]
        self.matrix.entry(fetched, copy, -1.0)
        if kept is not None:
            self.matrix.entry(kept, copy, -1.0)
        if (buffer, lane_index, index) in self._current_row:
            self.matrix.entry(self._current_row[buffer, lane_index, index], copy, -1.0)
        self._hold(copy, buffer, start, item.start_step, sign=-1)

    def _add_copy(self, key: CopyKey, steps: Iterable[int]) -> int:
        """The column of the share that is copied, served by `steps`."""
        column = self.matrix.column(0.0, 0.0, 1.0)
        self._copies[key] = (column, self.matrix.row(0.0, 0.0, [(column, -1.0)]))
        for step in steps:
            self._add_service(key, step)
        return column

    def _add_service(self, key: CopyKey, step: int) -> None:
        """A step, or a stall, serves a share of a copy.

        What is fetched is there from that step on, what leaves until that step is over.
        """
        buffer, lane_index, index, is_prefetch = key
        lane = self.lanes[buffer][lane_index]
        work = least_copy_ticks(self.program, buffer) * lane.repeat
        column = self.matrix.column(work / self.scale if step == STALL else 0.0, 0.0, 1.0)
        self._services.setdefault(key, {})[step] = column
        self.matrix.entry(self._copies[key][1], column, 1.0)
        if step != STALL:
            self.matrix.entry(self._idle_rows[step], column, work / self.scale)
        if is_prefetch:
            ready = lane.items[index].start_step if index < len(lane.items) else lane.end_step
            self._hold(column, buffer, ready if step == STALL else step, ready, sliced=True)
        else:
            self._hold(column, buffer, lane.items[index].end_step, step + 1)

    def _promising(self, buffer: int, lane_index: int, floor: int, ready: int) -> list[int]:
        """Steps in which to try to serve a prefetch: late ones, ever more idle, and the stall."""
        work = least_copy_ticks(self.program, buffer) * self.lanes[buffer][lane_index].repeat
        chosen: list[int] = []
        most = 0.0
        for step in range(ready - 1, max(floor, ready - 64) - 1, -1):
            idle = self._idle_estimate[step]
            if idle > 1.5 * most and idle > 0.02 * work:
                chosen.append(step)
                most = idle
                if most >= work or len(chosen) == 4:
                    break
        return [*chosen, STALL]

    def _need_current(
        self,
        buffer: int,
        lane_index: int,
        index: int,
        column: int,
        current: int,
        around: Sequence[int],
    ) -> None:
        """A slow read needs a current slow copy, and so does a prefetch, each a share of its own.

        A loop's own items say what its slow reads need.
        """
        item = self.lanes[buffer][lane_index].items[index]
        replaced = self.program.instructions[item.start_step].async_copy
        reads = item.loop is None and not replaced
        terms = [(column, 1.0), *((c, 1.0) for c in around)] if reads else []
        row = self.matrix.row(float(reads), np.inf, [(current, 1.0), *terms])
        self._current_row[buffer, lane_index, index] = row

    def _loop_entry(
        self, item: Item, current: int | None, around: Sequence[int], column: int
    ) -> int | None:
        """Currency of the slow copy at the start of a trip, for the share not kept over it."""
        if not item.writes:
            return current
        entry = self.matrix.column(0.0, 0.0, 1.0)
        if current is not None and starts_with_read(item):
            self.matrix.row(-np.inf, 0.0, [(entry, 1.0), (current, -1.0)])
        self.matrix.row(-np.inf, 1.0, [(c, 1.0) for c in (entry, column, *around)])
        return entry

    def _link_trips(self, item: Item, entry: int | None, inner_end: int | None) -> None:
        assert item.loop is not None
        loops_again = self.program.loops[item.loop].may_repeat
        if loops_again and starts_with_read(item) and entry is not None and entry != inner_end:
            assert inner_end is not None
            self.matrix.row(-np.inf, 0.0, [(entry, 1.0), (inner_end, -1.0)])

    def _add_currency(
        self,
        buffer: int,
        lane_index: int,
        index: int,
        current: int | None,
        inner_end: int | None,
        around: Sequence[int],
        written: int,
    ) -> int:
        """The slow copy's currency after an item and the evictions that follow it."""
        lane = self.lanes[buffer][lane_index]
        item = lane.items[index]
        following = lane.items[index + 1 : index + 2]
        limit = following[0].start_step if following else lane.end_step
        column = self.fast_column[buffer, lane_index, index]
        after = self.matrix.column(0.0, 0.0, 1.0)
        if item.loop is not None and item.writes:
            assert inner_end is not None
            row = self.matrix.row(-np.inf, 0.0, [(after, 1.0), (inner_end, -1.0)])
        elif item.writes:
            terms = [(c, 1.0) for c in (after, column, *around)]
            row = self.matrix.row(-np.inf, 1.0, terms)
        else:
            before = [] if current is None else [(current, -1.0)]
            row = self.matrix.row(-np.inf, 0.0, [(after, 1.0), *before])
        if lane.needed_after[index]:
            steps = self._evicting(buffer, lane_index, written, limit)
            copy = self._add_copy((buffer, lane_index, index, False), steps)
            self.matrix.entry(row, copy, -1.0)
            self.matrix.row(-np.inf, 0.0, [(copy, 1.0), (column, -1.0)])
        return after

    def _evicting(self, buffer: int, lane_index: int, written: int, limit: int) -> list[int]:
        work = least_copy_ticks(self.program, buffer) * self.lanes[buffer][lane_index].repeat
        chosen: list[int] = []
        most = 0.0
        for step in range(written, min(limit, written + 64)):
            idle = self._idle_estimate[step]
            if idle > 1.5 * most and idle > 0.02 * work:
                chosen.append(step)
                most = idle
                if most >= work or len(chosen) == 3:
                    break
        return [*chosen, STALL]

    def _add_steps(self) -> None:
        """Duration of each step over its lanes, the bus included, and its idle time."""
        for step, instruction in enumerate(self.program.instructions):
            weight = instruction.repeat / self.scale
            allowed = [a for a in instruction.accesses if (step, a.buffer) in self._fast_terms]
            slow = [a for a in instruction.accesses if (step, a.buffer) not in self._fast_terms]
            floor = instruction.elapsed_ticks(slow)
            full = instruction.elapsed_ticks(instruction.accesses)
            if instruction.async_copy:
                floor = 0
            column = self.matrix.column(1.0, weight * floor, weight * full)
            self._duration_columns.append(column)
            bus = sum(a.bus_ticks for a in instruction.accesses)
            lanes = [
                (base + sum(a.lane_ticks[k] for a in instruction.accesses), k)
                for k, base in enumerate(instruction.base_ticks)
            ]
            replacing: list[tuple[int, float]] = []
            for total, k in [*lanes, (bus, len(lanes))]:
                if total <= floor:
                    continue
                terms = [(column, 1.0)]
                for access in allowed:
                    ticks = access.bus_ticks if k == len(lanes) else access.lane_ticks[k]
                    terms += [(c, weight * ticks) for c in self._fast_terms[step, access.buffer]]
                row = self.matrix.row(weight * total, np.inf, terms)
                self._lane_rows.append((row, step, k))
                replacing.append((row, weight * total))
            self._bind_idle(step, column, weight, bus)
            replacing.append((self._idle_rows[step], -weight * bus))
            self._start_replacements(step, replacing)

    def _bind_idle(self, step: int, column: int, weight: float, bus: int) -> None:
        row = self._idle_rows[step]
        self.matrix.set_upper_limit(row, -weight * bus)
        self.matrix.entry(row, column, -1.0)
        for access in self.program.instructions[step].accesses:
            for fast in self._fast_terms.get((step, access.buffer), ()):
                self.matrix.entry(row, fast, -weight * access.bus_ticks)

    def _start_replacements(self, step: int, terms: list[tuple[int, float]]) -> None:
        """Columns for handing a copy instruction to the copy engine: a stall, idle steps."""
        program = self.program
        instruction = program.instructions[step]
        if not instruction.async_copy or not any(a.kind.writes for a in instruction.accesses):
            return
        terms.append((self.matrix.row(-np.inf, 1.0, ()), 1.0))
        self._replaced_terms[step] = terms
        first, last = replacement_window(program, step)
        most_idle = sorted(range(first, last), key=lambda u: -self._idle_estimate[u])
        most_idle = most_idle[: self._most_replacing]
        for serving in (STALL, *most_idle):
            self._add_replacement(step, serving)

    def _add_replacement(self, step: int, serving: int) -> None:
        work = self._replacement_work(step)
        column = self.matrix.column(work if serving == STALL else 0.0, 0.0, 1.0)
        for row, value in self._replaced_terms[step]:
            self.matrix.entry(row, column, value)
        if serving != STALL:
            self.matrix.entry(self._idle_rows[serving], column, work)
        self._replacing_steps.setdefault(step, []).append(serving)

    def _replacement_work(self, step: int) -> float:
        instruction = self.program.instructions[step]
        written = [a.buffer for a in instruction.accesses if a.kind.writes]
        ticks = min(least_copy_ticks(self.program, buffer) for buffer in written)
        return ticks * instruction.repeat / self.scale

    def _improve_replacements(self, prices: Prices) -> int:
        """Adds the cheapest serving step of each replaceable copy; returns how many."""
        added = 0
        for step, known in self._replacing_steps.items():
            first, last = replacement_window(self.program, step)
            if first >= last:
                continue
            best = first + int(prices.idle[first:last].argmin())
            least = min(1.0 if u == STALL else float(prices.idle[u]) for u in known)
            if prices.idle[best] < least - 1e-7:
                self._add_replacement(step, best)
                added += 1
        return added

    def add_services(self, prices: Prices) -> int:
        """Adds, for every copy, the steps that promise most under `prices`; returns how many.

        Only steps that are cheaper than those a copy already has.
        """
        priced = PricedProgram(self.program, prices, lanes=self.lanes)
        added = self._improve_replacements(prices)
        for buffer, lanes in enumerate(self.lanes):
            for copy in Life(priced, buffer, lanes).copies():
                key = (buffer, copy.lane, copy.item, copy.is_prefetch)
                steps = self._cheaper_steps(copy, self._services[key])
                for step in steps:
                    self._add_service(key, step)
                added += len(steps)
        return added

    def _cheaper_steps(self, copy: CopyCosts, known: Collection[int]) -> list[int]:
        """Steps that would serve a copy for less than those known: those of which idle time and
        saving promise most, `NEW_STEPS` at most, and the cheapest."""
        costs = (copy.by_step[step - copy.first] for step in known if step != STALL)
        saved = min(costs, default=copy.stall) - copy.by_step
        idle = self._idle_estimate[copy.first : copy.first + len(saved)]
        worth = saved * np.minimum(idle, copy.stall)
        chosen = [int(saved.argmax()), *np.argsort(-worth, kind="stable")[:NEW_STEPS].tolist()]
        return sorted({copy.first + i for i in chosen if saved[i] > 1e-7 * self.scale})

    def refine(self, found: RelaxedSolution) -> int:
        """Adds the services that the prices of a point promise most of, and the cuts that it
        breaks; how many."""
        return self.add_services(found.prices) + self.add_cuts(found)

    def add_cuts(self, found: RelaxedSolution) -> int:
        """Adds, for every step, the cover inequalities and the duration cut that a point breaks;
        returns how many."""
        return self._covers.add_violated(found.point) + self._add_duration_cuts(found)

    def _add_duration_cuts(self, found: RelaxedSolution) -> int:
        added = 0
        least_ticks = LEAST_TICKS * self.program.all_slow_ticks
        for step, instruction in enumerate(self.program.instructions):
            if instruction.async_copy or instruction.repeat <= 0:
                continue
            slow = {
                access.buffer: 1.0 - sum(float(found.point[column]) for column in columns)
                for access in instruction.accesses
                if (columns := self._fast_terms.get((step, access.buffer)))
            }
            elapsed = float(found.point[self._duration_columns[step]]) * self.scale
            elapsed = (elapsed + least_ticks) / instruction.repeat
            cut = violated_duration_cut(instruction, slow, elapsed)
            if cut is not None and (step, cut) not in self._duration_rows:
                self._add_duration_cut(step, cut)
                added += 1
        return added

    def _add_duration_cut(self, step: int, cut: DurationCut) -> None:
        weight = self.program.instructions[step].repeat / self.scale
        terms = [(self._duration_columns[step], 1.0)]
        for buffer, ticks in cut.ticks:
            terms += [(column, weight * ticks) for column in self._fast_terms[step, buffer]]
        all_slow = cut.base_ticks + sum(ticks for _, ticks in cut.ticks)
        row = self.matrix.row(weight * all_slow, np.inf, terms)
        self._duration_rows[step, cut] = row

    # -- solving ------------------------------------------------------------------------------

    def solve(
        self, time_limit_seconds: float, forced: Forced = NOTHING_FORCED
    ) -> RelaxedSolution | None:
        """The optimum, or None if it is not found in time or nothing obeys `forced`."""
        if not self._minimise(time_limit_seconds, forced):
            return None
        found = self.matrix.solution()
        fast, kept = self._shares(found.point)
        value = found.value * self.scale
        return RelaxedSolution(value, self._prices(found), fast, kept, found.point)

    def solve_refined(self, deadline: Deadline) -> RelaxedSolution | None:
        """The optimum once services and cuts have been added a few times, or as
        often as there is time for; None as for `solve`."""
        found: RelaxedSolution | None = None
        for count in range(MOST_REFINEMENTS):
            last = self.solve(deadline.remaining_seconds)
            if last is None:
                break
            found = last
            if count + 1 == MOST_REFINEMENTS or deadline.expired or not self.refine(found):
                break
        return found

    def solve_value(self, time_limit_seconds: float, forced: Forced) -> float | None:
        """The objective of the optimum in ticks, or None as for `solve`; that takes less time."""
        if not self._minimise(time_limit_seconds, forced):
            return None
        return self.matrix.value * self.scale

    def _minimise(self, time_limit_seconds: float, forced: Forced) -> bool:
        fixed = {self.fast_column[key]: float(covered) for key, covered in forced.items()}
        return self.matrix.minimise(time_limit_seconds, fixed)

    def solve_integer(
        self, time_limit_seconds: float, relative_gap: float
    ) -> IntegerSolution | None:
        """The best point with whole items found in time, None if there is none.

        HiGHS does not react to interrupts: run it in a child process where that matters.
        """
        whole = [*self.fast_column.values(), *self.carried_column.values()]
        found = self.matrix.solve_whole(whole, time_limit_seconds, relative_gap)
        if found is None:
            return None
        fast, kept = self._shares(found.point)
        carried = tuple(b for b, column in self.carried_column.items() if found.point[column] > 0.5)
        value, bound = found.value * self.scale, found.bound * self.scale
        return IntegerSolution(value, bound, fast, kept, carried)

    def _shares(
        self, point: Floats
    ) -> tuple[dict[tuple[int, int, int], float], dict[tuple[int, int, int], float]]:
        """Per item the share that is fast, and of it the share that was kept."""
        fast = {key: float(point[column]) for key, column in self.fast_column.items()}
        fetched = {key[:3]: float(point[copy]) for key, (copy, _) in self._copies.items() if key[3]}
        kept = {key: max(share - fetched.get(key, 0.0), 0.0) for key, share in fast.items()}
        return fast, kept

    def _prices(self, found: LinearSolution) -> Prices:
        program = self.program
        held = np.zeros((len(self.divisors), program.num_steps + 1))
        for column, resource, step in self._space_columns:
            units = max(self.capacity // self.divisors[resource], 1)
            price = max(-float(found.reduced_costs[column]), 0.0)
            held[resource, step + 1] = price * self.scale / units
        space = np.cumsum(held, axis=1)
        idle = np.clip(-found.row_duals[self._idle_rows], 0.0, 1.0)
        covers = {
            key: price * self.scale for key, price in self._covers.prices(found.row_duals).items()
        }
        lanes, durations = self._duration_weights(found.row_duals, idle)
        return Prices(space, idle, lanes, self.divisors, covers, durations)

    def _duration_weights(
        self, duals: Floats, idle: Floats
    ) -> tuple[Floats, dict[tuple[int, DurationCut], float]]:
        """Dual values of lanes and of cuts as shares of a step's; what is missing to all of it
        goes to the lane of the all-fast duration."""
        program = self.program
        lanes: Floats = np.zeros((program.num_steps, program.num_lanes + 1))
        for row, step, lane in self._lane_rows:
            lanes[step, lane] = max(duals[row], 0.0)
        cuts = {
            key: float(duals[row]) for key, row in self._duration_rows.items() if duals[row] > 0
        }
        total = lanes.sum(axis=1)
        for (step, _), dual in cuts.items():
            total[step] += dual
        whole = np.maximum(total, np.maximum(1.0 - idle, 1e-12))
        lanes /= whole[:, None]
        missing = np.maximum(1.0 - total / whole, 0.0)
        lanes[np.arange(program.num_steps), self._floor_lanes] += missing
        return lanes, {key: dual / float(whole[key[0]]) for key, dual in cuts.items()}


def cut_divisors(program: Program) -> tuple[int, ...]:
    """1, and just over a half, a third, ... of the capacity, as far as they can matter.

    Over a half of the capacity: of the buffers that large at most one is there at a time.
    """
    capacity = program.capacity_bytes // program.machine.alignment_bytes
    sizes = [
        buffer.size_bytes // program.machine.alignment_bytes
        for index, buffer in enumerate(program.buffers)
        if program.may_be_resident(index)
    ]
    largest = max(sizes, default=0)
    divisors = [capacity // parts + 1 for parts in range(2, MOST_PARTS + 1)]
    useful = sorted({d for d in divisors if 1 < d <= largest}, reverse=True)
    return (1, *useful)


def _crowded_steps(program: Program, divisors: Sequence[int]) -> list[set[int]]:
    """Per resource the steps at which everything that may be resident would not fit."""
    unit = program.machine.alignment_bytes
    capacity = program.capacity_bytes // unit
    crowded: list[set[int]] = []
    for divisor in divisors:
        change = np.zeros(program.num_steps + 2, dtype=np.int64)
        for index, uses in enumerate(program.accesses_of_buffer):
            if uses and program.may_be_resident(index):
                weight = program.buffers[index].size_bytes // unit // divisor
                first, last = _reach(program, index)
                change[first] += weight
                change[last] -= weight
        load = np.cumsum(change)[: program.num_steps]
        crowded.append(set(np.nonzero(load > capacity // divisor)[0].tolist()))
    return crowded


def _reach(program: Program, buffer: int) -> tuple[int, int]:
    """Steps [first, last) at which the buffer could be resident to any purpose."""
    uses = program.accesses_of_buffer[buffer]
    found = program.buffers[buffer]
    first = 0 if found.has_content_at_start else uses[0][0]
    last = program.num_steps if found.live_out or found.is_parameter else uses[-1][0] + 1
    for step in (uses[0][0], uses[-1][0]):
        for loop in program.loops_around(program.loop_of_step[step]):
            first = min(first, program.loops[loop].start_step)
            last = max(last, program.loops[loop].end_step)
    return first, last


def _largest_idle(program: Program) -> list[float]:
    """Per step the weighted idle time it may have: with all fast, or with all slow."""
    found: list[float] = []
    for instruction in program.instructions:
        slow = [a for a in instruction.accesses if not program.may_be_resident(a.buffer)]
        some = instruction.elapsed_ticks(slow) - sum(a.bus_ticks for a in slow)
        every = instruction.accesses
        most = instruction.elapsed_ticks(every) - sum(a.bus_ticks for a in every)
        found.append(instruction.repeat * max(some, most, 0))
    return found
