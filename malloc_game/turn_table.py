"""What is known of a game before it begins: its items in order, as rows of integers.

Source: docs/game.md, "Order of turns". An *item* is at most one turn, then at most one end of a
step, then at most one flush of the eviction queue; merging them keeps games short. Item 0 does
nothing: a game begins by playing it. Sizes are in alignment units, times in ticks; everything
fits 32 bits, which `turn_table` checks. No jax here.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.errors import InputError
from hlo_graphs.program import Access, Loop, Program

MAX_CARRIED = 1
"""Carried parameters allowed (docs/simulator.md, rule 6)."""

MAX_DEPTH = 16
"""Deepest nest of loops that the JAX game knows, the program itself included."""

CARRIED_CANDIDATES = 8
"""Parameters that get a turn before step 0: those with the largest savings."""

IDLE_LIMIT_TICKS = 2**30
"""All loops together offer no more idle time than this; one pass takes less (docs/game.md)."""

FRACTION_DENOMINATOR = 1024
"""Weights of loops that are not whole numbers are rounded down to multiples of 1/1024."""

NEVER = 2**31 - 1
"""A position after every other."""


class ItemKind(enum.IntEnum):
    """What an item's turn is about."""

    NONE = 0
    ACCESS = 1
    ENTRY = 2
    EXIT = 3
    CARRIED = 4


class Flush(enum.IntEnum):
    """Why an item empties the eviction queue."""

    NONE = 0
    LOOP_ENTRY = 1
    TRIP_END = 2
    PROGRAM_END = 3


class Column(enum.IntEnum):
    """Columns of `TurnTable.items`; after them, per lane: own, base and all-slow ticks.

    BUFFER counts the buffers that take turns; `TurnTable.buffers` has their program indices.
    POSITION is the turn's step; AFTER the position at which the buffer leaves if it does;
    UNTIL the step up to which Keep reserves the place, if it has a meaning; COPIED 1 if the
    buffer's content is copied there if it comes, 0 if it is produced or carried over;
    EXIT_ITEM the item that ends a Keep at loop entry; DONE_AT the position at which copies
    that complete in this item are done. OFFER_*: what a finished trip offers the frame around.
    BUS and the lanes' own ticks are the access's; SLOW_BUS, base and all-slow are its step's.
    """

    KIND = 0
    BUFFER = 1
    POSITION = 2
    AFTER = 3
    READS = 4
    WRITES = 5
    HAS_NEXT = 6
    NEEDED = 7
    EXIT_ITEM = 8
    SIZE_UNITS = 9
    COPY_TICKS = 10
    ENDS_STEP = 11
    FLUSH = 12
    DONE_AT = 13
    OFFER_START = 14
    OFFER_NUMERATOR = 15
    OFFER_DENOMINATOR = 16
    OFFER_SLACK = 17
    OFFER_LIMIT = 18
    BUS = 19
    SLOW_BUS = 20
    UNTIL = 21
    COPIED = 22


NUM_COLUMNS = len(Column)


@dataclass(frozen=True)
class TurnTable:
    """The static part of a program's game.

    Attributes:
      program: the program.
      items: `[num_items, NUM_COLUMNS + 3 * num_lanes]` int32.
      weights: `[num_items, 2]` float64: how often ticks of the item's step, and of its stalls
        (its flush, or the rest of its copy), count.
      buffers: program indices of the buffers that take turns.
      frames: per item the loop whose time its turn spends; -1 is the program itself.
      loops: per item the loop of an entry or exit turn, else -1.
      lanes: lanes of the cost model.
      max_carried: carried parameters allowed.
    """

    program: Program
    items: NDArray[np.int32]
    weights: NDArray[np.float64]
    buffers: tuple[int, ...]
    frames: NDArray[np.int32]
    loops: NDArray[np.int32]
    lanes: int
    max_carried: int

    @property
    def num_items(self) -> int:
        """Items of the game."""
        return len(self.items)

    @property
    def num_turns(self) -> int:
        """Turns that may come up."""
        return int(np.count_nonzero(self.items[:, Column.KIND]))


def turn_table(
    program: Program,
    *,
    max_carried: int = MAX_CARRIED,
    carried_candidates: int = CARRIED_CANDIDATES,
) -> TurnTable:
    """The static part of `program`'s game.

    Raises:
      InputError: if loops nest deeper than `MAX_DEPTH - 1`, or the program's times or sizes leave
        the range of 32 bits.
    """
    _check_depth(program)  # First: the time it takes to see what is needed doubles with each loop.
    writer = _Writer(program)
    for buffer in carried_candidates_of(program, carried_candidates):
        writer.turn(ItemKind.CARRIED, 0, buffer, None)
    for step in range(program.num_steps):
        _write_borders(writer, step)
        frame = program.loop_of_step[step]
        for access in program.instructions[step].accesses:
            writer.turn(ItemKind.ACCESS, step, access.buffer, frame, access=access)
        writer.step_end(step)
    _write_borders(writer, program.num_steps)
    writer.flush(Flush.PROGRAM_END, program.num_steps, None, None)
    table = writer.table(max_carried)
    _check_ranges(table)
    return table


