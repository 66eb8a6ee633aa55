"""Remembered decisions as columns, so that a batch of any size is one gather.

A game of `T` decisions is `T + 1` rows that follow each other: its decisions, and its end. What
lies `k` moves after a decision is then the row `k` further on, or the end's if that comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.games import OBSERVED, Game
from malloc_game.observation import Observation

FIRST_PRIORITY = 1.0
"""Of decisions the learner has not seen, in place of their errors: those known to be far off come
first."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns of `R` rows; of the rows that are a game's end, the first four mean anything, and
    the rest is 0.

    Attributes:
      program: `[R]` int32 index into the `ProgramSet`.
      cursor: `[R]` int32 item.
      gained: `[R]` float32 sum of the game's rewards before, shares of the all-slow latency.
      left: `[R]` int32 decisions up to the end, this one included; 0 at the end.
      action: `[R]` int8 played.
      policy: `[R, 3]` float32 that the search recommended.
      legal: `[R, 3]` bool.
      priority: `[R]` float32 how likely a decision is drawn (`agents.replay`); 0 at the end.
      turn, now, window, memory, idle: the observation, compact (`agents.games.compact`).
    """

    program: NDArray[np.int32]
    cursor: NDArray[np.int32]
    gained: NDArray[np.float32]
    left: NDArray[np.int32]
    action: NDArray[np.int8]
    policy: NDArray[np.float32]
    legal: NDArray[np.bool_]
    priority: NDArray[np.float32]
    turn: NDArray[np.float16]
    now: NDArray[np.float16]
    window: NDArray[np.float16]
    memory: NDArray[np.uint8]
    idle: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.program)

    @staticmethod
    def of(game: Game) -> Rows:
        """One game."""
        length = len(game)
        observed = {name: _ended(getattr(game.observations, name)) for name in OBSERVED}
        return Rows(
            program=np.full(length + 1, game.program, dtype=np.int32),
            cursor=game.cursors,
            gained=game.gained,
            left=np.arange(length, -1, -1, dtype=np.int32),
            action=_ended(game.actions),
            policy=_ended(game.policies),
            legal=_ended(game.observations.action_mask),
            priority=_ended(np.full(length, FIRST_PRIORITY, dtype=np.float32)),
            **observed,
        )

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """All of `parts`, at least one, one after another."""
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS
        }
        return Rows(**columns)

    def observation(self, places: NDArray[np.intp]) -> Observation:
        """The compact observations at `places`, with their shape before that of an observation."""
        seen: dict[str, Any] = {name: getattr(self, name)[places] for name in OBSERVED}
        return Observation(**seen, action_mask=self.legal[places])  # type: ignore[arg-type]

    def slice(self, start: int, end: int) -> Rows:
        """Rows `[start, end)`, not copied."""
        return Rows(**{name: getattr(self, name)[start:end] for name in _COLUMNS})

    def resized(self, size: int) -> Rows:
        """The same rows at the front of `size`; what follows means nothing."""
        columns = {}
        for name in _COLUMNS:
            old = getattr(self, name)
            columns[name] = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
            columns[name][: len(old)] = old
        return Rows(**columns)

    def put(self, start: int, rows: Rows) -> None:
        """Overwrites the rows from `start` on."""
        for name in _COLUMNS:
            getattr(self, name)[start : start + len(rows)] = getattr(rows, name)

    def to_document(self) -> dict[str, NDArray[Any]]:
        """For a checkpoint."""
        return {name: np.array(getattr(self, name)) for name in _COLUMNS}


_COLUMNS = tuple(field.name for field in fields(Rows))


def _ended(column: Any) -> NDArray[Any]:
    """`column` and a row of zeros for the game's end."""
    column = np.asarray(column)
    return np.concatenate([column, np.zeros((1, *column.shape[1:]), dtype=column.dtype)])


class RowStore:
    """Games one after another, the oldest first; the oldest can be dropped.

    Attributes:
      rows: columns that hold the games in `[first, last)`.
      first, last: where.
    """

    def __init__(self) -> None:
        self.rows: Rows | None = None
        self.first, self.last = 0, 0

    def append(self, rows: Rows) -> None:
        """Adds a game. May move the others to the front."""
        live = self.last - self.first
        if self.rows is None:
            self.rows = rows.resized(2 * len(rows))
        elif self.last + len(rows) > len(self.rows):
            kept = self.rows.slice(self.first, self.last)
            needed = live + len(rows)
            # Moving must leave room for a good part of what is held, or it happens too often.
            if 3 * needed > 2 * len(self.rows):
                self.rows = kept.resized(2 * needed)
            else:
                self.rows.put(0, kept)
            self.first, self.last = 0, live
        self.rows.put(self.last, rows)
        self.last += len(rows)

    def drop(self, count: int) -> None:
        """Forgets the `count` oldest rows."""
        self.first += count

    @property
    def live(self) -> Rows:
        """What is held, not copied; there must be something."""
        assert self.rows is not None
        return self.rows.slice(self.first, self.last)
