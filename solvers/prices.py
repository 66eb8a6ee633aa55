"""Certified lower bounds on the latency of any valid memory map.

The certificate is a set of prices: what a byte of fast memory costs at each step, what idle time
costs at each step, and how a step's lanes are weighed. For *any* non-negative prices the
Lagrangian below is a lower bound, and it falls apart into one shortest path per buffer:

    latency >= sum_t repeat_t (1 - idle_t) sum_k weight_tk base_tk  -  capacity * sum_t space_t
               + sum over buffers of the cheapest life under these prices,

where a life pays for slow accesses, for the space it holds and for the copies it makes (at the
price of the cheapest idle step in reach, or 1 per tick for a stall). So nothing depends on the
solver that found the prices: `price_bound` evaluates them itself, in floating point with an
error term that covers every rounding. Good prices come from a linear program
(`solvers.relaxation`). Why the bound holds: docs/bounds.md. The lives allow whatever production's
maps may do: sliced prefetches, replaced copies, carried parameters, evictions that overlap reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hlo_graphs.program import Access, AccessKind, Program
from solvers.covers import Cover
from solvers.duration_cuts import DurationCut
from solvers.timeline import (
    Item,
    Lane,
    lanes_of,
    live_ranges_within,
    may_hold_nothing_before,
    needs_content,
    needs_entry_content,
)

Floats = npt.NDArray[np.float64]

MAX_CARRIED = 1
"""Carried residencies a map may have (docs/simulator.md, rule 6)."""

_INF = math.inf

_ROUNDING = 2.0**-52
"""Twice what one operation may be off, as a share of its result."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Multipliers of the relaxed constraints; any non-negative ones give a valid bound.

    Attributes:
      space: [R, T+1] running sums: holding one unit of resource r during steps [a, b) costs
        `space[r, b] - space[r, a]` ticks. Non-decreasing along steps.
      idle: [T] ticks per weighted tick of copy work served in the step, within [0, 1].
      lanes: [T, K+1] weights of the lanes and, last, of the bus, in a step's duration. With the
        weights of its cuts they sum to at most 1.
      divisors: [R] of the resources. The capacity row of a step, sum of sizes <= capacity,
        implies for each whole d > 0 that sum of floor(size / d) <= floor(capacity / d) over the
        buffers that are wholly there (a Chvátal-Gomory cut). The first is 1: the row itself, in
        alignment units.
      covers: ticks that a unit of weight costs, by step and cover inequality.
      durations: weights of duration cuts, by step and cut.
    """

    space: Floats
    idle: Floats
    lanes: Floats
    divisors: tuple[int, ...] = (1,)
    covers: Mapping[tuple[int, Cover], float] = field(default_factory=dict)
    durations: Mapping[tuple[int, DurationCut], float] = field(default_factory=dict)


def uniform_prices(program: Program) -> Prices:
    """No price on space or idle time: each step weighed by its longest lane when all is fast."""
    steps = program.num_steps
    lanes = np.zeros((steps, program.num_lanes + 1))
    lanes[np.arange(steps), floor_lanes(program)] = 1.0
    return Prices(np.zeros((1, steps + 1)), np.zeros(steps), lanes)


ItemKey = tuple[int, int, int]
"""Buffer, lane, item."""

Forced = Mapping[ItemKey, bool]
"""Whether a residency of the lane's scope covers the item.