def takes_turns(program: Program, buffer: int) -> bool:
    """Whether the buffer is allowed in fast memory and has bytes at all."""
    return program.may_be_resident(buffer) and program.buffers[buffer].size_bytes > 0


class _Writer:
    """Collects items in order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.lanes = program.num_lanes
        self.after_access, self.before_loop, self.after_loop = _needed(program)
        used = _first_uses(program, 0, program.num_steps)
        self.dense = {buffer: index for index, buffer in enumerate(used)}
        self.rows: list[list[int]] = [self._empty_row()]
        self.weights: list[list[float]] = [[0.0, 0.0]]
        self.frames: list[int | None] = [None]
        self.loops: list[int | None] = [None]
        self.starting: dict[int, list[int]] = {}
        self.ending: dict[int, list[int]] = {}
        for index, loop in enumerate(program.loops):
            self.starting.setdefault(loop.start_step, []).append(index)
            self.ending.setdefault(loop.end_step, []).append(index)

    def _empty_row(self) -> list[int]:
        return [0] * (NUM_COLUMNS + 3 * self.lanes)

    def _append(self, position: int, frame: int | None, loop: int | None) -> list[int]:
        row = self._empty_row()
        row[Column.POSITION] = row[Column.AFTER] = row[Column.DONE_AT] = position
        self.rows.append(row)
        self.weights.append([0.0, 0.0])
        self.frames.append(frame)
        self.loops.append(loop)
        return row

    def turn(
        self,
        kind: ItemKind,
        position: int,
        buffer: int,
        frame: int | None,
        loop: int | None = None,
        access: Access | None = None,
    ) -> None:
        """Adds a turn, if the buffer takes turns."""
        if buffer not in self.dense:
            return
        row = self._append(position, frame, loop)
        size_bytes = self.program.buffers[buffer].size_bytes
        row[Column.KIND] = kind
        row[Column.BUFFER] = self.dense[buffer]
        row[Column.SIZE_UNITS] = size_bytes // self.program.machine.alignment_bytes
        row[Column.COPY_TICKS] = self.program.copy_ticks(size_bytes)
        row[Column.READS] = 1
        if access is not None:
            row[Column.READS], row[Column.WRITES] = access.kind.reads, access.kind.writes
            row[Column.AFTER] = row[Column.DONE_AT] = position + 1
            row[Column.BUS] = access.bus_ticks
            row[NUM_COLUMNS : NUM_COLUMNS + self.lanes] = access.lane_ticks
            row[Column.NEEDED] = (position, buffer) in self.after_access
            row[Column.COPIED] = access.kind.reads and self._has_content(buffer, position, frame)
            self._describe_step(row, position)
            self.weights[-1][1] = self.program.repeat_of(frame)
        elif kind is ItemKind.ENTRY:
            row[Column.NEEDED] = (loop, buffer) in self.before_loop
            row[Column.COPIED] = self._has_content(buffer, position, frame)
            self.weights[-1][1] = self.program.repeat_of(frame)
        elif kind is ItemKind.EXIT:
            row[Column.NEEDED] = (loop, buffer) in self.after_loop

    def _has_content(self, buffer: int, position: int, frame: int | None) -> bool:
        """Whether there may be anything to copy. What an earlier trip of a loop left counts."""
        return frame is not None or self.program.has_content_before(buffer, position)

    def _describe_step(self, row: list[int], step: int) -> None:
        instruction = self.program.instructions[step]
        row[Column.SLOW_BUS] = sum(a.bus_ticks for a in instruction.accesses)
        base, slow = NUM_COLUMNS + self.lanes, NUM_COLUMNS + 2 * self.lanes
        row[base:slow] = instruction.base_ticks
        row[slow:] = [
            instruction.base_ticks[lane] + sum(a.lane_ticks[lane] for a in instruction.accesses)
            for lane in range(self.lanes)
        ]
        self.weights[-1][0] = instruction.repeat

    def step_end(self, step: int) -> None:
        """Ends `step`, in the item of its last turn if it has one."""
        row = self.rows[-1]
        if row[Column.KIND] != ItemKind.ACCESS or row[Column.POSITION] != step:
            row = self._append(step, None, None)
            row[Column.AFTER] = row[Column.DONE_AT] = step + 1
            self._describe_step(row, step)
        row[Column.ENDS_STEP] = 1

    def flush(self, why: Flush, position: int, frame: int | None, loop: int | None) -> None:
        """Empties the queue in `frame`, at best in the item before."""
        row = self.rows[-1]
        mergeable = len(self.rows) > 1 and row[Column.DONE_AT] == position
        if not mergeable or row[Column.FLUSH]:
            row = self._append(position, None, None)
        row[Column.FLUSH] = why
        self.weights[-1][1] = self.program.repeat_of(frame)
        if why is Flush.TRIP_END and loop is not None:
            _describe_offer(row, self.program, self.program.loops[loop])

    def table(self, max_carried: int) -> TurnTable:
        """Everything collected, with what only the later items tell."""
        later: dict[tuple[int, int | None], int] = {}
        exits: dict[tuple[int | None, int], int] = {}
        for index in range(len(self.rows) - 1, -1, -1):
            row, frame, loop = self.rows[index], self.frames[index], self.loops[index]
            kind, buffer = row[Column.KIND], row[Column.BUFFER]
            if kind == ItemKind.NONE:
                continue
            row[Column.HAS_NEXT] = (buffer, frame) in later or kind in (
                ItemKind.ENTRY,
                ItemKind.CARRIED,
            )
            if kind == ItemKind.EXIT:
                exits[loop, buffer] = index
            elif kind == ItemKind.ENTRY:
                row[Column.EXIT_ITEM] = exits[loop, buffer]
            elif kind == ItemKind.CARRIED:
                row[Column.EXIT_ITEM] = NEVER
            row[Column.UNTIL] = later.get((buffer, frame), self.program.num_steps + 1)
            later[buffer, frame] = row[Column.AFTER]
        return TurnTable(
            program=self.program,
            items=_as_int32(self.program, self.rows),
            weights=np.array(self.weights, dtype=np.float64),
            buffers=tuple(self.dense),
            frames=_with_minus_one(self.frames),
            loops=_with_minus_one(self.loops),
            lanes=self.lanes,
            max_carried=max_carried,
        )


def _as_int32(program: Program, rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    wide = np.array(rows, dtype=np.int64)
    if wide.max(initial=0) > NEVER:
        raise InputError(
            f"{program.name}: a time or size of {wide.max()} does not fit 32 bits; lower the "
            f"program with longer ticks"
        )
    return wide.astype(np.int32)


def _with_minus_one(values: Sequence[int | None]) -> NDArray[np.int32]:
    return np.array([-1 if value is None else value for value in values], dtype=np.int32)


def _check_depth(program: Program) -> None:
    nests = (sum(1 for _ in program.loops_around(index)) for index in range(len(program.loops)))
    depth = max(nests, default=0)
    if depth >= MAX_DEPTH:
        raise InputError(
            f"{program.name}: loops nest {depth} deep, the game knows {MAX_DEPTH - 1}: use a "
            "solver that does not play it (portfolio, milp)"
        )


def _check_ranges(table: TurnTable) -> None:
    """Sums that the game keeps in 32 bits must fit."""
    program = table.program
    one_pass = sum(i.elapsed_ticks(i.accesses) for i in program.instructions)
    uses = program.accesses_of_buffer
    written = np.array([*(any(a.kind.writes for _, a in uses[b]) for b in table.buffers), False])
    evicting = (table.items[:, Column.NEEDED] > 0) & written[table.items[:, Column.BUFFER]]
    evictions = int(table.items[evicting, Column.COPY_TICKS].astype(np.int64).sum())
    longest = int(table.items[:, Column.COPY_TICKS].max(initial=0))
    counted = (
        ("one pass", one_pass),
        ("all evictions together", evictions),
        ("the longest copy", longest),
    )
    for what, ticks in counted:
        if ticks >= IDLE_LIMIT_TICKS:
            raise InputError(
                f"{program.name}: {what} of {ticks} ticks is beyond the {IDLE_LIMIT_TICKS} that "
                "the game counts to: use a solver that does not play it (portfolio, milp)"
            )


def _write_borders(writer: _Writer, position: int) -> None:
    """Loops that end at `position`, inner ones first, then those that start, outer ones first."""
    program = writer.program
    for index in reversed(writer.ending.get(position, ())):
        loop = program.loops[index]
        writer.flush(Flush.TRIP_END, position, index, index)
        for buffer in _first_uses(program, loop.start_step, loop.end_step):
            writer.turn(ItemKind.EXIT, position, buffer, loop.parent, index)
    for index in writer.starting.get(position, ()):
        loop = program.loops[index]
        for buffer in _first_uses(program, loop.start_step, loop.end_step):
            writer.turn(ItemKind.ENTRY, position, buffer, loop.parent, index)
        writer.flush(Flush.LOOP_ENTRY, position, loop.parent, None)


def _describe_offer(row: list[int], program: Program, loop: Loop) -> None:
    weight = float(loop.weight)
    # With as many trips as there are ticks to count, any that is left is worth the limit.
    numerator, denominator, slack = min(math.floor(weight), IDLE_LIMIT_TICKS), 1, 0
    if not weight.is_integer():
        slack = loop.end_step - loop.start_step
        if weight < FRACTION_DENOMINATOR:
            numerator, denominator = math.floor(weight * FRACTION_DENOMINATOR), FRACTION_DENOMINATOR
    row[Column.OFFER_START] = loop.start_step
    row[Column.OFFER_NUMERATOR] = numerator
    row[Column.OFFER_DENOMINATOR] = denominator
    row[Column.OFFER_SLACK] = slack
    row[Column.OFFER_LIMIT] = IDLE_LIMIT_TICKS // len(program.loops)


def _first_uses(program: Program, start: int, end: int) -> list[int]:
    """Buffers that take turns and are used in steps `[start, end)`, in order of first use."""
    found: dict[int, None] = {}
    for instruction in program.instructions[start:end]:
        for access in instruction.accesses:
            if takes_turns(program, access.buffer):
                found.setdefault(access.buffer)
    return list(found)


def carried_candidates_of(program: Program, limit: int) -> list[int]:
    """Read-only parameters with the largest savings, in order of first use."""
    order = _first_uses(program, 0, program.num_steps)
    savings = [
        math.fsum(_saving_alone(program, step, a) for step, a in program.accesses_of_buffer[buffer])
        for buffer in order
    ]
    read_only = [
        rank
        for rank, buffer in enumerate(order)
        if program.buffers[buffer].is_parameter
        and not any(a.kind.writes for _, a in program.accesses_of_buffer[buffer])
    ]
    best = sorted(read_only, key=lambda rank: (-savings[rank], rank))[:limit]
    return [order[rank] for rank in sorted(best)]


def _saving_alone(program: Program, step: int, access: Access) -> float:
    """What the access saves if it alone is fast."""
    instruction = program.instructions[step]
    others = [other for other in instruction.accesses if other is not access]
    slow = instruction.elapsed_ticks(instruction.accesses)
    return instruction.repeat * (slow - instruction.elapsed_ticks(others))


_Points = set[tuple[int | None, int]]


def _needed(program: Program) -> tuple[_Points, _Points, _Points]:
    """Where buffers are needed: after (step, buffer) accesses, before and after (loop, buffer).

    One backward pass per frame, in which a loop is passed twice: once for what a trip itself
    reads first, once with that and what follows the loop needed at the trip's end.
    """
    after_access: _Points = set()
    before_loop: _Points = set()
    after_loop: _Points = set()
    children: dict[int | None, list[int]] = {}
    for index, loop in enumerate(program.loops):
        children.setdefault(loop.parent, []).append(index)
    used = [_used_buffers(program, loop) for loop in program.loops]

    def scan(frame: int | None, start: int, end: int, live: set[int], *, record: bool) -> None:
        inner = {program.loops[child].end_step: child for child in children.get(frame, ())}
        step = end
        while step > start:
            if step in inner:
                child = inner[step]
                pass_loop(child, live, record=record)
                step = program.loops[child].start_step
                continue
            step -= 1
            for access in program.instructions[step].accesses:
                if record and access.buffer in live:
                    after_access.add((step, access.buffer))
                (live.add if access.kind.reads else live.discard)(access.buffer)

    def pass_loop(index: int, live: set[int], *, record: bool) -> None:
        loop = program.loops[index]
        if record:
            after_loop.update((index, buffer) for buffer in live & used[index])
        outside = live - used[index]
        inside = live & used[index]
        skipped = set(inside) if loop.may_skip else set()
        if not loop.is_branch or loop.may_repeat:
            first: set[int] = set()
            scan(index, loop.start_step, loop.end_step, first, record=False)
            inside |= first
        scan(index, loop.start_step, loop.end_step, inside, record=record)
        live.clear()
        live |= outside | inside | skipped
        if record:
            before_loop.update((index, buffer) for buffer in live & used[index])

    live_out = {index for index, buffer in enumerate(program.buffers) if buffer.live_out}
    scan(None, 0, program.num_steps, live_out, record=True)
    return after_access, before_loop, after_loop


def _used_buffers(program: Program, loop: Loop) -> set[int]:
    return {
        access.buffer
        for instruction in program.instructions[loop.start_step : loop.end_step]
        for access in instruction.accesses
    }
