"""mallocGame as an environment, in the manner of Jumanji: `reset`, `step`, `TimeStep`, specs.

Everything here is pure: `jit`, `vmap` and `scan` work, and programs of one bucket share one
trace. The rules are in `malloc_game.rules`, what a network sees in `malloc_game.observation`,
both described in docs/game.md.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from hlo_graphs.program import Program
from malloc_game.memory_map import MemoryMap
from malloc_game.observation import Observation, observation_specs, observe
from malloc_game.outcome import memory_map_of
from malloc_game.rules import advance
from malloc_game.specs import ArraySpec, DiscreteSpec
from malloc_game.state import (
    NUM_ACTIONS,
    Action,
    Bucket,
    ProgramArrays,
    State,
    first_state,
    program_arrays,
)
from malloc_game.turn_table import TurnTable, turn_table


class StepType(enum.IntEnum):
    """Where in a game a `TimeStep` is."""

    FIRST = 0
    MID = 1
    LAST = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TimeStep:
    """What the player gets back.

    Attributes:
      step_type: `[]` int32, `StepType`.
      reward: `[]` float32, the fall of latency over the all-slow latency since the decision
        before; 0 at the first.
      discount: `[]` float32, 1, or 0 at the last.
      observation: what a network sees.
    """

    step_type: jax.Array
    reward: jax.Array
    discount: jax.Array
    observation: Observation

    def last(self) -> jax.Array:
        """`[]` bool, whether the game is over."""
        return self.step_type == StepType.LAST


def reset(arrays: ProgramArrays) -> tuple[State, TimeStep]:
    """A new game at its first decision; `LAST` at once if there is none."""
    state, reward = advance(arrays, first_state(arrays), jnp.int32(Action.DROP))
    return state, _time_step(arrays, state, reward, StepType.FIRST)


def step(arrays: ProgramArrays, state: State, action: jax.Array) -> tuple[State, TimeStep]:
    """Plays one decision and all that plays itself after it.

    An action that `action_mask` forbids counts as Drop. After the end nothing changes, reward
    and discount are 0.
    """
    state, reward = advance(arrays, state, action)
    return state, _time_step(arrays, state, reward, StepType.MID)


def action_mask(state: State) -> jax.Array:
    """`[3]` bool, True where Drop, Copy, Keep are legal; after the end Drop alone."""
    return state.legal


def _time_step(
    arrays: ProgramArrays, state: State, reward: jax.Array, otherwise: StepType
) -> TimeStep:
    over = state.cursor >= arrays.num_items
    return TimeStep(
        step_type=jnp.where(over, StepType.LAST, otherwise).astype(jnp.int32),
        reward=reward,
        discount=jnp.where(over, 0.0, 1.0).astype(jnp.float32),
        observation=observe(arrays, state),
    )


class MallocGame:
    """The game of one program.

    A turn decides about one access: Drop, Copy or Keep (`Action`; docs/game.md).

    - observation: `Observation`, all dimensionless; `observation_spec`.
    - action: int32 in 0..2, masked by `Observation.action_mask` (True is legal).
    - reward: the fall of latency over the all-slow latency; the rewards of a game sum to
      `1 - latency / all_slow_latency`.
    - the game ends at the end of the program; `memory_map` is then its answer.

    `reset` and `step` are compiled once per bucket, whatever the program.
    """

    def __init__(self, program: Program, *, bucket: Bucket | None = None) -> None:
        self.table: TurnTable = turn_table(program)
        self.arrays: ProgramArrays = program_arrays(self.table, bucket)

    @property
    def program(self) -> Program:
        """The program that is played."""
        return self.table.program

    def reset(self, key: jax.Array | None = None) -> tuple[State, TimeStep]:
        """A new game. The game is deterministic: `key` is there for callers that hand one in."""
        del key
        result: tuple[State, TimeStep] = _reset(self.arrays)
        return result

    def step(self, state: State, action: jax.Array | int) -> tuple[State, TimeStep]:
        """Plays `action`; see `malloc_game.env.step`."""
        result: tuple[State, TimeStep] = _step(
            self.arrays, state, jnp.asarray(action, dtype=jnp.int32)
        )
        return result

    def memory_map(self, state: State) -> MemoryMap:
        """The map that a finished game is. Raises InputError if it is not over."""
        return memory_map_of(self.table, state)

    @property
    def action_spec(self) -> DiscreteSpec:
        """Three actions."""
        return DiscreteSpec(NUM_ACTIONS, name="action")

    @property
    def observation_spec(self) -> Observation:
        """An `ArraySpec` for each array of an observation."""
        return observation_specs()

    @property
    def reward_spec(self) -> ArraySpec:
        """One number; a stall can cost more than everything else saves."""
        return ArraySpec((), np.dtype(np.float32), -np.inf, 1.0, name="reward")

    @property
    def discount_spec(self) -> ArraySpec:
        """1, or 0 at the end."""
        return ArraySpec((), np.dtype(np.float32), 0.0, 1.0, name="discount")


_reset = jax.jit(reset)
_step = jax.jit(step)
