"""The compiled inner loop of `malloc_game.fast_game`: mallocGame's rules over flat integer arrays.

Source: docs/game.md. `FastGame` builds the tables, owns the arrays and documents the rules; nobody
else should call these functions. All of them live in one file on purpose: numba's on-disk cache
watches only the file that a function stands in, so a caller compiled from another file would keep
running yesterday's rules.

A game is a list of *events* (`EVENT_*` kinds) played in order by `run`. Its state is a handful
of arrays (`State`), each used up to a counter, so that a checkpoint is a copy of prefixes:

- `counters`: the scalars, `CNT_*`.
- `sums`: latency and stalls so far, in ticks weighted by `repeat`.
- `current`: bus ticks and lane ticks of the step being played, its fast accesses taken off.
- `idle`: stack of (step, running total of unreserved idle ticks). A prefetch takes idle time
  latest first, so it pops what it exhausts: each step is pushed and popped once.
- `bases`: where the stack of each frame around the present one begins (a window never reaches
  below), and from where on its idle time is exact.
- `buffers`: per buffer `BUF_*`; those that are not resident are all alike.
- `earliest`: per buffer the first step at whose beginning a prefetch of it may be issued.
- `live`: (offset, offset end, buffer) of what is resident now, sorted by offset.
- `ended`: finished residencies, `END_*`, in order of their ends.
- `queue`: evictions ever queued, `QUE_*`; those from `CNT_QUEUE_HEAD` on are unfinished.
- `leavers`: buffers whose place falls free when the step is over.
- `scratch`: intervals while a place is sought.

Offsets and sizes are in alignment units, times in ticks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Actions = npt.NDArray[np.int8]
Seeds = npt.NDArray[np.uint64]

_Function = TypeVar("_Function", bound=Callable[..., Any])


_njit: Any = numba.njit


def compiled(function: _Function) -> _Function:
    """Compiles `function` to machine code, kept on disk between runs.

    Without numba's reference counting, which costs more than the game: every row that is looked
    at (`state.buffers[buffer]`) would be counted up and down atomically. In return the kernels
    may not allocate; all arrays are handed in, and their owners outlive the call.
    """
    options = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
    return cast(_Function, _njit(**options)(function))


# Actions; the values of `malloc_game.fast_game.Action`.
DROP = 0
COPY = 1
KEEP = 2
CLEAN = 3  # beyond the rules: Keep, and queue the eviction now
NOT_ASKED = -1

# Columns of the event table.
EVENT_KIND = 0
EVENT_BUFFER = 1
EVENT_TURN = 2
EVENT_STEP = 3
EVENT_LOOP = 4
EVENT_ACCESS = 5
EVENT_FLAGS = 6
NUM_EVENT_COLUMNS = 7

# Kinds of events. The first four are turns.
KIND_CARRY = 0
KIND_ENTRY = 1
KIND_ACCESS = 2
KIND_EXIT = 3
KIND_ENTER_LOOP = 4
KIND_STEP_END = 5
KIND_LEAVE_LOOP = 6
KIND_END = 7

# Bits of EVENT_FLAGS.
FLAG_KEEP = 1  # there is a next turn to keep it for
FLAG_NEEDED = 2  # leaving now, the content is still needed
FLAG_COPIED = 4  # if the buffer comes, its content is copied there
FLAG_WRITES = 8

# Counters.
CNT_IDLE_TOP = 0
CNT_IDLE_BASE = 1
CNT_LOOP_DEPTH = 2
CNT_LIVE = 3
CNT_ENDED = 4
CNT_QUEUE_HEAD = 5
CNT_QUEUE_TAIL = 6
CNT_LEAVERS = 7
CNT_CARRIED = 8
CNT_EXACT_FROM = 9
CNT_USED_STEP = 10  # one past the latest step that used a buffer that waits in the queue
NUM_COUNTERS = 11

# Columns of the idle stack.
IDLE_STEP = 0
IDLE_TOTAL = 1

# Columns of the bases.
BASE_ROW = 0
BASE_EXACT_FROM = 1
NUM_BASE_COLUMNS = 2

# Columns of the buffer states.
BUF_OFFSET = 0  # -1: not resident
BUF_START = 1
BUF_READY = 2
BUF_SOURCE = 3
BUF_LOOP = 4
BUF_STALE = 5  # resident, and the slow copy is not current
BUF_LEAVING = 6  # resident only until its evictions are served or the step is over
BUF_PENDING = 7  # unfinished evictions
BUF_LAST_QUEUED = 8  # row of its latest eviction
BUF_HELD = 9  # loop it was kept for, HELD_ALWAYS for carried ones, NOT_HELD
NUM_BUFFER_COLUMNS = 10

NOT_HELD = -2
HELD_ALWAYS = -1

# Columns of `live` and `scratch`.
LIVE_OFFSET = 0
LIVE_OFFSET_END = 1
LIVE_BUFFER = 2

# Columns of `ended`.
END_OFFSET = 0
END_OFFSET_END = 1
END_STEP = 2
END_BUFFER = 3
END_START = 4
END_READY = 5
END_SOURCE = 6
END_LOOP = 7
NUM_ENDED_COLUMNS = 8

SOURCE_PRODUCED = 0
SOURCE_COPIED = 1
SOURCE_CARRIED = 2

# Columns of the eviction queue.
QUE_BUFFER = 0
QUE_ISSUE = 1
QUE_REMAINING = 2
QUE_DONE = 3
QUE_SPOILED = 4
NUM_QUEUE_COLUMNS = 5

# Columns of the limits.
LIMIT_CAPACITY = 0
LIMIT_CARRIED = 1
LIMIT_STEPS = 2
LIMIT_CLEAN = 3  # 1: Clean is an action
NUM_LIMITS = 4

# Columns of the loops' offers.
OFFER_NUMERATOR = 0
OFFER_DENOMINATOR = 1
OFFER_ROUNDING = 2
OFFER_LIMIT = 3
NUM_OFFER_COLUMNS = 4

NO_LIMIT = 2**62
"""Ticks that no game takes."""

IDLE_LIMIT_TICKS = 2**30
"""No loop offers more idle time than this (docs/game.md), so that 32 bits suffice elsewhere."""


class Tables(NamedTuple):
    """What does not change between games.

    Attributes:
      limits: `[NUM_LIMITS]`.
      events: `[num_events, NUM_EVENT_COLUMNS]`.
      sizes: `[num_buffers, 2]` size in alignment units, ticks of a copy.
      step_ticks: `[num_steps + 1, 1 + num_lanes]` bus ticks and lane ticks, all slow.
      access_ticks: `[num_accesses, 1 + num_lanes]` what an access takes off when fast.
      repeats: `[num_steps + 1]` weight of each step.
      loop_repeats: `[num_loops + 1]` weight of a stall in loop `i` at `i + 1`; `[0]` is 1.
      offers: `[num_loops, NUM_OFFER_COLUMNS]` how a trip's idle time counts outside.
      hints: `[num_turns]` offset to prefer to best fit where it is free, -1 for none. Not a rule
        of the game: for searches, and the one table that changes between games.
      placed: `[num_turns]` where the buffer is once the turn is played, in the latest game that
        came by; -1 if it is not in fast memory.
    """

    limits: Integers
    events: Integers
    sizes: Integers
    step_ticks: Integers
    access_ticks: Integers
    repeats: Floats
    loop_repeats: Floats
    offers: Integers
    hints: Integers
    placed: Integers


class State(NamedTuple):
    """What a game changes; see the module's docstring."""

    counters: Integers
    sums: Floats
    current: Integers
    idle: Integers
    bases: Integers
    buffers: Integers
    earliest: Integers
    live: Integers
    ended: Integers
    queue: Integers
    leavers: Integers
    scratch: Integers


