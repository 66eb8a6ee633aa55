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
    max_rounds: int = 4,
    on_bound: BoundCallback | None = None,
) -> Bound:
    """The best bound found within the limit; `on_bound` hears of each improvement.

    Stops after `max_rounds` linear programs, or when a round neither adds columns nor helps.
    """
    deadline = Deadline.after(time_limit_seconds)
    prices = uniform_prices(program)
    best = price_bound(program, prices)
    relaxed: RelaxedSolution | None = None
    rounds = 0
    relaxation = Relaxation(program) if program.num_steps else None
    while relaxation is not None and rounds < max_rounds and not deadline.expired:
        found = relaxation.solve(deadline.remaining_seconds)
        if found is None:
            break
        rounds += 1
        relaxed = found
        ticks = price_bound(program, found.prices)
        improved = ticks > best * (1 + 1e-5)
        if ticks > best:
            best, prices = ticks, found.prices
            if on_bound is not None:
                on_bound(best)
        tight = found.value_ticks <= best * (1 + 1e-4)
        if tight or (rounds > 1 and not improved) or not relaxation.add_services(found.prices):
            break
    return Bound(best, prices, relaxed, rounds, deadline.elapsed_seconds)
