"""What an observation says about each turn before the game begins. Dimensionless, mostly 0..1.

Documented as a table in docs/game.md ("Observation"). No jax here.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.program import Program
from malloc_game.memory_prices import Stays, memory_prices
from malloc_game.turn_table import NUM_COLUMNS, Column, ItemKind, TurnTable


class TurnFeature(enum.IntEnum):
    """Columns of `turn_features`; docs/game.md gives meaning and range of each."""

    IS_ACCESS = 0
    IS_ENTRY = 1
    IS_EXIT = 2
    IS_CARRIED = 3
    READS = 4
    WRITES = 5
    SIZE_SHARE = 6
    SIZE_LOG = 7
    COPY_TO_STEP = 8
    SAVING_OF_STEP = 9
    SAVING_OF_PROGRAM = 10
    HAS_NEXT = 11
    STEPS_TO_NEXT = 12
    TIME_TO_NEXT = 13
    NEXT_READS = 14
    HAS_PREVIOUS = 15
    STEPS_SINCE_PREVIOUS = 16
    TURNS_LEFT = 17
    SAVING_LEFT = 18
    NEEDED = 19
    LIVE_OUT = 20
    PARAMETER = 21
    REPEAT = 22
    DEPTH = 23
    PROGRESS = 24
    WORTH_NOW = 25
    WORTH_TO_NEXT = 26
    ROOM = 27


@dataclass(frozen=True)
class _Clock:
    """Ticks of one pass with everything slow, before each position 0..T."""

    elapsed: NDArray[np.int64]
    idle: NDArray[np.int64]


def copy_scale_ticks(program: Program) -> float:
    """Ticks that filling fast memory takes, at least 1: the unit of idle time."""
    return float(max(1, program.copy_ticks(program.capacity_bytes)))


def idle_curve(program: Program) -> NDArray[np.float64]:
    """`[T + 1]` idle time before each position with everything slow, in units of the copy scale."""
    return _clock(program).idle / copy_scale_ticks(program)


def _clock(program: Program) -> _Clock:
    elapsed = [i.elapsed_ticks(i.accesses) for i in program.instructions]
    busy = [sum(a.bus_ticks for a in i.accesses) for i in program.instructions]
    before = np.concatenate([[0], np.cumsum(elapsed, dtype=np.int64)])
    return _Clock(before, before - np.concatenate([[0], np.cumsum(busy, dtype=np.int64)]))


def turn_features(table: TurnTable) -> NDArray[np.float64]:
    """`[num_items, len(TurnFeature)]`; rows of items without a turn are zero."""
    clock = _clock(table.program)
    savings = _savings_ticks(table)
    features = np.zeros((table.num_items, len(TurnFeature)))
    turns = np.flatnonzero(table.items[:, Column.KIND])
    following = _following(table, turns)
    _describe_turns(table, features, turns, savings)
    _describe_neighbours(table, features, turns, following, clock, savings)
    _describe_worth(table, features, turns, following, np.array(savings))
    return features


def _describe_turns(
    table: TurnTable, features: NDArray[np.float64], turns: NDArray[np.intp], savings: list[float]
) -> None:
    """What a turn says by itself."""
    program = table.program
    all_slow = program.all_slow_ticks
    capacity = max(1, program.capacity_bytes // program.machine.alignment_bytes)
    for index in turns.tolist():
        row, item = features[index], table.items[index]
        kind, position = int(item[Column.KIND]), int(item[Column.POSITION])
        buffer = program.buffers[table.buffers[item[Column.BUFFER]]]
        frame = None if table.frames[index] < 0 else int(table.frames[index])
        step_ticks = 0
        if kind == ItemKind.ACCESS:
            step_ticks = int(item[NUM_COLUMNS + 2 * table.lanes :].max())
            step_ticks = max(step_ticks, int(item[Column.SLOW_BUS]))
        share = item[Column.SIZE_UNITS] / capacity
        row[TurnFeature.IS_ACCESS + kind - ItemKind.ACCESS] = 1
        row[TurnFeature.READS] = item[Column.READS]
        row[TurnFeature.WRITES] = item[Column.WRITES]
        row[TurnFeature.SIZE_SHARE] = share
        row[TurnFeature.SIZE_LOG] = log_share(share, digits=6)
        row[TurnFeature.COPY_TO_STEP] = squash(item[Column.COPY_TICKS], step_ticks)
        row[TurnFeature.SAVING_OF_STEP] = _step_saving(table, item) / max(1, step_ticks)
        row[TurnFeature.SAVING_OF_PROGRAM] = log_share(savings[index] / max(all_slow, 1), digits=8)
        row[TurnFeature.HAS_NEXT] = item[Column.HAS_NEXT]
        row[TurnFeature.NEEDED] = item[Column.NEEDED]
        row[TurnFeature.LIVE_OUT] = buffer.live_out
        row[TurnFeature.PARAMETER] = buffer.is_parameter
        row[TurnFeature.REPEAT] = log_count(program.repeat_of(frame), most=2**16)
        row[TurnFeature.DEPTH] = min(1.0, len(list(program.loops_around(frame))) / 8)
        row[TurnFeature.PROGRESS] = position / max(1, program.num_steps)


def _describe_neighbours(
    table: TurnTable,
    features: NDArray[np.float64],
    turns: NDArray[np.intp],
    following: NDArray[np.intp],
    clock: _Clock,
    savings: list[float],
) -> None:
    """What a turn says about the buffer's other turns in its frame, from the last turn on."""
    all_slow = max(1.0, table.program.all_slow_ticks)
    count, saved = np.zeros(table.num_items, dtype=np.int64), np.zeros(table.num_items)
    for index, after in zip(turns[::-1].tolist(), following[::-1].tolist(), strict=True):
        row, item = features[index], table.items[index]
        if after >= 0:
            position, next_position = (int(table.items[i, Column.POSITION]) for i in (index, after))
            steps = log_count(next_position - position, most=2**16)
            gap_ticks = int(clock.elapsed[next_position] - clock.elapsed[position])
            row[TurnFeature.STEPS_TO_NEXT] = steps
            row[TurnFeature.TIME_TO_NEXT] = squash(gap_ticks, item[Column.COPY_TICKS])
            row[TurnFeature.NEXT_READS] = table.items[after, Column.READS]
            features[after, TurnFeature.HAS_PREVIOUS] = 1
            features[after, TurnFeature.STEPS_SINCE_PREVIOUS] = steps
            count[index], saved[index] = count[after] + 1, saved[after] + savings[after]
        row[TurnFeature.TURNS_LEFT] = log_count(int(count[index]), most=2**8)
        row[TurnFeature.SAVING_LEFT] = log_share(float(saved[index]) / all_slow, digits=8)


