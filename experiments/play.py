"""Watching a game: one line a turn, or the picture at the end (`malloc-game play`).

The policies are simple on purpose; they show the rules. `play` returns everything as text, so
that the command line and tests share it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.env import MallocGame, TimeStep
from malloc_game.memory_map import MemoryMap
from malloc_game.observation import NowFeature
from malloc_game.render import describe_turn, draw_map, svg_of_map
from malloc_game.state import Action, Bucket, State
from malloc_game.turn_features import TurnFeature
from malloc_game.validate import check

Policy = Callable[[TimeStep], Action]


class PolicyName(enum.StrEnum):
    """Who plays."""

    RANDOM = "random"
    """Any legal action."""
    GREEDY = "greedy"
    """Fast where the access saves time now; stays where the next one does and comes soon."""
    KEEP = "keep"
    """Keep whenever possible, else Copy."""
    DROP = "drop"
    """Nothing goes into fast memory."""


@dataclass(frozen=True, slots=True)
class PlayedTurn:
    """One decision.

    Attributes:
      description: the turn and what was legal.
      action: what was played.
      reward: share of the all-slow latency that was won until the next decision.
    """

    description: str
    action: Action
    reward: float

    def __str__(self) -> str:
        return f"{self.description} {self.action.name.title()} {self.reward:+.6f}"


@dataclass(frozen=True, slots=True)
class PlayedOut:
    """A finished game.

    Attributes:
      program: what was played.
      turns: every decision.
      memory_map: what the game amounts to; valid.
    """

    program: Program
    turns: tuple[PlayedTurn, ...]
    memory_map: MemoryMap

    @property
    def saved(self) -> float:
        """Sum of rewards: 1 - latency / all-slow latency, up to 32-bit rounding."""
        return sum(turn.reward for turn in self.turns)

    def picture(self) -> str:
        """Fast memory over the whole program, as text."""
        return draw_map(self.program, self.memory_map)

    def svg(self) -> str:
        """The same as an SVG document."""
        return svg_of_map(self.program, self.memory_map)


def policy_of(name: PolicyName | str, seed: int = 0) -> Policy:
    """The policy of that name; `seed` matters to the random one.

    Raises:
      InputError: if there is none.
    """
    try:
        chosen = PolicyName(name)
    except ValueError as error:
        raise InputError(
            f"no policy {str(name)!r}; choose one of {', '.join(PolicyName)}"
        ) from error
    if seed < 0:
        raise InputError(f"seed is {seed}, must not be negative")
    if chosen is PolicyName.RANDOM:
        return _Random(np.random.default_rng(seed))
    return {PolicyName.GREEDY: _greedy, PolicyName.KEEP: _keep, PolicyName.DROP: _drop}[chosen]


def watch(game: MallocGame, policy: Policy) -> Iterator[tuple[PlayedTurn, State]]:
    """Plays `game`, decision by decision, with the state after each."""
    state, time_step = game.reset()
    while not bool(time_step.last()):
        description = describe_turn(game.table, state)
        action = policy(time_step)
        state, time_step = game.step(state, action)
        yield PlayedTurn(description, action, float(time_step.reward)), state


def play(
    program: Program,
    policy: PolicyName | str = PolicyName.GREEDY,
    *,
    seed: int = 0,
    bucket: Bucket | None = None,
    on_turn: Callable[[PlayedTurn], None] | None = None,
) -> PlayedOut:
    """Plays one game of `program`; its map is checked before it is returned.

    Args:
      program: what is played.
      policy: who plays.
      seed: of the random policy.
      bucket: sizes to pad to, so that programs share compiled code; by default the smallest.
      on_turn: called after every decision, to watch.
    """
    player = policy_of(policy, seed)
    game = MallocGame(program, bucket=bucket)
    turns = []
    state, _ = game.reset()
    for turn, after in watch(game, player):
        turns.append(turn)
        state = after
        if on_turn is not None:
            on_turn(turn)
    memory_map = game.memory_map(state)
    check(program, memory_map)
    return PlayedOut(program, tuple(turns), memory_map)


class _Random:
    """Any legal action, all alike."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __call__(self, time_step: TimeStep) -> Action:
        legal = np.flatnonzero(np.asarray(time_step.observation.action_mask))
        return Action(int(self.rng.choice(legal)))


def _keep(time_step: TimeStep) -> Action:
    return Action(int(np.flatnonzero(np.asarray(time_step.observation.action_mask))[-1]))


def _drop(_: TimeStep) -> Action:
    return Action.DROP


def _greedy(time_step: TimeStep) -> Action:
    """Keeps what will be read again while memory has room; copies what saves time at once."""
    observation = time_step.observation
    mask = np.asarray(observation.action_mask)
    turn, now = np.asarray(observation.turn), np.asarray(observation.now)
    crowded = now[NowFeature.TAKEN_NOW] + turn[TurnFeature.SIZE_SHARE] > 0.9
    worth = turn[TurnFeature.SAVING_LEFT] > 0 and turn[TurnFeature.STEPS_TO_NEXT] < 0.5
    if mask[Action.KEEP] and worth and (now[NowFeature.RESIDENT] > 0 or not crowded):
        return Action.KEEP
    if mask[Action.COPY] and now[NowFeature.SAVING_NOW] > 0:
        return Action.COPY
    return Action.DROP
