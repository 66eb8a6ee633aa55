"""Pictures of a game: fast memory over time and addresses, as text and as SVG.

Time runs to the right, addresses run upwards. A residency is drawn from the step at which it
holds its bytes to its end (of one that has not ended: to the present step); the part before it
is ready, while the copy is under way, is drawn lighter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap, Residency, Source
from malloc_game.outcome import PlayedGame
from malloc_game.state import NOBODY, Holding, State
from malloc_game.turn_table import Column, TurnTable

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
COPYING = "."
FREE = " "

SVG_WIDTH = 960
SVG_HEIGHT = 420
_MARGIN = 40
_COLOURS = {Source.PRODUCED: "#4c78a8", Source.COPIED: "#f58518", Source.CARRIED: "#54a24b"}


@dataclass(frozen=True, slots=True)
class Box:
    """A residency as far as it is known, or part of it: a rectangle over steps and bytes."""

    buffer: int
    low_byte: int
    high_byte: int
    start: int
    ready: int
    end: int
    source: Source


def boxes_of_state(table: TurnTable, state: State) -> tuple[Box, ...]:
    """What fast memory held until now, and holds, in a game of `table`'s program."""
    game = PlayedGame.of(table, state)
    now = present_step(table, state)
    born = np.flatnonzero(game.births[:, 1] != NOBODY)
    held = (_so_far(game, state, int(item), now) for item in born)
    return tuple(box for residency in held for box in _boxes(table.program, residency))


def _so_far(game: PlayedGame, state: State, item: int, now: int) -> Residency:
    """The residency that began in `item`, cut at the present if it has not ended."""
    row = np.asarray(state.buffers)[game.table.items[item, Column.BUFFER]]
    waiting = row[Holding.LEAVING] > 0 and row[Holding.LAST_COPY] >= int(state.head)
    here = row[Holding.BIRTH] == item and (not row[Holding.LEAVING] or waiting)
    over = int(state.cursor) >= game.table.num_items
    if here and not over:
        return game.residency(item, end=now + 1)
    return game.residency(item)


def present_step(table: TurnTable, state: State) -> int:
    """The step that the turn at hand is about; the number of steps at the end."""
    cursor = int(state.cursor)
    if cursor >= table.num_items:
        return table.program.num_steps
    return int(table.items[cursor, Column.POSITION])


def _boxes_of_map(program: Program, memory_map: MemoryMap) -> list[Box]:
    return [box for held in memory_map.residencies for box in _boxes(program, held)]


def _boxes(program: Program, residency: Residency) -> Iterator[Box]:
    """One for each stretch of steps over which it holds the same bytes: slices and holes apart."""
    size_bytes = program.buffers[residency.buffer].size_bytes
    for start, end, low_byte, high_byte in residency.occupied(size_bytes):
        yield Box(
            buffer=residency.buffer,
            low_byte=low_byte,
            high_byte=high_byte,
            start=start,
            ready=residency.ready,
            end=end,
            source=residency.source,
        )


def draw_state(table: TurnTable, state: State, *, width: int = 72, height: int = 16) -> str:
    """The game's fast memory as text, the turn at hand below it."""
    picture = draw_boxes(table.program, boxes_of_state(table, state), width=width, height=height)
    return f"{picture}\n{describe_turn(table, state)}"


def draw_map(program: Program, memory_map: MemoryMap, *, width: int = 72, height: int = 16) -> str:
    """A memory map as text."""
    boxes = _boxes_of_map(program, memory_map)
    return draw_boxes(program, boxes, width=width, height=height)


def draw_boxes(program: Program, boxes: Sequence[Box], *, width: int, height: int) -> str:
    """Residencies as text: a letter for each buffer, dots while it is being copied.

    Where several share a cell, the one that fills most of its bytes is shown.
    """
    columns = min(width, max(1, program.num_steps))
    cells = [[FREE] * columns for _ in range(height)]
    shares = np.zeros((height, columns))
    capacity = max(1, program.capacity_bytes)
    for box in boxes:
        letter = LETTERS[box.buffer % len(LETTERS)]
        for row, share in _rows(box, capacity, height):
            for column in _columns(box, program.num_steps, columns):
                step = column * program.num_steps / columns
                if share > shares[row, column]:
                    shares[row, column] = share
                    cells[row][column] = letter if step >= box.ready else COPYING
    lines = [f"|{''.join(row)}|" for row in reversed(cells)]
    top = f"{program.capacity_bytes} bytes of fast memory, {program.num_steps} steps"
    return "\n".join([top, *lines, f"+{'-' * columns}+"])


