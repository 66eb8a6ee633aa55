"""A plain evolution strategy over arrays of wishes: the control that learned play must beat.

A population of games; parents are chosen by tournament, crossed at points in time (what happens
in one stretch of the program hardly depends on another), mutated turn by turn; the best of
parents and children live on. Where nothing gets better any more it begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from malloc_game.fast_game_kernels import Actions, Floats, Integers
from solvers.action_search import ActionSearch, ActionSolver, density_wishes


@dataclass(frozen=True, kw_only=True, slots=True)
class EvolutionSettings:
    """How games have children.

    Attributes:
      population: games that live on.
      children: games tried per generation.
      tournament: candidates among whom a parent is chosen.
      mutations: expected number of turns that a child changes.
      crossover: probability that a child has two parents.
      patience: generations without a better game after which it is spent.
    """

    population: int = 60
    children: int = 60
    tournament: int = 3
    mutations: float = 2.0
    crossover: float = 0.7
    patience: int = 200


class Population:
    """Games that live on, the fastest first once a generation has passed.

    Args:
      settings: of their offspring.
      genes: `[population, num_turns]` int8 wishes of the founders.
      latencies: `[population]` theirs, in ticks.
    """

    def __init__(self, settings: EvolutionSettings, genes: Actions, latencies: Floats) -> None:
        self.settings = settings
        self.genes, self.latencies = genes, latencies
        self._idle_generations = 0

    @property
    def best(self) -> int:
        """Index of the fastest game."""
        return int(self.latencies.argmin())

    @property
    def is_spent(self) -> bool:
        """Whether nothing has got better for long."""
        return self._idle_generations >= self.settings.patience

    def offspring(self, rng: np.random.Generator) -> Actions:
        """`[children, num_turns]` wishes of the next generation."""
        settings, num_turns = self.settings, self.genes.shape[1]
        mothers, fathers = self.genes[self._chosen(rng)], self.genes[self._chosen(rng)]
        cuts = np.sort(rng.integers(0, num_turns + 1, size=(settings.children, 2)), axis=1)
        time = np.arange(num_turns)
        between = (cuts[:, :1] <= time) & (time < cuts[:, 1:])
        crossed = between & (rng.random((settings.children, 1)) < settings.crossover)
        children = np.where(crossed, fathers, mothers)
        mutated = rng.random(children.shape) < settings.mutations / num_turns
        shift = rng.integers(1, 3, size=children.shape)
        return np.asarray(np.where(mutated, (children + shift) % 3, children), dtype=np.int8)

    def succeed(self, children: Actions, latencies: Floats) -> None:
        """The best of parents and children live on.

        Of equally fast games the younger do: most turns make no difference, and drift.
        """
        everyone = np.concatenate([children, self.genes])
        fitness = np.concatenate([latencies, self.latencies])
        fittest = np.argsort(fitness, kind="stable")[: self.settings.population]
        is_better = fitness[fittest[0]] < self.latencies.min()
        self._idle_generations = 0 if is_better else self._idle_generations + 1
        self.genes, self.latencies = everyone[fittest], fitness[fittest]

    def _chosen(self, rng: np.random.Generator) -> Integers:
        shape = (self.settings.children, self.settings.tournament)
        drawn = rng.integers(0, self.latencies.size, size=shape)
        winners = self.latencies[drawn].argmin(axis=1)
        return np.asarray(drawn[np.arange(len(drawn)), winners], dtype=np.int64)


def random_games(count: int, num_turns: int, rng: np.random.Generator) -> Actions:
    """`[count, num_turns]` int8 wishes: each game with shares of the actions of its own."""
    shares = rng.dirichlet(np.ones(3), size=count)
    return drawn_games(shares[:, None], count, num_turns, rng)


def drawn_games(
    probabilities: Floats, count: int, num_turns: int, rng: np.random.Generator
) -> Actions:
    """`[count, num_turns]` int8 wishes, from `[count or 1, num_turns or 1, 3]` probabilities."""
    drawn = rng.random((count, num_turns, 1))
    return np.asarray((drawn > probabilities.cumsum(axis=-1)[..., :2]).sum(axis=2), dtype=np.int8)


@dataclass(frozen=True, slots=True)
class EvolutionSolver(ActionSolver):
    """Evolution, which begins anew when it is spent.

    Attributes:
      settings: of each population.
    """

    name: str = "evolution"
    settings: EvolutionSettings = EvolutionSettings()

    def play(self, search: ActionSearch) -> None:
        """Generations, from founders on, of whom the first know the best map handed in."""
        population = self._founded(search, search.best.wishes)
        while not search.finished:
            children = population.offspring(search.rng)
            if search.hear_news():
                children[0] = search.best.wishes
            population.succeed(children, self._played(search, children))
            if population.is_spent:
                population = self._founded(search)

    def _founded(self, search: ActionSearch, *known: Actions) -> Population:
        """Random games, those that keep by density, and known ones."""
        count = self.settings.population
        genes = random_games(count, search.game.num_turns, search.rng)
        given = [*known, *density_wishes(search.game)][: count // 2]
        genes[: len(given)] = given
        return Population(self.settings, genes, self._played(search, genes))

    def _played(self, search: ActionSearch, genes: Actions) -> Floats:
        latencies = search.game.play_many(genes)
        search.games_played += len(genes)
        best = int(latencies.argmin())
        search.consider(genes[best], float(latencies[best]))
        return latencies
