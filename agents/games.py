"""A game as it is planned, and as the learner remembers it once it is finished."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from malloc_game.observation import Observation

if TYPE_CHECKING:
    from agents.programs import PlayedProgram

NO_ACTION = -1
"""Items at which no decision was asked for."""

OBSERVED = ("turn", "now", "window", "memory", "idle")
"""Parts of an observation, without its mask."""


class Source(enum.IntEnum):
    """Who chose a game's moves."""

    SELF_PLAY = 0
    """Network, search or table, every one, or they repeat moves of a game of which that is true."""
    DEMONSTRATION = 1
    """At least one came from a map that another solver made."""


@dataclass(frozen=True)
class Plan:
    """How a game is to be played where it is not free.

    Attributes:
      actions: `[bucket.num_items]` int8, `NO_ACTION` where the search chooses.
      source: of what the plan came from.
      repeats: number of the remembered game that this is, move by move (`agents.replay`).
    """

    actions: NDArray[np.int8]
    source: Source
    repeats: int | None = None

    @staticmethod
    def free(num_items: int) -> Plan:
        """The search chooses every move."""
        return Plan(np.full(num_items, NO_ACTION, dtype=np.int8), Source.SELF_PLAY)


class Thoughts(NamedTuple):
    """What was recommended at `T` decisions of a game, whether it has ended or not.

    Attributes:
      cursors: `[T]` int32 items of the decisions.
      policies: `[T, 3]` float32.
    """

    cursors: NDArray[np.int32]
    policies: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Game:
    """One finished game of `T` decisions; equal only to itself.

    Attributes:
      program: index into the `ProgramSet`.
      source: see `Source`.
      observations: an `Observation` of arrays `[T, ...]`, see `compact`.
      cursors: `[T + 1]` int32 items of the decisions, then the end.
      actions: `[T]` int8.
      rewards: `[T]` float32, shares of the all-slow latency.
      opening: reward before the first decision.
      policies: `[T, 3]` float32, what the search recommends.
      latency_ticks: exact, by the compiled game.
      birth_update: updates of the learner when it ended.
      repeats: number of the remembered game whose every move it repeats (`agents.replay`), if it
        was played for the search's sake alone.
      free: the search chose every move; not known of games that come out of a checkpoint.
    """

    program: int
    source: Source
    observations: Observation
    cursors: NDArray[np.int32]
    actions: NDArray[np.int8]
    rewards: NDArray[np.float32]
    opening: float
    policies: NDArray[np.float32]
    latency_ticks: float
    birth_update: int = 0
    repeats: int | None = None
    free: bool = False

    def __len__(self) -> int:
        return len(self.actions)

    @cached_property
    def gained(self) -> NDArray[np.float32]:
        """`[T + 1]` sums of rewards before each decision, then of all."""
        sums = np.cumsum(self.rewards, dtype=np.float64) + self.opening
        return np.concatenate([[self.opening], sums]).astype(np.float32)

    @property
    def thoughts(self) -> Thoughts:
        """What was recommended at its decisions."""
        return Thoughts(self.cursors[:-1], self.policies)

    @property
    def total(self) -> float:
        """Sum of the rewards: 1 - latency / all-slow latency, but for rounding."""
        return float(self.gained[-1])

    def actions_by_item(self, num_items: int) -> NDArray[np.int8]:
        """`[num_items]`, `NO_ACTION` where nothing was decided."""
        actions = np.full(num_items, NO_ACTION, dtype=np.int8)
        actions[self.cursors[:-1]] = self.actions
        return actions

    def wishes(self, member: PlayedProgram) -> NDArray[np.int8]:
        """`[num_turns]` for the compiled game of its program."""
        return member.wishes(self.actions_by_item(member.table.num_items))

    def to_document(self) -> dict[str, Any]:
        """Arrays and numbers by name, for a checkpoint."""
        document = {name: getattr(self, name) for name in _PLAIN}
        document["source"] = int(self.source)
        parts = (*OBSERVED, "action_mask")
        document["observations"] = {n: np.asarray(getattr(self.observations, n)) for n in parts}
        return document

    @staticmethod
    def from_document(document: dict[str, Any]) -> Game:
        """What `to_document` made."""
        plain = {name: document[name] for name in _PLAIN}
        return Game(
            source=Source(document["source"]),
            observations=Observation(**document["observations"]),
            **plain,
        )


@dataclass(frozen=True, eq=False)
class BestGame:
    """What of a program's fastest game is kept: its moves, and what they came to.

    Attributes:
      source: see `Source`.
      wishes: `[num_turns]` int8, for the compiled game.
      latency_ticks: exact.
      total: see `Game.total`.
    """

    source: Source
    wishes: NDArray[np.int8]
    latency_ticks: float
    total: float

    @staticmethod
    def of(game: Game, member: PlayedProgram) -> BestGame:
        """A finished game of the program."""
        return BestGame(game.source, game.wishes(member), game.latency_ticks, game.total)

    def to_document(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "source": int(self.source),
            "wishes": self.wishes,
            "latency_ticks": self.latency_ticks,
            "total": self.total,
        }

    @staticmethod
    def from_document(document: dict[str, Any]) -> BestGame:
        """What `to_document` made."""
        return BestGame(**{**document, "source": Source(document["source"])})


_PLAIN = (
    *("program", "cursors", "actions", "rewards", "opening", "policies"),
    *("latency_ticks", "birth_update"),
)


def compact(observation: Observation) -> Observation:
    """On the device, an eighth to a half of the size: bits of the memory image, halves of the rest.

    `memory` becomes `[..., times, ADDRESS_BINS / 8]` uint8.
    """
    halves = {
        name: getattr(observation, name).astype(jnp.float16)
        for name in ("turn", "now", "window", "idle")
    }
    memory = jnp.packbits(observation.memory > 0, axis=-1)
    return Observation(**halves, memory=memory, action_mask=observation.action_mask)


def expanded(observation: Observation) -> Observation:
    """On the device, what `compact` was given, in half precision."""
    return replace(observation, memory=jnp.unpackbits(observation.memory, axis=-1))
