"""Cover inequalities as rows of the linear relaxation: who counts in which, what a point breaks.

The relaxation says which columns hold a buffer, from when to when, as a whole or in part. Rows and
columns may come in any order: each row counts the columns that are there, and those to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.covers import Cover, violated_cover, violated_flow_cover
from solvers.linear_program import Floats, LinearProgram

LEAST_VIOLATION = 1e-2
"""Of a cover inequality or flow cover that is added."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A column that holds its buffer during steps [start, end), perhaps only in part.

    Attributes:
      column: of the linear program.
      start: first step.
      end: one past the last.
      sign: -1 where a share that another column holds is not there yet.
      in_parts: a part of it may be there alone.
    """

    column: int
    start: int
    end: int
    sign: int
    in_parts: bool


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A buffer in the row of a cover inequality, where parts of it may count too."""

    row: int
    step: int
    weight: float
    in_parts: bool


class CoverRows:
    """The rows of cover inequalities in a linear program.

    Args:
      matrix: the linear program.
      sizes: per buffer, in alignment units.
      capacity: likewise.
    """

    def __init__(self, matrix: LinearProgram, sizes: Sequence[int], capacity: int) -> None:
        self._matrix = matrix
        self._sizes = sizes
        self._capacity = capacity
        self._holds: list[list[Hold]] = [[] for _ in sizes]
        self._rows: dict[tuple[int, Cover], int] = {}
        self._covers_of: list[list[_Weighed]] = [[] for _ in sizes]

    def hold(self, buffer: int, hold: Hold) -> None:
        """Takes note of a column that holds a buffer."""
        self._holds[buffer].append(hold)
        for cover in self._covers_of[buffer]:
            self._count(cover, hold)

    def add_violated(self, point: Floats) -> int:
        """Adds, for every step, the inequalities that a point breaks; returns how many."""
        added = 0
        for step, whole, part in self._held(point):
            arguments = (self._sizes, self._capacity, LEAST_VIOLATION)
            broken = [violated_cover(whole, *arguments)]
            if part:
                broken.append(violated_flow_cover(whole, part, *arguments))
            for cover in broken:
                if cover is not None and (step, cover) not in self._rows:
                    self._add(step, cover)
                    added += 1
        return added

    def prices(self, row_duals: Floats) -> dict[tuple[int, Cover], float]:
        """What a unit of weight costs, by step and inequality: where that is something."""
        return {
            key: -float(row_duals[row]) / _scale_of(key[1])
            for key, row in self._rows.items()
            if row_duals[row] < 0
        }

    def _held(self, point: Floats) -> Iterator[tuple[int, dict[int, float], dict[int, float]]]:
        """Steps at which something else is held than before, with the shares of buffers that are
        there as a whole and in part."""
        changes: dict[int, list[tuple[bool, int, float]]] = {}
        for buffer, holds in enumerate(self._holds):
            for hold in holds:
                share = hold.sign * float(point[hold.column]) if hold.column < len(point) else 0.0
                if share:
                    changes.setdefault(hold.start, []).append((hold.in_parts, buffer, share))
                    changes.setdefault(hold.end, []).append((hold.in_parts, buffer, -share))
        held: tuple[dict[int, float], dict[int, float]] = ({}, {})
        for step in sorted(changes):
            for in_parts, buffer, share in changes[step]:
                held[in_parts][buffer] = held[in_parts].get(buffer, 0.0) + share
            whole, part = (
                {buffer: min(share, 1.0) for buffer, share in shares.items() if share > 1e-6}
                for shares in held
            )
            yield step, whole, part

    def _add(self, step: int, cover: Cover) -> None:
        scale = _scale_of(cover)
        row = self._matrix.row(-np.inf, cover.limit / scale, ())
        self._rows[step, cover] = row
        for buffer, weight in cover.weights:
            weighed = _Weighed(row, step, weight / scale, buffer in cover.parts)
            self._covers_of[buffer].append(weighed)
            for hold in self._holds[buffer]:
                self._count(weighed, hold)

    def _count(self, cover: _Weighed, hold: Hold) -> None:
        if hold.start <= cover.step < hold.end and (cover.in_parts or not hold.in_parts):
            self._matrix.entry(cover.row, hold.column, hold.sign * cover.weight)


def _scale_of(cover: Cover) -> int:
    """What a cover's row is divided by: its weights may be units of memory."""
    return max(weight for _, weight in cover.weights)