def _describe_worth(
    table: TurnTable,
    features: NDArray[np.float64],
    turns: NDArray[np.intp],
    following: NDArray[np.intp],
    savings: NDArray[np.float64],
) -> None:
    """What a turn saves, and what staying until the next one saves, beside the place's price."""
    program = table.program
    num_steps = max(1, program.num_steps)
    capacity = program.capacity_bytes // program.machine.alignment_bytes
    now, to_next = _stays(table, turns, following, savings)
    # A stay through a loop, or throughout, is made of those of the accesses inside: it has a
    # price, but does not compete with them.
    kind = table.items[turns, Column.KIND]
    is_access = kind == ItemKind.ACCESS
    competing = Stays.joined(
        [now.only(is_access), to_next.only(is_access | (kind == ItemKind.EXIT))]
    )
    prices = memory_prices(competing, capacity, num_steps)
    for column, stays in ((TurnFeature.WORTH_NOW, now), (TurnFeature.WORTH_TO_NEXT, to_next)):
        saved, cost = stays.saved_ticks, prices.cost_ticks(stays)
        features[turns, column] = saved / np.maximum(saved + cost, 1e-30)
    position = np.minimum(table.items[turns, Column.POSITION], num_steps - 1)
    features[turns, TurnFeature.ROOM] = prices.left_units[position] / max(1, capacity)