@compiled
def _clear(mine: Integers) -> None:
    """The row of a buffer that is not resident. What is stale and leaves is not needed."""
    for column in range(NUM_BUFFER_COLUMNS):
        mine[column] = 0
    mine[BUF_OFFSET] = -1
    mine[BUF_HELD] = NOT_HELD


@compiled
def reset(tables: Tables, state: State) -> None:
    """The state before the first event."""
    for each in range(NUM_COUNTERS):
        state.counters[each] = 0
    state.sums[0] = 0.0
    state.sums[1] = 0.0
    for column in range(state.current.size):
        state.current[column] = tables.step_ticks[0, column]
    state.idle[0, IDLE_STEP] = -1
    state.idle[0, IDLE_TOTAL] = 0
    for buffer in range(state.buffers.shape[0]):
        _clear(state.buffers[buffer])
        state.earliest[buffer] = 0


@compiled
def _window(state: State, ticks: int, earliest: int) -> int:
    """Row of the idle stack where the latest window that carries a whole copy begins, or -1."""
    idle = state.idle
    top = state.counters[CNT_IDLE_TOP]
    target = idle[top, IDLE_TOTAL] - ticks
    low = state.counters[CNT_IDLE_BASE]
    if target < idle[low, IDLE_TOTAL]:
        return -1
    # The last row whose predecessor's total is at most `target`: gallop down, then halve.
    reach = 1
    high = top
    while high - reach > low and idle[high - reach, IDLE_TOTAL] > target:
        high -= reach
        reach *= 2
    low = max(low, high - reach)
    while high - low > 1:
        middle = (low + high) // 2
        if idle[middle, IDLE_TOTAL] > target:
            high = middle
        else:
            low = middle
    return high if idle[high, IDLE_STEP] >= earliest else -1


@compiled
def _partial_window(tables: Tables, state: State, earliest: int) -> int:
    """Row of the idle stack from which all idle time may serve a copy in part, or -1.

    Not below what loops offer less of than the engine may have. None while an eviction is under
    way: the copy would be served in its stead, being due earlier.
    """
    first = max(earliest, state.counters[CNT_EXACT_FROM])
    low = state.counters[CNT_IDLE_BASE]
    high = state.counters[CNT_IDLE_TOP]
    if high == low or state.idle[high, IDLE_STEP] < first or _evicts_in_part(tables, state):
        return -1
    while high - low > 1:
        middle = (low + high) // 2
        if state.idle[middle, IDLE_STEP] < first:
            low = middle
        else:
            high = middle
    return int(high)


@compiled
def _evicts_in_part(tables: Tables, state: State) -> bool:
    """Whether an eviction has been served in part."""
    head = state.counters[CNT_QUEUE_HEAD]
    if head == state.counters[CNT_QUEUE_TAIL]:
        return False
    first = state.queue[head]
    return bool(first[QUE_REMAINING] < tables.sizes[first[QUE_BUFFER], 1])


@compiled
def _hidden_ticks(state: State, row: int, ticks: int) -> int:
    """How many of a copy's ticks the idle time from `row` of the stack on carries."""
    idle = state.idle
    total = idle[state.counters[CNT_IDLE_TOP], IDLE_TOTAL]
    return int(min(ticks, total - idle[row - 1, IDLE_TOTAL]))


@compiled
def _reserve(state: State, row: int, ticks: int) -> None:
    """Takes `ticks` of idle time, latest first, down to `row` of the stack."""
    idle = state.idle
    left = idle[state.counters[CNT_IDLE_TOP], IDLE_TOTAL] - ticks
    idle[row, IDLE_TOTAL] = left
    state.counters[CNT_IDLE_TOP] = row if left > idle[row - 1, IDLE_TOTAL] else row - 1


@compiled
def _push_idle(state: State, step: int, ticks: int) -> None:
    if ticks > 0:
        top = state.counters[CNT_IDLE_TOP]
        state.idle[top + 1, IDLE_STEP] = step
        state.idle[top + 1, IDLE_TOTAL] = state.idle[top, IDLE_TOTAL] + ticks
        state.counters[CNT_IDLE_TOP] = top + 1


@compiled
def _best_gap(intervals: Integers, count: int, capacity: int, size: int) -> int:
    """Offset of the smallest gap that holds `size`, the lowest among equals, or -1."""
    best = -1
    smallest = capacity + 1
    cursor = 0
    for row in range(count):
        gap = intervals[row, LIVE_OFFSET] - cursor
        if size <= gap < smallest:
            smallest = gap
            best = cursor
        cursor = intervals[row, LIVE_OFFSET_END]
    if size <= capacity - cursor < smallest:
        best = cursor
    return best


@compiled
def _cover(intervals: Integers, count: int, start: int, end: int) -> int:
    """Adds `[start, end)` to sorted disjoint intervals, merging; returns their new number."""
    low = 0
    high = count
    while low < high:
        middle = (low + high) // 2
        if intervals[middle, LIVE_OFFSET_END] < start:
            low = middle + 1
        else:
            high = middle
    past = low
    while past < count and intervals[past, LIVE_OFFSET] <= end:
        start = min(start, intervals[past, LIVE_OFFSET])
        end = max(end, intervals[past, LIVE_OFFSET_END])
        past += 1
    _shift(intervals, past, count, low + 1 - past)
    intervals[low, LIVE_OFFSET] = start
    intervals[low, LIVE_OFFSET_END] = end
    return count + low + 1 - past


