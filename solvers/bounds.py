"""Lower bounds on latency: anytime, certified, in seconds for programs of thousands of accesses.

`bound_program` alternates between a linear program, which finds prices, and `price_bound`,
which certifies what they prove (`solvers.prices`); each round adds the services that the
cheapest lives would have liked, and what cuts the point breaks (`solvers.covers`,
`solvers.duration_cuts`).
When nothing is left to add it branches: on one item being resident or not, the one that makes most
of a difference in both linear programs, with certified prices for each leaf. The bound only grows,
and stopping early loses nothing else.
The bytes that every map must move are
`malloc_game.simulate.compulsory_bus_bytes`. Why the bound holds: docs/bounds.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hlo_graphs.program import Program
from solvers.prices import (
    NOTHING_FORCED,
    Forced,
    ItemKey,
    Prices,
    price_bound,
    resident_lanes,
    uniform_prices,
)
from solvers.relaxation import Relaxation, RelaxedSolution
from solvers.solver import Deadline
from solvers.timeline import live_ranges_within

TIGHT = 2e-4
"""Column generation ends when the certificate is this close to the linear program's optimum."""

LEAST_GAIN = 2e-5
"""Share of the bound that a round of cuts must bring for another to follow."""

CANDIDATES = 8
"""Items that are tried before one is chosen to branch on."""

CHILD_ROUNDS = 3
"""Linear programs solved for one leaf that can be split instead, at most."""

SMOOTHING = (0.5, 0.15)
"""Shares of the new prices in the mixtures with the best ones that are tried each round."""

