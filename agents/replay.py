"""What was played lately, drawn by how wrong the network was about it.

Source: MuZero (Schrittwieser et al. 2020), appendix G: prioritised replay (Schaul et al. 2016)
with importance weights. Rewards are kept in shares of the all-slow latency and turned into
relative return units when a batch is drawn, so they are always measured against the present
incumbents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from agents.config import ReplayConfig
from agents.games import NO_ACTION, Game, Plan, Source
from agents.programs import OUTLOOK_COLUMNS, Baselines
from agents.rows import FIRST_PRIORITY, Rows, RowStore
from malloc_game.observation import Observation

LEAST_PRIORITY = 1e-3


class Batch(NamedTuple):
    """Positions with their targets; `N` positions, `K` unrolled steps. Numbers in return units.

    The learner takes several batches at once: then every array has a leading axis of updates.

    Attributes:
      observation: at the positions, `[N, ...]`, compact (`agents.games.compact`).
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


@dataclass(frozen=True, eq=False)
class Draw:
    """Decisions to learn from.

    Attributes:
      rows: where they are.
      places: `[N]` which of them.
      weights: `[N]` float32 importance weights.
      imitate: the policy target is the move that was played, not what the search recommended.
    """

    rows: Rows
    places: NDArray[np.intp]
    weights: NDArray[np.float32]
    imitate: bool = False

    def __len__(self) -> int:
        return len(self.places)


_SMOOTHING = 0.03
"""Probability that an imitated move leaves to the other legal actions."""


