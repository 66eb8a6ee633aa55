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


@dataclass(frozen=True, slots=True)
class EvolutionSolver(ActionSolver):
    """Evolution.

    Attributes:
      population: games that live on.
      children: games tried per generation.
      tournament: candidates among whom a parent is chosen.
      mutations: expected number of turns that a child changes.
      crossover: probability that a child has two parents.
      patience: generations without a better game after which other founders begin anew.
    """

    name: str = "evolution"
    population: int = 60
    children: int = 60
    tournament: int = 3
    mutations: float = 2.0
    crossover: float = 0.7
    patience: int = 200

    def play(self, search: ActionSearch) -> None:
        """Generations, from founders on, of whom the first know the best map handed in."""
        genes = self._founders(search, search.best.wishes)
        latencies = self._played(search, genes)
        unimproved = 0
        while not search.finished:
            children = self._offspring(search.rng, genes, latencies)
            if search.hear_news():
                children[0] = search.best.wishes
            # Of equally fast games the younger live on: most turns make no difference, and drift.
            everyone = np.concatenate([children, genes])
            fitness = np.concatenate([self._played(search, children), latencies])
            fittest = np.argsort(fitness, kind="stable")[: self.population]
            unimproved = 0 if fitness[fittest[0]] < latencies.min() else unimproved + 1
            genes, latencies = everyone[fittest], fitness[fittest]
            if unimproved == self.patience:
                genes, unimproved = self._founders(search), 0
                latencies = self._played(search, genes)

    def _founders(self, search: ActionSearch, *known: Actions) -> Actions:
        """Random games, those that keep by density, and known ones."""
        num_turns = search.game.num_turns
        shares = search.rng.dirichlet(np.ones(3), size=self.population)
        drawn = search.rng.random((self.population, num_turns, 1))
        genes = (drawn > shares.cumsum(axis=1)[:, None, :2]).sum(axis=2).astype(np.int8)
        given = [*known, *density_wishes(search.game)][: self.population // 2]
        genes[: len(given)] = given
        return np.asarray(genes, dtype=np.int8)

    def _played(self, search: ActionSearch, genes: Actions) -> Floats:
        latencies = search.game.play_many(genes)
        search.games_played += len(genes)
        best = int(latencies.argmin())
        search.consider(genes[best], float(latencies[best]))
        return latencies

    def _offspring(self, rng: np.random.Generator, genes: Actions, latencies: Floats) -> Actions:
        num_turns = genes.shape[1]
        mothers = genes[self._chosen(rng, latencies)]
        fathers = genes[self._chosen(rng, latencies)]
        cuts = np.sort(rng.integers(0, num_turns + 1, size=(self.children, 2)), axis=1)
        time = np.arange(num_turns)
        between = (cuts[:, :1] <= time) & (time < cuts[:, 1:])
        crossed = between & (rng.random((self.children, 1)) < self.crossover)
        children = np.where(crossed, fathers, mothers)
        mutated = rng.random(children.shape) < self.mutations / num_turns
        shift = rng.integers(1, 3, size=children.shape)
        return np.asarray(np.where(mutated, (children + shift) % 3, children), dtype=np.int8)

    def _chosen(self, rng: np.random.Generator, latencies: Floats) -> Integers:
        drawn = rng.integers(0, latencies.size, size=(self.children, self.tournament))
        winners = latencies[drawn].argmin(axis=1)
        return np.asarray(drawn[np.arange(self.children), winners], dtype=np.int64)
