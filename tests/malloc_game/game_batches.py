"""Random games played by the JAX rules in batches, and replayed by the slow witness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from hlo_graphs.program import Program
from malloc_game.outcome import memory_map_of
from malloc_game.rules import advance
from malloc_game.state import Action, Bucket, ProgramArrays, State, first_state, program_arrays
from malloc_game.turn_table import turn_table
from tests.malloc_game.reference_game import ReferenceGame

SMALL = Bucket(num_items=256, num_buffers=64, num_segments=192, num_lanes=2)
"""Holds every program of `tests.strategies.small_program` up to 24 accesses."""

TASTES = jnp.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5], [0.0, 1.5, 1.5], [-2.0, 0.0, 2.0]])
"""Logits of Drop, Copy and Keep: as they come, keen on Keep, on both, on Keep alone."""


@dataclass(frozen=True)
class Record:
    """What a batch of games did, decision by decision.

    Attributes:
      states: the last states, `[programs, games, ...]`.
      legal: `[decisions, programs, games, 3]` bool.
      actions: `[decisions, programs, games]`.
      rewards: `[decisions, programs, games]`.
    """

    states: State
    legal: NDArray[np.bool_]
    actions: NDArray[np.int32]
    rewards: NDArray[np.float32]


def stack_programs(programs: Sequence[Program], bucket: Bucket = SMALL) -> ProgramArrays:
    """The arrays of several programs with a leading axis."""
    arrays = [program_arrays(program, bucket) for program in programs]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)


def _play(arrays: ProgramArrays, keys: jax.Array, tastes: jax.Array, num_decisions: int):
    """Games `[games]` of one program; tastes `[games, 3]` are logits."""

    def one(key: jax.Array, taste: jax.Array):
        state, _ = advance(arrays, first_state(arrays), jnp.int32(Action.DROP))

        def turn(state: State, key: jax.Array):
            action = jax.random.categorical(key, jnp.where(state.legal, taste, -jnp.inf))
            after, reward = advance(arrays, state, action)
            return after, (state.legal, action, reward)

        return jax.lax.scan(turn, state, jax.random.split(key, num_decisions))

    return jax.vmap(one)(keys, tastes)


play_programs = jax.jit(
    jax.vmap(_play, in_axes=(0, 0, None, None)), static_argnames="num_decisions"
)
"""Games of several programs at once: `[programs, games]`."""


def play_randomly(programs: Sequence[Program], seed: int, num_decisions: int) -> Record:
    """Four games of each program, one for each of four tastes."""
    keys = jax.random.split(jax.random.key(seed), (len(programs), len(TASTES)))
    arrays = stack_programs(programs)
    states, (legal, actions, rewards) = play_programs(arrays, keys, TASTES, num_decisions)
    first = (2, 0, 1)
    return Record(
        states,
        np.asarray(legal).transpose(*first, 3),
        np.asarray(actions).transpose(*first),
        np.asarray(rewards).transpose(*first),
    )


def check_against_reference(programs: Sequence[Program], record: Record) -> int:
    """Asserts masks, rewards and maps, game by game; the number of decisions compared."""
    compared = 0
    for index, program in enumerate(programs):
        table = turn_table(program)
        for lane in range(record.actions.shape[2]):
            game = ReferenceGame(program)
            decision = 0
            while game.turn is not None:
                at = (decision, index, lane)
                assert tuple(record.legal[at]) == game.legal(), (program.name, at, game.turn)
                reward = game.play(int(record.actions[at]))
                assert abs(record.rewards[at] - float(reward)) < 1e-5, (program.name, at)
                decision += 1
            state = jax.tree.map(lambda leaf, at=(index, lane): leaf[at], record.states)
            assert memory_map_of(table, state) == game.memory_map(), program.name
            assert not record.rewards[decision:, index, lane].any()
            compared += decision
    return compared
