"""The memory map that a finished game is (docs/game.md).

The game keeps what the map needs in arrays indexed by item, on the device; this module reads
them once the map is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlo_graphs.errors import InputError
from malloc_game.memory_map import Eviction, MemoryMap, Residency, Source
from malloc_game.state import NOBODY, State
from malloc_game.turn_table import Column, ItemKind, TurnTable

_QUEUED = 4
"""Added to the action of a turn that queued an eviction."""


@dataclass(frozen=True)
class PlayedGame:
    """The logs of one game on the host, cut to the program's size.

    Attributes:
      table: the static part of the program's game.
      actions: `[num_items]`, as `State.actions`.
      births: `[num_items, 2]`, as `State.births`.
      leaves: `[num_items, 2]`, as `State.leaves`.
      head_log: `[num_items]`, as `State.head_log`.
      waited_log: `[num_items]`, as `State.waited_log`.
    """

    table: TurnTable
    actions: NDArray[np.int32]
    births: NDArray[np.int32]
    leaves: NDArray[np.int32]
    head_log: NDArray[np.int32]
    waited_log: NDArray[np.int32]

    @staticmethod
    def of(table: TurnTable, state: State) -> PlayedGame:
        """The logs of one game's `state`, finished or not."""
        size = table.num_items
        logs = (state.actions, state.births, state.leaves, state.head_log, state.waited_log)
        return PlayedGame(table, *(np.asarray(log)[:size] for log in logs))

    def position_done(self, item: int) -> int:
        """The position at which the eviction queued in `item` is done."""
        finished_in = int(np.searchsorted(self.head_log, item, side="right"))
        waited = self.waited_log[finished_in] > item
        return int(self.table.items[finished_in, Column.POSITION if waited else Column.DONE_AT])

    def residency(self, item: int, end: int | None = None) -> Residency:
        """The residency that the turn of `item` began; `end` if its end is not known yet."""
        row, frame = self.table.items[item], int(self.table.frames[item])
        carried = row[Column.KIND] == ItemKind.CARRIED
        source = Source.COPIED if row[Column.COPIED] else Source.PRODUCED
        offset, start = (int(value) for value in self.births[item])
        if end is None:
            end = self.table.program.num_steps + 1 if carried else self._end(item)
        return Residency(
            buffer=self.table.buffers[row[Column.BUFFER]],
            offset_bytes=offset * self.table.program.machine.alignment_bytes,
            start=start,
            end=end,
            source=Source.CARRIED if carried else source,
            ready=int(row[Column.POSITION]),
            loop=None if frame < 0 else frame,
        )

    def _end(self, item: int) -> int:
        left_after, last_copy = (int(value) for value in self.leaves[item])
        end = int(self.table.items[left_after, Column.AFTER])
        return end if last_copy == NOBODY else max(end, self.position_done(last_copy))

    def eviction(self, item: int) -> Eviction:
        """The eviction that the turn of `item` queued."""
        row = self.table.items[item]
        return Eviction(
            buffer=self.table.buffers[row[Column.BUFFER]],
            issue=int(row[Column.AFTER]),
            done=self.position_done(item),
        )


def memory_map_of(table: TurnTable, state: State) -> MemoryMap:
    """The map that a finished game of `table`'s program is.

    Raises:
      InputError: if the game is not over.
    """
    cursor = int(state.cursor)
    if cursor < table.num_items:
        raise InputError(
            f"{table.program.name}: the game is at item {cursor} of {table.num_items}: only a "
            f"finished game is a memory map"
        )
    game = PlayedGame.of(table, state)
    begun = np.flatnonzero(game.births[:, 1] != NOBODY)
    queued = np.flatnonzero(game.actions >= _QUEUED)
    return MemoryMap(
        residencies=tuple(game.residency(int(item)) for item in begun),
        evictions=tuple(game.eviction(int(item)) for item in queued),
    )