def _rows(box: Box, capacity: int, height: int) -> Iterator[tuple[int, float]]:
    """Rows of cells that the box touches, each with the share of its bytes."""
    low, high = box.low_byte * height / capacity, box.high_byte * height / capacity
    for row in range(int(low), min(height, int(np.ceil(high)))):
        yield row, min(high, row + 1) - max(low, row)


def _columns(box: Box, num_steps: int, columns: int) -> range:
    """Columns of cells whose steps the box touches; at least one."""
    first = min(columns - 1, box.start * columns // max(1, num_steps))
    last = -(-min(box.end, num_steps) * columns // max(1, num_steps))
    return range(first, max(first + 1, last))


def describe_turn(table: TurnTable, state: State) -> str:
    """One line: what the turn at hand is about and what is legal."""
    cursor = int(state.cursor)
    if cursor >= table.num_items:
        return "the game is over"
    row = table.items[cursor]
    buffer = table.program.buffers[table.buffers[row[Column.BUFFER]]]
    legal = [
        name
        for name, possible in zip(("Drop", "Copy", "Keep"), np.asarray(state.legal), strict=True)
        if possible
    ]
    where = _where(table, cursor)
    return f"{where}: {buffer.name}, {buffer.size_bytes} bytes: {' or '.join(legal)}?"


def _where(table: TurnTable, item: int) -> str:
    """What kind of turn it is, and where."""
    row, loop = table.items[item], int(table.loops[item])
    step = int(row[Column.POSITION])
    if loop >= 0:
        bounds = table.program.loops[loop]
        border = "entry" if step == bounds.start_step else "exit"
        return f"{border} of loop {loop}, steps {bounds.start_step} to {bounds.end_step - 1}"
    if not row[Column.AFTER]:
        return "before step 0"
    kind = {(1, 0): "read", (1, 1): "update", (0, 1): "write"}
    how = kind[int(row[Column.READS]), int(row[Column.WRITES])]
    return f"step {step} ({table.program.instructions[step].name}), {how}"


def svg_of_state(table: TurnTable, state: State) -> str:
    """The game's fast memory as an SVG document."""
    boxes = boxes_of_state(table, state)
    return svg_of_boxes(table.program, boxes, describe_turn(table, state))


def svg_of_map(program: Program, memory_map: MemoryMap) -> str:
    """A memory map as an SVG document."""
    boxes = _boxes_of_map(program, memory_map)
    return svg_of_boxes(program, boxes, program.name)


def svg_of_boxes(program: Program, boxes: Sequence[Box], caption: str) -> str:
    """Residencies as an SVG document; each names its buffer when pointed at."""
    shapes = "\n".join(_svg_box(program, box) for box in boxes)
    inner_width, inner_height = SVG_WIDTH - 2 * _MARGIN, SVG_HEIGHT - 2 * _MARGIN
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" \
font-family="sans-serif" font-size="12">
<text x="{_MARGIN}" y="{_MARGIN - 14}">{escape(caption)}</text>
<rect x="{_MARGIN}" y="{_MARGIN}" width="{inner_width}" height="{inner_height}" fill="#f7f7f7" \
stroke="#888"/>
{shapes}
<text x="{_MARGIN}" y="{SVG_HEIGHT - 14}">step 0</text>
<text x="{SVG_WIDTH - _MARGIN}" y="{SVG_HEIGHT - 14}" text-anchor="end">\
step {program.num_steps}</text>
<text x="8" y="{_MARGIN + 10}" font-size="10">{program.capacity_bytes}</text>
<text x="8" y="{SVG_HEIGHT - _MARGIN}" font-size="10">0</text>
</svg>
"""


def _svg_box(program: Program, box: Box) -> str:
    across = (SVG_WIDTH - 2 * _MARGIN) / max(1, program.num_steps)
    up = (SVG_HEIGHT - 2 * _MARGIN) / max(1, program.capacity_bytes)
    top = SVG_HEIGHT - _MARGIN - box.high_byte * up
    height = (box.high_byte - box.low_byte) * up
    end = min(box.end, program.num_steps)
    title = escape(
        f"{program.buffers[box.buffer].name}: {box.source}, steps {box.start} to {box.end}, "
        f"bytes {box.low_byte} to {box.high_byte}"
    )
    pieces = [(box.start, min(box.ready, end), 0.35), (min(box.ready, end), end, 0.9)]
    shapes = [
        f'<rect x="{_MARGIN + start * across:.2f}" y="{top:.2f}" '
        f'width="{(stop - start) * across:.2f}" height="{height:.2f}" '
        f'fill="{_COLOURS[box.source]}" fill-opacity="{opacity}" stroke="#333" '
        f'stroke-width="0.3"><title>{title}</title></rect>'
        for start, stop, opacity in pieces
        if stop > start
    ]
    return "\n".join(shapes)
