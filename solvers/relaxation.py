"""The linear relaxation of memory mapping, whose dual values price a certified bound.

One column per item (the share of it that is fast), per way to serve a copy (a step, or a
stall), per state of the slow copy, and per step's duration; rows for capacity, idle time, lanes
and the links between them (docs/bounds.md, "Where prices come from"). Not trusted for bounds
(`solvers.prices.price_bound` is); its columns serve copies only at a few promising steps, to which
`Relaxation.add_services` adds more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from hlo_graphs.program import Program
from solvers.prices import (
    MAX_CARRIED,
    NOTHING_FORCED,
    Floats,
    Forced,
    Life,
    PricedProgram,
    Prices,
    floor_lanes,
    least_copy_ticks,
    replacement_window,
    resident_lanes,
    starts_with_read,
)
from solvers.timeline import Item, Lane, live_ranges_within, needs_content

STALL = -1
"""Service "step" of a copy that is paid as a stall."""


MOST_PARTS = 8
"""Cuts are made for buffers larger than the capacity over 2, 3, ... up to this."""


@dataclass(frozen=True, slots=True)
class Service:
    """A column: the share of a copy that one step (or a stall) serves.

    Attributes:
      buffer: index into `Program.buffers`.
      lane: index into the buffer's lanes.
      item: the item that a prefetch is for, or after which an eviction begins.
      step: the serving step, or `STALL`.
      is_prefetch: else an eviction.
    """

    buffer: int
    lane: int
    item: int
    step: int
    is_prefetch: bool


@dataclass(frozen=True, slots=True)
class RelaxedSolution:
    """An optimal point of the relaxation.

    Attributes:
      value_ticks: its objective: a lower bound only as far as the columns go.
      prices: dual values in the form that `price_bound` certifies.
      fast: per (buffer, lane, item) the share that is fast.
      kept: likewise the share that needs no copy: kept since the item before, or made there.
    """

    value_ticks: float
    prices: Prices
    fast: dict[tuple[int, int, int], float]
    kept: dict[tuple[int, int, int], float]


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


@dataclass(slots=True)
class _Matrix:
    """Columns, rows and entries, in the order added."""

    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    row_low: list[float] = field(default_factory=list)
    row_high: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def column(self, cost: float, lower: float, upper: float) -> int:
        self.cost.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.cost) - 1

    def row(self, low: float, high: float, terms: Iterable[tuple[int, float]]) -> int:
        index = len(self.row_low)
        self.row_low.append(low)
        self.row_high.append(high)
        for column, value in terms:
            self.entry(index, column, value)
        return index

    def entry(self, row: int, column: int, value: float) -> None:
        self.rows.append(row)
        self.columns.append(column)
        self.values.append(value)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows as scipy takes them, and where each kind stands in the matrix."""

    at_most: sparse.csr_matrix
    at_most_values: Floats
    equal: sparse.csr_matrix
    equal_values: Floats
    below: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]
    exact: npt.NDArray[np.int64]


