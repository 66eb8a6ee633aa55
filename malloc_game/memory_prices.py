"""What fast memory is worth at each step: prices that a greedy choice of stays would set.

A *stay* holds one buffer from one of its turns to the next, or through one turn, and saves time.
Taken one by one, the most time saved per byte and step first, a stay that finds room at all of
its steps takes it; one that does not raises the price of memory at the steps where room is
short, until it is no longer worth its place. So every stay that was turned away costs at least
what it saves (one that was taken may come to cost more, too), and `capacity * sum(prices)` plus
what stays earn above their cost bounds what any choice of stays can save. Addresses, copies and
what stays save together are left out: these are guesses for a player. Prices that prove a bound
on latency are in `solvers/prices.py`. No jax here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stays:
    """Stays `[N]`: half-open steps, sizes in alignment units, and what each saves, in ticks."""

    start: Integers
    end: Integers
    size_units: Integers
    saved_ticks: Floats

    def only(self, chosen: NDArray[np.bool_]) -> Stays:
        """Those where `chosen` `[N]`."""
        return Stays(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Stays]) -> Stays:
        """All of `parts`, at least one, one after another."""
        return Stays(
            *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Stays))
        )


@dataclass(frozen=True, eq=False)
class MemoryPrices:
    """Prices `[num_steps]` in ticks per alignment unit, and the room that is left there."""

    per_unit: Floats
    left_units: Integers

    def cost_ticks(self, stays: Stays) -> Floats:
        """`[N]` what the place of each stay costs."""
        before = np.concatenate([[0.0], np.cumsum(self.per_unit)])
        # Sums of prices may cancel to a little below nothing.
        paid = np.maximum(before[stays.end] - before[stays.start], 0.0)
        cost: Floats = stays.size_units * paid
        return cost


def memory_prices(stays: Stays, capacity_units: int, num_steps: int) -> MemoryPrices:
    """Prices after every stay has been looked at once."""
    prices = np.zeros(num_steps)
    left = np.full(num_steps, capacity_units, dtype=np.int64)
    steps = np.maximum(stays.end - stays.start, 0)
    area = stays.size_units * steps
    worth_a_look = np.flatnonzero((stays.saved_ticks > 0) & (area > 0))
    density = stays.saved_ticks[worth_a_look] / area[worth_a_look]
    for stay in worth_a_look[np.argsort(-density, kind="stable")].tolist():
        span = slice(stays.start[stay], stays.end[stay])
        size = stays.size_units[stay]
        short = left[span] < size
        if not short.any():
            left[span] -= size
            continue
        missing = stays.saved_ticks[stay] / size - prices[span].sum()
        if missing > 0:
            prices[span] += np.where(short, missing / np.count_nonzero(short), 0.0)
    return MemoryPrices(prices, left)
