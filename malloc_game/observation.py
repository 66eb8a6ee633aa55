"""What a network sees at a decision. All dimensionless; tables in docs/game.md ("Observation").

A turn is described by what generalises over programs of any size: its own features, those of the
coming turns, an image of fast memory over time and addresses around now, and the curve of idle time
on the same time axis.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from malloc_game.rules import last_at_most, saving_ticks, stall_ticks
from malloc_game.specs import ArraySpec
from malloc_game.state import LIVE, NOBODY, NUM_ACTIONS, Holding, Plan, ProgramArrays, State
from malloc_game.turn_features import TurnFeature
from malloc_game.turn_table import NUM_COLUMNS, Column, ItemKind

WINDOW_TURNS = 16
"""Coming items that are shown, the one at hand first."""

ADDRESS_BINS = 32
"""Addresses at which the memory image is sampled: the middles of equal parts of fast memory."""

TIME_EDGES = (
    *(-128, -64, -32, -16, -8, -4, -2, -1),
    *(0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512),
)
"""Steps from now at which memory and idle time are shown."""


class NowFeature(enum.IntEnum):
    """Columns of `Observation.now`; docs/game.md gives meaning and range of each."""

    RESIDENT = 0
    STALE = 1
    LEAVING = 2
    SAVING_NOW = 3
    COPY_LEGAL = 4
    KEEP_LEGAL = 5
    HIDDEN = 6
    WINDOW_STEPS = 7
    PLACE = 8
    IDLE_TO_COPY = 9
    QUEUE_TO_COPY = 10
    QUEUE_TO_CAPACITY = 11
    RESIDENT_STEPS = 12
    TAKEN_NOW = 13
    TAKEN_LATER = 14
    STALLED = 15
    STALL_TO_SAVING = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observation:
    """One decision as a network sees it; float32 but for the mask.

    Attributes:
      turn: `[len(TurnFeature)]` the turn at hand, as known before the game.
      now: `[len(NowFeature)]` the turn at hand, as the game stands.
      window: `[WINDOW_TURNS, len(TurnFeature) + 2]` the coming items; the last two columns say
        whether the buffer is resident, and whether it is the buffer at hand.
      memory: `[len(TIME_EDGES), ADDRESS_BINS]` 1 where an address is taken at a time.
      idle: `[len(TIME_EDGES)]` idle time between that time and now, in copies of the buffer.
      action_mask: `[3]` bool, True is legal.
    """

    turn: jax.Array
    now: jax.Array
    window: jax.Array
    memory: jax.Array
    idle: jax.Array
    action_mask: jax.Array


def observe(arrays: ProgramArrays, state: State) -> Observation:
    """The observation of one game at a decision, or after its end (then of nothing)."""
    cursor = jnp.where(state.cursor < arrays.num_items, state.cursor, 0)
    item = arrays.items[cursor]
    memory = _memory_image(arrays, state, item)
    return Observation(
        turn=arrays.features[cursor],
        now=_now_features(arrays, state, item, memory),
        window=_window(arrays, state, item),
        memory=memory,
        idle=_idle_curve(arrays, state, item),
        action_mask=state.legal,
    )


def observation_specs() -> Observation:
    """An `ArraySpec` in the place of each array."""
    columns = len(TurnFeature) + 2
    shapes = {
        "turn": (len(TurnFeature),),
        "now": (len(NowFeature),),
        "window": (WINDOW_TURNS, columns),
        "memory": (len(TIME_EDGES), ADDRESS_BINS),
        "idle": (len(TIME_EDGES),),
    }
    specs = {
        name: ArraySpec(shape, np.dtype(np.float32), 0.0, 1.0, name)
        for name, shape in shapes.items()
    }
    mask = ArraySpec((NUM_ACTIONS,), np.dtype(np.bool_), False, True, "action_mask")
    return Observation(**specs, action_mask=mask)  # type: ignore[arg-type]


def _squash(value: jax.Array, scale: jax.Array) -> jax.Array:
    """`value / (value + scale)` of non-negative numbers, 0 for nothing."""
    value = jnp.maximum(value, 0).astype(jnp.float32)
    return jnp.where(value > 0, value / (value + scale), 0.0)


def _log_steps(steps: jax.Array) -> jax.Array:
    """As `turn_features.log_count` with 2**16 for 1."""
    return jnp.minimum(jnp.log2(1.0 + jnp.maximum(steps, 0)) / 16.0, 1.0)


def _times(item: jax.Array) -> jax.Array:
    """`[len(TIME_EDGES)]` steps."""
    return item[Column.POSITION] + jnp.array(TIME_EDGES, dtype=jnp.int32)


def _taken_until(arrays: ProgramArrays, state: State, item: jax.Array) -> jax.Array:
    """`[ADDRESS_BINS]` the step up to which each sampled address is taken."""
    middles = 2 * np.arange(ADDRESS_BINS) + 1
    whole, rest = (
        arrays.capacity_units // (2 * ADDRESS_BINS),
        arrays.capacity_units % (2 * ADDRESS_BINS),
    )
    addresses = whole * middles + rest * middles // (2 * ADDRESS_BINS)
    newest = state.num_segments - 1
    segment = jax.vmap(last_at_most, in_axes=(None, 0, None, None))(
        state.segment_start, addresses, jnp.int32(0), newest
    )
    code = state.segment_code[segment]
    now = item[Column.POSITION] + 1
    return jnp.where(code < 0, now, jnp.where(code >= LIVE, jnp.maximum(code - LIVE, now), code))


def _memory_image(arrays: ProgramArrays, state: State, item: jax.Array) -> jax.Array:
    """An address is taken at a past step if a prefetch may not reach back to it."""
    until = _taken_until(arrays, state, item)
    taken = until[None, :] > _times(item)[:, None]
    return (taken & (arrays.capacity_units > 0)).astype(jnp.float32)


def _idle_curve(arrays: ProgramArrays, state: State, item: jax.Array) -> jax.Array:
    """Before now: what prefetches may still reserve. From now on: what all slow would leave."""
    times = _times(item)
    scale = jnp.maximum(item[Column.COPY_TICKS], 1).astype(jnp.float32)
    base = state.frame_base[state.depth]
    last_before = jax.vmap(last_at_most, in_axes=(None, 0, None, None))(
        state.idle_position, times - 1, base, state.idle_top
    )
    behind = state.idle_sum[state.idle_top] - state.idle_sum[last_before]
    position = jnp.minimum(item[Column.POSITION], arrays.num_steps)
    later = arrays.idle_curve[jnp.clip(times, 0, arrays.num_steps)] - arrays.idle_curve[position]
    past = jnp.array(TIME_EDGES) < 0
    return jnp.where(past, _squash(behind, scale), _squash(later * arrays.copy_scale, scale))


def _window(arrays: ProgramArrays, state: State, item: jax.Array) -> jax.Array:
    """Static features of the coming items, and how their buffers stand."""
    coming = state.cursor + jnp.arange(WINDOW_TURNS)
    exists = coming < arrays.num_items
    coming = jnp.where(exists, coming, 0)
    items = arrays.items[coming]
    turns = exists & (items[:, Column.KIND] != ItemKind.NONE)
    rows = state.buffers[items[:, Column.BUFFER]]
    gone = (rows[:, Holding.LEAVING] > 0) & (rows[:, Holding.LAST_COPY] < state.head)
    resident = turns & (rows[:, Holding.BIRTH] != NOBODY) & ~gone
    same = turns & (items[:, Column.BUFFER] == item[Column.BUFFER])
    features = arrays.features[coming] * exists[:, None]
    return jnp.concatenate([features, resident[:, None], same[:, None]], axis=1, dtype=jnp.float32)


def _now_features(
    arrays: ProgramArrays, state: State, item: jax.Array, memory: jax.Array
) -> jax.Array:
    """See `NowFeature`."""
    hand = state.hand
    resident = hand[Holding.BIRTH] != NOBODY
    copy_ticks = jnp.maximum(item[Column.COPY_TICKS], 1).astype(jnp.float32)
    queue = state.queued_ticks - state.served_ticks
    idle = state.idle_sum[state.idle_top] - state.idle_sum[state.frame_base[state.depth]]
    birth = jnp.clip(hand[Holding.BIRTH], 0, arrays.bucket.num_items - 1)
    brings = ~resident & (state.legal[1] | state.legal[2])
    window = item[Column.POSITION] - state.plan[Plan.START]
    now = TIME_EDGES.index(0)
    stall = jnp.where(brings, stall_ticks(state, item), 0)
    values: dict[NowFeature, jax.Array] = {
        NowFeature.RESIDENT: resident,
        NowFeature.STALE: resident & (hand[Holding.STALE] > 0),
        NowFeature.LEAVING: resident & (hand[Holding.LEAVING] > 0),
        NowFeature.SAVING_NOW: _saving_now(state, item),
        NowFeature.COPY_LEGAL: state.legal[1],
        NowFeature.KEEP_LEGAL: state.legal[2],
        NowFeature.HIDDEN: jnp.where(brings, state.plan[Plan.RESERVED_TICKS] / copy_ticks, 0.0),
        NowFeature.WINDOW_STEPS: _log_steps(jnp.where(brings, window, 0)),
        NowFeature.PLACE: jnp.where(
            brings, state.plan[Plan.OFFSET] / jnp.maximum(arrays.capacity_units, 1), 0.0
        ),
        NowFeature.IDLE_TO_COPY: _squash(idle, copy_ticks),
        NowFeature.QUEUE_TO_COPY: _squash(queue, copy_ticks),
        NowFeature.QUEUE_TO_CAPACITY: _squash(queue, arrays.copy_scale),
        NowFeature.RESIDENT_STEPS: _log_steps(
            jnp.where(resident, item[Column.POSITION] - state.births[birth, 1], 0)
        ),
        NowFeature.TAKEN_NOW: jnp.mean(memory[now]),
        NowFeature.TAKEN_LATER: jnp.mean(memory[now + 1 :]),
        NowFeature.STALLED: jnp.clip(state.stall_share, 0.0, 1.0),
        NowFeature.STALL_TO_SAVING: _squash(stall, saving_ticks(state, item)),
    }
    return jnp.stack([values[name].astype(jnp.float32) for name in NowFeature])


def _saving_now(state: State, item: jax.Array) -> jax.Array:
    """Share of the step's present time that the access saves, given what is fast already."""
    lanes = state.fast_lanes.shape[0]
    slow = item[NUM_COLUMNS + 2 * lanes :] - state.fast_lanes
    present = jnp.maximum(jnp.max(slow), item[Column.SLOW_BUS] - state.fast_bus)
    return saving_ticks(state, item) / jnp.maximum(present, 1)
