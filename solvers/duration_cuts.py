"""Duration cuts: what a step lasts at least, as a sum over its slow accesses.

A step lasts as long as the longest of its lanes, and in a linear relaxation half of an access hides
behind another lane. A whole one may not. The tightest sums, a base and ticks for each slow access,
that no set of slow accesses undercuts are the facets of the duration's convex envelope. One is
found on the face of the partly slow accesses, by a linear program over that face's corners, and
lifted to the others in turn, exactly. Source: Balas, "Facets of the knapsack polytope", 1975, for
the lifting; Falk and Hoffman, "A successive underestimation method for concave minimization
problems", 1976, for envelopes over corners.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hlo_graphs.program import Access, Instruction
from solvers.linear_program import LinearProgram

MOST_ACCESSES = 10
"""Whose slow sets are looked through for one cut; others of the step are taken to be fast."""

_WHOLE = 1e-4
"""A share this close to 0 or 1 is taken to be that."""

_SECONDS = 10.0
"""For a linear program of `MOST_ACCESSES` columns, which takes milliseconds."""

Ticks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DurationCut:
    """`base_ticks` and the `ticks` of those accesses that are slow: never above the duration.

    Attributes:
      base_ticks: may be negative.
      ticks: as (buffer, ticks), sorted, none of 0 ticks.
    """

    base_ticks: int
    ticks: tuple[tuple[int, int], ...]


def violated_duration_cut(
    instruction: Instruction, slow: Mapping[int, float], elapsed_ticks: float
) -> DurationCut | None:
    """A cut by which an instruction lasts longer than `elapsed_ticks`; None if none is found.

    Args:
      instruction: what is executed.
      slow: per buffer the share of its access that is slow; of those left out all is.
      elapsed_ticks: what the instruction is taken to last.
    """
    partly = [buffer for buffer, share in slow.items() if _WHOLE < share < 1 - _WHOLE]
    if not partly:
        return None
    others = sorted((b for b in slow if b not in partly), key=lambda b: -round(slow[b]))
    chosen = [*partly, *others][:MOST_ACCESSES]
    access_of = {access.buffer: access for access in instruction.accesses}
    always = [access for buffer, access in access_of.items() if buffer not in slow]
    table = durations(instruction, [access_of[buffer] for buffer in chosen], always)
    shares = [slow[buffer] for buffer in chosen[: len(partly)]]
    whole = [round(slow[buffer]) for buffer in chosen[len(partly) :]]
    face = _where_last(table, whole)
    if _chain(face, shares) <= elapsed_ticks:
        return None
    ticks = _lifted(table, _steepest(face, shares), whole)
    base = int((table - _sums(ticks)).min())  # Whatever the ticks, the sum is nowhere above.
    if base + np.dot(ticks, [*shares, *whole]) <= elapsed_ticks:
        return None
    pairs = zip(chosen, ticks, strict=True)
    return DurationCut(base, tuple(sorted(pair for pair in pairs if pair[1])))


def durations(
    instruction: Instruction, accesses: Iterable[Access], always_slow: Iterable[Access]
) -> Ticks:
    """[2, 2, ...] ticks that the instruction lasts: along each axis an access is fast, or slow.

    Accesses that are in neither list are fast.
    """
    lanes = np.array([*instruction.base_ticks, 0], dtype=np.int64)
    for access in always_slow:
        lanes = lanes + _lanes(access)
    for access in accesses:
        lanes = np.stack([lanes, lanes + _lanes(access)], axis=-2)
    longest: Ticks = lanes.max(axis=-1)
    return longest


def _lanes(access: Access) -> Ticks:
    return np.array([*access.lane_ticks, access.bus_ticks], dtype=np.int64)


def _sums(ticks: Sequence[int]) -> Ticks:
    """[2, 2, ...] the sum over every set."""
    sums = np.zeros((), dtype=np.int64)
    for more in ticks:
        sums = np.stack([sums, sums + more], axis=-1)
    return sums


def _where_last(table: Ticks, whole: Sequence[int]) -> Ticks:
    """[2, 2, ...] the part of a table in which the last axes are at `whole`."""
    for is_slow in reversed(whole):
        table = table[..., is_slow]
    return table


def _chain(face: Ticks, shares: Sequence[float]) -> float:
    """What the face's corners give between them, those on the way that adds the fullest first.

    An upper bound on the envelope: the envelope is the least that corners can give.
    """
    corner = [0] * len(shares)
    total, last = float(face[tuple(corner)]), float(face[tuple(corner)])
    for axis in sorted(range(len(shares)), key=lambda axis: -shares[axis]):
        corner[axis] = 1
        after = float(face[tuple(corner)])
        total, last = total + shares[axis] * (after - last), after
    return total


def _steepest(face: Ticks, shares: Sequence[float]) -> list[int]:
    """Ticks per axis of the sum that is largest at `shares` and nowhere above the face."""
    if len(shares) == 1:
        return [int(face[1] - face[0])]
    scale = max(float(face.max()), 1.0)
    program = LinearProgram()
    base = program.column(-1.0, -np.inf, np.inf)
    slopes = [program.column(-share, 0.0, np.inf) for share in shares]
    for corner in itertools.product((0, 1), repeat=len(shares)):
        terms = [(slope, 1.0) for slope, is_slow in zip(slopes, corner, strict=True) if is_slow]
        program.row(-np.inf, float(face[corner]) / scale, [(base, 1.0), *terms])
    if not program.minimise(_SECONDS, {}):
        return [0] * len(shares)
    point = program.solution().point[slopes] * scale
    return [max(int(ticks), 0) for ticks in np.floor(point + 1e-3)]


def _lifted(table: Ticks, ticks: Sequence[int], whole: Sequence[int]) -> list[int]:
    """A face's ticks, and for each other axis, there at `whole`, as many as there is room for."""
    lifted = list(ticks)
    for count in range(len(whole)):
        room = _where_last(table, whole[count + 1 :]) - _sums(lifted)[..., np.newaxis]
        fast, slow = int(room[..., 0].min()), int(room[..., 1].min())
        lifted.append(slow - fast)  # A step is no shorter for what is slow.
    return lifted
