"""The rules of mallocGame in pure JAX: from one decision to the next.

Source: docs/game.md. A game is a list of items that is the same in every play of a program
(`malloc_game.turn_table`); `advance` plays the item at hand with the action given and then item
after item until one asks for a decision. All lanes of a batch go through the items in step; lanes
that wait for a decision change nothing, by writing outside of their arrays: selecting between old
and new arrays would cost more than the game itself. That is why `advance` brings its own rule for
`jax.vmap`.

Three data structures keep a turn cheap. Idle time is a stack of running sums: prefetches take
the latest first, so they only ever cut its top, and a window is a binary search. Addresses
are a sorted list of segments that know since when they are free: no reservation begins after
the present, so that is all a place must know. The eviction queue is the running sum of ticks
queued, against which the ticks served are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from malloc_game.state import (
    LIVE,
    NOBODY,
    SEARCH_CHUNK,
    SEGMENT_CHUNK,
    Action,
    Holding,
    Plan,
    ProgramArrays,
    State,
)
from malloc_game.turn_table import IDLE_LIMIT_TICKS, NEVER, NUM_COLUMNS, Column, Flush, ItemKind

Tree = TypeVar("Tree")

NARROWING = 32
"""One in so many lanes of a batch fits the narrow batch in which the last busy ones play on."""

WIDE = 8
"""Batches of fewer lanes stay together."""

PATIENCE = 4
"""Items that all lanes of a batch play side by side before they part."""

LONG_GAME_ITEMS = 1536
"""Shorter games do without: their runs are not long enough to be worth compiling two batches."""

SEARCH_WAYS = 8
"""Parts into which a round of a search splits its range: few rounds compile and run faster."""


class _Outcome(NamedTuple):
    """What a turn did, all `[]`: the buffer's new row and what follows for the other arrays.

    `brings`, `leaves`, `queues`: a residency begins, its end is decided, an eviction is queued.
    `fast`: the access is. `touches`: the segment at the buffer's offset gets `code`.
    """

    row: jax.Array
    came_up: jax.Array
    action: jax.Array
    brings: jax.Array
    leaves: jax.Array
    queues: jax.Array
    fast: jax.Array
    touches: jax.Array
    code: jax.Array
    birth: jax.Array


class _Clock(NamedTuple):
    """Time after an item, all `[]`: ticks served, the queue's head, idle left, ticks waited."""

    served_ticks: jax.Array
    head: jax.Array
    idle_ticks: jax.Array
    stall_ticks: jax.Array


class _SegmentChange(NamedTuple):
    """What an item does to the segments, all `[]`.

    The segment `first` gets `code` if it is touched. If a buffer comes, it ends at `end`: behind
    it a segment is inserted, or those after `first` up to `last` are emptied. What waits for
    copies that items before `waited_head` queued is free from `position`, for others that items
    before `head` queued from `done_at`. `any`: something changes at all.
    """

    first: jax.Array
    last: jax.Array
    end: jax.Array
    inserts: jax.Array
    touches: jax.Array
    code: jax.Array
    waited_head: jax.Array
    position: jax.Array
    head: jax.Array
    done_at: jax.Array
    any: jax.Array


class _Question(NamedTuple):
    """The item at hand before places are known, all `[]` (`hand` is the buffer's row).

    `copy_ticks`: of its copy, 0 if it is not copied. `longest_wait`: the program may wait for
    fewer ticks than that.
    """

    hand: jax.Array
    comes_up: jax.Array
    resident: jax.Array
    wants_place: jax.Array
    window: _Window
    copy_ticks: jax.Array
    longest_wait: jax.Array
    position: jax.Array
    size_units: jax.Array


class _Window(NamedTuple):
    """When a copy would be served, all `[]`: from `start`, reserving the top of the idle stack.

    That is `hidden_ticks` down to the entry `stack_index`; the rest is a stall.
    """

    start: jax.Array
    stack_index: jax.Array
    hidden_ticks: jax.Array


class _Places(NamedTuple):
    """Best-fit offsets, all `[]`; NOBODY if there is none.

    Early: free from the start of the window. Patient: free once what waits in the queue since
    before the step is done. `widest_gap`: the widest of the gaps in which the patient look.
    """

    early_offset: jax.Array
    patient_offset: jax.Array
    widest_gap: jax.Array


class _SecondChoice(NamedTuple):
    """How a buffer may come that has no early place, all `[]`.

    `late_offset`: best fit in what is free now, or NOBODY; `window`: what is left of the window
    since that place is free. `last_item`: the patient place is free once what items up to this
    one have queued is done.
    """

    late_offset: jax.Array
    window: _Window
    last_item: jax.Array


# --- one item ------------------------------------------------------------------------------------


def _item_at(
    arrays: ProgramArrays, row: jax.Array, cursor: jax.Array, active: jax.Array
) -> jax.Array:
    """The item of the program in `row`; where not active, item 0, which does nothing."""
    return arrays.items[row, jnp.where(active & (cursor < arrays.num_items[row]), cursor, 0)]


def _is(item: jax.Array, *kinds: ItemKind) -> jax.Array:
    found = item[Column.KIND] == kinds[0]
    for kind in kinds[1:]:
        found |= item[Column.KIND] == kind
    return found


