"""Lower bounds on latency: anytime, certified, in seconds for programs of thousands of accesses.

`bound_program` alternates between a linear program, which finds prices, and `price_bound`,
which certifies what they prove (`solvers.prices`); each round adds the services that the
cheapest lives would have liked. The bound only grows, and stopping early loses nothing else.
The bytes that every map must move are
`malloc_game.simulate.compulsory_bus_bytes`. Source: PROBLEM.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hlo_graphs.program import Program
from solvers.prices import Prices, price_bound, uniform_prices
from solvers.relaxation import Relaxation, RelaxedSolution
from solvers.solver import Deadline

TIGHT = 2e-4
"""Column generation ends when the certificate is this close to the linear program's optimum."""

SMOOTHING = (0.5, 0.15)
"""Shares of the new prices in the mixtures with the best ones that are tried each round."""

BoundCallback = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Bound:
    """A certified lower bound.

    Attributes:
      ticks: no valid map has a smaller latency.
      prices: the certificate: `price_bound(program, prices)` gives `ticks` again.
      relaxed: the linear program's last optimum, None if none was found in time.
      rounds: linear programs solved.
      wall_seconds: time taken.
    """

    ticks: float
    prices: Prices
    relaxed: RelaxedSolution | None
    rounds: int
    wall_seconds: float


def bound_program(
    program: Program,
    time_limit_seconds: float = 10.0,
    *,
    max_rounds: int = 12,
    on_bound: BoundCallback | None = None,
) -> Bound:
    """The best bound found within the limit; `on_bound` hears of each improvement.

    Stops after `max_rounds` linear programs, when the certificate meets the linear program's
    optimum, or when there are no columns to add.
    """
    search = _BoundSearch(program, Deadline.after(time_limit_seconds), on_bound)
    if program.num_steps:
        search.run(max_rounds)
    seconds = search.deadline.elapsed_seconds
    return Bound(search.best, search.prices, search.relaxed, search.rounds, seconds)


class _BoundSearch:
    """Column generation with smoothing: new columns and bounds also between old and new prices."""

    def __init__(
        self, program: Program, deadline: Deadline, on_bound: BoundCallback | None
    ) -> None:
        self.program = program
        self.deadline = deadline
        self.on_bound = on_bound
        self.prices = uniform_prices(program)
        self.best = price_bound(program, self.prices)
        self.relaxed: RelaxedSolution | None = None
        self.rounds = 0

    def run(self, max_rounds: int) -> None:
        relaxation = Relaxation(self.program)
        while self.rounds < max_rounds and not self.deadline.expired:
            found = relaxation.solve(self.deadline.remaining_seconds)
            if found is None:
                return
            self.rounds += 1
            self.relaxed = found
            self._try(found.prices)
            if found.value_ticks <= self.best * (1 + TIGHT):
                return
            added = relaxation.add_services(found.prices)
            for share in SMOOTHING:
                if self.deadline.expired:
                    return
                mixed = mix_prices(found.prices, self.prices, share)
                self._try(mixed)
                added += relaxation.add_services(mixed)
            if not added:
                return

    def _try(self, prices: Prices) -> None:
        ticks = price_bound(self.program, prices)
        if ticks > self.best:
            self.best, self.prices = ticks, prices
            if self.on_bound is not None:
                self.on_bound(ticks)


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
    )