@compiled
def _shift(rows: Integers, first: int, count: int, by: int) -> None:
    """Moves rows `[first, count)` by `by` rows (-1, 0, 1 or further down)."""
    if by > 0:
        for row in range(count - 1, first - 1, -1):
            for column in range(3):
                rows[row + by, column] = rows[row, column]
    elif by < 0:
        for row in range(first, count):
            for column in range(3):
                rows[row + by, column] = rows[row, column]


@compiled
def _live_row(state: State, offset: int) -> int:
    """First row of `live` at or above `offset`."""
    low = 0
    high = state.counters[CNT_LIVE]
    while low < high:
        middle = (low + high) // 2
        if state.live[middle, LIVE_OFFSET] < offset:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _is_free(state: State, offset: int, size: int, start: int) -> bool:
    """Whether `[offset, offset + size)` is free from `start` to the present and on."""
    end = offset + size
    row = _live_row(state, offset)
    if row < state.counters[CNT_LIVE] and state.live[row, LIVE_OFFSET] < end:
        return False
    if row > 0 and state.live[row - 1, LIVE_OFFSET_END] > offset:
        return False
    row = state.counters[CNT_ENDED] - 1
    while row >= 0 and state.ended[row, END_STEP] > start:
        ended = state.ended[row]
        if ended[END_OFFSET] < end and ended[END_OFFSET_END] > offset:
            return False
        row -= 1
    return True


@compiled
def _place(tables: Tables, state: State, size: int, start: int, turn: int) -> int:
    """Best fit over what is free from `start` to the present and on; an offset or -1.

    Every reservation begins at or before the present, so whatever lives now is in the way for
    as long as one likes, and the past adds what ended after `start`.
    """
    capacity = tables.limits[LIMIT_CAPACITY]
    hint = tables.hints[turn]
    if 0 <= hint <= capacity - size and _is_free(state, hint, size, start):
        return int(hint)
    count = state.counters[CNT_LIVE]
    found = _best_gap(state.live, count, capacity, size)
    row = state.counters[CNT_ENDED] - 1
    if found < 0 or row < 0 or state.ended[row, END_STEP] <= start:
        return found
    scratch = state.scratch
    for each in range(count):
        scratch[each, LIVE_OFFSET] = state.live[each, LIVE_OFFSET]
        scratch[each, LIVE_OFFSET_END] = state.live[each, LIVE_OFFSET_END]
    while row >= 0 and state.ended[row, END_STEP] > start:
        ended = state.ended[row]
        count = _cover(scratch, count, ended[END_OFFSET], ended[END_OFFSET_END])
        row -= 1
    return _best_gap(scratch, count, capacity, size)


@compiled
def _occupy(
    tables: Tables,
    state: State,
    buffer: int,
    offset: int,
    start: int,
    ready: int,
    source: int,
    loop: int,
) -> None:
    """Begins a residency."""
    row = _live_row(state, offset)
    count = state.counters[CNT_LIVE]
    _shift(state.live, row, count, 1)
    state.live[row, LIVE_OFFSET] = offset
    state.live[row, LIVE_OFFSET_END] = offset + tables.sizes[buffer, 0]
    state.live[row, LIVE_BUFFER] = buffer
    state.counters[CNT_LIVE] = count + 1
    mine = state.buffers[buffer]
    mine[BUF_OFFSET] = offset
    mine[BUF_START] = start
    mine[BUF_READY] = ready
    mine[BUF_SOURCE] = source
    mine[BUF_LOOP] = loop
    mine[BUF_LEAVING] = 0


@compiled
def _release(state: State, buffer: int, end: int) -> None:
    """Ends a residency: `end` is one past its last step."""
    mine = state.buffers[buffer]
    row = _live_row(state, mine[BUF_OFFSET])
    ended = state.ended[state.counters[CNT_ENDED]]
    ended[END_OFFSET] = mine[BUF_OFFSET]
    ended[END_OFFSET_END] = state.live[row, LIVE_OFFSET_END]
    ended[END_STEP] = end
    ended[END_BUFFER] = buffer
    ended[END_START] = mine[BUF_START]
    ended[END_READY] = mine[BUF_READY]
    ended[END_SOURCE] = mine[BUF_SOURCE]
    ended[END_LOOP] = mine[BUF_LOOP]
    state.counters[CNT_ENDED] += 1
    count = state.counters[CNT_LIVE]
    _shift(state.live, row + 1, count, -1)
    state.counters[CNT_LIVE] = count - 1
    _clear(mine)
    state.earliest[buffer] = max(state.earliest[buffer], end)


@compiled
def _write_back(tables: Tables, state: State, buffer: int, issue: int) -> None:
    """Queues an eviction of a resident buffer unless its slow copy is, or will be, current."""
    mine = state.buffers[buffer]
    pending = mine[BUF_PENDING]
    under_way = pending > 0 and state.queue[mine[BUF_LAST_QUEUED], QUE_SPOILED] == 0
    if not mine[BUF_STALE] or under_way:
        return
    tail = state.counters[CNT_QUEUE_TAIL]
    row = state.queue[tail]
    row[QUE_BUFFER] = buffer
    row[QUE_ISSUE] = issue
    row[QUE_REMAINING] = tables.sizes[buffer, 1]
    row[QUE_SPOILED] = 0
    state.counters[CNT_QUEUE_TAIL] = tail + 1
    mine[BUF_LAST_QUEUED] = tail
    mine[BUF_PENDING] = pending + 1


@compiled
def _leave(tables: Tables, state: State, buffer: int, issue: int, needed: bool) -> bool:
    """Sends a resident buffer away, by the eviction queue if need be.

    Returns whether it may go at once, i.e. no eviction of it is unfinished.
    """
    state.buffers[buffer, BUF_LEAVING] = 1
    if needed:
        _write_back(tables, state, buffer, issue)
    return bool(state.buffers[buffer, BUF_PENDING] == 0)


@compiled
def _kept(tables: Tables, wanted: int, flags: int, otherwise: int) -> int:
    """Keep or Clean if that is wanted and there is a next turn, else `otherwise`."""
    if wanted < KEEP or not flags & FLAG_KEEP:
        return otherwise
    return wanted if tables.limits[LIMIT_CLEAN] else KEEP