def _process(
    arrays: ProgramArrays, row: jax.Array, state: State, action: jax.Array, active: jax.Array
) -> tuple[State, _SegmentChange, jax.Array]:
    """Plays the item at hand; the state but for its segments, what changes there, the reward."""
    item = _item_at(arrays, row, state.cursor, active)
    weights = arrays.weights[row, jnp.where(active, state.cursor, 0)]
    out = _take_turn(state, item, action)
    before = _elapsed(item, state.fast_lanes, state.fast_bus)
    num_lanes = arrays.bucket.num_lanes
    fast_lanes = state.fast_lanes + out.fast * item[NUM_COLUMNS : NUM_COLUMNS + num_lanes]
    fast_bus = state.fast_bus + out.fast * item[Column.BUS]
    elapsed = _elapsed(item, fast_lanes, fast_bus)
    saved = jnp.where(out.fast, before - elapsed, 0)
    queued_ticks = state.queued_ticks + out.queues * item[Column.COPY_TICKS]
    here = jnp.where(active, state.cursor, arrays.bucket.num_items)
    state = dataclasses.replace(
        state,
        queued_ticks=queued_ticks,
        queued_log=state.queued_log.at[here].set(queued_ticks, mode="drop"),
    )
    idle = elapsed - (item[Column.SLOW_BUS] - fast_bus)
    state, waited_ticks = _wait(state, item, out)
    clock = _pass_time(state, item, idle)
    stall_share = (clock.stall_ticks + waited_ticks) * weights[1]
    state = _write_logs(state, item, out, here, clock.head)
    state = _update_idle(state, item, out, clock.idle_ticks)
    change = _segment_change(state, item, out, clock.head)
    ends_step = item[Column.ENDS_STEP] > 0
    waits = active & ~ends_step & _is(item, ItemKind.ACCESS)
    state = dataclasses.replace(
        state,
        cursor=state.cursor + active,
        served_ticks=clock.served_ticks,
        head=clock.head,
        eligible_item=jnp.where(active & ~waits, state.cursor + 1, state.eligible_item),
        eligible_ticks=jnp.where(active & ~waits, queued_ticks, state.eligible_ticks),
        used_waiting=~ends_step & (state.used_waiting | _uses_waiting(state, item, out)),
        fast_bus=jnp.where(ends_step, 0, fast_bus),
        fast_lanes=jnp.where(ends_step, 0, fast_lanes),
        num_carried=state.num_carried + (out.brings & _is(item, ItemKind.CARRIED)),
        widest_gap=jnp.where(out.leaves, NEVER, state.widest_gap),
        freed_at=jnp.where(out.leaves, item[Column.DONE_AT], state.freed_at),
        stall_share=state.stall_share + stall_share,
    )
    return state, change, saved * weights[0] - stall_share


def _is_copied(item: jax.Array) -> jax.Array:
    """Whether the turn's buffer, if it comes, is copied there: not produced, nor carried over."""
    return item[Column.COPIED] > 0


def _wait(state: State, item: jax.Array, out: _Outcome) -> tuple[State, jax.Array]:
    """What the program waits for so that the buffer can come; with the ticks `[]` it takes.

    First evictions that hold its place, then what of its copy no idle time serves.
    """
    plan = jnp.where(out.brings, state.plan, 0)
    ticks = jnp.where(out.brings, stall_ticks(state, item), 0)
    state = dataclasses.replace(
        state,
        served_ticks=state.served_ticks + plan[Plan.EVICTION_TICKS],
        head=jnp.maximum(state.head, plan[Plan.HEAD]),
    )
    return state, ticks


def _uses_waiting(state: State, item: jax.Array, out: _Outcome) -> jax.Array:
    """Whether the access used a buffer that waits for what was queued before the step."""
    waits = out.leaves & (out.code < 0) & (-1 - out.code < state.eligible_item)
    return waits & _is(item, ItemKind.ACCESS)


def stall_ticks(state: State, item: jax.Array) -> jax.Array:
    """What the program waits for if the buffer of `item`, the turn at hand, comes as planned."""
    copy_ticks = jnp.where(_is_copied(item), item[Column.COPY_TICKS], 0)
    return state.plan[Plan.EVICTION_TICKS] + copy_ticks - state.plan[Plan.RESERVED_TICKS]


def saving_ticks(state: State, item: jax.Array) -> jax.Array:
    """What the step at hand saves by the access of `item`, given what is fast already."""
    num_lanes = state.fast_lanes.shape[0]
    fast_lanes = state.fast_lanes + item[NUM_COLUMNS : NUM_COLUMNS + num_lanes]
    fast_bus = state.fast_bus + item[Column.BUS]
    before = _elapsed(item, state.fast_lanes, state.fast_bus)
    return before - _elapsed(item, fast_lanes, fast_bus)


def _elapsed(item: jax.Array, fast_lanes: jax.Array, fast_bus: jax.Array) -> jax.Array:
    """Ticks of the item's step when accesses of these lane and bus ticks are fast."""
    slow = item[NUM_COLUMNS + 2 * fast_lanes.shape[0] :]
    return jnp.maximum(jnp.max(slow - fast_lanes), item[Column.SLOW_BUS] - fast_bus)


