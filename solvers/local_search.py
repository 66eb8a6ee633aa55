"""Annealing over wishes, each trial replayed only from where it changes the game.

A trial changes one turn's wish. A Keep that is new comes with *ejections*: other buffers kept
across the same steps are let go, so that there is room; a Keep given up lets others in. Some
trials *make room* for an access that is slow: they choose the offset whose present occupants are
worth least, eject just those, and hint the buffer there. Trials
are drawn in batches; `GameWalk` replays them from checkpoints and accepts by a threshold that
cools down. The walk starts from the best of greedy construction, keep-by-density games and a
short cross-entropy run, and goes back to the best game when it has lost its way (docs/search.md,
"The solvers").
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from malloc_game.fast_game import Action, FastGame, GameWalk, TurnKind
from malloc_game.fast_game_kernels import Actions, Floats, Integers
from solvers.action_search import (
    ActionSearch,
    ActionSolver,
    Plan,
    gap_steps,
    num_choices,
    saving_ticks,
)
from solvers.cross_entropy import CrossEntropySolver, start_from_densities
from solvers.greedy import greedy_plans
from solvers.lane_table import LaneTable


@dataclass(frozen=True, slots=True)
class LocalSearchSolver(ActionSolver):
    """Annealing with ejections.

    Attributes:
      first_temperature: share of the start's latency by which a trial may be worse at first, in
        expectation.
      last_temperature: the same at the end.
      cycles: times that it cools down.
      ejections: most buffers let go for one that is kept.
      batch: trials between looks at the clock.
      sampling_share: share of the time for the cross-entropy run before the walk.
      give_up: share of the latency that a trial may be behind before it is given up.
    """

    name: str = "local-search"
    first_temperature: float = 3e-4
    last_temperature: float = 1e-6
    cycles: int = 1
    ejections: int = 5
    batch: int = 64
    sampling_share: float = 0.1
    give_up: float = 1e-3

    def play(self, search: ActionSearch) -> None:
        """The starts, then the walk."""
        self._start(search)
        if not search.finished:
            self._walk(search)

    def _start(self, search: ActionSearch) -> None:
        if not search.request.initial_maps:
            program = search.request.program
            search.consider_map(next(greedy_plans(program, LaneTable.of(program))).memory_map())
        if not search.finished:
            start_from_densities(search)
        sampler = CrossEntropySolver()
        sampler.warm_up(search, until=search.progress + self.sampling_share)

    def _walk(self, search: ActionSearch) -> None:
        """A chain of games in every thread, all cooled down alike."""
        chains = self._chains(search)
        begun, scale, cycle = search.progress, search.best_ticks, 0
        while not search.finished:
            share = (search.progress - begun) / max(1 - begun, 1e-9) * self.cycles
            if search.hear_news() or int(share) > cycle:
                cycle = int(share)
                for chain in chains:
                    chain.restart(search.best)
            temperature = scale * self._temperature(share % 1.0)
            tried = self._tried(search.game, chains, temperature, self.give_up * scale)
            search.games_played += 1 + tried
            for walk in (chain.walk for chain in chains):
                search.consider(walk.best_wishes, walk.best_latency_ticks, walk.best_hints)

    def _chains(self, search: ActionSearch) -> list[_Chain]:
        players = search.game.players
        trials, rngs = Trials(search.game, self.ejections), search.rng.spawn(len(players))
        return [
            _Chain(trials.on(player), search.best, rng)
            for player, rng in zip(players, rngs, strict=True)
        ]

    def _tried(
        self, game: FastGame, chains: Sequence[_Chain], temperature: float, give_up_ticks: float
    ) -> int:
        """A batch of trials by each chain; returns the games played."""
        margin_ticks = give_up_ticks + 10 * temperature
        played = game.in_threads(
            lambda row: chains[row].go_on(self.batch, temperature, margin_ticks)
        )
        return sum(played)

    def _temperature(self, share: float) -> float:
        ratio = self.last_temperature / self.first_temperature
        return float(self.first_temperature * ratio**share)


class _Chain:
    """One thread's walk.

    Args:
      trials: for this thread's game.
      start: where it begins.
      rng: its random numbers.

    Attributes:
      walk: the chain of games.
    """

    def __init__(self, trials: Trials, start: Plan, rng: np.random.Generator) -> None:
        self._trials, self._rng = trials, rng
        trials.game.hints[:] = start.hints
        self.walk = GameWalk(trials.game, start.wishes)

    def restart(self, start: Plan) -> None:
        """Goes on from another plan."""
        self._trials.game.hints[:] = start.hints
        self.walk.restart(start.wishes)

    def go_on(self, count: int, temperature: float, margin_ticks: float) -> int:
        """Tries `count` changes; returns the games played."""
        turns, actions, hints = self._trials.draw(self._rng, self.walk.wishes, count)
        thresholds = -temperature * np.log(self._rng.random(count))
        return self.walk.propose(turns, actions, thresholds, hints=hints, margin_ticks=margin_ticks)


class Trials:
    """Draws changes of wishes and of places.

    Args:
      game: whose wishes.
      ejections: most further turns changed with the first.
    """

    MOVED_SHARE = 0.2
    """Trials that also look for another place for the buffer."""

    ROOM_SHARE = 0.3
    """Trials that make room for a slow access."""

    def __init__(self, game: FastGame, ejections: int) -> None:
        self.game = game
        self.ejections = ejections
        unit = game.program.machine.alignment_bytes
        self._capacity = game.program.capacity_bytes // unit
        sizes = [game.program.buffers[turn.buffer].size_bytes // unit for turn in game.turns]
        self._sizes = np.array(sizes, dtype=np.int64)
        self._choices = num_choices(game)
        self._savings = saving_ticks(game)
        self._may_keep = game.next_turn >= 0
        following = np.maximum(game.next_turn, 0)
        self._worth = np.where(self._may_keep, self._savings[following], self._savings)
        self.starts, self.ends = gap_steps(game)
        kept = [
            turn
            for turn in range(game.num_turns)
            if game.next_turn[turn] >= 0 or game.turns[turn].kind is TurnKind.CARRY
        ]
        by_step: list[list[int]] = [[] for _ in range(game.program.num_steps + 1)]
        for turn in kept:
            for step in range(self.starts[turn], self.ends[turn]):
                by_step[step].append(turn)
        self._first = np.cumsum([0, *(len(found) for found in by_step)])
        self._turns = np.array([t for found in by_step for t in found] or [0], dtype=np.int64)

    def on(self, player: FastGame) -> Trials:
        """The same, for another player of the game."""
        other = copy.copy(self)
        other.game = player
        return other

    def draw(
        self, rng: np.random.Generator, wishes: Actions, count: int
    ) -> tuple[Integers, Actions, Integers]:
        """`[count, 1 + ejections]` turns to change (-1 for none), their wishes and hints."""
        turns = np.full((count, 1 + self.ejections), -1, dtype=np.int64)
        actions = np.zeros(turns.shape, dtype=np.int8)
        first = rng.integers(0, wishes.size, count)
        choices = self._choices[first]
        wanted = (wishes[first] + rng.integers(1, choices, count)) % choices
        moved = rng.random(count) < self.MOVED_SHARE
        wanted = np.where(moved & (wishes[first] != Action.DROP), wishes[first], wanted)
        turns[:, 0], actions[:, 0] = first, wanted
        keeps = wanted >= Action.KEEP
        ejected = rng.integers(0, self.ejections + 1, count) * rng.integers(0, 2, count)
        for column in range(1, 1 + self.ejections):
            other = self._beside(rng, first)
            let_go = rng.integers(Action.DROP, Action.KEEP, count)
            change = np.where(keeps, let_go, Action.KEEP)
            kept = wishes[other] >= Action.KEEP
            useful = (column <= ejected) & (other != first) & (kept == keeps)
            turns[:, column] = np.where(useful, other, -1)
            actions[:, column] = change
        hints = self.game.hints[turns]
        hints[:, 0] = np.where(moved, self._places(rng, first), hints[:, 0])
        self._make_room(rng, wishes, turns, actions, hints)
        return turns, actions, hints

    def _make_room(
        self,
        rng: np.random.Generator,
        wishes: Actions,
        turns: Integers,
        actions: Actions,
        hints: Integers,
    ) -> None:
        """Overwrites the first trials with ones that make room for slow accesses."""
        weights = np.where(self.game.placed < 0, self._savings, 0.0).cumsum()
        if weights[-1] <= 0:
            return
        count = round(turns.shape[0] * self.ROOM_SHARE)
        chosen = np.searchsorted(weights, rng.random(count) * weights[-1], side="right")
        for row, turn in enumerate(chosen.tolist()):
            offset, ejected = self._room_for(rng, wishes, turn)
            if ejected.size > self.ejections:
                continue
            changed = np.concatenate([[turn], ejected])
            turns[row] = -1
            turns[row, : changed.size] = changed
            actions[row] = Action.COPY
            if self._may_keep[turn] and rng.random() < 0.5:
                actions[row, 0] = Action.KEEP
            hints[row] = self.game.hints[turns[row]]
            hints[row, 0] = offset

    def _room_for(
        self, rng: np.random.Generator, wishes: Actions, turn: int
    ) -> tuple[int, Integers]:
        """An offset for the turn's buffer, and the kept turns that are in the way there."""
        size, step = self._sizes[turn], self.starts[turn]
        beside = self._turns[self._first[step] : self._first[step + 1]]
        beside = beside[(wishes[beside] >= Action.KEEP) & (self.game.placed[beside] >= 0)]
        lows = self.game.placed[beside]
        highs = lows + self._sizes[beside]
        offsets = np.concatenate([[0, self._capacity - size], lows, highs])
        offsets = offsets[(offsets >= 0) & (offsets <= self._capacity - size)]
        meets = (lows < offsets[:, None] + size) & (offsets[:, None] < highs)
        costs = (meets * self._worth[beside]).sum(axis=1)
        cheapest = np.argsort(costs, kind="stable")[:3]
        best = int(cheapest[rng.integers(0, cheapest.size)])
        return int(offsets[best]), beside[meets[best]]

    def _places(self, rng: np.random.Generator, turns: Integers) -> Integers:
        """For each turn an offset at an end of memory, or above, below or at another's place."""
        other = self._beside(rng, turns)
        theirs = self.game.placed[other]
        choices = np.stack(
            [
                np.zeros_like(turns),
                self._capacity - self._sizes[turns],
                theirs,
                theirs + self._sizes[other],
                theirs - self._sizes[turns],
            ]
        )
        return choices[rng.integers(0, len(choices), turns.size), np.arange(turns.size)]

    def _beside(self, rng: np.random.Generator, turns: Integers) -> Integers:
        """For each turn one whose Keep holds space in a step where the turn's would."""
        span = self.ends[turns] - self.starts[turns]
        step = self.starts[turns] + _below(rng, span)
        count = self._first[step + 1] - self._first[step]
        row = self._first[step] + _below(rng, count)
        found = self._turns[np.minimum(row, self._turns.size - 1)]
        return np.where(count > 0, found, turns)


def _below(rng: np.random.Generator, limits: Integers) -> Integers:
    """Random integers in `[0, limit)`, 0 where the limit is."""
    drawn: Floats = rng.random(limits.size) * limits
    return drawn.astype(np.int64)