BoundCallback = Callable[[float], None]

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A case of the certificate.

    Attributes:
      forced: (buffer, lane, item) that a residency of the lane covers, or not, in this case.
      prices: what proves the case's bound.
      ticks: no valid map of this case has a smaller latency.
      relaxed_ticks: the linear program's optimum of this case; infinite if it has no point.
      undecided: items that are partly resident in it, the most promising to branch on.
    """

    forced: Forced
    prices: Prices
    ticks: float
    relaxed_ticks: float
    undecided: tuple[ItemKey, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """A certified lower bound.

    Attributes:
      ticks: no valid map has a smaller latency.
      leaves: the certificate: cases that together cover all maps, each with prices whose
        `price_bound` is `ticks` at least.
      relaxed: the linear program's last optimum, None if none was found in time.
      rounds: linear programs solved.
      wall_seconds: time taken.
    """

    ticks: float
    leaves: tuple[Leaf, ...]
    relaxed: RelaxedSolution | None
    rounds: int
    wall_seconds: float


def bound_program(
    program: Program,
    time_limit_seconds: float = 10.0,
    *,
    on_bound: BoundCallback | None = None,
    target_ticks: Callable[[], float] | None = None,
    branching: bool = True,
) -> Bound:
    """The best bound found within the limit; `on_bound` hears of each improvement.

    Once the certificate meets the linear program's optimum, and cuts raise that no more, it
    branches, until the bound reaches `target_ticks()`, the latency of the best map known, if that
    is given.
    """
    search = _BoundSearch(program, Deadline.after(time_limit_seconds), on_bound)
    leaves = [Leaf({}, search.prices, search.best, math.inf, ())]
    if program.num_steps:
        relaxation = Relaxation(program, search.lanes)
        search.run(relaxation)
        tree = _Tree(search, relaxation, target_ticks)
        if branching:
            tree.grow()
        leaves = tree.leaves
    seconds = search.deadline.elapsed_seconds
    return Bound(search.best, tuple(leaves), search.relaxed, search.rounds, seconds)


class _BoundSearch:
    """Column generation with smoothing: new columns and bounds also between old and new prices."""

    def __init__(
        self, program: Program, deadline: Deadline, on_bound: BoundCallback | None
    ) -> None:
        self.program = program
        self.deadline = deadline
        self.on_bound = on_bound
        self.lanes = resident_lanes(program)
        self.prices = uniform_prices(program)
        self.best = self.certified(self.prices)
        self.relaxed: RelaxedSolution | None = None
        self.rounds = 0

    def certified(self, prices: Prices, forced: Forced = NOTHING_FORCED) -> float:
        """What prices prove of the maps that obey `forced`."""
        return price_bound(self.program, prices, lanes=self.lanes, forced=forced)

    def run(self, relaxation: Relaxation) -> None:
        """Columns and cuts until nothing is left to gain, or cuts gain little."""
        value = 0.0
        while not self.deadline.expired:
            found = relaxation.solve(self.deadline.remaining_seconds)
            if found is None:
                return
            self.rounds += 1
            self.relaxed = found
            self._try(found.prices)
            added = 0
            if found.value_ticks > self.best * (1 + TIGHT):
                added = self._add_services(relaxation, found)
            elif found.value_ticks <= value * (1 + LEAST_GAIN):
                return
            else:
                value = found.value_ticks
            added += relaxation.add_cuts(found)
            if not added:
                return

    def _add_services(self, relaxation: Relaxation, found: RelaxedSolution) -> int:
        """Columns that are cheap under new prices, or between these and the best; how many."""
        added = relaxation.add_services(found.prices)
        for share in SMOOTHING:
            if self.deadline.expired:
                break
            mixed = mix_prices(found.prices, self.prices, share)
            self._try(mixed)
            added += relaxation.add_services(mixed)
        return added

    def _try(self, prices: Prices) -> None:
        ticks = self.certified(prices)
        if ticks > self.best:
            self.prices = prices
            self.raise_to(ticks)

    def raise_to(self, ticks: float) -> None:
        """Takes note of a better bound."""
        if ticks > self.best:
            self.best = ticks
            if self.on_bound is not None:
                self.on_bound(ticks)


class _Tree:
    """Branch and bound, the leaf with the smallest bound first."""

    def __init__(
        self,
        search: _BoundSearch,
        relaxation: Relaxation,
        target_ticks: Callable[[], float] | None,
    ) -> None:
        self.search = search
        self.program = search.program
        self.relaxation = relaxation
        self.target_ticks = target_ticks
        self.leaves = [self._leaf({}, search.prices, search.best, search.relaxed)]

    def grow(self) -> None:
        """Splits leaves until time is up, the target is reached or the least has no choice."""
        while not self.search.deadline.expired:
            weakest = min(self.leaves, key=lambda leaf: leaf.ticks)
            self.search.raise_to(weakest.ticks)
            if self.target_ticks is not None and weakest.ticks >= self.target_ticks():
                return
            choice = self._choice(weakest)
            if choice is None:
                return
            children = [self._child(weakest, choice, covered) for covered in (True, False)]
            self.leaves.remove(weakest)
            self.leaves.extend(children)
        self.search.raise_to(min(leaf.ticks for leaf in self.leaves))

    def _choice(self, leaf: Leaf) -> ItemKey | None:
        """The partly resident item whose being so, or not, raises both cases' programs most."""
        best, best_score = None, 0.0
        for key in leaf.undecided:
            if best is not None and self.search.deadline.expired:
                break
            score = self._gain(leaf, key, True) * self._gain(leaf, key, False)
            if score > best_score:
                best, best_score = key, score
        return best

    def _leaf(
        self,
        forced: Forced,
        prices: Prices,
        ticks: float,
        relaxed: RelaxedSolution | None,
    ) -> Leaf:
        """What is to be remembered of a case: not its whole linear program, there are many."""
        if relaxed is None:
            return Leaf(forced, prices, ticks, math.inf, ())
        undecided = self._partly_fast(forced, relaxed)[:CANDIDATES]
        return Leaf(forced, prices, ticks, relaxed.value_ticks, tuple(undecided))

    def _partly_fast(self, forced: Forced, relaxed: RelaxedSolution) -> list[ItemKey]:
        """Items to branch on, those of which most bytes are undecided first."""
        scored: list[tuple[float, ItemKey]] = []
        for key, share in relaxed.fast.items():
            if not 0.01 < share < 0.99 or key in forced:
                continue
            buffer, lane_index, position = key
            item = self.relaxation.lanes[buffer][lane_index].items[position]
            if item.loop is None and self.program.instructions[item.start_step].async_copy:
                continue
            size_bytes = self.program.buffers[buffer].size_bytes
            scored.append((min(share, 1 - share) * size_bytes, key))
        scored.sort(key=lambda row: (-row[0], row[1]))
        return [key for _, key in scored]

    def _gain(self, leaf: Leaf, key: ItemKey, covered: bool) -> float:
        """By what share of the bound a case's linear program is above the leaf's, a little more
        than none in any case; much where it has no point."""
        remaining = self.search.deadline.remaining_seconds
        ticks = self.relaxation.solve_value(remaining, {**leaf.forced, key: covered})
        return 1.0 if ticks is None else max(ticks / leaf.relaxed_ticks - 1, 1e-6)

    def _child(self, parent: Leaf, choice: ItemKey, covered: bool) -> Leaf:
        """A case of the parent, with the prices that prove most: the parent's or its own."""
        forced = {**parent.forced, choice: covered}
        prices = parent.prices
        step = self._overfull_step(forced)
        if step is not None:
            prices = with_dearer_space(prices, step, self.program.all_slow_ticks)
            return self._leaf(forced, prices, self.search.certified(prices, forced), None)
        ticks = self.search.certified(prices, forced)
        relaxed: RelaxedSolution | None = None
        for count in itertools.count(1):
            found = self.relaxation.solve(self.search.deadline.remaining_seconds, forced)
            if found is None:
                break
            relaxed = found
            own = self.search.certified(found.prices, forced)
            if own > ticks:
                ticks, prices = own, found.prices
            may_split = count >= CHILD_ROUNDS and self._partly_fast(forced, found)
            if may_split or self.search.deadline.expired:
                break
            added = self.relaxation.add_cuts(found)
            if own < found.value_ticks * (1 - TIGHT):
                added += self.relaxation.add_services(found.prices)
            if not added:
                break
        return self._leaf(forced, prices, ticks, relaxed)

    def _overfull_step(self, forced: Forced) -> int | None:
        """A step at which the items that are covered in this case do not fit; None if they do.

        No map is of such a case, and its linear program has no point.
        """
        held = np.zeros(self.program.num_steps, dtype=np.int64)
        for (buffer, lane_index, position), covered in forced.items():
            if covered:
                lane = self.relaxation.lanes[buffer][lane_index]
                for start, end in live_ranges_within(self.program, lane, position):
                    held[start:end] += self.program.buffers[buffer].size_bytes
        step = int(held.argmax())
        return step if held[step] > self.program.capacity_bytes else None


def with_dearer_space(prices: Prices, step: int, ticks: float) -> Prices:
    """The same prices, but for `ticks` more for an alignment unit during `step`."""
    space = prices.space.copy()
    space[0, step + 1 :] += ticks
    return replace(prices, space=space)


def mix_prices(first: Prices, second: Prices, share: float) -> Prices:
    """`share` of the first and the rest of the second: valid prices again."""
    if first.divisors != second.divisors:
        return first
    rest = 1.0 - share
    return Prices(
        first.space * share + second.space * rest,
        first.idle * share + second.idle * rest,
        first.lanes * share + second.lanes * rest,
        first.divisors,
        _mixed(first.covers, second.covers, share),
        _mixed(first.durations, second.durations, share),
    )


def _mixed(
    first: Mapping[_Key, float], second: Mapping[_Key, float], share: float
) -> dict[_Key, float]:
    return {
        key: share * first.get(key, 0.0) + (1 - share) * second.get(key, 0.0)
        for key in first.keys() | second.keys()
    }