def _take_turn(state: State, item: jax.Array, action: jax.Array) -> _Outcome:
    """The turn of `item` (none: nothing happens) with `action`, Drop if that is not legal."""
    hand = state.hand
    held = state.cursor < hand[Holding.HELD_UNTIL]
    came_up = (item[Column.KIND] != ItemKind.NONE) & ~held
    action = jnp.where(jnp.any(state.legal & (jnp.arange(3) == action)), action, Action.DROP)
    resident = hand[Holding.BIRTH] != NOBODY
    brings = came_up & ~resident & (action != Action.DROP)
    there = came_up & (resident | brings)
    keeps = there & (action == Action.KEEP)
    leaves = there & (action != Action.KEEP)
    access = _is(item, ItemKind.ACCESS)
    fast = access & (resident | brings)
    writes = access & (item[Column.WRITES] > 0)
    good = jnp.where(fast & writes, NOBODY, hand[Holding.GOOD_COPY])
    stale = (hand[Holding.STALE] > 0) | (fast & writes)
    queues = leaves & stale & (item[Column.NEEDED] > 0) & (good < state.head)
    good = jnp.where(queues, state.cursor, good)
    last = jnp.where(queues, state.cursor, hand[Holding.LAST_COPY])
    waits = leaves & (last >= state.head)
    gone = leaves & ~waits
    birth = jnp.where(brings, state.cursor, hand[Holding.BIRTH])
    after = item[Column.AFTER]
    row = [jnp.int32(0)] * len(Holding)
    row[Holding.BIRTH] = jnp.where(gone, NOBODY, birth)
    row[Holding.OFFSET] = jnp.where(brings, state.plan[Plan.OFFSET], hand[Holding.OFFSET])
    row[Holding.STALE] = (stale & ~gone).astype(jnp.int32)
    row[Holding.LEAVING] = jnp.where(keeps, 0, jnp.where(leaves, waits, hand[Holding.LEAVING]))
    row[Holding.GOOD_COPY] = good
    row[Holding.LAST_COPY] = last
    freed = gone | (writes & ~fast)
    row[Holding.EARLIEST] = jnp.where(freed, after, hand[Holding.EARLIEST])
    holds = keeps & _is(item, ItemKind.ENTRY, ItemKind.CARRIED)
    row[Holding.HELD_UNTIL] = jnp.where(holds, item[Column.EXIT_ITEM], hand[Holding.HELD_UNTIL])
    code = jnp.where(keeps, LIVE + item[Column.UNTIL], jnp.where(waits, -1 - last, after))
    return _Outcome(
        jnp.stack(row), came_up, action, brings, leaves, queues, fast, there, code, birth
    )


def _pass_time(state: State, item: jax.Array, idle: jax.Array) -> _Clock:
    """The end of a step serves the queue; a flush waits for it."""
    ends_step = item[Column.ENDS_STEP] > 0
    backlog = state.eligible_ticks - state.served_ticks
    now_served = jnp.where(ends_step, jnp.minimum(idle, backlog), 0)
    served = state.served_ticks + now_served
    low = jnp.maximum(state.head - 1, 0)
    last_done = last_at_most(state.queued_log, served, low, state.eligible_item - 1)
    head = jnp.where(ends_step, jnp.maximum(state.head, last_done + 1), state.head)
    flushes = item[Column.FLUSH] != Flush.NONE
    stall = jnp.where(flushes, state.queued_ticks - served, 0)
    return _Clock(
        served_ticks=served + stall,
        head=jnp.where(flushes, state.cursor + 1, head),
        idle_ticks=jnp.where(ends_step, idle - now_served, 0),
        stall_ticks=stall,
    )


