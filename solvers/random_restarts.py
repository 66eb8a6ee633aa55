"""Random games: the floor every cleverer search over the same actions must beat.

Each batch draws its own shares of Drop, Copy and Keep, then plays that many games at random:
with fixed shares all games of a large program look alike. Source: PROBLEM.md section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.action_search import ActionSearch
from solvers.solver import Solution, SolveRequest


@dataclass(frozen=True, slots=True)
class RandomSolver:
    """Random restarts.

    Attributes:
      games_per_batch: games played with the same shares.
      max_games: stop after so many games; None leaves it to the clock.
    """

    games_per_batch: int = 20
    max_games: int | None = None
    name: str = "random"

    def solve(self, request: SolveRequest) -> Solution:
        """The best random game, if it beats the initial maps and the empty one."""
        search = ActionSearch(request, self.name, self.max_games)
        while not search.finished:
            shares = search.rng.dirichlet(np.ones(3))
            search.sample(np.tile(shares, (search.game.num_turns, 1)), self.games_per_batch)
        return search.solution()
