"""The cross-entropy method on independent probabilities of the actions, turn by turn.

A round plays games whose wishes are drawn turn by turn, and moves the probabilities towards
what the best tenth played. Turns that did not come up in those games keep theirs. It starts from
given maps too, and starts anew around the best game once it has made up its mind, or its games have
stopped getting better: turns that make no difference never settle. Reference: Rubinstein and
Kroese, The Cross-Entropy Method (Springer, 2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from malloc_game.fast_game_kernels import Actions, Floats
from solvers.action_search import ActionSearch, ActionSolver, density_wishes, num_choices

NUM_ACTIONS = 4
"""Drop, Copy, Keep and, where the buffer is written, Clean."""


@dataclass(frozen=True, slots=True)
class CrossEntropySolver(ActionSolver):
    """Cross-entropy search.

    Attributes:
      games_per_round: games drawn from one table of probabilities.
      elite_share: share of them that the table moves towards.
      smoothing: how far it moves.
      least_probability: of any action, so that nothing is ruled out for good.
      start_weight: probability of the start's action at first, where there is a start; the rest
        is shared evenly. 1/3 starts from uniform.
      decided: mean of the largest probabilities at which the search starts anew.
      patience: rounds without a game better than all since the start, after which it does so too.
    """

    name: str = "cross-entropy"
    games_per_round: int = 200
    elite_share: float = 0.1
    smoothing: float = 0.3
    least_probability: float = 0.003
    start_weight: float = 0.6
    decided: float = 0.985
    patience: int = 20

    def play(self, search: ActionSearch) -> None:
        """Games by density, then rounds, anew whenever nothing more comes of the probabilities."""
        start_from_densities(search)
        while not search.finished:
            self._converge(search, self._start(search))

    def warm_up(self, search: ActionSearch, until: float) -> None:
        """Part of another solver's run, until its progress reaches `until`."""
        table = self._start(search)
        while not search.finished and search.progress < until:
            table, _ = self._round(search, table)

    def _start(self, search: ActionSearch) -> Floats:
        """`[num_turns, NUM_ACTIONS]`: mostly the best game's wishes, the rest evenly."""
        wishes = search.best.wishes
        choices = num_choices(search.game)[:, None]
        rest = (1 - self.start_weight) / (choices - 1)
        table = np.where(np.arange(NUM_ACTIONS) < choices, rest, 0.0)
        table[np.arange(wishes.size), wishes] = self.start_weight
        return np.asarray(table / table.sum(axis=1, keepdims=True), dtype=np.float64)

    def _converge(self, search: ActionSearch, table: Floats) -> None:
        """Rounds until the probabilities have decided, games get no better, or time is over."""
        fastest, idle_rounds = math.inf, 0
        while not search.finished and idle_rounds < self.patience:
            if search.hear_news():
                table, idle_rounds = (table + self._start(search)) / 2, 0
            table, ticks = self._round(search, table)
            idle_rounds = 0 if ticks < fastest else idle_rounds + 1
            fastest = min(fastest, ticks)
            if table.max(axis=1).mean() >= self.decided:
                return

    def _round(self, search: ActionSearch, table: Floats) -> tuple[Floats, float]:
        """Plays games; probabilities moved towards the best of them, and the fastest's latency."""
        num_elite = max(1, round(self.games_per_round * self.elite_share))
        latencies, taken = search.sample(table, self.games_per_round)
        elite = taken[np.argpartition(latencies, num_elite - 1)[:num_elite]]
        moved = moved_towards(table, elite, self.smoothing, self.least_probability)
        return moved, float(latencies.min())


def moved_towards(
    table: Floats, elite: Actions, smoothing: float, least_probability: float
) -> Floats:
    """`[num_turns, num_actions]` probabilities, moved towards what the elite played.

    Args:
      table: `[num_turns, num_actions]`; what is 0 there stays so.
      elite: `[num_games, num_turns]` actions, negative where a turn was not asked.
      smoothing: how far, where all of the elite were asked.
      least_probability: of actions that are not 0.
    """
    counts = np.stack([(elite == action).sum(axis=0) for action in range(table.shape[1])], axis=1)
    asked = counts.sum(axis=1, keepdims=True)
    shares = np.where(asked > 0, counts / np.maximum(asked, 1), table)
    step = smoothing * asked / elite.shape[0]
    least = np.where(table > 0, least_probability, 0.0)
    moved = np.maximum(table + step * (shares - table), least)
    return np.asarray(moved / moved.sum(axis=1, keepdims=True), dtype=np.float64)


def start_from_densities(search: ActionSearch) -> None:
    """Considers the games that keep what saves most per byte and step, by several measures."""
    search.game.hints[:] = -1
    for wishes in density_wishes(search.game):
        latency = search.game.latency_ticks(wishes)
        search.games_played += 1
        search.consider(wishes, latency)
        if search.finished:
            break
    search.game.hints[:] = search.best.hints
