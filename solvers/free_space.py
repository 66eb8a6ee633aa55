"""Which addresses of fast memory are free when: best fit for a plan under construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_LOW_HALF = (1 << 32) - 1


class Piece(NamedTuple):
    """Part of what is to be placed: `size` units, `low` above its address, in `[start, end)`."""

    start: int
    end: int
    low: int
    size: int


class Space:
    """Placed rectangles over steps and alignment units, `capacity` of them.

    Arrays of their own for starts, ends and addresses, as every query looks at all starts and
    ends; an address is its low end times 2^32 plus its high end, so that sorting the few that
    matter to a query sorts both. Slots are in no order.
    """

    def __init__(self, num_steps: int, capacity: int) -> None:
        self.capacity = capacity
        self.used: npt.NDArray[np.int64] = np.zeros(num_steps, dtype=np.int64)
        self.steps: npt.NDArray[np.int32] = np.zeros((2, 64), dtype=np.int32)
        self.addresses: npt.NDArray[np.int64] = np.zeros(64, dtype=np.int64)
        self.count = 0
        self.vacant: list[int] = []

    def peak(self, start: int, end: int) -> int:
        """Most units held at any step of `[start, end)`."""
        return int(self.used[start:end].max()) if end > start else 0

    def add(self, start: int, end: int, low: int, size: int) -> int:
        """Holds `[low, low + size)` during `[start, end)`, which must be free; the slot."""
        if self.vacant:
            slot = self.vacant.pop()
        else:
            slot = self.count
            self.count += 1
            if slot == len(self.addresses):
                self.steps = np.concatenate([self.steps, np.zeros_like(self.steps)], axis=1)
                self.addresses = np.concatenate([self.addresses, np.zeros_like(self.addresses)])
        self.steps[0, slot], self.steps[1, slot] = start, end
        self.addresses[slot] = low << 32 | low + size
        self.used[start:end] += size
        return slot

    def remove(self, slot: int) -> None:
        """Frees what `add` held."""
        start, end = self.steps[:, slot].tolist()
        low, high = divmod(int(self.addresses[slot]), 1 << 32)
        self.used[start:end] -= high - low
        self.steps[:, slot] = 0
        self.vacant.append(slot)

    def is_free(self, pieces: Sequence[Piece], address: int) -> bool:
        """Whether nothing holds a unit of the pieces at this address."""
        for start, end, low, size in pieces:
            low += address
            if low + size > self.capacity:
                return False
            near = self._near(start, end)
            if (((near >> 32) < low + size) & ((near & _LOW_HALF) > low)).any():
                return False
        return True

    def best_fit(self, pieces: Sequence[Piece], size: int) -> int:
        """Lowest address in the smallest gap for pieces that lie within `size` units.

        -1 if there is none.
        """
        if len(pieces) == 1:
            near = self._near(pieces[0].start, pieces[0].end)
        else:
            near = np.concatenate([self._shifted(piece, size) for piece in pieces])
        near.sort()
        bounds = np.empty((2, len(near) + 1), dtype=np.int64)
        bounds[0, 0], bounds[1, -1] = 0, self.capacity
        np.maximum.accumulate(near & _LOW_HALF, out=bounds[0, 1:])
        np.right_shift(near, 32, out=bounds[1, :-1])
        gaps = bounds[1] - bounds[0]
        gaps[gaps < size] = self.capacity + 1
        best = int(gaps.argmin())
        return int(bounds[0, best]) if gaps[best] <= self.capacity else -1

    def _shifted(self, piece: Piece, size: int) -> npt.NDArray[np.int64]:
        """What is held meanwhile, moved so that it bars the whole from where it bars the piece.

        The piece at `a + low` meets `[l, h)` if and only if `a < h - low` and
        `a + size > l + size - low - piece.size`.
        """
        near = self._near(piece.start, piece.end)
        lows = np.minimum((near >> 32) + (size - piece.low - piece.size), self.capacity)
        shifted: npt.NDArray[np.int64] = lows << 32 | np.maximum((near & _LOW_HALF) - piece.low, 0)
        return shifted

    def _near(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Addresses held at some step of `[start, end)`, in no order."""
        starts, ends = self.steps[:, : self.count]
        near: npt.NDArray[np.int64] = self.addresses[: self.count][(starts < end) & (ends > start)]
        return near
