"""Prefetches in slices, each of which holds its bytes only once it is fetched itself.

Production does the same: of a large buffer it copies one quarter after the other, so that the
last of them need no place while the first are on their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hlo_graphs.program import Program
from malloc_game.memory_map import Part, Residency
from solvers.idle_time import Window

MOST_SLICES = 4
"""Of one prefetch: no map of production has more."""

LEAST_SLICED_BYTES = 1 << 20
"""Of a buffer that is fetched in slices: no smaller one is by production."""


class Slice(NamedTuple):
    """Part of a residency: `size` units, `low` above its address, held from step `start` on."""

    low: int
    size: int
    start: int


class Slicing:
    """How the buffers of a program may be cut.

    Args:
      program: the program.
      most_slices: of one prefetch; 1 for prefetches as a whole.
      least_bytes: of a buffer that is fetched in slices.
    """

    def __init__(
        self,
        program: Program,
        most_slices: int = MOST_SLICES,
        least_bytes: int = LEAST_SLICED_BYTES,
    ) -> None:
        self.program = program
        self.unit = program.machine.alignment_bytes
        counts = [most_slices if b.size_bytes >= least_bytes else 1 for b in program.buffers]
        units = [found.size_bytes // self.unit for found in program.buffers]
        self._sizes = [_parted(*both) for both in zip(units, counts, strict=True)]
        self._ticks = [[self._copy_ticks(size) for size in sizes] for sizes in self._sizes]
        self.most_ticks = [sum(ticks) for ticks in self._ticks]
        """Per buffer the copy work of all its slices: each rounded up, so no less than in one."""

    def _copy_ticks(self, units: int) -> int:
        return self.program.copy_ticks(units * self.unit)

    def cut(self, buffer: int, window: Window) -> tuple[Slice, ...]:
        """Slices of a prefetch, the first at the lowest address, each begun when it is served.

        Those that begin in one step are one slice; so is what the window does not serve.
        """
        arrivals = reversed(window.arrivals)
        step, arrived = window.end, 0
        slices: list[Slice] = []
        low = before = 0
        for size, ticks in zip(self._sizes[buffer], self._ticks[buffer], strict=True):
            while arrived <= before:
                step, more = next(arrivals, (window.end, before + 1))
                arrived += more
            if slices and slices[-1].start == step:
                slices[-1] = slices[-1]._replace(size=slices[-1].size + size)
            else:
                slices.append(Slice(low, size, step))
            low += size
            before += ticks
        return tuple(slices)

    def ticks_of(self, slices: Sequence[Slice]) -> int:
        """Copy work of these slices."""
        return sum(self._copy_ticks(part.size) for part in slices)

    def is_sliced(self, buffer: int) -> bool:
        """Whether a prefetch of the buffer may come in slices."""
        return len(self._sizes[buffer]) > 1


def _parted(units: int, count: int) -> list[int]:
    """Like parts, at most so many, the last one perhaps smaller."""
    each = max(-(-units // count), 1)
    return [min(each, units - low) for low in range(0, max(units, 1), each)]


def slices_of(residency: Residency, units: int, unit_bytes: int) -> tuple[Slice, ...]:
    """The slices of a residency of so many units; one if it comes as a whole."""
    if not residency.parts:
        return (Slice(0, units, residency.start),)
    return tuple(
        Slice(part.offset_bytes // unit_bytes, part.size_bytes // unit_bytes, part.start)
        for part in residency.parts
    )


def parts_of(slices: Sequence[Slice], unit_bytes: int) -> tuple[Part, ...]:
    """What a residency says of its slices: nothing if it comes as a whole."""
    if len(slices) == 1:
        return ()
    return tuple(Part(cut.low * unit_bytes, cut.size * unit_bytes, cut.start) for cut in slices)


def mirrored(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """The same with the first slice at the highest address."""
    total = sum(part.size for part in slices)
    return tuple(part._replace(low=total - part.low - part.size) for part in slices)