@compiled
def _evicted(state: State, row: int, done: int) -> None:
    """The eviction in `row` of the queue is complete before step `done`."""
    entry = state.queue[row]
    entry[QUE_DONE] = done
    buffer = entry[QUE_BUFFER]
    mine = state.buffers[buffer]
    mine[BUF_PENDING] -= 1
    if entry[QUE_SPOILED] == 0:
        mine[BUF_STALE] = 0
        state.earliest[buffer] = done
    if mine[BUF_LEAVING] and mine[BUF_PENDING] == 0:
        _release(state, buffer, done)


@compiled
def _flush(state: State, point: int, repeat: float) -> None:
    """The program waits before step `point` until the eviction queue is empty."""
    counters = state.counters
    _wait(state, counters[CNT_QUEUE_TAIL] - counters[CNT_QUEUE_HEAD], point, repeat)


@compiled
def _wait(state: State, evictions: int, point: int, repeat: float) -> None:
    """The program waits before step `point` for the first so many evictions of the queue."""
    head = state.counters[CNT_QUEUE_HEAD]
    stall = 0
    for row in range(head, head + evictions):
        stall += state.queue[row, QUE_REMAINING]
        _evicted(state, row, point)
    state.counters[CNT_QUEUE_HEAD] = head + evictions
    state.sums[0] += repeat * stall
    state.sums[1] += repeat * stall


@compiled
def _serve(state: State, step: int, idle_ticks: int) -> int:
    """Serves evictions queued before `step`, first in, first out; returns the idle time left."""
    head = state.counters[CNT_QUEUE_HEAD]
    tail = state.counters[CNT_QUEUE_TAIL]
    while head < tail and state.queue[head, QUE_ISSUE] <= step:
        if idle_ticks <= 0 and state.queue[head, QUE_REMAINING] > 0:
            break
        served = min(idle_ticks, state.queue[head, QUE_REMAINING])
        idle_ticks -= served
        state.queue[head, QUE_REMAINING] -= served
        if state.queue[head, QUE_REMAINING] == 0:
            _evicted(state, head, step + 1)
            head += 1
    state.counters[CNT_QUEUE_HEAD] = head
    return idle_ticks


@compiled
def _end_step(tables: Tables, state: State, step: int) -> None:
    """The step takes its time, serves evictions, and what it was the last to need leaves."""
    current = state.current
    elapsed = current[0]
    for lane in range(1, current.size):
        elapsed = max(elapsed, current[lane])
    state.sums[0] += tables.repeats[step] * elapsed
    idle_ticks = _serve(state, step, elapsed - current[0])
    for each in range(state.counters[CNT_LEAVERS]):
        buffer = state.leavers[each]
        mine = state.buffers[buffer]
        if mine[BUF_OFFSET] >= 0 and mine[BUF_LEAVING] and mine[BUF_PENDING] == 0:
            _release(state, buffer, step + 1)
    state.counters[CNT_LEAVERS] = 0
    _push_idle(state, step, idle_ticks)
    for column in range(current.size):
        current[column] = tables.step_ticks[step + 1, column]


@compiled
def _enter_loop(tables: Tables, state: State, outer: int, step: int) -> None:
    _flush(state, step, tables.loop_repeats[outer + 1])
    depth = state.counters[CNT_LOOP_DEPTH]
    state.bases[depth, BASE_ROW] = state.counters[CNT_IDLE_BASE]
    state.bases[depth, BASE_EXACT_FROM] = state.counters[CNT_EXACT_FROM]
    state.counters[CNT_IDLE_BASE] = state.counters[CNT_IDLE_TOP]
    state.counters[CNT_EXACT_FROM] = 0
    state.counters[CNT_LOOP_DEPTH] = depth + 1


@compiled
def _leave_loop(tables: Tables, state: State, loop: int, start: int, end: int) -> None:
    """Ends a trip: from outside, the loop is one stretch of idle time at its first step."""
    _flush(state, end, tables.loop_repeats[loop + 1])
    counters = state.counters
    base = counters[CNT_IDLE_BASE]
    inside = state.idle[counters[CNT_IDLE_TOP], IDLE_TOTAL] - state.idle[base, IDLE_TOTAL]
    offers = tables.offers
    numerator = offers[loop, OFFER_NUMERATOR]
    denominator = offers[loop, OFFER_DENOMINATOR]
    # More than this offers the limit as well; cut off, so that the product fits 64 bits.
    most = IDLE_LIMIT_TICKS * denominator // max(numerator, 1) + 1
    offer = min(inside, most) * numerator // denominator
    offer = max(0, min(offer, IDLE_LIMIT_TICKS) - offers[loop, OFFER_ROUNDING])
    is_exact = offers[loop, OFFER_ROUNDING] == 0 and counters[CNT_EXACT_FROM] == 0
    depth = counters[CNT_LOOP_DEPTH] - 1
    counters[CNT_IDLE_TOP] = base
    counters[CNT_LOOP_DEPTH] = depth
    counters[CNT_IDLE_BASE] = state.bases[depth, BASE_ROW]
    counters[CNT_EXACT_FROM] = state.bases[depth, BASE_EXACT_FROM]
    if not is_exact or offer >= offers[loop, OFFER_LIMIT]:
        counters[CNT_EXACT_FROM] = start + 1
    _push_idle(state, start, min(offer, offers[loop, OFFER_LIMIT]))


@compiled
def _longest_wait(tables: Tables, state: State, event: Integers) -> int:
    """The program may wait for less than so many ticks for the event's buffer to come.

    At an access less than what the step saves by it, at a loop's entry as long as one likes.
    """
    if event[EVENT_KIND] != KIND_ACCESS:
        return NO_LIMIT
    current = state.current
    access = event[EVENT_ACCESS]
    slow = current[0]
    fast = current[0] - tables.access_ticks[access, 0]
    for lane in range(1, current.size):
        slow = max(slow, current[lane])
        fast = max(fast, current[lane] - tables.access_ticks[access, lane])
    return int(max(1, slow - fast))


@compiled
def _plan(tables: Tables, state: State, event: Integers) -> tuple[int, int, int]:
    """Where the event's buffer, not resident, would go: (offset, row of its window, evictions).

    The offset is -1 if the rules do not allow it. The row is -1 where nothing hides the copy:
    for a buffer that is produced in place, or where all of the copy is paid as a stall. The
    program waits for so many evictions of the queue.
    """
    buffer = event[EVENT_BUFFER]
    step = event[EVENT_STEP]
    turn = event[EVENT_TURN]
    size = tables.sizes[buffer, 0]
    ticks = tables.sizes[buffer, 1] if _is_copied(event) else 0
    if event[EVENT_KIND] == KIND_ENTRY and not event[EVENT_FLAGS] & FLAG_NEEDED:
        return -1, -1, 0
    limit = _longest_wait(tables, state, event)
    row = _window_for(tables, state, buffer, ticks)
    if row >= 0:
        if ticks - _hidden_ticks(state, row, ticks) >= limit:
            return -1, -1, 0
        offset = _place(tables, state, size, state.idle[row, IDLE_STEP], turn)
        if offset >= 0:
            return offset, row, 0
    offset = _place(tables, state, size, step, turn)
    if offset >= 0:
        if row >= 0:
            row = _later_window(tables, state, buffer, row, offset)
        hidden = _hidden_ticks(state, row, ticks) if row >= 0 else 0
        return (offset, row, 0) if ticks - hidden < limit else (-1, -1, 0)
    offset, evictions = _place_after_evictions(tables, state, size, step, limit - ticks)
    return offset, -1, evictions


