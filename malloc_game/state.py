"""The game's arrays: what a program is (`ProgramArrays`) and where a game stands (`State`).

Both are pytrees of fixed shapes: programs are padded to size buckets, so that a new program
seldom compiles anew. Sizes and addresses count alignment units, times are ticks, all int32
(`malloc_game.turn_table` asserts the ranges). Rules: docs/game.md.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.turn_features import copy_scale_ticks, idle_curve, turn_features
from malloc_game.turn_table import (
    MAX_DEPTH,
    NEVER,
    NUM_COLUMNS,
    Column,
    ItemKind,
    TurnTable,
    turn_table,
)

NUM_ACTIONS = 3

LIVE = 2**30
"""Segment codes from here on: a buffer lies there, up to step `code - LIVE` at least. Smaller
ones: the step from which the addresses are free. Negative, `-1 - item`: a buffer lies there until
the eviction queued in `item` is done."""

NOBODY = -1
"""No item: the buffer is not resident, nothing is queued."""

SEARCH_CHUNK = 16
"""Segments looked at in one round of the search for a place."""

SEGMENT_CHUNK = 32
"""Segments changed in one round; buckets hold whole chunks of both kinds."""


class Action(enum.IntEnum):
    """What a turn decides (docs/game.md)."""

    DROP = 0
    COPY = 1
    KEEP = 2


class Holding(enum.IntEnum):
    """Columns of `State.buffers`.

    BIRTH: item whose turn began the present residency, or NOBODY. OFFSET: where it is.
    STALE: the slow copy is. LEAVING: it goes when its last queued copy is done. GOOD_COPY: item
    that queued a copy which no write has spoiled; LAST_COPY: item that queued the last one.
    EARLIEST: prefetches begin no earlier. HELD_UNTIL: kept around the loop whose exit turn it is.
    """

    BIRTH = 0
    OFFSET = 1
    STALE = 2
    LEAVING = 3
    GOOD_COPY = 4
    LAST_COPY = 5
    EARLIEST = 6
    HELD_UNTIL = 7


class Plan(enum.IntEnum):
    """Columns of `State.plan`: what bringing the buffer at hand would do.

    START, OFFSET: when and where its residency begins. STACK_INDEX, RESERVED_TICKS: the idle
    time that serves its copy is the top of the stack down to that entry. HEAD: the program waits
    until all that items before this one have queued is done; 0 if it does not. EVICTION_TICKS:
    what that takes.
    """

    START = 0
    OFFSET = 1
    STACK_INDEX = 2
    RESERVED_TICKS = 3
    HEAD = 4
    EVICTION_TICKS = 5


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sizes that programs are padded to; equal buckets share compiled code.

    Attributes:
      num_items: items of the game (docs/game.md), at most.
      num_buffers: buffers that take turns, at most.
      num_segments: stretches of addresses told apart: residencies that could begin, plus one.
      num_lanes: lanes of the cost model.
    """

    num_items: int
    num_buffers: int
    num_segments: int
    num_lanes: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ProgramArrays:
    """A program, padded to `bucket`. Of several, stacked, every array has a leading axis.

    Attributes:
      items: `[num_items, columns]` int32, `malloc_game.turn_table.Column`.
      weights: `[num_items, 2]` float32: the share of the all-slow latency that one tick of the
        item's step is, and one of its stalls (its flush, or the rest of its copy).
      features: `[num_items, len(TurnFeature)]` float32: what observations say about each turn
        before the game (`malloc_game.turn_features`).
      idle_curve: `[num_items + 1]` float32: idle time before each step with everything slow,
        over the time that filling fast memory takes.
      copy_scale: `[]` float32: ticks that filling fast memory takes.
      num_steps: `[]` int32.
      capacity_units: `[]` int32.
      num_items: `[]` int32, before padding.
      max_carried: `[]` int32.
      bucket: the padded sizes; not an array.
    """

    items: jax.Array
    weights: jax.Array
    features: jax.Array
    idle_curve: jax.Array
    copy_scale: jax.Array
    num_steps: jax.Array
    capacity_units: jax.Array
    num_items: jax.Array
    max_carried: jax.Array
    bucket: Bucket = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Where one game stands. The names of sizes are `Bucket`'s; all int32 but where said.

    Attributes:
      cursor: `[]` the item at hand: a decision, or `num_items` when the game is over.
      legal: `[3]` bool, which of Drop, Copy, Keep may be played; (True, False, False) at the end.
      plan: `[len(Plan)]`, what Copy or Keep would do now; zeros where the buffer cannot come.
      hand: `[len(Holding)]`, the row of the buffer at hand, up to date.
      buffers: `[num_buffers, len(Holding)]`, rows as of each buffer's last turn.
      segment_start: `[num_segments + 1]` ascending addresses; the last is the capacity.
      segment_code: `[num_segments]`, since when each stretch of addresses is free, see `LIVE`.
      num_segments: `[]` segments in use.
      widest_gap: `[]` no stretch of addresses that is free, or would be if the eviction queue
        were served, is wider; NEVER if that is not known.
      freed_at: `[]` from this position on all that has left by now counts there.
      idle_sum: `[num_items + 1]` running sums of the open frames' unreserved idle ticks.
      idle_position: `[num_items + 1]` steps, or starts of loops, whose idle time it is.
      idle_top: `[]` index of the latest entry; `idle_sum[idle_top]` is all there is.
      frame_base: `[MAX_DEPTH]` per open frame the index below its first entry.
      frame_floor: `[MAX_DEPTH]` per open frame the index of the last entry which the engine may
        have more of than it says, or `frame_base`: windows of copies hidden in part stay above.
      depth: `[]` index of the innermost open frame.
      queued_ticks, served_ticks: `[]` ticks ever put into the eviction queue, and served.
      eligible_ticks, eligible_item: `[]` of these, what was queued before the step at hand.
      head: `[]` everything queued by items before this one is done.
      used_waiting: `[]` bool, an access of the step at hand has used a buffer that waits for
        what was queued before the step: it cannot have left before that.
      queued_log: `[num_items]` `queued_ticks` after each item; NEVER beyond the cursor.
      head_log: `[num_items]` `head` after each item; NEVER beyond the cursor.
      waited_log: `[num_items]` `head` after what the turn of each item waited for, but before
        its step ends; NEVER beyond the cursor.
      births: `[num_items, 2]` offset and start of the residency that each item's turn began.
      leaves: `[num_items, 2]` for the same residency the item after which it left, and the
        item of the last copy queued by then.
      actions: `[num_items]` action of each turn that came up plus 4 if it queued a copy, or -1.
      fast_bus: `[]`, fast_lanes: `[num_lanes]` what the step's fast accesses would add if slow.
      num_carried: `[]` carried parameters so far.
      num_decisions: `[]` decisions so far.
      stall_share: `[]` float32, stalls so far over the all-slow latency.
    """

    cursor: jax.Array
    legal: jax.Array
    plan: jax.Array
    hand: jax.Array
    buffers: jax.Array
    segment_start: jax.Array
    segment_code: jax.Array
    num_segments: jax.Array
    widest_gap: jax.Array
    freed_at: jax.Array
    idle_sum: jax.Array
    idle_position: jax.Array
    idle_top: jax.Array
    frame_base: jax.Array
    frame_floor: jax.Array
    depth: jax.Array
    queued_ticks: jax.Array
    served_ticks: jax.Array
    eligible_ticks: jax.Array
    eligible_item: jax.Array
    head: jax.Array
    used_waiting: jax.Array
    queued_log: jax.Array
    head_log: jax.Array
    waited_log: jax.Array
    births: jax.Array
    leaves: jax.Array
    actions: jax.Array
    fast_bus: jax.Array
    fast_lanes: jax.Array
    num_carried: jax.Array
    num_decisions: jax.Array
    stall_share: jax.Array


def bucket_for(table: TurnTable) -> Bucket:
    """The smallest bucket that holds the program: powers of two and their halves above."""
    begin = np.isin(
        table.items[:, Column.KIND], (ItemKind.ACCESS, ItemKind.ENTRY, ItemKind.CARRIED)
    )
    return Bucket(
        num_items=_padded(table.num_items, 64),
        num_buffers=_padded(len(table.buffers), 32),
        num_segments=_padded(int(np.count_nonzero(begin)) + 1, 64),
        num_lanes=1 << (table.lanes - 1).bit_length(),
    )


def _padded(size: int, least: int) -> int:
    """The next of least, 1.5 least, 2 least, 3 least, 4 least, ... that is no smaller."""
    padded = least
    while padded < size:
        if padded * 3 // 2 >= size:
            return padded * 3 // 2
        padded *= 2
    return padded


def program_arrays(program: Program | TurnTable, bucket: Bucket | None = None) -> ProgramArrays:
    """`program` as arrays of the sizes of `bucket`, by default the smallest that holds it.

    Raises:
      InputError: if it does not fit the bucket, or its numbers do not fit 32 bits.
    """
    table = program if isinstance(program, TurnTable) else turn_table(program)
    smallest = bucket_for(table)
    bucket = bucket or smallest
    for name in ("num_items", "num_buffers", "num_segments", "num_lanes"):
        if getattr(bucket, name) < getattr(smallest, name):
            raise InputError(
                f"{table.program.name}: does not fit {bucket}: {name} must be at least "
                f"{getattr(smallest, name)}"
            )
    machine = table.program.machine
    all_slow = table.program.all_slow_ticks
    return ProgramArrays(
        items=jnp.asarray(_padded_items(table, bucket)),
        weights=_pad_rows(table.weights / all_slow if all_slow > 0 else table.weights * 0, bucket),
        features=_pad_rows(turn_features(table), bucket),
        idle_curve=_padded_idle_curve(table, bucket),
        copy_scale=jnp.float32(copy_scale_ticks(table.program)),
        num_steps=jnp.int32(table.program.num_steps),
        capacity_units=jnp.int32(machine.capacity_bytes // machine.alignment_bytes),
        num_items=jnp.int32(table.num_items),
        max_carried=jnp.int32(table.max_carried),
        bucket=bucket,
    )


def _pad_rows(rows: NDArray[np.floating], bucket: Bucket) -> jax.Array:
    padding = ((0, bucket.num_items - len(rows)), (0, 0))
    return jnp.asarray(np.pad(rows, padding), dtype=jnp.float32)


def _padded_items(table: TurnTable, bucket: Bucket) -> NDArray[np.int32]:
    """Rows of nothing at the end, lanes of nothing in each of the three groups of lanes."""
    fixed, lanes = table.items[:, :NUM_COLUMNS], table.items[:, NUM_COLUMNS:]
    grouped = lanes.reshape(table.num_items, 3, table.lanes)
    more_lanes, more_rows = bucket.num_lanes - table.lanes, bucket.num_items - table.num_items
    grouped = np.pad(grouped, ((0, 0), (0, 0), (0, more_lanes)))
    wide = np.concatenate([fixed, grouped.reshape(table.num_items, 3 * bucket.num_lanes)], axis=1)
    return np.pad(wide, ((0, more_rows), (0, 0)))


def _padded_idle_curve(table: TurnTable, bucket: Bucket) -> jax.Array:
    """Beyond the program's end the curve stays level."""
    curve = idle_curve(table.program)
    padding = (0, bucket.num_items + 1 - len(curve))
    return jnp.asarray(np.pad(curve, padding, mode="edge"), dtype=jnp.float32)


