"""Random games: the floor every cleverer search over the same actions must beat.

Each batch draws its own shares of Drop, Copy and Keep, then plays that many games at random:
with fixed shares all games of a large program look alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.action_search import ActionSearch, ActionSolver


@dataclass(frozen=True, slots=True)
class RandomSolver(ActionSolver):
    """Random restarts.

    Attributes:
      games_per_batch: games played with the same shares.
    """

    name: str = "random"
    games_per_batch: int = 20

    def play(self, search: ActionSearch) -> None:
        """Batches of random games."""
        while not search.finished:
            shares = search.rng.dirichlet(np.ones(3))
            search.sample(np.tile(shares, (search.game.num_turns, 1)), self.games_per_batch)