@compiled
def _is_copied(event: Integers) -> bool:
    """Whether the turn's buffer, if it comes, is copied there, not produced."""
    return bool(event[EVENT_FLAGS] & FLAG_COPIED)


@compiled
def _later_window(tables: Tables, state: State, buffer: int, row: int, offset: int) -> int:
    """Row of the first window behind `row` from which `offset`, free now, is free; -1 for none.

    It hides part of the copy only, where `row` may have hidden all.
    """
    first = _free_since(state, offset, tables.sizes[buffer, 0], state.idle[row, IDLE_STEP])
    partial = _partial_window(tables, state, max(first, state.earliest[buffer]))
    return max(row, partial) if partial >= 0 else -1


@compiled
def _free_since(state: State, offset: int, size: int, start: int) -> int:
    """The first step from `start` on since which `[offset, offset + size)`, free now, is free."""
    row = state.counters[CNT_ENDED] - 1
    while row >= 0 and state.ended[row, END_STEP] > start:
        ended = state.ended[row]
        if ended[END_OFFSET] < offset + size and ended[END_OFFSET_END] > offset:
            return int(ended[END_STEP])
        row -= 1
    return start


@compiled
def _is_waiting(state: State, buffer: int, step: int) -> bool:
    """Whether a resident buffer leaves once evictions queued before `step` are served."""
    mine = state.buffers[buffer]
    if not mine[BUF_LEAVING] or mine[BUF_PENDING] == 0:
        return False
    return bool(state.queue[mine[BUF_LAST_QUEUED], QUE_ISSUE] <= step)


@compiled
def _place_after_evictions(
    tables: Tables, state: State, size: int, step: int, limit: int
) -> tuple[int, int]:
    """Best fit over what is free once the queue is served: (offset or -1, evictions to wait for).

    The evictions up to the last one that the place waits for take less than `limit` ticks. None
    if an access of this step has used a buffer that waits: it could not leave before the step.
    """
    if state.counters[CNT_USED_STEP] == step + 1:
        return -1, 0
    count = 0
    for row in range(state.counters[CNT_LIVE]):
        if not _is_waiting(state, state.live[row, LIVE_BUFFER], step):
            state.scratch[count, LIVE_OFFSET] = state.live[row, LIVE_OFFSET]
            state.scratch[count, LIVE_OFFSET_END] = state.live[row, LIVE_OFFSET_END]
            count += 1
    offset = _best_gap(state.scratch, count, tables.limits[LIMIT_CAPACITY], size)
    if offset < 0:
        return -1, 0
    last = -1
    for row in range(state.counters[CNT_LIVE]):
        live = state.live[row]
        if live[LIVE_OFFSET] < offset + size and live[LIVE_OFFSET_END] > offset:
            last = max(last, state.buffers[live[LIVE_BUFFER], BUF_LAST_QUEUED])
    head = state.counters[CNT_QUEUE_HEAD]
    stall = 0
    for row in range(head, last + 1):
        stall += state.queue[row, QUE_REMAINING]
    return (offset, last + 1 - head) if stall < limit else (-1, 0)


@compiled
def _window_for(tables: Tables, state: State, buffer: int, ticks: int) -> int:
    """Row of the idle stack where a copy of `ticks` begins, -1 where nothing hides any of it."""
    if ticks == 0:
        return -1
    row = _window(state, ticks, state.earliest[buffer])
    return row if row >= 0 else _partial_window(tables, state, state.earliest[buffer])


@compiled
def _fetch(tables: Tables, state: State, event: Integers) -> bool:
    """Brings the event's buffer into fast memory if the rules allow it; whether they did."""
    offset, row, evictions = _plan(tables, state, event)
    if offset < 0:
        return False
    buffer = event[EVENT_BUFFER]
    step = event[EVENT_STEP]
    loop = event[EVENT_LOOP]
    _wait(state, evictions, step, tables.loop_repeats[loop + 1])
    if not _is_copied(event):
        _occupy(tables, state, buffer, offset, step, step, SOURCE_PRODUCED, loop)
        return True
    ticks = tables.sizes[buffer, 1]
    start = step
    hidden = 0
    if row >= 0:
        start = state.idle[row, IDLE_STEP]
        hidden = _hidden_ticks(state, row, ticks)
        _reserve(state, row, hidden)
    if hidden < ticks:
        stall = tables.loop_repeats[loop + 1] * (ticks - hidden)
        state.sums[0] += stall
        state.sums[1] += stall
    _occupy(tables, state, buffer, offset, start, step, SOURCE_COPIED, loop)
    return True


@compiled
def _make_fast(tables: Tables, state: State, event: Integers) -> None:
    """The step's access is served from fast memory; a write makes the slow copy stale."""
    current = state.current
    access = event[EVENT_ACCESS]
    for column in range(current.size):
        current[column] -= tables.access_ticks[access, column]
    if event[EVENT_FLAGS] & FLAG_WRITES:
        mine = state.buffers[event[EVENT_BUFFER]]
        mine[BUF_STALE] = 1
        if mine[BUF_PENDING] > 0:
            state.queue[mine[BUF_LAST_QUEUED], QUE_SPOILED] = 1