class Targets:
    """Turns decisions into batches, against the present incumbents.

    Args:
      baselines: the incumbents' curves, and the programs' units.
      config: n-step settings.
      unroll_steps: `K`.
    """

    def __init__(self, baselines: Baselines, config: ReplayConfig, unroll_steps: int) -> None:
        self._baselines = baselines
        self._td_steps, self._unroll = config.td_steps, unroll_steps

    def batch(self, draws: Sequence[Draw]) -> Batch:
        """The batch of all `draws`, at least one, in their order."""
        parts = [self._part(draw) for draw in draws]
        joined: Batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return joined

    def _part(self, draw: Draw) -> Batch:
        rows, places = draw.rows, draw.places
        left = rows.left[places][:, None]
        steps = np.minimum(np.arange(self._unroll + 1), left)
        held = places[:, None] + steps
        going = rows.left[held] > 0
        ahead = left if self._td_steps is None else np.minimum(steps + self._td_steps, left)
        far = held[:, :0] if self._td_steps is None else places[:, None] + ahead
        policies = _imitated(rows, held) if draw.imitate else rows.policy[held]
        return Batch(
            observation=rows.observation(places),
            outlook=self._outlook(rows, places),
            actions=np.where(going, rows.action[held], 0)[:, :-1].astype(np.int32),
            rewards=self._between(rows, held[:, :-1], held[:, 1:]),
            returns=self._between(rows, held, places[:, None] + ahead),
            bootstrap_observation=rows.observation(far),
            bootstrap_outlook=self._outlook(rows, far),
            bootstraps=(ahead < left) & np.ones_like(going),
            policies=np.where(going[..., None], policies, 0).astype(np.float32),
            legal=rows.legal[held],
            going=going,
            weights=draw.weights,
        )

    def _outlook(self, rows: Rows, places: NDArray[np.intp]) -> NDArray[np.float32]:
        if not places.size:
            return np.empty((*places.shape, OUTLOOK_COLUMNS), dtype=np.float32)
        return self._baselines.outlook(rows.program[places], rows.cursor[places])

    def _between(
        self, rows: Rows, starts: NDArray[np.intp], ends: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Relative returns between rows of the same games, in units."""
        starts, ends = np.broadcast_arrays(starts, ends)
        program = rows.program[starts]
        expected = self._baselines.gains(program, rows.cursor[starts], rows.cursor[ends])
        units = self._baselines.units[program]
        gained: NDArray[np.float32] = (rows.gained[ends] - rows.gained[starts] - expected) / units
        return gained


def _imitated(rows: Rows, held: NDArray[np.intp]) -> NDArray[np.float32]:
    """`[N, K + 1, 3]` the moves that were played, a little spread over what was legal."""
    legal = rows.legal[held].astype(np.float32)
    played = np.eye(3, dtype=np.float32)[rows.action[held]]
    spread = legal / np.maximum(legal.sum(axis=-1, keepdims=True), 1)
    target: NDArray[np.float32] = (1 - _SMOOTHING) * played + _SMOOTHING * spread
    return target


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known of a game beside its rows.

    Attributes:
      num_decisions: of the game.
      source: who chose its moves.
      birth_update: updates of the learner when its moves were last searched.
    """

    num_decisions: int
    source: Source
    birth_update: int


class Replay:
    """A queue of games: the oldest leave when there are more than `capacity_decisions`.

    Games are numbered as they come, from 0 on, for as long as the queue lives.
    """

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self._games: deque[Remembered] = deque()
        self._store = RowStore()
        self._oldest = 0
        self.num_decisions = 0

    def __len__(self) -> int:
        return len(self._games)

    @property
    def games(self) -> tuple[Remembered, ...]:
        """The oldest first."""
        return tuple(self._games)

    @property
    def rows(self) -> Rows:
        """All that is remembered, the oldest first; there must be a game."""
        return self._store.live

    def add(self, game: Game) -> None:
        """Remembers a game; the last one is kept however long it is."""
        self._store.append(Rows.of(game))
        self._games.append(Remembered(len(game), game.source, game.birth_update))
        self.num_decisions += len(game)
        while self.num_decisions > self.config.capacity_decisions and len(self._games) > 1:
            oldest = self._games.popleft()
            self._oldest += 1
            self._store.drop(oldest.num_decisions + 1)
            self.num_decisions -= oldest.num_decisions

    def sample(self, count: int, rng: np.random.Generator) -> Draw:
        """Decisions drawn by priority; valid until the next game is added."""
        rows = self.rows
        flat = rows.priority.astype(np.float64) ** self.config.priority_exponent
        # A priority of 0 is an end of a game, whatever the exponent makes of it.
        flat[rows.left == 0] = 0.0
        sums = np.cumsum(flat)
        drawn = np.searchsorted(sums, rng.random(count) * sums[-1], side="right")
        drawn = np.minimum(drawn, len(flat) - 2)
        chances = flat[drawn] / sums[-1] * self.num_decisions
        weights = chances**-self.config.importance_exponent
        return Draw(rows, drawn, (weights / weights.max()).astype(np.float32))

    def update(self, draw: Draw, errors: NDArray[np.floating]) -> None:
        """Sets the drawn priorities; an error that is no number counts as 1."""
        clean = np.nan_to_num(np.abs(errors), nan=FIRST_PRIORITY, posinf=FIRST_PRIORITY)
        draw.rows.priority[draw.places] = np.maximum(clean, LEAST_PRIORITY)

    def repetition(self, program: int, num_items: int, rng: np.random.Generator) -> Plan | None:
        """Any remembered game of `program` as a plan of `num_items`; None if there is none."""
        if not self._games:
            return None
        starts = self._starts()
        known = np.flatnonzero(self.rows.program[starts] == program)
        if not known.size:
            return None
        place = int(rng.choice(known))
        decisions = slice(starts[place], starts[place] + self._games[place].num_decisions)
        actions = np.full(num_items, NO_ACTION, dtype=np.int8)
        actions[self.rows.cursor[decisions]] = self.rows.action[decisions]
        return Plan(actions, self._games[place].source, self._oldest + place)

    def refresh(self, game: Game) -> None:
        """Puts what `game`'s searches recommend in the place of what the game that it repeats was
        remembered with; nothing happens if that one has left."""
        assert game.repeats is not None
        place = game.repeats - self._oldest
        if place < 0:
            return
        start = self._starts()[place]
        self.rows.policy[start : start + len(game)] = game.policies
        self._games[place] = replace(self._games[place], birth_update=game.birth_update)

    def _starts(self) -> NDArray[np.intp]:
        """First rows of the games, the oldest first."""
        lengths = np.array([game.num_decisions + 1 for game in self._games], dtype=np.intp)
        starts: NDArray[np.intp] = np.cumsum(lengths) - lengths
        return starts

    def mean_age(self, update: int) -> float:
        """Learner updates since the remembered games were searched, mean over decisions."""
        if not self._games:
            return 0.0
        ages = sum(game.num_decisions * (update - game.birth_update) for game in self._games)
        return ages / self.num_decisions

    def to_document(self) -> dict[str, Any]:
        """For a checkpoint."""
        games = [[g.num_decisions, int(g.source), g.birth_update] for g in self._games]
        return {
            "oldest": self._oldest,
            "games": np.array(games, dtype=np.int64).reshape(-1, 3),
            "rows": self.rows.to_document() if self._games else None,
        }

    def restore(self, document: dict[str, Any]) -> None:
        """What `to_document` made, in place of what is held."""
        listed = np.asarray(document["games"]).tolist()
        self._oldest = int(document["oldest"])
        self._games = deque(Remembered(n, Source(s), birth) for n, s, birth in listed)
        self._store = RowStore()
        if self._games:
            self._store.append(Rows(**document["rows"]))
        self.num_decisions = sum(game.num_decisions for game in self._games)