class Relaxation:
    """The linear program of one program; `solve` may be called again after `add_services`."""

    def __init__(self, program: Program, lanes: Sequence[Sequence[Lane]] | None = None) -> None:
        self.program = program
        self.divisors = cut_divisors(program)
        self.lanes = resident_lanes(program) if lanes is None else lanes
        self.unit = program.machine.alignment_bytes
        self.capacity = max(program.capacity_bytes // self.unit, 1)
        self.scale = max(program.all_slow_ticks, 1.0) / 1000.0
        self.matrix = _Matrix()
        self._rows: _Rows | None = None
        self.fast_column: dict[tuple[int, int, int], int] = {}
        self.carried_column: dict[int, int] = {}
        self._replaced_terms: dict[int, list[tuple[int, float]]] = {}
        self._replacing_steps: dict[int, list[int]] = {}
        replaceable = sum(step.async_copy for step in program.instructions)
        self._most_replacing = 4_000 // max(replaceable, 1)
        self.services: dict[Service, int] = {}
        self._kept_row: dict[tuple[int, int, int], tuple[int, int, int | None]] = {}
        self._evict_rows: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._fast_terms: dict[tuple[int, int], list[int]] = {}
        self._idle_estimate = _largest_idle(program)
        self._space_rows: list[dict[int, int]] = []
        self._space_columns: list[tuple[int, int, int]] = []
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
        if start >= min(end, self.program.num_steps):
            return
        size = self.program.buffers[buffer].size_bytes // self.unit
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
        candidate = self.program.buffers[buffer]
        if candidate.is_parameter and candidate.has_content_at_start and not writes:
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
        back = [
            (step, self._service_column(Service(buffer, 0, last + 1, step, True), lane))
            for step in self._promising(buffer, 0, 0, steps)
        ]
        for step, column in back:
            self._hold(column, buffer, steps if step == STALL else step, steps, sliced=True)
        returned = [(still, -1.0), *((column, -1.0) for _, column in back)]
        self.matrix.row(-np.inf, 0.0, [(carried, 1.0), *returned])

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
                self._add_prefetches(buffer, lane_index, index, floor)
                if current is not None:
                    self._need_current(buffer, lane_index, index, column, current, around)
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
        for step in self._promising(buffer, lane_index, floor, item.start_step):
            self._add_prefetch(Service(buffer, lane_index, index, step, True))

    def _add_prefetch(self, service: Service) -> None:
        key = (service.buffer, service.lane, service.item)
        lane = self.lanes[service.buffer][service.lane]
        start, fetched, kept = self._kept_row[key]
        column = self._service_column(service, lane)
        self.matrix.entry(fetched, column, -1.0)
        if kept is not None:
            self.matrix.entry(kept, column, -1.0)
        held_from = lane.items[service.item].start_step if service.step == STALL else service.step
        ready = lane.items[service.item].start_step
        self._hold(column, service.buffer, start, ready, sign=-1)
        self._hold(column, service.buffer, held_from, ready, sliced=True)

    def _service_column(self, service: Service, lane: Lane) -> int:
        work = least_copy_ticks(self.program, service.buffer) * lane.repeat / self.scale
        cost = work if service.step == STALL else 0.0
        column = self.matrix.column(cost, 0.0, 1.0)
        if service.step != STALL:
            self.matrix.entry(self._idle_rows[service.step], column, work)
        self.services[service] = column
        return column

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
        """A slow read needs a current slow copy, and so does a prefetch."""
        item = self.lanes[buffer][lane_index].items[index]
        replaced = self.program.instructions[item.start_step].async_copy
        if item.loop is None and not replaced:
            terms = [(column, 1.0), (current, 1.0), *((c, 1.0) for c in around)]
            self.matrix.row(1.0, np.inf, terms)
        fetches = [
            (found, 1.0)
            for service, found in self._recent_services(buffer, lane_index, index)
            if service.is_prefetch
        ]
        self.matrix.row(-np.inf, 0.0, [*fetches, (current, -1.0)])

    def _recent_services(
        self, buffer: int, lane_index: int, index: int
    ) -> list[tuple[Service, int]]:
        found = []
        for service, column in reversed(self.services.items()):
            if (service.buffer, service.lane, service.item) != (buffer, lane_index, index):
                break
            found.append((service, column))
        return found

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
            limited = self.matrix.row(-np.inf, 0.0, [(column, -1.0)])
            self._evict_rows[buffer, lane_index, index] = (row, limited)
            for step in self._evicting(buffer, lane_index, written, limit):
                self._add_eviction(Service(buffer, lane_index, index, step, False))
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

    def _add_eviction(self, service: Service) -> None:
        row, limited = self._evict_rows[service.buffer, service.lane, service.item]
        column = self._service_column(service, self.lanes[service.buffer][service.lane])
        self.matrix.entry(row, column, -1.0)
        self.matrix.entry(limited, column, 1.0)

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
        self.matrix.row_high[row] = -weight * bus
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
        """Adds, for every copy, the step that is cheapest under `prices`; returns how many.

        Only steps that are cheaper than those a copy already has.
        """
        priced = PricedProgram(self.program, prices, lanes=self.lanes)
        known: dict[tuple[int, int, int, bool], list[int]] = {}
        for service in self.services:
            key = (service.buffer, service.lane, service.item, service.is_prefetch)
            known.setdefault(key, []).append(service.step)
        added = self._improve_replacements(prices)
        for buffer, lanes in enumerate(self.lanes):
            life = Life(priced, buffer, lanes)
            for lane, item, step, is_prefetch in life.cheapest_services():
                have = known.get((buffer, lane, item, is_prefetch), [])
                costs = (life.service_cost(lane, item, other, is_prefetch) for other in have)
                least = min(costs, default=0.0)
                cost = life.service_cost(lane, item, step, is_prefetch)
                if cost >= least - 1e-7 * self.scale:
                    continue
                service = Service(buffer, lane, item, step, is_prefetch)
                if is_prefetch:
                    self._add_prefetch(service)
                else:
                    self._add_eviction(service)
                added += 1
        return added

    # -- solving ------------------------------------------------------------------------------

    def solve(
        self, time_limit_seconds: float, forced: Forced = NOTHING_FORCED
    ) -> RelaxedSolution | None:
        """The optimum, or None if it is not found in time or nothing obeys `forced`."""
        matrix = self.matrix
        bounds = np.column_stack([matrix.lower, matrix.upper])
        for key, covered in forced.items():
            bounds[self.fast_column[key]] = float(covered)
        rows = self._sorted_rows()
        result = linprog(
            matrix.cost,
            A_ub=rows.at_most,
            b_ub=rows.at_most_values,
            A_eq=rows.equal,
            b_eq=rows.equal_values,
            bounds=bounds,
            method="highs-ds",
            options={"time_limit": max(time_limit_seconds, 0.01)},
        )
        if result.x is None or result.ineqlin is None or result.status != 0:
            return None
        duals = np.zeros(len(matrix.row_low))
        split = len(rows.below)
        duals[rows.below] = result.ineqlin.marginals[:split]
        duals[rows.above] = -result.ineqlin.marginals[split:]
        duals[rows.exact] = result.eqlin.marginals
        return self._read(result.x, duals, result.upper.marginals, float(result.fun))

    def _sorted_rows(self) -> _Rows:
        """The rows in the solver's form; made anew only if columns were added."""
        matrix = self.matrix
        if self._rows is not None and self._rows.at_most.shape[1] == len(matrix.cost):
            return self._rows
        shape = (len(matrix.row_low), len(matrix.cost))
        full = sparse.csr_matrix((matrix.values, (matrix.rows, matrix.columns)), shape=shape)
        low, high = np.array(matrix.row_low), np.array(matrix.row_high)
        exact = np.flatnonzero(low == high)
        above = np.flatnonzero(np.isfinite(low) & (low != high))
        below = np.flatnonzero(np.isfinite(high) & (low != high))
        self._rows = _Rows(
            at_most=sparse.vstack([full[below], -full[above]]).tocsr(),
            at_most_values=np.concatenate([high[below], -low[above]]),
            equal=full[exact],
            equal_values=low[exact],
            below=below,
            above=above,
            exact=exact,
        )
        return self._rows

    def solve_integer(
        self, time_limit_seconds: float, relative_gap: float
    ) -> IntegerSolution | None:
        """The best point with whole items found in time, None if there is none.

        HiGHS does not react to interrupts: run it in a child process where that matters.
        """
        matrix = self.matrix
        shape = (len(matrix.row_low), len(matrix.cost))
        full = sparse.csr_matrix((matrix.values, (matrix.rows, matrix.columns)), shape=shape)
        whole = np.zeros(shape[1])
        whole[list(self.fast_column.values())] = 1
        whole[list(self.carried_column.values())] = 1
        result = milp(
            matrix.cost,
            constraints=LinearConstraint(full, matrix.row_low, matrix.row_high),
            bounds=Bounds(matrix.lower, matrix.upper),
            integrality=whole,
            options={"time_limit": max(time_limit_seconds, 0.01), "mip_rel_gap": relative_gap},
        )
        if result.x is None:
            return None
        fast, kept = self._shares(result.x)
        carried = tuple(b for b, column in self.carried_column.items() if result.x[column] > 0.5)
        dual = result.mip_dual_bound
        bound = 0.0 if dual is None else float(dual) * self.scale
        return IntegerSolution(float(result.fun) * self.scale, bound, fast, kept, carried)

    def _read(self, point: Floats, duals: Floats, upper: Floats, value: float) -> RelaxedSolution:
        fast, kept = self._shares(point)
        return RelaxedSolution(value * self.scale, self._prices(duals, upper), fast, kept)

    def _shares(
        self, point: Floats
    ) -> tuple[dict[tuple[int, int, int], float], dict[tuple[int, int, int], float]]:
        """Per item the share that is fast, and of it the share that was kept."""
        fast = {key: float(point[column]) for key, column in self.fast_column.items()}
        fetched: dict[tuple[int, int, int], float] = {}
        for service, column in self.services.items():
            if service.is_prefetch:
                key = (service.buffer, service.lane, service.item)
                fetched[key] = fetched.get(key, 0.0) + float(point[column])
        kept = {key: max(share - fetched.get(key, 0.0), 0.0) for key, share in fast.items()}
        return fast, kept

    def _prices(self, duals: Floats, upper: Floats) -> Prices:
        program = self.program
        held = np.zeros((len(self.divisors), program.num_steps + 1))
        for column, resource, step in self._space_columns:
            units = max(self.capacity // self.divisors[resource], 1)
            held[resource, step + 1] = max(-upper[column], 0.0) * self.scale / units
        space = np.cumsum(held, axis=1)
        idle = np.clip(-duals[self._idle_rows], 0.0, 1.0)
        return Prices(space, idle, self._lane_weights(duals, idle), self.divisors)

    def _lane_weights(self, duals: Floats, idle: Floats) -> Floats:
        """Dual values as shares; what is missing goes to the lane of the all-fast duration."""
        program = self.program
        weights: Floats = np.zeros((program.num_steps, program.num_lanes + 1))
        for row, step, lane in self._lane_rows:
            weights[step, lane] = max(duals[row], 0.0)
        weights /= np.maximum(1.0 - idle, 1e-12)[:, None]
        total = weights.sum(axis=1)
        weights /= np.maximum(total, 1.0)[:, None]
        missing = np.maximum(1.0 - weights.sum(axis=1), 0.0)
        weights[np.arange(program.num_steps), floor_lanes(program)] += missing
        return weights


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