@compiled
def _access(tables: Tables, state: State, event: Integers, wanted: int) -> int:
    """Plays the turn of an access; returns the action taken, NOT_ASKED if it had no turn."""
    buffer = event[EVENT_BUFFER]
    step = event[EVENT_STEP]
    flags = event[EVENT_FLAGS]
    mine = state.buffers[buffer]
    if mine[BUF_HELD] != NOT_HELD:
        _make_fast(tables, state, event)
        return NOT_ASKED
    if mine[BUF_OFFSET] >= 0:
        taken = _kept(tables, wanted, flags, DROP)
    elif wanted != DROP and _fetch(tables, state, event):
        taken = _kept(tables, wanted, flags, COPY)
    else:
        if flags & FLAG_WRITES:
            state.earliest[buffer] = step + 1
        return DROP
    _make_fast(tables, state, event)
    if taken >= KEEP:
        mine[BUF_LEAVING] = 0
        if taken == CLEAN:
            _write_back(tables, state, buffer, step + 1)
    elif _leave(tables, state, buffer, step + 1, flags & FLAG_NEEDED != 0):
        state.leavers[state.counters[CNT_LEAVERS]] = buffer
        state.counters[CNT_LEAVERS] += 1
    elif _is_waiting(state, buffer, step):
        state.counters[CNT_USED_STEP] = step + 1
    return taken


@compiled
def _entry(tables: Tables, state: State, event: Integers, wanted: int, loop: int) -> int:
    """Plays a turn at loop entry: Keep holds the buffer through all trips of `loop`."""
    buffer = event[EVENT_BUFFER]
    step = event[EVENT_STEP]
    mine = state.buffers[buffer]
    if mine[BUF_HELD] != NOT_HELD:
        return NOT_ASKED
    if mine[BUF_OFFSET] < 0:
        if wanted < KEEP or not _fetch(tables, state, event):
            return DROP
    elif wanted < KEEP:
        if _leave(tables, state, buffer, step, event[EVENT_FLAGS] & FLAG_NEEDED != 0):
            _release(state, buffer, step)
        return DROP
    mine[BUF_HELD] = loop
    mine[BUF_LEAVING] = 0
    return KEEP


@compiled
def _exit(tables: Tables, state: State, event: Integers, wanted: int, loop: int) -> int:
    """Plays a turn at loop exit, which only a buffer held through that loop has."""
    buffer = event[EVENT_BUFFER]
    step = event[EVENT_STEP]
    flags = event[EVENT_FLAGS]
    mine = state.buffers[buffer]
    if mine[BUF_HELD] != loop:
        return NOT_ASKED
    mine[BUF_HELD] = NOT_HELD
    taken = _kept(tables, wanted, flags, DROP)
    if taken >= KEEP:
        if taken == CLEAN:
            _write_back(tables, state, buffer, step)
        return taken
    if _leave(tables, state, buffer, step, flags & FLAG_NEEDED != 0):
        _release(state, buffer, step)
    return DROP


@compiled
def _carry(tables: Tables, state: State, event: Integers, wanted: int) -> int:
    """Plays the turn of a candidate to be carried over from the previous run."""
    buffer = event[EVENT_BUFFER]
    if wanted < KEEP or state.counters[CNT_CARRIED] >= tables.limits[LIMIT_CARRIED]:
        return DROP
    offset = _place(tables, state, tables.sizes[buffer, 0], 0, event[EVENT_TURN])
    if offset < 0:
        return DROP
    _occupy(tables, state, buffer, offset, 0, 0, SOURCE_CARRIED, -1)
    state.buffers[buffer, BUF_HELD] = HELD_ALWAYS
    state.counters[CNT_CARRIED] += 1
    return KEEP


@compiled
def _finish(tables: Tables, state: State) -> None:
    """The virtual last step: the queue is flushed, carried parameters have come through."""
    num_steps = tables.limits[LIMIT_STEPS]
    _flush(state, num_steps, 1.0)
    for row in range(state.counters[CNT_LIVE] - 1, -1, -1):
        _release(state, state.live[row, LIVE_BUFFER], num_steps + 1)


@compiled
def legal_mask(tables: Tables, state: State, event: Integers) -> int:
    """Bit `1 << action` per legal action of the turn; 0 if the event asks nothing now."""
    kind = event[EVENT_KIND]
    if kind > KIND_EXIT:
        return 0
    buffer = event[EVENT_BUFFER]
    mine = state.buffers[buffer]
    keep = bool(event[EVENT_FLAGS] & FLAG_KEEP)
    if kind == KIND_CARRY:
        free = state.counters[CNT_CARRIED] < tables.limits[LIMIT_CARRIED]
        keep = free and _place(tables, state, tables.sizes[buffer, 0], 0, event[EVENT_TURN]) >= 0
        return (1 << DROP) | (keep << KEEP)
    if kind == KIND_EXIT:
        return (1 << DROP) | (keep << KEEP) if mine[BUF_HELD] == event[EVENT_ACCESS] else 0
    if mine[BUF_HELD] != NOT_HELD:
        return 0
    if mine[BUF_OFFSET] >= 0:
        return (1 << DROP) | (keep << KEEP)
    possible = _plan(tables, state, event)[0] >= 0
    copy = possible and kind == KIND_ACCESS
    return (1 << DROP) | (copy << COPY) | ((possible and keep) << KEEP)


@compiled
def masks_along(
    tables: Tables, state: State, actions: Actions, taken: Actions, masks: Actions
) -> None:
    """Plays a game and writes `legal_mask` of every turn as it comes up."""
    reset(tables, state)
    for index in range(tables.events.shape[0]):
        event = tables.events[index]
        if event[EVENT_KIND] <= KIND_EXIT:
            masks[event[EVENT_TURN]] = legal_mask(tables, state, event)
        run(tables, state, actions, taken, index, index + 1)


@compiled
def run(
    tables: Tables, state: State, actions: Actions, taken: Actions, first: int, last: int
) -> None:
    """Plays events `[first, last)`; `taken` receives per turn the action that was played."""
    for index in range(first, last):
        event = tables.events[index]
        kind = event[EVENT_KIND]
        turn = event[EVENT_TURN]
        if kind == KIND_ACCESS:
            taken[turn] = _access(tables, state, event, actions[turn])
        elif kind == KIND_STEP_END:
            _end_step(tables, state, event[EVENT_STEP])
        elif kind == KIND_ENTRY:
            taken[turn] = _entry(tables, state, event, actions[turn], event[EVENT_ACCESS])
        elif kind == KIND_EXIT:
            taken[turn] = _exit(tables, state, event, actions[turn], event[EVENT_ACCESS])
        elif kind == KIND_ENTER_LOOP:
            _enter_loop(tables, state, event[EVENT_ACCESS], event[EVENT_STEP])
        elif kind == KIND_LEAVE_LOOP:
            _leave_loop(tables, state, event[EVENT_LOOP], event[EVENT_ACCESS], event[EVENT_STEP])
        elif kind == KIND_CARRY:
            taken[turn] = _carry(tables, state, event, actions[turn])
        else:
            _finish(tables, state)
        if kind <= KIND_EXIT:
            tables.placed[turn] = state.buffers[event[EVENT_BUFFER], BUF_OFFSET]