def last_at_most(values: jax.Array, limit: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The largest index in `[low, high]` whose value is at most `limit`; `low` if none is.

    `values` `[n]` ascends between `low` and `high`.
    """

    found, stride = low, 1
    while stride * SEARCH_WAYS < values.shape[0]:
        stride *= SEARCH_WAYS
    while stride > 0:
        candidates = found + stride * jnp.arange(1, SEARCH_WAYS)
        fits = (candidates <= high) & (values[jnp.clip(candidates, 0, high)] <= limit)
        found += stride * jnp.sum(fits, dtype=jnp.int32)
        stride //= SEARCH_WAYS
    return found


def _write_logs(
    state: State, item: jax.Array, out: _Outcome, here: jax.Array, head: jax.Array
) -> State:
    """Writes the buffer's row and what the finished map is made of; nowhere if not active."""
    nowhere = state.actions.shape[0]
    born = jnp.where(out.brings, here, nowhere)
    left = jnp.where(out.leaves, out.birth, nowhere)
    turns = item[Column.KIND] != ItemKind.NONE
    buffer = jnp.where(turns, item[Column.BUFFER], state.buffers.shape[0])
    last = out.row[Holding.LAST_COPY]
    birth = jnp.stack([out.row[Holding.OFFSET], state.plan[Plan.START]])
    leave = jnp.stack([state.cursor, jnp.where(last >= state.head, last, NOBODY)])
    played = jnp.where(out.came_up, out.action + 4 * out.queues, NOBODY)
    return dataclasses.replace(
        state,
        buffers=state.buffers.at[buffer].set(out.row, mode="drop"),
        head_log=state.head_log.at[here].set(head, mode="drop"),
        waited_log=state.waited_log.at[here].set(state.head, mode="drop"),
        births=state.births.at[born].set(birth, mode="drop"),
        leaves=state.leaves.at[left].set(leave, mode="drop"),
        actions=state.actions.at[here].set(played, mode="drop"),
    )


def _update_idle(state: State, item: jax.Array, out: _Outcome, idle: jax.Array) -> State:
    """Reserves a prefetch's ticks, adds the step's, turns a finished trip's into an offer."""
    nowhere = state.idle_sum.shape[0]
    top = jnp.where(out.brings, state.plan[Plan.STACK_INDEX], state.idle_top)
    total = state.idle_sum[state.idle_top]
    total -= jnp.where(out.brings, state.plan[Plan.RESERVED_TICKS], 0)
    sums = state.idle_sum.at[jnp.where(out.brings, top, nowhere)].set(total, mode="drop")
    flush = item[Column.FLUSH]
    trip_ends, enters = flush == Flush.TRIP_END, flush == Flush.LOOP_ENTRY
    pushes = (item[Column.ENDS_STEP] > 0) | trip_ends
    total += idle
    base = state.frame_base[state.depth]
    # What is reserved now stays so for the frame around a loop that this item enters.
    below, floor = sums[base], jnp.minimum(state.frame_floor[state.depth], top)
    floors = state.frame_floor.at[state.depth].set(floor)
    offer = _offer(item, total - below)
    limit = item[Column.OFFER_LIMIT]
    exact = (item[Column.OFFER_SLACK] == 0) & (floor == base) & (offer < limit)
    around = state.frame_floor[jnp.maximum(state.depth - 1, 0)]
    floor = jnp.where(trip_ends, around, floor)
    top = jnp.where(trip_ends, base, top) + pushes
    floor = jnp.where(enters | (trip_ends & ~exact), top, floor)
    total = jnp.where(trip_ends, below + jnp.minimum(offer, limit), total)
    position = jnp.where(trip_ends, item[Column.OFFER_START], item[Column.POSITION])
    pushed = jnp.where(pushes, top, nowhere)
    depth = state.depth + enters - trip_ends
    opened = jnp.where(enters, depth, state.frame_base.shape[0])
    return dataclasses.replace(
        state,
        idle_sum=sums.at[pushed].set(total, mode="drop"),
        idle_position=state.idle_position.at[pushed].set(position, mode="drop"),
        idle_top=top,
        depth=depth,
        frame_base=state.frame_base.at[opened].set(top, mode="drop"),
        frame_floor=floors.at[depth].set(floor),
    )


def _offer(item: jax.Array, left: jax.Array) -> jax.Array:
    """What a finished trip that has `left` ticks left offers (docs/game.md, idle time of loops).

    Still to be held to `OFFER_LIMIT`.
    """
    numerator = jnp.maximum(item[Column.OFFER_NUMERATOR], 1)
    denominator = jnp.maximum(item[Column.OFFER_DENOMINATOR], 1)
    whole, rest = left // denominator, left % denominator
    most = jnp.minimum(whole, IDLE_LIMIT_TICKS // numerator + 1)
    # Past the limit the product is cut off, so an overflow of the sum cannot happen.
    scaled = jnp.where(
        whole > IDLE_LIMIT_TICKS // numerator,
        IDLE_LIMIT_TICKS,
        jnp.minimum(most * numerator, IDLE_LIMIT_TICKS) + rest * numerator // denominator,
    )
    scaled = jnp.where(item[Column.OFFER_NUMERATOR] > 0, scaled, 0)
    return jnp.maximum(jnp.minimum(scaled, IDLE_LIMIT_TICKS) - item[Column.OFFER_SLACK], 0)


def _segment_change(
    state: State, item: jax.Array, out: _Outcome, head: jax.Array
) -> _SegmentChange:
    """What an item does to the segments; they themselves are changed for all lanes at once."""
    start, newest = state.segment_start, state.num_segments - 1
    offset = out.row[Holding.OFFSET]
    end = offset + item[Column.SIZE_UNITS]
    first = last_at_most(start, offset, jnp.int32(0), newest)
    last = last_at_most(start, end - 1, jnp.int32(0), newest)
    inserts = out.brings & (first == last) & (start[first + 1] > end)
    return _SegmentChange(
        first=first,
        last=jnp.where(out.brings, last, first),
        end=end,
        inserts=inserts,
        touches=out.touches,
        code=out.code,
        waited_head=state.head,
        position=item[Column.POSITION],
        head=head,
        done_at=item[Column.DONE_AT],
        any=out.touches | (head > state.head),
    )


def _update_segments(state: State, change: _SegmentChange, num_segments: jax.Array) -> State:
    """Cuts segments out for buffers that come, and notes since when others are free.

    Goes through the first `num_segments` `[]` segments of all lanes `[B]`, a chunk at a time and
    from the end, so that what moves up by one is read before it is overwritten.
    """
    most = state.segment_code.shape[1]
    chunks = (jnp.minimum(num_segments, most) + SEGMENT_CHUNK - 1) // SEGMENT_CHUNK

    def chunk(
        round_: jax.Array, segments: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        at = (chunks - 1 - round_) * SEGMENT_CHUNK
        index = at + jnp.arange(SEGMENT_CHUNK)
        start, below = _chunk_and_below(segments[0], at)
        code, code_below = _chunk_and_below(segments[1], at)
        start, code = jax.vmap(_changed_chunk, in_axes=(0, None, 0, 0, 0, 0))(
            change, index, start, below, code, code_below
        )
        put = jax.lax.dynamic_update_slice
        return put(segments[0], start, (0, at)), put(segments[1], code, (0, at))

    start, code = jax.lax.fori_loop(0, chunks, chunk, (state.segment_start, state.segment_code))
    return dataclasses.replace(
        state,
        segment_start=start,
        segment_code=code,
        num_segments=state.num_segments + change.inserts,
    )


def _chunk_and_below(values: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Columns `[at, at + SEGMENT_CHUNK)` of `values`, and the same moved down by one."""
    size = (values.shape[0], SEGMENT_CHUNK)
    chunk = jax.lax.dynamic_slice(values, (0, at), size)
    before = jax.lax.dynamic_slice(values, (0, jnp.maximum(at - 1, 0)), (values.shape[0], 1))
    return chunk, jnp.concatenate([before, chunk[:, :-1]], axis=1)


def _changed_chunk(
    change: _SegmentChange,
    index: jax.Array,
    start: jax.Array,
    below: jax.Array,
    code: jax.Array,
    code_below: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One lane's segments of these indices after the change; covered ones are left empty."""
    later = index > change.first
    covered = later & (index <= change.last)
    moved = change.inserts & later
    new_start = jnp.where(index == change.first + 1, change.end, below)
    start = jnp.where(moved, new_start, jnp.where(covered, change.end, start))
    code = jnp.where(moved, code_below, code)
    code = jnp.where(change.touches & (index == change.first), change.code, code)
    finished = (code < 0) & (-1 - code < change.head)
    done_at = jnp.where(-1 - code < change.waited_head, change.position, change.done_at)
    return start, jnp.where(finished, done_at, code)


# --- what comes next -----------------------------------------------------------------------------


def _ask(arrays: ProgramArrays, row: jax.Array, state: State) -> _Question:
    """All about the item at hand but the places."""
    item = _item_at(arrays, row, state.cursor, jnp.bool_(True))
    hand = _refresh(arrays, row, state, state.buffers[item[Column.BUFFER]])
    held = state.cursor < hand[Holding.HELD_UNTIL]
    comes_up = (item[Column.KIND] != ItemKind.NONE) & ~held
    resident = hand[Holding.BIRTH] != NOBODY
    window = _window_of(state, item, hand[Holding.EARLIEST])
    copy_ticks = jnp.where(_is_copied(item), item[Column.COPY_TICKS], 0)
    access = _is(item, ItemKind.ACCESS)
    longest_wait = jnp.where(access, jnp.maximum(saving_ticks(state, item), 1), NEVER)
    room = state.num_carried < arrays.max_carried[row]
    feasible = access | (_is(item, ItemKind.ENTRY) & (item[Column.NEEDED] > 0))
    feasible |= _is(item, ItemKind.CARRIED) & room
    feasible &= copy_ticks - window.hidden_ticks < longest_wait
    fits = item[Column.SIZE_UNITS] <= state.widest_gap
    return _Question(
        hand=hand,
        comes_up=comes_up,
        resident=resident,
        wants_place=comes_up & ~resident & feasible & fits,
        window=window,
        copy_ticks=copy_ticks,
        longest_wait=longest_wait,
        position=item[Column.POSITION],
        size_units=item[Column.SIZE_UNITS],
    )


def _window_of(state: State, item: jax.Array, earliest: jax.Array) -> _Window:
    """The latest window that carries the whole copy, else all that idle time may do for it."""
    left = state.idle_sum[state.idle_top] - item[Column.COPY_TICKS]
    low = _last_before(state, earliest)
    whole = left >= state.idle_sum[low]
    low = jnp.where(whole, low, jnp.maximum(low, state.frame_floor[state.depth]))
    below = jnp.where(whole, left, state.idle_sum[low])
    hides = _is_copied(item) & (whole | ~_evicts_in_part(state))
    return _window_above(state, item, low, below, hides)


def _later_window(state: State, item: jax.Array, earliest: jax.Array) -> _Window:
    """All that idle time from `earliest` on may do for the copy."""
    low = jnp.maximum(_last_before(state, earliest), state.frame_floor[state.depth])
    hides = _is_copied(item) & ~_evicts_in_part(state)
    return _window_above(state, item, low, state.idle_sum[low], hides)


def _last_before(state: State, position: jax.Array) -> jax.Array:
    """Index of the open frame's last idle time before `position`, or below its first."""
    base = state.frame_base[state.depth]
    return last_at_most(state.idle_position, position - 1, base, state.idle_top)


def _window_above(
    state: State, item: jax.Array, low: jax.Array, below: jax.Array, hides: jax.Array
) -> _Window:
    """The window of all idle time but the first `below` ticks of the running sum, if it `hides`.

    The entry `low` of the stack has no more than those ticks.
    """
    top = state.idle_top
    hidden = jnp.where(hides, state.idle_sum[top] - below, 0)
    first = 1 + last_at_most(state.idle_sum, below, low, top - 1)
    return _Window(
        start=jnp.where(hidden > 0, state.idle_position[first], item[Column.POSITION]),
        stack_index=jnp.where(hidden > 0, first, top),
        hidden_ticks=hidden,
    )


def _evicts_in_part(state: State) -> jax.Array:
    """Whether an eviction has been served in part."""
    done_ticks = state.queued_log[jnp.maximum(state.head - 1, 0)]
    return state.served_ticks > jnp.where(state.head > 0, done_ticks, 0)


def _refresh(arrays: ProgramArrays, row: jax.Array, state: State, hand: jax.Array) -> jax.Array:
    """The buffer's row with what copies completed since its last turn have changed."""
    good, last = hand[Holding.GOOD_COPY], hand[Holding.LAST_COPY]
    current = (good != NOBODY) & (good < state.head)
    gone = (hand[Holding.LEAVING] > 0) & (last < state.head)
    finished_in = 1 + last_at_most(
        state.head_log, last, jnp.maximum(last - 1, 0), jnp.maximum(state.cursor - 1, 0)
    )
    latest = jnp.minimum(finished_in, arrays.bucket.num_items - 1)
    waited = state.waited_log[latest] > last
    done = arrays.items[row, latest, jnp.where(waited, Column.POSITION, Column.DONE_AT)]
    hand = hand.at[Holding.STALE].set(jnp.where(current | gone, 0, hand[Holding.STALE]))
    hand = hand.at[Holding.GOOD_COPY].set(jnp.where(current, NOBODY, good))
    hand = hand.at[Holding.LEAVING].set(jnp.where(gone, 0, hand[Holding.LEAVING]))
    hand = hand.at[Holding.BIRTH].set(jnp.where(gone, NOBODY, hand[Holding.BIRTH]))
    return hand.at[Holding.EARLIEST].set(jnp.where(gone, done, hand[Holding.EARLIEST]))


def _answer(
    arrays: ProgramArrays,
    row: jax.Array,
    state: State,
    question: _Question,
    places: _Places,
    second: _SecondChoice,
    active: jax.Array,
) -> tuple[State, jax.Array]:
    """The legal actions and the plan; whether this is a decision."""
    item = _item_at(arrays, row, state.cursor, jnp.bool_(True))
    plan, brings = _plan(state, question, places, second)
    knows_gaps = active & question.wants_place & (question.position >= state.freed_at)
    stays = question.resident & (item[Column.HAS_NEXT] > 0)
    keep = question.comes_up & (stays | (brings & (item[Column.HAS_NEXT] > 0)))
    copy = brings & _is(item, ItemKind.ACCESS)
    decision = active & (keep | copy)
    legal = jnp.stack([jnp.bool_(True), copy, keep])
    state = dataclasses.replace(
        state,
        legal=jnp.where(active, legal, state.legal),
        plan=jnp.where(active, plan * brings, state.plan),
        hand=jnp.where(active, question.hand, state.hand),
        num_decisions=state.num_decisions + decision,
        widest_gap=jnp.where(knows_gaps, places.widest_gap, state.widest_gap),
    )
    return state, decision


def _plan(
    state: State, question: _Question, places: _Places, second: _SecondChoice
) -> tuple[jax.Array, jax.Array]:
    """How the buffer at hand would come, `[len(Plan)]`, and whether it can.

    By its window, by what is left of that since a place is free, or after evictions.
    """
    early, late = places.early_offset != NOBODY, second.late_offset != NOBODY
    late_is_legal = question.copy_ticks - second.window.hidden_ticks < question.longest_wait
    evictions = state.queued_log[jnp.maximum(second.last_item, 0)] - state.served_ticks
    patient = ~early & ~late & (places.patient_offset != NOBODY) & ~state.used_waiting
    patient &= evictions < question.longest_wait - question.copy_ticks
    brings = question.wants_place & (early | (late & late_is_legal) | patient)
    nothing = _Window(question.position, state.idle_top, jnp.int32(0))
    window = _map(
        lambda *ways: _first_of(early, late, *ways), question.window, second.window, nothing
    )
    columns = [jnp.int32(0)] * len(Plan)
    columns[Plan.START] = window.start
    columns[Plan.OFFSET] = _first_of(
        early, late, places.early_offset, second.late_offset, places.patient_offset
    )
    columns[Plan.STACK_INDEX] = window.stack_index
    columns[Plan.RESERVED_TICKS] = window.hidden_ticks
    columns[Plan.HEAD] = jnp.where(patient, second.last_item + 1, 0)
    columns[Plan.EVICTION_TICKS] = jnp.where(patient, evictions, 0)
    return jnp.stack(columns), brings


def _first_of(
    early: jax.Array, late: jax.Array, one: jax.Array, other: jax.Array, last: jax.Array
) -> jax.Array:
    return jnp.where(early, one, jnp.where(late, other, last))


def _find_places(
    state: State, question: _Question, capacity: jax.Array, num_segments: jax.Array
) -> _Places:
    """Where the buffers at hand fit best."""

    def early(code: jax.Array) -> jax.Array:
        return (code < 0) | (code > question.window.start)

    def patient(code: jax.Array) -> jax.Array:
        return jnp.where(code < 0, -1 - code >= state.eligible_item, code > question.position)

    size = question.size_units
    first, last = _best_fits(state, size, capacity, num_segments, (early, patient))
    return _Places(first.offset, last.offset, last.widest)


def _best_fits(
    state: State,
    size: jax.Array,
    capacity: jax.Array,
    num_segments: jax.Array,
    rules: Sequence[Callable[[jax.Array], jax.Array]],
) -> list[_Search]:
    """The best fits for `size` `[B]` units under rules that tell from a code what is taken.

    Goes through the first `num_segments` `[]` segments of all lanes, a chunk at a time.
    """

    def fit(search: _Search, low: jax.Array, high: jax.Array, blocked: jax.Array) -> _Search:
        gap = low - search.free_from
        better = blocked & (gap >= size) & (gap < search.gap)
        return _Search(
            jnp.where(blocked, high, search.free_from),
            jnp.where(better, gap, search.gap),
            jnp.where(better, search.free_from, search.offset),
            jnp.where(blocked, jnp.maximum(gap, search.widest), search.widest),
        )

    def chunk(index: jax.Array, searches: list[_Search]) -> list[_Search]:
        starts, codes = _search_chunk(state, index)
        for i in range(SEARCH_CHUNK):
            low, high, code = starts[:, i], starts[:, i + 1], codes[:, i]
            solid = high > low
            pairs = zip(searches, rules, strict=True)
            searches = [fit(search, low, high, solid & rule(code)) for search, rule in pairs]
        return searches

    nothing = jnp.zeros_like(size)
    search = _Search(nothing, nothing + NEVER, nothing + NOBODY, nothing)
    searches = jax.lax.fori_loop(0, _num_chunks(num_segments), chunk, [search] * len(rules))
    return [fit(search, capacity, capacity, nothing == 0) for search in searches]


def _search_chunk(state: State, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The starts of `SEARCH_CHUNK` segments of all lanes and of the next one, and their codes."""
    lanes = state.segment_code.shape[0]
    corner = (0, index * SEARCH_CHUNK)
    starts = jax.lax.dynamic_slice(state.segment_start, corner, (lanes, SEARCH_CHUNK + 1))
    return starts, jax.lax.dynamic_slice(state.segment_code, corner, (lanes, SEARCH_CHUNK))


class _Search(NamedTuple):
    """A search for the best fit, `[B]` each: where the gap at hand begins, the best so far.

    `widest`: the widest gap so far.
    """

    free_from: jax.Array
    gap: jax.Array
    offset: jax.Array
    widest: jax.Array


def _choose_again(
    arrays: ProgramArrays,
    rows: jax.Array,
    state: State,
    question: _Question,
    places: _Places,
    hopes: jax.Array,
) -> _SecondChoice:
    """What the lanes need that have no early place; of use to those that have `hopes` `[B]`."""

    def late(code: jax.Array) -> jax.Array:
        return (code < 0) | (code > question.position)

    size, capacity = question.size_units, arrays.capacity_units[rows]
    num_segments = jnp.max(jnp.where(hopes, state.num_segments, 0))
    (search,) = _best_fits(state, size, capacity, num_segments, (late,))
    # The search ends before the last segments of lanes that hope for nothing.
    late_offset = jnp.where(hopes, search.offset, NOBODY)
    is_late = late_offset != NOBODY
    offset = jnp.where(is_late, late_offset, places.patient_offset)
    latest = _latest_key(state, offset, size, is_late, num_segments)
    items = arrays.items[rows, state.cursor]
    earliest = jnp.maximum(latest, question.hand[:, Holding.EARLIEST])
    window = jax.vmap(_later_window)(state, items, earliest)
    return _SecondChoice(late_offset, window, latest)


def _latest_key(
    state: State, offset: jax.Array, size: jax.Array, is_late: jax.Array, num_segments: jax.Array
) -> jax.Array:
    """Since when `size` units at `offset` are free, all `[B]`.

    For places that are not late the last item that queued what holds them, or NOBODY. Goes
    through the segments like `_best_fits`.
    """

    def chunk(index: jax.Array, latest: jax.Array) -> jax.Array:
        starts, codes = _search_chunk(state, index)
        start, end = starts[:, :-1], starts[:, 1:]
        there = (start < end) & (start < (offset + size)[:, None]) & (end > offset[:, None])
        keys = jnp.where(is_late[:, None], codes, -1 - codes)
        return jnp.maximum(latest, jnp.max(jnp.where(there, keys, NOBODY), axis=1))

    nobody = jnp.full_like(offset, NOBODY)
    latest: jax.Array = jax.lax.fori_loop(0, _num_chunks(num_segments), chunk, nobody)
    return latest


def _num_chunks(num_segments: jax.Array) -> jax.Array:
    return (num_segments + SEARCH_CHUNK - 1) // SEARCH_CHUNK


# --- from decision to decision -------------------------------------------------------------------


class _Lanes(NamedTuple):
    """Games on their way to the next decision, `[B]` each; `rows` is each one's program.

    `action` is what the item at hand is played with, `reward` what was gained on the way.
    """

    rows: jax.Array
    state: State
    action: jax.Array
    reward: jax.Array
    active: jax.Array


def _play_item(arrays: ProgramArrays, lanes: _Lanes) -> _Lanes:
    """One item in each active lane. `arrays` `[P, ...]` are the programs."""
    one_program = (None, 0)
    process = jax.vmap(_process, in_axes=(*one_program, 0, 0, 0))
    ask = jax.vmap(_ask, in_axes=(*one_program, 0))
    answer = jax.vmap(_answer, in_axes=(*one_program, 0, 0, 0, 0, 0))
    rows, active = lanes.rows, lanes.active
    state, change, gained = process(arrays, rows, lanes.state, lanes.action, active)
    touched = jnp.max(jnp.where(active & change.any, state.num_segments + 1, 0))
    state = _update_segments(state, change, touched)
    question = ask(arrays, rows, state)
    wanting = active & question.wants_place
    num_segments = jnp.max(jnp.where(wanting, state.num_segments, 0))
    capacity = arrays.capacity_units[rows]
    places = _find_places(state, question, capacity, num_segments)
    hopes = wanting & (places.early_offset == NOBODY) & (places.patient_offset != NOBODY)
    second = jax.lax.cond(
        jnp.any(hopes),
        lambda: _choose_again(arrays, rows, state, question, places, hopes),
        # Where nobody hopes, there is an early place or none at all.
        lambda: _SecondChoice(places.early_offset, question.window, places.early_offset),
    )
    state, decision = answer(arrays, rows, state, question, places, second, active)
    return _Lanes(
        rows=rows,
        state=state,
        action=jnp.zeros_like(lanes.action),
        reward=lanes.reward + gained,
        active=active & ~decision & (state.cursor < arrays.num_items[rows]),
    )


def _play_on(arrays: ProgramArrays, lanes: _Lanes) -> _Lanes:
    """Plays items until no lane is active.

    Runs of items that play themselves differ in length a hundredfold. So that a few long ones do
    not keep all lanes waiting, the last busy lanes are played on in a narrow batch of their own,
    once all have had some items: taking lanes out and putting them back costs as much as those.
    """
    width = lanes.active.shape[0]
    narrows = width >= WIDE and arrays.bucket.num_items >= LONG_GAME_ITEMS
    few = max(1, width // NARROWING) if narrows else 0

    def is_wide(carry: tuple[jax.Array, _Lanes]) -> jax.Array:
        played, lanes = carry
        return jnp.sum(lanes.active) > jnp.where(played < PATIENCE, 0, few)

    def play(carry: tuple[jax.Array, _Lanes]) -> tuple[jax.Array, _Lanes]:
        return carry[0] + 1, _play_item(arrays, carry[1])

    _, lanes = jax.lax.while_loop(is_wide, play, (jnp.int32(0), lanes))
    if few == 0:
        return lanes
    rest: _Lanes = jax.lax.cond(
        jnp.any(lanes.active),
        lambda lanes: _play_few(arrays, lanes, few),
        lambda lanes: lanes,
        lanes,
    )
    return rest


def _play_few(arrays: ProgramArrays, lanes: _Lanes, few: int) -> _Lanes:
    """Plays items until no lane is active, of which there are no more than `few`."""
    width = lanes.active.shape[0]
    busy = jnp.flatnonzero(lanes.active, size=few, fill_value=width)
    narrow = _map(lambda leaf: leaf.at[busy].get(mode="clip"), lanes)
    narrow = _play_on(arrays, narrow._replace(active=busy < width))
    return _map(lambda leaf, part: leaf.at[busy].set(part, mode="drop"), lanes, narrow)


@custom_vmap
def advance(arrays: ProgramArrays, state: State, action: jax.Array) -> tuple[State, jax.Array]:
    """Plays `action` `[]` and everything up to the next decision, or to the end of the game.

    An action that is not legal counts as Drop. After the end nothing changes.

    Returns:
      The new state and the reward `[]` float32: the fall of latency over the all-slow latency.
    """
    rows = jnp.zeros(1, dtype=jnp.int32)
    state, reward = _advance_lanes(_add_axis(arrays), rows, _add_axis(state), action[None])
    first: State = jax.tree.map(lambda leaf: leaf[0], state)
    return first, reward[0]


@advance.def_vmap
def _advance_rule(axis_size, in_batched, arrays, state, action):  # type: ignore[no-untyped-def]
    arrays_batched, state_batched, action_batched = in_batched
    if any(jax.tree.leaves(arrays_batched)):
        arrays = _broadcast(axis_size, arrays_batched, arrays)
    state = _broadcast(axis_size, state_batched, state)
    result = advance_batch(arrays, state, _broadcast(axis_size, action_batched, action))
    return result, jax.tree.map(lambda _: True, result)


def advance_batch(
    arrays: ProgramArrays, state: State, action: jax.Array
) -> tuple[State, jax.Array]:
    """What `jax.vmap(advance)` gives, without tracing the rules for a single game first.

    Args:
      arrays: with a leading axis `[B]`, or without where all games are of one program.
      state: `[B, ...]`.
      action: `[B]`.
    """
    rows = jnp.arange(action.shape[0], dtype=jnp.int32)
    if arrays.items.ndim == 2:
        arrays, rows = _add_axis(arrays), jnp.zeros_like(rows)
    result: tuple[State, jax.Array] = _advance_lanes(arrays, rows, state, action)
    return result


@custom_vmap
def _advance_lanes(
    arrays: ProgramArrays, rows: jax.Array, state: State, action: jax.Array
) -> tuple[State, jax.Array]:
    """`advance` of a batch: state `[B, ...]`, action `[B]`, of programs `rows` `[B]` of `[P]`."""
    lanes = _Lanes(
        rows=rows,
        state=state,
        action=action.astype(jnp.int32),
        reward=jnp.zeros(action.shape, dtype=jnp.float32),
        active=state.cursor < arrays.num_items[rows],
    )
    lanes = _play_on(arrays, lanes)
    return lanes.state, lanes.reward


@_advance_lanes.def_vmap
def _lanes_rule(axis_size, in_batched, arrays, rows, state, action):  # type: ignore[no-untyped-def]
    """Two batch axes become one; programs that do not differ along the new axis stay single."""
    arrays_batched, *batched = in_batched
    operands = (rows, state, action)
    rows, state, action = (
        _broadcast(axis_size, each, operand)
        for each, operand in zip(batched, operands, strict=True)
    )
    if any(jax.tree.leaves(arrays_batched)):
        arrays = _broadcast(axis_size, arrays_batched, arrays)
        rows += arrays.num_items.shape[1] * jnp.arange(axis_size, dtype=jnp.int32)[:, None]
        arrays = _merge_axes(arrays)
    result = _advance_lanes(arrays, _merge_axes(rows), _merge_axes(state), _merge_axes(action))
    return _split_axes(axis_size, result), jax.tree.map(lambda _: True, result)


def _add_axis(tree: Tree) -> Tree:
    return _map(lambda leaf: leaf[None], tree)


def _map(function: Callable[..., jax.Array], tree: Tree, *rest: object) -> Tree:
    mapped: Tree = jax.tree.map(function, tree, *rest)
    return mapped


def _broadcast(axis_size: int, batched: Tree, tree: Tree) -> Tree:
    """Gives the leaves that are not batched a leading axis too."""

    def widen(leaf: jax.Array, has_axis: bool) -> jax.Array:
        return leaf if has_axis else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))

    return _map(widen, tree, batched)


def _merge_axes(tree: Tree) -> Tree:
    return _map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _split_axes(axis_size: int, tree: Tree) -> Tree:
    return _map(lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:]), tree)