Restricts the maps considered. Items of steps that may be replaced are not restricted."""

NOTHING_FORCED: Forced = {}


def price_bound(
    program: Program,
    prices: Prices,
    *,
    lanes: Sequence[Sequence[Lane]] | None = None,
    max_carried: int = MAX_CARRIED,
    forced: Forced = NOTHING_FORCED,
) -> float:
    """A latency in ticks that no valid map (among those that obey `forced`) undercuts.

    Whatever the prices: those out of range are moved into it first. That the priced cover
    inequalities and duration cuts hold is taken for granted: `solvers.covers` and
    `solvers.duration_cuts` make none that do not. The result is lowered by a bound on the rounding
    errors of its own evaluation. Infinite if nothing obeys `forced`.
    """
    priced = PricedProgram(program, prices, lanes=lanes, max_carried=max_carried, forced=forced)
    return priced.bound()


class PricedProgram:
    """A program under fixed prices: access costs, window costs, cheapest lives.

    Args:
      program: the problem.
      prices: moved into their range if necessary.
      lanes: per buffer `lanes_of`, empty where it may not be resident.
      max_carried: lives that may begin and end in fast memory.
      forced: items that must be covered by a residency of their lane, or must not.
    """

    def __init__(
        self,
        program: Program,
        prices: Prices,
        *,
        lanes: Sequence[Sequence[Lane]] | None = None,
        max_carried: int = MAX_CARRIED,
        forced: Forced = NOTHING_FORCED,
    ) -> None:
        self.program = program
        self.forced: dict[int, dict[tuple[int, int], bool]] = {}
        for (buffer, lane, item), covered in forced.items():
            self.forced.setdefault(buffer, {})[lane, item] = covered
        self.lanes = resident_lanes(program) if lanes is None else lanes
        self.max_carried = max_carried
        self.unit = program.machine.alignment_bytes
        self.divisors = prices.divisors
        space = np.maximum.accumulate(np.asarray(prices.space, dtype=np.float64), axis=1)
        self.space: Floats = space - space[:, :1]
        self.idle: Floats = np.clip(np.asarray(prices.idle, dtype=np.float64), 0.0, 1.0)
        self.weights, self.cut_weights = _shares_of_durations(prices)
        self.covers = {key: max(price, 0.0) for key, price in prices.covers.items()}
        self.cover_prices: dict[int, list[tuple[int, float, float]]] = {}
        """Per buffer what being held costs beside space, as (step, ticks as a whole, ticks for all
        of its parts)."""
        for (step, cover), price in self.covers.items():
            for buffer, weight in cover.weights:
                whole = weight * price
                part = whole if buffer in cover.parts else 0.0
                self.cover_prices.setdefault(buffer, []).append((step, whole, part))
        self.slow_cost: dict[tuple[int, int], float] = {}
        self.replaceable = {
            step for step, instruction in enumerate(program.instructions) if instruction.async_copy
        }
        self.constant = 0.0
        self._added = 0.0
        self._magnitude = 0.0
        self._price_steps()

    def bound(self) -> float:
        """Constant, less the capacity's price, plus every buffer's cheapest life."""
        program = self.program
        capacity = program.capacity_bytes // self.unit
        capacity_cost = sum(
            (capacity // divisor) * float(space[-1])
            for divisor, space in zip(self.divisors, self.space, strict=True)
        )
        capacity_cost += sum(cover.limit * price for (_, cover), price in self.covers.items())
        total = self.constant - capacity_cost
        operations = 8 + program.num_accesses + program.num_steps + len(program.buffers)
        operations += len(self.covers) + sum(2 + 2 * len(cut.ticks) for _, cut in self.cut_weights)
        self._magnitude += operations * (self._added + capacity_cost + program.all_slow_ticks)
        paid = 0.0
        savings: list[float] = []
        for buffer, lanes in enumerate(self.lanes):
            if not lanes:
                continue
            life = Life(self, buffer, lanes)
            cost = life.cost()
            total += cost
            paid += cost
            self._magnitude += life.magnitude(cost)
            if self.may_be_carried(buffer):
                carried_cost = life.carried_cost()
                if cost == _INF == carried_cost:
                    return _INF
                savings.append(cost - carried_cost)
        if total == _INF:
            return _INF if _INF not in savings else 0.0
        self._magnitude += 2 * len(program.buffers) * paid
        carried = sorted((saving for saving in savings if saving > 0), reverse=True)
        total -= sum(carried[: self.max_carried])
        return max(total - _ROUNDING * self._magnitude, 0.0)

    def may_be_carried(self, buffer: int) -> bool:
        """Whether a life of the buffer may begin in fast memory and end there."""
        return may_be_carried(self.program, buffer, self.lanes[buffer])

    def _price_steps(self) -> None:
        cuts: list[list[tuple[float, DurationCut]]] = [[] for _ in range(self.program.num_steps)]
        for (step, cut), weight in self.cut_weights.items():
            cuts[step].append((weight, cut))
        for step, instruction in enumerate(self.program.instructions):
            repeat, idle = instruction.repeat, float(self.idle[step])
            weights = self.weights[step].tolist()
            base = sum(w * b for w, b in zip(weights, instruction.base_ticks, strict=False))
            base += sum(weight * cut.base_ticks for weight, cut in cuts[step])
            more = _weighed_cuts(cuts[step])
            constant = repeat * (1 - idle) * base
            costs = [
                repeat
                * (
                    (1 - idle) * (_weighed(weights, a) + more.get(a.buffer, 0.0))
                    + idle * a.bus_ticks
                )
                for a in instruction.accesses
            ]
            if step in self.replaceable:
                scale = self._replacement_scale(step, constant + sum(costs))
                constant *= scale
                costs = [scale * cost for cost in costs]
            self.constant += constant
            self._added += abs(constant) + sum(costs)
            for access, cost in zip(instruction.accesses, costs, strict=True):
                if self.lanes[access.buffer]:
                    self.slow_cost[step, access.buffer] = cost
                else:
                    self.constant += cost

    def _replacement_scale(self, step: int, full_cost: float) -> float:
        """Factor on the costs of a step that a copy of the engine may replace.

        Replaced, the step costs its transfer and nothing else. With every cost of the step
        scaled so that together they do not exceed the transfer, not replacing it is never
        dearer than replacing it: a life pays its scaled slow access in both cases.
        """
        instruction = self.program.instructions[step]
        written = [a for a in instruction.accesses if a.kind.writes]
        if not written or full_cost <= 0:
            return 0.0 if full_cost > 0 else 1.0
        ticks = min(least_copy_ticks(self.program, a.buffer) for a in written)
        first, last = replacement_window(self.program, step)
        price = float(self.idle[first:last].min()) if last > first else 1.0
        transfer = instruction.repeat * ticks * price
        return min(transfer / full_cost, 1.0)


def replacement_window(program: Program, step: int) -> tuple[int, int]:
    """Steps in which the transfer of a replaced copy could be served, at most.

    Other steps that may be replaced do not limit it: their transfers move as well.
    """
    loop = program.loop_of_step[step]
    first = 0 if loop is None else program.loops[loop].start_step
    last = program.num_steps if loop is None else program.loops[loop].end_step
    for access in program.instructions[step].accesses:
        for other, use in program.accesses_of_buffer[access.buffer]:
            if program.instructions[other].async_copy:
                continue
            if not (use.kind.writes or access.kind.writes):
                continue
            if other < step:
                first = max(first, other + 1)
            elif other > step:
                last = min(last, other)
    return first, last


def least_copy_ticks(program: Program, buffer: int) -> float:
    """Ticks of a copy of the buffer without rounding up: slices may round differently."""
    seconds = program.buffers[buffer].size_bytes / program.machine.slow_bytes_per_second
    return seconds / program.tick_seconds * (1 - 1e-12)


def _shares_of_durations(prices: Prices) -> tuple[Floats, dict[tuple[int, DurationCut], float]]:
    """Weights of lanes and of cuts; those of a step are not negative and sum to at most 1."""
    lanes = np.maximum(np.asarray(prices.lanes, dtype=np.float64), 0.0)
    cuts = {key: max(weight, 0.0) for key, weight in prices.durations.items()}
    total = lanes.sum(axis=1)
    for (step, _), weight in cuts.items():
        total[step] += weight
    total = np.maximum(total, 1.0)
    return lanes / total[:, None], {key: w / float(total[key[0]]) for key, w in cuts.items()}


def _weighed_cuts(cuts: Iterable[tuple[float, DurationCut]]) -> dict[int, float]:
    """Per buffer the ticks that weighted cuts ask for its slow access."""
    ticks_of: dict[int, float] = {}
    for weight, cut in cuts:
        for buffer, ticks in cut.ticks:
            ticks_of[buffer] = ticks_of.get(buffer, 0.0) + weight * ticks
    return ticks_of


def _weighed(weights: Sequence[float], access: Access) -> float:
    lanes = sum(w * ticks for w, ticks in zip(weights, access.lane_ticks, strict=False))
    return lanes + weights[-1] * access.bus_ticks


def starts_with_read(item: Item) -> bool:
    """Whether the first access, with every branch taken, reads; see `needs_content`."""
    return item.uses[0][1].kind.reads


def resident_lanes(program: Program) -> list[tuple[Lane, ...]]:
    """Per buffer its lanes, none where it may not be in fast memory."""
    return [
        lanes_of(program, buffer) if program.may_be_resident(buffer) else ()
        for buffer in range(len(program.buffers))
    ]


def may_be_carried(program: Program, buffer: int, lanes: Sequence[Lane]) -> bool:
    """Whether a buffer with these lanes may be there from the start, and again at the end: a
    parameter that nobody writes."""
    found = program.buffers[buffer]
    is_written = any(item.writes for item in lanes[0].items)
    return found.is_parameter and found.has_content_at_start and not is_written


def floor_lanes(program: Program) -> list[int]:
    """Per step the lane that is longest when all that may be is fast; the bus is the last."""
    longest: list[int] = []
    for instruction in program.instructions:
        slow = [a for a in instruction.accesses if not program.may_be_resident(a.buffer)]
        totals = [
            base + sum(a.lane_ticks[k] for a in slow)
            for k, base in enumerate(instruction.base_ticks)
        ]
        totals.append(sum(a.bus_ticks for a in slow))
        longest.append(max(range(len(totals)), key=totals.__getitem__))
    return longest


@dataclass(slots=True)
class _State:
    """Cheapest cost of each state of a buffer between two items.

    Resident or not, slow copy current or stale: `away_stale` is a life whose content is gone
    from fast memory and was not written back.
    """

    away: float = _INF
    away_stale: float = _INF
    here: float = _INF
    here_stale: float = _INF

    def least(self) -> float:
        return min(self.away, self.away_stale, self.here, self.here_stale)

    def restricted(self, resident: bool | None) -> _State:
        """Only the states in fast memory, or only those out of it; all of them for None."""
        if resident is None:
            return self
        if resident:
            return _State(here=self.here, here_stale=self.here_stale)
        return _State(self.away, self.away_stale)


@dataclass(frozen=True, slots=True)
class CopyCosts:
    """What a copy that a life may make costs, by who serves it.

    Attributes:
      lane: index into the buffer's lanes.
      item: what a prefetch is for (one past the last for the one that brings back what is
        carried over), or after which an eviction begins.
      is_prefetch: else an eviction.
      first: the first step that may serve it.
      by_step: [n] ticks for all of it if served by step `first + i`.
      stall: ticks for all of it if the program waits.
    """

    lane: int
    item: int
    is_prefetch: bool
    first: int
    by_step: Floats
    stall: float


class Life:
    """The cheapest life of one buffer: a shortest path through its items, loops nested."""

    def __init__(self, priced: PricedProgram, buffer: int, lanes: Sequence[Lane]) -> None:
        self.priced = priced
        self.program = priced.program
        self.buffer = buffer
        self.lanes = lanes
        size = self.program.buffers[buffer].size_bytes // priced.unit
        self.bytes_held: Floats = size * priced.space[0]
        weights = np.array([size // divisor for divisor in priced.divisors], dtype=np.float64)
        self.held: Floats = weights @ priced.space
        if buffer in priced.cover_prices:
            more = np.zeros((2, len(self.held)))
            for step, whole, part in priced.cover_prices[buffer]:
                more[:, step + 1] += whole, part
            whole_cost, part_cost = np.cumsum(more, axis=1)
            self.held = self.held + whole_cost
            self.bytes_held = self.bytes_held + part_cost
        self.copy_ticks = least_copy_ticks(self.program, buffer)
        self.idle = priced.idle
        self.forced = priced.forced.get(buffer, {})
        self.not_whole = self._loops_with_own_residencies()
        self.child = {
            lane.parent: index for index, lane in enumerate(lanes) if lane.parent is not None
        }

    def _loops_with_own_residencies(self) -> set[tuple[int, int]]:
        """Loop items that no residency may cover, since an item inside has one of its own."""
        found: set[tuple[int, int]] = set()
        for (lane_index, _), covered in self.forced.items():
            around = self.lanes[lane_index].parent if covered else None
            while around is not None:
                found.add(around)
                around = self.lanes[around[0]].parent
        return found

    def cost(self) -> float:
        """Least cost of a life that starts in slow memory, or nowhere."""
        lane = self.lanes[0]
        state, end, written = self._walk(0, _State(away=0.0))
        if not self.program.buffers[self.buffer].live_out:
            return state.least()
        flush = self._eviction_cost(lane, written, end, lane.end_step, keep=False)
        return min(state.away, state.here, state.here_stale + flush)

    def carried_cost(self) -> float:
        """Least cost of a life that starts in fast memory and ends there."""
        lane = self.lanes[0]
        state, end, _ = self._walk(0, _State(here=0.0))
        fetch = self._prefetch_cost(lane, lane.start_step, lane.end_step)
        gone = min(state.away, state.here) + fetch
        return min(state.here + self._hold(end, lane.end_step), gone)

    def magnitude(self, cost: float) -> float:
        """Operations times a bound on their results, for the rounding error of `cost`.

        What the cheapest life pays on the way is no more than what it has paid at the end. What a
        place costs is a difference of two sums, each as large as that of all steps at most.
        """
        uses = sum(len(lane.items) + 2 for lane in self.lanes)
        return 8 * uses * (float(self.held[-1]) + cost)

    def _walk(self, lane_index: int, state: _State) -> tuple[_State, int, int]:
        """State after the lane's last item, that item's end, end of the last item that writes."""
        lane = self.lanes[lane_index]
        position = written = lane.start_step
        late = False
        for index, item in enumerate(lane.items):
            if starts_with_read(item):
                state = self._cross_gap(lane, state, written, position, item, late)
                if may_hold_nothing_before(self.program, lane, index):
                    state.here = min(state.here, state.away)
            if item.loop is None:
                state = self._direct(item, state, self.forced.get((lane_index, index)))
            else:
                state = self._loop(lane, lane_index, index, state)
            position = item.end_step
            late = self._may_be_replaced(item) and item.writes
            if item.writes and not late:
                written = item.end_step
        return state, position, written

    def _may_be_replaced(self, item: Item) -> bool:
        return item.loop is None and item.start_step in self.priced.replaceable

    def _cross_gap(
        self, lane: Lane, state: _State, written: int, position: int, item: Item, late: bool
    ) -> _State:
        """From after one item to before the next, which reads.

        `late`: the item before writes and may be a replaced copy, whose transfer, paid as a slow
        access, may fill fast memory any time before the next item.
        """
        hold = self._hold(position, item.start_step)
        crossed = _State(away_stale=min(state.away_stale, state.here_stale))
        crossed.away = min(state.away, state.here)
        crossed.here = state.here + hold
        crossed.here_stale = state.here_stale + hold
        if state.here_stale < _INF:
            drop = self._eviction_cost(lane, written, position, item.start_step, keep=False)
            keep = self._eviction_cost(lane, written, position, item.start_step, keep=True)
            crossed.away = min(crossed.away, state.here_stale + drop)
            crossed.here = min(crossed.here, state.here_stale + hold + keep)
        if late:
            crossed.here_stale = min(crossed.here_stale, state.away)
        fetch = self._prefetch_cost(lane, written, item.start_step)
        crossed.here = min(crossed.here, crossed.away + fetch)
        return crossed

    def _direct(self, item: Item, state: _State, forced: bool | None) -> _State:
        step = item.start_step
        slow = self.priced.slow_cost[step, self.buffer]
        hold = self._hold(step, step + 1)
        replaceable = step in self.priced.replaceable
        after = self._accessed(item, state, slow, hold, replaceable)
        return after if replaceable else after.restricted(forced)

    def _accessed(
        self, item: Item, state: _State, slow: float, hold: float, replaceable: bool
    ) -> _State:
        """After a direct access that costs `slow`, or `hold` in fast memory."""
        if item.kind is AccessKind.WRITE or (replaceable and item.writes):
            least = state.least()
            fast = min(hold, slow) if replaceable else hold
            return _State(away=least + slow, here_stale=least + fast)
        if item.kind is AccessKind.UPDATE:
            fast = min(state.here, state.here_stale) + hold
            return _State(away=state.away + slow, here_stale=fast)
        away_stale = state.away_stale + slow if replaceable else _INF
        return _State(state.away + slow, away_stale, state.here + hold, state.here_stale + hold)

    def _loop(self, lane: Lane, lane_index: int, index: int, state: _State) -> _State:
        """Resident throughout, or out of fast memory at the ends of every trip."""
        item = lane.items[index]
        key = (lane_index, index)
        ranges = live_ranges_within(self.program, lane, index)
        hold = sum(self._hold(start, end) for start, end in ranges)
        if key in self.not_whole:
            hold = _INF
        if starts_with_read(item):
            left = self._trip(self.child[key], state, item)
            if item.writes:
                entry = min(state.here, state.here_stale)
                if not needs_entry_content(self.program, item):
                    entry = min(entry, state.away)
                left.here_stale = entry + hold
            else:
                left.here, left.here_stale = state.here + hold, state.here_stale + hold
        else:
            left = self._trip(self.child[key], _State(away=state.least()), item)
            left.here_stale = state.least() + hold
        return left.restricted(self.forced.get(key))

    def _trip(self, child: int, entry: _State, item: Item) -> _State:
        lane = self.lanes[child]
        start = _State(entry.away, entry.away_stale)
        state, end, written = self._walk(child, start)
        drop = self._eviction_cost(lane, written, end, lane.end_step, keep=False)
        left = _State(min(state.away, state.here, state.here_stale + drop))
        left.away_stale = min(state.away_stale, state.here_stale)
        assert item.loop is not None
        if starts_with_read(item) and self.program.loops[item.loop].may_repeat:
            left.away_stale = _INF  # the next trip reads what this one did not write back
        return left

    def _hold(self, start: int, end: int) -> float:
        """Cost of being wholly resident during steps [start, end)."""
        return float(self.held[end] - self.held[start])

    def _prefetch_cost(self, lane: Lane, floor: int, ready: int) -> float:
        """Cheapest way to serve a copy before `ready`: a step, or a stall."""
        work = self._work(lane)
        if floor >= ready:
            return work
        return min(float(self._prefetch_costs(lane, floor, ready).min()), work)

    def copies(self) -> Iterator[CopyCosts]:
        """Every copy that a life could make, and what each step would serve it for."""
        for lane_index, lane in enumerate(self.lanes):
            written = lane.start_step
            has_written = False
            for index, item in enumerate(lane.items):
                if needs_content(self.program, lane, index) and written < item.start_step:
                    costs = self._prefetch_costs(lane, written, item.start_step)
                    yield CopyCosts(lane_index, index, True, written, costs, self._work(lane))
                if item.writes:
                    written, has_written = item.end_step, True
                following = lane.items[index + 1 : index + 2]
                limit = following[0].start_step if following else lane.end_step
                if has_written and lane.needed_after[index] and written < limit:
                    costs = self._eviction_costs(lane, item.end_step, written, limit)
                    yield CopyCosts(lane_index, index, False, written, costs, self._work(lane))
        if self.lanes and self.priced.may_be_carried(self.buffer):
            lane = self.lanes[0]
            costs = self._prefetch_costs(lane, lane.start_step, lane.end_step)
            work = self._work(lane)
            yield CopyCosts(0, len(lane.items), True, lane.start_step, costs, work)

    def _work(self, lane: Lane) -> float:
        return self.copy_ticks * lane.repeat

    def _prefetch_costs(self, lane: Lane, floor: int, ready: int) -> Floats:
        """Per step in [floor, ready) what it costs that it serves the copy: bytes held from it on.

        A slice holds only its own bytes, so of resources only the first counts.
        """
        held = self.bytes_held[ready] - self.bytes_held[floor:ready]
        costs: Floats = self._work(lane) * self.idle[floor:ready] + held
        return costs

    def _eviction_costs(self, lane: Lane, position: int, first: int, last: int) -> Floats:
        """Per step in [first, last) what it costs that it serves a copy of what leaves.

        That is held until `position` anyway, then until the copy is done.
        """
        until = np.maximum(np.arange(first, last) + 1, position)
        held = self.held[until] - self.held[position]
        costs: Floats = self._work(lane) * self.idle[first:last] + held
        return costs

    def _eviction_cost(
        self, lane: Lane, written: int, position: int, limit: int, *, keep: bool
    ) -> float:
        """Cheapest way to serve a copy back: while held anyway, holding longer, or a stall."""
        work = self._work(lane)
        if written >= limit:
            return work
        held_until = limit if keep else position
        return min(float(self._eviction_costs(lane, held_until, written, limit).min()), work)