@compiled
def play(tables: Tables, state: State, actions: Actions, taken: Actions) -> float:
    """One whole game; returns its latency in ticks."""
    reset(tables, state)
    run(tables, state, actions, taken, 0, tables.events.shape[0])
    return float(state.sums[0])


@compiled
def play_many(
    tables: Tables, state: State, actions: Actions, taken: Actions, latencies: Floats
) -> None:
    """One game per row of `actions`; `latencies` receives their ticks, `taken` the last game."""
    for game in range(actions.shape[0]):
        latencies[game] = play(tables, state, actions[game], taken)


@compiled
def _next_random(seed: np.uint64) -> np.uint64:
    """One step of Marsaglia's 64-bit xorshift; never 0 for a seed that is not."""
    seed ^= seed << np.uint64(13)
    seed ^= seed >> np.uint64(7)
    seed ^= seed << np.uint64(17)
    return seed


@compiled
def _draw(probabilities: Floats, seed: np.uint64, wishes: Actions) -> None:
    """Draws a game's wishes from `[turns, actions]`."""
    random = seed
    for turn in range(probabilities.shape[0]):
        random = _next_random(random)
        drawn = (random >> np.uint64(11)) * 2.0**-53
        action = 0
        while action + 1 < probabilities.shape[1] and drawn >= probabilities[turn, action]:
            drawn -= probabilities[turn, action]
            action += 1
        wishes[turn] = action


@compiled
def sample(
    tables: Tables,
    state: State,
    probabilities: Floats,
    seeds: Seeds,
    wishes: Actions,
    taken: Actions,
    latencies: Floats,
) -> None:
    """One game per row of `taken`, its wishes drawn from `probabilities` `[turns, actions]`.

    Each has a seed of its own, not 0, so that a game does not depend on who plays which others.
    """
    for game in range(taken.shape[0]):
        _draw(probabilities, seeds[game], wishes)
        latencies[game] = play(tables, state, wishes, taken[game])


@compiled
def sample_along(
    tables: Tables,
    state: State,
    probabilities: Floats,
    seeds: Seeds,
    wishes: Actions,
    taken: Actions,
    spent: Floats,
) -> None:
    """The games of `sample`; `spent` `[games, turns + 1]` receives the ticks before each turn."""
    for game in range(taken.shape[0]):
        _draw(probabilities, seeds[game], wishes)
        reset(tables, state)
        for index in range(tables.events.shape[0]):
            if tables.events[index, EVENT_KIND] <= KIND_EXIT:
                spent[game, tables.events[index, EVENT_TURN]] = state.sums[0]
            run(tables, state, wishes, taken[game], index, index + 1)
        spent[game, -1] = state.sums[0]


@compiled
def _copy_items(source: Integers, target: Integers, count: int) -> None:
    for each in range(count):
        target[each] = source[each]


@compiled
def _copy_rows(source: Integers, target: Integers, first: int, last: int) -> None:
    for row in range(first, last):
        for column in range(source.shape[1]):
            target[row, column] = source[row, column]


@compiled
def _save(state: State, bank: State, index: int) -> None:
    """Makes the state checkpoint `index` of a bank.

    The arrays of a bank have one dimension more in front, except `ended`, which its checkpoints
    share: it is the log of the whole recorded game. `buffers` holds the rows of what is live,
    in the order of `live`.
    """
    counters = state.counters
    _copy_items(counters, bank.counters[index], NUM_COUNTERS)
    bank.sums[index, 0] = state.sums[0]
    bank.sums[index, 1] = state.sums[1]
    _copy_items(state.current, bank.current[index], state.current.size)
    _copy_rows(state.bases, bank.bases[index], 0, counters[CNT_LOOP_DEPTH])
    _copy_items(state.leavers, bank.leavers[index], counters[CNT_LEAVERS])
    _copy_items(state.earliest, bank.earliest[index], state.earliest.size)
    _copy_rows(state.idle, bank.idle[index], 0, counters[CNT_IDLE_TOP] + 1)
    _copy_rows(state.live, bank.live[index], 0, counters[CNT_LIVE])
    _copy_rows(state.queue, bank.queue[index], counters[CNT_QUEUE_HEAD], counters[CNT_QUEUE_TAIL])
    for row in range(counters[CNT_LIVE]):
        buffer = state.live[row, LIVE_BUFFER]
        _copy_items(state.buffers[buffer], bank.buffers[index, row], NUM_BUFFER_COLUMNS)


@compiled
def _load(bank: State, index: int, state: State, agreed: int) -> int:
    """Makes checkpoint `index` the state, whose first `agreed` ended rows are the bank's.

    Returns how many will still be when the game has gone on from there.
    """
    for row in range(state.counters[CNT_LIVE]):
        _clear(state.buffers[state.live[row, LIVE_BUFFER]])
    _copy_items(bank.counters[index], state.counters, NUM_COUNTERS)
    counters = state.counters
    state.sums[0] = bank.sums[index, 0]
    state.sums[1] = bank.sums[index, 1]
    _copy_items(bank.current[index], state.current, state.current.size)
    _copy_rows(bank.bases[index], state.bases, 0, counters[CNT_LOOP_DEPTH])
    _copy_items(bank.leavers[index], state.leavers, counters[CNT_LEAVERS])
    _copy_items(bank.earliest[index], state.earliest, state.earliest.size)
    _copy_rows(bank.idle[index], state.idle, 0, counters[CNT_IDLE_TOP] + 1)
    _copy_rows(bank.live[index], state.live, 0, counters[CNT_LIVE])
    _copy_rows(bank.queue[index], state.queue, counters[CNT_QUEUE_HEAD], counters[CNT_QUEUE_TAIL])
    for row in range(counters[CNT_LIVE]):
        buffer = state.live[row, LIVE_BUFFER]
        _copy_items(bank.buffers[index, row], state.buffers[buffer], NUM_BUFFER_COLUMNS)
    ended = counters[CNT_ENDED]
    _copy_rows(bank.ended, state.ended, agreed, ended)
    return int(ended)


@compiled
def record(
    tables: Tables,
    state: State,
    bank: State,
    stride: int,
    first: int,
    agreed: int,
    wishes: Actions,
    taken: Actions,
) -> float:
    """Plays on from checkpoint `first` to the end, refreshing the checkpoints behind it.

    Checkpoint `i` is the state before event `i * stride`; `agreed` is as in `_load`. Returns the
    latency in ticks.
    """
    if first == 0:
        reset(tables, state)
    else:
        _load(bank, first, state, agreed)
    ended = state.counters[CNT_ENDED]
    for index in range(first, bank.counters.shape[0]):
        _save(state, bank, index)
        last = min(tables.events.shape[0], (index + 1) * stride)
        run(tables, state, wishes, taken, index * stride, last)
    _copy_rows(state.ended, bank.ended, ended, state.counters[CNT_ENDED])
    return float(state.sums[0])


