"""What was played lately, drawn by how wrong the network was about it.

Source: MuZero (Schrittwieser et al. 2020), appendix G: prioritised replay (Schaul et al. 2016)
with importance weights. Rewards are kept in shares of the all-slow latency and turned into
relative return units when a batch is drawn, so they are always measured against the present
incumbents.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from agents.config import ReplayConfig
from agents.games import Game
from agents.programs import OUTLOOK_COLUMNS, Baselines, PlayedProgram
from malloc_game.observation import Observation

FIRST_PRIORITY = 1.0
"""Of positions the learner has not seen; as errors it would be a large one."""

LEAST_PRIORITY = 1e-3


class Batch(NamedTuple):
    """Positions with their targets; `N` positions, `K` unrolled steps. Numbers in return units.

    Attributes:
      observation: at the positions, `[N, ...]`.
      outlook: `[N, columns]` see `agents.programs.outlook`.
      actions: `[N, K]` played from there on; Drop past the end.
      rewards: `[N, K]` relative; 0 past the end.
      returns: `[N, K + 1]` value targets but for `bootstrap`; 0 past the end.
      bootstrap_observation, bootstrap_outlook: at the position `td_steps` after each unrolled
        step, `[N, K + 1, ...]`; of no bytes (`[N, 0, ...]`) where returns are full.
      bootstraps: `[N, K + 1]` bool: the value there is to be added.
      policies: `[N, K + 1, 3]` policy targets.
      legal: `[N, K + 1, 3]` bool.
      going: `[N, K + 1]` bool: the step is before the end.
      weights: `[N]` importance weights.
    """

    observation: Observation
    outlook: NDArray[np.float32]
    actions: NDArray[np.int32]
    rewards: NDArray[np.float32]
    returns: NDArray[np.float32]
    bootstrap_observation: Observation
    bootstrap_outlook: NDArray[np.float32]
    bootstraps: NDArray[np.bool_]
    policies: NDArray[np.float32]
    legal: NDArray[np.bool_]
    going: NDArray[np.bool_]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Position:
    """One decision of a remembered game."""

    game: Game
    index: int
    weight: float = 1.0
    imitate: bool = False
    """The policy target is the move that was played, not what the search recommended."""


class Targets:
    """Turns positions into batches, against the present incumbents.

    Args:
      members: the programs, for their units.
      baselines: the incumbents' curves.
      config: n-step settings.
      unroll_steps: `K`.
      smoothing: probability that an imitated move leaves to the other legal actions.
    """

    def __init__(
        self,
        members: tuple[PlayedProgram, ...],
        baselines: Baselines,
        config: ReplayConfig,
        unroll_steps: int,
        smoothing: float = 0.03,
    ) -> None:
        self._units = [member.return_unit for member in members]
        self._baselines = baselines
        self._td_steps, self._unroll = config.td_steps, unroll_steps
        self._smoothing = smoothing

    def relative_return(self, game: Game, start: int, end: int | None = None) -> float:
        """Return units from decision `start` up to decision `end`, the game's end if None."""
        end = len(game) if end is None else min(end, len(game))
        expected = self._baselines.gains(game.program, game.cursors[start], game.cursors[end])
        gained = float(game.gained[end]) - float(game.gained[start])
        return (gained - float(expected)) / self._units[game.program]

    def batch(self, positions: list[Position]) -> Batch:
        """The batch of `positions`."""
        rows = [self._row(position) for position in positions]
        stacked: Batch = jax.tree.map(lambda *parts: np.stack(parts), *rows)
        return stacked

    def _row(self, position: Position) -> Batch:
        game, steps = position.game, position.index + np.arange(self._unroll + 1)
        going = steps < len(game)
        held = np.minimum(steps, len(game) - 1)
        far, bootstraps = self._bootstraps(game, steps)
        ends = np.minimum(steps + (self._td_steps or len(game)), len(game))
        starts = np.minimum(steps, len(game))
        policies = self._policies(position, held)
        return Batch(
            observation=_observed(game, position.index),
            outlook=self._outlook(game, position.index),
            actions=np.where(going, game.actions[held], 0)[:-1].astype(np.int32),
            rewards=self._between(game, starts[:-1], starts[1:]),
            returns=self._between(game, starts, ends),
            bootstrap_observation=_observed(game, far),
            bootstrap_outlook=self._outlook(game, far) if far.size else _NO_OUTLOOK,
            bootstraps=bootstraps,
            policies=np.where(going[:, None], policies, 0).astype(np.float32),
            legal=np.asarray(game.observations.action_mask[held]),
            going=going,
            weights=np.float32(position.weight),  # type: ignore[arg-type]
        )

    def _bootstraps(
        self, game: Game, steps: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where the value network takes over, and whether it does."""
        if self._td_steps is None:
            return np.empty(0, dtype=np.intp), np.zeros(len(steps), dtype=bool)
        far = steps + self._td_steps
        return np.minimum(far, len(game) - 1), far < len(game)

    def _between(
        self, game: Game, starts: NDArray[np.intp], ends: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Relative returns between decisions, in units."""
        expected = self._baselines.gains(game.program, game.cursors[starts], game.cursors[ends])
        gained = game.gained[ends] - game.gained[starts]
        units: NDArray[np.float32] = (gained - expected) / np.float32(self._units[game.program])
        return units

    def _outlook(self, game: Game, index: int | NDArray[np.intp]) -> NDArray[np.float32]:
        return self._baselines.outlook(game.program, game.cursors[index])

    def _policies(self, position: Position, held: NDArray[np.intp]) -> NDArray[np.float32]:
        game = position.game
        if not position.imitate:
            recommended: NDArray[np.float32] = game.policies[held]
            return recommended
        legal = np.asarray(game.observations.action_mask[held], dtype=np.float32)
        played = np.eye(3, dtype=np.float32)[game.actions[held]]
        spread = legal / legal.sum(axis=-1, keepdims=True)
        target: NDArray[np.float32] = (1 - self._smoothing) * played + self._smoothing * spread
        return target


_NO_OUTLOOK = np.empty((0, OUTLOOK_COLUMNS), dtype=np.float32)


def _observed(game: Game, index: int | NDArray[np.intp]) -> Observation:
    # Spelled out: a tree map here takes most of the time of making a batch.
    seen = game.observations
    return Observation(
        turn=seen.turn[index],
        now=seen.now[index],
        window=seen.window[index],
        memory=seen.memory[index],
        idle=seen.idle[index],
        action_mask=seen.action_mask[index],
    )


class Replay:
    """A ring of games: the oldest leave when there are more than `capacity_decisions`."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self._games: deque[Game] = deque()
        self._priorities: deque[NDArray[np.float64]] = deque()
        self.num_decisions = 0

    def __len__(self) -> int:
        return len(self._games)

    @property
    def games(self) -> tuple[Game, ...]:
        """The oldest first."""
        return tuple(self._games)

    def add(self, game: Game) -> None:
        """Remembers a game; the last one is kept however long it is."""
        self._games.append(game)
        self._priorities.append(np.full(len(game), FIRST_PRIORITY))
        self.num_decisions += len(game)
        while self.num_decisions > self.config.capacity_decisions and len(self._games) > 1:
            self.num_decisions -= len(self._games.popleft())
            self._priorities.popleft()

    def sample(
        self, count: int, rng: np.random.Generator
    ) -> tuple[list[Position], NDArray[np.intp]]:
        """Positions drawn by priority, and their places for `update`."""
        flat = np.concatenate(self._priorities) ** self.config.priority_exponent
        sums = np.cumsum(flat)
        drawn = np.searchsorted(sums, rng.random(count) * sums[-1], side="right")
        drawn = np.minimum(drawn, len(flat) - 1)
        weights = (flat[drawn] / sums[-1] * len(flat)) ** -self.config.importance_exponent
        weights /= weights.max()
        starts = np.cumsum([0, *(len(game) for game in self._games)])
        owner = np.searchsorted(starts, drawn, side="right") - 1
        positions = [
            Position(self._games[game], int(place - starts[game]), float(weight))
            for game, place, weight in zip(owner.tolist(), drawn, weights, strict=True)
        ]
        return positions, drawn

    def update(self, places: NDArray[np.intp], errors: NDArray[np.floating]) -> None:
        """Sets priorities of the positions last drawn; an error that is no number counts as 1."""
        sizes = [len(game) for game in self._games]
        starts = np.cumsum([0, *sizes])
        owner = np.searchsorted(starts, places, side="right") - 1
        clean = np.nan_to_num(np.abs(errors), nan=FIRST_PRIORITY, posinf=FIRST_PRIORITY)
        for game, place, error in zip(owner.tolist(), places, clean, strict=True):
            self._priorities[game][place - starts[game]] = max(float(error), LEAST_PRIORITY)

    def mean_age(self, update: int) -> float:
        """Learner updates since the remembered games ended, mean over decisions."""
        if not self._games:
            return 0.0
        ages = sum(len(game) * (update - game.birth_update) for game in self._games)
        return ages / self.num_decisions

    @property
    def num_bytes(self) -> int:
        """Memory held by what is remembered."""
        return sum(
            leaf.nbytes for game in self._games for leaf in jax.tree.leaves(game.observations)
        )

    def to_document(self) -> dict[str, object]:
        """For a checkpoint."""
        return {
            "games": [game.to_document() for game in self._games],
            "priorities": list(self._priorities),
        }

    def restore(self, document: dict[str, object]) -> None:
        """What `to_document` made, in place of what is held."""
        games = document["games"]
        assert isinstance(games, list)
        self._games = deque(Game.from_document(game) for game in games)
        self._priorities = deque(np.array(row) for row in document["priorities"])  # type: ignore[attr-defined]
        self.num_decisions = sum(len(game) for game in self._games)