def _stays(
    table: TurnTable,
    turns: NDArray[np.intp],
    following: NDArray[np.intp],
    savings: NDArray[np.float64],
) -> tuple[Stays, Stays]:
    """Per turn: in fast memory through it (through its whole loop at entry, throughout if
    carried), and from it to the buffer's next turn in the frame."""
    items = table.items[turns].astype(np.int64)
    position, size = items[:, Column.POSITION], items[:, Column.SIZE_UNITS]
    num_steps = table.program.num_steps
    last = np.minimum(items[:, Column.EXIT_ITEM], table.num_items - 1)
    at_exit = table.items[last, Column.POSITION].astype(np.int64)
    kind = items[:, Column.KIND]
    through = np.select(
        [kind == ItemKind.ENTRY, kind == ItemKind.CARRIED], [at_exit, num_steps], position + 1
    )
    has_next = following >= 0
    next_position = np.where(has_next, table.items[following, Column.POSITION], position)
    after = np.minimum(items[:, Column.AFTER], next_position)
    saved_next = np.where(
        has_next & (table.items[following, Column.READS] > 0), savings[following], 0.0
    )
    whole = np.minimum(through, num_steps)
    return (
        Stays(np.minimum(position, whole), whole, size, savings[turns]),
        Stays(after, next_position, size, saved_next),
    )


def _following(table: TurnTable, turns: NDArray[np.intp]) -> NDArray[np.intp]:
    """Per turn the item of the buffer's next turn in its frame, -1 if there is none."""
    following = np.full(len(turns), -1, dtype=np.intp)
    later: dict[tuple[int, int], int] = {}
    for place in range(len(turns) - 1, -1, -1):
        index = int(turns[place])
        key = (int(table.items[index, Column.BUFFER]), int(table.frames[index]))
        following[place] = later.get(key, -1)
        later[key] = index
    return following


def _savings_ticks(table: TurnTable) -> list[float]:
    """Per item what fast accesses save alone: its own, those inside its loop, or all of them."""
    own = [
        float(weight[0] * _step_saving(table, item))
        for item, weight in zip(table.items, table.weights, strict=True)
    ]
    before: dict[int, list[tuple[int, float]]] = {}
    for index, item in enumerate(table.items):
        if item[Column.KIND] == ItemKind.ACCESS:
            sums = before.setdefault(int(item[Column.BUFFER]), [])
            sums.append((index, own[index]))
    for index, item in enumerate(table.items):
        if item[Column.KIND] in (ItemKind.ENTRY, ItemKind.CARRIED):
            last = int(item[Column.EXIT_ITEM])
            uses = before[int(item[Column.BUFFER])]
            own[index] = math.fsum(saved for at, saved in uses if index < at < last)
    return own


def _step_saving(table: TurnTable, item: NDArray[np.int32]) -> int:
    """Ticks of one execution that the item's access saves if it alone is fast."""
    if item[Column.KIND] != ItemKind.ACCESS:
        return 0
    lanes = table.lanes
    slow = item[NUM_COLUMNS + 2 * lanes :].astype(np.int64)
    own = item[NUM_COLUMNS : NUM_COLUMNS + lanes].astype(np.int64)
    bus = int(item[Column.SLOW_BUS])
    with_all = max(int(slow.max()), bus)
    return with_all - max(int((slow - own).max()), bus - int(item[Column.BUS]))


def squash(value: float, scale: float) -> float:
    """`value / (value + scale)`: 0 for nothing, 1/2 at `scale`, towards 1 beyond."""
    return float(value) / (float(value) + float(scale)) if value > 0 else 0.0


def log_share(share: float, *, digits: int) -> float:
    """0 up to `10**-digits`, 1 at a share of 1, in proportion to the logarithm between."""
    return min(1.0, max(0.0, 1 + math.log10(share) / digits)) if share > 0 else 0.0


def log_count(count: float, *, most: int) -> float:
    """0 for nothing, 1 at `most`, in proportion to the logarithm of `1 + count`."""
    return min(1.0, math.log2(1 + max(0.0, count)) / math.log2(1 + most))