@compiled
def _replay(
    tables: Tables,
    state: State,
    bank: State,
    stride: int,
    first: int,
    settled: int,
    margin: float,
    wishes: Actions,
    taken: Actions,
) -> float:
    """Plays on from checkpoint `first`, which is loaded; infinite if it is given up.

    It is given up at a checkpoint from `settled` on where the game is more than `margin` ticks
    behind the recorded one.
    """
    for index in range(first, bank.counters.shape[0]):
        if index >= settled and state.sums[0] > bank.sums[index, 0] + margin:
            return np.inf
        last = min(tables.events.shape[0], (index + 1) * stride)
        run(tables, state, wishes, taken, index * stride, last)
    return float(state.sums[0])


@compiled
def _first_change(
    tables: Tables,
    event_of_turn: Integers,
    wishes: Actions,
    turns: Integers,
    actions: Actions,
    hints: Integers,
) -> int:
    """First event at which the changes matter, or the number of events."""
    first = tables.events.shape[0]
    for each in range(turns.size):
        turn = turns[each]
        if turn < 0:
            continue
        if actions[each] != wishes[turn] or hints[each] != tables.hints[turn]:
            first = min(first, event_of_turn[turn])
    return int(first)


@compiled
def _last_change(event_of_turn: Integers, turns: Integers) -> int:
    last = 0
    for each in range(turns.size):
        if turns[each] >= 0:
            last = max(last, event_of_turn[turns[each]])
    return last


@compiled
def _swap(
    tables: Tables,
    wishes: Actions,
    turns: Integers,
    actions: Actions,
    hints: Integers,
    forward: bool,
) -> None:
    """Exchanges wishes and hints of `turns` with new ones; backward takes it back."""
    count = turns.size
    for step in range(count):
        each = step if forward else count - 1 - step
        turn = turns[each]
        if turn >= 0:
            wish = wishes[turn]
            wishes[turn] = actions[each]
            actions[each] = wish
            hint = tables.hints[turn]
            tables.hints[turn] = hints[each]
            hints[each] = hint


@compiled
def _moves(tables: Tables, turns: Integers, old_hints: Integers) -> bool:
    """Whether any of `turns` has another hint than before."""
    moved = False
    for each in range(turns.size):
        if turns[each] >= 0 and tables.hints[turns[each]] != old_hints[each]:
            moved = True
    return moved


@compiled
def _is_same(one: Actions, other: Actions, first: int) -> bool:
    same = True
    for each in range(first, one.size):
        same = same and one[each] == other[each]
    return same


class Chain(NamedTuple):
    """A game that changes step by step, and the best one so far.

    Attributes:
      event_of_turn: `[num_turns]` row of each turn in the event table.
      wishes: `[num_turns]` of the current game; its hints are the tables'.
      taken: `[num_turns]` what was played in it.
      trial: `[num_turns]` working memory.
      best_wishes: `[num_turns]` of the best game.
      best_hints: `[num_turns]` of the best game.
      values: latency of the current game, of the best one, in ticks.
    """

    event_of_turn: Integers
    wishes: Actions
    taken: Actions
    trial: Actions
    best_wishes: Actions
    best_hints: Integers
    values: Floats


class Proposals(NamedTuple):
    """Changes to try one after another.

    Attributes:
      turns: `[proposals, changes]` turns to change, -1 for none.
      actions: `[proposals, changes]` the new wishes; overwritten.
      hints: `[proposals, changes]` the new hints; overwritten.
      thresholds: `[proposals]` ticks by which a game may be worse than the current one.
      margin: `[1]` ticks a game may be behind before it is given up.
      patience: `[1]` checkpoints after the last change before it may be given up.
    """

    turns: Integers
    actions: Actions
    hints: Integers
    thresholds: Floats
    margin: Floats
    patience: Integers


@compiled
def walk(
    tables: Tables, state: State, bank: State, stride: int, chain: Chain, proposals: Proposals
) -> int:
    """A chain of games, each a few wishes away from the last accepted one.

    Args:
      tables: of the game.
      state: working memory.
      bank: checkpoints of the current game, as `record` leaves them.
      stride: events between checkpoints.
      chain: where it begins; kept up to date.
      proposals: what is tried.

    Returns:
      The number of games played, those given up included.
    """
    played = 0
    agreed = 0
    for row in range(proposals.turns.shape[0]):
        event = _first_change(
            tables,
            chain.event_of_turn,
            chain.wishes,
            proposals.turns[row],
            proposals.actions[row],
            proposals.hints[row],
        )
        if event < tables.events.shape[0]:
            played += 1
            agreed = _try_change(tables, state, bank, stride, chain, proposals, row, event, agreed)
    return played


@compiled
def _try_change(
    tables: Tables,
    state: State,
    bank: State,
    stride: int,
    chain: Chain,
    proposals: Proposals,
    row: int,
    event: int,
    agreed: int,
) -> int:
    """Plays the proposal in `row`, whose first change is at `event`; accepts it or takes it back.

    `agreed`, before and after, is as in `_load`.
    """
    turns, actions, hints = proposals.turns[row], proposals.actions[row], proposals.hints[row]
    values, first = chain.values, event // stride
    settled = _last_change(chain.event_of_turn, turns) // stride + proposals.patience[0]
    margin = proposals.margin[0]
    _swap(tables, chain.wishes, turns, actions, hints, True)
    agreed = _load(bank, first, state, agreed)
    latency = _replay(
        tables, state, bank, stride, first, settled, margin, chain.wishes, chain.trial
    )
    if latency > values[0] + proposals.thresholds[row]:
        _swap(tables, chain.wishes, turns, actions, hints, False)
        return agreed
    if latency == values[0] and not _moves(tables, turns, hints):
        turn = int(np.searchsorted(chain.event_of_turn, first * stride))
        if _is_same(chain.trial, chain.taken, turn):
            return agreed
    values[0] = record(tables, state, bank, stride, first, agreed, chain.wishes, chain.taken)
    if latency < values[1]:
        values[1] = latency
        for each in range(chain.wishes.size):
            chain.best_wishes[each] = chain.wishes[each]
            chain.best_hints[each] = tables.hints[each]
    return int(state.counters[CNT_ENDED])