def first_state(arrays: ProgramArrays) -> State:
    """The state before item 0, of one game."""
    bucket = arrays.bucket
    zero = jnp.int32(0)
    first_row = jnp.array([NOBODY, 0, 0, 0, NOBODY, NOBODY, 0, 0], dtype=jnp.int32)
    starts = jnp.full(bucket.num_segments + 1, arrays.capacity_units, dtype=jnp.int32)
    idle = jnp.zeros(bucket.num_items + 1, dtype=jnp.int32)
    log = jnp.full(bucket.num_items, NEVER, dtype=jnp.int32)
    pairs = jnp.full((bucket.num_items, 2), NOBODY, dtype=jnp.int32)
    return State(
        cursor=zero,
        legal=jnp.array([True, False, False]),
        plan=jnp.zeros(len(Plan), dtype=jnp.int32),
        hand=first_row,
        buffers=jnp.tile(first_row, (bucket.num_buffers, 1)),
        segment_start=starts.at[0].set(0),
        segment_code=jnp.zeros(bucket.num_segments, dtype=jnp.int32),
        num_segments=jnp.int32(1),
        widest_gap=jnp.int32(NEVER),
        freed_at=zero,
        idle_sum=idle,
        idle_position=idle,
        idle_top=zero,
        frame_base=jnp.zeros(MAX_DEPTH, dtype=jnp.int32),
        frame_floor=jnp.zeros(MAX_DEPTH, dtype=jnp.int32),
        depth=zero,
        queued_ticks=zero,
        served_ticks=zero,
        eligible_ticks=zero,
        eligible_item=zero,
        head=zero,
        used_waiting=jnp.bool_(False),
        queued_log=log,
        head_log=log,
        waited_log=log,
        births=pairs,
        leaves=pairs,
        actions=jnp.full(bucket.num_items, NOBODY, dtype=jnp.int32),
        fast_bus=zero,
        fast_lanes=jnp.zeros(bucket.num_lanes, dtype=jnp.int32),
        num_carried=zero,
        num_decisions=zero,
        stall_share=jnp.float32(0),
    )
